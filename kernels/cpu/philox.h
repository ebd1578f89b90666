/* The words of base/rng.h in bulk: the same bits, many blocks at a time. */
#ifndef KERNELS_CPU_PHILOX_H
#define KERNELS_CPU_PHILOX_H

#include <stdint.h>

/* words[i] = rng_bits(seed, stream, at + i) for i < n; `at` is a multiple of 4, words has room for n rounded up to 64.
 * */
void philox_words(uint64_t seed, uint64_t stream, int64_t at, uint32_t *words, int n);

#endif

/* Random numbers that are a function of (seed, stream, index), so that any of them can be had at any time, by any
 * thread, in any order: a run that resumes draws what it would have drawn. Philox4x32-10 (Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3", SC 2011). */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

/* Four words for block `index` of a stream. */
void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);

uint32_t rng_bits(uint64_t seed, uint64_t stream, uint64_t index);  // one word: number index of the stream
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); // [0, 1)
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);  // mean 0, deviation 1

/* A random order of 0..n-1 (Fisher-Yates). */
void rng_shuffle(uint64_t seed, uint64_t stream, int64_t *order, int64_t n);

/* A stream number for a name, so that streams need no list kept in step. */
uint64_t rng_stream(const char *name);

#endif

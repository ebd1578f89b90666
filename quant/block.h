/* Blocks of 4-bit numbers on the host: quantising, dequantising, and the second level that keeps absmax in 8 bits.
 *
 * A block's scale is absmax, the largest magnitude in it; an element becomes the code whose value is nearest to
 * x * (1 / max(absmax, 1e-38)), a tie going to the lower NF4 code and to the smaller FP4 magnitude. The last block,
 * where it is short, divides by absmax instead and stores at least 1e-38, as bitsandbytes does on the CPU. A block of
 * zeros gets the code of zero. NaN gets code 0 and makes absmax NaN, so a caller sees it there.
 *
 * Work is shared out in pieces that depend on the sizes alone: any number of threads gives the same bytes. */
#ifndef QUANT_BLOCK_H
#define QUANT_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/tensor.h"
#include "base/threads.h"

enum { NESTED_BLOCKSIZE = 256 };

bool blocksize_valid(int64_t blocksize);           // a power of two from 32 to 4096
int64_t block_count(int64_t n, int64_t blocksize); // ceil(n / blocksize)
const float *block_code(enum dtype type);          // (16) values of NF4 or FP4, in code order
void block_map8(float code[256]);                  // the signed dynamic map (Dettmers, 2016), ascending

/* How a scaled x finds its code: order[how many of the cuts lie below x]. Cuts ascend; the last is infinite. */
void block_cuts(float cuts[16], uint8_t order[16], enum dtype type);

/* x: n elements of type source (F32, BF16, F16), at any address. packed ((n+1)/2), absmax (blocks). */
void block_quantize(uint8_t *packed, float *absmax, const void *x, enum dtype source, int64_t n, enum dtype type,
                    int blocksize, struct threads *t);

/* absmax8 (n), nested_absmax (ceil(n/256)): the nearest map entries to (absmax - offset) / nested_absmax.
 * Returns offset = the mean of absmax. */
float block_nest(uint8_t *absmax8, float *nested_absmax, const float *absmax, int64_t n, const float code[256],
                 struct threads *t);

/* out = w's elements in the type given (F32, BF16, F16), flat: code * absmax in fp32, rounded once. */
void block_dequantize(void *out, enum dtype type, const struct tensor *w, struct threads *t);

#endif

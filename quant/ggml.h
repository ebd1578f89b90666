/* The number formats of GGUF files, as ggml defines them: plain floats, and blocks of numbers along a row that share
 * scales. Bits are those of ggml's reference quantisers, which are built without fused multiply-add.
 *
 *   Q8_0  32 numbers: d (f16), 32 x int8            x = d q          d = max|x| / 127
 *   Q4_0  32 numbers: d (f16), 16 bytes             x = d (q - 8)    d = -m / 8, m the number of largest magnitude
 *   Q4_K  256 numbers: d, dmin (f16), 12 bytes with eight 6-bit pairs (s, m), 128 bytes
 *                                                   x = d s q - dmin m, of 32 numbers each
 *
 * In Q4_0 the low nibbles are the first 16 numbers of a block; in Q4_K the first 32 of each 64. */
#ifndef QUANT_GGML_H
#define QUANT_GGML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values as files have them. */
enum ggml_type { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q8_0 = 8, GGML_Q4_K = 12, GGML_BF16 = 30 };

bool ggml_find(enum ggml_type *type, const char *name); // "q8_0"

/* Of any type that a file may hold, those that are not computed with here too. NULL and 0: not known. */
const char *ggml_name(uint32_t type);   // "q8_0"
int64_t ggml_block(uint32_t type);      // numbers in a block
size_t ggml_block_bytes(uint32_t type); // bytes of a block
bool ggml_is_computed(uint32_t type);   // one of enum ggml_type

/* n must be a multiple of the block; from and to may lie at any address. */
void ggml_quantize(enum ggml_type type, void *to, const float *x, int64_t n);
void ggml_dequantize(enum ggml_type type, float *x, const void *from, int64_t n);

#endif

#include "kernels/cpu/convert.h"

/* 13 bits to the left make an F32 whose exponent is 112 too small; the product with 2^112 mends that, subnormal numbers
 * included. Infinity and NaN would become large numbers and get F32's exponent instead. */
void floats_of_f16(float *restrict y, const f16 *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t sign = (uint32_t)(x[i] & 0x8000u) << 16, size = (uint32_t)(x[i] & 0x7FFFu) << 13;
        uint32_t finite = bits_of_float(float_of_bits(size) * 0x1p112f);
        y[i] = float_of_bits(sign | (size >= 0x0F800000u ? size | 0x7F800000u : finite));
    }
}

/* A subnormal F16 is a multiple of 2^-24, which is what the sum with 0.5 rounds to. */
void f16_of_floats(f16 *restrict y, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = bits_of_float(x[i]), sign = u >> 16 & 0x8000u, size = u & 0x7FFFFFFFu;
        uint32_t normal = (size + 0xFFFu + (size >> 13 & 1) - (112u << 23)) >> 13;
        uint32_t tiny = bits_of_float(float_of_bits(size) + 0.5f) - 0x3F000000u;
        uint32_t special = size > 0x7F800000u ? 0x7E00u | (size >> 13 & 0x3FFu) : 0x7C00u;
        uint32_t h = size < 0x38800000u ? tiny : normal;
        y[i] = (f16)(sign | (size >= 0x477FF000u ? special : h));
    }
}

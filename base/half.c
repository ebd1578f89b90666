#include "base/half.h"

#include <math.h>

float f16_to_float(f16 x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 0x3FFu;
    if (exponent == 31) return float_of_bits(sign | 0x7F800000u | fraction << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 0x1p-24f; // subnormal: exact in fp32
    return sign ? -tiny : tiny;
}

f16 f16_of_float(float x) {
    uint32_t u = bits_of_float(x), sign = u >> 16 & 0x8000u, size = u & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return (f16)(sign | 0x7E00u | (size >> 13 & 0x3FFu));      // NaN
    if (size >= 0x477FF000u) return (f16)(sign | 0x7C00u);                             // rounds beyond 65504
    if (size < 0x38800000u) return (f16)(sign | (uint32_t)lrintf(fabsf(x) * 0x1p24f)); // subnormal
    uint32_t rounded = size + 0xFFFu + (size >> 13 & 1);
    return (f16)(sign | (rounded - (112u << 23)) >> 13);
}

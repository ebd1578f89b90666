/* The 16-bit floats, as bits. Round to nearest even; NaN stays NaN. */
#ifndef BASE_HALF_H
#define BASE_HALF_H

#include <stdint.h>

typedef uint16_t bf16;
typedef uint16_t f16;

static inline float float_of_bits(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } v = {.u = bits};
    return v.f;
}

static inline uint32_t bits_of_float(float x) {
    union {
        float f;
        uint32_t u;
    } v = {.f = x};
    return v.u;
}

static inline float bf16_to_float(bf16 x) { return float_of_bits((uint32_t)x << 16); }

static inline bf16 bf16_of_float(float x) {
    uint32_t u = bits_of_float(x);
    uint32_t rounded = (u + 0x7FFFu + (u >> 16 & 1)) >> 16;
    return (bf16)((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16 | 64) : rounded);
}

/* Those of f16 compute what every kind of number becomes and choose, so that a loop over them becomes vector code. */

static inline float f16_to_float(f16 x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, size = x & 0x7FFFu;
    float tiny = (float_of_bits(0x4B000000u | size) - 8388608.0f) * 0x1p-24f; // exact: size as a number, times 2^-24
    uint32_t normal = (size << 13) + (112u << 23);
    uint32_t bits = size >= 0x7C00u ? normal + (112u << 23) : size < 0x400u ? bits_of_float(tiny) : normal;
    return float_of_bits(sign | bits);
}

static inline f16 f16_of_float(float x) {
    uint32_t u = bits_of_float(x), size = u & 0x7FFFFFFFu;
    float shifted = float_of_bits(size) * 0x1p24f + 8388608.0f; // of a small number: rounds it to a whole one
    uint32_t normal = (size + 0xFFFu + (size >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t h = size < 0x38800000u ? bits_of_float(shifted) - 0x4B000000u : size < 0x477FF000u ? normal : 0x7C00u;
    h = size > 0x7F800000u ? 0x7E00u | (size >> 13 & 0x3FFu) : h; // NaN
    return (f16)((u >> 16 & 0x8000u) | h);
}

#endif

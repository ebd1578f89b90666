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

float f16_to_float(f16 x);
f16 f16_of_float(float x);

#endif

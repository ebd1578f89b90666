/* The half of IEEE 754: 1 sign, 5 exponent, 10 fraction bits. Conversions round to nearest even. */
#ifndef TESTS_CUDASIM_CUDA_FP16_H
#define TESTS_CUDASIM_CUDA_FP16_H

#include "tests/cudasim/cuda_runtime.h"

struct __half {
    unsigned short __x;
    __half() = default;
    __half(float x) : __x(rounded(x)) {}
    operator float() const { return value(__x); }

    static unsigned short rounded(float x) {
        unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
        if (x != x) return 0x7fff;                                                   // the device's NaN
        if (size >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u); // 65520 and more: infinity
        if (size < 0x38800000u) { // below 2^-14: adding 0.5 leaves the fraction in the low bits, rounded
            unsigned shifted = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u;
            return static_cast<unsigned short>(sign | shifted);
        }
        return static_cast<unsigned short>(sign | ((size + 0xfffu + (size >> 13 & 1) - 0x38000000u) >> 13));
    }

    static float value(unsigned short bits) {
        unsigned sign = (bits & 0x8000u) << 16, size = bits & 0x7fffu;
        if (size >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (size & 0x3ffu) << 13);
        float x = size < 0x400u ? static_cast<float>(size) * 0x1p-24f : __uint_as_float((size << 13) + 0x38000000u);
        return __uint_as_float(__float_as_uint(x) | sign);
    }
};

struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half low, __half high) : x(low), y(high) {}
};

using half = __half;
using half2 = __half2;

static inline __half __float2half(float x) { return __half(x); }
static inline __half __float2half_rn(float x) { return __half(x); }
static inline float __half2float(__half x) { return x; }
static inline unsigned short __half_as_ushort(__half x) { return x.__x; }
static inline __half __ushort_as_half(unsigned short bits) {
    __half x;
    x.__x = bits;
    return x;
}
static inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
static inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
static inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }

#endif

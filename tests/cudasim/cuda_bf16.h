/* bfloat16: the upper half of a float. Arithmetic is done in float and rounded to nearest even. */
#ifndef TESTS_CUDASIM_CUDA_BF16_H
#define TESTS_CUDASIM_CUDA_BF16_H

#include "tests/cudasim/cuda_runtime.h"

struct __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : __x(rounded(x)) {}
    operator float() const { return __uint_as_float(static_cast<unsigned>(__x) << 16); }

    static unsigned short rounded(float x) {
        unsigned u = __float_as_uint(x);
        if (x != x) return 0x7fff; // the device's NaN
        return static_cast<unsigned short>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
    }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) : x(low), y(high) {}
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

struct __nv_bfloat16_raw {
    unsigned short x;
};

static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.__x = bits;
    return x;
}

static inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {low, high}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {x.x, x.y}; }
static inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
static inline float __low2float(__nv_bfloat162 x) { return x.x; }
static inline float __high2float(__nv_bfloat162 x) { return x.y; }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) { return x.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) { return x.y; }

#endif

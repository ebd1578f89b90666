/* Functions of full F32 accuracy (about one unit in the last place) without calls or branches, so that a loop over them
 * becomes vector code; always inlined, or it would not. NaN stays NaN. The polynomials are near-minimax fits on the
 * stated ranges. */
#ifndef KERNELS_CPU_VECMATH_H
#define KERNELS_CPU_VECMATH_H

#include "base/half.h"

/* x = n log 2 + r with |r| <= log(2)/2; e^r - 1 = r + r^2 Q(r). 2^n is applied in two halves, so that results may be
 * subnormal, and infinite beyond 88.73. */
static inline __attribute__((always_inline)) float vm_exp(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float round = 12582912.0f; // 1.5 * 2^23: its sum with a small number is rounded to an integer
    float shifted = x * 1.44269504f + round, n = shifted - round;
    float r = x - n * 0.693145752f; // the upper bits of log 2, n times which is exact
    r -= n * 1.42860677e-6f;
    float q = 1.3926926614e-3f;
    q = q * r + 8.36377387441e-3f;
    q = q * r + 4.16665501103e-2f;
    q = q * r + 1.66665733819e-1f;
    q = q * r + 0.5f;
    float p = 1.0f + (r + r * r * q);
    int32_t whole = (int32_t)(bits_of_float(shifted) - 0x4B400000u), half = whole >> 1;
    return p * float_of_bits((uint32_t)(half + 127) << 23) * float_of_bits((uint32_t)(whole - half + 127) << 23);
}

static inline __attribute__((always_inline)) float vm_sigmoid(float x) { return 1.0f / (1.0f + vm_exp(-x)); }

/* |x| < 1: x + x P(x^2); beyond: 1 - e^R(|x|), R = log erfc on 1 .. 4, where erf is 1 in F32. */
static inline __attribute__((always_inline)) float vm_erf(float x) {
    float a = x < 0.0f ? -x : x, z = x * x;
    a = a > 4.0f ? 4.0f : a;
    float p = 7.87587506269e-5f;
    p = p * z - 8.01686428717e-4f;
    p = p * z + 5.18908742343e-3f;
    p = p * z - 2.68542120106e-2f;
    p = p * z + 1.12835947152e-1f;
    p = p * z - 3.76126266667e-1f;
    p = p * z + 1.28379165848e-1f;
    float r = 1.63715141459e-6f;
    r = r * a - 4.60580426892e-5f;
    r = r * a + 5.96805625661e-4f;
    r = r * a - 4.75959629327e-3f;
    r = r * a + 2.64211360057e-2f;
    r = r * a - 1.10080082949e-1f;
    r = r * a - 6.31826051559e-1f;
    r = r * a - 1.13023343484f;
    r = r * a + 3.20138049678e-4f;
    float beyond = 1.0f - vm_exp(r);
    return a < 1.0f ? x + x * p : x < 0.0f ? -beyond : beyond;
}

#endif

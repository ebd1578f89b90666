/* What kernels call: barriers, votes and shuffles, atomics, bits, and numbers. */
#ifndef TESTS_CUDASIM_INTRINSICS_H
#define TESTS_CUDASIM_INTRINSICS_H

#include "tests/cudasim/sim.h"

/* --- barriers ---------------------------------------------------------------------------------------------------- */

static inline void __syncthreads(SIM_AT) { sim::barrier("__syncthreads", file, line); }
static inline int __syncthreads_count(int vote, SIM_AT) {
    return sim::barrier_vote("__syncthreads_count", vote != 0, file, line);
}
static inline int __syncthreads_or(int vote, SIM_AT) {
    return sim::barrier_vote("__syncthreads_or", vote != 0, file, line) != 0;
}
static inline int __syncthreads_and(int vote, SIM_AT) {
    return sim::barrier_vote("__syncthreads_and", vote == 0, file, line) == 0;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, SIM_AT) {
    sim::warp_call c = {"__syncwarp", sim::warp_run_sync, mask, {file, line}, {}, 0, 0, 0, {}, {}, {}};
    sim::warp_do(&c);
}

static inline void __threadfence() { sim::fence(); }
static inline void __threadfence_block() { sim::fence(); }

/* --- votes ------------------------------------------------------------------------------------------------------- */

namespace sim {

static inline uint64_t warp_value(const char *name, void (*run)(warp_call *const *, unsigned), unsigned mask,
                                  uint64_t value, int from, const char *file, int line) {
    warp_call c = {name, run, mask, {file, line}, {}, value, 0, from, {}, {}, {}};
    warp_do(&c);
    return c.result;
}

template <typename T> T shuffle(const char *name, unsigned mask, T value, int from, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_value(name, warp_run_shuffle, mask, bits, from, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int shuffle_lane() { return static_cast<int>(here->number % WARP_LANES); }

/* A width that is a power of two up to 32 cuts the warp into segments. */
static inline int segment_of(int lane, int width) { return lane & ~(width - 1); }

} // namespace sim

static inline unsigned __ballot_sync(unsigned mask, int vote, SIM_AT) {
    return static_cast<unsigned>(
        sim::warp_value("__ballot_sync", sim::warp_run_ballot, mask, vote != 0, 0, file, line));
}
static inline int __any_sync(unsigned mask, int vote, SIM_AT) {
    return sim::warp_value("__any_sync", sim::warp_run_ballot, mask, vote != 0, 0, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int vote, SIM_AT) {
    return sim::warp_value("__all_sync", sim::warp_run_ballot, mask, vote != 0, 0, file, line) == mask;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, SIM_AT) {
    return static_cast<unsigned>(sim::warp_value("__reduce_add_sync", sim::warp_run_add, mask, value, 0, file, line));
}
static inline int __reduce_add_sync(unsigned mask, int value, SIM_AT) {
    return static_cast<int>(sim::warp_value("__reduce_add_sync", sim::warp_run_add, mask,
                                            static_cast<uint64_t>(int64_t{value}), 0, file, line));
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, SIM_AT) {
    return static_cast<unsigned>(sim::warp_value("__reduce_min_sync", sim::warp_run_min, mask, value, 0, file, line));
}
static inline int __reduce_min_sync(unsigned mask, int value, SIM_AT) {
    return static_cast<int>(sim::warp_value("__reduce_min_sync", sim::warp_run_min, mask,
                                            static_cast<uint64_t>(int64_t{value}), 0, file, line));
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, SIM_AT) {
    return static_cast<unsigned>(sim::warp_value("__reduce_max_sync", sim::warp_run_max, mask, value, 0, file, line));
}
static inline int __reduce_max_sync(unsigned mask, int value, SIM_AT) {
    return static_cast<int>(sim::warp_value("__reduce_max_sync", sim::warp_run_max, mask,
                                            static_cast<uint64_t>(int64_t{value}), 0, file, line));
}

/* --- shuffles ---------------------------------------------------------------------------------------------------- */

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, SIM_AT) {
    int lane = sim::shuffle_lane();
    return sim::shuffle("__shfl_sync", mask, value, sim::segment_of(lane, width) | (from & (width - 1)), file, line);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, SIM_AT) {
    int lane = sim::shuffle_lane(), from = lane ^ with;
    bool inside = sim::segment_of(from, width) <= sim::segment_of(lane, width); // an earlier segment may be read
    return sim::shuffle("__shfl_xor_sync", mask, value, inside ? from : lane, file, line);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIM_AT) {
    int lane = sim::shuffle_lane(), from = lane + static_cast<int>(delta);
    bool inside = from < sim::segment_of(lane, width) + width;
    return sim::shuffle("__shfl_down_sync", mask, value, inside ? from : lane, file, line);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIM_AT) {
    int lane = sim::shuffle_lane(), from = lane - static_cast<int>(delta);
    bool inside = from >= sim::segment_of(lane, width);
    return sim::shuffle("__shfl_up_sync", mask, value, inside ? from : lane, file, line);
}

/* --- atomics: of integers; results of floats would depend on their order -------------------------------------- */

namespace sim {

template <typename T, typename F> __attribute__((no_sanitize("thread"))) T atomic_change(T *p, F change) {
    T before = *p;
    *p = change(before);
    return before;
}

template <typename T, typename F> T atomic(T *p, const char *file, int line, F change) {
    touch_atomic(p, sizeof *p, file, line);
    return atomic_change(p, change);
}

} // namespace sim

#define SIM_ATOMIC(name, T, expression)                                                                                \
    static inline T name(T *p, T value, SIM_AT) {                                                                      \
        return sim::atomic(p, file, line, [value](T old) -> T { return expression; });                                 \
    }
#define SIM_ATOMICS(T)                                                                                                 \
    SIM_ATOMIC(atomicAdd, T, old + value)                                                                              \
    SIM_ATOMIC(atomicMin, T, old < value ? old : value)                                                                \
    SIM_ATOMIC(atomicMax, T, old > value ? old : value)                                                                \
    SIM_ATOMIC(atomicAnd, T, old &value)                                                                               \
    SIM_ATOMIC(atomicOr, T, old | value)                                                                               \
    SIM_ATOMIC(atomicXor, T, old ^ value)                                                                              \
    SIM_ATOMIC(atomicExch, T, (static_cast<void>(old), value))                                                         \
    static inline T atomicCAS(T *p, T expected, T value, SIM_AT) {                                                     \
        return sim::atomic(p, file, line, [=](T old) { return old == expected ? value : old; });                       \
    }
SIM_ATOMICS(int)
SIM_ATOMICS(unsigned)
SIM_ATOMICS(unsigned long long)
SIM_ATOMIC(atomicSub, int, old - value)
SIM_ATOMIC(atomicSub, unsigned, old - value)
SIM_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
#undef SIM_ATOMIC
#undef SIM_ATOMICS

/* --- memory ------------------------------------------------------------------------------------------------------ */

template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldca(const T *p) { return *p; }
template <typename T> T __ldcg(const T *p) { return *p; }
template <typename T> T __ldcs(const T *p) { return *p; }
template <typename T> T __ldcv(const T *p) { return *p; }
template <typename T> void __stcg(T *p, T value) { *p = value; }
template <typename T> void __stcs(T *p, T value) { *p = value; }
template <typename T> void __stwt(T *p, T value) { *p = value; }

/* --- bits -------------------------------------------------------------------------------------------------------- */

namespace sim {

template <typename To, typename From> To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From), "types of one size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

} // namespace sim

static inline unsigned __float_as_uint(float x) { return sim::bits_as<unsigned>(x); }
static inline int __float_as_int(float x) { return sim::bits_as<int>(x); }
static inline float __uint_as_float(unsigned x) { return sim::bits_as<float>(x); }
static inline float __int_as_float(int x) { return sim::bits_as<float>(x); }
static inline long long __double_as_longlong(double x) { return sim::bits_as<long long>(x); }
static inline double __longlong_as_double(long long x) { return sim::bits_as<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
static inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) << (n & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (n & 31));
}
/* Byte i of the result is the byte of b:a that the low three bits of digit i of s name; bit 3: only its sign, spread.
 */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    uint64_t both = uint64_t{b} << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) {
        unsigned digit = s >> 4 * i & 15, byte = static_cast<unsigned>(both >> 8 * (digit & 7)) & 255;
        if (digit & 8) byte = byte & 128 ? 255 : 0;
        y |= byte << 8 * i;
    }
    return y;
}

/* --- numbers ----------------------------------------------------------------------------------------------------- */

/* A result that a device may have `units` of the last place beside the exact one: that far above it or below, as its
 * bits decide. */
static inline float inexact(float y, int units) {
    unsigned bits = __float_as_uint(y);
    if (!isfinite(y) || fabsf(y) < 0x1p-120f || fabsf(y) == 1.0f) return y;
    return __uint_as_float(bits * 2654435761u >> 31 ? bits + static_cast<unsigned>(units)
                                                    : bits - static_cast<unsigned>(units));
}

/* By as much as CUDA's tables of errors allow. */
static inline float device_expf(float x) { return inexact(expf(x), 2); }
static inline float device_logf(float x) { return inexact(logf(x), 1); }
static inline float device_erff(float x) { return inexact(erff(x), 2); }
#define expf device_expf
#define logf device_logf
#define erff device_erff

/* The host's library declares these names, so they are other functions here: the exact ones. */
#define __expf    sim_expf
#define __exp10f  sim_exp10f
#define __logf    sim_logf
#define __log2f   sim_log2f
#define __sinf    sim_sinf
#define __cosf    sim_cosf
#define __sincosf sim_sincosf
#define __powf    sim_powf
#define __tanhf   sim_tanhf

static inline float sim_expf(float x) { return expf(x); }
static inline float sim_exp10f(float x) { return powf(10.0f, x); }
static inline float sim_logf(float x) { return logf(x); }
static inline float sim_log2f(float x) { return log2f(x); }
static inline float sim_sinf(float x) { return sinf(x); }
static inline float sim_cosf(float x) { return cosf(x); }
static inline void sim_sincosf(float x, float *s, float *c) { *s = sinf(x), *c = cosf(x); }
static inline float sim_powf(float x, float y) { return powf(x, y); }
static inline float sim_tanhf(float x) { return tanhf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; } // 0 for NaN
static inline float rsqrtf(float x) { return __frsqrt_rn(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
static inline void sincospif(float x, float *s, float *c) {
    *s = static_cast<float>(sin(M_PI * static_cast<double>(x)));
    *c = static_cast<float>(cos(M_PI * static_cast<double>(x)));
}
static inline float normcdff(float x) { return static_cast<float>(0.5 * erfc(-static_cast<double>(x) * M_SQRT1_2)); }

/* Conversions keep within the range of the result; NaN becomes 0. */
static inline int __float2int_rn(float x) {
    if (!(x > -2147483904.0f)) return x == x ? INT32_MIN : 0;
    return x >= 2147483648.0f ? INT32_MAX : static_cast<int>(rintf(x));
}
static inline int __float2int_rz(float x) { return __float2int_rn(truncf(x)); }
static inline int __float2int_rd(float x) { return __float2int_rn(floorf(x)); }
static inline int __float2int_ru(float x) { return __float2int_rn(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) {
    if (!(x > 0.0f)) return 0;
    return x >= 4294967296.0f ? UINT32_MAX : static_cast<unsigned>(rintf(x));
}
static inline unsigned __float2uint_rz(float x) { return __float2uint_rn(truncf(x)); }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
static inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
static inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
static inline float __double2float_rn(double x) { return static_cast<float>(x); }

/* The smaller and the larger of two numbers of any types, as CUDA has them without a namespace. */
template <typename A, typename B> constexpr auto min(A a, B b) -> decltype(a + b) {
    return static_cast<decltype(a + b)>(a) < static_cast<decltype(a + b)>(b) ? static_cast<decltype(a + b)>(a)
                                                                             : static_cast<decltype(a + b)>(b);
}
template <typename A, typename B> constexpr auto max(A a, B b) -> decltype(a + b) {
    return static_cast<decltype(a + b)>(a) > static_cast<decltype(a + b)>(b) ? static_cast<decltype(a + b)>(a)
                                                                             : static_cast<decltype(a + b)>(b);
}

#endif

/* The names of kernels/cuda/device/device.cuh, which says what they do, for the simulator. Keep both in step. */
#ifndef TESTS_CUDASIM_DEVICE_CUH
#define TESTS_CUDASIM_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/device/before_8.cuh"

/* Compiled for both. */
template <size_t bytes> constexpr bool shared_fits_here = bytes <= SHARED_SINCE_8;
template <size_t bytes> constexpr bool shared_lacks_here = bytes > SHARED_BEFORE_8;
static inline void left_out_here() {}

/* Not a static: that has no hidden bytes around it, keeps what the last block left, and cannot be found. The type of a
 * lambda differs from place to place and from instantiation to instantiation, so each has a description of its own. */
#define SHARED(T, name, n)  T(&name)[n] = sim::shared<T, n>([] {}, #name)
#define DYN_SHARED(T, name) T *name = static_cast<T *>(sim::shared_dynamic())

template <typename T> struct same_type { using type = T; };

namespace sim {

template <typename T, size_t n, typename Place> T (&shared(Place, const char *name, SIM_AT))[n] {
    static_assert(alignof(T) <= 16, "shared arrays are aligned to 16 bytes");
    static shared_site site = {n * sizeof(T), nullptr, {}, nullptr, 0, nullptr};
    site.name = name;
    site.at = {file, line};
    return *static_cast<T(*)[n]>(shared_array(&site));
}

/* Calls a kernel with arguments that lie one behind the other, each aligned to 16. */
template <typename... P> struct bound_call {
    bound_call(void (*kernel)(P...), P... args) { kernel(args...); }
};

template <typename T> const T &bound_next(const char *&at) {
    const T &value = *reinterpret_cast<const T *>(at);
    at += (sizeof(T) + 15) / 16 * 16;
    return value;
}

template <typename... P> void run_bound(const void *kernel, const void *bound) {
    const char *at = static_cast<const char *>(bound); // braces evaluate from left to right
    bound_call<P...>{reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel)), bound_next<P>(at)...};
    static_cast<void>(at);
}

template <typename... P> const size_t *sizes_of() {
    static const size_t sizes[] = {sizeof(P)..., 0};
    return sizes;
}

} // namespace sim

template <typename... P> const void *device_kernel(void (*kernel)(P...)) {
    const void *address = reinterpret_cast<const void *>(kernel);
    sim::kernel_declare(address, sim::run_bound<P...>, sim::sizes_of<P...>());
    return address;
}

/* kernel<<<grid, block, shared, stream>>>(args...), for what is written for the simulator alone. */
template <typename... P>
cudaError_t sim_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s,
                       typename same_type<P>::type... args) {
    void *addresses[] = {reinterpret_cast<void *>(&args)..., nullptr};
    const void *address = device_kernel(kernel);
    if (shared > 0) {
        cudaError_t refused =
            cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
        if (refused != cudaSuccess) return refused;
    }
    return cudaLaunchKernel(address, grid, block, addresses, shared, s);
}

static inline uint32_t shared_address(const void *p, SIM_AT) { return sim::shared_offset(p, file, line); }

static inline void cp_async_16(void *shared, const void *src, bool there, SIM_AT) {
    if (sim::before_8)
        copy_16_at_once(shared, src, there);
    else
        sim::copy_begin(shared, src, there ? 16 : 0, 16, file, line);
}
static inline void cp_async_commit() { sim::copy_commit(); }
template <int N> inline void cp_async_wait(SIM_AT) { sim::copy_wait(N, file, line); }

static inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, SIM_AT) {
    sim::warp_call c = {"ldmatrix_x4", sim::warp_run_ldmatrix, sim::ALL_LANES, {file, line}, {}, 0, 0, 0, row, {}, r};
    sim::warp_do(&c);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, SIM_AT) {
    sim::warp_call c = {
        "ldmatrix_x4_trans", sim::warp_run_ldmatrix_trans, sim::ALL_LANES, {file, line}, {}, 0, 0, 0, row, {}, r};
    sim::warp_do(&c);
}

static inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIM_AT) {
    if (sim::before_8) {
        mma_16x8x16_by_lanes(c, a, b, static_cast<int>(threadIdx.x) % 32);
        return;
    }
    sim::warp_call call = {"mma_16x8x16", sim::warp_run_mma_bf16, sim::ALL_LANES, {file, line}, {}, 0, 0, 0, a, b, c};
    sim::warp_do(&call);
}

static inline uint32_t pack_bf16(float low, float high) {
    return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16 |
           __bfloat16_as_ushort(__float2bfloat16_rn(low));
}

static inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : inexact(y, 2);
}

#endif

/* All that the language of the device has beyond C++: shared memory, and one function for each instruction.
 * tests/cudasim/device.cuh offers the same names to a host compiler; nothing else in kernels/cuda may hold asm, <<<>>>
 * or __shared__, or ask which architecture it is compiled for, and none but graphs.cu launches. What differs between
 * architectures is BEFORE_8, here; what that leads to is tested in the simulator.
 *
 * Fragments of mma_16x8x16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), g = lane / 4, q = 2 * (lane % 4):
 *   A (16,16): register r holds row g + 8 * (r & 1), columns q + 8 * (r >> 1) and the next
 *   B (16,8):  register r holds rows q + 8 * r and the next of column g
 *   C (16,8):  register r holds row g + 8 * (r >> 1), column q + (r & 1) */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/device/before_8.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define BEFORE_8 1 // compiled for compute capability 7.5
#else
#define BEFORE_8 0
#endif

/* Shared memory of a block on the devices that this is compiled for. Code that only others would run may be left out of
 * a kernel, but not the kernel: the host's part is the same for all. */
enum : size_t { SHARED_HERE = BEFORE_8 ? SHARED_BEFORE_8 : SHARED_SINCE_8 };
template <size_t bytes> constexpr bool shared_fits_here = bytes <= SHARED_HERE;
template <size_t bytes> constexpr bool shared_lacks_here = bytes > SHARED_HERE;
__device__ inline void left_out_here() { __trap(); } // what such a kernel does, launched by mistake

/* T name[n] in shared memory, aligned to 16 bytes; n is a constant. */
#define SHARED(T, name, n) __shared__ __align__(16) T name[n]

/* T *name: the bytes of shared memory that the launch asked for, aligned to 16. Once in a kernel. */
#define DYN_SHARED(T, name)                                                                                            \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                                              \
    T *name = reinterpret_cast<T *>(dynamic_shared_bytes)

template <typename T> struct same_type { using type = T; };

/* The kernel as cudaLaunchKernel and the nodes of graphs name it. */
template <typename... P> const void *device_kernel(void (*kernel)(P...)) {
    return reinterpret_cast<const void *>(kernel);
}

__device__ inline uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

/* 16 bytes from global to shared memory, both aligned to 16, in the background; zeros where !there, and then src is not
 * read. They are there after cp_async_wait and a barrier. */
__device__ inline void cp_async_16(void *shared, const void *src, bool there) {
#if BEFORE_8
    copy_16_at_once(shared, src, there);
#else
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(src), "r"(bytes)
                 : "memory");
#endif
}

/* Closes the group of copies begun by this thread. */
__device__ inline void cp_async_commit() {
#if !BEFORE_8
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most N groups of this thread, the newest, are still under way. */
template <int N> __device__ inline void cp_async_wait() {
#if !BEFORE_8
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* Four 8x8 matrices of 16-bit numbers: lane i gives the shared address of row i % 8 of matrix i / 8, aligned to 16, and
 * gets of matrix m in r[m] the two numbers of row lane / 4, columns 2 * (lane % 4) and the next. */
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same of the transposed matrices. */
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#if BEFORE_8
/* Called, not inlined: kernels have hundreds of these. By value, so that all stays in registers. */
static __device__ __noinline__ float4 mma_called(float4 c, uint4 a, uint2 b, int lane) {
    float sum[4] = {c.x, c.y, c.z, c.w};
    const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[2] = {b.x, b.y};
    mma_16x8x16_by_lanes(sum, x, y, lane);
    return make_float4(sum[0], sum[1], sum[2], sum[3]);
}
#endif

/* c += A B, bf16 operands, fp32 sums. All lanes of the warp take part. */
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if BEFORE_8
    float4 sum = mma_called(make_float4(c[0], c[1], c[2], c[3]), make_uint4(a[0], a[1], a[2], a[3]),
                            make_uint2(b[0], b[1]), static_cast<int>(threadIdx.x) % 32);
    c[0] = sum.x, c[1] = sum.y, c[2] = sum.z, c[3] = sum.w;
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Two floats, rounded to nearest even, as the halves of a register of a fragment; low comes first in memory. */
__device__ inline uint32_t pack_bf16(float low, float high) {
#if BEFORE_8
    return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16 |
           __bfloat16_as_ushort(__float2bfloat16_rn(low));
#else
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

/* 2^x to within 2^-22 of itself; 0 where that would be subnormal. */
__device__ inline float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

#endif

/* All that the language of the device has beyond C++: shared memory, and one function for each instruction.
 * tests/cudasim/device.cuh offers the same names to a host compiler; nothing else in kernels/cuda may hold asm, <<<>>>
 * or __shared__, and none but graphs.cu launches.
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
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(src), "r"(bytes)
                 : "memory");
}

/* Closes the group of copies begun by this thread. */
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Waits until at most N groups of this thread, the newest, are still under way. */
template <int N> __device__ inline void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

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

/* c += A B, bf16 operands, fp32 sums. All lanes of the warp take part. */
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Two floats, rounded to nearest even, as the halves of a register of a fragment; low comes first in memory. */
__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* 2^x to within 2^-22 of itself; 0 where that would be subnormal. */
__device__ inline float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

#endif

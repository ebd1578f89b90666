/* What devices before compute capability 8.0, which are those of 7.5, do not have, in terms of what they do. For the
 * device.cuh of nvcc and that of the simulator, which can play such a device (tests/cudasim/README.md). */
#ifndef KERNELS_CUDA_DEVICE_BEFORE_8_CUH
#define KERNELS_CUDA_DEVICE_BEFORE_8_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* Bytes of shared memory that a block may have on every device of compute capability 7.5, and of 8.0 or later. */
enum : size_t { SHARED_BEFORE_8 = 64 * 1024, SHARED_SINCE_8 = 99 * 1024 };

/* cp_async_16, done when it returns. */
__device__ inline void copy_16_at_once(void *shared, const void *src, bool there) {
    struct alignas(16) piece {
        uint32_t words[4];
    };
    *static_cast<piece *>(shared) = there ? *static_cast<const piece *>(src) : piece{};
}

/* mma_16x8x16 in fused multiply-adds. A lane's sums are of rows g and g + 8 of A by columns q and q + 1 of B: their
 * elements come from the four lanes that hold those rows, and from the four that hold each column, two of k and the two
 * that are 8 beyond at a time. A bf16 is the upper half of a float. */
__device__ inline void mma_16x8x16_by_lanes(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int lane) {
    const unsigned all = 0xffffffffu;
    const int rows = lane / 4 * 4, columns = lane % 4 * 8;
#pragma unroll
    for (int t = 0; t < 4; t++) {
        uint32_t x[4], y[2][2]; // y[r]: of columns q, q + 1
#pragma unroll
        for (int r = 0; r < 4; r++) x[r] = __shfl_sync(all, a[r], rows + t);
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int j = 0; j < 2; j++) y[r][j] = __shfl_sync(all, b[r], columns + 4 * j + t);
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t u = x[2 * r + i / 2], v = y[r][i % 2];
                c[i] = fmaf(__uint_as_float(u << 16), __uint_as_float(v << 16), c[i]);
                c[i] = fmaf(__uint_as_float(u & 0xffff0000u), __uint_as_float(v & 0xffff0000u), c[i]);
            }
    }
}

#endif

/* The words of base/rng.h on a device: the same bits. */
#ifndef KERNELS_CUDA_PHILOX_CUH
#define KERNELS_CUDA_PHILOX_CUH

#include <stdint.h>

#include "kernels/cuda/common.cuh"

struct random_stream {
    uint64_t seed, stream;
};

/* The four words of a block (Philox4x32-10). */
__device__ inline void philox_block(uint32_t (&out)[4], const random_stream &r, uint64_t index) {
    uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = uint32_t(r.stream), c3 = uint32_t(r.stream >> 32);
    uint32_t k0 = uint32_t(r.seed), k1 = uint32_t(r.seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
        c0 = uint32_t(p1 >> 32) ^ c1 ^ k0, c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(p1), c3 = uint32_t(p0);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Words at .. at + V of a stream; V is 1, or a multiple of 4 of which `at` is a multiple. */
template <int V> __device__ inline void philox_words(uint32_t (&words)[V], const random_stream &r, int64_t at) {
    uint32_t four[4];
    if constexpr (V == 1) {
        philox_block(four, r, uint64_t(at) / 4);
        words[0] = at & 2 ? (at & 1 ? four[3] : four[2]) : (at & 1 ? four[1] : four[0]);
    } else {
#pragma unroll
        for (int k = 0; k < V; k += 4) {
            philox_block(four, r, uint64_t(at + k) / 4);
#pragma unroll
            for (int j = 0; j < 4; j++) words[k + j] = four[j];
        }
    }
}

#endif

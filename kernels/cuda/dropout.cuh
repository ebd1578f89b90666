/* Which elements of a tensor a struct dropout of ops.h keeps, on a device. */
#ifndef KERNELS_CUDA_DROPOUT_CUH
#define KERNELS_CUDA_DROPOUT_CUH

#include "kernels/cuda/philox.cuh"

struct mask {
    uint32_t threshold; // kept when the word is at least this
    float scale;
    random_stream random;
    int64_t first;

    __device__ float kept(float x, uint32_t word) const { return word >= threshold ? x * scale : 0.0f; }

    /* y[i] = x[i] / (1 - p) where element at + i is kept, else 0; `at` as philox_words wants it. */
    template <int V> __device__ void kept(float (&y)[V], const float (&x)[V], int64_t at) const {
        uint32_t words[V];
        philox_words(words, random, first + at);
        for (int i = 0; i < V; i++) y[i] = kept(x[i], words[i]);
    }
};

static inline struct mask mask_of(const struct dropout *d) {
    return {static_cast<uint32_t>(ceil(static_cast<double>(d->p) * 0x1p32)),
            static_cast<float>(1 / (1 - static_cast<double>(d->p))),
            {d->seed, d->stream},
            d->first};
}

#endif

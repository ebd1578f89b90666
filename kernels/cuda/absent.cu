/* Ops that this backend has no kernel for: each says so when it is called. */
#include "kernels/cuda/ops_cuda.cuh"

#define ABSENT(name, ...)                                                                                              \
    __attribute__((weak)) void cuda_##name(struct backend *be, __VA_ARGS__) {                                          \
        err_set(&be->err, ST_FAIL, "the CUDA backend has no " #name);                                                  \
    }
using T = const struct tensor *;
ABSENT(row_norms, T, T, T, T, float)

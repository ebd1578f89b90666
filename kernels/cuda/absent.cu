/* Ops that this backend has no kernel for: each says so when it is called. */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/ops_cuda.cuh"

#define ABSENT(name, ...)                                                                                              \
    __attribute__((weak)) void cuda_##name(struct backend *be, __VA_ARGS__) {                                          \
        err_set(&be->err, ST_FAIL, "the CUDA backend has no " #name);                                                  \
    }
using T = const struct tensor *;
ABSENT(copy, T, T)
ABSENT(zero, T)
ABSENT(add, T, T, T)
ABSENT(gather_rows, T, T, T)
ABSENT(scatter_rows, T, T, T)
ABSENT(add_rows, T, T, T)
ABSENT(embed_forward, T, T, T)
ABSENT(embed_backward, T, T, T)
ABSENT(patchify, T, T, int64_t, int64_t, int64_t)
ABSENT(noise_add, T, T, uint64_t, uint64_t)
ABSENT(linear_forward, T, T, T, T)
ABSENT(linear_backward, T, T, T, float)
ABSENT(matmul, T, T, bool, T, bool, float, float)
ABSENT(bias_add, T, T, float)
ABSENT(bias_backward, T, T, float)
ABSENT(rmsnorm_forward, T, T, T, T, float)
ABSENT(rmsnorm_backward_add, T, T, T, T, T, T)
ABSENT(layernorm_forward, T, T, T, T, T, T, float)
ABSENT(layernorm_backward_add, T, T, T, T, T, T, T, T)
ABSENT(rope, T, T, T, float)
ABSENT(attention_forward, T, T, T, T, T, const struct attention *)
ABSENT(attention_backward, T, T, T, T, T, T, T, T, T, T, const struct attention *)
ABSENT(act_forward, T, T, enum activation)
ABSENT(act_backward, T, T, T, enum activation)
ABSENT(glu_forward, T, T, T, enum activation)
ABSENT(glu_backward, T, T, T, T, T, enum activation)
ABSENT(dropout, T, T, float, uint64_t, uint64_t)
ABSENT(dropout_add, T, T, float, uint64_t, uint64_t)
ABSENT(row_norms, T, T, T, T, float)
ABSENT(scale_cols, T, T, T, T)
ABSENT(scale_cols_add, T, T, T)
ABSENT(divide, T, T, T, float)
ABSENT(magnitude_backward, T, T, T, T)
ABSENT(cross_entropy_forward, T, T, T)
ABSENT(cross_entropy, T, T, T, float)
ABSENT(squared_error, T, T, T, T, float)
ABSENT(binary_cross_entropy, T, T, T, T, float)
ABSENT(sum_add, T, T)
ABSENT(sum_squares_add, T, T)
ABSENT(count_nonfinite_add, T, T)
ABSENT(adamw, T, T, T, T, const struct adamw *)
__attribute__((weak)) struct cublaslt *cublaslt_open(int, struct err *) { return nullptr; }
__attribute__((weak)) void cublaslt_close(struct cublaslt *) {}

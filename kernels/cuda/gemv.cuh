/* Products of few rows, as generation makes them. */
#ifndef KERNELS_CUDA_GEMV_CUH
#define KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/q4.cuh"

/* Whether gemv takes y (N,O) = x (N,I) W^T + b + beta * y: few rows in BF16, and all that it reads aligned. */
bool gemv_takes(const struct tensor *x, const struct tensor *W);

/* Values of W are rounded to BF16. y F32 or BF16. */
void gemv(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
          const struct tensor *b, float beta, const char *what);

#endif

/* A matrix product by whatever is best for it, and how the file that needs several kernels for an op shares out the
 * backend's scratch. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/cublaslt.h"

/* Scratch, in bytes: two places for operands made on the fly, a small one, and the last, which cuda_product takes. */
enum : size_t {
    PLACE_BYTES = 16u << 20,
    FIRST_PLACE = 0,
    SECOND_PLACE = PLACE_BYTES,
    THIRD_PLACE = 2 * PLACE_BYTES,
    PARTS_PLACE = 3 * PLACE_BYTES,
};

/* By cuBLASLt, or by the kernels of matmul.cu where it refuses or there is dropout. Operands that are not all F32 are
 * multiplied as BF16, and so are F32 ones where C is BF16. */
void cuda_product(struct backend *be, const struct product *p, const char *what);

#endif

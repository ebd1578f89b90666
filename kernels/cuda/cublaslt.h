/* The matrix products of cuBLASLt. What graft needs of the library's interface is declared here, by the names and
 * numbers of its stable ABI, so its header is not wanted to build; the library itself is opened at run time.
 *
 * The simulator puts its own cublaslt_load in the place of cublaslt_load.cu. */
#ifndef KERNELS_CUDA_CUBLASLT_H
#define KERNELS_CUDA_CUBLASLT_H

#include "kernels/cuda/common.cuh"

/* Row-major C (m,n) = alpha * op(A) op(B) + beta * C + bias; op(X) is X, or X^T where ta (tb) is set. ld: elements from
 * a row to the next, as they lie in memory. With beta 0, C is not read. Sums are F32. */
struct product {
    const void *A, *B;
    void *C;
    const void *bias; // (n) of C's type, or NULL
    enum dtype a_type, b_type, c_type;
    bool ta, tb;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    float alpha, beta;
    const struct dropout *dropout; // NULL: none; then ld is the width of the matrix that is `dropped`
    enum dropped dropped;
};

/* NULL with the error set, saying what to install, when the library or memory for it is not to be had. The device is
 * the current one. */
struct cublaslt *cublaslt_open(int device, struct err *e);
void cublaslt_close(struct cublaslt *l); // fine on NULL

/* The library's version and file for a person, in `text`, and the bytes of the device that it was given. */
size_t cublaslt_describe(const struct cublaslt *l, char *text, size_t size);

/* Whether the product was launched on the backend's stream; false where the library has no way for it (mixed types, odd
 * addresses) or the backend has no library, and then nothing was done. The way is chosen once for a shape, by what the
 * library knows of the device, among those that add up in a fixed order, and remembered. */
bool cublaslt_multiply(struct backend *be, const struct product *p);

/* --- the library ------------------------------------------------------------------------------------------------- */

enum { LT_SUCCESS = 0, LT_INVALID_VALUE = 7, LT_ARCH_MISMATCH = 8, LT_NOT_SUPPORTED = 15 }; // cublasStatus_t
enum { LT_F32 = 0, LT_BF16 = 14 };                                                          // cudaDataType_t
enum { LT_COMPUTE_F32 = 68 };             // cublasComputeType_t; F32 operands are not cut to TF32
enum { LT_PLAIN = 0, LT_TRANSPOSED = 1 }; // cublasOperation_t
enum { LT_EPILOGUE_BIAS = 4 };
enum { LT_REDUCTION_COMPUTE_TYPE = 2 }; // parts of k are summed in F32, in a step of their own: the order is fixed

enum {                         // attributes of a product,    and their types
    LT_PRODUCT_TRANSA = 3,     // int32_t
    LT_PRODUCT_TRANSB = 4,     // int32_t
    LT_PRODUCT_EPILOGUE = 7,   // uint32_t
    LT_PRODUCT_BIAS = 8,       // const void *
    LT_PRODUCT_BIAS_TYPE = 26, // int32_t
    LT_WISH_WORKSPACE = 1,     // of a preference: uint64_t
    LT_WISH_REDUCTION = 3,     // uint32_t
    LT_WISH_ALIGNMENT_A = 5,   // uint32_t; B, C and D follow
};

/* cublasLtMatmulAlgo_t and cublasLtMatmulHeuristicResult_t. */
struct lt_algorithm {
    uint64_t data[8];
};

struct lt_candidate {
    struct lt_algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

/* Matrices are column-major: a layout has rows, columns, and elements from a column to the next. */
struct cublaslt_calls {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    const char *(*status_text)(int status);
    int (*product_new)(void **product, int compute, int scale_type);
    int (*product_free)(void *product);
    int (*product_set)(void *product, int attribute, const void *value, size_t bytes);
    int (*layout_new)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*layout_free)(void *layout);
    int (*preference_new)(void **preference);
    int (*preference_free)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*candidates)(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted,
                      struct lt_candidate *found, int *count);
    int (*multiply)(void *handle, void *product, const void *alpha, const void *A, void *a, const void *B, void *b,
                    const void *beta, const void *C, void *c, void *D, void *d, const struct lt_algorithm *algorithm,
                    void *workspace, size_t bytes, cudaStream_t stream);
    size_t (*version)(); // 130201: 13.2.1; NULL where the library is not there
    const char *file;    // of the library
};

/* Fills in every call. The library stays open as long as the process runs. */
enum status cublaslt_load(struct cublaslt_calls *calls, struct err *e);

#endif

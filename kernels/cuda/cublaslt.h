/* cuBLASLt, which is looked for when the backend opens and never linked. */
#ifndef KERNELS_CUDA_CUBLASLT_H
#define KERNELS_CUDA_CUBLASLT_H

struct cublaslt;
struct err;

/* NULL with the error set when there is none to be had. */
struct cublaslt *cublaslt_open(int device, struct err *e);
void cublaslt_close(struct cublaslt *b); // fine on NULL

#endif

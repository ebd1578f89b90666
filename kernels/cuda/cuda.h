/* The CUDA backend as C sees it. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

/* device: its number among those that the driver shows. NULL with the error set when there is none, or none that these
 * kernels run on. threads as in backend_new. */
struct backend *cuda_backend_new(int device, int threads, struct err *e);

/* The numbers of quant/block.h made on the device, bit for bit; all pointers are the device's.
 *   packed ((n+1)/2), absmax (blocks) from the n elements of x, F32, BF16 or F16
 *   absmax8 (n), nested_absmax (ceil(n/256)), offset (1) from absmax (n), code (256)
 *   y F32, BF16 or F16, of W's shape */
void cuda_quantize(struct backend *be, uint8_t *packed, float *absmax, const struct tensor *x, enum dtype type,
                   int blocksize);
void cuda_nest(struct backend *be, uint8_t *absmax8, float *nested_absmax, float *offset, const float *absmax,
               int64_t n, const float *code);
void cuda_dequantize(struct backend *be, const struct tensor *y, const struct tensor *W);

#endif

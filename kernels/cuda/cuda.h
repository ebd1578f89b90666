/* The CUDA backend as C sees it. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

/* device: its number among those that the driver shows. NULL with the error set when there is none, or none that these
 * kernels run on. threads as in backend_new. */
struct backend *cuda_backend_new(int device, int threads, struct err *e);

/* y, F32, BF16 or F16, of W's shape = the numbers that block_dequantize of quant/block.h gives, bit for bit; on the
 * device, where no op needs a whole weight. */
void cuda_dequantize(struct backend *be, const struct tensor *y, const struct tensor *W);

#endif

/* The CUDA backend as C sees it. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

/* device: its number among those that the driver shows. NULL with the error set when there is none, or none that these
 * kernels run on. threads as in backend_new. */
struct backend *cuda_backend_new(int device, int threads, struct err *e);

#endif

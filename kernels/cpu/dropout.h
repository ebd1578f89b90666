/* Which elements of a tensor a struct dropout of ops.h keeps. */
#ifndef KERNELS_CPU_DROPOUT_H
#define KERNELS_CPU_DROPOUT_H

#include "kernels/ops.h"

/* y[i] = x[i] / (1 - p) where element at + i is kept, else 0; y may be x. */
void dropout_line(float *y, const float *x, const struct dropout *d, int64_t at, int64_t n);

#endif

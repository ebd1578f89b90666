/* Sums of runs of F32, in double. They are functions of their own file on purpose: inlined into a caller that handles
 * several types, the compiler loses the right to reorder a sum and with it the vector code. */
#ifndef KERNELS_CPU_SUMS_H
#define KERNELS_CPU_SUMS_H

#include <stdint.h>

double sum_of(const float *x, int64_t n);
double sum_of_squares(const float *x, int64_t n);
double sum_of_squares_about(const float *x, float middle, int64_t n);
double sum_of_products(const float *x, const float *y, int64_t n);

#endif

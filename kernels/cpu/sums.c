#include "kernels/cpu/sums.h"

double sum_of(const float *x, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i];
    return s;
}

double sum_of_squares(const float *x, int64_t n) { return sum_of_products(x, x, n); }

double sum_of_squares_about(const float *x, float middle, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)(x[i] - middle) * (double)(x[i] - middle);
    return s;
}

double sum_of_products(const float *x, const float *y, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)y[i];
    return s;
}

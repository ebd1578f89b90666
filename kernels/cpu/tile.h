/* Small matrix products on tiles of F32 that lie in a thread's scratch. */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include <stdbool.h>
#include <stdint.h>

enum { TILE_PAD = 16 }; // rows of B and C are padded to a multiple of this

/* C (m,n) = A B, or += where add is true. A (m,k) has element (i,l) at A[i * a_row + l * a_column], so that its
 * transpose is as good; B (k,n) and C have rows of b_row and c_row. n is a multiple of TILE_PAD. C does not overlap A
 * and B. */
void tile_product(float *C, int64_t c_row, const float *A, int64_t a_row, int64_t a_column, const float *B,
                  int64_t b_row, int64_t m, int64_t n, int64_t k, bool add);

/* y (n,m) = x (m,n) transposed; m and n are multiples of 4. */
void tile_transpose(float *y, int64_t y_row, const float *x, int64_t x_row, int64_t m, int64_t n);

#endif

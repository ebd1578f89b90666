/* The singular vectors of a matrix that matter most, by LAPACK: of a small one all, of a large one those of a random
 * projection that is improved until what it holds no longer grows (Halko, Martinsson and Tropp, 2011). */
#ifndef LORA_SVD_H
#define LORA_SVD_H

#include <stdint.h>

#include "base/status.h"
#include "kernels/backend.h"

/* D (O,I) is about B A with B (O,r) = U sqrt(S) and A (r,I) = sqrt(S) V^T; rows and columns beyond the rank of D are
 * zero. Returns |B A|^2, the part of |D|^2 that the product holds. be: of the host. The result depends on D alone. */
double svd_low_rank(struct backend *be, float *B, float *A, const float *D, int64_t O, int64_t I, int64_t r,
                    struct err *e);

#endif

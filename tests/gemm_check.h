/* What tests of matrix products share: operands of random values in memory that host and device share, weights of any
 * type, and products in double to compare with.
 *
 * The bound: a sum of K products in F32 is off by at most (K + 8) eps sum |a||b|, whatever the order; alpha, beta and
 * the bias add a few roundings of their terms, and the store one of the result. Where a product is computed in bf16,
 * the reference rounds the factors in the same way; their products are exact in F32. */
#ifndef TESTS_GEMM_CHECK_H
#define TESTS_GEMM_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "quant/q4.h"

uint64_t gemm_random(uint64_t *s);
void gemm_settle(struct backend *be); // what ops wrote is there

/* An output: memory of the exact size, between guards that output_free checks; random, or without s not. b < 0: (a). */
struct tensor output_new(struct backend *be, enum dtype type, int64_t a, int64_t b, uint64_t *s);
void output_free(struct backend *be, const struct tensor *t);

/* An input: allocated to the byte, so that AddressSanitizer sees a read beyond it. Its data go back to
 * backend_host_release. */
struct tensor input_new(struct backend *be, enum dtype type, int64_t a, int64_t b, uint64_t *s);

struct weight {
    struct backend *be;
    struct tensor t;
    struct q4 q;
    float *code, *nested_code; // (16), (256)
    uint8_t *absmax8;
    float *absmax, *nested_absmax;
};

/* Of a 4-bit type in blocks, whose scales are nested or not, or dense. */
struct weight *weight_new(struct backend *be, enum dtype type, int64_t O, int64_t I, int blocksize, bool nested,
                          enum dtype source, uint64_t *s);
void weight_free(struct weight *w);
double weight_element(const struct weight *w, int64_t i, enum dtype round); // as it is dequantised to a type

struct gemm_reference {
    int64_t M, N, K;
    double *a, *b;    // (M,K), (K,N) as the kernel sees them
    double *c;        // (M,N) before, or NULL
    double bias_unit; // how far the bias may be off, relatively
    const struct tensor *bias;
    double alpha, beta;
};

struct gemm_reference gemm_reference_new(int64_t M, int64_t N, int64_t K);
void gemm_reference_free(struct gemm_reference *p);

/* All elements of C, or a sample of many. */
void gemm_check(const struct gemm_reference *p, const struct tensor *C, const char *what);

bool close_enough(double got, double want, double tol); // and not NaN

#endif

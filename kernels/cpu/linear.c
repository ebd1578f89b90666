/* Matrix products as ops: what the shapes of ops.h mean for gemm, and no more. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops_cpu.h"
#include "quant/q4.h"

static struct factor factor(const struct tensor *t, bool k_along_line) {
    return (struct factor){.data = t->data,
                           .q4 = t->q4,
                           .stride = t->dim[1],
                           .type = t->type,
                           .round = {F32, F32},
                           .k_along_line = k_along_line};
}

static bool uses_amx(const struct backend *be) { return ((const struct cpu_backend *)be)->amx; }

/* A 4-bit weight is dequantised straight to the type of the activations, as bitsandbytes does. */
void cpu_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                        const struct tensor *b, float beta) {
    struct gemm g = {.a = factor(x, true),
                     .b = factor(W, true),
                     .C = y->data,
                     .bias = b ? b->data : NULL,
                     .M = x->dim[0],
                     .N = W->dim[0],
                     .K = W->dim[1],
                     .stride = W->dim[0],
                     .alpha = 1.0f,
                     .beta = beta,
                     .type = y->type,
                     .amx = uses_amx(be) && x->type == BF16};
    g.b.round[0] = x->type;
    if (gemv_takes(&g))
        gemv(be, &g);
    else
        gemm(be, &g);
}

/* Here bitsandbytes rounds a 4-bit weight to its source type first. dy may be F32 where dx is BF16. */
void cpu_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                         float beta) {
    struct gemm g = {.a = factor(dy, true),
                     .b = factor(W, false),
                     .C = dx->data,
                     .M = dy->dim[0],
                     .N = W->dim[1],
                     .K = W->dim[0],
                     .stride = W->dim[1],
                     .alpha = 1.0f,
                     .beta = beta,
                     .type = dx->type,
                     .amx = uses_amx(be) && dx->type == BF16};
    if (W->q4) g.b.round[0] = W->q4->source, g.b.round[1] = dx->type;
    gemm(be, &g);
}

static struct gemm product(const struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                           const struct tensor *B, bool tb, float alpha, float beta) {
    return (struct gemm){.a = factor(A, !ta),
                         .b = factor(B, tb),
                         .C = C->data,
                         .M = C->dim[0],
                         .N = C->dim[1],
                         .K = ta ? A->dim[0] : A->dim[1],
                         .stride = C->dim[1],
                         .alpha = alpha,
                         .beta = beta,
                         .type = C->type,
                         .amx = uses_amx(be) && (A->type == BF16 || B->type == BF16 || C->type == BF16)};
}

void cpu_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                bool tb, float alpha, float beta) {
    struct gemm g = product(be, C, A, ta, B, tb, alpha, beta);
    if (gemv_takes(&g))
        gemv(be, &g);
    else
        gemm(be, &g);
}

void cpu_matmul_dropout(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                        const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                        enum dropped which) {
    struct gemm g = product(be, C, A, ta, B, tb, alpha, beta);
    if (which == DROP_A) g.a.dropout = d;
    if (which == DROP_B) g.b.dropout = d;
    if (which == DROP_C) g.dropout = d;
    gemm(be, &g);
}

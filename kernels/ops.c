/* The wrappers of the ops: the only code that looks at shapes. A wrong one is an error of the program and aborts,
 * naming op, argument, found and wanted. A backend whose err is set does nothing any more. */
#include "kernels/ops.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/ops_table.h"
#include "kernels/profile.h"
#include "quant/block.h"
#include "quant/q4.h"

static void show(char *text, size_t size, const char *type, int rank, const int64_t *dim) {
    int used = snprintf(text, size, "%s (", type);
    for (int i = 0; i < rank; i++)
        used += snprintf(text + used, size - (size_t)used, i ? ",%lld" : "%lld", (long long)dim[i]);
    snprintf(text + used, size - (size_t)used, ")");
}

/* Aborts unless t has this type, rank and shape, and memory behind it. */
static void want(const char *op, const char *name, const struct tensor *t, enum dtype type, int rank, int64_t d0,
                 int64_t d1, int64_t d2, int64_t d3) {
    const int64_t dim[MAX_RANK] = {d0, d1, d2, d3};
    bool fits = t->type == type && t->rank == rank;
    for (int i = 0; i < MAX_RANK; i++) fits = fits && t->dim[i] == dim[i];
    if (fits && (t->data || tensor_count(t) == 0)) return;
    char found[128], wanted[128];
    show(found, sizeof found, dtype_name(t->type), t->rank, t->dim);
    show(wanted, sizeof wanted, dtype_name(type), rank, dim);
    fprintf(stderr, "graft: %s: %s is %s%s, wanted %s\n", op, name, found, t->data ? "" : " without memory", wanted);
    abort();
}

static void want_like(const char *op, const char *name, const struct tensor *t, const struct tensor *u) {
    want(op, name, t, u->type, u->rank, u->dim[0], u->dim[1], u->dim[2], u->dim[3]);
}

/* Aborts unless t's type is one of a set (bits 1 << type) and its rank is the wanted one (0: any). */
static void want_kind(const char *op, const char *name, const struct tensor *t, unsigned types, const char *words,
                      int rank) {
    if ((types >> t->type & 1) && (rank == 0 || t->rank == rank) && (t->data || tensor_count(t) == 0)) return;
    char found[128];
    show(found, sizeof found, dtype_name(t->type), t->rank, t->dim);
    fprintf(stderr, "graft: %s: %s is %s%s, wanted %s", op, name, found, t->data ? "" : " without memory", words);
    if (rank) fprintf(stderr, " of rank %d", rank);
    fputc('\n', stderr);
    abort();
}

static void want_true(const char *op, const char *name, bool holds) {
    if (holds) return;
    fprintf(stderr, "graft: %s: wanted %s\n", op, name);
    abort();
}

enum {
    ACT = 1 << F32 | 1 << BF16,
    FLOAT = ACT | 1 << F16,
    WEIGHT = FLOAT | 1 << NF4 | 1 << FP4,
};

#define WANT1(t, type, a)       want(__func__, #t, t, type, 1, a, 1, 1, 1)
#define WANT2(t, type, a, b)    want(__func__, #t, t, type, 2, a, b, 1, 1)
#define WANT3(t, type, a, b, c) want(__func__, #t, t, type, 3, a, b, c, 1)
#define WANT_LIKE(t, u)         want_like(__func__, #t, t, u)
#define WANT_ACT(t, rank)       want_kind(__func__, #t, t, ACT, "f32 or bf16", rank)
#define WANT_FLOAT(t, rank)     want_kind(__func__, #t, t, FLOAT, "f32, bf16 or f16", rank)
#define WANT_WEIGHT(t)          want_kind(__func__, #t, t, WEIGHT, "f32, bf16, f16, nf4 or fp4", 2)
#define WANT_ANY(t)             want_kind(__func__, #t, t, ~0u, "any type", 0)
#define WANT_F32(t, rank)       want_kind(__func__, #t, t, 1 << F32, "f32", rank)
#define WANT(condition)         want_true(__func__, #condition, condition)

/* --- moving ------------------------------------------------------------------------------------------------------ */

void op_copy(struct backend *be, const struct tensor *y, const struct tensor *x) {
    WANT_FLOAT(x, 0);
    WANT_FLOAT(y, 0);
    want(__func__, "y", y, y->type, x->rank, x->dim[0], x->dim[1], x->dim[2], x->dim[3]);
    BACKEND_RUN(ops, copy, be, y, x);
}

void op_zero(struct backend *be, const struct tensor *y) {
    WANT_ANY(y);
    BACKEND_RUN(ops, zero, be, y);
}

void op_add(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b) {
    WANT_ACT(a, 0);
    WANT_LIKE(b, a);
    WANT_LIKE(y, a);
    BACKEND_RUN(ops, add, be, y, a, b);
}

void op_gather_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    WANT_ACT(x, 2);
    int64_t M = y->dim[0], C = x->dim[1];
    WANT2(y, x->type, M, C);
    WANT1(index, I32, M);
    BACKEND_RUN(ops, gather_rows, be, y, x, index);
}

void op_scatter_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    WANT_ACT(x, 2);
    int64_t M = x->dim[0], C = x->dim[1];
    WANT2(y, x->type, y->dim[0], C);
    WANT1(index, I32, M);
    BACKEND_RUN(ops, scatter_rows, be, y, x, index);
}

void op_add_rows(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *index) {
    WANT_ACT(y, 2);
    WANT_FLOAT(table, 2);
    WANT2(table, table->type, table->dim[0], y->dim[1]);
    WANT1(index, I32, y->dim[0]);
    BACKEND_RUN(ops, add_rows, be, y, table, index);
}

void op_embed_forward(struct backend *be, const struct tensor *y, const struct tensor *table,
                      const struct tensor *ids) {
    WANT_ACT(y, 2);
    WANT_FLOAT(table, 2);
    WANT2(table, table->type, table->dim[0], y->dim[1]);
    WANT1(ids, I32, y->dim[0]);
    BACKEND_RUN(ops, embed_forward, be, y, table, ids);
}

void op_embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                       const struct tensor *ids) {
    WANT_ACT(dy, 2);
    WANT2(gtable, F32, gtable->dim[0], dy->dim[1]);
    WANT1(ids, I32, dy->dim[0]);
    BACKEND_RUN(ops, embed_backward, be, gtable, dy, ids);
}

void op_patchify(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height, int64_t width,
                 int64_t patch) {
    WANT_ACT(y, 2);
    WANT(height >= 1 && width >= 1 && patch >= 1);
    int64_t n = pixels->dim[0], P = (height / patch) * (width / patch);
    WANT3(pixels, F32, n, 3, height * width);
    WANT2(y, y->type, n * P, 3 * patch * patch);
    BACKEND_RUN(ops, patchify, be, y, pixels, height, width, patch);
}

void op_noise_add(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                  uint64_t stream) {
    WANT_ACT(x, 2);
    WANT1(amplitude, F32, x->dim[0]);
    BACKEND_RUN(ops, noise_add, be, x, amplitude, seed, stream);
}

/* --- 4-bit weights ------------------------------------------------------------------------------------------------ */

void op_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                 int blocksize) {
    WANT_FLOAT(x, 1);
    WANT(blocksize_valid(blocksize));
    WANT1(W, W->type == FP4 ? FP4 : NF4, x->dim[0]);
    WANT1(absmax, F32, block_count(x->dim[0], blocksize));
    BACKEND_RUN(ops, quantize, be, W, absmax, x, blocksize);
}

void op_nest(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
             const struct tensor *offset, const struct tensor *absmax, const struct tensor *map) {
    WANT_F32(absmax, 1);
    WANT1(absmax8, U8, absmax->dim[0]);
    WANT1(nested_absmax, F32, block_count(absmax->dim[0], NESTED_BLOCKSIZE));
    WANT1(offset, F32, 1);
    WANT1(map, F32, 256);
    BACKEND_RUN(ops, nest, be, absmax8, nested_absmax, offset, absmax, map);
}

/* --- matrix products --------------------------------------------------------------------------------------------- */

static void want_scales(const char *op, const struct tensor *W) {
    if (!tensor_is_4bit(W)) return;
    want_true(op, "the scales of a 4-bit W", W->q4 && W->q4->code && (W->q4->absmax || W->q4->absmax8));
}

void op_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                       const struct tensor *b, float beta) {
    WANT_ACT(x, 2);
    WANT_WEIGHT(W);
    want_scales(__func__, W);
    WANT(beta == 0 || beta == 1);
    int64_t N = x->dim[0], I = x->dim[1], O = W->dim[0];
    WANT2(W, W->type, O, I);
    WANT_ACT(y, 2);
    WANT2(y, y->type == F32 ? F32 : x->type, N, O);
    if (b) WANT1(b, F32, O);
    BACKEND_RUN(ops, linear_forward, be, y, x, W, b, beta);
}

void op_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                        float beta) {
    WANT_ACT(dy, 2);
    WANT_WEIGHT(W);
    want_scales(__func__, W);
    WANT(beta == 0 || beta == 1);
    int64_t N = dy->dim[0], O = dy->dim[1], I = W->dim[1];
    WANT2(W, W->type, O, I);
    WANT_ACT(dx, 2);
    WANT2(dx, dy->type == F32 ? dx->type : BF16, N, I);
    BACKEND_RUN(ops, linear_backward, be, dx, dy, W, beta);
}

static void check_matmul(const char *op, const struct tensor *C, const struct tensor *A, bool ta,
                         const struct tensor *B, bool tb) {
    want_kind(op, "A", A, ACT, "f32 or bf16", 2);
    want_kind(op, "B", B, ACT, "f32 or bf16", 2);
    want_kind(op, "C", C, ACT, "f32 or bf16", 2);
    int64_t m = A->dim[ta], k = A->dim[!ta], n = B->dim[!tb];
    want(op, "B", B, B->type, 2, tb ? n : k, tb ? k : n, 1, 1);
    want(op, "C", C, C->type, 2, m, n, 1, 1);
}

void op_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
               bool tb, float alpha, float beta) {
    check_matmul(__func__, C, A, ta, B, tb);
    BACKEND_RUN(ops, matmul, be, C, A, ta, B, tb, alpha, beta);
}

void op_matmul_dropout(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                       const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                       enum dropped which) {
    check_matmul(__func__, C, A, ta, B, tb);
    WANT(d->first >= 0 && d->first % 8 == 0);
    BACKEND_RUN(ops, matmul_dropout, be, C, A, ta, B, tb, alpha, beta, d, which);
}

void op_bias_add(struct backend *be, const struct tensor *y, const struct tensor *b, float scale) {
    WANT_ACT(y, 2);
    WANT1(b, F32, y->dim[1]);
    BACKEND_RUN(ops, bias_add, be, y, b, scale);
}

void op_bias_backward(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale) {
    WANT_ACT(dy, 2);
    WANT1(gb, F32, dy->dim[1]);
    BACKEND_RUN(ops, bias_backward, be, gb, dy, scale);
}

/* --- normalisation ----------------------------------------------------------------------------------------------- */

void op_rmsnorm_forward(struct backend *be, const struct tensor *y, const struct tensor *rstd, const struct tensor *x,
                        const struct tensor *w, float eps) {
    WANT_ACT(x, 2);
    int64_t N = x->dim[0], C = x->dim[1];
    WANT2(y, x->type, N, C);
    WANT1(rstd, F32, N);
    WANT1(w, F32, C);
    BACKEND_RUN(ops, rmsnorm_forward, be, y, rstd, x, w, eps);
}

void op_rmsnorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                             const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                             const struct tensor *w) {
    WANT_ACT(x, 2);
    int64_t N = x->dim[0], C = x->dim[1];
    WANT2(dx, x->type, N, C);
    WANT2(dy, x->type, N, C);
    WANT1(rstd, F32, N);
    WANT1(w, F32, C);
    if (gw) WANT1(gw, F32, C);
    BACKEND_RUN(ops, rmsnorm_backward_add, be, dx, gw, dy, x, rstd, w);
}

void op_layernorm_forward(struct backend *be, const struct tensor *y, const struct tensor *mean,
                          const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                          const struct tensor *b, float eps) {
    WANT_ACT(x, 2);
    int64_t N = x->dim[0], C = x->dim[1];
    WANT2(y, x->type, N, C);
    WANT1(mean, F32, N);
    WANT1(rstd, F32, N);
    WANT1(w, F32, C);
    WANT1(b, F32, C);
    BACKEND_RUN(ops, layernorm_forward, be, y, mean, rstd, x, w, b, eps);
}

void op_layernorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                               const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                               const struct tensor *mean, const struct tensor *rstd, const struct tensor *w) {
    WANT_ACT(x, 2);
    int64_t N = x->dim[0], C = x->dim[1];
    WANT2(dx, x->type, N, C);
    WANT2(dy, x->type, N, C);
    WANT1(mean, F32, N);
    WANT1(rstd, F32, N);
    WANT1(w, F32, C);
    if (gw) WANT1(gw, F32, C);
    if (gb) WANT1(gb, F32, C);
    BACKEND_RUN(ops, layernorm_backward_add, be, dx, gw, gb, dy, x, mean, rstd, w);
}

/* --- attention --------------------------------------------------------------------------------------------------- */

void op_rope(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
             float sign) {
    WANT_ACT(x, 3);
    WANT3(table, F32, 2, table->dim[1], table->dim[2]);
    WANT1(positions, I32, x->dim[0]);
    WANT(2 * table->dim[2] <= x->dim[2]);
    WANT(sign == 1 || sign == -1);
    BACKEND_RUN(ops, rope, be, x, table, positions, sign);
}

static void want_sequences(const char *op, const struct attention *a) {
    want(op, "q_offsets", a->q_offsets, I64, 1, a->sequences + 1, 1, 1, 1);
    want(op, "kv_offsets", a->kv_offsets, I64, 1, a->sequences + 1, 1, 1, 1);
    want_true(op, "max_q >= 0 and max_kv >= 0", a->max_q >= 0 && a->max_kv >= 0);
}

static void want_heads(const char *op, const struct tensor *q, const struct tensor *k) {
    want_true(op, "a head size of 1 .. ATTENTION_MAX_HEAD", q->dim[2] >= 1 && q->dim[2] <= ATTENTION_MAX_HEAD);
    want_true(op, "query heads to be a multiple of key heads", k->dim[1] >= 1 && q->dim[1] % k->dim[1] == 0);
}

void op_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                          const struct tensor *k, const struct tensor *v, const struct attention *a) {
    WANT_ACT(q, 3);
    WANT3(k, q->type, k->dim[0], k->dim[1], q->dim[2]);
    WANT_LIKE(v, k);
    WANT_LIKE(o, q);
    if (lse) WANT2(lse, F32, q->dim[0], q->dim[1]);
    want_heads(__func__, q, k);
    want_sequences(__func__, a);
    BACKEND_RUN(ops, attention_forward, be, o, lse, q, k, v, a);
}

void op_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                           const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                           const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                           const struct tensor *k, const struct tensor *v, const struct attention *a) {
    WANT_ACT(q, 3);
    WANT3(k, q->type, k->dim[0], k->dim[1], q->dim[2]);
    WANT_LIKE(v, k);
    WANT_LIKE(o, q);
    WANT_LIKE(dO, q);
    WANT_LIKE(dq, q);
    WANT_LIKE(dk, k);
    WANT_LIKE(dv, k);
    WANT2(lse, F32, q->dim[0], q->dim[1]);
    WANT2(delta, F32, q->dim[0], q->dim[1]);
    want_heads(__func__, q, k);
    want_sequences(__func__, a);
    BACKEND_RUN(ops, attention_backward, be, dq, dk, dv, delta, dO, o, lse, q, k, v, a);
}

/* --- pointwise --------------------------------------------------------------------------------------------------- */

void op_act_forward(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f) {
    WANT_ACT(x, 0);
    WANT_LIKE(y, x);
    BACKEND_RUN(ops, act_forward, be, y, x, f);
}

void op_act_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                     enum activation f) {
    WANT_ACT(x, 0);
    WANT_LIKE(dy, x);
    WANT_LIKE(dx, x);
    BACKEND_RUN(ops, act_backward, be, dx, dy, x, f);
}

void op_glu_forward(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                    enum activation f) {
    WANT_ACT(gate, 0);
    WANT_LIKE(up, gate);
    WANT_LIKE(y, gate);
    BACKEND_RUN(ops, glu_forward, be, y, gate, up, f);
}

void op_glu_backward(struct backend *be, const struct tensor *dgate, const struct tensor *dup, const struct tensor *dy,
                     const struct tensor *gate, const struct tensor *up, enum activation f) {
    WANT_ACT(gate, 0);
    WANT_LIKE(up, gate);
    WANT_LIKE(dy, gate);
    WANT_LIKE(dgate, gate);
    WANT_LIKE(dup, gate);
    BACKEND_RUN(ops, glu_backward, be, dgate, dup, dy, gate, up, f);
}

void op_dropout(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    WANT_ACT(x, 0);
    WANT_LIKE(y, x);
    WANT(d->p >= 0 && d->p < 1);
    WANT(d->first >= 0 && d->first % 8 == 0);
    BACKEND_RUN(ops, dropout, be, y, x, d);
}

void op_dropout_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    WANT_ACT(x, 0);
    WANT_LIKE(y, x);
    WANT(d->p >= 0 && d->p < 1);
    WANT(d->first >= 0 && d->first % 8 == 0);
    BACKEND_RUN(ops, dropout_add, be, y, x, d);
}

/* --- DoRA -------------------------------------------------------------------------------------------------------- */

void op_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                  const struct tensor *B, float scale) {
    WANT_WEIGHT(W);
    want_scales(__func__, W);
    int64_t O = W->dim[0], I = W->dim[1];
    WANT1(norms, F32, O);
    WANT(!A == !B);
    if (A) WANT2(A, F32, A->dim[0], I);
    if (A) WANT2(B, F32, O, A->dim[0]);
    BACKEND_RUN(ops, row_norms, be, norms, W, A, B, scale);
}

void op_scale_cols(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                   const struct tensor *b) {
    WANT_ACT(x, 2);
    WANT_LIKE(y, x);
    WANT1(g, F32, x->dim[1]);
    if (b) WANT1(b, F32, x->dim[1]);
    BACKEND_RUN(ops, scale_cols, be, y, x, g, b);
}

void op_scale_cols_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g) {
    WANT_ACT(x, 2);
    WANT_LIKE(y, x);
    WANT1(g, F32, x->dim[1]);
    BACKEND_RUN(ops, scale_cols_add, be, y, x, g);
}

void op_divide(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b,
               float minus) {
    WANT1(a, F32, a->dim[0]);
    WANT_LIKE(b, a);
    WANT_LIKE(y, a);
    BACKEND_RUN(ops, divide, be, y, a, b, minus);
}

void op_magnitude_backward(struct backend *be, const struct tensor *gm, const struct tensor *dy, const struct tensor *t,
                           const struct tensor *norms) {
    WANT_ACT(dy, 2);
    WANT_LIKE(t, dy);
    WANT1(gm, F32, dy->dim[1]);
    WANT1(norms, F32, dy->dim[1]);
    BACKEND_RUN(ops, magnitude_backward, be, gm, dy, t, norms);
}

/* --- loss, optimizer --------------------------------------------------------------------------------------------- */

void op_cross_entropy_forward(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                              const struct tensor *targets) {
    WANT_F32(logits, 2);
    WANT1(loss, F32, logits->dim[0]);
    WANT1(targets, I32, logits->dim[0]);
    BACKEND_RUN(ops, cross_entropy_forward, be, loss, logits, targets);
}

void op_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                      const struct tensor *targets, float scale) {
    WANT_F32(logits, 2);
    WANT1(loss, F32, logits->dim[0]);
    WANT1(targets, I32, logits->dim[0]);
    BACKEND_RUN(ops, cross_entropy, be, loss, logits, targets, scale);
}

void op_squared_error(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                      const struct tensor *y, float scale) {
    WANT_F32(x, 2);
    WANT_LIKE(y, x);
    WANT1(loss, F32, x->dim[0]);
    if (dx) WANT_LIKE(dx, x);
    BACKEND_RUN(ops, squared_error, be, loss, dx, x, y, scale);
}

void op_binary_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                             const struct tensor *x, const struct tensor *y, float scale) {
    WANT_F32(x, 2);
    WANT_LIKE(y, x);
    WANT1(loss, F32, x->dim[0]);
    if (dx) WANT_LIKE(dx, x);
    BACKEND_RUN(ops, binary_cross_entropy, be, loss, dx, x, y, scale);
}

void op_sum_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    WANT_F32(x, 0);
    WANT1(total, F32, 1);
    BACKEND_RUN(ops, sum_add, be, total, x);
}

void op_sum_squares_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    WANT_F32(x, 0);
    WANT1(total, F32, 1);
    BACKEND_RUN(ops, sum_squares_add, be, total, x);
}

void op_count_nonfinite_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    WANT_ACT(x, 0);
    WANT1(total, F32, 1);
    BACKEND_RUN(ops, count_nonfinite_add, be, total, x);
}

void op_adamw(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
              const struct tensor *g, const struct adamw *h) {
    WANT_F32(p, 0);
    WANT_LIKE(m, p);
    WANT_LIKE(v, p);
    WANT_LIKE(g, p);
    WANT(h->step >= 1);
    BACKEND_RUN(ops, adamw, be, p, m, v, g, h);
}

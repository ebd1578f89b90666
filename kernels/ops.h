/* Every operation that graft computes on tensors, stated once: formula, shapes, what is written and what is added to.
 *
 * Letters: N rows (all sequences end to end), C channels, I/O linear in/out, V vocabulary, H heads, K key-value heads,
 * D head size, F ffn, r rank, M any count. "act" is F32 or BF16, the same for all act tensors of a call.
 *   y, dx   activations and their gradients: written (=).
 *   gX      gradients of parameters, always F32: added to (+=).
 *   _add    in a name: the output is added to although it is an activation.
 * Vectors of parameters (norm gains, biases, magnitudes) are F32. Sums run in F32 or better; one rounding at the store.
 * Outputs do not overlap inputs unless said. Same inputs, same bits, for any number of threads.
 *
 * An op lives in exactly five places, in this order: here, ops.c (shape checks), cpu/x.c, cuda/x.cu, and a row of
 * shapes in tests/test_ops.c. A wrong shape is an error of the program: it aborts, naming op, argument, found and
 * wanted. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdint.h>

#include "kernels/backend.h"

/* --- moving ------------------------------------------------------------------------------------------------------ */

/* y = x, converted; same shape, each F32, BF16 or F16. */
void op_copy(struct backend *be, const struct tensor *y, const struct tensor *x);

/* y = 0, any type. */
void op_zero(struct backend *be, const struct tensor *y);

/* y = a + b, act (M); y may be a or b. */
void op_add(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b);

/* y (M,C) act: y[i] = x[index[i]]; zeros where index is -1. x (N,C) act, index (M) I32. */
void op_gather_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index);

/* y (N,C) act: y[index[i]] = x[i] for i < M; other rows stay. Indices are distinct; -1 is skipped. */
void op_scatter_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index);

/* y (N,C) act: y[i] += table[index[i]]; table (M,C) F32, BF16 or F16, index (N) I32. Position embeddings. */
void op_add_rows(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *index);

/* y (N,C) act: y[i] = table[ids[i]]; zeros where the id is -1. table (V,C) F32, BF16 or F16, ids (N) I32. */
void op_embed_forward(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *ids);

/* gtable (V,C) F32: gtable[ids[i]] += dy[i], in the order of i; -1 is skipped. */
void op_embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                       const struct tensor *ids);

/* y (n*P, 3*p*p) act: one row per p x p patch of pixels (n,3,H*W) F32, patches row-major, values in the order (channel,
 * row, column), which is that of a convolution's weight. H, W given; what a patch does not fill is left out. */
void op_patchify(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height, int64_t width,
                 int64_t patch);

/* x (N,C) act: x[n] += amplitude[n] * U(-1,1), amplitude (N) F32, drawn from (seed, stream, element). NEFTune. */
void op_noise_add(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                  uint64_t stream);

/* --- 4-bit weights (quant/q4.h) ---------------------------------------------------------------------------------- */

/* W (M) NF4 or FP4, absmax (ceil(M / blocksize)) F32: codes and scales of x (M) F32, BF16 or F16, the bits of
 * quant/block.h. NaN or infinity in a block makes its absmax so. */
void op_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                 int blocksize);

/* absmax8 (M) U8, nested_absmax (ceil(M / 256)) F32, offset (1) F32: absmax (M) F32 in 8 bits, by the map (256) F32 of
 * block_map8; the bits of block_nest where absmax is finite. */
void op_nest(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
             const struct tensor *offset, const struct tensor *absmax, const struct tensor *map);

/* --- matrix products --------------------------------------------------------------------------------------------- */

/* y (N,O) = x (N,I) W^T + b + beta * y. W (O,I): F32, BF16, F16, NF4 or FP4, never expanded whole; b (O) F32 or NULL.
 * beta is 0 or 1, and with 0 y is not read. x act; y act, or F32 where more than BF16 is wanted of a BF16 input
 * (logits). The values of a 4-bit W are rounded to the type of x; those of b may be rounded to the type of y. */
void op_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                       const struct tensor *b, float beta);

/* dx (N,I) act = dy (N,O) W + beta * dx; beta is 0 or 1, and with 0 dx is not read. dy act, or F32 with a BF16 dx. The
 * values of a 4-bit W are rounded to its source type, then to that of dx, as bitsandbytes does. */
void op_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                        float beta);

/* C (m,n) = alpha * op(A) op(B) + beta * C; op(X) is X, or X^T where ta (tb) is true. A, B, C: F32 or BF16, in any
 * mixture. With beta 0, C is not read. In a BF16 backend's fast path the operands are rounded to BF16 when all
 * activations among them are; sums are F32. */
void op_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
               bool tb, float alpha, float beta);

/* y (N,O) act += scale * b, in every row; b (O) F32. */
void op_bias_add(struct backend *be, const struct tensor *y, const struct tensor *b, float scale);

/* gb (O) F32 += scale * sum over n of dy (N,O) act. */
void op_bias_backward(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale);

/* --- normalisation ----------------------------------------------------------------------------------------------- */

/* y (N,C) act = x * rstd * w, rstd (N) F32 = 1 / sqrt(mean(x^2) + eps), w (C) F32. */
void op_rmsnorm_forward(struct backend *be, const struct tensor *y, const struct tensor *rstd, const struct tensor *x,
                        const struct tensor *w, float eps);

/* dx (N,C) act += the gradient through the norm; gw (C) F32 += ..., or NULL. */
void op_rmsnorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                             const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                             const struct tensor *w);

/* y (N,C) act = (x - mean) * rstd * w + b; mean, rstd (N) F32; w, b (C) F32. */
void op_layernorm_forward(struct backend *be, const struct tensor *y, const struct tensor *mean,
                          const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                          const struct tensor *b, float eps);

/* dx (N,C) act += ...; gw, gb (C) F32 += ..., each or NULL. */
void op_layernorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                               const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                               const struct tensor *mean, const struct tensor *rstd, const struct tensor *w);

/* --- attention --------------------------------------------------------------------------------------------------- */

/* x (N,H,D) act is rotated in place: with R = 2 * table.dim[2] <= D, halves a = x[..., :R/2], b = x[..., R/2:R] become
 * (a c - s b, b c + s a); c, s = table[0 and 1][positions[n]]. table (2,P,R/2) F32, positions (N) I32. sign -1 rotates
 * back, which is the backward. */
void op_rope(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
             float sign);

/* Which keys a query sees. Sequence s owns query rows q_offsets[s] .. q_offsets[s+1] and key rows of kv_offsets. The
 * last query of a sequence stands at its last key: query i is at key position p = i + (keys - queries). */
struct attention {
    const struct tensor *q_offsets, *kv_offsets; // (sequences + 1) I64; the same tensor in self-attention
    int64_t sequences;
    int64_t max_q, max_kv; // longest sequence
    bool causal;           // key j is seen when j <= p
    int64_t window;        // > 0: and when j > p - window
    float scale;
};

enum { ATTENTION_MAX_HEAD = 256 }; // D

/* o (Nq,H,D) act = softmax(scale q k^T) v by tiles; q (Nq,H,D), k, v (Nk,K,D) act; head h reads key head h / (H/K).
 * lse (Nq,H) F32: the log of the sum of exponentials, or NULL when no backward follows. */
void op_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                          const struct tensor *k, const struct tensor *v, const struct attention *a);

/* dq, dk, dv written. delta (Nq,H) F32 is scratch. */
void op_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                           const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                           const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                           const struct tensor *k, const struct tensor *v, const struct attention *a);

/* --- pointwise --------------------------------------------------------------------------------------------------- */

/* silu x sigmoid(x); gelu with erf; gelu_tanh 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); quick_gelu
 * x sigmoid(1.702 x); relu2 max(x,0)^2. */
enum activation { ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_RELU2 };

/* y = f(x), act, one shape. */
void op_act_forward(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f);
void op_act_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                     enum activation f); // dx may be dy

/* y = f(gate) * up, act, one shape. */
void op_glu_forward(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                    enum activation f);
/* dgate and dup may be gate and up: each element is read before it is written. */
void op_glu_backward(struct backend *be, const struct tensor *dgate, const struct tensor *dup, const struct tensor *dy,
                     const struct tensor *gate, const struct tensor *up, enum activation f);

/* Element i is kept when the 32-bit word first + i of (seed, stream) is at least p * 2^32; first is a multiple of 8. */
struct dropout {
    float p;
    uint64_t seed, stream;
    int64_t first;
};

/* y = x * mask / (1 - p), act. The same call with dy is the backward. y may be x. */
void op_dropout(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);
/* y += x * mask / (1 - p). */
void op_dropout_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);

/* op_matmul with the dropped-out matrix in the place of A, of B, or of alpha op(A) op(B) before beta * C is added.
 * Elements are counted as the matrix lies in memory. A and B are rounded to their type when they are dropped out. */
enum dropped { DROP_A, DROP_B, DROP_C };
void op_matmul_dropout(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                       const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                       enum dropped which);

/* --- DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024) --------------------------------------- */

/* norms (O) F32 = the lengths of the rows of W + scale * B A. W (O,I) any weight type, values of a 4-bit W rounded to
 * its source type as PEFT does; A (r,I), B (O,r) F32, or both NULL. */
void op_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                  const struct tensor *B, float scale);

/* y (N,O) act = x * g + b, over columns; g (O) F32; b (O) F32 or NULL. y may be x. */
void op_scale_cols(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                   const struct tensor *b);

/* y (N,O) act += x * g, over columns; g (O) F32. */
void op_scale_cols_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g);

/* y (O) F32 = a / b - minus. */
void op_divide(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b, float minus);

/* gm (O) F32 += (sum over n of dy * t) / norms; dy, t (N,O) act. The gradient of the magnitude. */
void op_magnitude_backward(struct backend *be, const struct tensor *gm, const struct tensor *dy, const struct tensor *t,
                           const struct tensor *norms);

/* --- loss, optimizer --------------------------------------------------------------------------------------------- */

/* loss (M) F32 = log sum exp(logits) - logits[target]; logits (M,V) F32, targets (M) I32 in 0 .. V-1. */
void op_cross_entropy_forward(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                              const struct tensor *targets);
/* The same, and the logits become scale * (softmax(logits) - one hot). */
void op_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                      const struct tensor *targets, float scale);

/* The losses of a head, row by row: x, y (M,n) F32, loss (M) F32; dx (M,n) F32 = scale * the gradient, or NULL.
 * loss = mean over j of (x - y)^2. */
void op_squared_error(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                      const struct tensor *y, float scale);
/* loss = mean over j of log(1 + exp(x)) - x y: binary cross entropy of sigmoid(x), y from 0 to 1. */
void op_binary_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                             const struct tensor *x, const struct tensor *y, float scale);

/* total (1) F32 += the sum of x. x F32. */
void op_sum_add(struct backend *be, const struct tensor *total, const struct tensor *x);
/* total (1) F32 += the sum of the squares of x. x F32. */
void op_sum_squares_add(struct backend *be, const struct tensor *total, const struct tensor *x);
/* total (1) F32 += how many elements of x (act or F32) are not finite. */
void op_count_nonfinite_add(struct backend *be, const struct tensor *total, const struct tensor *x);

/* AdamW (Loshchilov & Hutter, 2019) in the order of torch.optim.AdamW: g' = grad_scale * g; p *= 1 - lr * weight_decay;
 * m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; p -= lr / (1-b1^step) * m / (sqrt(v / (1-b2^step)) + eps). */
struct adamw {
    double lr, beta1, beta2, eps, weight_decay;
    double grad_scale; // from clipping
    int64_t step;      // counts from 1
};
/* p, m, v, g F32, one shape; p, m, v are updated. */
void op_adamw(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
              const struct tensor *g, const struct adamw *h);

#endif

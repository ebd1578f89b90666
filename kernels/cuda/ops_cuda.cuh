/* Every op of the CUDA backend, as table.cu lists them; ops.h says what each one means. Shapes are checked already. */
#ifndef KERNELS_CUDA_OPS_CUDA_CUH
#define KERNELS_CUDA_OPS_CUDA_CUH

#include "kernels/cuda/common.cuh"

void cuda_copy(struct backend *be, const struct tensor *y, const struct tensor *x);
void cuda_zero(struct backend *be, const struct tensor *y);
void cuda_add(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b);
void cuda_gather_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index);
void cuda_scatter_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index);
void cuda_add_rows(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *index);
void cuda_embed_forward(struct backend *be, const struct tensor *y, const struct tensor *table,
                        const struct tensor *ids);
void cuda_embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                         const struct tensor *ids);
void cuda_patchify(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height,
                   int64_t width, int64_t patch);
void cuda_noise_add(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                    uint64_t stream);
void cuda_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                   int blocksize);
void cuda_nest(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
               const struct tensor *offset, const struct tensor *absmax, const struct tensor *map);
void cuda_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                         const struct tensor *b, float beta);
void cuda_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                          float beta);
void cuda_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                 bool tb, float alpha, float beta);
void cuda_matmul_dropout(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                         const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                         enum dropped which);
void cuda_bias_add(struct backend *be, const struct tensor *y, const struct tensor *b, float scale);
void cuda_bias_backward(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale);
void cuda_rmsnorm_forward(struct backend *be, const struct tensor *y, const struct tensor *rstd, const struct tensor *x,
                          const struct tensor *w, float eps);
void cuda_rmsnorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                               const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                               const struct tensor *w);
void cuda_layernorm_forward(struct backend *be, const struct tensor *y, const struct tensor *mean,
                            const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                            const struct tensor *b, float eps);
void cuda_layernorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                                 const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                                 const struct tensor *mean, const struct tensor *rstd, const struct tensor *w);
void cuda_rope(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
               float sign);
void cuda_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse,
                            const struct tensor *q, const struct tensor *k, const struct tensor *v,
                            const struct attention *a);
void cuda_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                             const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                             const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                             const struct tensor *k, const struct tensor *v, const struct attention *a);
void cuda_act_forward(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f);
void cuda_act_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                       enum activation f);
void cuda_glu_forward(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                      enum activation f);
void cuda_glu_backward(struct backend *be, const struct tensor *dgate, const struct tensor *dup,
                       const struct tensor *dy, const struct tensor *gate, const struct tensor *up, enum activation f);
void cuda_dropout(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);
void cuda_dropout_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);
void cuda_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                    const struct tensor *B, float scale);
void cuda_scale_cols(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                     const struct tensor *b);
void cuda_scale_cols_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g);
void cuda_divide(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b,
                 float minus);
void cuda_magnitude_backward(struct backend *be, const struct tensor *gm, const struct tensor *dy,
                             const struct tensor *t, const struct tensor *norms);
void cuda_cross_entropy_forward(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                                const struct tensor *targets);
void cuda_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                        const struct tensor *targets, float scale);
void cuda_squared_error(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                        const struct tensor *y, float scale);
void cuda_binary_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                               const struct tensor *x, const struct tensor *y, float scale);
void cuda_sum_add(struct backend *be, const struct tensor *total, const struct tensor *x);
void cuda_sum_squares_add(struct backend *be, const struct tensor *total, const struct tensor *x);
void cuda_count_nonfinite_add(struct backend *be, const struct tensor *total, const struct tensor *x);
void cuda_adamw(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
                const struct tensor *g, const struct adamw *h);

#endif

/* A backend's ops: one pointer for each op of ops.h, same name, same arguments, shapes already checked. A drifted
 * signature does not compile. */
#ifndef KERNELS_OPS_TABLE_H
#define KERNELS_OPS_TABLE_H

#include "kernels/ops.h"

struct ops {
    void (*copy)(struct backend *be, const struct tensor *y, const struct tensor *x);
    void (*zero)(struct backend *be, const struct tensor *y);
    void (*add)(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b);
    void (*gather_rows)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index);
    void (*scatter_rows)(struct backend *be, const struct tensor *y, const struct tensor *x,
                         const struct tensor *index);
    void (*add_rows)(struct backend *be, const struct tensor *y, const struct tensor *table,
                     const struct tensor *index);
    void (*embed_forward)(struct backend *be, const struct tensor *y, const struct tensor *table,
                          const struct tensor *ids);
    void (*embed_backward)(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                           const struct tensor *ids);
    void (*patchify)(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height,
                     int64_t width, int64_t patch);
    void (*noise_add)(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                      uint64_t stream);
    void (*quantize)(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                     int blocksize);
    void (*nest)(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
                 const struct tensor *offset, const struct tensor *absmax, const struct tensor *map);
    void (*linear_forward)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                           const struct tensor *b, float beta);
    void (*linear_backward)(struct backend *be, const struct tensor *dx, const struct tensor *dy,
                            const struct tensor *W, float beta);
    void (*matmul)(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                   bool tb, float alpha, float beta);
    void (*matmul_dropout)(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                           const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                           enum dropped which);
    void (*bias_add)(struct backend *be, const struct tensor *y, const struct tensor *b, float scale);
    void (*bias_backward)(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale);
    void (*rmsnorm_forward)(struct backend *be, const struct tensor *y, const struct tensor *rstd,
                            const struct tensor *x, const struct tensor *w, float eps);
    void (*rmsnorm_backward_add)(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                                 const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                                 const struct tensor *w);
    void (*layernorm_forward)(struct backend *be, const struct tensor *y, const struct tensor *mean,
                              const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                              const struct tensor *b, float eps);
    void (*layernorm_backward_add)(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                                   const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                                   const struct tensor *mean, const struct tensor *rstd, const struct tensor *w);
    void (*rope)(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
                 float sign);
    void (*attention_forward)(struct backend *be, const struct tensor *o, const struct tensor *lse,
                              const struct tensor *q, const struct tensor *k, const struct tensor *v,
                              const struct attention *a);
    void (*attention_backward)(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                               const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                               const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                               const struct tensor *k, const struct tensor *v, const struct attention *a);
    void (*act_forward)(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f);
    void (*act_backward)(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                         enum activation f);
    void (*glu_forward)(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                        enum activation f);
    void (*glu_backward)(struct backend *be, const struct tensor *dgate, const struct tensor *dup,
                         const struct tensor *dy, const struct tensor *gate, const struct tensor *up,
                         enum activation f);
    void (*dropout)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);
    void (*dropout_add)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d);
    void (*row_norms)(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                      const struct tensor *B, float scale);
    void (*scale_cols)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                       const struct tensor *b);
    void (*scale_cols_add)(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g);
    void (*divide)(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b,
                   float minus);
    void (*magnitude_backward)(struct backend *be, const struct tensor *gm, const struct tensor *dy,
                               const struct tensor *t, const struct tensor *norms);
    void (*cross_entropy_forward)(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                                  const struct tensor *targets);
    void (*cross_entropy)(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                          const struct tensor *targets, float scale);
    void (*squared_error)(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                          const struct tensor *x, const struct tensor *y, float scale);
    void (*binary_cross_entropy)(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                                 const struct tensor *x, const struct tensor *y, float scale);
    void (*sum_add)(struct backend *be, const struct tensor *total, const struct tensor *x);
    void (*sum_squares_add)(struct backend *be, const struct tensor *total, const struct tensor *x);
    void (*count_nonfinite_add)(struct backend *be, const struct tensor *total, const struct tensor *x);
    void (*adamw)(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
                  const struct tensor *g, const struct adamw *h);
};

#endif

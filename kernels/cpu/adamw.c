/* Sums over whole tensors and the optimizer. */
#include <math.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/span.h"
#include "kernels/cpu/sums.h"

/* --- sums: a tensor is cut into at most PARTS parts by its length only; each is summed in double ----- */

enum { PARTS = 64 };

typedef double chunk_sum(const float *x, int64_t n);

struct total {
    const struct tensor *x;
    chunk_sum *fn;
    int64_t count, per_part; // a multiple of CHUNK
    double part[PARTS];
};

static double nonfinite_sum(const float *x, int64_t n) {
    int s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (bits_of_float(x[i]) & 0x7F800000u) == 0x7F800000u;
    return s;
}

static void part_task(void *arg, int64_t task, int thread) {
    (void)thread;
    struct total *p = arg;
    float buffer[CHUNK];
    double sum = 0;
    int64_t end = least((task + 1) * p->per_part, p->count);
    for (int64_t i = task * p->per_part; i < end; i += CHUNK) {
        int64_t n = least(CHUNK, end - i);
        sum += p->fn(floats_of(p->x, i, n, buffer), n);
    }
    p->part[task] = sum;
}

static void sum_into(struct backend *be, const struct tensor *total, const struct tensor *x, chunk_sum *fn) {
    struct total p = {.x = x, .fn = fn, .count = tensor_count(x)};
    int64_t spans = tasks_of(p.count, SPAN);
    p.per_part = tasks_of(spans, PARTS) * SPAN;
    int64_t parts = p.count ? tasks_of(p.count, p.per_part) : 0;
    threads_for(be->threads, parts, part_task, &p);
    double sum = 0;
    for (int64_t i = 0; i < parts; i++) sum += p.part[i];
    *(float *)total->data += (float)sum;
}

void cpu_sum_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    sum_into(be, total, x, sum_of);
}

void cpu_sum_squares_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    sum_into(be, total, x, sum_of_squares);
}

void cpu_count_nonfinite_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    sum_into(be, total, x, nonfinite_sum);
}

/* --- AdamW: constants in double, elements in F32 ------------------------------------------------------------------ */

struct adamw_factors {
    float grad_scale, keep; // keep: 1 - lr * weight_decay
    float beta1, rest1, beta2, rest2;
    float root;      // 1 / sqrt(1 - beta2^step)
    float step, eps; // step: lr / (1 - beta1^step)
};

static void adamw_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    const struct adamw_factors h = *(const struct adamw_factors *)settings;
    float *p = out[0], *m = out[1], *v = out[2], root[CHUNK];
    const float *g = in[3];
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float gi = h.grad_scale * g[i];
        m[i] = h.beta1 * m[i] + h.rest1 * gi;
        v[i] = h.beta2 * v[i] + h.rest2 * gi * gi;
    }
    for (int i = 0; i < n; i++) root[i] = sqrtf(v[i]); // a loop of its own: it may set errno, which stops vector code
#pragma omp simd
    for (int i = 0; i < n; i++) p[i] = h.keep * p[i] - h.step * m[i] / (root[i] * h.root + h.eps);
}

void cpu_adamw(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
               const struct tensor *g, const struct adamw *h) {
    double bias1 = 1 - pow(h->beta1, (double)h->step), bias2 = 1 - pow(h->beta2, (double)h->step);
    struct adamw_factors f = {
        .grad_scale = (float)h->grad_scale,
        .keep = (float)(1 - h->lr * h->weight_decay),
        .beta1 = (float)h->beta1,
        .rest1 = (float)(1 - h->beta1),
        .beta2 = (float)h->beta2,
        .rest2 = (float)(1 - h->beta2),
        .root = (float)(1 / sqrt(bias2)),
        .step = (float)(h->lr / bias1),
        .eps = (float)h->eps,
    };
    span_run(be, &(struct span_op){adamw_span, &f, {p, m, v}, {p, m, v, g}});
}

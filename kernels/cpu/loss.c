/* Losses row by row. Cross entropy over logits in F32: the sum of exponentials is taken in one pass, relative to the
 * largest logit so far, in double. */
#include <math.h>

#include "kernels/cpu/span.h"
#include "kernels/cpu/sums.h"
#include "kernels/cpu/vecmath.h"

struct cross_entropy {
    float *loss, *logits; // (M), (M,V)
    const int32_t *targets;
    int64_t M, V, per_task;
    bool gradient;
    float scale;
};

/* The largest of 16 lanes, then of those: lanes of a fixed number become vector code under every compiler. */
static float largest(const float *x, int64_t n) {
    enum { LANES = 16 };
    float lane[LANES], most = -INFINITY;
    for (int j = 0; j < LANES; j++) lane[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    for (int j = 0; j < LANES; j++) most = lane[j] > most ? lane[j] : most;
    return most;
}

/* n <= CHUNK */
static double sum_exp(const float *x, float base, int64_t n) {
    float e[CHUNK];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) e[i] = vm_exp(x[i] - base);
    return sum_of(e, n);
}

static bool any_nan(const float *x, int64_t n) {
    bool found = false;
    for (int64_t i = 0; i < n; i++) found |= x[i] != x[i];
    return found;
}

/* Returns the sum of exp(x - *most), *most being the largest of x; NaN when one of x is. */
static double row_sum(const float *x, int64_t V, float *most) {
    double sum = 0;
    *most = -INFINITY;
    for (int64_t c = 0; c < V; c += CHUNK) {
        int64_t n = least(CHUNK, V - c);
        float m = largest(x + c, n);
        if (m > *most) sum *= exp((double)*most - (double)m), *most = m;
        if (*most > -INFINITY)
            sum += sum_exp(x + c, *most, n);
        else if (any_nan(x + c, n))
            sum = NAN;
    }
    return sum;
}

static void row_gradient(float *x, int64_t V, float most, double sum, float scale, int32_t target) {
    float factor = (float)((double)scale / sum);
#pragma omp simd
    for (int64_t i = 0; i < V; i++) x[i] = factor * vm_exp(x[i] - most);
    x[target] -= scale;
}

static void row_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct cross_entropy *p = arg;
    for (int64_t row = task * p->per_task; row < least((task + 1) * p->per_task, p->M); row++) {
        float *x = p->logits + row * p->V, most;
        double sum = row_sum(x, p->V, &most);
        p->loss[row] = (float)(log(sum) + (double)most - (double)x[p->targets[row]]);
        if (p->gradient) row_gradient(x, p->V, most, sum, p->scale, p->targets[row]);
    }
}

static void run(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                const struct tensor *targets, bool gradient, float scale) {
    if (!cpu_indices_fit(be, "cross_entropy", targets, 0, logits->dim[1])) return;
    struct cross_entropy p = {loss->data,     logits->data,   targets->data,
                              logits->dim[0], logits->dim[1], rows_per_task(logits->dim[1]),
                              gradient,       scale};
    threads_for(be->threads, tasks_of(p.M, p.per_task), row_task, &p);
}

void cpu_cross_entropy_forward(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                               const struct tensor *targets) {
    run(be, loss, logits, targets, false, 0);
}

void cpu_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                       const struct tensor *targets, float scale) {
    run(be, loss, logits, targets, true, scale);
}

/* --- heads: a few numbers a row ---------------------------------------------------------------------------------- */

struct head_loss {
    float *loss, *dx; // (M), (M,n) or NULL
    const float *x, *y;
    int64_t M, n, per_task;
    float scale;
    bool binary;
};

/* log(1 + exp(x)) - x y without overflow. */
static double binary_entropy(double x, double y) { return fmax(x, 0) - x * y + log1p(exp(-fabs(x))); }

static void head_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct head_loss *p = arg;
    double mean = 1.0 / (double)p->n;
    for (int64_t row = task * p->per_task; row < least((task + 1) * p->per_task, p->M); row++) {
        double sum = 0;
        for (int64_t i = row * p->n; i < (row + 1) * p->n; i++) {
            double x = p->x[i], y = p->y[i];
            sum += p->binary ? binary_entropy(x, y) : (x - y) * (x - y);
            if (p->dx) p->dx[i] = (float)((double)p->scale * mean * (p->binary ? 1 / (1 + exp(-x)) - y : 2 * (x - y)));
        }
        p->loss[row] = (float)(sum * mean);
    }
}

static void head_run(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                     const struct tensor *y, float scale, bool binary) {
    struct head_loss p = {.loss = loss->data,
                          .dx = dx ? dx->data : NULL,
                          .x = x->data,
                          .y = y->data,
                          .M = x->dim[0],
                          .n = x->dim[1],
                          .per_task = rows_per_task(x->dim[1]),
                          .scale = scale,
                          .binary = binary};
    threads_for(be->threads, tasks_of(p.M, p.per_task), head_task, &p);
}

void cpu_squared_error(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                       const struct tensor *y, float scale) {
    head_run(be, loss, dx, x, y, scale, false);
}

void cpu_binary_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                              const struct tensor *x, const struct tensor *y, float scale) {
    head_run(be, loss, dx, x, y, scale, true);
}

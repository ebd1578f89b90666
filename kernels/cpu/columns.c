/* The ops of DoRA that are not matrix products, and biases: scales and sums of columns. */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/span.h"

struct columns {
    const struct tensor *y, *x, *t; // (N,O); x and t may be NULL
    const float *g, *b;             // (O), b may be NULL
    float *total;                   // (O)
    int64_t N, O;
    float scale;
};

static void scale_row(const struct columns *p, int64_t row) {
    float x_buffer[CHUNK], y_buffer[CHUNK];
    for (int64_t c = 0; c < p->O; c += CHUNK) {
        int64_t n = least(CHUNK, p->O - c), first = row * p->O + c;
        const float *x = floats_of(p->x, first, n, x_buffer), *g = p->g + c;
        float *y = floats_place(p->y, first, y_buffer);
        if (p->b) {
            const float *b = p->b + c;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * g[i] + b[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = x[i] * g[i];
        }
        floats_store(p->y, first, n, y);
    }
}

static void scale_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct columns *p = arg;
    int64_t rows = rows_per_task(p->O);
    for (int64_t row = task * rows; row < least((task + 1) * rows, p->N); row++) scale_row(p, row);
}

void cpu_scale_cols(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                    const struct tensor *b) {
    struct columns p = {.y = y, .x = x, .g = g->data, .b = b ? b->data : NULL, .N = x->dim[0], .O = x->dim[1]};
    threads_for(be->threads, tasks_of(p.N, rows_per_task(p.O)), scale_task, &p);
}

/* y += x * g, or y += scale * b where there is no x. */
static void add_row(const struct columns *p, int64_t row) {
    float x_buffer[CHUNK], old[CHUNK], y_buffer[CHUNK];
    for (int64_t c = 0; c < p->O; c += CHUNK) {
        int64_t n = least(CHUNK, p->O - c), first = row * p->O + c;
        const float *before = floats_of(p->y, first, n, old);
        float *y = floats_place(p->y, first, y_buffer);
        if (p->x) {
            const float *x = floats_of(p->x, first, n, x_buffer), *g = p->g + c;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = before[i] + x[i] * g[i];
        } else {
            const float *b = p->b + c;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = before[i] + p->scale * b[i];
        }
        floats_store(p->y, first, n, y);
    }
}

static void add_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct columns *p = arg;
    int64_t rows = rows_per_task(p->O);
    for (int64_t row = task * rows; row < least((task + 1) * rows, p->N); row++) add_row(p, row);
}

void cpu_scale_cols_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g) {
    struct columns p = {.y = y, .x = x, .g = g->data, .N = y->dim[0], .O = y->dim[1]};
    threads_for(be->threads, tasks_of(p.N, rows_per_task(p.O)), add_task, &p);
}

void cpu_bias_add(struct backend *be, const struct tensor *y, const struct tensor *b, float scale) {
    struct columns p = {.y = y, .b = b->data, .N = y->dim[0], .O = y->dim[1], .scale = scale};
    threads_for(be->threads, tasks_of(p.N, rows_per_task(p.O)), add_task, &p);
}

static void divide_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    float *y = out[0], minus = *(const float *)settings;
    const float *a = in[0], *b = in[1];
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = a[i] / b[i] - minus;
}

void cpu_divide(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b,
                float minus) {
    span_run(be, &(struct span_op){divide_span, &minus, {y}, {a, b}});
}

/* --- sums of columns --------------------------------------------------------------------------------------------- */

/* A task owns columns. Sums of 64 rows in F32, those in double. */
enum { COLUMNS = 256, ROWS = 64 };

static void sum_row(const struct columns *p, int64_t row, int64_t c, int64_t n, float *total) {
    float x_buffer[COLUMNS], t_buffer[COLUMNS];
    const float *x = floats_of(p->x, row * p->O + c, n, x_buffer);
    if (!p->t) {
        for (int64_t i = 0; i < n; i++) total[i] += x[i];
        return;
    }
    const float *t = floats_of(p->t, row * p->O + c, n, t_buffer);
    for (int64_t i = 0; i < n; i++) total[i] += x[i] * t[i];
}

static void columns_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct columns *p = arg;
    int64_t c = task * COLUMNS, n = least(COLUMNS, p->O - c);
    double total[COLUMNS] = {0};
    for (int64_t first = 0; first < p->N; first += ROWS) {
        float block[COLUMNS] = {0};
        for (int64_t row = first; row < least(first + ROWS, p->N); row++) sum_row(p, row, c, n, block);
        for (int64_t i = 0; i < n; i++) total[i] += (double)block[i];
    }
    for (int64_t i = 0; i < n; i++)
        p->total[c + i] += (float)(p->g ? total[i] / (double)p->g[c + i] : total[i] * (double)p->scale);
}

void cpu_bias_backward(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale) {
    struct columns p = {.x = dy, .total = gb->data, .N = dy->dim[0], .O = dy->dim[1], .scale = scale};
    threads_for(be->threads, tasks_of(p.O, COLUMNS), columns_task, &p);
}

void cpu_magnitude_backward(struct backend *be, const struct tensor *gm, const struct tensor *dy,
                            const struct tensor *t, const struct tensor *norms) {
    struct columns p = {.x = dy, .t = t, .g = norms->data, .total = gm->data, .N = dy->dim[0], .O = dy->dim[1]};
    threads_for(be->threads, tasks_of(p.O, COLUMNS), columns_task, &p);
}

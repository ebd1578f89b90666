/* RMSNorm and LayerNorm. Forward and the gradient of x go by rows; gradients of parameters go by columns, so that their
 * sums stay within one task. A row is taken in chunks, so it may be of any length. */
#include <math.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/span.h"
#include "kernels/cpu/sums.h"

struct norm {
    const struct tensor *y, *x, *dx, *dy; // (N,C) act
    const struct tensor *mean;            // (N), NULL for RMSNorm
    const struct tensor *rstd;            // (N)
    const struct tensor *w, *b;           // (C)
    const struct tensor *gw, *gb;         // (C) or NULL
    int64_t N, C;
    float eps;
};

static float *at(const struct tensor *t) { return t ? t->data : NULL; }

/* --- forward ----------------------------------------------------------------------------------------------------- */

static float row_mean(const struct norm *p, int64_t row) {
    float buffer[CHUNK];
    double total = 0;
    for (int64_t c = 0; c < p->C; c += CHUNK) {
        int64_t n = least(CHUNK, p->C - c);
        total += sum_of(floats_of(p->x, row * p->C + c, n, buffer), n);
    }
    return (float)(total / (double)p->C);
}

static float row_rstd(const struct norm *p, int64_t row, float mean) {
    float buffer[CHUNK];
    double total = 0;
    for (int64_t c = 0; c < p->C; c += CHUNK) {
        int64_t n = least(CHUNK, p->C - c);
        total += sum_of_squares_about(floats_of(p->x, row * p->C + c, n, buffer), mean, n);
    }
    return (float)(1 / sqrt(total / (double)p->C + (double)p->eps));
}

static void row_forward(const struct norm *p, int64_t row) {
    float x_buffer[CHUNK], y_buffer[CHUNK];
    float mean = p->mean ? row_mean(p, row) : 0, rstd = row_rstd(p, row, mean);
    if (p->mean) at(p->mean)[row] = mean;
    at(p->rstd)[row] = rstd;
    for (int64_t c = 0; c < p->C; c += CHUNK) {
        int64_t n = least(CHUNK, p->C - c), first = row * p->C + c;
        const float *x = floats_of(p->x, first, n, x_buffer), *w = at(p->w) + c;
        float *y = floats_place(p->y, first, y_buffer);
        if (p->b) {
            const float *b = at(p->b) + c;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * rstd * w[i];
        }
        floats_store(p->y, first, n, y);
    }
}

static void forward_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct norm *p = arg;
    int64_t rows = rows_per_task(p->C);
    for (int64_t row = task * rows; row < least((task + 1) * rows, p->N); row++) row_forward(p, row);
}

void cpu_rmsnorm_forward(struct backend *be, const struct tensor *y, const struct tensor *rstd, const struct tensor *x,
                         const struct tensor *w, float eps) {
    struct norm p = {.y = y, .x = x, .rstd = rstd, .w = w, .N = x->dim[0], .C = x->dim[1], .eps = eps};
    threads_for(be->threads, tasks_of(p.N, rows_per_task(p.C)), forward_task, &p);
}

void cpu_layernorm_forward(struct backend *be, const struct tensor *y, const struct tensor *mean,
                           const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                           const struct tensor *b, float eps) {
    struct norm p = {
        .y = y, .x = x, .mean = mean, .rstd = rstd, .w = w, .b = b, .N = x->dim[0], .C = x->dim[1], .eps = eps};
    threads_for(be->threads, tasks_of(p.N, rows_per_task(p.C)), forward_task, &p);
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* With z = (x - mean) rstd and d = dy w: dx += rstd (d - mean(d) - z mean(d z)); RMSNorm has no mean(d). */
static void row_backward(const struct norm *p, int64_t row) {
    float x_buffer[CHUNK], dy_buffer[CHUNK], dx_buffer[CHUNK], d[CHUNK], z[CHUNK];
    float mean = p->mean ? at(p->mean)[row] : 0, rstd = at(p->rstd)[row];
    double total_d = 0, total_dz = 0;
    for (int64_t c = 0; c < p->C; c += CHUNK) {
        int64_t n = least(CHUNK, p->C - c), first = row * p->C + c;
        const float *x = floats_of(p->x, first, n, x_buffer), *dy = floats_of(p->dy, first, n, dy_buffer);
        const float *w = at(p->w) + c;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            d[i] = dy[i] * w[i];
            z[i] = (x[i] - mean) * rstd;
        }
        if (p->mean) total_d += sum_of(d, n);
        total_dz += sum_of_products(d, z, n);
    }
    float mean_d = p->mean ? (float)(total_d / (double)p->C) : 0, mean_dz = (float)(total_dz / (double)p->C);
    for (int64_t c = 0; c < p->C; c += CHUNK) {
        int64_t n = least(CHUNK, p->C - c), first = row * p->C + c;
        const float *x = floats_of(p->x, first, n, x_buffer), *dy = floats_of(p->dy, first, n, dy_buffer);
        const float *old = floats_of(p->dx, first, n, dx_buffer), *w = at(p->w) + c;
        float *dx = floats_place(p->dx, first, dx_buffer);
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = old[i] + rstd * (dy[i] * w[i] - mean_d - (x[i] - mean) * rstd * mean_dz);
        floats_store(p->dx, first, n, dx);
    }
}

static void backward_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct norm *p = arg;
    int64_t rows = rows_per_task(p->C);
    for (int64_t row = task * rows; row < least((task + 1) * rows, p->N); row++) row_backward(p, row);
}

/* Columns of gw += sum over rows of dy z, gb += sum of dy. Sums of 64 rows in F32, those in double. */
enum { COLUMNS = 256, ROWS = 64 };

static void columns_of_rows(const struct norm *p, int64_t c, int64_t n, int64_t row, float *gw, float *gb) {
    float x_buffer[COLUMNS], dy_buffer[COLUMNS];
    const float *x = floats_of(p->x, row * p->C + c, n, x_buffer);
    const float *dy = floats_of(p->dy, row * p->C + c, n, dy_buffer);
    float mean = p->mean ? at(p->mean)[row] : 0, rstd = at(p->rstd)[row];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        gw[i] += dy[i] * ((x[i] - mean) * rstd);
        gb[i] += dy[i];
    }
}

static void columns_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct norm *p = arg;
    int64_t c = task * COLUMNS, n = least(COLUMNS, p->C - c);
    double gw[COLUMNS] = {0}, gb[COLUMNS] = {0};
    for (int64_t first = 0; first < p->N; first += ROWS) {
        float block_gw[COLUMNS] = {0}, block_gb[COLUMNS] = {0};
        for (int64_t row = first; row < least(first + ROWS, p->N); row++)
            columns_of_rows(p, c, n, row, block_gw, block_gb);
        for (int64_t i = 0; i < n; i++) gw[i] += (double)block_gw[i], gb[i] += (double)block_gb[i];
    }
    for (int64_t i = 0; i < n && p->gw; i++) at(p->gw)[c + i] += (float)gw[i];
    for (int64_t i = 0; i < n && p->gb; i++) at(p->gb)[c + i] += (float)gb[i];
}

static void backward(struct backend *be, struct norm *p) {
    threads_for(be->threads, tasks_of(p->N, rows_per_task(p->C)), backward_task, p);
    if (p->gw || p->gb) threads_for(be->threads, tasks_of(p->C, COLUMNS), columns_task, p);
}

void cpu_rmsnorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                              const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                              const struct tensor *w) {
    struct norm p = {.x = x, .dx = dx, .dy = dy, .rstd = rstd, .w = w, .gw = gw, .N = x->dim[0], .C = x->dim[1]};
    backward(be, &p);
}

void cpu_layernorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                                const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                                const struct tensor *mean, const struct tensor *rstd, const struct tensor *w) {
    struct norm p = {.x = x,
                     .dx = dx,
                     .dy = dy,
                     .mean = mean,
                     .rstd = rstd,
                     .w = w,
                     .gw = gw,
                     .gb = gb,
                     .N = x->dim[0],
                     .C = x->dim[1]};
    backward(be, &p);
}

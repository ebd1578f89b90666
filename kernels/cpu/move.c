/* Ops that move numbers: copies, rows by index, patches, noise. */
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/span.h"

bool cpu_indices_fit(struct backend *be, const char *op, const struct tensor *index, int64_t low, int64_t limit) {
    const int32_t *at = index->data;
    for (int64_t i = 0; i < index->dim[0]; i++) {
        if (at[i] >= low && at[i] < limit) continue;
        err_set(&be->err, ST_FAIL, "%s: index %d at position %lld, wanted %lld .. %lld", op, at[i], (long long)i,
                (long long)low, (long long)limit - 1);
        return false;
    }
    return true;
}

/* --- whole tensors ----------------------------------------------------------------------------------------------- */

struct bytes {
    char *to;
    const char *from; // NULL: zeros
    size_t count;
};

enum { BYTES_PER_TASK = 1 << 20 };

static void bytes_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct bytes *b = arg;
    size_t at = (size_t)task * BYTES_PER_TASK, n = b->count - at < BYTES_PER_TASK ? b->count - at : BYTES_PER_TASK;
    if (b->from)
        memmove(b->to + at, b->from + at, n);
    else
        memset(b->to + at, 0, n);
}

static void bytes_run(struct backend *be, void *to, const void *from, size_t count) {
    struct bytes b = {to, from, count};
    threads_for(be->threads, tasks_of((int64_t)count, BYTES_PER_TASK), bytes_task, &b);
}

static void copy_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)settings, (void)at;
    if (out[0] != in[0]) memcpy(out[0], in[0], (size_t)n * sizeof **out);
}

void cpu_copy(struct backend *be, const struct tensor *y, const struct tensor *x) {
    if (y->type == x->type)
        bytes_run(be, y->data, x->data, tensor_bytes(x));
    else
        span_run(be, &(struct span_op){copy_span, NULL, {y}, {x}});
}

void cpu_zero(struct backend *be, const struct tensor *y) { bytes_run(be, y->data, NULL, tensor_bytes(y)); }

static void add_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)settings, (void)at;
    float *y = out[0];
    const float *a = in[0], *b = in[1];
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = a[i] + b[i];
}

void cpu_add(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b) {
    span_run(be, &(struct span_op){add_span, NULL, {y}, {a, b}});
}

/* --- rows by index ----------------------------------------------------------------------------------------------- */

struct by_index {
    const struct tensor *y, *x, *index;
    int64_t C, per_task;
};

/* One row of table as a row of act; the types may differ. */
static void copy_row(const struct tensor *y, int64_t to, const struct tensor *x, int64_t from, int64_t C) {
    float buffer[CHUNK];
    if (x->type == y->type) {
        size_t row = (size_t)C * dtype_size(x->type);
        memcpy((char *)y->data + (size_t)to * row, (const char *)x->data + (size_t)from * row, row);
        return;
    }
    for (int64_t c = 0; c < C; c += CHUNK) {
        int64_t n = least(CHUNK, C - c);
        float *place = floats_place(y, to * C + c, buffer);
        const float *values = floats_of(x, from * C + c, n, place);
        floats_store(y, to * C + c, n, values);
        if (values != place && y->type == F32) memcpy(place, values, (size_t)n * sizeof *place);
    }
}

static void gather_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct by_index *p = arg;
    const int32_t *index = p->index->data;
    size_t row = (size_t)p->C * dtype_size(p->y->type);
    for (int64_t i = task * p->per_task; i < least((task + 1) * p->per_task, p->y->dim[0]); i++) {
        if (index[i] >= 0)
            copy_row(p->y, i, p->x, index[i], p->C);
        else
            memset((char *)p->y->data + (size_t)i * row, 0, row);
    }
}

static void run_by_index(struct backend *be, thread_task *task, const struct tensor *y, const struct tensor *x,
                         const struct tensor *index) {
    int64_t C = y->dim[1];
    struct by_index p = {y, x, index, C, rows_per_task(C)};
    if (C > 0) threads_for(be->threads, tasks_of(index->dim[0], p.per_task), task, &p);
}

void cpu_gather_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    if (!cpu_indices_fit(be, "gather_rows", index, -1, x->dim[0])) return;
    run_by_index(be, gather_task, y, x, index);
}

void cpu_embed_forward(struct backend *be, const struct tensor *y, const struct tensor *table,
                       const struct tensor *ids) {
    if (!cpu_indices_fit(be, "embed_forward", ids, -1, table->dim[0])) return;
    run_by_index(be, gather_task, y, table, ids);
}

static void scatter_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct by_index *p = arg;
    const int32_t *index = p->index->data;
    for (int64_t i = task * p->per_task; i < least((task + 1) * p->per_task, p->x->dim[0]); i++)
        if (index[i] >= 0) copy_row(p->y, index[i], p->x, i, p->C);
}

void cpu_scatter_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    if (!cpu_indices_fit(be, "scatter_rows", index, -1, y->dim[0])) return;
    run_by_index(be, scatter_task, y, x, index);
}

/* Columns first .. first + n of row `to` of y += those of row `from` of x. */
static void add_row_part(const struct tensor *y, int64_t to, const struct tensor *x, int64_t from, int64_t C,
                         int64_t first, int64_t n) {
    float y_buffer[CHUNK], x_buffer[CHUNK];
    const float *a = floats_of(y, to * C + first, n, y_buffer), *b = floats_of(x, from * C + first, n, x_buffer);
    float *sum = floats_place(y, to * C + first, y_buffer);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) sum[i] = a[i] + b[i];
    floats_store(y, to * C + first, n, sum);
}

static void add_rows_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct by_index *p = arg;
    const int32_t *index = p->index->data;
    for (int64_t i = task * p->per_task; i < least((task + 1) * p->per_task, p->y->dim[0]); i++)
        for (int64_t c = 0; c < p->C; c += CHUNK)
            add_row_part(p->y, i, p->x, index[i], p->C, c, least(CHUNK, p->C - c));
}

void cpu_add_rows(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *index) {
    if (!cpu_indices_fit(be, "add_rows", index, 0, table->dim[0])) return;
    run_by_index(be, add_rows_task, y, table, index);
}

/* A task owns columns, so that ids which occur twice are added in order. */
enum { EMBED_COLUMNS = 128 };

static void embed_backward_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct by_index *p = arg;
    const int32_t *ids = p->index->data;
    int64_t c = task * EMBED_COLUMNS, n = least(EMBED_COLUMNS, p->C - c);
    for (int64_t i = 0; i < p->index->dim[0]; i++)
        if (ids[i] >= 0) add_row_part(p->y, ids[i], p->x, i, p->C, c, n);
}

void cpu_embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                        const struct tensor *ids) {
    if (!cpu_indices_fit(be, "embed_backward", ids, -1, gtable->dim[0])) return;
    struct by_index p = {gtable, dy, ids, gtable->dim[1], 0};
    threads_for(be->threads, tasks_of(p.C, EMBED_COLUMNS), embed_backward_task, &p);
}

/* --- pictures, noise --------------------------------------------------------------------------------------------- */

struct patches {
    const struct tensor *y, *pixels;
    int64_t height, width, patch;
};

/* One task per row of patches: (picture, row). */
static void patchify_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct patches *p = arg;
    int64_t size = p->patch, down = p->height / size, across = p->width / size;
    int64_t image = task / down, row = task % down, plane = p->height * p->width;
    const float *pixels = (const float *)p->pixels->data + image * 3 * plane + row * size * p->width;
    float buffer[CHUNK];
    for (int64_t i = 0; i < across * 3 * size; i++) { // (patch, channel, line of the patch)
        int64_t patch = i / (3 * size), channel = i / size % 3, line = i % size;
        const float *from = pixels + channel * plane + line * p->width + patch * size;
        int64_t to = ((task * across + patch) * 3 + channel) * size * size + line * size;
        for (int64_t c = 0; c < size; c += CHUNK) {
            int64_t n = least(CHUNK, size - c);
            float *place = floats_place(p->y, to + c, buffer);
            memcpy(place, from + c, (size_t)n * sizeof *place);
            floats_store(p->y, to + c, n, place);
        }
    }
}

void cpu_patchify(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height,
                  int64_t width, int64_t patch) {
    struct patches p = {y, pixels, height, width, patch};
    if (width >= patch) threads_for(be->threads, pixels->dim[0] * (height / patch), patchify_task, &p);
}

struct noise {
    const float *amplitude;
    int64_t C;
    uint64_t seed, stream;
};

/* 2 u - 1 for u = word * 2^-32 is the word less 2^31, read as a signed number, times 2^-31. */
static void noise_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    const struct noise *s = settings;
    uint32_t words[CHUNK];
    philox_words(s->seed, s->stream, at, words, n);
    for (int i = 0; i < n;) {
        int64_t row = (at + i) / s->C;
        int end = (int)least(n, (row + 1) * s->C - at);
        for (; i < end; i++)
            out[0][i] = in[0][i] + s->amplitude[row] * ((float)(int32_t)(words[i] ^ 0x80000000u) * 0x1p-31f);
    }
}

void cpu_noise_add(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                   uint64_t stream) {
    struct noise s = {amplitude->data, x->dim[1], seed, stream};
    span_run(be, &(struct span_op){noise_span, &s, {x}, {x}});
}

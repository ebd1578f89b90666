/* Rotary position embedding, in place: halves of a head are rotated by the angles of its position. */
#include "kernels/cpu/convert.h"
#include "kernels/cpu/span.h"

struct rope {
    const struct tensor *x;       // (N,H,D)
    const float *cosines, *sines; // (P,half)
    const int32_t *positions;     // (N)
    int64_t half, per_task;
    float sign;
};

static void rotate(float *a, float *b, const float *c, const float *s, float sign, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float turned = a[i] * c[i] - sign * b[i] * s[i];
        b[i] = b[i] * c[i] + sign * a[i] * s[i];
        a[i] = turned;
    }
}

static void rotate_head(const struct rope *p, int64_t head, int64_t position) {
    float a_buffer[CHUNK], b_buffer[CHUNK];
    int64_t first = head * p->x->dim[2], angles = position * p->half;
    for (int64_t i = 0; i < p->half; i += CHUNK) {
        int64_t n = least(CHUNK, p->half - i), at_a = first + i, at_b = at_a + p->half;
        floats_of(p->x, at_a, n, a_buffer), floats_of(p->x, at_b, n, b_buffer);
        float *a = floats_place(p->x, at_a, a_buffer), *b = floats_place(p->x, at_b, b_buffer);
        rotate(a, b, p->cosines + angles + i, p->sines + angles + i, p->sign, n);
        floats_store(p->x, at_a, n, a), floats_store(p->x, at_b, n, b);
    }
}

static void rope_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct rope *p = arg;
    int64_t H = p->x->dim[1];
    for (int64_t n = task * p->per_task; n < least((task + 1) * p->per_task, p->x->dim[0]); n++)
        for (int64_t h = 0; h < H; h++) rotate_head(p, n * H + h, p->positions[n]);
}

void cpu_rope(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
              float sign) {
    if (!cpu_indices_fit(be, "rope", positions, 0, table->dim[1])) return;
    int64_t half = table->dim[2];
    struct rope p = {x,
                     table->data,
                     (const float *)table->data + table->dim[1] * half,
                     positions->data,
                     half,
                     rows_per_task(x->dim[1] * x->dim[2]),
                     sign};
    threads_for(be->threads, tasks_of(x->dim[0], p.per_task), rope_task, &p);
}

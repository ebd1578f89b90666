/* Matrix products, plainly: the meaning of the ops, one dot product per result. */
#include <math.h>

#include "base/half.h"
#include "kernels/cpu/ops_cpu.h"
#include "quant/q4.h"

static float value(const struct tensor *t, int64_t i) {
    switch (t->type) {
    case F32:
        return ((const float *)t->data)[i];
    case BF16:
        return bf16_to_float(((const bf16 *)t->data)[i]);
    case F16:
        return f16_to_float(((const f16 *)t->data)[i]);
    default:
        break;
    }
    int byte = ((const uint8_t *)t->data)[i / 2];
    return t->q4->code[i % 2 ? byte & 15 : byte >> 4] * q4_absmax(t->q4, i / t->q4->blocksize);
}

static void store(const struct tensor *t, int64_t i, float x) {
    if (t->type == F32)
        ((float *)t->data)[i] = x;
    else
        ((bf16 *)t->data)[i] = bf16_of_float(x);
}

struct product {
    const struct tensor *C, *A, *B, *b; // b (n) or NULL
    bool ta, tb;
    float alpha, beta;
};

static void row_task(void *arg, int64_t i, int thread) {
    (void)thread;
    const struct product *p = arg;
    int64_t m = p->C->dim[0], n = p->C->dim[1], k = p->A->dim[!p->ta];
    for (int64_t j = 0; j < n; j++) {
        float sum = 0;
        for (int64_t l = 0; l < k; l++)
            sum += value(p->A, p->ta ? l * m + i : i * k + l) * value(p->B, p->tb ? j * k + l : l * n + j);
        float y = p->alpha * sum;
        if (p->beta != 0) y += p->beta * value(p->C, i * n + j);
        if (p->b) y += value(p->b, j);
        store(p->C, i * n + j, y);
    }
}

void cpu_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                        const struct tensor *b) {
    struct product p = {y, x, W, b, false, true, 1, 0};
    threads_for(be->threads, y->dim[0], row_task, &p);
}

void cpu_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                         float beta) {
    struct product p = {dx, dy, W, NULL, false, false, 1, beta};
    threads_for(be->threads, dx->dim[0], row_task, &p);
}

void cpu_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                bool tb, float alpha, float beta) {
    struct product p = {C, A, B, NULL, ta, tb, alpha, beta};
    threads_for(be->threads, C->dim[0], row_task, &p);
}

static float as_source(float x, enum dtype source) {
    if (source == BF16) return bf16_to_float(bf16_of_float(x));
    return source == F16 ? f16_to_float(f16_of_float(x)) : x;
}

void cpu_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                   const struct tensor *B, float scale) {
    (void)be;
    int64_t O = W->dim[0], I = W->dim[1], r = A ? A->dim[0] : 0;
    for (int64_t o = 0; o < O; o++) {
        double squares = 0;
        for (int64_t i = 0; i < I; i++) {
            float w = value(W, o * I + i), ba = 0;
            if (W->q4) w = as_source(w, W->q4->source);
            for (int64_t k = 0; k < r; k++) ba += value(B, o * r + k) * value(A, k * I + i);
            w += scale * ba;
            squares += (double)w * w;
        }
        ((float *)norms->data)[o] = (float)sqrt(squares);
    }
}

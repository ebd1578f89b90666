/* Products with few rows, as generation makes them: each line of the weight is read once, dequantised in pieces that
 * stay in the first cache, and multiplied with every row of x. Bound by reading the weight. */
#include "kernels/cpu/gemm.h"

enum { LANES = 4, PIECE = 1024, OUTPUTS = 32 };

typedef float vec __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

struct job {
    const struct gemm *g;
    const float *x; // (M,K)
};

static float dot(const float *a, const float *b, int64_t n) {
    vec sum[LANES] = {{0}};
    int64_t i = 0;
    for (; i + WIDTH * LANES <= n; i += WIDTH * LANES)
#pragma GCC unroll 4
        for (int l = 0; l < LANES; l++) sum[l] += *(const vec *)(a + i + l * WIDTH) * *(const vec *)(b + i + l * WIDTH);
    for (; i + WIDTH <= n; i += WIDTH) sum[0] += *(const vec *)(a + i) * *(const vec *)(b + i);
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float total = 0;
    for (int w = 0; w < WIDTH; w++) total += sum[0][w];
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

static void outputs_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct job *job = arg;
    const struct gemm *g = job->g;
    int64_t first = task * OUTPUTS, count = g->N - first < OUTPUTS ? g->N - first : OUTPUTS;
    float sums[GEMV_ROWS][OUTPUTS] = {{0}}, piece[PIECE];
    for (int64_t o = 0; o < count; o++)
        for (int64_t k = 0; k < g->K; k += PIECE) {
            int64_t n = g->K - k < PIECE ? g->K - k : PIECE;
            const float *w = piece;
            if (g->b.type == F32)
                w = (const float *)g->b.data + (first + o) * g->b.stride + k;
            else
                line_f32(piece, &g->b, first + o, k, n);
            for (int64_t m = 0; m < g->M; m++) sums[m][o] += dot(job->x + m * g->K + k, w, n);
        }
    for (int64_t m = 0; m < g->M; m++) gemm_store(g, m, first, sums[m], count);
}

void gemv(struct backend *be, const struct gemm *g) {
    struct job job = {g, g->a.data};
    if (g->a.type != F32) {
        float *x = (float *)((struct cpu_backend *)be)->shared;
        for (int64_t m = 0; m < g->M; m++) line_f32(x + m * g->K, &g->a, m, 0, g->K);
        job.x = x;
    }
    threads_for(be->threads, (g->N + OUTPUTS - 1) / OUTPUTS, outputs_task, &job);
}

bool gemv_takes(const struct gemm *g) {
    return g->M <= GEMV_ROWS && (size_t)(g->M * g->K) * sizeof(float) <= CPU_SHARED && g->a.k_along_line &&
           g->b.k_along_line;
}

/* The lengths of the rows of W + s B A, by blocks of rows and columns: B A of a block comes from the F32 kernel,
 * squares are summed in double. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops_cpu.h"
#include "quant/q4.h"

enum { ROWS = 48, COLS = 384, LANES = 8, CHAINS = 2 };

typedef float floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(LANES * sizeof(double))));

struct norms {
    struct backend *be;
    float *norms;          // (O)
    struct factor W, A, B; // (O,I), (r,I), (O,r)
    int64_t O, I, r;
    float scale;
};

/* delta (ROWS,COLS) += the product of two packed blocks. */
static void add_tiles(float *delta, const char *a, const char *b, int64_t rows, int64_t cols, int kn) {
    const struct kernel *k = kernel_f32();
    _Alignas(64) float tile[48 * 32];
    for (int64_t r = 0; r < rows; r += k->rows)
        for (int64_t c = 0; c < cols; c += k->cols) {
            k->multiply(tile, a + (size_t)(r / k->rows) * k->a_bytes, b + (size_t)(c / k->cols) * k->b_bytes, kn,
                        false);
            for (int i = 0; i < k->rows; i++)
                for (int j = 0; j < k->cols; j++) delta[(r + i) * COLS + c + j] += tile[i * k->cols + j];
        }
}

/* delta = B A, rows from o, columns from i on. */
static void delta_block(float *delta, char *scratch, const struct norms *n, int64_t o, int64_t rows, int64_t i,
                        int64_t cols) {
    const struct kernel *k = kernel_f32();
    char *a = scratch, *b = scratch + (size_t)(ROWS / k->rows) * k->a_bytes;
    memset(delta, 0, ROWS * COLS * sizeof *delta);
    for (int64_t at = 0; at < n->r; at += k->kc) {
        int kn = (int)(n->r - at < k->kc ? n->r - at : k->kc);
        k->pack_a(a, &n->B, o, rows, at, kn);
        k->pack_b(b, &n->A, i, cols, at, kn);
        add_tiles(delta, a, b, rows, cols, kn);
    }
}

/* The sum of (w + scale * d)^2. */
static double sum_squares(const float *w, const float *d, int64_t n, float scale) {
    doubles sums[CHAINS] = {{0}};
    double total = 0;
    int64_t i = 0;
    for (; i + LANES * CHAINS <= n; i += LANES * CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            const floats *wv = (const floats *)(w + i + c * LANES), *dv = (const floats *)(d + i + c * LANES);
            doubles v = __builtin_convertvector(*wv + scale * *dv, doubles);
            sums[c] += v * v;
        }
    for (int l = 0; l < LANES; l++)
        for (int c = 0; c < CHAINS; c++) total += sums[c][l];
    for (; i < n; i++) {
        double v = (double)(w[i] + scale * d[i]);
        total += v * v;
    }
    return total;
}

static void rows_task(void *arg, int64_t task, int thread) {
    const struct norms *n = arg;
    char *scratch = cpu_scratch(n->be, thread);
    float *delta = (float *)scratch, w[COLS];
    double sums[ROWS] = {0};
    int64_t first = task * ROWS, rows = n->O - first < ROWS ? n->O - first : ROWS;
    memset(delta, 0, ROWS * COLS * sizeof *delta);
    for (int64_t i = 0; i < n->I; i += COLS) {
        int64_t cols = n->I - i < COLS ? n->I - i : COLS;
        if (n->r) delta_block(delta, scratch + ROWS * COLS * sizeof *delta, n, first, rows, i, cols);
        for (int64_t o = 0; o < rows; o++) {
            line_f32(w, &n->W, first + o, i, cols);
            sums[o] += sum_squares(w, delta + o * COLS, cols, n->scale);
        }
    }
    for (int64_t o = 0; o < rows; o++) n->norms[first + o] = (float)sqrt(sums[o]);
}

void cpu_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                   const struct tensor *B, float scale) {
    struct norms n = {.be = be, .norms = norms->data, .O = W->dim[0], .I = W->dim[1], .scale = A ? scale : 0.0f};
    n.W = (struct factor){.data = W->data, .q4 = W->q4, .stride = n.I, .type = W->type, .k_along_line = true};
    if (W->q4) n.W.round[0] = W->q4->source;
    if (A) {
        n.r = A->dim[0];
        n.A = (struct factor){.data = A->data, .stride = n.I, .type = A->type};
        n.B = (struct factor){.data = B->data, .stride = n.r, .type = B->type, .k_along_line = true};
    }
    threads_for(be->threads, (n.O + ROWS - 1) / ROWS, rows_task, &n);
}

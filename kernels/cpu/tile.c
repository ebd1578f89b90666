/* The products keep a block of C of ROWS x 2 vectors in registers and run along k; the compiler's vectors are as wide
 * as the instruction set allows. */
#include "kernels/cpu/tile.h"

#if defined(__AVX512F__)
enum { WIDTH = 16, ROWS = 8 };
#elif defined(__AVX__)
enum { WIDTH = 8, ROWS = 4 };
#else
enum { WIDTH = 4, ROWS = 4 };
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

struct product {
    float *C;
    const float *A, *B;
    int64_t c_row, a_row, a_column, b_row, k;
    bool add;
};

/* rows and vectors are constants wherever this is inlined, so that sums lives in registers. */
static inline __attribute__((always_inline)) void block(const struct product *p, int64_t i, int64_t j, const int rows,
                                                        const int vectors) {
    float *C = p->C + i * p->c_row + j;
    const float *A = p->A + i * p->a_row, *B = p->B + j;
    const int64_t c_row = p->c_row, a_row = p->a_row, a_column = p->a_column, b_row = p->b_row, k = p->k;
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = p->add ? *(vec *)(C + r * c_row + v * WIDTH) : (vec){0};
    for (int64_t l = 0; l < k; l++, A += a_column, B += b_row)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) sums[r][v] += A[r * a_row] * *(const vec *)(B + v * WIDTH);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) *(vec *)(C + r * c_row + v * WIDTH) = sums[r][v];
}

static void rows_block(const struct product *p, int64_t i, int64_t n) {
    int64_t j = 0;
    for (; j + 2 * WIDTH <= n; j += 2 * WIDTH) block(p, i, j, ROWS, 2);
    for (; j < n; j += WIDTH) block(p, i, j, ROWS, 1);
}

static void one_row(const struct product *p, int64_t i, int64_t n) {
    int64_t j = 0;
    for (; j + 2 * WIDTH <= n; j += 2 * WIDTH) block(p, i, j, 1, 2);
    for (; j < n; j += WIDTH) block(p, i, j, 1, 1);
}

void tile_product(float *C, int64_t c_row, const float *A, int64_t a_row, int64_t a_column, const float *B,
                  int64_t b_row, int64_t m, int64_t n, int64_t k, bool add) {
    const struct product p = {C, A, B, c_row, a_row, a_column, b_row, k, add};
    int64_t i = 0;
    for (; i + ROWS <= m; i += ROWS) rows_block(&p, i, n);
    for (; i < m; i++) one_row(&p, i, n);
}

static void transpose_4x4(float *y, int64_t y_row, const float *x, int64_t x_row) {
    quad a = *(const quad *)x, b = *(const quad *)(x + x_row);
    quad c = *(const quad *)(x + 2 * x_row), d = *(const quad *)(x + 3 * x_row);
    quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(quad *)y = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    *(quad *)(y + y_row) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    *(quad *)(y + 2 * y_row) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    *(quad *)(y + 3 * y_row) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

void tile_transpose(float *y, int64_t y_row, const float *x, int64_t x_row, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i += 4)
        for (int64_t j = 0; j < n; j += 4) transpose_4x4(y + j * y_row + i, y_row, x + i * x_row + j, x_row);
}

/* The kernel in F32, for any width of vector: panels and the product of two of them.
 *
 * A panel of A is (ROWS,KC): its rows lie as in memory, KC apart, and each element is broadcast. A panel of B is
 * (kn,COLS). The tile stays in registers: ROWS * COLS / WIDTH of them, beside one row of B and one broadcast. */
#include <string.h>

#include "kernels/cpu/gemm.h"

#if defined(__AVX512F__)
enum { ROWS = 8, VECTORS = 3, MACS = 28, MOVES = 2 };
#elif defined(__AVX2__)
enum { ROWS = 6, VECTORS = 2, MACS = 14, MOVES = 1 };
#else
enum { ROWS = 4, VECTORS = 2, MACS = 4, MOVES = 1 };
#endif
enum { COLS = WIDTH * VECTORS, KC = 256 };

typedef float vec __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

static void multiply(float *restrict tile, const void *a_panel, const void *b_panel, int kn, bool add) {
    const float *a = a_panel, *b = b_panel;
    vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) sum[i][j] = add ? *(vec *)(tile + i * COLS + j * WIDTH) : (vec){0};
#pragma GCC unroll 1
    for (int k = 0; k < kn; k++) {
        vec row[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) row[j] = *(const vec *)(b + j * WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) sum[i][j] += a[i * KC] * row[j];
        a++, b += COLS;
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) *(vec *)(tile + i * COLS + j * WIDTH) = sum[i][j];
}

static int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

static void pack_a(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    float *dst = panels, lines[TRANSPOSE * PACK_COLUMNS], block[PACK_COLUMNS * TRANSPOSE];
    int64_t padded = round_up(count, ROWS);
    for (int64_t i = count; i < padded; i++) memset(dst + i * KC, 0, (size_t)kn * sizeof *dst);
    if (f->k_along_line) {
        for (int64_t i = 0; i < count; i++) line_f32(dst + i * KC, f, first + i, k, kn);
        return;
    }
    int width = (int)round_up(count, TRANSPOSE);
    memset(lines, 0, sizeof lines);
    for (int at = 0; at < kn; at += TRANSPOSE) {
        int n = kn - at < TRANSPOSE ? kn - at : TRANSPOSE;
        for (int i = 0; i < n; i++) line_f32(lines + i * width, f, k + at + i, first, count);
        transpose(block, TRANSPOSE, lines, width, TRANSPOSE, width);
        for (int64_t i = 0; i < count; i++) memcpy(dst + i * KC + at, block + i * TRANSPOSE, (size_t)n * sizeof *dst);
    }
}

/* Columns [j, j + TRANSPOSE) of B, whose lines lie along k. */
static void pack_columns(float *panels, const struct factor *f, int64_t j, int64_t n, int64_t line, int64_t k, int kn) {
    float lines[TRANSPOSE * KC], *dst = panels + j / COLS * COLS * KC + j % COLS;
    if (f->type == F32 && !f->dropout && n >= TRANSPOSE && kn % TRANSPOSE == 0) {
        transpose(dst, COLS, (const float *)f->data + line * f->stride + k, f->stride, TRANSPOSE, kn);
        return;
    }
    int length = (int)round_up(kn, TRANSPOSE);
    if (n < TRANSPOSE || length > kn) memset(lines, 0, sizeof lines);
    for (int64_t i = 0; i < n; i++) line_f32(lines + i * length, f, line + i, k, kn);
    transpose(dst, COLS, lines, length, TRANSPOSE, length);
}

static void pack_b(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    float *dst = panels, line[PACK_COLUMNS];
    int64_t padded = round_up(count, COLS);
    if (f->k_along_line) {
        for (int64_t j = 0; j < padded; j += TRANSPOSE) {
            int64_t n = count - j < TRANSPOSE ? count - j : TRANSPOSE;
            pack_columns(dst, f, j, n > 0 ? n : 0, first + j, k, kn);
        }
        return;
    }
    memset(line, 0, sizeof line);
    for (int i = 0; i < kn; i++) {
        line_f32(line, f, k + i, first, count);
        for (int64_t j = 0; j < padded; j += COLS)
            memcpy(dst + j * KC + (int64_t)i * COLS, line + j, COLS * sizeof *dst);
    }
}

static const struct kernel kernel = {
    .rows = ROWS,
    .cols = COLS,
    .kc = KC,
    .a_bytes = ROWS * KC * sizeof(float),
    .b_bytes = COLS * KC * sizeof(float),
    .macs_per_cycle = MACS,
    .moves_per_cycle = MOVES,
    .turns_per_cycle = MOVES,
    .pack_a = pack_a,
    .pack_b = pack_b,
    .multiply = multiply,
};

const struct kernel *kernel_f32(void) { return &kernel; }

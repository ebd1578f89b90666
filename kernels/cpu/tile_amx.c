#include "kernels/cpu/tile_amx.h"

#ifdef TILE_AMX
#include <immintrin.h>

#include "kernels/cpu/gemm.h"

enum { PAIR = 512, STEP = 2 * PAIR }; // elements of a tile, and of 32 k of a panel

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* The compiler does not know what the loads of tiles read: stores before this line are done, none moves behind it. */
static inline void memory_settle(void) { __asm__ volatile("" ::: "memory"); }

TILE_AMX void tile_amx_begin(void) {
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    memory_settle();
    _tile_loadconfig(&c);
}

TILE_AMX void tile_amx_end(void) { _tile_release(); }

void tile_amx_pack_transposed(bf16 *B, const bf16 *X, int64_t x_row, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i += AMX_SIDE)
        for (int64_t j = 0; j < n; j += AMX_SIDE, B += STEP)
            for (int half = 0; half < 2; half++)
                transpose((float *)(B + half * PAIR), 16, (const float *)(X + (i + 16 * half) * x_row + j), x_row / 2,
                          16, 16);
}

void tile_amx_pack(bf16 *B, const bf16 *X, int64_t x_row, int64_t m, int64_t n) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t j = 0; j < n; j += AMX_SIDE)
        for (int64_t i = 0; i < m; i += AMX_SIDE, B += STEP)
            for (int p = 0; p < 16; p++) {
                __m512i x = _mm512_loadu_si512(X + (i + 2 * p) * x_row + j);
                __m512i y = _mm512_loadu_si512(X + (i + 2 * p + 1) * x_row + j);
                _mm512_storeu_si512(B + 32 * p, _mm512_permutex2var_epi16(x, low, y));
                _mm512_storeu_si512(B + PAIR + 32 * p, _mm512_permutex2var_epi16(x, high, y));
            }
}

/* 32 or 16 rows of C by 32 columns. */
TILE_AMX static void two_rows(float *C, int64_t c_row, const bf16 *A, int64_t a_row, const bf16 *B, int64_t k,
                              bool add) {
    int64_t c_bytes = c_row * (int64_t)sizeof *C, a_bytes = a_row * (int64_t)sizeof *A;
    float *below = C + 16 * c_row;
    if (add) {
        _tile_loadd(0, C, c_bytes);
        _tile_loadd(1, C + 16, c_bytes);
        _tile_loadd(2, below, c_bytes);
        _tile_loadd(3, below + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t l = 0; l < k; l += AMX_SIDE, A += AMX_SIDE, B += STEP) {
        _tile_loadd(6, B, 64);
        _tile_loadd(4, A, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, B + PAIR, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, A + 16 * a_row, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, C, c_bytes);
    _tile_stored(1, C + 16, c_bytes);
    _tile_stored(2, below, c_bytes);
    _tile_stored(3, below + 16, c_bytes);
}

TILE_AMX static void one_row(float *C, int64_t c_row, const bf16 *A, int64_t a_row, const bf16 *B, int64_t k,
                             bool add) {
    int64_t c_bytes = c_row * (int64_t)sizeof *C, a_bytes = a_row * (int64_t)sizeof *A;
    if (add) {
        _tile_loadd(0, C, c_bytes);
        _tile_loadd(1, C + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (int64_t l = 0; l < k; l += AMX_SIDE, A += AMX_SIDE, B += STEP) {
        _tile_loadd(4, A, a_bytes);
        _tile_loadd(6, B, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, B + PAIR, 64);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, C, c_bytes);
    _tile_stored(1, C + 16, c_bytes);
}

void tile_amx_product(float *C, int64_t c_row, const bf16 *A, int64_t a_row, const bf16 *B, int64_t b_panel, int64_t m,
                      int64_t n, int64_t k, bool add) {
    memory_settle();
    for (int64_t j = 0; j < n; j += AMX_SIDE, B += b_panel) {
        int64_t i = 0;
        for (; i + AMX_SIDE <= m; i += AMX_SIDE) two_rows(C + i * c_row + j, c_row, A + i * a_row, a_row, B, k, add);
        if (i < m) one_row(C + i * c_row + j, c_row, A + i * a_row, a_row, B, k, add);
    }
    memory_settle();
}
#endif

/* The kernel on AMX tiles: bf16 factors, F32 sums. A tile register holds 16 rows of 64 bytes.
 *
 * A panel of A is 32 rows: for each 32 k, two tiles of (16 rows, 32 k). A panel of B is 32 columns: for each 32 k, two
 * tiles of (16 pairs of k, 16 columns, 2). Tiles lie end to end, 1 KiB each, and each step of 32 k reads four of them
 * for four products. Panels are zero from kn up to the next 32, because zero times rubbish may be NaN. */
#include <string.h>

#include "kernels/cpu/gemm.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#include <immintrin.h>

#include "quant/q4.h"

#define AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

enum { SIDE = 32, KC = 320, STEP = PACK_STEP, TILE = 16 * STEP, PIECE = 256 };

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* The compiler does not know what the loads of tiles read: stores before this line are done, none moves behind it. */
static inline void memory_settle(void) { __asm__ volatile("" ::: "memory"); }

AMX static void begin(void) {
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
    memory_settle();
    _tile_loadconfig(&c);
}

AMX static void end(void) { _tile_release(); }

AMX static void multiply(float *restrict tile, const void *a_panel, const void *b_panel, int kn, bool add) {
    enum { ROW = SIDE * sizeof(float) };
    const bf16 *a = a_panel, *b = b_panel;
    memory_settle();
    if (add) {
        _tile_loadd(0, tile, ROW);
        _tile_loadd(1, tile + 16, ROW);
        _tile_loadd(2, tile + 16 * SIDE, ROW);
        _tile_loadd(3, tile + 16 * SIDE + 16, ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int k = 0; k < kn; k += STEP, a += 2 * TILE, b += 2 * TILE) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, tile, ROW);
    _tile_stored(1, tile + 16, ROW);
    _tile_stored(2, tile + 16 * SIDE, ROW);
    _tile_stored(3, tile + 16 * SIDE + 16, ROW);
}

/* --- lines as bf16 ----------------------------------------------------------------------------------------------- */

AMX static __m512i round_pair(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

AMX static void line_from_f32(bf16 *dst, const float *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __mmask32 m = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
        __m512 low = _mm512_maskz_loadu_ps((__mmask16)m, src + i);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), src + i + 16);
        _mm512_mask_storeu_epi16(dst + i, m, round_pair(low, high));
    }
}

static __m512 load_f16(__mmask16 m, const f16 *src) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, src)); }

AMX static void line_from_f16(bf16 *dst, const f16 *src, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __mmask32 m = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
        __m512 low = load_f16((__mmask16)m, src + i), high = load_f16((__mmask16)(m >> 16), src + i + 16);
        _mm512_mask_storeu_epi16(dst + i, m, round_pair(low, high));
    }
}

/* The sixteen values of a block as bf16; rounding to bf16 first would change nothing. */
AMX static inline __m512i block_values(__m512 code, float scale, enum dtype round) {
    __m512 values = _mm512_mul_ps(code, _mm512_set1_ps(scale));
    if (round == F16) values = _mm512_cvtph_ps(_mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
    return round_pair(values, values);
}

AMX static inline __m512i look_up(__m512i values, __m128i bytes) {
    const __m128i low = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), low), odd = _mm_and_si128(bytes, low);
    __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
    return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(both), values);
}

/* n elements from the first half of *codes on. */
AMX static inline void unpack_run(bf16 *dst, const uint8_t *codes, __m512i values, int64_t n) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(dst + i, look_up(values, _mm_loadu_si128((const __m128i *)(codes + i / 2))));
    if (i == n) return;
    __mmask32 m = (1u << (n - i)) - 1;
    __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)_pext_u32(m, 0x55555555), codes + i / 2);
    _mm512_mask_storeu_epi16(dst + i, m, look_up(values, bytes));
}

AMX static void line_from_q4(bf16 *dst, const struct factor *f, int64_t at, int64_t n) {
    const uint8_t *codes = f->data;
    const struct q4 *q = f->q4;
    const __m512 code = _mm512_loadu_ps(q->code);
    int shift = __builtin_ctz((unsigned)q->blocksize);
    for (int64_t last = at + n, stop; at < last; at = stop) {
        int64_t block = at >> shift;
        stop = least((block + 1) << shift, last);
        __m512i values = block_values(code, q4_absmax(q, block), f->round[0]);
        if (at & 1) { // the second half of a byte, alone
            _mm512_mask_storeu_epi16(dst++, 1, look_up(values, _mm_set1_epi8((char)(codes[at / 2] << 4))));
            at++;
        }
        unpack_run(dst, codes + at / 2, values, stop - at);
        dst += stop - at;
    }
}

AMX static void line_dropped(bf16 *dst, const struct factor *f, int64_t line, int64_t first, int64_t n) {
    float values[PACK_COLUMNS];
    line_f32(values, f, line, first, n);
    line_from_f32(dst, values, n);
}

/* n <= PACK_COLUMNS */
static void line_bf16(bf16 *dst, const struct factor *f, int64_t line, int64_t first, int64_t n) {
    int64_t at = line * f->stride + first;
    if (f->dropout)
        line_dropped(dst, f, line, first, n);
    else if (f->type == BF16)
        memcpy(dst, (const bf16 *)f->data + at, (size_t)n * sizeof *dst);
    else if (f->type == F32)
        line_from_f32(dst, (const float *)f->data + at, n);
    else if (f->type == F16)
        line_from_f16(dst, (const f16 *)f->data + at, n);
    else
        line_from_q4(dst, f, at, n);
}

/* Whether lines may be packed from where they lie. */
static bool lies_ready(const struct factor *f) { return f->type == BF16 && !f->dropout; }

/* --- panels ------------------------------------------------------------------------------------------------------ */

static int whole_steps(int kn) { return (kn + STEP - 1) / STEP * STEP; }

/* The tile of row or column `outer` and of k. */
static bf16 *tile_at(void *panels, int64_t outer, int k, int kn) {
    return (bf16 *)panels + outer / SIDE * SIDE * whole_steps(kn) + (int64_t)k / STEP * 2 * TILE +
           outer % SIDE / 16 * TILE;
}

/* Sixteen lines that lie along k, PIECE apart, kn <= PIECE padded to whole steps with zeros. */
static void sixteen_lines(bf16 *lines, const struct factor *f, int64_t line, int64_t n, int64_t k, int kn) {
    int padded = whole_steps(kn);
    for (int64_t i = 0; i < 16; i++) {
        bf16 *dst = lines + i * PIECE;
        int have = i < n ? kn : 0;
        if (have) line_bf16(dst, f, line + i, k, have);
        memset(dst + have, 0, (size_t)(padded - have) * sizeof *dst);
    }
}

/* Rows (16, kn) of BF16, `stride` apart, to tiles of A or of B. kn is whole steps. */
static void tiles_of_rows(bf16 *tile, const bf16 *rows, int64_t stride, int kn) {
    for (int at = 0; at < kn; at += STEP, tile += 2 * TILE)
        for (int r = 0; r < 16; r++) _mm512_storeu_si512(tile + r * STEP, _mm512_loadu_si512(rows + r * stride + at));
}

static void tiles_of_columns(bf16 *tile, const bf16 *columns, int64_t stride, int kn) {
    for (int at = 0; at < kn; at += STEP, tile += 2 * TILE)
        transpose((float *)tile, 16, (const float *)(columns + at), stride / 2, 16, 16);
}

/* Lines along k. Those of BF16 go straight into tiles where they fill them. */
static void pack_lines(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn,
                       void (*tiles)(bf16 *tile, const bf16 *lines, int64_t stride, int kn)) {
    bf16 lines[16 * PIECE];
    int64_t padded = (count + SIDE - 1) / SIDE * SIDE;
    for (int64_t i = 0; i < padded; i += 16) {
        int at = 0;
        if (lies_ready(f) && f->stride % 2 == 0 && count - i >= 16) {
            at = kn / STEP * STEP;
            tiles(tile_at(panels, i, 0, kn), (const bf16 *)f->data + (first + i) * f->stride + k, f->stride, at);
        }
        for (; at < kn; at += PIECE) {
            int n = kn - at < PIECE ? kn - at : PIECE;
            sixteen_lines(lines, f, first + i, count - i, k + at, n);
            tiles(tile_at(panels, i, at, kn), lines, PIECE, whole_steps(n));
        }
    }
}

/* Two k of n <= 32 columns as pairs: (32, 2), zero from n on; b is NULL where there is no second k. */
static void pair_columns(bf16 *low, bf16 *high, const bf16 *a, const bf16 *b, int64_t n) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i upper = _mm512_add_epi16(order, _mm512_set1_epi16(16));
    __mmask32 m = n >= 32 ? ~0u : (1u << n) - 1;
    __m512i x = a ? _mm512_maskz_loadu_epi16(m, a) : _mm512_setzero_si512();
    __m512i y = b ? _mm512_maskz_loadu_epi16(m, b) : _mm512_setzero_si512();
    _mm512_storeu_si512(low, _mm512_permutex2var_epi16(x, order, y));
    _mm512_storeu_si512(high, _mm512_permutex2var_epi16(x, upper, y));
}

/* Lines k and k + 1, of which `have` exist, as pairs of columns; those of column j go to low + j / SIDE * step and to
 * high + j / SIDE * step. */
static void pair_lines(bf16 *low, bf16 *high, int64_t step, const struct factor *f, int64_t first, int64_t count,
                       int64_t k, int have) {
    bf16 buffer[2][PACK_COLUMNS];
    const bf16 *lines[2] = {0};
    for (int i = 0; i < 2 && i < have; i++) {
        lines[i] = (const bf16 *)f->data + (k + i) * f->stride + first;
        if (lies_ready(f)) continue;
        line_bf16(buffer[i], f, k + i, first, count);
        lines[i] = buffer[i];
    }
    for (int64_t j = 0; j < count; j += SIDE, low += step, high += step)
        pair_columns(low, high, lines[0] ? lines[0] + j : NULL, lines[1] ? lines[1] + j : NULL, count - j);
}

static void pack_a(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    if (f->k_along_line) {
        pack_lines(panels, f, first, count, k, kn, tiles_of_rows);
        return;
    }
    bf16 pairs[16][2 * PACK_COLUMNS];
    for (int at = 0; at < kn; at += STEP) {
        for (int p = 0; p < 16; p++)
            pair_lines(pairs[p], pairs[p] + SIDE, 2 * SIDE, f, first, count, k + at + 2 * p, kn - at - 2 * p);
        for (int64_t i = 0; i < (count + SIDE - 1) / SIDE * SIDE; i += 16)
            transpose((float *)tile_at(panels, i, at, kn), 16, (const float *)(pairs[0] + 2 * i), PACK_COLUMNS, 16, 16);
    }
}

static void pack_b(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    if (f->k_along_line) {
        pack_lines(panels, f, first, count, k, kn, tiles_of_columns);
        return;
    }
    int whole = whole_steps(kn);
    for (int at = 0; at < whole; at += 2) {
        bf16 *low = tile_at(panels, 0, at, kn) + at % STEP / 2 * 32;
        pair_lines(low, low + TILE, SIDE * whole, f, first, count, k + at, kn - at);
    }
}

/* --- C ----------------------------------------------------------------------------------------------------------- */

/* Inlined with constants for what is absent; cols <= SIDE. */
AMX static inline __attribute__((always_inline)) void store_rows(const struct gemm *g, int64_t m, int64_t n,
                                                                 const float *tile, int64_t stride, int64_t rows,
                                                                 int64_t cols, const bool plain, const bool narrow,
                                                                 const bool stream) {
    __mmask32 mask = cols >= SIDE ? ~0u : (1u << cols) - 1;
    __mmask16 ml = (__mmask16)mask, mh = (__mmask16)(mask >> 16);
    __m512 alpha = _mm512_set1_ps(g->alpha), beta = _mm512_set1_ps(g->beta);
    __m512 bias_l = _mm512_setzero_ps(), bias_h = bias_l;
    if (!plain && g->bias)
        bias_l = _mm512_maskz_loadu_ps(ml, g->bias + n), bias_h = _mm512_maskz_loadu_ps(mh, g->bias + n + 16);
    for (int64_t i = 0; i < rows; i++, tile += stride) {
        __m512 low = _mm512_loadu_ps(tile), high = _mm512_loadu_ps(tile + 16);
        bf16 *half = (bf16 *)g->C + (m + i) * g->stride + n;
        float *full = (float *)g->C + (m + i) * g->stride + n;
        if (!plain) low = _mm512_fmadd_ps(alpha, low, bias_l), high = _mm512_fmadd_ps(alpha, high, bias_h);
        if (!plain && g->beta != 0.0f) {
            __m512i old = narrow ? _mm512_maskz_loadu_epi16(mask, half) : _mm512_setzero_si512();
            __m512i old_l = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(old)), 16);
            __m512i old_h = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(old, 1)), 16);
            low = _mm512_fmadd_ps(beta, narrow ? (__m512)old_l : _mm512_maskz_loadu_ps(ml, full), low);
            high = _mm512_fmadd_ps(beta, narrow ? (__m512)old_h : _mm512_maskz_loadu_ps(mh, full + 16), high);
        }
        if (narrow && stream)
            _mm512_stream_si512((void *)half, round_pair(low, high));
        else if (stream)
            _mm512_stream_ps(full, low), _mm512_stream_ps(full + 16, high);
        else if (narrow)
            _mm512_mask_storeu_epi16(half, mask, round_pair(low, high));
        else
            _mm512_mask_storeu_ps(full, ml, low), _mm512_mask_storeu_ps(full + 16, mh, high);
    }
}

/* Results too many for any cache go past it, in whole lines. */
static bool streams(const struct gemm *g, int64_t cols) {
    enum { LINE = 64, MANY = 16 << 20 };
    int64_t size = g->type == F32 ? 4 : 2;
    return cols == SIDE && g->M * g->N * size >= MANY && g->stride * size % LINE == 0 && (uintptr_t)g->C % LINE == 0;
}

AMX static void store(const struct gemm *g, int64_t m, int64_t n, const float *tile, int64_t stride, int64_t rows,
                      int64_t cols) {
    bool plain = !g->bias && g->alpha == 1.0f && g->beta == 0.0f;
    bool stream = plain && streams(g, cols);
    if (stream && g->type == BF16)
        store_rows(g, m, n, tile, stride, rows, cols, true, true, true);
    else if (stream)
        store_rows(g, m, n, tile, stride, rows, cols, true, false, true);
    else if (g->type == BF16 && plain)
        store_rows(g, m, n, tile, stride, rows, cols, true, true, false);
    else if (g->type == BF16)
        store_rows(g, m, n, tile, stride, rows, cols, false, true, false);
    else if (plain)
        store_rows(g, m, n, tile, stride, rows, cols, true, false, false);
    else
        store_rows(g, m, n, tile, stride, rows, cols, false, false, false);
}

static const struct kernel kernel = {
    .rows = SIDE,
    .cols = SIDE,
    .kc = KC,
    .a_bytes = SIDE * KC * sizeof(bf16),
    .b_bytes = SIDE * KC * sizeof(bf16),
    .tight = true,
    .macs_per_cycle = 450,
    .moves_per_cycle = 16,
    .turns_per_cycle = 6,
    .store = store,
    .pack_a = pack_a,
    .pack_b = pack_b,
    .multiply = multiply,
    .begin = begin,
    .end = end,
};

const struct kernel *kernel_amx(void) { return &kernel; }
#else
const struct kernel *kernel_amx(void) { return NULL; }
#endif

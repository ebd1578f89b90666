/* The kernel on AMX tiles: bf16 factors, F32 sums. A tile register holds 16 rows of 64 bytes.
 *
 * A panel of A is 32 rows: for each 32 k, two tiles of (16 rows, 32 k). A panel of B is 32 columns: for each 32 k, two
 * tiles of (16 pairs of k, 16 columns, 2). Tiles lie end to end, 1 KiB each, and each step of 32 k reads four of them for
 * four products. Panels are zero from kn up to the next 32, because zero times rubbish may be NaN. */
#include <string.h>

#include "kernels/cpu/gemm.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__x86_64__)
#include <immintrin.h>

#include "quant/q4.h"

#define AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

enum { SIDE = 32, KC = 256, STEP = 32, TILE = 16 * STEP };

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

static void line_bf16(bf16 *dst, const struct factor *f, int64_t line, int64_t first, int64_t n) {
    int64_t at = line * f->stride + first;
    if (f->type == BF16)
        memcpy(dst, (const bf16 *)f->data + at, (size_t)n * sizeof *dst);
    else if (f->type == F32)
        line_from_f32(dst, (const float *)f->data + at, n);
    else if (f->type == F16)
        line_from_f16(dst, (const f16 *)f->data + at, n);
    else
        line_from_q4(dst, f, at, n);
}

/* --- panels ------------------------------------------------------------------------------------------------------ */

/* Sixteen lines that lie along k, kn padded to whole steps with zeros. */
static void sixteen_lines(bf16 *lines, const struct factor *f, int64_t line, int64_t n, int64_t k, int kn) {
    int padded = (kn + STEP - 1) / STEP * STEP;
    for (int64_t i = 0; i < 16; i++) {
        bf16 *dst = lines + i * KC;
        int have = i < n ? kn : 0;
        if (have) line_bf16(dst, f, line + i, k, have);
        memset(dst + have, 0, (size_t)(padded - have) * sizeof *dst);
    }
}

/* Two k as one line of pairs: (columns, 2), zero from count up to the next SIDE. b is NULL where kn is odd. */
static void interleave(bf16 *pairs, const bf16 *a, const bf16 *b, int64_t columns) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    for (int64_t j = 0; j < columns; j += 16) {
        __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(a + j)));
        __m512i y = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(b + j)));
        _mm512_storeu_si512(pairs + 2 * j, _mm512_permutex2var_epi16(x, order, y));
    }
}

static void pair_of_lines(bf16 *pairs, const struct factor *f, int64_t first, int64_t count, int64_t k, int have) {
    bf16 lines[2][PACK_COLUMNS];
    int64_t padded = (count + SIDE - 1) / SIDE * SIDE;
    for (int i = 0; i < 2; i++) {
        int64_t n = i < have ? count : 0;
        if (n) line_bf16(lines[i], f, k + i, first, n);
        memset(lines[i] + n, 0, (size_t)(padded - n) * sizeof(bf16));
    }
    interleave(pairs, lines[0], lines[1], padded);
}

static bf16 *tile_at(void *panels, int64_t outer, int k) {
    return (bf16 *)panels + outer / SIDE * SIDE * KC + (int64_t)k / STEP * 2 * TILE + outer % SIDE / 16 * TILE;
}

static void pack_a(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    bf16 lines[16 * KC], pairs[16][2 * PACK_COLUMNS];
    int64_t padded = (count + SIDE - 1) / SIDE * SIDE;
    if (f->k_along_line) {
        for (int64_t i = 0; i < padded; i += 16) {
            sixteen_lines(lines, f, first + i, count - i, k, kn);
            for (int at = 0; at < kn; at += STEP)
                for (int r = 0; r < 16; r++)
                    memcpy(tile_at(panels, i, at) + r * STEP, lines + r * KC + at, STEP * sizeof(bf16));
        }
        return;
    }
    for (int at = 0; at < kn; at += STEP) {
        for (int p = 0; p < 16; p++) pair_of_lines(pairs[p], f, first, count, k + at + 2 * p, kn - at - 2 * p);
        for (int64_t i = 0; i < padded; i += 16)
            transpose((float *)tile_at(panels, i, at), 16, (const float *)(pairs[0] + 2 * i), PACK_COLUMNS, 16, 16);
    }
}

static void pack_b(void *panels, const struct factor *f, int64_t first, int64_t count, int64_t k, int kn) {
    bf16 lines[16 * KC], pairs[2 * PACK_COLUMNS];
    int64_t padded = (count + SIDE - 1) / SIDE * SIDE;
    if (f->k_along_line) {
        for (int64_t j = 0; j < padded; j += 16) {
            sixteen_lines(lines, f, first + j, count - j, k, kn);
            for (int at = 0; at < kn; at += STEP)
                transpose((float *)tile_at(panels, j, at), 16, (const float *)(lines + at), KC / 2, 16, 16);
        }
        return;
    }
    int whole = (kn + STEP - 1) / STEP * STEP;
    for (int at = 0; at < whole; at += 2) {
        pair_of_lines(pairs, f, first, count, k + at, kn - at);
        for (int64_t j = 0; j < padded; j += 16)
            memcpy(tile_at(panels, j, at) + at % STEP / 2 * 32, pairs + 2 * j, 32 * sizeof(bf16));
    }
}

static const struct kernel kernel = {
    .rows = SIDE,
    .cols = SIDE,
    .kc = KC,
    .a_bytes = SIDE * KC * sizeof(bf16),
    .b_bytes = SIDE * KC * sizeof(bf16),
    .macs_per_cycle = 450,
    .moves_per_cycle = 8,
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

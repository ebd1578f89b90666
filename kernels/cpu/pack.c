/* Lines of any type as F32, and transposing. */
#include <string.h>

#include "kernels/cpu/dropout.h"
#include "kernels/cpu/gemm.h"
#include "quant/q4.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#error "__builtin_shufflevector is wanted: gcc 12 or clang"
#endif

/* --- 4-bit ------------------------------------------------------------------------------------------------------- */

/* A block has sixteen values: they are made, and rounded, once. */
static inline void table_round(float *table, enum dtype round) {
    if (round == BF16)
        for (int c = 0; c < 16; c++) {
            uint32_t u = bits_of_float(table[c]);
            table[c] = float_of_bits((u + 0x7FFFu + (u >> 16 & 1)) & 0xFFFF0000u);
        }
    if (round != F16) return;
#if defined(__AVX2__)
    for (int c = 0; c < 16; c += 8)
        _mm256_storeu_ps(table + c, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(table + c), 0)));
#else
    for (int c = 0; c < 16; c++) table[c] = f16_to_float(f16_of_float(table[c]));
#endif
}

static inline void q4_table(float *table, const struct q4 *q, float scale, const enum dtype *round) {
    for (int c = 0; c < 16; c++) table[c] = q->code[c] * scale;
    table_round(table, round[0]);
    table_round(table, round[1]);
}

static int q4_code(const uint8_t *codes, int64_t i) { return i & 1 ? codes[i / 2] & 15 : codes[i / 2] >> 4; }

/* n elements from the first half of *codes on. */
#if defined(__AVX512F__)
static void unpack_run(float *dst, const uint8_t *codes, const float *table, int64_t n) {
    __m512 values = _mm512_loadu_ps(table);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(codes + i / 2)), low = _mm_set1_epi8(15);
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), low), odd = _mm_and_si128(bytes, low);
        __m512i a = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(even, odd));
        __m512i b = _mm512_cvtepu8_epi32(_mm_unpackhi_epi8(even, odd));
        _mm512_storeu_ps(dst + i, _mm512_permutexvar_ps(a, values));
        _mm512_storeu_ps(dst + i + 16, _mm512_permutexvar_ps(b, values));
    }
    for (; i < n; i++) dst[i] = table[q4_code(codes, i)];
}
#elif defined(__AVX2__)
static __m256 look_up(__m256 low, __m256 high, __m256i index) {
    __m256 a = _mm256_permutevar8x32_ps(low, index), b = _mm256_permutevar8x32_ps(high, index);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

static void unpack_run(float *dst, const uint8_t *codes, const float *table, int64_t n) {
    __m256 t0 = _mm256_loadu_ps(table), t1 = _mm256_loadu_ps(table + 8);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(codes + i / 2)), low = _mm_set1_epi8(15);
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), low), odd = _mm_and_si128(bytes, low);
        __m128i both = _mm_unpacklo_epi8(even, odd);
        _mm256_storeu_ps(dst + i, look_up(t0, t1, _mm256_cvtepu8_epi32(both)));
        _mm256_storeu_ps(dst + i + 8, look_up(t0, t1, _mm256_cvtepu8_epi32(_mm_srli_si128(both, 8))));
    }
    for (; i < n; i++) dst[i] = table[q4_code(codes, i)];
}
#else
static void unpack_run(float *dst, const uint8_t *codes, const float *table, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = table[q4_code(codes, i)];
}
#endif

static void line_q4(float *dst, const struct factor *f, int64_t at, int64_t n) {
    const uint8_t *codes = f->data;
    const struct q4 *q = f->q4;
    int shift = __builtin_ctz((unsigned)q->blocksize);
    float table[16];
    for (int64_t end = at + n, stop; at < end; at = stop) {
        int64_t block = at >> shift;
        stop = least((block + 1) << shift, end);
        q4_table(table, q, q4_absmax(q, block), f->round);
        if (at & 1) *dst++ = table[q4_code(codes, at++)];
        unpack_run(dst, codes + at / 2, table, stop - at);
        dst += stop - at;
    }
}

/* --- lines ------------------------------------------------------------------------------------------------------- */

static void line_f16(float *dst, const f16 *src, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(src + i))));
#elif defined(__AVX2__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i))));
#endif
    for (; i < n; i++) dst[i] = f16_to_float(src[i]);
}

static void line_plain(float *dst, const struct factor *f, int64_t at, int64_t n) {
    if (f->type == F32) {
        memcpy(dst, (const float *)f->data + at, (size_t)n * sizeof *dst);
    } else if (f->type == BF16) {
        const bf16 *src = (const bf16 *)f->data + at;
        for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_float(src[i]);
    } else if (f->type == F16) {
        line_f16(dst, (const f16 *)f->data + at, n);
    } else {
        line_q4(dst, f, at, n);
    }
}

void line_f32(float *dst, const struct factor *f, int64_t line, int64_t first, int64_t n) {
    int64_t at = line * f->stride + first;
    line_plain(dst, f, at, n);
    if (!f->dropout) return;
    dropout_line(dst, dst, f->dropout, at, n);
    for (int64_t i = 0; i < n && f->type == BF16; i++) dst[i] = bf16_to_float(bf16_of_float(dst[i]));
}

/* --- transposing ------------------------------------------------------------------------------------------------- */

#if defined(__AVX512F__)
/* A register takes four columns of four rows, four apart, so that what is left are squares of 4 x 4 in its quarters. */
static inline __m512 load_quarters(const float *src, int64_t stride) {
    __m512 v = _mm512_broadcast_f32x4(_mm_loadu_ps(src));
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(src + 4 * stride));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(src + 8 * stride));
    return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(src + 12 * stride));
}

static inline void transpose_block(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
#pragma GCC unroll 4
    for (int c = 0; c < 16; c += 4) {
        const float *s = src + c;
        __m512 v0 = load_quarters(s, src_stride), v1 = load_quarters(s + src_stride, src_stride);
        __m512 v2 = load_quarters(s + 2 * src_stride, src_stride), v3 = load_quarters(s + 3 * src_stride, src_stride);
        __m512d low01 = (__m512d)_mm512_unpacklo_ps(v0, v1), high01 = (__m512d)_mm512_unpackhi_ps(v0, v1);
        __m512d low23 = (__m512d)_mm512_unpacklo_ps(v2, v3), high23 = (__m512d)_mm512_unpackhi_ps(v2, v3);
        float *d = dst + c * dst_stride;
        _mm512_storeu_ps(d, (__m512)_mm512_unpacklo_pd(low01, low23));
        _mm512_storeu_ps(d + dst_stride, (__m512)_mm512_unpackhi_pd(low01, low23));
        _mm512_storeu_ps(d + 2 * dst_stride, (__m512)_mm512_unpacklo_pd(high01, high23));
        _mm512_storeu_ps(d + 3 * dst_stride, (__m512)_mm512_unpackhi_pd(high01, high23));
    }
}
#else
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));

static inline void transpose_block(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    vec4 a = *(const vec4 *)src, b = *(const vec4 *)(src + src_stride);
    vec4 c = *(const vec4 *)(src + 2 * src_stride), d = *(const vec4 *)(src + 3 * src_stride);
    vec4 ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    *(vec4 *)dst = SHUFFLE(ab, cd, 0, 1, 4, 5), *(vec4 *)(dst + dst_stride) = SHUFFLE(ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE(a, b, 2, 6, 3, 7), cd = SHUFFLE(c, d, 2, 6, 3, 7);
    *(vec4 *)(dst + 2 * dst_stride) = SHUFFLE(ab, cd, 0, 1, 4, 5);
    *(vec4 *)(dst + 3 * dst_stride) = SHUFFLE(ab, cd, 2, 3, 6, 7);
}
#endif

void transpose(float *dst, int64_t dst_stride, const float *src, int64_t src_stride, int rows, int cols) {
    for (int r = 0; r < rows; r += TRANSPOSE)
        for (int c = 0; c < cols; c += TRANSPOSE)
            transpose_block(dst + c * dst_stride + r, dst_stride, src + r * src_stride + c, src_stride);
}

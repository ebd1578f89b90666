#include "quant/block.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

#include "base/half.h"
#include "quant/q4.h"

enum { PIECE = 1 << 16, MOST = 4096 }; // elements of a task; elements of a block

static const float least_absmax = 1e-38f; // what a block is divided by at least

static const float codes[2][16] = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0.0f, 0x1.555556p-8f, 0x1.555556p-1f, 1.0f, 0x1.555556p-2f, 0.5f, 0x1.555556p-3f, 0.25f, 0.0f, -0x1.555556p-8f,
     -0x1.555556p-1f, -1.0f, -0x1.555556p-2f, -0.5f, -0x1.555556p-3f, -0.25f},
};

bool blocksize_valid(int64_t blocksize) {
    return blocksize >= 32 && blocksize <= MOST && (blocksize & (blocksize - 1)) == 0;
}

int64_t block_count(int64_t n, int64_t blocksize) { return (n + blocksize - 1) / blocksize; }

const float *block_code(enum dtype type) { return codes[type == FP4]; }

/* Octave i of 0 .. 6 has 2^i values: 10^(i-6) times the middles of 2^i equal parts of 0.1 .. 1. The fused roundings of
 * the end points are those of the library's own table. */
void block_map8(float code[256]) {
    static const float octave[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int at = 128;
    for (int i = 0; i < 7; i++) {
        int parts = 1 << i, points = parts + 1;
        float step = (1.0f - 0.1f) / (float)parts, last = 0.1f;
        for (int j = 1; j < points; j++) {
            float point = j < points / 2 ? fmaf(step, (float)j, 0.1f) : fmaf(-step, (float)(parts - j), 1.0f);
            code[at++] = octave[i] * ((last + point) / 2.0f);
            last = point;
        }
    }
    code[127] = 0.0f, code[255] = 1.0f;
    for (int i = 0; i < 127; i++) code[i] = -code[254 - i];
}

/* --- one block --------------------------------------------------------------------------------------------------- */

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if X86
#define AVX2   __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

/* n elements, from element `first` of x, as floats. */
INLINE void load(float *v, const char *x, enum dtype source, int64_t first, int n) {
    if (source == F32) {
        memcpy(v, x + 4 * first, (size_t)n * 4);
        return;
    }
    x += 2 * first;
    for (int i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, x + 2 * i, 2);
        if (source == BF16) {
            v[i] = float_of_bits((uint32_t)h << 16);
        } else {
            float magnitude = float_of_bits((uint32_t)(h & 0x7FFFu) << 13) * 0x1p112f;
            uint32_t special = (h & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0;
            v[i] = float_of_bits(bits_of_float(magnitude) | special | (uint32_t)(h & 0x8000u) << 16);
        }
    }
}

/* The largest magnitude; NaN when there is one, since its bits are the largest. */
INLINE float largest(const float *v, int n) {
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t u = bits_of_float(v[i]) & 0x7FFFFFFFu;
        most = u > most ? u : most;
    }
    return float_of_bits(most);
}

/* What block_quantize was asked. */
struct quantize_job {
    uint8_t *packed;
    float *absmax;
    const char *x;
    enum dtype source;
    int64_t n;
    int blocksize;
    float cuts[16]; // block_cuts
    uint8_t order[16];
};

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* NF4 is cut in the middle between neighbours. FP4 is cut as its GPU kernel does, on the magnitude with rounded
 * constants: x > -(the next float after a cut) is x >= -cut, and the sign bit is set when x < 0. */
void block_cuts(float cuts[16], uint8_t order[16], enum dtype type) {
    static const float magnitude[7] = {0x1.555572p-9f, 0x1.6p-4f,     0x1.aaaaaap-3f, 0x1.2aaaaap-2f,
                                       0x1.aaaaacp-2f, 0x1.2aaaap-1f, 0x1.aaaaaap-1f};
    static const uint8_t fp4_order[16] = {11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3};
    cuts[15] = INFINITY;
    for (int i = 0; i < 15; i++) cuts[i] = (codes[0][i] + codes[0][i + 1]) / 2.0f;
    for (int i = 0; i < 16; i++) order[i] = type == NF4 ? (uint8_t)i : fp4_order[i];
    if (type == NF4) return;
    for (int i = 0; i < 7; i++) {
        cuts[i] = magnitude[i];
        cuts[i + 7] = -nextafterf(magnitude[i], 1.0f);
    }
    cuts[14] = -FLT_TRUE_MIN;
    qsort(cuts, 15, sizeof *cuts, by_value);
}

/* Packs v (n, even) times factor. */
INLINE void pack(const struct quantize_job *q, uint8_t *packed, const float *v, int n, float factor) {
    uint8_t rank[MOST];
    for (int i = 0; i < n; i++) {
        float x = v[i] * factor;
        uint32_t below = 0;
        for (int j = 0; j < 15; j++) below += x > q->cuts[j];
        rank[i] = (uint8_t)below;
    }
    for (int j = 0; j < n / 2; j++) packed[j] = (uint8_t)(q->order[rank[2 * j]] << 4 | q->order[rank[2 * j + 1]]);
}

typedef void pack_fn(const struct quantize_job *q, uint8_t *packed, const float *v, int n, float factor);

/* Whole blocks, elements first .. last. */
INLINE void whole_blocks(const struct quantize_job *q, int64_t first, int64_t last, int size, enum dtype source,
                         pack_fn *pack_block) {
    float v[MOST];
    for (int64_t i = first; i < last; i += size) {
        load(v, q->x, source, i, size);
        float absmax = q->absmax[i / size] = largest(v, size);
        pack_block(q, q->packed + i / 2, v, size, 1.0f / fmaxf(absmax, least_absmax));
    }
}

/* The usual size and types as constants make the loops short. */
INLINE void quantize_piece(const struct quantize_job *q, int64_t first, int64_t last, pack_fn *pack_block) {
    if (q->blocksize == 64 && q->source == BF16)
        whole_blocks(q, first, last, 64, BF16, pack_block);
    else if (q->blocksize == 64)
        whole_blocks(q, first, last, 64, q->source, pack_block);
    else
        whole_blocks(q, first, last, q->blocksize, q->source, pack_block);
}

typedef void quantize_piece_fn(const struct quantize_job *q, int64_t first, int64_t last);

static void piece_plain(const struct quantize_job *q, int64_t first, int64_t last) {
    quantize_piece(q, first, last, pack);
}

#if X86
AVX2 static void piece_avx2(const struct quantize_job *q, int64_t first, int64_t last) {
    quantize_piece(q, first, last, pack);
}

/* Sixteen at a time: each step of a binary search in the cuts looks its cut up in a register. */
AVX512 INLINE void pack_avx512(const struct quantize_job *q, uint8_t *packed, const float *v, int n, float factor) {
    __m512 cuts = _mm512_loadu_ps(q->cuts), scale = _mm512_set1_ps(factor);
    __m512i order = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)q->order));
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 cut8 = _mm512_set1_ps(q->cuts[7]);
    __m512 cut4 = _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(3)), cuts);
    __m512 cut2 = _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(1)), cuts);
    __m512i eight = _mm512_set1_epi32(8), four = _mm512_set1_epi32(4), two = _mm512_set1_epi32(2);
    __m512i one = _mm512_set1_epi32(1);
    for (int i = 0; i < n; i += 16) {
        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(v + i), scale);
        __m512i at = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(x, cut8, _CMP_GT_OQ), eight);
        at = _mm512_mask_or_epi32(at, _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(at, cut4), _CMP_GT_OQ), at, four);
        at = _mm512_mask_or_epi32(at, _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(at, cut2), _CMP_GT_OQ), at, two);
        at = _mm512_mask_or_epi32(at, _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(at, cuts), _CMP_GT_OQ), at, one);
        __m512i code = _mm512_permutexvar_epi32(at, order);
        __m512i pair = _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
        _mm_storel_epi64((__m128i *)(void *)(packed + i / 2), _mm512_cvtepi64_epi8(pair));
    }
}

AVX512 static void piece_avx512(const struct quantize_job *q, int64_t first, int64_t last) {
    quantize_piece(q, first, last, pack_avx512);
}

static quantize_piece_fn *fastest_piece(void) {
    return has_avx512() ? piece_avx512 : __builtin_cpu_supports("avx2") ? piece_avx2 : piece_plain;
}
#else
static quantize_piece_fn *fastest_piece(void) { return piece_plain; }
#endif

static void quantize_task(void *arg, int64_t task, int thread) {
    const struct quantize_job *q = arg;
    (void)thread;
    int64_t whole = q->n / q->blocksize * q->blocksize, first = task * PIECE;
    int64_t last = first + PIECE < whole ? first + PIECE : whole;
    if (first < last) fastest_piece()(q, first, last);
    if (first + PIECE < q->n || whole == q->n) return;
    float v[MOST];
    int n = (int)(q->n - whole);
    load(v, q->x, q->source, whole, n);
    float absmax = largest(v, n);
    if (absmax < least_absmax) absmax = least_absmax;
    q->absmax[whole / q->blocksize] = absmax;
    for (int i = 0; i < n; i++) v[i] /= absmax;
    if (n % 2) v[n++] = 0.0f; // the half byte left over holds the code of zero
    pack(q, q->packed + whole / 2, v, n, 1.0f);
}

void block_quantize(uint8_t *packed, float *absmax, const void *x, enum dtype source, int64_t n, enum dtype type,
                    int blocksize, struct threads *t) {
    struct quantize_job q = {packed, absmax, x, source, n, blocksize, {0}, {0}};
    block_cuts(q.cuts, q.order, type);
    threads_for(t, block_count(n, PIECE), quantize_task, &q);
}

/* --- the second level -------------------------------------------------------------------------------------------- */

struct nest_job {
    uint8_t *out;
    float *nested_absmax;
    const float *absmax, *code;
    float offset;
    int64_t n;
};

/* The entries nearest to x (n). Between two exactly, the one that the search ends on wins: it halves the map from its
 * middle and ends on an even entry, as the library does on the GPU. NaN gives 0. Step by step over all of x, so that
 * the searches overlap. */
static void nearest(uint8_t *out, const float *x, int n, const float *code) {
    int32_t at[NESTED_BLOCKSIZE];
    for (int i = 0; i < n; i++) at[i] = 127;
    for (int step = 64; step > 0; step >>= 1)
        for (int i = 0; i < n; i++) at[i] += x[i] > code[at[i]] ? step : -step;
    for (int i = 0; i < n; i++) {
        int32_t here = at[i], below = here > 0 ? here - 1 : 0;
        int32_t up = x[i] > (code[here + 1] + code[here]) * 0.5f, down = x[i] < (code[below] + code[here]) * 0.5f;
        out[i] = (uint8_t)(here + up - (here > 0 ? down : 0));
    }
}

static void nest_task(void *arg, int64_t task, int thread) {
    const struct nest_job *q = arg;
    (void)thread;
    int64_t first = task * NESTED_BLOCKSIZE, rest = q->n - first;
    int n = rest < NESTED_BLOCKSIZE ? (int)rest : NESTED_BLOCKSIZE;
    float v[NESTED_BLOCKSIZE];
    for (int i = 0; i < n; i++) v[i] = q->absmax[first + i] - q->offset;
    float most = q->nested_absmax[task] = largest(v, n);
    float factor = 1.0f / most;
    for (int i = 0; i < n; i++) v[i] = most == 0.0f ? -1.0f : v[i] * factor; // zeros take entry 0
    nearest(q->out + first, v, n, q->code);
}

/* x summed in fp32 in the order that gives bitsandbytes its offset on the CPU, so that the offset is the same number:
 * 32 running sums (4 when there are fewer than 8 numbers), each kept small by moving it up a level after 2^power rows,
 * then the rows that are left, then across. */
static float sum_in_lanes(const float *x, int64_t n) {
    float level[4][32] = {{0}}, sum = 0;
    int lanes = n < 8 ? 1 : 8, width = 4 * lanes, power = 0;
    int64_t rows = n / width, at = 0;
    while ((int64_t)1 << power < rows) power++;
    power = power / 4 > 4 ? power / 4 : 4;
    for (int64_t row = 1; row <= rows; row++, at += width) {
        for (int k = 0; k < width; k++) level[0][k] += x[at + k];
        for (int up = 1; up < 4 && row % ((int64_t)1 << up * power) == 0; up++)
            for (int k = 0; k < width; k++) level[up][k] += level[up - 1][k], level[up - 1][k] = 0;
    }
    for (int up = 1; up < 4; up++)
        for (int k = 0; k < width; k++) level[0][k] += level[up][k];
    for (; at + lanes <= n; at += lanes)
        for (int k = 0; k < lanes; k++) level[0][k] += x[at + k];
    for (int k = lanes; k < width; k++) level[0][k % lanes] += level[0][k];
    for (; at < n; at++) sum += x[at];
    for (int k = 0; k < lanes; k++) sum += level[0][k];
    return sum;
}

float block_nest(uint8_t *absmax8, float *nested_absmax, const float *absmax, int64_t n, const float code[256],
                 struct threads *t) {
    struct nest_job q = {absmax8, nested_absmax, absmax, code, n ? sum_in_lanes(absmax, n) / (float)n : 0.0f, n};
    threads_for(t, block_count(n, NESTED_BLOCKSIZE), nest_task, &q);
    return q.offset;
}

/* --- back to numbers --------------------------------------------------------------------------------------------- */

struct dequantize_job {
    char *out;
    enum dtype type;
    const struct tensor *w;
};

/* A block has 16 different values at most: value, and the bits of those in a 16-bit type. */
static void block_values(float value[16], uint16_t half[16], const struct dequantize_job *d, int64_t block) {
    float absmax = q4_absmax(d->w->q4, block);
    for (int i = 0; i < 16; i++) value[i] = d->w->q4->code[i] * absmax;
    if (d->type == BF16)
        for (int i = 0; i < 16; i++) half[i] = bf16_of_float(value[i]);
    else if (d->type == F16)
        for (int i = 0; i < 16; i++) half[i] = f16_of_float(value[i]);
}

/* Elements first .. last of one block. */
static void unpack(const struct dequantize_job *d, int64_t first, int64_t last, const float *value,
                   const uint16_t *half) {
    const uint8_t *packed = d->w->data;
    float *wide = (float *)(void *)d->out;
    uint16_t *narrow = (uint16_t *)(void *)d->out;
    if (d->type == F32)
        for (int64_t i = first; i < last; i++) wide[i] = value[packed[i / 2] >> (i % 2 ? 0 : 4) & 15];
    else
        for (int64_t i = first; i < last; i++) narrow[i] = half[packed[i / 2] >> (i % 2 ? 0 : 4) & 15];
}

#if X86
/* The same for a multiple of 32 elements: the values lie in a register and are looked up 16 or 32 at a time. */
AVX512 static void unpack_avx512(const struct dequantize_job *d, int64_t first, int64_t last, const float *value,
                                 const uint16_t *half) {
    const uint8_t *packed = d->w->data;
    __m512 values = _mm512_loadu_ps(value);
    __m512i halves = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)half));
    for (int64_t i = first; d->type == F32 && i < last; i += 16) {
        __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(packed + i / 2)));
        __m512i low = _mm512_and_si512(byte, _mm512_set1_epi64(15));
        __m512i at = _mm512_or_si512(_mm512_srli_epi64(byte, 4), _mm512_slli_epi64(low, 32));
        _mm512_storeu_ps(d->out + 4 * i, _mm512_permutexvar_ps(at, values));
    }
    for (int64_t i = first; d->type != F32 && i < last; i += 32) {
        __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(packed + i / 2)));
        __m512i low = _mm512_and_si512(byte, _mm512_set1_epi32(15));
        __m512i at = _mm512_or_si512(_mm512_srli_epi32(byte, 4), _mm512_slli_epi32(low, 16));
        _mm512_storeu_si512(d->out + 2 * i, _mm512_permutexvar_epi16(at, halves));
    }
}
#else
static bool has_avx512(void) { return false; }
static void unpack_avx512(const struct dequantize_job *d, int64_t first, int64_t last, const float *value,
                          const uint16_t *half) {
    unpack(d, first, last, value, half);
}
#endif

static void dequantize_task(void *arg, int64_t task, int thread) {
    const struct dequantize_job *d = arg;
    (void)thread;
    int64_t size = d->w->q4->blocksize, n = tensor_count(d->w), end = (task + 1) * PIECE < n ? (task + 1) * PIECE : n;
    bool fast = has_avx512();
    float value[16];
    uint16_t half[16] = {0};
    for (int64_t i = task * PIECE; i < end; i += size) {
        int64_t last = i + size < end ? i + size : end;
        block_values(value, half, d, i / size);
        if (fast && (last - i) % 32 == 0)
            unpack_avx512(d, i, last, value, half);
        else
            unpack(d, i, last, value, half);
    }
}

void block_dequantize(void *out, enum dtype type, const struct tensor *w, struct threads *t) {
    struct dequantize_job d = {out, type, w};
    threads_for(t, block_count(tensor_count(w), PIECE), dequantize_task, &d);
}

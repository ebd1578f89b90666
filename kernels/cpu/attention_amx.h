/* Attention on AMX, for BF16 tensors: as in attention.c and attention_backward.c, but the factors of every product are
 * bf16 (q, k, v, dO as they are; p and ds rounded), with sums in F32. Softmax, and what is kept of it, is F32.
 *
 * A task takes several tiles of rows (or keys), so that a tile of the other side is packed once for all of them. How
 * many depends on the number of threads; the sums of a tile do not. Exponentials are powers of two: scores carry
 * scale * log2(e). */
#ifndef KERNELS_CPU_ATTENTION_AMX_H
#define KERNELS_CPU_ATTENTION_AMX_H

#include "kernels/cpu/attention.h"
#include "kernels/cpu/tile_amx.h"

/* Whether AMX is granted, and the tensors are BF16. */
bool attention_amx_takes(const struct attention_job *job);

/* Call only where attention_amx_takes; attention_fits is done. */
void attention_amx_forward(const struct attention_job *job);
void attention_amx_backward(const struct attention_job *job);

#ifdef TILE_AMX
#include <immintrin.h>

enum {
    AMX_BLOCK = 4, // the most tiles of rows or keys that a task takes
    AMX_ROWS = AMX_BLOCK * TILE,
    AMX_STRIP = 32, // and works on so many of its rows at a time, whose sums stay in the first cache
};
#define LOG2_E 1.44269504f
#define LOG_2  0.693147181f

struct amx_job {
    struct attention_job job; // its width is a multiple of AMX_SIDE, its tiles are blocks
    int64_t rows;             // of a block: of q, or keys
    float scale;              // times log2(e)
};

/* The job with blocks for items of which a sequence and key head has at most so many. */
struct amx_job attention_amx_job(const struct attention_job *job, int64_t most);

/* rows (whole, width) = rows first .. first + n of t (N,H,D), or keys of t (N,K,D); zeros beyond n and D. */
void attention_amx_load_rows(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                             int64_t first, int64_t n, int64_t whole, bf16 *rows);
void attention_amx_load_keys(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                             int64_t first, int64_t n, int64_t whole, bf16 *rows);

/* Element d of row t[at] = factor * from[d]. */
void attention_amx_store(const struct attention_job *job, const struct tensor *t, int64_t at, const float *from,
                         float factor);

/* The next n bytes of scratch, in whole cache lines. */
static inline void *amx_take(char **scratch, int64_t n) {
    char *p = *scratch;
    *scratch += (n + 63) / 64 * 64;
    return p;
}

/* 2^x, to two units in the last place; 0 below 2^-126, because subnormal results take a hundred times as long. NaN
 * stays NaN. */
TILE_AMX static inline __attribute__((always_inline)) __m512 amx_exp2(__m512 x) {
    __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3264727e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.671513e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5507336e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24022242f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(normal, p, n);
}

/* Bit j is set where key first + j, j < 64, is seen. */
static inline uint64_t amx_seen(struct keys_seen seen, int64_t first) {
    int64_t low = seen.low - first, high = seen.high - first;
    low = low < 0 ? 0 : least(low, 64), high = high < 0 ? 0 : least(high, 64);
    return _bzhi_u64(~0ull, (unsigned)high) & ~_bzhi_u64(~0ull, (unsigned)low);
}

static inline int64_t amx_whole(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
#endif
#endif

#include "kernels/cpu/attention_amx.h"

#include <math.h>
#include <string.h>

bool attention_amx_takes(const struct attention_job *job) {
    return ((const struct cpu_backend *)job->be)->amx && job->q->type == BF16;
}

#ifdef TILE_AMX
struct amx_job attention_amx_job(const struct attention_job *job, int64_t most) {
    enum { TASKS = 4 }; // each thread has so many, where there are enough tiles
    int64_t tiles = job->a->sequences * job->K * tasks_of(most, TILE);
    int64_t block = least(AMX_BLOCK, tiles / (TASKS * threads_count(job->be->threads)));
    struct amx_job a = {*job, (block > 0 ? block : 1) * TILE, job->a->scale * LOG2_E};
    a.job.width = amx_whole(job->D, AMX_SIDE);
    a.job.tiles = tasks_of(most, a.rows);
    return a;
}

static void load(const struct attention_job *job, const struct tensor *t, int64_t at, bf16 *to) {
    const bf16 *from = (const bf16 *)t->data + at * job->D;
    for (int64_t d = 0; d < job->width; d += 32) {
        __mmask32 have = _bzhi_u32(~0u, (unsigned)least(job->D - d, 32));
        _mm512_storeu_si512(to + d, _mm512_maskz_loadu_epi16(have, from + d));
    }
}

TILE_AMX void attention_amx_store(const struct attention_job *job, const struct tensor *t, int64_t at,
                                  const float *from, float factor) {
    bf16 *to = (bf16 *)t->data + at * job->D;
    __m512 f = _mm512_set1_ps(factor);
    for (int64_t d = 0; d < job->width; d += 32) {
        __mmask32 have = _bzhi_u32(~0u, (unsigned)least(job->D - d, 32));
        __m512 low = _mm512_mul_ps(f, _mm512_loadu_ps(from + d)),
               high = _mm512_mul_ps(f, _mm512_loadu_ps(from + d + 16));
        _mm512_mask_storeu_epi16(to + d, have, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

static void clear(const struct attention_job *job, int64_t n, int64_t whole, bf16 *rows) {
    memset(rows + n * job->width, 0, (size_t)((whole - n) * job->width) * sizeof *rows);
}

void attention_amx_load_rows(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                             int64_t first, int64_t n, int64_t whole, bf16 *rows) {
    int64_t position = h->first_q + first / job->group, head = first % job->group;
    for (int64_t i = 0; i < n; i++) {
        load(job, t, position * job->H + h->head * job->group + head, rows + i * job->width);
        if (++head == job->group) head = 0, position++;
    }
    clear(job, n, whole, rows);
}

void attention_amx_load_keys(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                             int64_t first, int64_t n, int64_t whole, bf16 *rows) {
    for (int64_t i = 0; i < n; i++) load(job, t, (h->first_k + first + i) * job->K + h->head, rows + i * job->width);
    clear(job, n, whole, rows);
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

struct forward_tiles {
    bf16 *q;                // (rows, width)
    float *o;               // (rows, width)
    float (*sum)[16];       // (rows) in lanes: the sum of 2^(score - most)
    float *most;            // (rows): the largest score so far
    struct keys_seen *seen; // (rows)
    bf16 *lines;            // (TILE, width)
    bf16 *kT, *v;           // packed (width, TILE), (TILE, width)
    float *scores;          // (AMX_STRIP, TILE)
    bf16 *p;                // (AMX_STRIP, TILE)
};

static struct forward_tiles forward_tiles_in(const struct attention_job *job, int thread) {
    char *s = cpu_scratch(job->be, thread);
    int64_t row = job->width * (int64_t)sizeof(bf16);
    struct forward_tiles t;
    t.q = amx_take(&s, AMX_ROWS * row);
    t.o = amx_take(&s, AMX_ROWS * 2 * row);
    t.sum = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.sum);
    t.most = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.most);
    t.seen = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.seen);
    t.lines = amx_take(&s, TILE * row);
    t.kT = amx_take(&s, TILE * row);
    t.v = amx_take(&s, TILE * row);
    t.scores = amx_take(&s, AMX_STRIP * TILE * (int64_t)sizeof *t.scores);
    t.p = amx_take(&s, AMX_STRIP * TILE * (int64_t)sizeof *t.p);
    return t;
}

static void forward_begin(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                          struct forward_tiles *t) {
    int64_t whole = amx_whole(n, 16);
    attention_amx_load_rows(job, h, job->q, first, n, whole, t->q);
    memset(t->o, 0, (size_t)(whole * job->width) * sizeof *t->o);
    memset(t->sum, 0, (size_t)whole * sizeof *t->sum);
    for (int64_t i = 0; i < whole; i++) {
        t->most[i] = -INFINITY;
        t->seen[i] = i < n ? attention_keys_of(job, h, (first + i) / job->group) : (struct keys_seen){0, 0};
    }
}

/* The largest element of each of sixteen vectors; that of x[i] comes to place i with bits 0 and 1, 2 and 3 exchanged.
 * */
TILE_AMX static inline __attribute__((always_inline)) __m512 largest_of_each(__m512 *x) {
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_max_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xEE));
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_max_ps(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD));
    for (int i = 0; i < 2; i++)
        x[i] = _mm512_max_ps((__m512)_mm512_unpacklo_pd((__m512d)x[i], (__m512d)x[i + 2]),
                             (__m512)_mm512_unpackhi_pd((__m512d)x[i], (__m512d)x[i + 2]));
    return _mm512_max_ps(_mm512_shuffle_ps(x[0], x[1], 0x88), _mm512_shuffle_ps(x[0], x[1], 0xDD));
}

/* Scores (16, 16 * vectors), times scale where seen, and their largest in each row. */
TILE_AMX static inline __attribute__((always_inline)) __m512
scale_rows(const struct amx_job *a, const struct keys_seen *seen, float *scores, int64_t first_key, const int vectors) {
    static const uint8_t place[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
    __m512 most[16], scale = _mm512_set1_ps(a->scale), none = _mm512_set1_ps(-INFINITY);
    for (int r = 0; r < 16; r++) {
        uint64_t keys = amx_seen(seen[r], first_key);
        __m512 row = none;
        for (int i = 0; i < vectors; i++) {
            float *at = scores + r * TILE + 16 * i;
            __m512 x = _mm512_mask_mul_ps(none, (__mmask16)(keys >> 16 * i), scale, _mm512_loadu_ps(at));
            _mm512_storeu_ps(at, x);
            row = _mm512_max_ps(row, x);
        }
        most[place[r]] = row;
    }
    return largest_of_each(most);
}

/* p = 2^(score - base) of a row, rounded only for the product; adds to the row's sum. */
TILE_AMX static inline __attribute__((always_inline)) void exponentials(const float *scores, bf16 *p, float base,
                                                                        float *sums, const int vectors) {
    __m512 x[4], sum = _mm512_loadu_ps(sums), b = _mm512_set1_ps(base);
    for (int i = 0; i < vectors; i++) {
        x[i] = amx_exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + 16 * i), b));
        sum = _mm512_add_ps(sum, x[i]);
    }
    for (int i = 0; i < vectors; i += 2) _mm512_storeu_si512(p + 16 * i, (__m512i)_mm512_cvtne2ps_pbh(x[i + 1], x[i]));
    _mm512_storeu_ps(sums, sum);
}

/* Scores of sixteen rows become p; what was summed before is scaled to the new most. */
TILE_AMX static inline __attribute__((always_inline)) void softmax_rows(const struct amx_job *a,
                                                                        const struct forward_tiles *t, int64_t row,
                                                                        float *scores, bf16 *p, int64_t first_key,
                                                                        const int vectors) {
    float base[16], keep[16];
    __m512 before = _mm512_loadu_ps(t->most + row);
    __m512 now = _mm512_max_ps(before, scale_rows(a, t->seen + row, scores, first_key, vectors));
    __mmask16 any = _mm512_cmp_ps_mask(now, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ); // others have seen no key yet
    __m512 b = _mm512_maskz_mov_ps(any, now);
    _mm512_storeu_ps(base, b);
    _mm512_storeu_ps(keep, amx_exp2(_mm512_sub_ps(before, b)));
    _mm512_storeu_ps(t->most + row, now);
    unsigned changed = _mm512_cmp_ps_mask(now, before, _CMP_NEQ_UQ);
    for (; changed; changed &= changed - 1) {
        int r = __builtin_ctz(changed);
        float *o = t->o + (row + r) * a->job.width, *sum = t->sum[row + r];
        __m512 k = _mm512_set1_ps(keep[r]);
        for (int64_t d = 0; d < a->job.width; d += 16)
            _mm512_storeu_ps(o + d, _mm512_mul_ps(k, _mm512_loadu_ps(o + d)));
        _mm512_storeu_ps(sum, _mm512_mul_ps(k, _mm512_loadu_ps(sum)));
    }
    for (int r = 0; r < 16; r++) exponentials(scores + r * TILE, p + r * TILE, base[r], t->sum[row + r], vectors);
}

/* Rows row .. row + n of the block, with the keys from first_key on, which are packed. */
TILE_AMX static void forward_strip(const struct amx_job *a, const struct forward_tiles *t, int64_t row, int64_t n,
                                   int64_t first_key) {
    int64_t low = t->seen[row].low, high = t->seen[row + n - 1].high, width = a->job.width;
    if (high <= first_key || low >= first_key + TILE) return;
    int64_t keys = amx_whole(least(high - first_key, TILE), AMX_SIDE), whole = amx_whole(n, 16);
    tile_amx_product(t->scores, TILE, t->q + row * width, width, t->kT, AMX_SIDE * width, whole, keys, width, false);
    for (int64_t i = 0; i < whole; i += 16)
        if (keys == TILE)
            softmax_rows(a, t, row + i, t->scores + i * TILE, t->p + i * TILE, first_key, 4);
        else
            softmax_rows(a, t, row + i, t->scores + i * TILE, t->p + i * TILE, first_key, 2);
    tile_amx_product(t->o + row * width, width, t->p, TILE, t->v, AMX_SIDE * TILE, whole, width, keys, true);
}

TILE_AMX static void forward_end(const struct attention_job *job, const struct attention_head *h, int64_t first,
                                 int64_t n, const struct forward_tiles *t) {
    for (int64_t i = 0; i < n; i++) {
        int64_t at = attention_row(job, h, first + i);
        float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(t->sum[i]));
        bool seen = t->most[i] > -INFINITY || sum != 0; // no key: o = 0
        attention_amx_store(job, job->o, at, t->o + i * job->width, seen ? 1.0f / sum : 0.0f);
        if (job->lse) job->lse[at] = seen ? t->most[i] * LOG_2 + logf(sum) : 0.0f;
    }
}

static void forward_task(void *arg, int64_t task, int thread) {
    const struct amx_job *a = arg;
    const struct attention_job *job = &a->job;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = (job->tiles - 1 - task % job->tiles) * a->rows; // the last see the most keys, and go first
    int64_t n = least(a->rows, h.queries * job->group - first), width = job->width;
    if (n <= 0) return;
    struct forward_tiles t = forward_tiles_in(job, thread);
    forward_begin(job, &h, first, n, &t);
    tile_amx_begin();
    for (int64_t j = t.seen[0].low / TILE * TILE; j < t.seen[n - 1].high; j += TILE) {
        int64_t keys = least(TILE, h.keys - j);
        attention_amx_load_keys(job, &h, job->k, j, keys, TILE, t.lines);
        tile_amx_pack_transposed(t.kT, t.lines, width, TILE, width);
        attention_amx_load_keys(job, &h, job->v, j, keys, TILE, t.lines);
        tile_amx_pack(t.v, t.lines, width, TILE, width);
        for (int64_t i = 0; i < n; i += AMX_STRIP) forward_strip(a, &t, i, least(AMX_STRIP, n - i), j);
    }
    tile_amx_end();
    forward_end(job, &h, first, n, &t);
}

void attention_amx_forward(const struct attention_job *job) {
    struct amx_job a = attention_amx_job(job, job->a->max_q * job->group);
    threads_for(job->be->threads, job->a->sequences * job->K * a.job.tiles, forward_task, &a);
}
#else
void attention_amx_forward(const struct attention_job *job) { (void)job; }
#endif

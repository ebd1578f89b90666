/* Two passes as in attention_backward.c. In the second, products are taken transposed, (keys, rows): so p^T and ds^T
 * come out as the first factors of dv and dk, and lse and delta lie along the vectors. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention_amx.h"

#ifdef TILE_AMX

/* --- first pass: dq ----------------------------------------------------------------------------------------------- */

struct rows_tiles {
    bf16 *q, *dO;           // (rows, width)
    float *dq;              // (rows, width)
    float *lse, *delta;     // (rows); lse times log2(e)
    struct keys_seen *seen; // (rows)
    bf16 *lines;            // (TILE, width)
    bf16 *kT, *vT, *k;      // packed (width, TILE) twice, (TILE, width)
    float *scores, *dp;     // (AMX_STRIP, TILE)
    bf16 *ds;               // (AMX_STRIP, TILE)
};

static struct rows_tiles rows_tiles_in(const struct attention_job *job, int thread) {
    char *s = cpu_scratch(job->be, thread);
    int64_t row = job->width * (int64_t)sizeof(bf16);
    struct rows_tiles t;
    t.q = amx_take(&s, AMX_ROWS * row);
    t.dO = amx_take(&s, AMX_ROWS * row);
    t.dq = amx_take(&s, AMX_ROWS * 2 * row);
    t.lse = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.lse);
    t.delta = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.delta);
    t.seen = amx_take(&s, AMX_ROWS * (int64_t)sizeof *t.seen);
    t.lines = amx_take(&s, TILE * row);
    t.kT = amx_take(&s, TILE * row);
    t.vT = amx_take(&s, TILE * row);
    t.k = amx_take(&s, TILE * row);
    t.scores = amx_take(&s, AMX_STRIP * TILE * (int64_t)sizeof *t.scores);
    t.dp = amx_take(&s, AMX_STRIP * TILE * (int64_t)sizeof *t.dp);
    t.ds = amx_take(&s, AMX_STRIP * TILE * (int64_t)sizeof *t.ds);
    return t;
}

static void rows_begin(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                       struct rows_tiles *t) {
    int64_t whole = amx_whole(n, 16);
    attention_amx_load_rows(job, h, job->q, first, n, whole, t->q);
    attention_amx_load_rows(job, h, job->dO, first, n, whole, t->dO);
    memset(t->dq, 0, (size_t)(whole * job->width) * sizeof *t->dq);
    attention_delta(job, h, first, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = attention_row(job, h, first + i);
        t->lse[i] = job->lse[at] * LOG2_E, t->delta[i] = job->delta[at];
        t->seen[i] = attention_keys_of(job, h, (first + i) / job->group);
    }
}

/* ds of a row from its scores and dp. */
TILE_AMX static inline __attribute__((always_inline)) void
ds_row(const struct amx_job *a, const struct rows_tiles *t, int64_t row, int64_t i, uint64_t seen, const int vectors) {
    __m512 scale = _mm512_set1_ps(a->scale), lse = _mm512_set1_ps(t->lse[row]), delta = _mm512_set1_ps(t->delta[row]);
    __m512 ds[4];
    for (int j = 0; j < vectors; j++) {
        __m512 p = amx_exp2(_mm512_fmsub_ps(scale, _mm512_loadu_ps(t->scores + i * TILE + 16 * j), lse));
        __m512 dp = _mm512_loadu_ps(t->dp + i * TILE + 16 * j);
        ds[j] = _mm512_maskz_mul_ps((__mmask16)(seen >> 16 * j), p, _mm512_sub_ps(dp, delta));
    }
    for (int j = 0; j < vectors; j += 2)
        _mm512_storeu_si512(t->ds + i * TILE + 16 * j, (__m512i)_mm512_cvtne2ps_pbh(ds[j + 1], ds[j]));
}

TILE_AMX static void rows_strip(const struct amx_job *a, struct rows_tiles *t, int64_t row, int64_t n,
                                int64_t first_key) {
    int64_t low = t->seen[row].low, high = t->seen[row + n - 1].high, width = a->job.width, panel = AMX_SIDE * width;
    if (high <= first_key || low >= first_key + TILE) return;
    int64_t keys = amx_whole(least(high - first_key, TILE), AMX_SIDE), whole = amx_whole(n, 16);
    tile_amx_product(t->scores, TILE, t->q + row * width, width, t->kT, panel, whole, keys, width, false);
    tile_amx_product(t->dp, TILE, t->dO + row * width, width, t->vT, panel, whole, keys, width, false);
    for (int64_t i = 0; i < n; i++) {
        uint64_t seen = amx_seen(t->seen[row + i], first_key);
        if (keys == TILE)
            ds_row(a, t, row + i, i, seen, 4);
        else
            ds_row(a, t, row + i, i, seen, 2);
    }
    tile_amx_product(t->dq + row * width, width, t->ds, TILE, t->k, AMX_SIDE * TILE, whole, width, keys, true);
}

static void rows_task(void *arg, int64_t task, int thread) {
    const struct amx_job *a = arg;
    const struct attention_job *job = &a->job;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = (job->tiles - 1 - task % job->tiles) * a->rows; // the last see the most keys, and go first
    int64_t n = least(a->rows, h.queries * job->group - first), width = job->width;
    if (n <= 0) return;
    struct rows_tiles t = rows_tiles_in(job, thread);
    rows_begin(job, &h, first, n, &t);
    tile_amx_begin();
    for (int64_t j = t.seen[0].low / TILE * TILE; j < t.seen[n - 1].high; j += TILE) {
        int64_t keys = least(TILE, h.keys - j);
        attention_amx_load_keys(job, &h, job->v, j, keys, TILE, t.lines);
        tile_amx_pack_transposed(t.vT, t.lines, width, TILE, width);
        attention_amx_load_keys(job, &h, job->k, j, keys, TILE, t.lines);
        tile_amx_pack_transposed(t.kT, t.lines, width, TILE, width);
        tile_amx_pack(t.k, t.lines, width, TILE, width);
        for (int64_t i = 0; i < n; i += AMX_STRIP) rows_strip(a, &t, i, least(AMX_STRIP, n - i), j);
    }
    tile_amx_end();
    for (int64_t i = 0; i < n; i++)
        attention_amx_store(job, job->dq, attention_row(job, &h, first + i), t.dq + i * width, job->a->scale);
}

/* --- second pass: dk, dv ------------------------------------------------------------------------------------------ */

struct keys_tiles {
    bf16 *k, *v;             // (keys, width)
    float *dk, *dv;          // (keys, width)
    bf16 *lines;             // (TILE, width)
    bf16 *qT, *dOT, *q, *dO; // packed (width, TILE) twice, (TILE, width) twice
    float *scores, *dp;      // (AMX_STRIP, TILE): keys, rows
    bf16 *p, *ds;            // (AMX_STRIP, TILE): keys, rows
    float *lse, *delta;      // (TILE), of the rows; lse times log2(e)
    int32_t *low, *high;     // (TILE): the keys that a row sees, counted from the first of the block
};

static struct keys_tiles keys_tiles_in(const struct attention_job *job, int thread) {
    char *s = cpu_scratch(job->be, thread);
    int64_t row = job->width * (int64_t)sizeof(bf16), square = AMX_STRIP * TILE * (int64_t)sizeof(bf16);
    struct keys_tiles t;
    t.k = amx_take(&s, AMX_ROWS * row);
    t.v = amx_take(&s, AMX_ROWS * row);
    t.dk = amx_take(&s, AMX_ROWS * 2 * row);
    t.dv = amx_take(&s, AMX_ROWS * 2 * row);
    t.lines = amx_take(&s, TILE * row);
    t.qT = amx_take(&s, TILE * row);
    t.dOT = amx_take(&s, TILE * row);
    t.q = amx_take(&s, TILE * row);
    t.dO = amx_take(&s, TILE * row);
    t.scores = amx_take(&s, 2 * square);
    t.dp = amx_take(&s, 2 * square);
    t.p = amx_take(&s, square);
    t.ds = amx_take(&s, square);
    t.lse = amx_take(&s, TILE * (int64_t)sizeof *t.lse);
    t.delta = amx_take(&s, TILE * (int64_t)sizeof *t.delta);
    t.low = amx_take(&s, TILE * (int64_t)sizeof *t.low);
    t.high = amx_take(&s, TILE * (int64_t)sizeof *t.high);
    return t;
}

static void keys_begin(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                       struct keys_tiles *t) {
    int64_t whole = amx_whole(n, 16);
    size_t bytes = (size_t)(whole * job->width) * sizeof(float);
    attention_amx_load_keys(job, h, job->k, first, n, whole, t->k);
    attention_amx_load_keys(job, h, job->v, first, n, whole, t->v);
    memset(t->dk, 0, bytes);
    memset(t->dv, 0, bytes);
}

static int32_t within_block(int64_t key, int64_t first) {
    return key <= first ? 0 : (int32_t)least(key - first, AMX_ROWS);
}

/* Rows r .. r + n, packed; what is beyond n sees no key. first_key is that of the block. */
static void load_rows(const struct attention_job *job, const struct attention_head *h, int64_t r, int64_t n,
                      int64_t first_key, struct keys_tiles *t) {
    attention_amx_load_rows(job, h, job->q, r, n, TILE, t->lines);
    tile_amx_pack_transposed(t->qT, t->lines, job->width, TILE, job->width);
    tile_amx_pack(t->q, t->lines, job->width, TILE, job->width);
    attention_amx_load_rows(job, h, job->dO, r, n, TILE, t->lines);
    tile_amx_pack_transposed(t->dOT, t->lines, job->width, TILE, job->width);
    tile_amx_pack(t->dO, t->lines, job->width, TILE, job->width);
    for (int64_t i = 0; i < TILE; i++) {
        t->low[i] = t->high[i] = 0, t->lse[i] = t->delta[i] = 0;
        if (i >= n) continue;
        int64_t at = attention_row(job, h, r + i);
        struct keys_seen seen = attention_keys_of(job, h, (r + i) / job->group);
        t->low[i] = within_block(seen.low, first_key), t->high[i] = within_block(seen.high, first_key);
        t->lse[i] = job->lse[at] * LOG2_E, t->delta[i] = job->delta[at];
    }
}

/* p and ds of one key, of the block's number `number`, and all rows. */
TILE_AMX static inline void p_and_ds_row(const struct amx_job *a, const struct keys_tiles *t, int64_t number, int64_t i,
                                         int64_t rows) {
    __m512 scale = _mm512_set1_ps(a->scale);
    __m512i key = _mm512_set1_epi32((int)number);
    for (int64_t r = 0; r < rows; r += 32) {
        __m512 p[2], ds[2];
        for (int half = 0; half < 2; half++) {
            int64_t at = r + 16 * half;
            __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_loadu_si512(t->low + at), key) &
                             _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(t->high + at), key);
            __m512 score = _mm512_loadu_ps(t->scores + i * TILE + at), dp = _mm512_loadu_ps(t->dp + i * TILE + at);
            __m512 x = amx_exp2(_mm512_fmsub_ps(scale, score, _mm512_loadu_ps(t->lse + at)));
            p[half] = _mm512_maskz_mov_ps(seen, x);
            ds[half] = _mm512_maskz_mul_ps(seen, x, _mm512_sub_ps(dp, _mm512_loadu_ps(t->delta + at)));
        }
        _mm512_storeu_si512(t->p + i * TILE + r, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
        _mm512_storeu_si512(t->ds + i * TILE + r, (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0]));
    }
}

/* Keys key .. key + n of the block with rows r .. r + rows, which are packed. */
TILE_AMX static void keys_strip(const struct amx_job *a, const struct attention_head *h, struct keys_tiles *t,
                                int64_t first_key, int64_t key, int64_t n, int64_t r, int64_t rows) {
    const struct attention_job *job = &a->job;
    int64_t low, high, width = job->width, panel = AMX_SIDE * width;
    attention_queries_of(job, h, first_key + key, n, &low, &high);
    if (r + rows <= low * job->group || r >= high * job->group) return;
    int64_t whole = amx_whole(n, 16), padded = amx_whole(rows, AMX_SIDE);
    tile_amx_product(t->scores, TILE, t->k + key * width, width, t->qT, panel, whole, padded, width, false);
    tile_amx_product(t->dp, TILE, t->v + key * width, width, t->dOT, panel, whole, padded, width, false);
    for (int64_t i = 0; i < n; i++) p_and_ds_row(a, t, key + i, i, padded);
    tile_amx_product(t->dv + key * width, width, t->p, TILE, t->dO, AMX_SIDE * TILE, whole, width, padded, true);
    tile_amx_product(t->dk + key * width, width, t->ds, TILE, t->q, AMX_SIDE * TILE, whole, width, padded, true);
}

static void keys_task(void *arg, int64_t task, int thread) {
    const struct amx_job *a = arg;
    const struct attention_job *job = &a->job;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = task % job->tiles * a->rows, n = least(a->rows, h.keys - first), low, high;
    if (n <= 0) return;
    struct keys_tiles t = keys_tiles_in(job, thread);
    keys_begin(job, &h, first, n, &t);
    attention_queries_of(job, &h, first, n, &low, &high);
    tile_amx_begin();
    for (int64_t r = low * job->group / TILE * TILE; r < high * job->group; r += TILE) {
        int64_t rows = least(TILE, h.queries * job->group - r);
        load_rows(job, &h, r, rows, first, &t);
        for (int64_t j = 0; j < n; j += AMX_STRIP) keys_strip(a, &h, &t, first, j, least(AMX_STRIP, n - j), r, rows);
    }
    tile_amx_end();
    for (int64_t j = 0; j < n; j++) {
        int64_t at = (h.first_k + first + j) * job->K + h.head;
        attention_amx_store(job, job->dk, at, t.dk + j * job->width, job->a->scale);
        attention_amx_store(job, job->dv, at, t.dv + j * job->width, 1);
    }
}

void attention_amx_backward(const struct attention_job *job) {
    struct amx_job rows = attention_amx_job(job, job->a->max_q * job->group);
    threads_for(job->be->threads, job->a->sequences * job->K * rows.job.tiles, rows_task, &rows);
    struct amx_job keys = attention_amx_job(job, job->a->max_kv);
    threads_for(job->be->threads, job->a->sequences * job->K * keys.job.tiles, keys_task, &keys);
}
#else
void attention_amx_backward(const struct attention_job *job) { (void)job; }
#endif

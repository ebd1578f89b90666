/* Attention, forward: softmax(scale q k^T) v with the sum of exponentials kept relative to the largest score so far, so
 * that scores exist for one tile at a time. A task is one tile of rows of one (sequence, key head). */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_amx.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/tile.h"

/* --- how the work is cut ------------------------------------------------------------------------------------------ */

static bool offsets_fit(struct backend *be, const char *name, const struct tensor *offsets, int64_t rows,
                        int64_t longest) {
    const int64_t *at = offsets->data;
    for (int64_t s = 0; s + 1 < offsets->dim[0]; s++) {
        if (at[s] >= 0 && at[s] <= at[s + 1] && at[s + 1] <= rows && at[s + 1] - at[s] <= longest) continue;
        err_set(&be->err, ST_FAIL, "attention: sequence %lld has %s rows %lld .. %lld of %lld, wanted at most %lld",
                (long long)s, name, (long long)at[s], (long long)at[s + 1], (long long)rows, (long long)longest);
        return false;
    }
    return true;
}

bool attention_fits(struct attention_job *job) {
    job->H = job->q->dim[1], job->D = job->q->dim[2], job->K = job->k->dim[1];
    job->group = job->H / job->K;
    job->width = tasks_of(job->D, TILE_PAD) * TILE_PAD;
    return offsets_fit(job->be, "query", job->a->q_offsets, job->q->dim[0], job->a->max_q) &&
           offsets_fit(job->be, "key", job->a->kv_offsets, job->k->dim[0], job->a->max_kv);
}

struct attention_head attention_head_of(const struct attention_job *job, int64_t task) {
    int64_t s = task / job->tiles / job->K;
    const int64_t *q = (const int64_t *)job->a->q_offsets->data + s;
    const int64_t *k = (const int64_t *)job->a->kv_offsets->data + s;
    struct attention_head h = {q[0], q[1] - q[0], k[0], k[1] - k[0], task / job->tiles % job->K, 0};
    h.shift = h.keys - h.queries;
    return h;
}

struct keys_seen attention_keys_of(const struct attention_job *job, const struct attention_head *h, int64_t query) {
    int64_t p = query + h->shift, low = job->a->window > 0 ? p - job->a->window + 1 : 0;
    struct keys_seen seen = {low > 0 ? low : 0, job->a->causal ? least(p + 1, h->keys) : h->keys};
    if (seen.high < seen.low) seen.high = seen.low;
    return seen;
}

/* --- tiles -------------------------------------------------------------------------------------------------------- */

static void load(const struct attention_job *job, const struct tensor *t, int64_t at, float scale, float *to) {
    const float *from = floats_of(t, at * job->D, job->D, to);
    if (from != to || scale != 1.0f) {
#pragma omp simd
        for (int64_t d = 0; d < job->D; d++) to[d] = scale * from[d];
    }
    for (int64_t d = job->D; d < job->width; d++) to[d] = 0;
}

static void clear_rows(const struct attention_job *job, float *tile, int64_t n) {
    memset(tile + n * job->width, 0, (size_t)((TILE - n) * job->width) * sizeof *tile);
}

void attention_load_rows(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                         int64_t first, int64_t n, float scale, float *tile) {
    for (int64_t i = 0; i < n; i++) load(job, t, attention_row(job, h, first + i), scale, tile + i * job->width);
    clear_rows(job, tile, n);
}

void attention_load_keys(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                         int64_t first, int64_t n, float *tile) {
    for (int64_t i = 0; i < n; i++) load(job, t, (h->first_k + first + i) * job->K + h->head, 1, tile + i * job->width);
    clear_rows(job, tile, n);
}

void attention_mask(const struct attention_job *job, const struct attention_head *h, float *scores, int64_t first_row,
                    int64_t n, int64_t first_key, float value) {
    for (int64_t i = 0; i < n; i++) {
        struct keys_seen seen = attention_keys_of(job, h, (first_row + i) / job->group);
        for (int64_t j = 0; j < least(seen.low - first_key, TILE); j++) scores[i * TILE + j] = value;
        int64_t end = seen.high - first_key;
        for (int64_t j = end > 0 ? end : 0; j < TILE; j++) scores[i * TILE + j] = value;
    }
}

void attention_store(const struct attention_job *job, const struct tensor *t, int64_t at, const float *tile,
                     float factor) {
    float buffer[ATTENTION_MAX_HEAD];
    float *to = floats_place(t, at * job->D, buffer);
    for (int64_t d = 0; d < job->D; d++) to[d] = factor * tile[d];
    floats_store(t, at * job->D, job->D, to);
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

struct forward_tiles {
    float *q, *k, *v, *o;        // (TILE, width)
    float *kT;                   // (width, TILE)
    float *scores;               // (TILE, TILE)
    float most[TILE], sum[TILE]; // the largest score so far, the sum of exp(score - most)
};

static struct forward_tiles forward_tiles_in(const struct attention_job *job, int thread) {
    float *s = (float *)cpu_scratch(job->be, thread);
    int64_t size = TILE * job->width;
    struct forward_tiles t = {s, s + size, s + 2 * size, s + 3 * size, s + 4 * size, s + 5 * size, {0}, {0}};
    memset(t.o, 0, (size_t)size * sizeof *s);
    for (int i = 0; i < TILE; i++) t.most[i] = -INFINITY;
    return t;
}

/* Scores of a row become exp(score - most); what was summed before is scaled to the new most. */
static void softmax_row(struct forward_tiles *t, int64_t i, int64_t width) {
    float *x = t->scores + i * TILE, *o = t->o + i * width, most = t->most[i], sum = 0;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < TILE; j++) most = x[j] > most ? x[j] : most;
    float base = most > -INFINITY ? most : 0.0f; // a row that has seen no key yet
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < TILE; j++) {
        x[j] = attention_exp(x[j] - base);
        sum += x[j];
    }
    float keep = attention_exp(t->most[i] - base);
    t->sum[i] = t->sum[i] * keep + sum;
    t->most[i] = most;
    if (keep == 1.0f) return;
    for (int64_t d = 0; d < width; d++) o[d] *= keep;
}

static void forward_rows(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                         struct forward_tiles *t) {
    attention_load_rows(job, h, job->q, first, n, job->a->scale, t->q);
    int64_t low = attention_keys_of(job, h, first / job->group).low / TILE * TILE;
    int64_t high = attention_keys_of(job, h, (first + n - 1) / job->group).high;
    for (int64_t j = low; j < high; j += TILE) {
        int64_t keys = least(TILE, h->keys - j);
        attention_load_keys(job, h, job->k, j, keys, t->k);
        attention_load_keys(job, h, job->v, j, keys, t->v);
        tile_transpose(t->kT, TILE, t->k, job->width, TILE, job->width);
        tile_product(t->scores, TILE, t->q, job->width, 1, t->kT, TILE, n, TILE, job->D, false);
        attention_mask(job, h, t->scores, first, n, j, -INFINITY);
        for (int64_t i = 0; i < n; i++) softmax_row(t, i, job->width);
        tile_product(t->o, job->width, t->scores, TILE, 1, t->v, job->width, n, job->width, keys, true);
    }
}

static void forward_task(void *arg, int64_t task, int thread) {
    const struct attention_job *job = arg;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = task % job->tiles * TILE, n = least(TILE, h.queries * job->group - first);
    if (n <= 0) return;
    struct forward_tiles t = forward_tiles_in(job, thread);
    forward_rows(job, &h, first, n, &t);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = attention_row(job, &h, first + i);
        bool seen = t.most[i] > -INFINITY || t.sum[i] != 0; // no key: o = 0
        attention_store(job, job->o, at, t.o + i * job->width, seen ? 1.0f / t.sum[i] : 0.0f);
        if (job->lse) job->lse[at] = seen ? t.most[i] + logf(t.sum[i]) : 0.0f;
    }
}

void cpu_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                           const struct tensor *k, const struct tensor *v, const struct attention *a) {
    struct attention_job job = {.q = q, .k = k, .v = v, .o = o, .lse = lse ? lse->data : NULL, .a = a, .be = be};
    if (!attention_fits(&job)) return;
    if (attention_amx_takes(&job)) {
        attention_amx_forward(&job);
        return;
    }
    job.tiles = tasks_of(a->max_q * job.group, TILE);
    threads_for(be->threads, a->sequences * job.K * job.tiles, forward_task, &job);
}

/* Attention, backward, with P = exp(scores - lse) computed again, tile by tile:
 *   dP = dO v^T,   dS = P (dP - delta),   delta = sum(dO o),   dq = scale dS k,   dk = scale dS^T q,   dv = P^T dO.
 * Two passes, so that no sum crosses tasks: a task of the first owns a tile of rows (dq, delta), one of the second a
 * tile of keys (dk, dv). The scores are computed in both; that costs less than the memory to keep dq for. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/tile.h"

struct backward_tiles {
    float *q, *dO, *k, *v;        // (TILE, width); q times scale
    float *kT, *vT;               // (width, TILE)
    float *dq, *dk, *dv;          // (TILE, width)
    float *p, *ds;                // (TILE, TILE)
    float lse[TILE], delta[TILE]; // of the rows
};

static struct backward_tiles backward_tiles_in(const struct attention_job *job, int thread) {
    float *s = (float *)cpu_scratch(job->be, thread);
    int64_t size = TILE * job->width;
    struct backward_tiles t = {.q = s,
                               .dO = s + size,
                               .k = s + 2 * size,
                               .v = s + 3 * size,
                               .kT = s + 4 * size,
                               .vT = s + 5 * size,
                               .dq = s + 6 * size,
                               .dk = s + 6 * size, // with dv after it; dq belongs to the other pass
                               .dv = s + 7 * size,
                               .p = s + 8 * size,
                               .ds = s + 8 * size + TILE * TILE};
    memset(t.dk, 0, (size_t)(2 * size) * sizeof *s);
    return t;
}

static void load_rows(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                      struct backward_tiles *t) {
    attention_load_rows(job, h, job->q, first, n, job->a->scale, t->q);
    attention_load_rows(job, h, job->dO, first, n, 1, t->dO);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = attention_row(job, h, first + i);
        t->lse[i] = job->lse[at], t->delta[i] = job->delta[at];
    }
}

static void load_keys(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                      struct backward_tiles *t) {
    attention_load_keys(job, h, job->k, first, n, t->k);
    attention_load_keys(job, h, job->v, first, n, t->v);
    tile_transpose(t->kT, TILE, t->k, job->width, TILE, job->width);
    tile_transpose(t->vT, TILE, t->v, job->width, TILE, job->width);
}

/* p and ds of rows first_row .. + n and the keys from first_key on, from tiles that are loaded. */
static void gradient_of_scores(const struct attention_job *job, const struct attention_head *h, int64_t first_row,
                               int64_t n, int64_t first_key, struct backward_tiles *t) {
    tile_product(t->p, TILE, t->q, job->width, 1, t->kT, TILE, n, TILE, job->D, false);
    tile_product(t->ds, TILE, t->dO, job->width, 1, t->vT, TILE, n, TILE, job->D, false);
    attention_mask(job, h, t->p, first_row, n, first_key, -INFINITY);
    for (int64_t i = 0; i < n; i++) {
        float *p = t->p + i * TILE, *ds = t->ds + i * TILE, lse = t->lse[i], delta = t->delta[i];
#pragma omp simd
        for (int j = 0; j < TILE; j++) {
            p[j] = attention_exp(p[j] - lse);
            ds[j] = p[j] * (ds[j] - delta);
        }
    }
}

/* --- first pass: delta, dq --------------------------------------------------------------------------------------- */

void attention_delta(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n) {
    for (int64_t i = first; i < first + n; i++) {
        int64_t at = attention_row(job, h, i);
        float o_buffer[ATTENTION_MAX_HEAD], dO_buffer[ATTENTION_MAX_HEAD], sum = 0;
        const float *o = floats_of(job->o, at * job->D, job->D, o_buffer);
        const float *dO = floats_of(job->dO, at * job->D, job->D, dO_buffer);
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < job->D; d++) sum += o[d] * dO[d];
        job->delta[at] = sum;
    }
}

static void rows_task(void *arg, int64_t task, int thread) {
    const struct attention_job *job = arg;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = task % job->tiles * TILE, n = least(TILE, h.queries * job->group - first);
    if (n <= 0) return;
    struct backward_tiles t = backward_tiles_in(job, thread);
    attention_delta(job, &h, first, n);
    load_rows(job, &h, first, n, &t);
    int64_t low = attention_keys_of(job, &h, first / job->group).low / TILE * TILE;
    int64_t high = attention_keys_of(job, &h, (first + n - 1) / job->group).high;
    for (int64_t j = low; j < high; j += TILE) {
        int64_t keys = least(TILE, h.keys - j);
        load_keys(job, &h, j, keys, &t);
        gradient_of_scores(job, &h, first, n, j, &t);
        tile_product(t.dq, job->width, t.ds, TILE, 1, t.k, job->width, n, job->width, keys, true);
    }
    for (int64_t i = 0; i < n; i++)
        attention_store(job, job->dq, attention_row(job, &h, first + i), t.dq + i * job->width, job->a->scale);
}

/* --- second pass: dk, dv ----------------------------------------------------------------------------------------- */

void attention_queries_of(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                          int64_t *low, int64_t *high) {
    *low = job->a->causal ? first - h->shift : 0;
    *high = job->a->window > 0 ? least(first + n - 1 + job->a->window - h->shift, h->queries) : h->queries;
    if (*low < 0) *low = 0;
}

static void keys_task(void *arg, int64_t task, int thread) {
    const struct attention_job *job = arg;
    struct attention_head h = attention_head_of(job, task);
    int64_t first = task % job->tiles * TILE, keys = least(TILE, h.keys - first), low, high;
    if (keys <= 0) return;
    struct backward_tiles t = backward_tiles_in(job, thread);
    load_keys(job, &h, first, keys, &t);
    attention_queries_of(job, &h, first, keys, &low, &high);
    for (int64_t r = low * job->group / TILE * TILE; r < high * job->group; r += TILE) {
        int64_t n = least(TILE, h.queries * job->group - r);
        load_rows(job, &h, r, n, &t);
        gradient_of_scores(job, &h, r, n, first, &t);
        tile_product(t.dv, job->width, t.p, 1, TILE, t.dO, job->width, keys, job->width, n, true);
        tile_product(t.dk, job->width, t.ds, 1, TILE, t.q, job->width, keys, job->width, n, true);
    }
    for (int64_t j = 0; j < keys; j++) {
        int64_t at = (h.first_k + first + j) * job->K + h.head;
        attention_store(job, job->dk, at, t.dk + j * job->width, 1);
        attention_store(job, job->dv, at, t.dv + j * job->width, 1);
    }
}

void cpu_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                            const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                            const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                            const struct tensor *k, const struct tensor *v, const struct attention *a) {
    struct attention_job job = {.q = q,
                                .k = k,
                                .v = v,
                                .o = o,
                                .dO = dO,
                                .dq = dq,
                                .dk = dk,
                                .dv = dv,
                                .lse = lse->data,
                                .delta = delta->data,
                                .a = a,
                                .be = be};
    if (!attention_fits(&job)) return;
    if (attention_amx_takes(&job)) {
        attention_amx_backward(&job);
        return;
    }
    job.tiles = tasks_of(a->max_q * job.group, TILE);
    threads_for(be->threads, a->sequences * job.K * job.tiles, rows_task, &job);
    job.tiles = tasks_of(a->max_kv, TILE);
    threads_for(be->threads, a->sequences * job.K * job.tiles, keys_task, &job);
}

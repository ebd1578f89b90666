/* What forward and backward of attention share: how the work is cut and which keys a query sees.
 *
 * Query heads that read the same key head are treated as more queries: a sequence of `queries` positions has
 * queries * group rows for one key head, row r being position r / group of head r % group. So a key is loaded once for
 * the whole group, also when a single position is decoded. Tiles are TILE rows by TILE keys, in F32. */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/ops_cpu.h"
#include "kernels/cpu/vecmath.h"

enum { TILE = 64 };

struct attention_job {
    const struct tensor *q, *k, *v, *o, *dO, *dq, *dk, *dv; // (N,H,D) or (N,K,D); NULL where not needed
    float *lse, *delta;                                     // (N,H)
    const struct attention *a;
    int64_t H, K, D, group; // group: H / K
    int64_t width;          // D, padded to TILE_PAD: a row of a tile
    int64_t tiles;          // a sequence and key head has at most so many
    struct backend *be;
};

/* One sequence for one key head. */
struct attention_head {
    int64_t first_q, queries, first_k, keys;
    int64_t head;  // the key head
    int64_t shift; // query i stands at key position i + shift
};

/* False, with be->err set, when the offsets do not fit the tensors. */
bool attention_fits(struct attention_job *job);

struct attention_head attention_head_of(const struct attention_job *job, int64_t task);

/* The keys [low, high) that a position sees. */
struct keys_seen {
    int64_t low, high;
};
struct keys_seen attention_keys_of(const struct attention_job *job, const struct attention_head *h, int64_t query);

/* e^x for x <= 0; 0 where that would be subnormal, because such results take a hundred times as long, and masked scores
 * all lead there. */
static inline __attribute__((always_inline)) float attention_exp(float x) {
    const float low = -87.0f;
    float y = vm_exp(x < low ? low : x);
    return x < low ? 0.0f : y;
}

/* Where row r of a head begins in q, o, dq, counted in heads: (position, head). */
static inline int64_t attention_row(const struct attention_job *job, const struct attention_head *h, int64_t r) {
    return (h->first_q + r / job->group) * job->H + h->head * job->group + r % job->group;
}

/* tile (TILE, width) = scale * rows first .. first + n of t, an (N,H,D) tensor; zeros beyond n and D. */
void attention_load_rows(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                         int64_t first, int64_t n, float scale, float *tile);

/* tile (TILE, width) = keys first .. first + n of t, an (N,K,D) tensor; zeros beyond n and D. */
void attention_load_keys(const struct attention_job *job, const struct attention_head *h, const struct tensor *t,
                         int64_t first, int64_t n, float *tile);

/* Columns of scores (n,TILE), which are keys first_key .. first_key + TILE, become `value` where a row does not see
 * them. */
void attention_mask(const struct attention_job *job, const struct attention_head *h, float *scores, int64_t first_row,
                    int64_t n, int64_t first_key, float value);

/* delta = sum(dO o) of rows first .. first + n. */
void attention_delta(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n);

/* The positions [*low, *high) that may see one of the keys first .. first + n. */
void attention_queries_of(const struct attention_job *job, const struct attention_head *h, int64_t first, int64_t n,
                          int64_t *low, int64_t *high);

/* Element d of row t[at] = factor * tile[d]. */
void attention_store(const struct attention_job *job, const struct tensor *t, int64_t at, const float *tile,
                     float factor);

#endif

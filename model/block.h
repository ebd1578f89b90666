/* One decoder layer, as in Llama, Mistral and Qwen2: RMSNorm, grouped-query attention with rotary positions, RMSNorm,
 * gated feed-forward; both halves around residual connections. Forward and backward mirror each other line by line.
 * Persimmon's layer (persimmon.h) has the same interface and takes its place where the configuration says so.
 *
 * N rows of all sequences end to end, C channels, H query heads, K key-value heads of size D, F ffn. */
#ifndef MODEL_BLOCK_H
#define MODEL_BLOCK_H

#include "model/config.h"
#include "model/linear.h"

struct block {
    struct tensor norm1, gnorm1;  // (C)
    struct linear q, k, v, o;     // (H*D,C) (K*D,C) (K*D,C) (C,H*D)
    struct tensor norm2, gnorm2;  // (C)
    struct linear gate, up, down; // (F,C) (F,C) (C,F)
    int64_t window;               // keys seen; 0: all

    struct tensor bias1, gbias1, bias2, gbias2;     // (C), Persimmon
    struct linear qkv;                              // (H*3*D,C), Persimmon: instead of q, k and v
    struct tensor q_norm, gq_norm, q_bias, gq_bias; // (D), Persimmon
    struct tensor k_norm, gk_norm, k_bias, gk_bias; // (D), Persimmon
};

/* How much of a layer is kept between forward and backward. */
enum keep {
    KEEP_ALL,   // everything
    KEEP_SMART, // all but norms and the gated product, which cost little to make again
    KEEP_INPUT, // the input only: the layer runs forward again
    KEEP_HOST,  // the same, and the input waits on the host
};

struct block_acts {
    struct tensor norm1, rstd1;    // (N,C) (N)
    struct tensor q;               // (N,H,D), rotated
    struct tensor k, v;            // (N,K,D), rotated; rows of keys and values that this pass adds
    struct tensor keys, values;    // (all,K,D) that attention sees; k and v themselves without a cache
    struct tensor attended, lse;   // (N,H,D) (N,H)
    struct tensor middle;          // (N,C) after the first residual
    struct tensor norm2, rstd2;    // (N,C) (N)
    struct tensor gate, up, gated; // (N,F)
    struct linear_acts lq, lk, lv, lo, lgate, lup, ldown;
    struct tensor mean1, mean2;                   // (N), Persimmon
    struct tensor raw_q, raw_k;                   // (N*H,D), Persimmon: before their norms
    struct tensor q_mean, q_rstd, k_mean, k_rstd; // (N*H), Persimmon
    struct linear_acts lqkv;
    bool cheap_lost; // KEEP_SMART: norm1, norm2 and gated lie in memory that layers share
};

/* What all layers of a pass have in common. */
struct sequence {
    struct tensor positions;    // (N) I32
    const struct tensor *rope;  // (2,P,D/2) F32
    const struct tensor *parts; // [3] of (all N*H) I32, Persimmon: rows of queries, keys, values in (N*H*3,D)
    struct attention attention; // offsets and lengths; the window is the layer's
};

/* Memory that KEEP_SMART layers share. */
struct block_shared {
    struct tensor norm1, norm2; // (N,C)
    struct tensor gated;        // (N,F)
};
void block_shared_layout(struct block_shared *s, struct arena *m, const struct text_config *c, int64_t N,
                         enum dtype act);

/* shared NULL: keeps everything of its own. A cache (keys and values with rows to come) replaces k and v afterwards. */
void block_acts_layout(struct block_acts *a, struct arena *m, const struct block *b, const struct text_config *c,
                       int64_t N, enum dtype act, const struct block_shared *shared);

/* y (N,C) from x (N,C); y may be x when nothing is kept, and NULL where only what backward wants is asked for. */
void block_forward(const struct pass *p, struct block_acts *a, const struct tensor *y, const struct tensor *x,
                   const struct block *b, const struct text_config *c, const struct sequence *s);

/* dx (N,C) holds the gradient of y on entry and that of x on return. needs_dx false: the gradient of x is not wanted
 * and dx is left undefined. */
void block_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                    const struct tensor *x, const struct block *b, const struct text_config *c,
                    const struct sequence *s);

/* Calls f for each linear layer that the block has. */
void block_linears(struct block *b, void (*f)(struct linear *l, void *arg), void *arg);
bool block_is_trained(const struct block *b);

#endif

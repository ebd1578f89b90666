/* One decoder layer of Persimmon, behind the interface of block.h: LayerNorms with biases, one linear layer for
 * queries, keys and values, whose outputs lie head by head (H,3,D), a LayerNorm over each head of queries and of keys,
 * rotary positions on the first numbers of a head, a feed-forward of squared ReLU without a gate; biases everywhere. */
#ifndef MODEL_PERSIMMON_H
#define MODEL_PERSIMMON_H

#include "model/block.h"

void persimmon_acts_layout(struct block_acts *a, struct arena *m, const struct block *b, const struct text_config *c,
                           int64_t N, enum dtype act, const struct block_shared *shared);
void persimmon_forward(const struct pass *p, struct block_acts *a, const struct tensor *y, const struct tensor *x,
                       const struct block *b, const struct text_config *c, const struct sequence *s);
void persimmon_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                        const struct tensor *x, const struct block *b, const struct text_config *c,
                        const struct sequence *s);

#endif

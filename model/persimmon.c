#include "model/persimmon.h"

#include "kernels/ops.h"

enum { QUERIES, KEYS, VALUES };

void persimmon_acts_layout(struct block_acts *a, struct arena *m, const struct block *b, const struct text_config *c,
                           int64_t N, enum dtype act, const struct block_shared *shared) {
    int64_t C = c->dim, H = c->heads, D = c->head_dim, F = c->ffn;
    a->norm1 = shared ? shared->norm1 : arena_tensor2(m, act, N, C);
    a->mean1 = arena_tensor1(m, F32, N);
    a->rstd1 = arena_tensor1(m, F32, N);
    a->raw_q = arena_tensor2(m, act, N * H, D);
    a->raw_k = arena_tensor2(m, act, N * H, D);
    a->q_mean = arena_tensor1(m, F32, N * H);
    a->q_rstd = arena_tensor1(m, F32, N * H);
    a->k_mean = arena_tensor1(m, F32, N * H);
    a->k_rstd = arena_tensor1(m, F32, N * H);
    a->q = arena_tensor3(m, act, N, H, D);
    a->k = arena_tensor3(m, act, N, H, D);
    a->v = arena_tensor3(m, act, N, H, D);
    a->keys = a->k;
    a->values = a->v;
    a->attended = arena_tensor3(m, act, N, H, D);
    a->lse = arena_tensor2(m, F32, N, H);
    a->middle = arena_tensor2(m, act, N, C);
    a->norm2 = shared ? shared->norm2 : arena_tensor2(m, act, N, C);
    a->mean2 = arena_tensor1(m, F32, N);
    a->rstd2 = arena_tensor1(m, F32, N);
    a->up = arena_tensor2(m, act, N, F);
    a->gated = shared ? shared->gated : arena_tensor2(m, act, N, F);
    linear_acts_layout(&a->lqkv, m, &b->qkv, N, act);
    linear_acts_layout(&a->lo, m, &b->o, N, act);
    linear_acts_layout(&a->lup, m, &b->up, N, act);
    linear_acts_layout(&a->ldown, m, &b->down, N, act);
    a->cheap_lost = shared != NULL;
}

/* (N,H,D) as a linear layer sees it, and as one row a head. */
static struct tensor flat(const struct tensor *t) { return tensor_as2(t, t->dim[0], t->dim[1] * t->dim[2]); }
static struct tensor by_head(const struct tensor *t) { return tensor_as2(t, t->dim[0] * t->dim[1], t->dim[2]); }

/* Where the rows of one part lie among those of the fused output, (N*H*3,D). */
static struct tensor part_rows(const struct sequence *s, int part, int64_t rows) {
    return tensor_rows(&s->parts[part], 0, rows);
}

static struct attention attention_of(const struct block *b, const struct sequence *s) {
    struct attention a = s->attention;
    a.window = b->window;
    return a;
}

/* raw_q, raw_k and v from the fused layer's output, which is not kept. */
static void split_forward(const struct pass *p, struct block_acts *a, const struct block *b,
                          const struct text_config *c, const struct sequence *s) {
    struct backend *be = p->be;
    int64_t N = a->norm1.dim[0], H = c->heads, D = c->head_dim;
    size_t mark = p->scratch->used;
    struct tensor fused = arena_tensor2(p->scratch, p->act, N, H * 3 * D), rows = tensor_as2(&fused, N * H * 3, D);
    struct tensor queries = part_rows(s, QUERIES, N * H), keys = part_rows(s, KEYS, N * H);
    struct tensor values = part_rows(s, VALUES, N * H), v = by_head(&a->v);
    linear_forward(p, &a->lqkv, &fused, &a->norm1, &b->qkv);
    op_gather_rows(be, &a->raw_q, &rows, &queries);
    op_gather_rows(be, &a->raw_k, &rows, &keys);
    op_gather_rows(be, &v, &rows, &values);
    p->scratch->used = mark;
}

void persimmon_forward(const struct pass *p, struct block_acts *a, const struct tensor *y, const struct tensor *x,
                       const struct block *b, const struct text_config *c, const struct sequence *s) {
    struct backend *be = p->be;
    struct tensor q = by_head(&a->q), k = by_head(&a->k), attended = flat(&a->attended);
    struct attention attention = attention_of(b, s);

    op_layernorm_forward(be, &a->norm1, &a->mean1, &a->rstd1, x, &b->norm1, &b->bias1, c->eps);      // 1
    split_forward(p, a, b, c, s);                                                                    // 2
    op_layernorm_forward(be, &q, &a->q_mean, &a->q_rstd, &a->raw_q, &b->q_norm, &b->q_bias, c->eps); // 3
    op_layernorm_forward(be, &k, &a->k_mean, &a->k_rstd, &a->raw_k, &b->k_norm, &b->k_bias, c->eps); // 4
    op_rope(be, &a->q, s->rope, &s->positions, 1);                                                   // 5
    op_rope(be, &a->k, s->rope, &s->positions, 1);                                                   // 6
    op_attention_forward(be, &a->attended, &a->lse, &a->q, &a->keys, &a->values, &attention);        // 7
    linear_forward(p, &a->lo, &a->middle, &attended, &b->o);                                         // 8
    op_add(be, &a->middle, &a->middle, x);                                                           // 9

    op_layernorm_forward(be, &a->norm2, &a->mean2, &a->rstd2, &a->middle, &b->norm2, &b->bias2, c->eps); // 10
    linear_forward(p, &a->lup, &a->up, &a->norm2, &b->up);                                               // 11
    op_act_forward(be, &a->gated, &a->up, c->act);                                                       // 12
    if (!y) {
        linear_forward_acts(p, &a->ldown, &a->gated, &b->down);
        return;
    }
    linear_forward(p, &a->ldown, y, &a->gated, &b->down); // 13
    op_add(be, y, y, &a->middle);                         // 14
}

/* KEEP_SMART: what the layers that ran since have written over. */
static void make_cheap_again(const struct pass *p, struct block_acts *a, const struct tensor *x, const struct block *b,
                             const struct text_config *c) {
    op_layernorm_forward(p->be, &a->norm1, &a->mean1, &a->rstd1, x, &b->norm1, &b->bias1, c->eps);
    op_layernorm_forward(p->be, &a->norm2, &a->mean2, &a->rstd2, &a->middle, &b->norm2, &b->bias2, c->eps);
    op_act_forward(p->be, &a->gated, &a->up, c->act);
}

static const struct tensor *or_null(const struct tensor *g) { return g->data ? g : NULL; }

/* Lines 14 to 10, backwards. dx: gradient of y -> gradient of middle. gated becomes its own gradient, then up's. */
static void ffn_backward(const struct pass *p, const struct tensor *dx, struct block_acts *a, const struct block *b,
                         const struct text_config *c) {
    struct backend *be = p->be;
    size_t mark = p->scratch->used;
    const struct tensor *dgated = &a->gated;
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, dx->dim[0], c->dim);
    linear_backward(p, dgated, 0, dx, &a->gated, &a->ldown, &b->down); // 13'
    op_act_backward(be, dgated, dgated, &a->up, c->act);               // 12'
    linear_backward(p, &dnorm, 0, dgated, &a->norm2, &a->lup, &b->up); // 11'
    op_layernorm_backward_add(be, dx, or_null(&b->gnorm2), or_null(&b->gbias2), &dnorm, &a->middle, &a->mean2,
                              &a->rstd2, &b->norm2); // 10'
    p->scratch->used = mark;
}

/* Line 2, backwards, after 3 and 4: gradients of queries, keys and values, each (N,H,D), to that of the fused output
 * (N,H*3*D). */
static void split_backward(const struct pass *p, const struct tensor *dfused, const struct tensor *dq,
                           const struct tensor *dk, const struct tensor *dv, const struct block_acts *a,
                           const struct block *b, const struct sequence *s) {
    struct backend *be = p->be;
    int64_t rows = a->raw_q.dim[0], D = a->raw_q.dim[1];
    size_t mark = p->scratch->used;
    struct tensor draw = arena_tensor2(p->scratch, p->act, rows, D), all = tensor_as2(dfused, rows * 3, D);
    struct tensor queries = part_rows(s, QUERIES, rows), keys = part_rows(s, KEYS, rows);
    struct tensor values = part_rows(s, VALUES, rows);
    struct tensor flat_dq = by_head(dq), flat_dk = by_head(dk), flat_dv = by_head(dv);
    op_scatter_rows(be, &all, &flat_dv, &values);
    op_zero(be, &draw);
    op_layernorm_backward_add(be, &draw, or_null(&b->gk_norm), or_null(&b->gk_bias), &flat_dk, &a->raw_k, &a->k_mean,
                              &a->k_rstd, &b->k_norm); // 4'
    op_scatter_rows(be, &all, &draw, &keys);
    op_zero(be, &draw);
    op_layernorm_backward_add(be, &draw, or_null(&b->gq_norm), or_null(&b->gq_bias), &flat_dq, &a->raw_q, &a->q_mean,
                              &a->q_rstd, &b->q_norm); // 3'
    op_scatter_rows(be, &all, &draw, &queries);
    p->scratch->used = mark;
}

/* Lines 9 to 1, backwards. dx: gradient of middle -> gradient of x. */
static void attention_half_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                                    const struct tensor *x, const struct block *b, const struct text_config *c,
                                    const struct sequence *s) {
    struct backend *be = p->be;
    int64_t N = dx->dim[0], H = c->heads, D = c->head_dim;
    size_t mark = p->scratch->used;
    struct tensor dattended = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dq = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dk = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dv = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dfused = arena_tensor2(p->scratch, dx->type, N, H * 3 * D);
    struct tensor delta = arena_tensor2(p->scratch, F32, N, H);
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, N, c->dim);
    struct tensor flat_attended = flat(&a->attended), flat_dattended = flat(&dattended);
    struct attention attention = attention_of(b, s);
    bool norm = needs_dx || b->gnorm1.data || b->gbias1.data; // layer 0 of a frozen embedding needs none of them

    linear_backward(p, &flat_dattended, 0, dx, &flat_attended, &a->lo, &b->o); // 8'
    op_attention_backward(be, &dq, &dk, &dv, &delta, &dattended, &a->attended, &a->lse, &a->q, &a->keys, &a->values,
                          &attention);                                                  // 7'
    op_rope(be, &dk, s->rope, &s->positions, -1);                                       // 6'
    op_rope(be, &dq, s->rope, &s->positions, -1);                                       // 5'
    split_backward(p, &dfused, &dq, &dk, &dv, a, b, s);                                 // 4' 3' 2'
    linear_backward(p, norm ? &dnorm : NULL, 0, &dfused, &a->norm1, &a->lqkv, &b->qkv); // 2'
    if (norm)
        op_layernorm_backward_add(be, dx, or_null(&b->gnorm1), or_null(&b->gbias1), &dnorm, x, &a->mean1, &a->rstd1,
                                  &b->norm1); // 1'
    p->scratch->used = mark;
}

void persimmon_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                        const struct tensor *x, const struct block *b, const struct text_config *c,
                        const struct sequence *s) {
    if (a->cheap_lost) make_cheap_again(p, a, x, b, c);
    ffn_backward(p, dx, a, b, c);
    attention_half_backward(p, dx, needs_dx, a, x, b, c, s);
}

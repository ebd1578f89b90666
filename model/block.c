#include "model/block.h"

#include "kernels/ops.h"
#include "model/persimmon.h"

void block_shared_layout(struct block_shared *s, struct arena *m, const struct text_config *c, int64_t N,
                         enum dtype act) {
    s->norm1 = arena_tensor2(m, act, N, c->dim);
    s->norm2 = arena_tensor2(m, act, N, c->dim);
    s->gated = arena_tensor2(m, act, N, c->ffn);
}

void block_acts_layout(struct block_acts *a, struct arena *m, const struct block *b, const struct text_config *c,
                       int64_t N, enum dtype act, const struct block_shared *shared) {
    int64_t C = c->dim, H = c->heads, K = c->kv_heads, D = c->head_dim, F = c->ffn;
    if (c->persimmon) {
        persimmon_acts_layout(a, m, b, c, N, act, shared);
        return;
    }
    a->norm1 = shared ? shared->norm1 : arena_tensor2(m, act, N, C);
    a->rstd1 = arena_tensor1(m, F32, N);
    a->q = arena_tensor3(m, act, N, H, D);
    a->k = arena_tensor3(m, act, N, K, D);
    a->v = arena_tensor3(m, act, N, K, D);
    a->keys = a->k;
    a->values = a->v;
    a->attended = arena_tensor3(m, act, N, H, D);
    a->lse = arena_tensor2(m, F32, N, H);
    a->middle = arena_tensor2(m, act, N, C);
    a->norm2 = shared ? shared->norm2 : arena_tensor2(m, act, N, C);
    a->rstd2 = arena_tensor1(m, F32, N);
    a->gate = arena_tensor2(m, act, N, F);
    a->up = arena_tensor2(m, act, N, F);
    a->gated = shared ? shared->gated : arena_tensor2(m, act, N, F);
    linear_acts_layout(&a->lq, m, &b->q, N, act);
    linear_acts_layout(&a->lk, m, &b->k, N, act);
    linear_acts_layout(&a->lv, m, &b->v, N, act);
    linear_acts_layout(&a->lo, m, &b->o, N, act);
    linear_acts_layout(&a->lgate, m, &b->gate, N, act);
    linear_acts_layout(&a->lup, m, &b->up, N, act);
    linear_acts_layout(&a->ldown, m, &b->down, N, act);
    a->cheap_lost = shared != NULL;
}

/* A (N,heads,D) tensor as the (N,heads*D) that a linear layer sees. */
static struct tensor flat(const struct tensor *t) { return tensor_as2(t, t->dim[0], t->dim[1] * t->dim[2]); }

static struct attention attention_of(const struct block *b, const struct sequence *s) {
    struct attention a = s->attention;
    a.window = b->window;
    return a;
}

void block_forward(const struct pass *p, struct block_acts *a, const struct tensor *y, const struct tensor *x,
                   const struct block *b, const struct text_config *c, const struct sequence *s) {
    if (c->persimmon) {
        persimmon_forward(p, a, y, x, b, c, s);
        return;
    }
    struct backend *be = p->be;
    struct tensor q = flat(&a->q), k = flat(&a->k), v = flat(&a->v), attended = flat(&a->attended);
    struct attention attention = attention_of(b, s);

    op_rmsnorm_forward(be, &a->norm1, &a->rstd1, x, &b->norm1, c->eps);                       // 1
    linear_forward(p, &a->lq, &q, &a->norm1, &b->q);                                          // 2
    linear_forward(p, &a->lk, &k, &a->norm1, &b->k);                                          // 3
    linear_forward(p, &a->lv, &v, &a->norm1, &b->v);                                          // 4
    op_rope(be, &a->q, s->rope, &s->positions, 1);                                            // 5
    op_rope(be, &a->k, s->rope, &s->positions, 1);                                            // 6
    op_attention_forward(be, &a->attended, &a->lse, &a->q, &a->keys, &a->values, &attention); // 7
    linear_forward(p, &a->lo, &a->middle, &attended, &b->o);                                  // 8
    op_add(be, &a->middle, &a->middle, x);                                                    // 9

    op_rmsnorm_forward(be, &a->norm2, &a->rstd2, &a->middle, &b->norm2, c->eps); // 10
    linear_forward(p, &a->lgate, &a->gate, &a->norm2, &b->gate);                 // 11
    linear_forward(p, &a->lup, &a->up, &a->norm2, &b->up);                       // 12
    op_glu_forward(be, &a->gated, &a->gate, &a->up, c->act);                     // 13
    if (!y) {
        linear_forward_acts(p, &a->ldown, &a->gated, &b->down);
        return;
    }
    linear_forward(p, &a->ldown, y, &a->gated, &b->down); // 14
    op_add(be, y, y, &a->middle);                         // 15
}

/* KEEP_SMART: what the layers that ran since have written over. */
static void make_cheap_again(const struct pass *p, struct block_acts *a, const struct tensor *x, const struct block *b,
                             const struct text_config *c) {
    op_rmsnorm_forward(p->be, &a->norm1, &a->rstd1, x, &b->norm1, c->eps);
    op_rmsnorm_forward(p->be, &a->norm2, &a->rstd2, &a->middle, &b->norm2, c->eps);
    op_glu_forward(p->be, &a->gated, &a->gate, &a->up, c->act);
}

static const struct tensor *or_null(const struct tensor *g) { return g->data ? g : NULL; }

/* Lines 15 to 10, backwards. dx: gradient of y -> gradient of middle. gate, up and gated become their own gradients. */
static void ffn_backward(const struct pass *p, const struct tensor *dx, struct block_acts *a, const struct block *b,
                         const struct text_config *c) {
    struct backend *be = p->be;
    size_t mark = p->scratch->used;
    const struct tensor *dgated = &a->gated;
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, dx->dim[0], c->dim);
    linear_backward(p, dgated, 0, dx, &a->gated, &a->ldown, &b->down);                              // 14'
    op_glu_backward(be, &a->gate, &a->up, dgated, &a->gate, &a->up, c->act);                        // 13'
    linear_backward(p, &dnorm, 0, &a->up, &a->norm2, &a->lup, &b->up);                              // 12'
    linear_backward(p, &dnorm, 1, &a->gate, &a->norm2, &a->lgate, &b->gate);                        // 11'
    op_rmsnorm_backward_add(be, dx, or_null(&b->gnorm2), &dnorm, &a->middle, &a->rstd2, &b->norm2); // 10'
    p->scratch->used = mark;
}

/* Lines 9 to 1, backwards. dx: gradient of middle -> gradient of x. */
static void attention_half_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                                    const struct tensor *x, const struct block *b, const struct text_config *c,
                                    const struct sequence *s) {
    struct backend *be = p->be;
    int64_t N = dx->dim[0], H = c->heads, K = c->kv_heads, D = c->head_dim;
    size_t mark = p->scratch->used;
    struct tensor dattended = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dq = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dk = arena_tensor3(p->scratch, dx->type, N, K, D);
    struct tensor dv = arena_tensor3(p->scratch, dx->type, N, K, D);
    struct tensor delta = arena_tensor2(p->scratch, F32, N, H);
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, N, c->dim);
    struct tensor flat_attended = flat(&a->attended), flat_dattended = flat(&dattended);
    struct tensor flat_dq = flat(&dq), flat_dk = flat(&dk), flat_dv = flat(&dv);
    struct attention attention = attention_of(b, s);
    bool norm = needs_dx || b->gnorm1.data; // layer 0 of a frozen embedding needs neither

    linear_backward(p, &flat_dattended, 0, dx, &flat_attended, &a->lo, &b->o); // 8'
    op_attention_backward(be, &dq, &dk, &dv, &delta, &dattended, &a->attended, &a->lse, &a->q, &a->keys, &a->values,
                          &attention);                                                               // 7'
    op_rope(be, &dk, s->rope, &s->positions, -1);                                                    // 6'
    op_rope(be, &dq, s->rope, &s->positions, -1);                                                    // 5'
    linear_backward(p, norm ? &dnorm : NULL, 0, &flat_dv, &a->norm1, &a->lv, &b->v);                 // 4'
    linear_backward(p, norm ? &dnorm : NULL, 1, &flat_dk, &a->norm1, &a->lk, &b->k);                 // 3'
    linear_backward(p, norm ? &dnorm : NULL, 1, &flat_dq, &a->norm1, &a->lq, &b->q);                 // 2'
    if (norm) op_rmsnorm_backward_add(be, dx, or_null(&b->gnorm1), &dnorm, x, &a->rstd1, &b->norm1); // 1'
    p->scratch->used = mark;
}

void block_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct block_acts *a,
                    const struct tensor *x, const struct block *b, const struct text_config *c,
                    const struct sequence *s) {
    if (c->persimmon) {
        persimmon_backward(p, dx, needs_dx, a, x, b, c, s);
        return;
    }
    if (a->cheap_lost) make_cheap_again(p, a, x, b, c);
    ffn_backward(p, dx, a, b, c);
    attention_half_backward(p, dx, needs_dx, a, x, b, c, s);
}

void block_linears(struct block *b, void (*f)(struct linear *l, void *arg), void *arg) {
    struct linear *all[] = {&b->q, &b->k, &b->v, &b->qkv, &b->o, &b->gate, &b->up, &b->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->path) f(all[i], arg);
}

bool block_is_trained(const struct block *b) {
    const struct linear *all[] = {&b->q, &b->k, &b->v, &b->qkv, &b->o, &b->gate, &b->up, &b->down};
    const struct tensor *norms[] = {&b->gnorm1,  &b->gbias1,  &b->gnorm2,  &b->gbias2,
                                    &b->gq_norm, &b->gq_bias, &b->gk_norm, &b->gk_bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (linear_is_trained(all[i])) return true;
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        if (norms[i]->data) return true;
    return false;
}

/* The language-model head: only rows that are scored reach it, some at a time, so that logits never take more than
 * LOGIT_BYTES; the gradient is formed in the same pass. */
#include "kernels/ops.h"
#include "model/model.h"

enum { LOGIT_BYTES = 96 << 20 };

/* --- the final norm ---------------------------------------------------------------------------------------------- */

void final_norm_layout(struct norm_stats *s, struct arena *m, int64_t rows) {
    s->mean = arena_tensor1(m, F32, rows);
    s->rstd = arena_tensor1(m, F32, rows);
}

void final_norm_forward(const struct pass *p, const struct model *m, const struct tensor *y, const struct norm_stats *s,
                        const struct tensor *x) {
    float eps = m->config.text.eps;
    if (m->norm_bias.data)
        op_layernorm_forward(p->be, y, &s->mean, &s->rstd, x, &m->norm, &m->norm_bias, eps);
    else
        op_rmsnorm_forward(p->be, y, &s->rstd, x, &m->norm, eps);
}

void final_norm_backward_add(const struct pass *p, const struct model *m, const struct tensor *dx,
                             const struct tensor *dy, const struct tensor *x, const struct norm_stats *s) {
    const struct tensor *gw = m->gnorm.data ? &m->gnorm : NULL, *gb = m->gnorm_bias.data ? &m->gnorm_bias : NULL;
    if (m->norm_bias.data)
        op_layernorm_backward_add(p->be, dx, gw, gb, dy, x, &s->mean, &s->rstd, &m->norm);
    else
        op_rmsnorm_backward_add(p->be, dx, gw, dy, x, &s->rstd, &m->norm);
}

/* --- losses ------------------------------------------------------------------------------------------------------ */

static int64_t chunk_rows(const struct model *m, int64_t scored) {
    int64_t rows = LOGIT_BYTES / (4 * m->config.text.vocab);
    if (rows < 32) rows = 32;
    return rows < scored ? rows : scored;
}

/* Rows [at, at + n) of the scored rows: logits and losses; with `back` normed becomes its own gradient. */
static void chunk_loss(const struct pass *p, struct workspace *w, const struct tensor *normed, bool back, float scale,
                       int64_t at, int64_t n) {
    struct acts *a = &w->acts;
    const struct linear *head = &w->m->head;
    size_t mark = p->scratch->used;
    struct tensor x = tensor_rows(normed, at, n), targets = tensor_rows(&a->targets, at, n);
    struct tensor loss = tensor_rows(&a->loss, at, n);
    struct tensor logits = arena_tensor2(p->scratch, F32, n, head->W.dim[0]);
    struct linear_acts acts;
    linear_acts_layout_head(&acts, p->scratch, head, n, p->act);
    linear_forward(p, &acts, &logits, &x, head);
    if (!back) {
        op_cross_entropy_forward(p->be, &loss, &logits, &targets);
    } else {
        op_cross_entropy(p->be, &loss, &logits, &targets, scale);
        linear_backward(p, &x, 0, &logits, &x, &acts, head);
    }
    p->scratch->used = mark;
}

void head_loss(const struct pass *p, struct workspace *w, const struct tensor *dx, float scale) {
    struct acts *a = &w->acts;
    struct model *m = w->m;
    const struct text_config *c = &m->config.text;
    if (m->config.problem != PROBLEM_GENERATION) {
        score_loss(p, w, dx, scale);
        return;
    }
    if (dx) op_zero(p->be, dx);
    if (a->scored == 0) return;
    size_t mark = p->scratch->used;
    struct tensor last = arena_tensor2(p->scratch, p->act, a->scored, c->dim);
    struct tensor normed = arena_tensor2(p->scratch, p->act, a->scored, c->dim);
    op_gather_rows(p->be, &last, &a->x[c->layers], &a->scored_rows);
    final_norm_forward(p, m, &normed, &a->norm, &last);
    int64_t rows = chunk_rows(m, a->scored);
    for (int64_t at = 0; at < a->scored; at += rows)
        chunk_loss(p, w, &normed, dx != NULL, scale, at, rows < a->scored - at ? rows : a->scored - at);
    if (dx) {
        struct tensor dlast = arena_tensor2(p->scratch, p->act, a->scored, c->dim);
        op_zero(p->be, &dlast);
        final_norm_backward_add(p, m, &dlast, &normed, &last, &a->norm);
        op_scatter_rows(p->be, dx, &dlast, &a->scored_rows);
    }
    p->scratch->used = mark;
}

void head_logits(const struct pass *p, struct workspace *w, float *logits) {
    struct acts *a = &w->acts;
    const struct text_config *c = &w->m->config.text;
    size_t mark = p->scratch->used;
    struct tensor x = tensor_rows(&a->x[c->layers], a->N - 1, 1);
    struct tensor normed = arena_tensor2(p->scratch, p->act, 1, c->dim);
    struct norm_stats stats;
    final_norm_layout(&stats, p->scratch, 1);
    struct tensor out = arena_tensor2(p->scratch, F32, 1, c->vocab);
    struct linear_acts acts;
    linear_acts_layout_head(&acts, p->scratch, &w->m->head, 1, p->act);
    final_norm_forward(p, w->m, &normed, &stats, &x);
    linear_forward(p, &acts, &out, &normed, &w->m->head);
    if (!w->dry) backend_download(p->be, logits, &out);
    p->scratch->used = mark;
}

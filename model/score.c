/* The head of classification and regression: one position of every row goes through the final norm and a Linear called
 * score, and its outputs meet the row's labels. Raw numbers: no sigmoid, no scaling, no clipping of what it gives. */
#include "kernels/ops.h"
#include "model/model.h"

/* acts.loss from acts.outputs and, with doutputs (S,n), scale times its gradient. */
static void row_losses(const struct pass *p, struct workspace *w, const struct tensor *doutputs, float scale) {
    const struct acts *a = &w->acts;
    switch (w->m->config.problem) {
    case PROBLEM_REGRESSION:
        op_squared_error(p->be, &a->loss, doutputs, &a->outputs, &a->labels, scale);
        return;
    case PROBLEM_MULTI_LABEL:
        op_binary_cross_entropy(p->be, &a->loss, doutputs, &a->outputs, &a->labels, scale);
        return;
    default:
        break; // one class of several
    }
    if (!doutputs) {
        op_cross_entropy_forward(p->be, &a->loss, &a->outputs, &a->targets);
        return;
    }
    op_copy(p->be, doutputs, &a->outputs);
    op_cross_entropy(p->be, &a->loss, doutputs, &a->targets, scale);
}

void score_loss(const struct pass *p, struct workspace *w, const struct tensor *dx, float scale) {
    struct acts *a = &w->acts;
    struct model *m = w->m;
    const struct text_config *c = &m->config.text;
    int64_t S = a->scored;
    size_t mark = p->scratch->used;
    struct tensor last = arena_tensor2(p->scratch, p->act, S, c->dim);
    struct tensor normed = arena_tensor2(p->scratch, p->act, S, c->dim);
    struct tensor doutputs = arena_tensor2(p->scratch, F32, S, m->config.num_labels);
    linear_acts_layout_head(&a->lhead, p->scratch, &m->head, S, p->act);
    op_gather_rows(p->be, &last, &a->x[c->layers], &a->scored_rows);
    final_norm_forward(p, m, &normed, &a->norm, &last);
    linear_forward(p, &a->lhead, &a->outputs, &normed, &m->head);
    row_losses(p, w, dx ? &doutputs : NULL, scale);
    if (dx) {
        struct tensor dlast = arena_tensor2(p->scratch, p->act, S, c->dim);
        linear_backward(p, &normed, 0, &doutputs, &normed, &a->lhead, &m->head); // in its place
        op_zero(p->be, &dlast);
        final_norm_backward_add(p, m, &dlast, &normed, &last, &a->norm);
        op_zero(p->be, dx);
        op_scatter_rows(p->be, dx, &dlast, &a->scored_rows);
    }
    p->scratch->used = mark;
}

#include "lora/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"

static const char *bare_name(const char *name) { return text_starts(name, "eval_") ? name + strlen("eval_") : name; }

bool evaluation_has(enum problem p, const char *name, bool *less_is_better) {
    int metric = metric_find(p, bare_name(name));
    bool loss = strcmp(bare_name(name), "loss") == 0;
    *less_is_better = loss || (metric >= 0 && metric_is_error(p, metric));
    return loss || metric >= 0;
}

double evaluation_value(const struct evaluation *v, const char *name) {
    int metric = v->outcome ? metric_find(v->outcome->problem, bare_name(name)) : -1;
    if (metric < 0) return v->loss_sum / (double)(v->scored ? v->scored : 1);
    double x = metric_value(v->outcome, metric, ALL_COLUMNS);
    return isnan(x) ? 0 : x;
}

static struct loader_options order(const struct dataset *d, int64_t rows_per_batch, int workers) {
    int64_t rows = dataset_rows(d);
    return (struct loader_options){
        .rows_per_batch = rows_per_batch, .workers = workers, .batches = (rows + rows_per_batch - 1) / rows_per_batch};
}

static struct workspace_options space(const struct dataset *d, int64_t rows_per_batch, enum dtype act) {
    struct loader_options o = order(d, rows_per_batch, 1);
    struct loader *l = loader_new(d, &o);
    struct workspace_options w = {.act = act};
    loader_limits(l, &w.limits);
    loader_free(l);
    return w;
}

size_t evaluator_measure(struct model *m, const struct dataset *d, int64_t rows_per_batch, enum dtype act) {
    struct workspace_options w = space(d, rows_per_batch, act);
    return workspace_measure(m, &w, NULL);
}

static void outcome_new(struct evaluator *ev, const struct model *m) {
    struct outcome *o = &ev->outcome;
    *o =
        (struct outcome){.problem = m->config.problem, .rows = dataset_rows(ev->data), .outputs = m->config.num_labels};
    o->labels = o->problem == PROBLEM_SINGLE_LABEL ? 1 : o->outputs;
    o->predicted = mem_alloc((size_t)(o->rows * o->outputs) * sizeof *o->predicted);
    o->given = mem_alloc((size_t)(o->rows * o->labels) * sizeof *o->given);
    ev->outputs = mem_alloc((size_t)(ev->rows_per_batch * o->outputs) * sizeof *ev->outputs);
}

enum status evaluator_new(struct evaluator **out, struct model *m, const struct dataset *d, int64_t rows_per_batch,
                          int workers, enum dtype act, struct err *e) {
    struct evaluator *ev = *out = mem_alloc(sizeof *ev);
    *ev = (struct evaluator){.data = d, .rows_per_batch = rows_per_batch, .workers = workers};
    struct workspace_options w = space(d, rows_per_batch, act);
    ev->losses = mem_alloc((size_t)w.limits.scored * sizeof *ev->losses);
    if (m->config.problem != PROBLEM_GENERATION) outcome_new(ev, m);
    if (workspace_new(&ev->workspace, m, &w, e) == ST_OK) return ST_OK;
    evaluator_free(ev);
    *out = NULL;
    return e->code;
}

void evaluator_free(struct evaluator *ev) {
    if (!ev) return;
    workspace_free(ev->workspace);
    free(ev->losses), free(ev->outputs), free(ev->outcome.predicted), free(ev->outcome.given);
    free(ev);
}

/* Row r of the batch: its outputs and labels go to their place among all rows. */
static void take_outputs(struct evaluator *ev, const struct batch *b, int64_t r, struct row_loss *row) {
    struct outcome *o = &ev->outcome;
    float *predicted = o->predicted + row->row * o->outputs, *given = o->given + row->row * o->labels;
    memcpy(predicted, ev->outputs + r * o->outputs, (size_t)o->outputs * sizeof *predicted);
    memcpy(given, b->labels + r * b->label_count, (size_t)o->labels * sizeof *given);
    row->outputs = predicted, row->labels = given;
    row->loss_sum = ev->losses[r], row->scored = 1;
}

/* The rows of one batch, of which the first `count` are new: the last batch wraps around. */
static enum status report_rows(struct evaluator *ev, const struct batch *b, int64_t count, struct evaluation *out,
                               void (*each)(void *arg, const struct row_loss *r), void *arg, struct err *e) {
    int64_t at = 0;
    for (int64_t r = 0; r < count; r++) {
        struct row_loss row = {.row = b->row_index[r], .tokens = b->offsets[r + 1] - b->offsets[r]};
        for (int64_t i = b->offsets[r]; i < b->offsets[r + 1]; i++)
            if (b->targets[i] != IGNORED) row.loss_sum += ev->losses[at++], row.scored++;
        if (ev->outputs) take_outputs(ev, b, r, &row);
        if (!isfinite(row.loss_sum))
            return err_set(e, ST_FAIL, "row %lld of the data: the loss is not finite (%g)", (long long)row.row,
                           row.loss_sum);
        out->rows++, out->tokens += row.tokens, out->scored += row.scored;
        out->loss_sum += row.loss_sum;
        if (each) each(arg, &row);
    }
    return ST_OK;
}

enum status evaluator_run(struct evaluator *ev, struct evaluation *out,
                          void (*each)(void *arg, const struct row_loss *r), void *arg, struct err *e) {
    struct workspace *w = ev->workspace;
    struct loader_options o = order(ev->data, ev->rows_per_batch, ev->workers);
    struct loader *loader = loader_new(ev->data, &o);
    int64_t rows = dataset_rows(ev->data);
    *out = (struct evaluation){.outcome = ev->outputs ? &ev->outcome : NULL};
    for (int64_t k = 0; k < o.batches && e->code == ST_OK; k++) {
        const struct batch *b;
        if (loader_next(loader, &b, e) != ST_OK) break;
        struct pass p = pass_new(w, 0, 0);
        model_forward(&p, w, b);
        head_loss(&p, w, NULL, 1);
        if (b->scored) backend_download(w->m->be, ev->losses, &w->acts.loss);
        if (ev->outputs) backend_download(w->m->be, ev->outputs, &w->acts.outputs);
        if (backend_sync(w->m->be, e) != ST_OK) break;
        int64_t left = rows - k * ev->rows_per_batch;
        report_rows(ev, b, left < b->rows ? left : b->rows, out, each, arg, e);
    }
    loader_free(loader);
    return e->code;
}

#include "lora/train.h"

#include <math.h>

#include "base/clock.h"
#include "base/text.h"
#include "kernels/ops.h"

/* Row r of a batch as a batch of its own; its offsets go to two numbers of the caller's. */
static struct batch one_row(const struct batch *b, int64_t r, int64_t offsets[2]) {
    int64_t first = b->offsets[r], N = b->offsets[r + 1] - first, scored = 0;
    for (int64_t i = first; i < first + N; i++) scored += b->targets[i] != IGNORED;
    offsets[0] = 0, offsets[1] = N;
    return (struct batch){.rows = 1,
                          .N = N,
                          .scored = b->label_count ? 1 : scored,
                          .offsets = offsets,
                          .ids = b->ids + first,
                          .positions = b->positions + first,
                          .targets = b->targets + first,
                          .row_index = b->row_index + r,
                          .label_count = b->label_count,
                          .labels = b->labels + r * b->label_count,
                          .pooled = b->label_count ? b->pooled + r : NULL,
                          .images = b->first_image[r + 1] - b->first_image[r],
                          .image = b->image + b->first_image[r]};
}

/* Forward, loss and backward of a micro-batch: its rows together, or one after the other. */
static void micro_batch(struct trainer *t, const struct batch *b, int64_t index) {
    uint64_t seed = (uint64_t)settings_int(t->settings, "seed"),
             draw = (uint64_t)((t->step * t->accum + index) * t->rows);
    float scale = t->micro_means && b->scored ? 1.0f / (float)b->scored : 1.0f;
    struct tensor total = tensor_rows(&t->totals, index, 1);
    if (t->packing) {
        model_step(t->workspace, b, seed, draw, scale, &total);
        return;
    }
    for (int64_t r = 0; r < b->rows; r++) {
        int64_t offsets[2];
        struct batch row = one_row(b, r, offsets);
        model_step(t->workspace, &row, seed, draw + (uint64_t)r, scale, &total);
    }
}

static bool all_alike(const struct adapter *a, bool one_rate, bool always_pictures) {
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *p = &a->trained[i];
        if (!p->decays || (p->head && !one_rate) || (p->of_pictures && !always_pictures)) return false;
    }
    return true;
}

/* One update of all that is trained; a head with its own rate, or a bias, takes one call for each tensor. What had no
 * gradient because the step had no pictures stays as it is, moments and count of steps too, as torch leaves it. */
static void update(struct trainer *t, bool pictures, double rate, double head_rate, double grad_scale) {
    const struct settings *s = t->settings;
    struct adapter *a = t->adapter;
    struct adamw h = {.lr = rate,
                      .beta1 = settings_number(s, "adam_beta1"),
                      .beta2 = settings_number(s, "adam_beta2"),
                      .eps = settings_number(s, "adam_epsilon"),
                      .weight_decay = settings_number(s, "weight_decay"),
                      .grad_scale = grad_scale,
                      .step = t->step + 1};
    if (all_alike(a, rate == head_rate, pictures && t->pictured == t->step)) {
        op_adamw(t->model->be, &a->values, &a->m, &a->v, &a->grads, &h);
        return;
    }
    for (int64_t i = 0; i < a->count; i++) {
        struct trained *p = &a->trained[i];
        if (p->of_pictures && !pictures) continue;
        h.step = (p->of_pictures ? t->pictured : t->step) + 1;
        h.lr = p->head ? head_rate : rate;
        h.weight_decay = p->decays ? settings_number(s, "weight_decay") : 0;
        op_adamw(t->model->be, &p->value, &p->m, &p->v, &p->grad, &h);
    }
}

/* The first layer of a batch whose output is not finite, as model_find_nonfinite counts; unpacked, row by row. */
static int64_t find_layer(struct trainer *t, const struct batch *b) {
    int64_t passes = t->packing ? 1 : b->rows, layer = -1;
    for (int64_t r = 0; r < passes && layer < 0; r++) {
        int64_t offsets[2];
        struct batch row = t->packing ? *b : one_row(b, r, offsets);
        struct pass p = pass_new(t->workspace, 0, 0);
        model_forward(&p, t->workspace, &row);
        head_loss(&p, t->workspace, NULL, 1);
        layer = model_find_nonfinite(t->workspace);
    }
    return layer;
}

static void name_rows(const struct trainer *t, const struct batch *b, struct text *out) {
    enum { MOST = 400 }; // bytes of a sentence
    struct err quiet = {0};
    for (int64_t k = 0; k < b->rows && out->len < MOST; k++) {
        struct row row;
        if (dataset_row(t->data, b->row_index[k], false, &row, &quiet) != ST_OK) continue;
        text_addf(out, "%s%.80s", out->len ? ", " : "", row.id);
        row_free(&row);
        if (out->len >= MOST) text_add(out, ", ...");
    }
}

/* Stops the run with the first layer whose output is not finite and the rows of its micro-batch; when every output is
 * finite, with all rows of the step. */
static enum status explain(struct trainer *t, const struct step_report *r, struct err *e) {
    struct loader_options o = {.rows_per_batch = t->rows,
                               .shuffle = settings_bool(t->settings, "shuffle"),
                               .seed = (uint64_t)settings_int(t->settings, "seed"),
                               .workers = 1,
                               .first_batch = t->step * t->accum,
                               .batches = t->accum};
    struct loader *again = loader_new(t->data, &o);
    struct text rows = {0};
    int64_t layer = -1;
    struct err quiet = {0};
    const struct batch *b;
    for (int64_t i = 0; i < t->accum && layer < 0 && loader_next(again, &b, &quiet) == ST_OK; i++) {
        layer = find_layer(t, b);
        if (layer >= 0) text_clear(&rows);
        name_rows(t, b, &rows);
    }
    loader_free(again);
    char where[64];
    if (layer < 0)
        snprintf(where, sizeof where, "the backward pass");
    else if (layer == 0)
        snprintf(where, sizeof where, "the embedding");
    else if (layer > t->model->config.text.layers)
        snprintf(where, sizeof where, "the head");
    else
        snprintf(where, sizeof where, "layer %lld", (long long)layer - 1);
    err_set(
        e, ST_FAIL,
        "step %lld: loss %g, gradient norm %g, first seen in %s, rows %s; the adapter keeps the values of step %lld; "
        "lower learning_rate or look at these rows",
        (long long)r->step, fabs(r->loss), fabs(r->grad_norm), where, text_str(&rows), (long long)t->step); // no "-nan"
    text_free(&rows);
    return e->code;
}

/* The loss of the step from the sums of its micro-batches (micro_means: each divided by its own count). */
static double step_loss(struct trainer *t, const int64_t *scored, int64_t all) {
    double loss = 0;
    backend_download(t->model->be, t->host_totals, &t->totals);
    for (int64_t i = 0; i < t->accum; i++)
        loss += (double)t->host_totals[i] / (double)(t->micro_means ? (scored[i] ? scored[i] : 1) : 1);
    return loss / (double)(t->micro_means ? t->accum : all ? all : 1);
}

enum status train_step(struct trainer *t, struct step_report *out, struct err *e) {
    struct backend *be = t->model->be;
    double started = clock_now();
    *out = (struct step_report){.step = t->step + 1};
    op_zero(be, &t->adapter->grads);
    op_zero(be, &t->totals);
    op_zero(be, &t->norm);
    for (int64_t i = 0; i < t->accum; i++) {
        const struct batch *b;
        if (loader_next(t->loader, &b, e) != ST_OK) return e->code;
        micro_batch(t, b, i);
        t->scored[i] = b->scored;
        out->scored += b->scored, out->tokens += b->N, out->images += b->images;
    }
    op_sum_squares_add(be, &t->norm, &t->adapter->grads);

    float squares = 0;
    backend_download(be, &squares, &t->norm);
    out->loss = step_loss(t, t->scored, out->scored);
    enum status st = backend_sync(be, e); // the one place where errors of the device surface
    if (st != ST_OK) return st;

    double mean = t->micro_means ? 1.0 / (double)t->accum : 1.0 / (double)(out->scored ? out->scored : 1);
    out->grad_norm = sqrt((double)squares) * mean;
    if (!isfinite(out->loss) || !isfinite(out->grad_norm)) return explain(t, out, e);

    double most = settings_number(t->settings, "max_grad_norm"), clip = 1;
    if (most > 0) clip = fmin(1, most / (out->grad_norm + 1e-6));
    double factor = schedule_factor(&t->schedule, out->step), rate = settings_number(t->settings, "learning_rate");
    double head =
        settings_get(t->settings, "head_learning_rate") ? settings_number(t->settings, "head_learning_rate") : rate;
    update(t, out->images > 0, factor * rate, factor * head, mean * clip);
    adapter_refresh(t->adapter);

    out->learning_rate = factor * rate;
    t->step++;
    t->pictured += out->images > 0;
    out->epoch = (double)(t->step * t->accum * t->rows) / (double)dataset_rows(t->data);
    out->seconds = clock_now() - started;
    return ST_OK;
}

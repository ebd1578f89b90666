#include "lora/diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/memory.h"
#include "kernels/ops.h"
#include "lora/adapter.h"
#include "lora/svd.h"
#include "lora/targets.h"
#include "quant/block.h"

struct diff {
    const struct diff_options *o;
    struct model *base, *tuned;
    bool *linear_differs; // (linear_count)
    bool *param_differs;  // (param_count)
    struct adapter *adapter;
    struct diff_report *report;
};

/* A parameter's numbers as F32, the caller's. */
static float *numbers_of(struct backend *be, const struct tensor *t) {
    struct tensor out = *t;
    out.type = F32, out.q4 = NULL;
    out.data = mem_alloc((size_t)tensor_count(t) * sizeof(float));
    if (tensor_is_4bit(t))
        block_dequantize(out.data, F32, t, be->threads);
    else
        op_copy(be, &out, t);
    return out.data;
}

/* tuned - base; NULL when nothing differs. The caller's. */
static float *difference_of(struct backend *be, const struct tensor *base, const struct tensor *tuned) {
    int64_t n = tensor_count(base);
    float *x = numbers_of(be, base), *y = numbers_of(be, tuned);
    bool differs = false;
    for (int64_t i = 0; i < n; i++) {
        differs = differs || x[i] != y[i];
        y[i] -= x[i];
    }
    free(x);
    if (differs) return y;
    free(y);
    return NULL;
}

/* --- what differs ------------------------------------------------------------------------------------------------ */

static enum status check_shapes(const struct diff *d, struct err *e) {
    const struct model *a = d->base, *b = d->tuned;
    bool same = a->param_count == b->param_count && a->linear_count == b->linear_count &&
                a->config.text.tied == b->config.text.tied;
    for (int64_t i = 0; same && i < a->param_count; i++) {
        const struct tensor *x = a->params[i].value, *y = b->params[i].value;
        if (x->rank != y->rank || memcmp(x->dim, y->dim, sizeof x->dim) != 0)
            return err_set(e, ST_FAIL,
                           "%s and %s: %s has another shape in the one than in the other, so there is no difference",
                           d->o->base, d->o->tuned, a->params[i].name);
    }
    if (!same)
        err_set(
            e, ST_FAIL,
            "%s and %s: the models do not have the same parts (%lld and %lld parameters in all), so no difference can "
            "be taken; wanted two of one shape with the same kind of head",
            d->o->base, d->o->tuned, (long long)a->param_count, (long long)b->param_count);
    return e->code;
}

static bool is_tied_head(const struct model *m, const struct linear *l) {
    return model_is_output(m, l) && m->config.text.tied;
}

static bool is_linear_weight(const struct model *m, const struct tensor *value) {
    for (int64_t i = 0; i < m->linear_count; i++)
        if (value == &m->linears[i]->W) return true;
    return false;
}

static void find_differences(struct diff *d) {
    const struct model *m = d->base;
    for (int64_t i = 0; i < m->linear_count; i++) {
        if (is_tied_head(m, m->linears[i])) continue;
        float *delta = difference_of(d->o->be, &m->linears[i]->W, &d->tuned->linears[i]->W);
        d->linear_differs[i] = delta != NULL;
        d->report->count += delta != NULL;
        free(delta);
    }
    for (int64_t i = 0; i < m->param_count; i++) {
        if (is_linear_weight(m, m->params[i].value)) continue;
        float *delta = difference_of(d->o->be, m->params[i].value, d->tuned->params[i].value);
        d->param_differs[i] = delta != NULL;
        free(delta);
    }
}

/* --- the adapter ------------------------------------------------------------------------------------------------- */

static cJSON *list_targets(const struct diff *d) {
    const struct model *m = d->base;
    const char **wanted = mem_alloc((size_t)m->linear_count * sizeof(char *)), **others;
    others = mem_alloc((size_t)m->linear_count * sizeof(char *));
    size_t n = 0, rest = 0;
    for (int64_t i = 0; i < m->linear_count; i++)
        *(d->linear_differs[i] ? &wanted[n++] : &others[rest++]) = m->linears[i]->path;
    cJSON *list = targets_suffixes(wanted, n, others, rest);
    free(wanted), free(others);
    return list;
}

static void add_once(cJSON *list, const char *name, size_t n) {
    const cJSON *v;
    cJSON_ArrayForEach(v, list) if (strlen(v->valuestring) == n && strncmp(v->valuestring, name, n) == 0) return;
    char *copy = mem_text_n(name, n);
    cJSON_AddItemToArray(list, cJSON_CreateString(copy));
    free(copy);
}

/* The last part of a module's path: all that are called so are kept. A tied output layer goes with its embedding. */
static cJSON *list_whole(const struct diff *d, bool *biases) {
    const struct model *m = d->base;
    cJSON *list = cJSON_CreateArray();
    for (int64_t i = 0; i < m->param_count; i++) {
        const char *name = m->params[i].name, *end = strrchr(name, '.'), *start = end;
        if (!d->param_differs[i] || !end) continue;
        if (strcmp(end, ".bias") == 0) {
            *biases = true;
            continue;
        }
        while (start > name && start[-1] != '.') start--;
        add_once(list, start, (size_t)(end - start));
        if (m->params[i].value == &m->embed && m->config.text.tied) add_once(list, "lm_head", strlen("lm_head"));
    }
    return list;
}

static enum status make_adapter(struct diff *d, struct err *e) {
    bool biases = false;
    cJSON *targets = list_targets(d), *whole = list_whole(d, &biases);
    const struct adapter_options options = {.r = d->o->rank,
                                            .alpha = (double)d->o->rank,
                                            .target_modules = targets,
                                            .modules_to_save = whole->child ? whole : NULL,
                                            .bias = biases ? BIAS_ALL : BIAS_NONE,
                                            .task_type =
                                                d->base->config.problem == PROBLEM_GENERATION ? "CAUSAL_LM" : NULL,
                                            .base_model = d->o->base_name};
    if (!targets->child)
        err_set(e, ST_FAIL, "%s and %s: no linear layer differs, so there is nothing for an adapter", d->o->base,
                d->o->tuned);
    else
        adapter_new(&d->adapter, d->base, &options, e);
    cJSON_Delete(targets), cJSON_Delete(whole);
    return e->code;
}

static enum status fill_linear(struct diff *d, int64_t i, struct diff_module *module, struct err *e) {
    const struct linear *l = d->base->linears[i];
    const int64_t O = l->W.dim[0], I = l->W.dim[1];
    float *delta = difference_of(d->o->be, &l->W, &d->tuned->linears[i]->W);
    if (!delta || !l->lora) {
        free(delta);
        return err_set(e, ST_FAIL, "%s: cannot hold an adapter, although it differs", l->path);
    }
    double all = floats_square_sum(delta, O * I);
    double held = svd_low_rank(d->o->be, l->lora->B.data, l->lora->A.data, delta, O, I, l->lora->rank, e);
    *module = (struct diff_module){.path = mem_text(l->path), .size = sqrt(all), .share = held / all};
    d->report->size += all, d->report->share += held;
    free(delta);
    return e->code;
}

/* The tuned model's tensor for a slot of the base. */
static const struct tensor *tuned_slot(const struct diff *d, const struct tensor *slot) {
    for (int64_t i = 0; i < d->base->param_count; i++)
        if (d->base->params[i].value == slot) return d->tuned->params[i].value;
    return slot == &d->base->head.W ? &d->tuned->head.W : NULL;
}

static enum status fill_whole(struct diff *d, struct err *e) {
    for (int64_t i = 0; i < d->adapter->count; i++) {
        const struct trained *t = &d->adapter->trained[i];
        if (!t->frozen.data) continue;
        const struct tensor *from = tuned_slot(d, t->slot);
        if (!from) return err_set(e, ST_FAIL, "%s: has no counterpart in %s", t->key, d->o->tuned);
        float *x = numbers_of(d->o->be, from);
        memcpy(t->value.data, x, tensor_bytes(&t->value));
        free(x);
        d->report->whole++;
    }
    return ST_OK;
}

static enum status fill(struct diff *d, struct err *e) {
    const struct model *m = d->base;
    int64_t done = 0, total = d->report->count;
    d->report->modules = mem_alloc((size_t)total * sizeof *d->report->modules);
    for (int64_t i = 0; i < m->linear_count && e->code == ST_OK; i++) {
        if (!d->linear_differs[i]) continue;
        if (watch_tell(&d->o->watch, m->linears[i]->path, done, total, e) == ST_OK)
            fill_linear(d, i, &d->report->modules[done++], e);
    }
    if (e->code == ST_OK) d->report->share /= d->report->size, d->report->size = sqrt(d->report->size);
    return e->code == ST_OK ? fill_whole(d, e) : e->code;
}

enum status diff_write(const struct diff_options *o, const char *dir, struct diff_report *r, struct err *e) {
    const struct load_options as_it_is = {.quantize = {.type = F32}};
    struct diff d = {.o = o, .report = r};
    *r = (struct diff_report){0};
    if (o->rank < 1 || o->rank > LORA_MAX_RANK)
        return err_set(e, ST_USAGE, "--rank is %lld, wanted 1 to %d", (long long)o->rank, LORA_MAX_RANK);
    if (model_load(&d.base, o->base, o->be, &as_it_is, e) != ST_OK) goto done;
    if (model_load(&d.tuned, o->tuned, o->be, &as_it_is, e) != ST_OK || check_shapes(&d, e) != ST_OK) goto done;
    d.linear_differs = mem_alloc((size_t)d.base->linear_count * sizeof *d.linear_differs);
    d.param_differs = mem_alloc((size_t)d.base->param_count * sizeof *d.param_differs);
    find_differences(&d);
    if (backend_sync(o->be, e) == ST_OK && make_adapter(&d, e) == ST_OK && fill(&d, e) == ST_OK)
        adapter_write(d.adapter, dir, e);
done:
    adapter_free(d.adapter);
    free(d.linear_differs), free(d.param_differs);
    model_free(d.base), model_free(d.tuned);
    return e->code;
}

void diff_report_free(struct diff_report *r) {
    for (int64_t i = 0; r->modules && i < r->count; i++) free(r->modules[i].path);
    free(r->modules);
    *r = (struct diff_report){0};
}

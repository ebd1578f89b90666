#include "lora/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/floats.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/base_mark.h"
#include "lora/merge_parts.h"

/* --- numbers of files -------------------------------------------------------------------------------------------- */

bool entry_is_float(const struct st_entry *t) { return t->type == ST_F32 || t->type == ST_BF16 || t->type == ST_F16; }

static enum st_type entry_type(enum dtype type) { return type == F32 ? ST_F32 : type == BF16 ? ST_BF16 : ST_F16; }

double rounding_unit(enum st_type type) { return ldexp(1, type == ST_BF16 ? -8 : type == ST_F16 ? -11 : -24); }

static int64_t entry_count(const struct st_entry *t) { return (int64_t)(t->bytes / st_type_size(t->type)); }

/* --- reading the adapters ---------------------------------------------------------------------------------------- */

static enum status check_fits(struct merge *m, const struct merge_adapter *a, struct err *e) {
    struct adapter *hung = NULL;
    if (!(isfinite(a->weight) && a->weight != 0))
        return err_set(e, ST_USAGE, "%s: the weight is %g, wanted a number that is not 0", a->dir, a->weight);
    bool four_bit = m->model->config.quantization_config;
    if (!m->o.any_base && base_mark_check(a->dir, m->o.model, &m->model->weights.files, four_bit, e) != ST_OK)
        return e->code;                       // before a tensor that the wrong model lacks
    adapter_open(&hung, m->model, a->dir, e); // the strictest reader there is
    adapter_free(hung);
    return e->code;
}

static enum status open_source(struct merge *m, struct merge_source *s, const struct merge_adapter *a, struct err *e) {
    s->dir = a->dir, s->weight = a->weight;
    s->where = path_join(a->dir, "adapter_config.json");
    if (check_fits(m, a, e) != ST_OK || peft_config_read(&s->config, a->dir, e) != ST_OK) return e->code;
    if (peft_tensors_open(&s->file, a->dir, e) != ST_OK) return e->code;
    s->used = mem_alloc(s->file.count * sizeof *s->used);
    s->keys = spelling_of_file(m->model, &s->file);
    if (json_bool(s->config, s->where, "use_dora", false, &s->dora, e) != ST_OK ||
        json_bool(s->config, s->where, "use_rslora", false, &s->rslora, e) != ST_OK)
        return e->code;
    if (s->dora && (m->o.adapter_count > 1 || a->weight != 1))
        return err_set(
            e, ST_FAIL,
            "%s: a DoRA adapter rescales whole rows, so it is not something that can be added with a weight or "
            "beside others; merge it alone",
            a->dir);
    return targets_new(&s->targets, s->config, s->where, e);
}

static const struct st_entry *take(struct merge_source *s, const char *path, const char *suffix) {
    char *key = mem_format("base_model.model.%s%s", path, suffix);
    const struct st_entry *t = st_find(&s->file, key);
    if (t) s->used[t - s->file.entries] = true;
    free(key);
    return t;
}

static double scale_of(const struct merge_source *s, const char *path, int64_t rank) {
    double alpha = targets_alpha(s->targets, path);
    return s->rslora ? alpha / sqrt((double)rank) : alpha / (double)rank;
}

static bool is_shape(const struct st_entry *t, int64_t d0, int64_t d1) {
    return entry_is_float(t) && t->dim[0] == d0 && (d1 ? t->rank == 2 && t->dim[1] == d1 : t->rank == 1);
}

static enum status check_shapes(const struct merge_item *item, const struct change *c, const struct merge_source *s,
                                struct err *e) {
    int64_t r = c->A && c->A->rank == 2 ? c->A->dim[0] : 0;
    bool good = !c->A == !c->B && (!c->A || (r > 0 && is_shape(c->A, r, item->I) && is_shape(c->B, item->O, r)));
    good = good && (!c->m || (c->A && is_shape(c->m, item->O, 0))) && (!c->bias || is_shape(c->bias, item->I, 0));
    good = good && (!c->whole || (entry_is_float(c->whole) && entry_count(c->whole) == item->O * item->I));
    if (!good) err_set(e, ST_FAIL, "%s: the tensors for %s do not have its shape", s->dir, item->out.name);
    return e->code;
}

/* What an adapter has for the tensor. */
static enum status find_change(struct merge *m, struct merge_item *item, struct merge_source *s, struct change *c,
                               struct err *e) {
    const struct spelling ours = spelling_of_model(m->model);
    char *name = spelling_change(item->out.name, &ours, &s->keys), *dot = strrchr(name, '.');
    bool weight = dot && strcmp(dot, ".weight") == 0, bias = dot && strcmp(dot, ".bias") == 0;
    c->whole = take(s, name, "");
    if (weight || bias) {
        *dot = 0;
        const struct st_entry *below = take(s, name, weight ? ".base_layer.weight" : ".base_layer.bias");
        if (!c->whole) c->whole = below;
    }
    if (weight && item->O > 0) {
        c->A = take(s, name, ".lora_A.weight"), c->B = take(s, name, ".lora_B.weight");
        c->m = take(s, name, ".lora_magnitude_vector");
    }
    if (bias && (c->bias = take(s, name, ".lora_B.bias"))) {
        char *key = mem_format("base_model.model.%s.lora_A.weight", name);
        const struct st_entry *A = st_find(&s->file, key);
        if (A) c->scale = scale_of(s, name, A->dim[0]) * s->weight;
        free(key);
    }
    if (check_shapes(item, c, s, e) == ST_OK && c->A) c->scale = scale_of(s, name, c->A->dim[0]) * s->weight;
    item->changed = item->changed || c->whole || c->A || c->bias;
    free(name);
    return e->code;
}

/* Everything in the adapters must have gone somewhere. */
static enum status check_used(const struct merge *m, struct err *e) {
    for (int64_t k = 0; k < m->o.adapter_count; k++) {
        const struct merge_source *s = &m->sources[k];
        for (size_t i = 0; i < s->file.count; i++) {
            const char *name = s->file.entries[i].name;
            if (s->used[i] || peft_is_copy(name)) continue;
            if (text_ends(name, ".lora_B.bias"))
                return err_set(
                    e, ST_FAIL,
                    "%s: %s needs a bias in a layer of the model that has none, so it cannot be merged; use the "
                    "adapter beside the model, or train it without PEFT's lora_bias",
                    s->dir, name);
            if (text_starts(name, "base_model.model.") && strstr(name, ".head."))
                continue; // a part that the model lacks
            return err_set(e, ST_FAIL, "%s: %s belongs to no tensor of the model's files", s->dir, name);
        }
    }
    return ST_OK;
}

/* --- what is written --------------------------------------------------------------------------------------------- */

/* Shape and type of the tensor that comes of a base tensor. */
static enum status shape_item(const struct merge *m, struct merge_item *item, const char *name,
                              const struct st_entry *from, struct err *e) {
    const struct st_set *files = &m->model->weights.files;
    item->from = from;
    item->out = *from;
    item->out.name = mem_text(name);
    item->out.data = NULL;
    item->four_bit = bnb_is_4bit(files, from->name);
    if (entry_is_float(from)) item->source = floats_type(from);
    if (item->four_bit) {
        struct q4_weight w = {0};
        if (bnb_read(&w, files, from->name, e) == ST_OK) {
            item->out.rank = 2, item->out.dim[0] = w.t.dim[0], item->out.dim[1] = w.t.dim[1];
            item->out.type = entry_type(w.q.source);
            item->source = w.q.source;
        }
        bnb_release(&w);
        if (e->code != ST_OK) return e->code;
    }
    int64_t count = 1;
    for (int i = 0; i < item->out.rank; i++) count *= item->out.dim[i];
    item->O = item->out.rank > 1 ? item->out.dim[0] : 1;
    item->I = item->O ? count / item->O : 0;
    bool computed = text_ends(name, ".rotary_emb.inv_freq");
    if (entry_is_float(&item->out) && !m->o.as_stored && !computed) item->out.type = entry_type(m->o.type);
    item->out.bytes = (size_t)count * st_type_size(item->out.type);
    return ST_OK;
}

static enum status add_item(struct merge *m, const char *name, const struct st_entry *from, struct err *e) {
    struct merge_item *item = &m->items[m->count++];
    *item = (struct merge_item){.changes = mem_alloc((size_t)m->o.adapter_count * sizeof *item->changes)};
    if (shape_item(m, item, name, from, e) != ST_OK) return e->code;
    for (int64_t k = 0; k < m->o.adapter_count && e->code == ST_OK; k++)
        find_change(m, item, &m->sources[k], &item->changes[k], e);
    if (item->changed && !entry_is_float(&item->out))
        err_set(e, ST_FAIL, "%s: tensor %s has type %s; it cannot be merged into", from->file, name,
                st_type_name(from->type));
    item->copied = !item->changed && !item->four_bit && item->out.type == from->type;
    return e->code;
}

static struct merge_item *find_item(const struct merge *m, const char *name) {
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->items[i].out.name, name) == 0) return &m->items[i];
    return NULL;
}

static void drop_item(struct merge *m, struct merge_item *item) {
    free((char *)item->out.name), free(item->changes);
    *item = m->items[--m->count];
}

/* Whether both are replaced by the same numbers. */
static bool same_whole(const struct merge *m, const struct merge_item *one, const struct merge_item *two) {
    bool same = true;
    for (int64_t k = 0; k < m->o.adapter_count; k++) {
        const struct change *a = &one->changes[k], *b = &two->changes[k];
        const struct st_entry *x = a->whole, *y = b->whole;
        same = same && !a->A && !b->A && !x == !y;
        same = same && (!x || (x->type == y->type && x->bytes == y->bytes && memcmp(x->data, y->data, x->bytes) == 0));
    }
    return same;
}

/* A tied head is the embedding; once either changes in its own way, both are written. */
static enum status untie(struct merge *m, struct err *e) {
    const struct model *model = m->model;
    if (!model->config.text.tied) return ST_OK;
    char *embed = mem_format("%s.embed_tokens.weight", model->text_prefix);
    char *head = mem_format("%s.weight", model->head.path);
    struct merge_item *old = find_item(m, head);
    if (old) drop_item(m, old);
    const struct st_entry *from = find_item(m, embed)->from;
    add_item(m, head, from, e);
    struct merge_item *one = find_item(m, embed), *two = &m->items[m->count - 1];
    m->counts.untied = (one->changed || two->changed) && !same_whole(m, one, two);
    const struct st_entry *stored = st_find(&model->weights.files, head);
    if (!m->counts.untied) drop_item(m, two);
    if (!m->counts.untied && stored) add_item(m, head, stored, e);
    free(embed), free(head);
    return e->code;
}

/* A head that an adapter brings to a model without one: the language model's goes, its own tensors come. */
static enum status add_head(struct merge *m, struct err *e) {
    static const char *const names[] = {"base_model.model.score.weight", "base_model.model.score.bias"};
    const struct merge_source *s = &m->sources[0];
    if (m->o.adapter_count != 1 || s->weight != 1)
        return err_set(e, ST_FAIL,
                       "%s: brings a classification head, which cannot be added with a weight or beside "
                       "others; merge it alone",
                       s->dir);
    for (int i = 0; i < 2 && e->code == ST_OK; i++) {
        const struct st_entry *t = st_find(&s->file, names[i]);
        if (t) add_item(m, names[i] + strlen("base_model.model."), t, e);
    }
    return e->code;
}

static bool is_language_head(const char *name) {
    return text_starts(name, "lm_head.") || text_starts(name, "language_model.lm_head.");
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct merge_item *)a)->out.name, ((const struct merge_item *)b)->out.name);
}

static enum status plan(struct merge *m, struct err *e) {
    const struct st_set *files = &m->model->weights.files;
    size_t stem;
    m->items = mem_alloc((files->count + 2) * sizeof *m->items);
    for (size_t i = 0; i < files->count && e->code == ST_OK; i++) {
        const struct st_entry *t = &files->entries[i];
        m->counts.bytes_in += (int64_t)t->bytes;
        if (m->model->new_head && is_language_head(t->name)) continue;
        if (!bnb_is_side(t->name, &stem)) add_item(m, t->name, t, e);
    }
    if (e->code == ST_OK && m->model->new_head) add_head(m, e);
    if (e->code != ST_OK || untie(m, e) != ST_OK || check_used(m, e) != ST_OK) return e->code;
    qsort(m->items, m->count, sizeof *m->items, by_name);
    for (size_t i = 0; i < m->count; i++) {
        m->counts.tensors++;
        m->counts.changed += m->items[i].changed;
        m->counts.bytes_out += (int64_t)m->items[i].out.bytes;
        m->counts.four_bit = m->counts.four_bit || m->items[i].four_bit;
    }
    return ST_OK;
}

enum status merge_open(struct merge **out, const struct merge_options *o, struct err *e) {
    struct merge *m = *out = mem_alloc(sizeof *m);
    struct load_options as_it_is = {.quantize = {.type = F32}};
    m->o = *o;
    m->sources = mem_alloc((size_t)o->adapter_count * sizeof *m->sources);
    if (o->adapter_count < 1 && !o->base_alone) err_set(e, ST_USAGE, "there is no adapter to merge");
    if (e->code == ST_OK && o->adapter_count) head_info_read(&m->head, o->adapters[0].dir, e);
    as_it_is.head =
        (struct head_options){.problem = m->head.problem, .num_labels = m->head.num_labels, .bias = m->head.bias};
    if (e->code == ST_OK) model_load(&m->model, o->model, o->be, &as_it_is, e);
    for (int64_t k = 0; k < o->adapter_count && e->code == ST_OK; k++)
        open_source(m, &m->sources[k], &o->adapters[k], e);
    if (e->code == ST_OK && plan(m, e) == ST_OK) return ST_OK;
    merge_free(m);
    *out = NULL;
    return e->code;
}

void merge_free(struct merge *m) {
    if (!m) return;
    for (int64_t k = 0; k < m->o.adapter_count; k++) {
        struct merge_source *s = &m->sources[k];
        targets_free(s->targets);
        cJSON_Delete(s->config);
        st_close(&s->file);
        free(s->used), free(s->where);
    }
    for (size_t i = 0; i < m->count; i++) free((char *)m->items[i].out.name), free(m->items[i].changes);
    free(m->items), free(m->sources);
    head_info_free(&m->head);
    model_free(m->model);
    free(m);
}

struct merge_counts merge_count(const struct merge *m) {
    return m->counts;
}

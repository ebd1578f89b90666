#include "lora/adapter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/regex.h"
#include "base/rng.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "lora/peft.h"
#include "lora/targets.h"

/* What is needed while it is decided what is trained. */
struct plan {
    struct adapter *a;
    struct targets *targets;
    struct regex *freeze;       // or NULL
    const struct st_set *file;  // when a folder is opened: a parameter is trained whole if it is there
    struct spelling ours, keys; // of the model's paths, and of the keys
    const char *where;          // names the config in errors
    double dropout;
    bool dora, rslora, lora_bias;
    const char *bias; // "none", "all", "lora_only"
};

static bool is_frozen(const struct plan *p, const char *name) { return p->freeze && regex_full(p->freeze, name); }

/* The path of a module or parameter in the spelling that config and keys are in; the caller frees it. */
static char *spelled(const struct plan *p, const char *path) { return spelling_change(path, &p->ours, &p->keys); }

/* --- settings ---------------------------------------------------------------------------------------------------- */

static enum status read_settings(struct plan *p, const cJSON *config, struct err *e) {
    static const char *const biases[] = {"none", "all", "lora_only"};
    bool known = false;
    if (json_num(config, p->where, "lora_dropout", 0, &p->dropout, e) != ST_OK ||
        json_bool(config, p->where, "use_dora", false, &p->dora, e) != ST_OK ||
        json_bool(config, p->where, "use_rslora", false, &p->rslora, e) != ST_OK ||
        json_bool(config, p->where, "lora_bias", false, &p->lora_bias, e) != ST_OK ||
        json_str(config, p->where, "bias", "none", &p->bias, e) != ST_OK)
        return e->code;
    for (int i = 0; i < 3; i++) known = known || strcmp(p->bias, biases[i]) == 0;
    if (!known)
        return err_set(e, ST_FAIL, "%s: bias is \"%s\", wanted \"none\", \"all\" or \"lora_only\"", p->where, p->bias);
    if (!(p->dropout >= 0 && p->dropout < 1))
        return err_set(e, ST_FAIL, "%s: lora_dropout is %g, wanted 0 or more and less than 1", p->where, p->dropout);
    if (p->dora && p->lora_bias)
        return err_set(e, ST_FAIL, "%s: use_dora and lora_bias do not go together; leave out one of them", p->where);
    return targets_new(&p->targets, config, p->where, e);
}

/* --- which tensors ----------------------------------------------------------------------------------------------- */

static struct trained *add_trained(struct adapter *a, char *key, struct tensor *slot, struct tensor *grad_slot,
                                   struct tensor shape) {
    a->trained = mem_resize(a->trained, (size_t)(a->count + 1) * sizeof *a->trained);
    struct trained *t = &a->trained[a->count++];
    *t = (struct trained){.key = key, .value = shape, .slot = slot, .grad_slot = grad_slot, .decays = true};
    return t;
}

static void add_lora(struct plan *p, struct lora *r, const struct linear *l, const char *path) {
    struct adapter *a = p->a;
    int64_t O = l->W.dim[0], I = l->W.dim[1];
    double alpha = targets_alpha(p->targets, path), rank = (double)targets_rank(p->targets, path);
    *r = (struct lora){.rank = (int64_t)rank, .dropout = (float)p->dropout, .dora = p->dora};
    r->scale = (float)(p->rslora ? alpha / sqrt(rank) : alpha / rank);
    r->stream = rng_stream(l->path);
    a->rank_total += r->rank;
    int64_t first = a->count;
    add_trained(a, mem_format("base_model.model.%s.lora_A.weight", path), &r->A, &r->gA,
                tensor_over2(NULL, F32, r->rank, I));
    add_trained(a, mem_format("base_model.model.%s.lora_B.weight", path), &r->B, &r->gB,
                tensor_over2(NULL, F32, O, r->rank));
    if (p->lora_bias)
        add_trained(a, mem_format("base_model.model.%s.lora_B.bias", path), &r->b, &r->gb, tensor_over1(NULL, F32, O));
    if (p->dora)
        add_trained(a, mem_format("base_model.model.%s.lora_magnitude_vector", path), &r->m, &r->gm,
                    tensor_over1(NULL, F32, O));
    for (int64_t i = first; i < a->count; i++) {
        a->trained[i].decays = !l->unused;
        a->trained[i].of_pictures = model_is_of_pictures(a->model, l->path);
    }
}

/* A module holds an adapter unless its weight, or it, is frozen by name. */
static bool takes_lora(const struct plan *p, const struct linear *l, const char *path) {
    char *weight = mem_format("%s.weight", l->path);
    bool wanted = targets_match(p->targets, path) && !is_frozen(p, l->path) && !is_frozen(p, weight);
    free(weight);
    return wanted;
}

static void refuse_no_target(const struct plan *p, const cJSON *config, struct err *e) {
    const struct model *m = p->a->model;
    const char **paths = mem_alloc((size_t)m->linear_count * sizeof(char *));
    struct text asked = {0}, there = {0};
    for (int64_t i = 0; i < m->linear_count; i++) paths[i] = m->linears[i]->path;
    cJSON *suffixes = targets_suffixes(paths, (size_t)m->linear_count, NULL, 0);
    targets_name(json_get(config, "target_modules"), &asked);
    targets_name(suffixes, &there);
    err_set(e, ST_FAIL, "%s: target_modules (%s) leaves no linear layer to put an adapter on; the model has %s",
            p->where, text_str(&asked), text_str(&there));
    cJSON_Delete(suffixes);
    text_free(&asked), text_free(&there);
    free(paths);
}

/* Something targeted that is not a linear layer: the module of a parameter that no linear layer holds. */
static enum status check_only_linear(const struct plan *p, struct err *e) {
    const struct model *m = p->a->model;
    for (int64_t i = 0; i < m->param_count && e->code == ST_OK; i++) {
        const char *name = m->params[i].name, *dot = strrchr(name, '.');
        char *module = mem_text_n(name, dot ? (size_t)(dot - name) : strlen(name)), *path = spelled(p, module);
        if (!model_linear(m, module) && targets_match(p->targets, path))
            err_set(
                e, ST_FAIL,
                "%s: target_modules takes in %s, which is no linear layer and cannot hold an adapter; leave it out, "
                "or train it whole by modules_to_save",
                p->where, module);
        free(module), free(path);
    }
    return e->code;
}

static enum status plan_loras(struct plan *p, const cJSON *config, struct err *e) {
    struct adapter *a = p->a;
    struct model *m = a->model;
    char **paths = mem_alloc((size_t)m->linear_count * sizeof(char *));
    for (int64_t i = 0; i < m->linear_count; i++) {
        char *path = spelled(p, m->linears[i]->path);
        if (takes_lora(p, m->linears[i], path))
            paths[i] = path, a->lora_count++;
        else
            free(path);
    }
    a->loras = mem_alloc((size_t)a->lora_count * sizeof *a->loras);
    struct lora *next = a->loras;
    for (int64_t i = 0; i < m->linear_count; i++) {
        if (!paths[i]) continue;
        m->linears[i]->lora = next; // adapter_free takes it out again, also when something fails from here on
        add_lora(p, next++, m->linears[i], paths[i]);
    }
    for (int64_t i = 0; i < m->linear_count; i++) free(paths[i]);
    free(paths);
    if (a->lora_count == 0) refuse_no_target(p, config, e);
    return e->code == ST_OK ? check_only_linear(p, e) : e->code;
}

/* The linear layer that a parameter belongs to, or NULL. */
static struct linear *linear_of(const struct model *m, const struct tensor *slot) {
    for (int64_t i = 0; i < m->linear_count; i++)
        if (slot == &m->linears[i]->W || slot == &m->linears[i]->b) return m->linears[i];
    return NULL;
}

static enum status add_whole(struct plan *p, char *key, const char *name, struct tensor *slot, struct tensor *grad_slot,
                             struct err *e) {
    if (tensor_is_4bit(slot)) {
        free(key);
        return err_set(
            e, ST_FAIL,
            "%s is held in 4 bits and cannot be trained whole; give it a low-rank adapter, or keep its type by "
            "quant_skip_modules",
            name);
    }
    struct tensor shape = *slot;
    shape.data = NULL, shape.type = F32;
    struct trained *t = add_trained(p->a, key, slot, grad_slot, shape);
    const struct linear *l = linear_of(p->a->model, slot);
    t->frozen = *slot;
    t->head = l && (model_is_output(p->a->model, l) || text_ends(l->path, ".score") || strcmp(l->path, "score") == 0);
    t->decays = !(t->head && slot == &l->b);
    t->of_pictures = model_is_of_pictures(p->a->model, name);
    return ST_OK;
}

/* PEFT's key of a parameter of the model: in a module that holds an adapter it lies below base_layer. */
static char *key_of(const char *path, bool wrapped) {
    const char *dot = strrchr(path, '.');
    if (!wrapped) return mem_format("base_model.model.%s", path);
    return mem_format("base_model.model.%.*s.base_layer%s", (int)(dot - path), path, dot);
}

/* Adds a parameter that PEFT's options train whole: by modules_to_save, or as a bias. PEFT may also store embedding and
 * head beside an adapter; what a file holds of them counts. */
static enum status plan_param(struct plan *p, const char *name, struct tensor *slot, struct tensor *grad_slot,
                              struct err *e) {
    const struct linear *l = linear_of(p->a->model, slot);
    char *path = spelled(p, name), *module = l ? spelled(p, l->path) : NULL;
    bool wrapped = l && takes_lora(p, l, module);
    bool saved = targets_save(p->targets, path);
    bool bias =
        text_ends(name, ".bias") && (strcmp(p->bias, "all") == 0 || (strcmp(p->bias, "lora_only") == 0 && wrapped));
    bool stored = p->file && (slot == &p->a->model->embed || slot == &p->a->model->head.W);
    if ((saved || bias || stored) && !is_frozen(p, name)) {
        char *key = key_of(path, wrapped);
        if (p->file ? st_find(p->file, key) != NULL : grad_slot != NULL)
            add_whole(p, key, name, slot, grad_slot, e);
        else
            free(key);
    }
    free(path), free(module);
    return e->code;
}

/* Each entry of modules_to_save trains something. The two names that PEFT adds for a classifier need not both be there.
 * */
static enum status check_saved(const struct plan *p, const cJSON *config, struct err *e) {
    const cJSON *entry, *list = json_get(config, "modules_to_save"), *task = json_get(config, "task_type");
    bool classifier = task && cJSON_IsString(task) && text_ends(task->valuestring, "_CLS");
    if (!list) return ST_OK;
    cJSON_ArrayForEach(entry, list) {
        const char *name = entry->valuestring;
        bool found = classifier && (strcmp(name, "score") == 0 || strcmp(name, "classifier") == 0);
        for (int64_t i = 0; i < p->a->count && !found; i++) {
            const struct trained *t = &p->a->trained[i];
            found = t->frozen.data && targets_entry_saves(name, t->key + strlen("base_model.model."));
        }
        if (!found)
            return err_set(e, ST_FAIL, "%s: modules_to_save: %s is no module of the model that can be trained%s",
                           p->where, name, p->file ? ", or its tensors are missing" : "");
    }
    return ST_OK;
}

static enum status plan_whole(struct plan *p, const cJSON *config, struct err *e) {
    struct model *m = p->a->model;
    for (int64_t i = 0; i < m->param_count && e->code == ST_OK; i++)
        plan_param(p, m->params[i].name, m->params[i].value, m->params[i].grad, e);
    if (m->config.text.tied && e->code == ST_OK) { // not in the register: its weight is the embedding's
        char *name = mem_format("%s.weight", m->head.path);
        plan_param(p, name, &m->head.W, &m->head.gW, e);
        free(name);
    }
    return e->code == ST_OK ? check_saved(p, config, e) : e->code;
}

/* finetuning_type full and projector. */
static enum status plan_params(struct plan *p, struct err *e) {
    struct model *m = p->a->model;
    bool all = p->a->finetuning == FINETUNE_FULL;
    if (!all && !m->projector_prefix)
        return err_set(e, ST_FAIL, "finetuning_type is projector, but a text model has none; wanted lora or full");
    for (int64_t i = 0; i < m->param_count && e->code == ST_OK; i++) {
        const struct param *x = &m->params[i];
        if (!x->grad || is_frozen(p, x->name)) continue;
        if (all || text_starts(x->name, m->projector_prefix))
            add_whole(p, mem_text(x->name), x->name, x->value, x->grad, e);
    }
    if (p->a->count == 0) err_set(e, ST_FAIL, "freeze leaves nothing to train");
    return e->code;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

/* The same place in another arena of equal layout. */
static struct tensor beside(const struct tensor *value, const struct tensor *values, const struct tensor *others) {
    struct tensor t = *value;
    t.data = (char *)others->data + ((char *)value->data - (char *)values->data);
    return t;
}

static void layout(struct adapter *a, struct arena *m) {
    for (int64_t i = 0; i < a->count; i++)
        a->trained[i].value.data = arena_bytes(m, tensor_bytes(&a->trained[i].value));
    a->values = tensor_over1(m->base, F32, (int64_t)(m->used / sizeof(float)));
    if (a->with_optimizer) {
        a->grads = arena_tensor1(m, F32, a->values.dim[0]);
        a->m = arena_tensor1(m, F32, a->values.dim[0]);
        a->v = arena_tensor1(m, F32, a->values.dim[0]);
    }
    for (int64_t i = 0; i < a->model->linear_count; i++) {
        struct lora *r = a->model->linears[i]->lora;
        if (!r || !r->dora) continue;
        int64_t O = a->model->linears[i]->W.dim[0];
        r->norms = arena_tensor1(m, F32, O);
        r->g = arena_tensor1(m, F32, O);
        r->g_less_1 = arena_tensor1(m, F32, O);
    }
}

static enum status place(struct adapter *a, struct err *e) {
    struct backend *be = a->model->be;
    struct arena count = {0};
    layout(a, &count);
    a->memory_bytes = count.peak;
    a->memory = backend_alloc(be, count.peak);
    if (!a->memory) return err_set(e, be->err.code, "the adapter: %s", be->err.text);
    struct arena real = arena_over(a->memory, count.peak);
    layout(a, &real);
    for (int64_t i = 0; i < a->count && a->with_optimizer; i++) {
        struct trained *t = &a->trained[i];
        t->grad = beside(&t->value, &a->values, &a->grads);
        t->m = beside(&t->value, &a->values, &a->m);
        t->v = beside(&t->value, &a->values, &a->v);
    }
    return ST_OK;
}

/* From here on the network reads what is trained. The head of a tied model that is trained in full is the embedding. */
static void hang(struct adapter *a) {
    struct model *m = a->model;
    for (int64_t i = 0; i < a->count; i++) {
        struct trained *t = &a->trained[i];
        *t->slot = t->value;
        if (t->grad_slot) *t->grad_slot = t->grad;
        if (a->finetuning == FINETUNE_FULL && m->config.text.tied && t->slot == &m->embed)
            m->head.W = t->value, m->head.gW = t->grad;
    }
}

static void take_out(struct adapter *a) {
    struct model *m = a->model;
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *t = &a->trained[i];
        if (!t->frozen.data || t->slot->data != t->value.data) continue;
        if (t->slot == &m->embed && m->head.W.data == t->value.data)
            m->head.W = t->frozen, m->head.gW = (struct tensor){0};
        *t->slot = t->frozen;
        if (t->grad_slot) *t->grad_slot = (struct tensor){0};
    }
    for (int64_t i = 0; i < m->linear_count; i++) {
        const struct lora *r = m->linears[i]->lora;
        if (r >= a->loras && r < a->loras + a->lora_count) m->linears[i]->lora = NULL;
    }
}

/* --- first values ------------------------------------------------------------------------------------------------ */

/* A (r,I): uniform within 1/sqrt(I), or normal with deviation 1/r. */
static void fill_A(float *out, const struct tensor *A, const char *key, uint64_t seed, bool gaussian) {
    uint64_t stream = rng_stream(key);
    double bound = 1 / sqrt((double)A->dim[1]), deviation = 1 / (double)A->dim[0];
    for (int64_t i = 0; i < A->dim[0] * A->dim[1]; i++)
        out[i] = (float)(gaussian ? deviation * rng_normal(seed, stream, (uint64_t)i)
                                  : bound * (2 * rng_uniform(seed, stream, (uint64_t)i) - 1));
}

static void initialise(struct adapter *a, uint64_t seed, bool gaussian) {
    struct backend *be = a->model->be;
    float *host = mem_alloc(tensor_bytes(&a->values));
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *t = &a->trained[i];
        ptrdiff_t at = ((char *)t->value.data - (char *)a->values.data) / (ptrdiff_t)sizeof *host;
        if (text_ends(t->key, ".lora_A.weight")) fill_A(host + at, &t->value, t->key, seed, gaussian);
    }
    backend_upload(be, &a->values, host);
    free(host);
    for (int64_t i = 0; i < a->count; i++)
        if (a->trained[i].frozen.data) op_copy(be, &a->trained[i].value, &a->trained[i].frozen);
    for (int64_t i = 0; i < a->model->linear_count; i++) {
        const struct linear *l = a->model->linears[i];
        if (!l->lora || !l->lora->dora) continue;
        op_row_norms(be, &l->lora->norms, &l->W, &l->lora->A, &l->lora->B, l->lora->scale);
        op_copy(be, &l->lora->m, &l->lora->norms);
    }
}

/* The place in `rounded` of a tensor in `values`. */
static struct tensor rounded_of(const struct adapter *a, const struct tensor *value) {
    struct tensor t = *value;
    t.type = BF16;
    t.data = (char *)a->rounded.data + ((char *)value->data - (char *)a->values.data) / 2;
    return t;
}

enum status adapter_round(struct adapter *a, struct err *e) {
    struct backend *be = a->model->be;
    struct tensor t = tensor_over1(NULL, BF16, a->values.dim[0]);
    if (!a->lora_count) return ST_OK;
    t.data = backend_alloc(be, tensor_bytes(&t));
    if (!t.data) return err_set(e, be->err.code, "the adapter: %s", be->err.text);
    a->rounded = t;
    a->memory_bytes += tensor_bytes(&t);
    for (int64_t i = 0; i < a->lora_count; i++) {
        struct lora *r = &a->loras[i];
        r->rounded_A = rounded_of(a, &r->A), r->rounded_B = rounded_of(a, &r->B);
    }
    adapter_refresh(a);
    return backend_sync(be, e);
}

void adapter_refresh(struct adapter *a) {
    if (a->rounded.data) op_copy(a->model->be, &a->rounded, &a->values);
    for (int64_t i = 0; i < a->model->linear_count; i++) linear_refresh(a->model->be, a->model->linears[i]);
}

/* --- new, open, read, free --------------------------------------------------------------------------------------- */

/* "all-linear" as the list of last parts that means the same. */
static void expand_all_linear(cJSON *config, const struct model *m) {
    cJSON *modules = cJSON_GetObjectItemCaseSensitive(config, "target_modules");
    if (!cJSON_IsString(modules) || strcasecmp(modules->valuestring, "all-linear") != 0) return;
    const char **paths = mem_alloc((size_t)m->linear_count * sizeof(char *)), *head = NULL;
    size_t n = 0;
    for (int64_t i = 0; i < m->linear_count; i++) {
        if (model_is_output(m, m->linears[i]))
            head = m->linears[i]->path;
        else
            paths[n++] = m->linears[i]->path;
    }
    cJSON_ReplaceItemInObjectCaseSensitive(config, "target_modules", targets_suffixes(paths, n, &head, head ? 1 : 0));
    free(paths);
}

/* A frozen module that target_modules takes in is left out by name, so that whoever loads the adapter puts none there.
 * */
static void exclude_frozen(const struct plan *p, cJSON *config) {
    const struct model *m = p->a->model;
    cJSON *old = cJSON_GetObjectItemCaseSensitive(config, "exclude_modules"), *list;
    bool expression = old && cJSON_IsString(old);
    struct text joined = {0};
    list = old && cJSON_IsArray(old) ? cJSON_Duplicate(old, true) : cJSON_CreateArray();
    if (expression) text_addf(&joined, "(?:%s)", old->valuestring);
    for (int64_t i = 0; i < m->linear_count; i++) {
        const struct linear *l = m->linears[i];
        if (!targets_match(p->targets, l->path) || takes_lora(p, l, l->path)) continue;
        cJSON_AddItemToArray(list, cJSON_CreateString(l->path));
        text_addf(&joined, "|%s", l->path); // an unescaped dot matches a dot, and no other module differs only there
    }
    cJSON *value = expression ? cJSON_CreateString(text_str(&joined)) : list;
    if (expression) cJSON_Delete(list);
    text_free(&joined);
    cJSON_DeleteItemFromObjectCaseSensitive(config, "exclude_modules");
    cJSON_AddItemToObject(config, "exclude_modules", value);
}

static enum status plan_adapter(struct plan *p, cJSON *config, struct err *e) {
    if (read_settings(p, config, e) != ST_OK) return e->code;
    if (plan_loras(p, config, e) != ST_OK) return e->code;
    return plan_whole(p, config, e);
}

static void plan_free(struct plan *p) {
    targets_free(p->targets);
    regex_free(p->freeze);
}

enum status adapter_new(struct adapter **out, struct model *m, const struct adapter_options *o, struct err *e) {
    struct adapter *a = *out = mem_alloc(sizeof *a);
    struct plan p = {.a = a, .ours = spelling_of_model(m), .keys = spelling_of_model(m), .where = "the adapter"};
    cJSON *config = NULL;
    a->model = m, a->finetuning = o->finetuning, a->with_optimizer = true;
    if (o->freeze) p.freeze = regex_new(o->freeze, "freeze", e);
    if (e->code != ST_OK) goto done;
    if (o->finetuning == FINETUNE_LORA) {
        config = peft_config_new(o);
        expand_all_linear(config, m);
        if (plan_adapter(&p, config, e) != ST_OK) goto done;
        if (p.freeze) exclude_frozen(&p, config);
        a->config = peft_config_written(config);
    } else {
        plan_params(&p, e);
    }
    if (e->code != ST_OK || place(a, e) != ST_OK) goto done;
    hang(a);
    initialise(a, o->seed, o->init_gaussian);
    adapter_refresh(a);
    backend_sync(m->be, e);
done:
    plan_free(&p);
    cJSON_Delete(config);
    if (e->code == ST_OK) return ST_OK;
    adapter_free(a);
    *out = NULL;
    return e->code;
}

enum status adapter_open(struct adapter **out, struct model *m, const char *dir, struct err *e) {
    struct adapter *a = *out = mem_alloc(sizeof *a);
    struct st_set file = {0};
    struct plan p = {.a = a, .file = &file, .ours = spelling_of_model(m)};
    char *where = path_join(dir, "adapter_config.json");
    cJSON *config = NULL;
    a->model = m, p.where = where;
    if (peft_config_read(&config, dir, e) != ST_OK || peft_tensors_open(&file, dir, e) != ST_OK) goto done;
    p.keys = spelling_of_file(m, &file);
    expand_all_linear(config, m);
    a->config = peft_config_written(config);
    if (plan_adapter(&p, config, e) != ST_OK) goto done;
    if (peft_tensors_load(a, &file, dir, &p.keys, &p.keys, e) != ST_OK || place(a, e) != ST_OK) goto done;
    if (peft_tensors_load(a, &file, dir, &p.keys, &p.keys, e) != ST_OK) goto done;
    hang(a);
    adapter_refresh(a);
    backend_sync(m->be, e);
done:
    plan_free(&p);
    cJSON_Delete(config);
    st_close(&file);
    free(where);
    if (e->code == ST_OK) return ST_OK;
    adapter_free(a);
    *out = NULL;
    return e->code;
}

/* Keys that give the same tensors another meaning; a missing one has PEFT's default. */
static enum status same_meaning(const cJSON *ours, const cJSON *theirs, const char *dir, struct err *e) {
    static const struct {
        const char *key;
        double fallback;
    } keys[] = {{"lora_alpha", 8}, {"use_rslora", 0}, {"use_dora", 0}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *pair[] = {json_get(ours, keys[i].key), json_get(theirs, keys[i].key)};
        double value[2];
        for (int k = 0; k < 2; k++)
            value[k] = !pair[k]                ? keys[i].fallback
                       : cJSON_IsBool(pair[k]) ? cJSON_IsTrue(pair[k])
                                               : pair[k]->valuedouble;
        if (value[0] != value[1])
            return err_set(e, ST_FAIL,
                           "%s: the adapter has %s %g, the run has %g; set %s as in its adapter_config.json", dir,
                           keys[i].key, value[1], value[0], keys[i].key);
    }
    return ST_OK;
}

enum status adapter_read(struct adapter *a, const char *dir, struct err *e) {
    struct st_set file = {0};
    cJSON *config = NULL;
    if (!a->config) return err_set(e, ST_FAIL, "%s: an adapter continues only with finetuning_type lora", dir);
    if (peft_config_read(&config, dir, e) == ST_OK && same_meaning(a->config, config, dir, e) == ST_OK &&
        peft_tensors_open(&file, dir, e) == ST_OK) {
        struct spelling ours = spelling_of_model(a->model), theirs = spelling_of_file(a->model, &file);
        if (peft_tensors_load(a, &file, dir, &ours, &theirs, e) == ST_OK) {
            adapter_refresh(a);
            backend_sync(a->model->be, e);
        }
    }
    cJSON_Delete(config);
    st_close(&file);
    return e->code;
}

void adapter_free(struct adapter *a) {
    if (!a) return;
    take_out(a);
    for (int64_t i = 0; i < a->count; i++) free(a->trained[i].key);
    if (a->memory) backend_release(a->model->be, a->memory);
    if (a->rounded.data) backend_release(a->model->be, a->rounded.data);
    cJSON_Delete(a->config);
    cJSON_Delete(a->labels);
    free(a->trained), free(a->loras);
    free(a);
}

int64_t adapter_param_total(const struct adapter *a) {
    int64_t n = 0;
    for (int64_t i = 0; i < a->count; i++) n += tensor_count(&a->trained[i].value);
    return n;
}

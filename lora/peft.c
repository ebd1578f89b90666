#include "lora/peft.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/floats.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "lora/base_mark.h"
#include "lora/head.h"

static const char PREFIX[] = "base_model.model.";

/* --- adapter_config.json ----------------------------------------------------------------------------------------- */

/* Keys that are written, sorted. Those that not every PEFT knows are left out at their default, except for two that a
 * reader looks for. */
static const struct written_key {
    const char *name, *fallback; // as JSON
    bool always;
} WRITTEN[] = {
    {"alpha_pattern", "{}", false},
    {"auto_mapping", "null", true},
    {"base_model_name_or_path", "null", true},
    {"bias", "\"none\"", true},
    {"exclude_modules", "null", false},
    {"fan_in_fan_out", "false", true},
    {"inference_mode", "true", true},
    {"init_lora_weights", "true", true},
    {"layers_pattern", "null", true},
    {"layers_to_transform", "null", true},
    {"lora_alpha", "8", true},
    {"lora_bias", "false", false},
    {"lora_dropout", "0", true},
    {"modules_to_save", "null", true},
    {"peft_type", "\"LORA\"", true},
    {"r", "8", true},
    {"rank_pattern", "{}", false},
    {"revision", "null", true},
    {"target_modules", "null", true},
    {"task_type", "null", true},
    {"use_dora", "false", true},
    {"use_rslora", "false", true},
};

/* Keys that change what the adapter computes in a way that graft does not. */
static const char *const REFUSED[] = {
    "alora_invocation_tokens", "arrow_config",      "ensure_weight_tying",
    "fan_in_fan_out",          "kasa_config",       "layer_replication",
    "megatron_config",         "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora",        "use_qalora",
    "velora_config",
};

/* Keys that may be set and change nothing in a trained adapter. */
static const char *const IGNORED_KEYS[] = {
    "corda_config", "eva_config", "loftq_config", "lora_ga_config", "merge_weights", "runtime_config",
};

/* Ways to initialise that move a part of the frozen weights into the adapter. */
static const char *const CHANGES_BASE[] = {"pissa", "olora", "corda", "lora_ga", "loftq"};

static bool is_truthy(const cJSON *v) {
    if (!v || cJSON_IsNull(v) || cJSON_IsFalse(v)) return false;
    if (cJSON_IsNumber(v)) return v->valuedouble != 0;
    if (cJSON_IsString(v)) return v->valuestring[0] != 0;
    return cJSON_IsTrue(v) || v->child != NULL;
}

cJSON *peft_config_written(const cJSON *config) {
    cJSON *out = cJSON_CreateObject();
    for (size_t i = 0; i < sizeof WRITTEN / sizeof *WRITTEN; i++) {
        const struct written_key *k = &WRITTEN[i];
        const cJSON *v = json_get(config, k->name);
        if (!k->always && !is_truthy(v)) continue;
        bool fixed = strcmp(k->name, "inference_mode") == 0; // true in every file: nobody trains just by loading
        cJSON_AddItemToObject(out, k->name, v && !fixed ? cJSON_Duplicate(v, true) : cJSON_Parse(k->fallback));
    }
    return out;
}

static void add_copy(cJSON *config, const char *key, const cJSON *v) {
    if (v) cJSON_AddItemToObject(config, key, cJSON_Duplicate(v, true));
}

static void set_default_targets(cJSON *config) {
    if (json_get(config, "target_modules")) return;
    cJSON_DeleteItemFromObjectCaseSensitive(config, "target_modules");
    cJSON_AddItemToObject(config, "target_modules", cJSON_Parse("[\"q_proj\", \"v_proj\"]"));
}

/* PEFT trains whatever is called so under this task. */
static void add_classifier(cJSON *config) {
    static const char *const names[] = {"classifier", "score"};
    cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "modules_to_save"), *v;
    if (!cJSON_IsArray(list)) {
        cJSON_DeleteItemFromObjectCaseSensitive(config, "modules_to_save");
        list = cJSON_AddArrayToObject(config, "modules_to_save");
    }
    for (int i = 0; i < 2; i++) {
        bool there = false;
        cJSON_ArrayForEach(v, list) there = there || (cJSON_IsString(v) && strcmp(v->valuestring, names[i]) == 0);
        if (!there) cJSON_AddItemToArray(list, cJSON_CreateString(names[i]));
    }
}

cJSON *peft_config_new(const struct adapter_options *o) {
    static const char *const bias[] = {[BIAS_NONE] = "none", [BIAS_ALL] = "all", [BIAS_LORA_ONLY] = "lora_only"};
    cJSON *c = cJSON_CreateObject();
    cJSON_AddNumberToObject(c, "r", (double)o->r);
    cJSON_AddNumberToObject(c, "lora_alpha", o->alpha);
    cJSON_AddNumberToObject(c, "lora_dropout", o->dropout);
    cJSON_AddBoolToObject(c, "use_dora", o->use_dora);
    cJSON_AddBoolToObject(c, "use_rslora", o->use_rslora);
    cJSON_AddBoolToObject(c, "lora_bias", o->lora_bias);
    cJSON_AddStringToObject(c, "bias", bias[o->bias]);
    if (o->init_gaussian) cJSON_AddStringToObject(c, "init_lora_weights", "gaussian");
    if (o->task_type) cJSON_AddStringToObject(c, "task_type", o->task_type);
    if (o->base_model) cJSON_AddStringToObject(c, "base_model_name_or_path", o->base_model);
    add_copy(c, "target_modules", o->target_modules);
    add_copy(c, "exclude_modules", o->exclude_modules);
    add_copy(c, "layers_to_transform", o->layers_to_transform);
    add_copy(c, "rank_pattern", o->rank_pattern);
    add_copy(c, "alpha_pattern", o->alpha_pattern);
    add_copy(c, "modules_to_save", o->modules_to_save);
    if (o->task_type && strcmp(o->task_type, "SEQ_CLS") == 0) add_classifier(c);
    set_default_targets(c);
    return c;
}

static bool is_in(const char *const *names, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

/* A key that is not known here switches something on where it is true, or a list or object that is not empty; a number
 * or a word alone is a detail of what is off. */
static bool is_unknown_switch(const cJSON *v) {
    bool known = is_in(IGNORED_KEYS, sizeof IGNORED_KEYS / sizeof *IGNORED_KEYS, v->string);
    for (size_t i = 0; i < sizeof WRITTEN / sizeof *WRITTEN; i++)
        known = known || strcmp(WRITTEN[i].name, v->string) == 0;
    return !known && !cJSON_IsNumber(v) && !cJSON_IsString(v) && is_truthy(v);
}

static enum status check_switches(const cJSON *config, const char *path, struct err *e) {
    const cJSON *v;
    cJSON_ArrayForEach(v, config) {
        if (is_in(REFUSED, sizeof REFUSED / sizeof *REFUSED, v->string) ? !is_truthy(v) : !is_unknown_switch(v))
            continue;
        return err_set(e, ST_FAIL,
                       "%s: %.80s is set, which changes what the adapter computes and is not supported; use this "
                       "adapter with PEFT, or train one without it",
                       path, v->string);
    }
    return ST_OK;
}

static enum status check_supported(const cJSON *config, const char *path, struct err *e) {
    const char *type = NULL, *init = "";
    if (json_str(config, path, "peft_type", NULL, &type, e) != ST_OK) return e->code;
    if (!type || strcmp(type, "LORA") != 0)
        return err_set(e, ST_FAIL, "%s: peft_type is %s, wanted LORA; other kinds of adapters are not supported", path,
                       type ? type : "missing");
    if (check_switches(config, path, e) != ST_OK) return e->code;
    const cJSON *v = json_get(config, "init_lora_weights");
    if (v && cJSON_IsString(v)) init = v->valuestring;
    for (size_t i = 0; i < sizeof CHANGES_BASE / sizeof *CHANGES_BASE; i++)
        if (strncasecmp(init, CHANGES_BASE[i], strlen(CHANGES_BASE[i])) == 0)
            return err_set(
                e, ST_FAIL,
                "%s: init_lora_weights is %.80s, which changed the base model too; save the adapter with PEFT's "
                "path_initial_model_for_weight_conversion, so that it fits the original one, or set the key to true "
                "and name the changed model",
                path, init);
    return ST_OK;
}

enum status peft_config_read(cJSON **config, const char *dir, struct err *e) {
    *config = NULL;
    char *path = path_join(dir, "adapter_config.json");
    if (!file_exists(path)) err_set(e, ST_FAIL, "%s: there is no such file; wanted a PEFT folder as the adapter", path);
    cJSON *c = e->code == ST_OK ? json_read(path, e) : NULL;
    if (c && !cJSON_IsObject(c)) err_set(e, ST_FAIL, "%s: not an object", path);
    if (c && e->code == ST_OK) check_supported(c, path, e);
    if (e->code == ST_OK)
        set_default_targets(*config = c);
    else
        cJSON_Delete(c);
    free(path);
    return e->code;
}

/* --- spellings of module paths ----------------------------------------------------------------------------------- */

static const char *head_beside(const char *text) {
    return strcmp(text, "language_model.model") == 0 ? "language_model.lm_head" : "lm_head";
}

/* Only mllava and mfuyu have been spelled in more than one way. */
struct spelling spelling_of_model(const struct model *m) {
    if (m->config.family == FAMILY_MFUYU)
        return (struct spelling){
            .text = m->text_prefix, .vision = m->vision_prefix, .head = head_beside(m->text_prefix)};
    if (m->config.family != FAMILY_MLLAVA) return (struct spelling){.text = m->text_prefix, .head = "lm_head"};
    return (struct spelling){m->text_prefix, m->vision_prefix, m->projector_prefix, head_beside(m->text_prefix)};
}

/* The length of the part of s that is `prefix` and ends at a dot or at the end of s; 0 when it is not there. */
static size_t prefix_length(const char *s, const char *prefix) {
    size_t n = prefix ? strlen(prefix) : 0;
    return n && strncmp(s, prefix, n) == 0 && (s[n] == '.' || s[n] == 0) ? n : 0;
}

static const char *find_spelling(const struct st_set *s, const char *const *prefixes) {
    for (; *prefixes; prefixes++)
        for (size_t i = 0; i < s->count; i++)
            if (text_starts(s->entries[i].name, PREFIX) &&
                prefix_length(s->entries[i].name + sizeof PREFIX - 1, *prefixes))
                return *prefixes;
    return NULL;
}

struct spelling spelling_of_file(const struct model *m, const struct st_set *s) {
    static const char *const text[] = {"language_model.model", "model.language_model", NULL};
    static const char *const patches[] = {"vision_embed_tokens", "model.vision_embed_tokens", NULL};
    static const char *const tower[] = {"vision_tower.vision_model", "model.vision_tower.vision_model", "vision_tower",
                                        "model.vision_tower", NULL};
    static const char *const projector[] = {"multi_modal_projector", "model.multi_modal_projector", NULL};
    static const char *const head[] = {"language_model.lm_head", "lm_head", NULL};
    struct spelling f = spelling_of_model(m);
    const bool flat = f.projector && text_ends(f.vision, "vision_tower"); // no vision_model in between
    const char *const *vision = f.projector ? tower : patches;            // mfuyu has nothing between patches and text
    if (!f.vision) return f;
    const char *t = find_spelling(s, text), *v = find_spelling(s, vision), *p = find_spelling(s, projector);
    const char *h = find_spelling(s, head);
    bool newer = t ? t == text[1] : v ? v[0] == 'm' : p ? p == projector[1] : f.text[0] == 'm';
    f.text = t ? t : text[newer];
    f.vision = v ? v : newer == (f.vision[0] == 'm') ? f.vision : vision[newer + (flat ? 2 : 0)];
    if (f.projector) f.projector = p ? p : projector[newer];
    f.head = h ? h : head_beside(f.text);
    return f;
}

char *spelling_change(const char *path, const struct spelling *from, const struct spelling *to) {
    const char *const pairs[][2] = {
        {from->head, to->head}, {from->text, to->text}, {from->vision, to->vision}, {from->projector, to->projector}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        size_t n = prefix_length(path, pairs[i][0]);
        if (n) return mem_format("%s%s", pairs[i][1], path + n);
    }
    return mem_text(path);
}

static char *change_key(const char *key, const struct spelling *from, const struct spelling *to) {
    if (!text_starts(key, PREFIX)) return mem_text(key);
    char *path = spelling_change(key + sizeof PREFIX - 1, from, to), *changed = mem_format("%s%s", PREFIX, path);
    free(path);
    return changed;
}

/* --- adapter_model.safetensors ----------------------------------------------------------------------------------- */

enum status peft_tensors_open(struct st_set *s, const char *dir, struct err *e) {
    char *one = path_join(dir, "adapter_model.safetensors"), *pickle = path_join(dir, "adapter_model.bin");
    if (!file_exists(one) && file_exists(pickle))
        err_set(e, ST_FAIL,
                "%s: a pickle, which can run code when it is read; load the adapter with PEFT and store it again with "
                "save_pretrained(..., safe_serialization=True)",
                pickle);
    free(one), free(pickle);
    return e->code == ST_OK ? st_open_dir(s, dir, "adapter_model", e) : e->code;
}

/* Rows and columns of an entry; trailing dimensions are taken together, as the model does. */
static bool shape_fits(const struct st_entry *t, const struct tensor *want) {
    int64_t rest = 1;
    if (t->rank < want->rank || t->rank < 1 || (want->rank == 1 && t->rank != 1)) return false;
    for (int i = 1; i < t->rank; i++) rest *= t->dim[i];
    return t->dim[0] == want->dim[0] && rest == want->dim[1];
}

static void shape_text(struct text *out, int rank, const int64_t *dim) {
    text_add_char(out, '(');
    for (int i = 0; i < rank; i++) text_addf(out, i ? ",%lld" : "%lld", (long long)dim[i]);
    text_add_char(out, ')');
}

/* Embedding and output layer have a row for each token. */
static bool has_other_rows(const struct st_entry *t, const struct tensor *want) {
    bool table = text_ends(t->name, ".embed_tokens.weight") || text_ends(t->name, "lm_head.weight") ||
                 text_ends(t->name, "lm_head.base_layer.weight");
    return table && t->rank == 2 && t->dim[1] == want->dim[1] && t->dim[0] != want->dim[0];
}

static enum status check_entry(const struct st_entry *t, const struct tensor *want, struct err *e) {
    struct text got = {0}, wanted = {0};
    shape_text(&got, t->rank, t->dim);
    shape_text(&wanted, want->rank, want->dim);
    if (!shape_fits(t, want))
        err_set(e, ST_FAIL, "%s: tensor %s has shape %s, wanted %s by rank and model%s", t->file, t->name,
                text_str(&got), text_str(&wanted),
                has_other_rows(t, want)
                    ? "; the vocabulary was resized before training: name the model as it was then, "
                      "or resize it alike (resize_token_embeddings) and save it"
                    : "");
    else if (t->type != ST_F32 && t->type != ST_BF16 && t->type != ST_F16)
        err_set(e, ST_FAIL, "%s: tensor %s has type %s, wanted F32, BF16 or F16", t->file, t->name,
                st_type_name(t->type));
    text_free(&got), text_free(&wanted);
    return e->code;
}

static void upload(const struct adapter *a, const struct tensor *value, const struct st_entry *t) {
    float *host = mem_alloc(tensor_bytes(value));
    floats_read(host, t->data, floats_type(t), 0, tensor_count(value));
    backend_upload(a->model->be, value, host);
    st_forget(t);
    free(host);
}

/* Parts of the vision tower that come after the layer whose output is used. */
static bool is_left_out(const char *key, const struct spelling *file) {
    if (!file->vision || !text_starts(key, PREFIX)) return false;
    const char *path = key + sizeof PREFIX - 1;
    size_t n = prefix_length(path, file->vision);
    return n && (text_starts(path + n, ".head.") || text_starts(path + n, ".post_layernorm."));
}

bool peft_is_copy(const char *key) {
    return text_ends(key, ".bias") && (strstr(key, ".original_module.") || strstr(key, ".modules_to_save."));
}

static const struct st_entry *find_entry(const struct st_set *s, const char *key, const struct spelling *ours,
                                         const struct spelling *file) {
    char *name = change_key(key, ours, file);
    const struct st_entry *t = st_find(s, name);
    free(name);
    return t;
}

static bool same_numbers(const struct st_entry *t, const struct model *m, const struct tensor *W) {
    enum dtype type = floats_type(t);
    if (!shape_fits(t, W) || tensor_is_4bit(W) || (type == F16 && t->type != ST_F16)) return false;
    void *host = mem_alloc(tensor_bytes(W));
    struct err e = {0};
    backend_download(m->be, host, W);
    bool same = backend_sync(m->be, &e) == ST_OK;
    for (int64_t i = 0, n = tensor_count(W); i < n && same; i++)
        same = floats_at(t->data, type, i) == floats_at(host, W->type, i);
    free(host);
    return same;
}

/* PEFT stores the weight of an adapted head too. An adapter that continues is trained over the model's own. */
static bool is_own_head(const struct adapter *a, const struct st_entry *t, const struct spelling *ours,
                        const struct spelling *file) {
    const struct linear *head = &a->model->head;
    char *path = spelling_change(head->path, ours, file), *key = mem_format("%s%s.base_layer.weight", PREFIX, path);
    bool same = head->lora && strcmp(t->name, key) == 0 && same_numbers(t, a->model, &head->W);
    free(path), free(key);
    return same;
}

enum status peft_tensors_load(struct adapter *a, const struct st_set *s, const char *dir, const struct spelling *ours,
                              const struct spelling *file, struct err *e) {
    bool *used = mem_alloc(s->count * sizeof *used);
    const struct st_entry **entries = mem_alloc((size_t)a->count * sizeof(struct st_entry *));
    for (int64_t i = 0; i < a->count && e->code == ST_OK; i++) {
        const struct trained *t = &a->trained[i];
        const struct st_entry *from = entries[i] = find_entry(s, t->key, ours, file);
        if (!from) {
            err_set(e, ST_FAIL, "%s: tensor %s is missing; adapter_config.json asks for it", dir, t->key);
        } else if (check_entry(from, &t->value, e) == ST_OK) {
            used[from - s->entries] = true;
        }
    }
    for (size_t i = 0; i < s->count && e->code == ST_OK; i++)
        if (!used[i] && !peft_is_copy(s->entries[i].name) && !is_left_out(s->entries[i].name, file) &&
            !is_own_head(a, &s->entries[i], ours, file))
            err_set(e, ST_FAIL, "%s: tensor %s belongs to nothing that adapter_config.json and the model have",
                    s->entries[i].file, s->entries[i].name);
    if (e->code == ST_OK && a->memory) op_zero(a->model->be, &a->values); // what lies between the tensors
    for (int64_t i = 0; i < a->count && e->code == ST_OK && a->memory; i++) upload(a, &a->trained[i].value, entries[i]);
    free(used), free(entries);
    return e->code;
}

/* A convolution's weight keeps its four dimensions in a file. */
static void set_shape(struct st_entry *out, const struct trained *t, const struct model *m) {
    const int64_t p = m->config.vision.patch;
    out->rank = t->value.rank;
    for (int i = 0; i < t->value.rank; i++) out->dim[i] = t->value.dim[i];
    if (t->slot != &m->vit.patch.W) return;
    out->rank = 4, out->dim[1] = 3, out->dim[2] = out->dim[3] = p;
}

static enum status write_tensors(const struct adapter *a, const char *path, struct err *e) {
    struct st_entry *entries = mem_alloc((size_t)a->count * sizeof *entries);
    float *host = mem_alloc(tensor_bytes(&a->values));
    const char *base = a->values.data;
    backend_download(a->model->be, host, &a->values);
    if (backend_sync(a->model->be, e) != ST_OK) goto done;
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *t = &a->trained[i];
        struct st_entry *out = &entries[i];
        *out = (struct st_entry){.name = t->key, .type = ST_F32, .bytes = tensor_bytes(&t->value)};
        out->data = (const char *)host + ((const char *)t->value.data - base);
        set_shape(out, t, a->model);
    }
    st_write(path, entries, (size_t)a->count, e);
done:
    free(entries), free(host);
    return e->code;
}

enum status adapter_write(const struct adapter *a, const char *dir, struct err *e) {
    if (!a->config)
        return err_set(e, ST_FAIL,
                       "%s: finetuning_type full and projector leave no adapter; they are written as a model", dir);
    char *tensors = path_join(dir, "adapter_model.safetensors");
    if (write_tensors(a, tensors, e) == ST_OK) json_write_in(dir, "adapter_config.json", a->config, e);
    const cJSON *base = json_get(a->config, "base_model_name_or_path");
    enum dtype four_bit = a->model->weights.quantize.type;
    if (e->code == ST_OK)
        base_mark_write(dir, cJSON_IsString(base) ? base->valuestring : "", &a->model->weights.files,
                        four_bit == F32 ? NULL : dtype_name(four_bit), e);
    if (e->code == ST_OK && a->labels) head_labels_write(a->labels, dir, e);
    free(tensors);
    return e->code;
}

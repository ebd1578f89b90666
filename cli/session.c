#include "cli/session.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/family.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "lora/base_mark.h"
#include "lora/peft.h"

enum status session_open(struct session *s, const struct flags *f, const char *model, struct err *e) {
    s->be = backend_new(flag_text(f, "device"), (int)flag_int(f, "threads"), e);
    if (!s->be) return e->code;
    s->model_dir = model_dir(model, e);
    if (!s->model_dir) return e->code;
    if (family_open(s->model_dir, &s->config, &s->family, &s->tokenizer, e) != ST_OK) return e->code;
    s->act = family_dtype(f, &s->config);
    return ST_OK;
}

/* --- the head ---------------------------------------------------------------------------------------------------- */

/* Before the head, which would otherwise be what is missing. */
static enum status check_adapter(const char *dir, struct err *e) {
    cJSON *config = NULL;
    peft_config_read(&config, dir, e);
    cJSON_Delete(config);
    return e->code;
}

enum status session_choose_head(struct session *s, const char *adapter, const char *problem, int64_t num_labels,
                                struct err *e) {
    struct data_family *f = &s->family;
    struct head_info *h = &s->adapter_head;
    if (adapter && (check_adapter(adapter, e) != ST_OK || head_info_read(h, adapter, e) != ST_OK)) return e->code;
    bool has = s->config.problem != PROBLEM_GENERATION;
    if (h->problem != PROBLEM_GENERATION) {
        if (h->problem != PROBLEM_UNSAID || !has) f->problem = h->problem;
        f->num_labels = h->num_labels;
        if (h->names) f->label_names = h->names, f->names_bind = true;
    }
    if (problem) problem_find(&f->problem, problem);
    if (f->problem == PROBLEM_GENERATION && has)
        return err_set(e, ST_USAGE, "%s: problem_type is generation, but the model has a classification head",
                       s->config.path);
    if (num_labels && f->num_labels && num_labels != f->num_labels)
        return err_set(e, ST_USAGE, "%s: num_labels is %lld, but the head has %lld outputs", s->config.path,
                       (long long)num_labels, (long long)f->num_labels);
    if (num_labels) f->num_labels = num_labels;
    bool single = f->problem == PROBLEM_SINGLE_LABEL;
    if (single && !f->num_labels)
        return err_set(e, ST_USAGE,
                       "%s: problem_type single_label_classification wants num_labels, how many classes there are",
                       s->config.path);
    s->head =
        (struct head_options){f->problem, f->num_labels, has || h->num_labels ? h->bias : f->family != FAMILY_TEXT, 0};
    return ST_OK;
}

enum status session_settle_head(struct session *s, const struct dataset *d, struct err *e) {
    enum problem asked = s->family.problem, given = dataset_problem(d);
    if (asked == PROBLEM_GENERATION && given != PROBLEM_GENERATION)
        return err_set(e, ST_FAIL,
                       "%s: the model has no head for rows of format classification; set problem_type (regression, "
                       "single_label_classification, multi_label_classification), or give an adapter that has a head",
                       s->model_dir);
    if (asked != PROBLEM_GENERATION && given == PROBLEM_GENERATION)
        return err_set(e, ST_FAIL,
                       "%s: a classification head wants rows of format classification, the data has chat rows",
                       s->model_dir);
    if (given == PROBLEM_GENERATION) return ST_OK;
    s->head.problem = s->family.problem = given;
    if (!s->head.num_labels) s->head.num_labels = s->family.num_labels = dataset_label_count(d);
    return ST_OK;
}

char **session_output_names(const struct session *s, const struct dataset *d) {
    int64_t n = s->model->config.num_labels;
    const char *const *given = s->family.label_names;
    if (d && dataset_problem(d) != PROBLEM_SINGLE_LABEL && dataset_label_count(d) == n) given = dataset_label_names(d);
    char **names = mem_alloc((size_t)n * sizeof *names);
    for (int64_t i = 0; i < n; i++) names[i] = given ? mem_text(given[i]) : mem_format("LABEL_%lld", (long long)i);
    return names;
}

static enum status load(struct session *s, const struct load_options *o, struct err *e) {
    return model_load(&s->model, s->model_dir, s->be, o, e);
}

struct backend *session_host(const struct flags *f, const char *work, struct err *e) {
    const char *device = flag_text(f, "device");
    bool other = text_starts(device, "cuda");
    if (other) out_note(f, "note: %s is done on the CPU, and does not use --device %s", work, device);
    return backend_new(other || strcmp(device, "auto") == 0 ? "cpu" : device, (int)flag_int(f, "threads"), e);
}

enum status session_note_base(const struct flags *f, const char *adapter, bool quantised, const struct model *m,
                              struct err *e) {
    struct base_mark b;
    if (base_mark_read(&b, adapter, e) == ST_OK && m && !base_mark_fits(&b, &m->weights.files, quantised))
        out_note(f, "note: %s was trained on other weights (%s) than those of %s", adapter, b.model, m->weights.dir);
    else if (b.quantization && !quantised)
        out_note(f,
                 "base: the weights as they are, although %s was trained beside their %s form; for what it learned, "
                 "train, measure and use it on one folder that graft quantize wrote",
                 adapter, b.quantization);
    base_mark_free(&b);
    return e->code;
}

enum status session_load(struct session *s, const struct flags *f, struct err *e) {
    const char *adapter = flag_text(f, "adapter");
    struct load_options o = {.quantize = {.type = F32}, .head = s->head};
    if (load(s, &o, e) != ST_OK) return e->code;
    if (!adapter || session_note_base(f, adapter, s->config.quantization_config, s->model, e) != ST_OK) return e->code;
    if (adapter_open(&s->adapter, s->model, adapter, e) != ST_OK || s->act != BF16) return e->code;
    return adapter_round(s->adapter, e);
}

void session_close(struct session *s) {
    trainer_free(s->trainer);
    adapter_free(s->adapter);
    model_free(s->model);
    dataset_free(s->val);
    dataset_free(s->train);
    tokenizer_free(s->tokenizer);
    model_config_free(&s->config);
    head_info_free(&s->adapter_head);
    out_profile(s->be);
    backend_free(s->be);
    settings_free(&s->settings);
    free(s->label_names);
    free(s->model_dir);
}

struct data_options session_data_options(const struct flags *f, const char *file, const char *split) {
    return (struct data_options){.file = file,
                                 .split = split,
                                 .conv_template = flag_text(f, "conv_template"),
                                 .max_seq_len = flag_int(f, "max_seq_len"),
                                 .max_num_frames = flag_int(f, "max_num_frames"),
                                 .skip_bad_rows = strcmp(flag_text(f, "on_bad_row"), "skip") == 0};
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

static struct dataset *open_rows(const struct session *s, const struct flags *f, const struct data_options *o,
                                 struct err *e) {
    struct text notes = {0};
    struct dataset *d = dataset_open(o, &s->family, s->tokenizer, s->be->threads, &notes, e);
    out_lines(f, &notes);
    text_free(&notes);
    return d;
}

enum status session_open_val(struct session *s, const struct flags *f, const struct data_options *o, struct err *e) {
    dataset_free(s->val);
    s->val = open_rows(s, f, o, e);
    if (!s->val) return e->code;
    if (dataset_bad(s->val)) out_note(f, "%lld bad rows left out", (long long)dataset_bad(s->val));
    return session_settle_head(s, s->val, e);
}

/* --- a training -------------------------------------------------------------------------------------------------- */

static enum status open_split(struct session *s, const struct flags *f, const char *split, struct dataset **d,
                              struct err *e) {
    const struct settings *t = &s->settings;
    bool skip = settings_is(t, "on_bad_row", "skip");
    struct data_options o = {.file = settings_text(t, "data_config_file"),
                             .inline_list = settings_get(t, "data"),
                             .inline_dir = t->dir,
                             .split = split,
                             .conv_template = settings_text(t, "conv_template"),
                             .max_seq_len = settings_int(t, "max_seq_len"),
                             .max_num_frames = settings_int(t, "max_num_frames"),
                             .balancing = settings_bool(t, "dataset_balancing"),
                             .skip_bad_rows = skip,
                             .decode_images = skip};
    *d = open_rows(s, f, &o, e);
    if (*d) s->bad_rows += dataset_bad(*d);
    return e->code;
}

static enum status open_data(struct session *s, const struct flags *f, struct err *e) {
    if (open_split(s, f, "train", &s->train, e) != ST_OK || session_settle_head(s, s->train, e) != ST_OK)
        return e->code;
    if (dataset_scored(s->train) == 0)
        return err_set(e, ST_FAIL,
                       "no row of the train split has a token that is trained: graft data shows a row as the "
                       "model sees it, and max_seq_len cuts what is longer");
    if (s->head.problem != PROBLEM_GENERATION && s->head.problem != PROBLEM_SINGLE_LABEL)
        s->family.label_names = dataset_label_names(s->train),
        s->family.names_bind = true; // the val split has just these
    if (settings_is(&s->settings, "eval_strategy", "no")) return ST_OK;
    return open_split(s, f, "val", &s->val, e);
}

static struct load_options load_options_of(const struct settings *s) {
    const char *type = settings_text(s, "quantization");
    return (struct load_options){.quantize = {.type = strcmp(type, "nf4") == 0   ? NF4
                                                      : strcmp(type, "fp4") == 0 ? FP4
                                                                                 : F32,
                                              .double_quant = settings_bool(s, "double_quant"),
                                              .blocksize = (int)settings_int(s, "blocksize"),
                                              .skip = settings_text(s, "quant_skip_modules")}};
}

static enum status check_blocksize(const struct settings *s, struct err *e) {
    int64_t n = settings_int(s, "blocksize");
    if (n & (n - 1))
        err_set(e, ST_USAGE, "%s: blocksize is %lld, wanted a power of two from 32 to 4096", s->path, (long long)n);
    return e->code;
}

/* A model of 4-bit weights is no start for one that is written whole, and has no adapter for DoRA. */
static enum status check_whole(const struct session *s, struct err *e) {
    const char *kind = settings_text(&s->settings, "finetuning_type");
    bool quantised = s->config.quantization_config || !settings_is(&s->settings, "quantization", "none");
    if (strcmp(kind, "lora") != 0 && settings_bool(&s->settings, "use_dora"))
        err_set(e, ST_USAGE,
                "%s: use_dora is true and finetuning_type is %s, which trains no adapter; leave one of them out",
                s->settings.path, kind);
    if (strcmp(kind, "lora") != 0 && quantised)
        err_set(
            e, ST_USAGE,
            "%s: finetuning_type %s writes the model's own parameters, and this base is quantised; take the base in 16 "
            "or 32 bits without quantization, or finetuning_type lora",
            s->settings.path, kind);
    return e->code;
}

static enum bias_training bias_of(const struct settings *s) {
    if (settings_is(s, "lora_bias", "all")) return BIAS_ALL;
    return settings_is(s, "lora_bias", "lora_only") ? BIAS_LORA_ONLY : BIAS_NONE;
}

static enum status open_adapter(struct session *s, struct err *e) {
    const struct settings *t = &s->settings;
    const char *kind = settings_text(t, "finetuning_type"), *init = settings_text(t, "init_adapter");
    struct adapter_options o = {
        .finetuning = strcmp(kind, "full") == 0        ? FINETUNE_FULL
                      : strcmp(kind, "projector") == 0 ? FINETUNE_PROJECTOR
                                                       : FINETUNE_LORA,
        .r = settings_int(t, "lora_r"),
        .alpha = settings_number(t, "lora_alpha"),
        .dropout = settings_number(t, "lora_dropout"),
        .use_dora = settings_bool(t, "use_dora"),
        .use_rslora = settings_bool(t, "use_rslora"),
        .init_gaussian = settings_is(t, "init_lora_weights", "gaussian"),
        .target_modules = settings_get(t, "target_modules"),
        .exclude_modules = settings_get(t, "exclude_modules"),
        .layers_to_transform = settings_get(t, "layers_to_transform"),
        .rank_pattern = settings_get(t, "rank_pattern"),
        .alpha_pattern = settings_get(t, "alpha_pattern"),
        .modules_to_save = settings_get(t, "modules_to_save"),
        .lora_bias = settings_bool(t, "lora_bias"),
        .bias = bias_of(t),
        .freeze = settings_text(t, "freeze"),
        .task_type = s->head.problem == PROBLEM_GENERATION ? "CAUSAL_LM" : "SEQ_CLS",
        .base_model = settings_text(t, "model_name_or_path"),
        .seed = (uint64_t)settings_int(t, "seed"),
    };
    if (adapter_new(&s->adapter, s->model, &o, e) != ST_OK) return e->code;
    if (s->act == BF16 && adapter_round(s->adapter, e) != ST_OK) return e->code;
    if (s->head.problem != PROBLEM_GENERATION) {
        char **names = session_output_names(s, s->train);
        s->adapter->labels = head_labels(s->head.problem, (const char *const *)names, s->model->config.num_labels);
        names_free(names, (size_t)s->model->config.num_labels);
    }
    return init ? adapter_read(s->adapter, init, e) : ST_OK;
}

static void settle_targets(struct session *s) {
    const char *own = s->config.default_targets ? s->config.default_targets : "all-linear";
    if (settings_get(&s->settings, "target_modules")) return;
    cJSON_ReplaceItemInObjectCaseSensitive(s->settings.values, "target_modules", cJSON_CreateString(own));
}

static void set_window(struct session *s) {
    if (!settings_get(&s->settings, "attn_window")) return;
    for (int64_t i = 0; i < s->model->config.text.layers; i++)
        s->model->blocks[i].window = settings_int(&s->settings, "attn_window");
}

/* The key label_names; *count gets how many outputs it names, or stays as it is. */
static enum status read_label_names(struct session *s, int64_t *count, struct err *e) {
    const cJSON *list = settings_get(&s->settings, "label_names"), *name, *other;
    if (!list) return ST_OK;
    int64_t n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || n == 0) return err_set(e, ST_USAGE, "label_names: wanted a list of names");
    if (*count && *count != n)
        return err_set(e, ST_USAGE, "label_names has %lld names, num_labels is %lld", (long long)n, (long long)*count);
    s->label_names = mem_alloc((size_t)n * sizeof *s->label_names);
    *count = 0;
    cJSON_ArrayForEach(name, list) {
        if (!cJSON_IsString(name))
            return err_set(e, ST_USAGE, "label_names: name %lld is no text", (long long)*count + 1);
        for (other = list->child; other != name; other = other->next)
            if (strcmp(other->valuestring, name->valuestring) == 0)
                return err_set(e, ST_USAGE, "label_names: \"%.80s\" comes twice", name->valuestring);
        s->label_names[(*count)++] = name->valuestring;
    }
    return ST_OK;
}

static enum status choose_training_head(struct session *s, struct err *e) {
    const struct settings *t = &s->settings;
    int64_t outputs = settings_int(t, "num_labels");
    if (read_label_names(s, &outputs, e) != ST_OK ||
        session_choose_head(s, settings_text(t, "init_adapter"), settings_text(t, "problem_type"), outputs, e) != ST_OK)
        return e->code;
    if (!s->label_names) return ST_OK;
    if (s->family.problem == PROBLEM_GENERATION)
        return err_set(e, ST_USAGE, "label_names: without problem_type there is no head whose outputs have names");
    s->family.label_names = s->label_names, s->family.names_bind = true;
    return ST_OK;
}

enum status session_open_training(struct session *s, const struct flags *f, const volatile sig_atomic_t *stop,
                                  struct err *e) {
    if (settings_read(&s->settings, f->words[0], f->given, e) != ST_OK || check_blocksize(&s->settings, e) != ST_OK)
        return e->code;
    if (session_open(s, f, settings_text(&s->settings, "model_name_or_path"), e) != ST_OK) return e->code;
    settle_targets(s);
    if (check_whole(s, e) != ST_OK || choose_training_head(s, e) != ST_OK || open_data(s, f, e) != ST_OK)
        return e->code;
    struct load_options load_as = load_options_of(&s->settings);
    load_as.head = s->head;
    load_as.head.seed = (uint64_t)settings_int(&s->settings, "seed");
    if (load(s, &load_as, e) != ST_OK) return e->code;
    set_window(s);
    if (open_adapter(s, e) != ST_OK) return e->code;
    struct trainer_inputs in = {.settings = &s->settings,
                                .model = s->model,
                                .adapter = s->adapter,
                                .data = s->train,
                                .val = s->val,
                                .tokenizer = s->tokenizer,
                                .family = &s->family,
                                .act = s->act,
                                .stop = stop};
    return trainer_new(&s->trainer, &in, e);
}

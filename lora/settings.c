#include "lora/settings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/problem.h"
#include "base/text.h"
#include "base/yaml.h"

const struct flag training_keys[TRAINING_KEYS] = {
    {"model_name_or_path", FLAG_TEXT, NULL, NULL, "the base model's folder"},
    {"quantization", FLAG_TEXT, "none", "none|nf4|fp4", "quantise the base while loading"},
    {"double_quant", FLAG_BOOL, "true", NULL, "8-bit scales of the 4-bit blocks"},
    {"blocksize", FLAG_INT, "64", NULL, "elements of a 4-bit block"},
    {"quant_skip_modules", FLAG_TEXT, NULL, NULL, "regex of modules that stay in their own type"},
    {"attn_window", FLAG_INT, NULL, NULL, "sliding window instead of the model's own; 0: none"},
    {"max_seq_len", FLAG_INT, "4096", NULL, "longer rows are cut; 0: no limit"},
    {"conv_template", FLAG_TEXT, NULL, NULL, "a Mantis template; unset: the model's own"},
    {"problem_type", FLAG_TEXT, NULL, "generation|regression|single_label_classification|multi_label_classification",
     "what the model learns to give; unset: as it does"},
    {"num_labels", FLAG_INT, NULL, NULL, "outputs of a new head; unset: the labels of the rows"},
    {"label_names", FLAG_ANY, NULL, NULL, "list: the classes by index, or the labels of the rows in this order"},

    {"finetuning_type", FLAG_TEXT, "lora", "lora|full|projector", "what is trained"},
    {"lora_r", FLAG_INT, "8", NULL, "rank"},
    {"lora_alpha", FLAG_NUMBER, "16", NULL, "the adapter counts alpha / r"},
    {"lora_dropout", FLAG_NUMBER, "0", NULL, "on the adapter's input"},
    {"use_dora", FLAG_BOOL, "false", NULL, "train magnitudes of the rows too"},
    {"use_rslora", FLAG_BOOL, "false", NULL, "alpha / sqrt(r) instead"},
    {"init_lora_weights", FLAG_ANY, "true", "true|gaussian", "how A begins"},
    {"target_modules", FLAG_ANY, NULL, NULL, "list of suffixes, one regex, all-linear; unset: the model's own"},
    {"exclude_modules", FLAG_ANY, NULL, NULL, "list or regex of modules left out"},
    {"layers_to_transform", FLAG_ANY, NULL, NULL, "a layer or a list of them"},
    {"rank_pattern", FLAG_ANY, NULL, NULL, "regex: rank"},
    {"alpha_pattern", FLAG_ANY, NULL, NULL, "regex: alpha"},
    {"modules_to_save", FLAG_ANY, NULL, NULL, "modules that are trained whole"},
    {"lora_bias", FLAG_ANY, "none", "none|all|lora_only|true|false", "biases: PEFT's bias, or true for its lora_bias"},
    {"init_adapter", FLAG_TEXT, NULL, NULL, "continue from a PEFT folder"},
    {"freeze", FLAG_TEXT, NULL, NULL, "regex of parameters that stay as they are"},

    {"data_config_file", FLAG_TEXT, NULL, NULL, "a Mantis data YAML"},
    {"data", FLAG_ANY, NULL, NULL, "or its list, here"},
    {"max_num_frames", FLAG_INT, "0", NULL, "frames of a video, where the data say nothing; 0: all"},
    {"dataset_balancing", FLAG_BOOL, "false", NULL, "mix sets by the square root of their size"},
    {"shuffle", FLAG_BOOL, "true", NULL, "a new order each epoch"},
    {"packing", FLAG_BOOL, "true", NULL, "rows of a micro-batch in one pass"},
    {"dataloader_num_workers", FLAG_INT, "2", NULL, "threads that prepare rows"},
    {"on_bad_row", FLAG_TEXT, "stop", "stop|skip", "a row that cannot be used"},

    {"output_dir", FLAG_TEXT, NULL, NULL, "where the run is written"},
    {"run_name", FLAG_TEXT, NULL, NULL, "heading of report and card"},
    {"num_train_epochs", FLAG_NUMBER, "3", NULL, "times through the data"},
    {"max_steps", FLAG_INT, "-1", NULL, "optimizer steps, instead of epochs"},
    {"per_device_train_batch_size", FLAG_INT, "1", NULL, "rows of a micro-batch"},
    {"gradient_accumulation_steps", FLAG_INT, "1", NULL, "micro-batches of a step"},
    {"learning_rate", FLAG_NUMBER, "2e-4", NULL, "peak"},
    {"head_learning_rate", FLAG_NUMBER, NULL, NULL, "of a trained output head; unset: the same"},
    {"weight_decay", FLAG_NUMBER, "0", NULL, "of all that is trained"},
    {"adam_beta1", FLAG_NUMBER, "0.9", NULL, ""},
    {"adam_beta2", FLAG_NUMBER, "0.999", NULL, ""},
    {"adam_epsilon", FLAG_NUMBER, "1e-8", NULL, ""},
    {"optim", FLAG_TEXT, "adamw", "adamw", "optimizer"},
    {"lr_scheduler_type", FLAG_TEXT, "linear", "constant|constant_with_warmup|linear|cosine|wsd", "after the warm-up"},
    {"warmup_ratio", FLAG_NUMBER, "0", NULL, "part of the steps"},
    {"warmup_steps", FLAG_INT, "0", NULL, "or their number"},
    {"max_grad_norm", FLAG_NUMBER, "1", NULL, "gradients are scaled down to it; 0: never"},
    {"gradient_checkpointing", FLAG_TEXT, "auto", "auto|none|smart|full", "what is computed again in the backward"},
    {"memory_limit", FLAG_TEXT, NULL, NULL, "e.g. 16GB; unset: what is free"},
    {"loss_normalization", FLAG_TEXT, "tokens", "tokens|micro_batch", "mean over tokens, or of micro-batch means"},
    {"neftune_noise_alpha", FLAG_NUMBER, "0", NULL, "noise on embeddings"},
    {"seed", FLAG_INT, "42", NULL, ""},
    {"eval_strategy", FLAG_TEXT, "no", "no|steps|epoch", "when the val split is scored"},
    {"eval_steps", FLAG_INT, "100", NULL, ""},
    {"save_steps", FLAG_INT, "500", NULL, "a checkpoint every so many steps"},
    {"save_total_limit", FLAG_INT, "2", NULL, "older checkpoints are removed; 0: keep all"},
    {"load_best_model_at_end", FLAG_BOOL, "false", NULL, "by metric_for_best_model"},
    {"metric_for_best_model", FLAG_TEXT, "loss", NULL, "loss; of a head also spearman, accuracy, ... (graft eval)"},
    {"early_stopping_patience", FLAG_INT, "0", NULL, "evaluations without a gain; 0: never"},
    {"logging_steps", FLAG_INT, "1", NULL, ""},
    {"report_to", FLAG_ANY, "jsonl", NULL, "jsonl, tensorboard, or a list; log.jsonl is always written"},
    {"resume_from_checkpoint", FLAG_ANY, "auto", NULL, "auto, false, or a checkpoint folder"},
};

/* Keys whose value changes nothing in the numbers of a run. */
static const char *const harmless[] = {
    "output_dir",
    "run_name",
    "logging_steps",
    "save_steps",
    "report_to",
    "save_total_limit",
    "resume_from_checkpoint",
    "dataloader_num_workers",
    "memory_limit",
    "gradient_checkpointing",
    "model_name_or_path",
    "data_config_file",
    "init_adapter",
    "data", // which rows: the data's fingerprint
};

static const struct flag *find_key(const char *name) {
    for (size_t i = 0; i < TRAINING_KEYS; i++)
        if (strcmp(training_keys[i].name, name) == 0) return &training_keys[i];
    return NULL;
}

/* What other programs call it, where the letters do not lead there. */
static const struct {
    const char *theirs, *ours;
} elsewhere[] = {
    {"alpha", "lora_alpha"},
    {"base_model", "model_name_or_path"},
    {"batch_size", "per_device_train_batch_size"},
    {"bf16", "the flag --dtype bf16"},
    {"bnb_4bit_quant_type", "quantization: nf4 or fp4"},
    {"cutoff_len", "max_seq_len"},
    {"dataset", "data_config_file, or data: with a list of data sets"},
    {"device", "the flag --device"},
    {"dtype", "the flag --dtype"},
    {"epochs", "num_train_epochs"},
    {"fp16", "the flag --dtype bf16"},
    {"load_in_4bit", "quantization: nf4"},
    {"lr", "learning_rate"},
    {"max_length", "max_seq_len"},
    {"model", "model_name_or_path"},
    {"num_epochs", "num_train_epochs"},
    {"optimizer", "optim"},
    {"r", "lora_r"},
    {"rank", "lora_r"},
    {"save_strategy", "save_steps"},
    {"scheduler", "lr_scheduler_type"},
    {"threads", "the flag --threads"},
    {"train_file", "data_config_file, or data: with a list of data sets"},
    {"val_file", "data sets with split: val"},
    {"warmup", "warmup_steps or warmup_ratio"},
};

static enum status unknown(const char *path, const char *name, struct err *e) {
    const char *names[128];
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (strcmp(name, elsewhere[i].theirs) == 0)
            return err_set(e, ST_USAGE, "%s: unknown key %s; here that is %s", path, name, elsewhere[i].ours);
    for (size_t i = 0; i < TRAINING_KEYS; i++) names[i] = training_keys[i].name;
    const char *near = text_nearest(name, names, TRAINING_KEYS);
    if (near) return err_set(e, ST_USAGE, "%s: unknown key %s; did you mean %s?", path, name, near);
    return err_set(e, ST_USAGE, "%s: unknown key %s (see graft train --help)", path, name);
}

static const char *type_name(enum flag_type type) {
    switch (type) {
    case FLAG_BOOL:
        return "true or false";
    case FLAG_INT:
        return "a whole number";
    case FLAG_NUMBER:
        return "a number";
    default:
        return "a text";
    }
}

static bool has_type(const cJSON *v, enum flag_type type) {
    switch (type) {
    case FLAG_BOOL:
        return cJSON_IsBool(v);
    case FLAG_INT:
        return json_is_integer(v);
    case FLAG_NUMBER:
        return cJSON_IsNumber(v) && isfinite(v->valuedouble);
    case FLAG_TEXT:
        return cJSON_IsString(v);
    default:
        return true;
    }
}

/* Whether the value is what its key wants. */
static enum status check(const char *path, const struct flag *key, const cJSON *v, struct err *e) {
    char *text = cJSON_IsString(v) ? mem_text(v->valuestring) : json_text(v, true);
    if (cJSON_IsNull(v)) {
    } else if (!has_type(v, key->type))
        err_set(e, ST_USAGE, "%s: %s is %.80s, wanted %s", path, key->name, text, type_name(key->type));
    else if (!flag_allows(key, text))
        err_set(e, ST_USAGE, "%s: %s is %.80s, wanted one of %s", path, key->name, text, key->choices);
    free(text);
    return e->code;
}

static bool is_path(const char *key) {
    static const char *const paths[] = {"model_name_or_path", "data_config_file", "output_dir", "init_adapter",
                                        "resume_from_checkpoint"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (strcmp(key, paths[i]) == 0) return true;
    return false;
}

/* "auto" and "false" of resume_from_checkpoint are no paths. */
static bool names_file(const char *s) {
    return strcmp(s, "auto") != 0 && strcmp(s, "true") != 0 && strcmp(s, "false") != 0;
}

/* A relative path of the file, from the file's folder. A model's name in the hub cache, and "auto", are no paths. */
static cJSON *from_folder(const char *dir, const char *key, const cJSON *v) {
    if (!cJSON_IsString(v) || !is_path(key) || !names_file(v->valuestring)) return cJSON_Duplicate(v, true);
    char *full = path_join(dir, v->valuestring);
    bool named = strcmp(key, "model_name_or_path") == 0 && !dir_exists(full) && strchr(v->valuestring, '/') &&
                 v->valuestring[0] != '.';
    cJSON *value = cJSON_CreateString(named ? v->valuestring : full);
    free(full);
    return value;
}

static void set(cJSON *values, const char *key, cJSON *v) { cJSON_ReplaceItemInObjectCaseSensitive(values, key, v); }

/* A text key takes a number by its text: run_name: 7, memory_limit: 8000000000. The caller deletes it. */
static cJSON *as_wanted(const struct flag *key, const cJSON *v) {
    if (key->type != FLAG_TEXT || !cJSON_IsNumber(v)) return cJSON_Duplicate(v, true);
    char *text = json_text(v, true);
    cJSON *string = cJSON_CreateString(text);
    free(text);
    return string;
}

static enum status take_file(struct settings *s, const cJSON *file, struct err *e) {
    if (!cJSON_IsObject(file)) return err_set(e, ST_FAIL, "%s: wanted keys and values", s->path);
    for (const cJSON *v = file->child; v; v = v->next) {
        const struct flag *key = find_key(v->string);
        if (!key) return unknown(s->path, v->string, e);
        cJSON *value = as_wanted(key, v);
        if (check(s->path, key, value, e) == ST_OK && !cJSON_IsNull(v))
            set(s->values, v->string, from_folder(s->dir, v->string, value));
        cJSON_Delete(value);
        if (e->code != ST_OK) return e->code;
    }
    return ST_OK;
}

static enum status take_flags(struct settings *s, const cJSON *flags, struct err *e) {
    for (const cJSON *v = flags ? flags->child : NULL; v; v = v->next) {
        const struct flag *key = find_key(v->string);
        if (!key) continue; // a flag of the verb itself
        if (check("command line", key, v, e) != ST_OK) return e->code;
        set(s->values, v->string, cJSON_Duplicate(v, true));
    }
    return ST_OK;
}

static enum status in_range(const struct settings *s, const char *key, double least, double most, struct err *e) {
    double v = settings_number(s, key);
    if (!settings_get(s, key) || (v >= least && v <= most)) return ST_OK;
    if (isfinite(most)) return err_set(e, ST_USAGE, "%s: %s is %g, wanted %g to %.12g", s->path, key, v, least, most);
    return err_set(e, ST_USAGE, "%s: %s is %g, wanted %g or more", s->path, key, v, least);
}

static bool is_reporter(const cJSON *v) {
    return cJSON_IsString(v) && (strcmp(v->valuestring, "jsonl") == 0 || strcmp(v->valuestring, "tensorboard") == 0 ||
                                 strcmp(v->valuestring, "none") == 0);
}

static enum status check_report(const struct settings *s, struct err *e) {
    const cJSON *v = settings_get(s, "report_to");
    bool known = !v || is_reporter(v) || cJSON_IsArray(v);
    for (const cJSON *item = cJSON_IsArray(v) ? v->child : NULL; item; item = item->next)
        known = known && is_reporter(item);
    if (known) return ST_OK;
    char *text = json_text(v, true);
    err_set(e, ST_USAGE, "%s: report_to is %.80s, wanted jsonl, tensorboard or a list of them", s->path, text);
    free(text);
    return e->code;
}

static enum status check_resume(const struct settings *s, struct err *e) {
    const cJSON *v = settings_get(s, "resume_from_checkpoint");
    if (!v || cJSON_IsBool(v) || cJSON_IsString(v)) return ST_OK;
    return err_set(e, ST_USAGE, "%s: resume_from_checkpoint wants auto, false or a checkpoint's folder", s->path);
}

/* What a single key cannot say. */
static enum status check_all(const struct settings *s, struct err *e) {
    static const struct {
        const char *key;
        double least, most;
    } ranges[] = {
        {"lora_r", 1, 1 << 16},
        {"lora_dropout", 0, 0.999},
        {"per_device_train_batch_size", 1, 1 << 20},
        {"gradient_accumulation_steps", 1, 1 << 20},
        {"learning_rate", 0, INFINITY},
        {"head_learning_rate", 0, INFINITY},
        {"weight_decay", 0, INFINITY},
        {"adam_beta1", 0, 0.999999999},
        {"adam_beta2", 0, 0.999999999},
        {"adam_epsilon", 0, INFINITY},
        {"warmup_ratio", 0, 1},
        {"warmup_steps", 0, INFINITY},
        {"max_grad_norm", 0, INFINITY},
        {"max_seq_len", 0, 1 << 24},
        {"max_num_frames", 0, 1 << 24},
        {"blocksize", 32, 4096},
        {"logging_steps", 1, INFINITY},
        {"save_steps", 1, INFINITY},
        {"eval_steps", 1, INFINITY},
        {"save_total_limit", 0, INFINITY},
        {"dataloader_num_workers", 1, 256},
        {"neftune_noise_alpha", 0, INFINITY},
        {"attn_window", 0, 1 << 24},
        {"early_stopping_patience", 0, INFINITY},
        {"num_train_epochs", 0, 1e9},
        {"seed", 0, 0x1p53},
        {"max_steps", -1, 1e9},
        {"num_labels", 1, MOST_LABELS},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (in_range(s, ranges[i].key, ranges[i].least, ranges[i].most, e) != ST_OK) return e->code;
    if (check_report(s, e) != ST_OK || check_resume(s, e) != ST_OK) return e->code;
    static const char *const needed[] = {"model_name_or_path", "output_dir"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!settings_get(s, needed[i]) || !*settings_text(s, needed[i]))
            return err_set(e, ST_USAGE, "%s: %s is not set (in the file or by --%s)", s->path, needed[i], needed[i]);
    if (!settings_get(s, "data_config_file") == !settings_get(s, "data"))
        return err_set(e, ST_USAGE, "%s: wanted data_config_file or a list under data, one of the two", s->path);
    if (settings_number(s, "num_train_epochs") == 0 && settings_int(s, "max_steps") < 0)
        return err_set(e, ST_USAGE, "%s: num_train_epochs is 0, wanted more, or max_steps", s->path);
    bool evaluates = !settings_is(s, "eval_strategy", "no");
    if (settings_bool(s, "load_best_model_at_end") && !evaluates)
        return err_set(e, ST_USAGE, "%s: load_best_model_at_end wants eval_strategy steps or epoch", s->path);
    if (settings_int(s, "early_stopping_patience") > 0 && !evaluates)
        return err_set(e, ST_USAGE, "%s: early_stopping_patience wants eval_strategy steps or epoch", s->path);
    return ST_OK;
}

/* A path as it is seen from anywhere; what is not there as a file or folder stays as it is. */
static cJSON *absolute(const char *path) {
    char *full = realpath(path, NULL);
    cJSON *v = cJSON_CreateString(full ? full : path);
    free(full);
    return v;
}

/* The adapter names its base, and is used from other folders than the one where it was trained. It is called by the
 * name of its folder, which a slash at the end would hide. */
static void settle_paths(struct settings *s) {
    const char *model = settings_text(s, "model_name_or_path"), *out = settings_text(s, "output_dir");
    if (model && dir_exists(model)) set(s->values, "model_name_or_path", absolute(model));
    char *plain = out ? path_plain(out) : NULL;
    if (plain) set(s->values, "output_dir", cJSON_CreateString(plain));
    free(plain);
}

enum status settings_read(struct settings *s, const char *path, const cJSON *overrides, struct err *e) {
    *s = (struct settings){.values = cJSON_CreateObject(), .dir = path_dir(path), .path = mem_text(path)};
    for (size_t i = 0; i < TRAINING_KEYS; i++) {
        const struct flag *key = &training_keys[i];
        cJSON *v = !key->fallback           ? cJSON_CreateNull()
                   : key->type == FLAG_TEXT ? cJSON_CreateString(key->fallback)
                                            : yaml_scalar(key->fallback);
        cJSON_AddItemToObject(s->values, key->name, v);
    }
    cJSON *file = yaml_read(path, e);
    if (file && take_file(s, file, e) == ST_OK && take_flags(s, overrides, e) == ST_OK) check_all(s, e);
    settle_paths(s);
    cJSON_Delete(file);
    return e->code;
}

void settings_free(struct settings *s) {
    cJSON_Delete(s->values);
    free(s->dir), free(s->path);
    *s = (struct settings){0};
}

const cJSON *settings_get(const struct settings *s, const char *key) { return json_get(s->values, key); }

const char *settings_text(const struct settings *s, const char *key) {
    const cJSON *v = settings_get(s, key);
    return cJSON_IsString(v) ? v->valuestring : NULL;
}

double settings_number(const struct settings *s, const char *key) {
    const cJSON *v = settings_get(s, key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

int64_t settings_int(const struct settings *s, const char *key) { return (int64_t)settings_number(s, key); }

bool settings_bool(const struct settings *s, const char *key) { return cJSON_IsTrue(settings_get(s, key)); }

bool settings_is(const struct settings *s, const char *key, const char *value) {
    const char *text = settings_text(s, key);
    return text && strcmp(text, value) == 0;
}

static cJSON *portable(const struct settings *s, const cJSON *v) {
    cJSON *copy = cJSON_Duplicate(v, true);
    if (cJSON_IsString(v) && is_path(v->string) && names_file(v->valuestring)) {
        cJSON_Delete(copy);
        return absolute(v->valuestring);
    }
    for (cJSON *set = strcmp(v->string, "data") == 0 && cJSON_IsArray(copy) ? copy->child : NULL; set;
         set = set->next) {
        const cJSON *path = json_get(set, "path");
        if (!cJSON_IsString(path)) continue;
        char *full = path_join(s->dir, path->valuestring);
        cJSON_ReplaceItemInObjectCaseSensitive(set, "path", absolute(full));
        free(full);
    }
    return copy;
}

char *settings_yaml(const struct settings *s) {
    cJSON *set_ones = cJSON_CreateObject();
    for (const cJSON *v = s->values->child; v; v = v->next)
        if (!cJSON_IsNull(v)) cJSON_AddItemToObject(set_ones, v->string, portable(s, v));
    char *text = yaml_text(set_ones);
    cJSON_Delete(set_ones);
    return text;
}

static bool is_harmless(const char *key) {
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(key, harmless[i]) == 0) return true;
    return false;
}

void settings_differences(const cJSON *before, const cJSON *now, struct text *out) {
    for (const cJSON *v = now->child; v; v = v->next) {
        const cJSON *old = cJSON_GetObjectItemCaseSensitive(before, v->string);
        if (is_harmless(v->string) || cJSON_Compare(old, v, true)) continue;
        char *was = old ? json_text(old, true) : mem_text("unset"), *is = json_text(v, true);
        text_addf(out, "%s%s (was %.60s, is %.60s)", out->len ? ", " : "", v->string, was, is);
        free(was), free(is);
    }
}

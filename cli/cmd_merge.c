/* graft merge: a model with its adapters folded in, checked against base and adapters before it gets its name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/folder.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "cli/merge_report.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "cli/verbs.h"
#include "data/tokenizer.h"
#include "model/config.h"

static const struct flag merge_flags[] = {
    {"adapter", FLAG_LIST, NULL, NULL, "PEFT folder, or FOLDER:WEIGHT"},
    {"out", FLAG_TEXT, NULL, NULL, "folder to write; must not exist"},
    {"base", FLAG_TEXT, NULL, "original|dequant", "weights to merge into; a 4-bit MODEL: dequant"},
    {"original", FLAG_TEXT, NULL, NULL, "the unquantised model, for --base original"},
    {"dtype", FLAG_TEXT, NULL, "bf16|f16|f32", "of what is written; unset: as stored"},
    {"quantize", FLAG_TEXT, NULL, "nf4|fp4", "write a bitsandbytes 4-bit checkpoint"},
    {"verify", FLAG_TEXT, "outputs", "none|weights|outputs", "what is checked before the folder gets its name"},
    {"prompt", FLAG_LIST, NULL, NULL, "text to compare outputs on, beside the built-in ones"},
    {"any_base", FLAG_BOOL, "false", NULL, "takes an adapter that was trained on other weights"},
    {"max_shard_size", FLAG_TEXT, "5GB", NULL, "largest file"},
};

static const char *const built_in[] = {
    "The capital of France is Paris, and the capital of Italy is",
    "Question: What is 17 + 25?\nAnswer: 17 + 25 = 42.\nQuestion: What is 8 * 7?\nAnswer:",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a village by the sea, there lived an old woman who",
};
enum { BUILT_IN = sizeof built_in / sizeof *built_in, NOISE_ROWS = 3, NOISE_LENGTH = 32 };

struct job {
    const struct flags *f;
    struct merge_options o;
    struct merge_adapter *adapters;
    char *model, *original;
    char *source; // of the two, the one that is merged into
    struct model_config config;
    struct ids ids;
    int64_t *offsets;
    int64_t prompts;
    struct progress progress;
    struct merge_report report;
    enum dtype quant_type; // F32: not quantised
    bool double_quant;
};

/* --- what is asked ----------------------------------------------------------------------------------------------- */

/* FOLDER or FOLDER:WEIGHT; a folder whose name ends like that counts as one. */
static void read_adapter(struct merge_adapter *a, const char *word) {
    const char *colon = strrchr(word, ':');
    char *end = NULL;
    double weight = colon && colon[1] ? strtod(colon + 1, &end) : 1;
    bool weighted = end && *end == 0 && !dir_exists(word);
    char *dir = mem_text_n(word, weighted ? (size_t)(colon - word) : strlen(word));
    a->dir = path_plain(dir);
    a->weight = weighted ? weight : 1;
    free(dir);
}

static enum dtype dtype_of(const char *name) {
    return strcmp(name, "f32") == 0 ? F32 : strcmp(name, "bf16") == 0 ? BF16 : F16;
}

static enum status read_flags(struct job *j, struct err *e) {
    const struct flags *f = j->f;
    const cJSON *word, *list = flag_list(f, "adapter");
    const char *dtype = flag_text(f, "dtype"), *quantize = flag_text(f, "quantize");
    if (!list) return err_set(e, ST_USAGE, "--adapter is missing; wanted: graft merge MODEL --adapter A --out DIR");
    if (!flag_text(f, "out"))
        return err_set(e, ST_USAGE, "--out is missing; wanted: graft merge MODEL --adapter A --out DIR");
    j->adapters = mem_alloc((size_t)cJSON_GetArraySize(list) * sizeof *j->adapters);
    cJSON_ArrayForEach(word, list) read_adapter(&j->adapters[j->o.adapter_count++], word->valuestring);
    for (int64_t i = 0; i < j->o.adapter_count; i++)
        if (!(isfinite(j->adapters[i].weight) && j->adapters[i].weight != 0))
            return err_set(e, ST_USAGE, "--adapter %s: the weight is %g, wanted a number that is not 0",
                           j->adapters[i].dir, j->adapters[i].weight);
    j->o.adapters = j->adapters;
    j->o.as_stored = !dtype;
    j->o.type = dtype ? dtype_of(dtype) : F32;
    j->quant_type = !quantize ? F32 : strcmp(quantize, "fp4") == 0 ? FP4 : NF4;
    return bytes_parse("max_shard_size", flag_text(f, "max_shard_size"), &j->o.max_shard_size, e);
}

static bool is_quantised(const char *dir, bool *double_quant, struct err *e) {
    char *path = path_join(dir, "config.json");
    cJSON *tree = json_read(path, e);
    const cJSON *q = tree && cJSON_IsObject(tree) ? json_get(tree, "quantization_config") : NULL;
    bool found = q != NULL;
    if (double_quant) *double_quant = q && cJSON_IsTrue(json_get(q, "bnb_4bit_use_double_quant"));
    cJSON_Delete(tree);
    free(path);
    return found;
}

/* Which weights are merged into; says so where there is a choice. */
static enum status choose_base(struct job *j, struct err *e) {
    const char *base = flag_text(j->f, "base"), *original = flag_text(j->f, "original");
    bool four_bit = is_quantised(j->model, &j->double_quant, e);
    if (e->code != ST_OK) return e->code;
    if (!base) base = four_bit ? "dequant" : "original";
    j->report.base = base;
    bool take_original = strcmp(base, "original") == 0;
    if (original && (!take_original || !four_bit))
        return err_set(e, ST_USAGE, "--original goes with a 4-bit MODEL and --base original only");
    if (!take_original && !four_bit)
        return err_set(
            e, ST_USAGE,
            "--base dequant: %s is not quantised; quantise it as it was in training (graft quantize), and merge "
            "into that",
            j->model);
    if (take_original && four_bit && !original)
        return err_set(e, ST_USAGE, "--base original wants --original DIR, the folder of the unquantised model");
    for (int64_t i = 0; !four_bit && i < j->o.adapter_count && e->code == ST_OK; i++)
        session_note_base(j->f, j->adapters[i].dir, false, NULL, e);
    if (!four_bit) return e->code;
    if (!take_original) {
        out_note(j->f, "base: the dequantised 4-bit weights, because they are what the adapter was trained beside "
                       "(--base original merges into the unquantised ones)");
        return ST_OK;
    }
    if (!(j->original = model_dir(original, e))) return e->code;
    if (is_quantised(j->original, NULL, e))
        return err_set(e, ST_USAGE, "--original %s: is quantised too; wanted the unquantised model", original);
    out_note(j->f,
             "base: the unquantised weights, although the adapter was trained beside their 4-bit form and had begun "
             "to make up for its errors");
    return e->code;
}

/* --- prompts ----------------------------------------------------------------------------------------------------- */

static void end_prompt(struct job *j) {
    j->offsets = mem_resize(j->offsets, (size_t)(j->prompts + 2) * sizeof *j->offsets);
    j->offsets[0] = 0;
    j->offsets[++j->prompts] = (int64_t)j->ids.len;
}

static enum status add_text(struct job *j, const struct tokenizer *t, const char *text, struct err *e) {
    size_t before = j->ids.len;
    if (tokenizer_encode(t, text, strlen(text), true, &j->ids, e) != ST_OK) return e->code;
    for (size_t i = before; i < j->ids.len; i++)
        if (j->ids.data[i] >= j->config.text.vocab) j->ids.data[i] = (int32_t)(j->ids.data[i] % j->config.text.vocab);
    if (j->ids.len > before) end_prompt(j);
    return ST_OK;
}

/* Ids without meaning: they reach all of the vocabulary, and need no tokenizer. */
static void add_noise(struct job *j, uint64_t rows) {
    int64_t length = j->config.text.max_positions < NOISE_LENGTH ? j->config.text.max_positions : NOISE_LENGTH;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; (int64_t)i < length; i++)
            ids_add(&j->ids, (int32_t)(rng_uniform(3, r, i) * (double)j->config.text.vocab));
        end_prompt(j);
    }
}

static enum status read_prompts(struct job *j, struct err *e) {
    const cJSON *word, *given = flag_list(j->f, "prompt");
    struct err quiet = {0};
    if (strcmp(flag_text(j->f, "verify"), "outputs") != 0) return ST_OK; // no model will be asked
    if (model_config_read(&j->config, j->source, e) != ST_OK) return e->code;
    struct tokenizer *t = tokenizer_load(j->source, &quiet);
    if (!t && given) return err_set(e, ST_FAIL, "--prompt: %s", quiet.text);
    if (!t) out_note(j->f, "note: no tokenizer (%s); outputs are compared on random ids", quiet.text);
    add_noise(j, t ? 1 : NOISE_ROWS);
    for (int i = 0; t && i < BUILT_IN && e->code == ST_OK; i++) add_text(j, t, built_in[i], e);
    if (given) cJSON_ArrayForEach(word, given) add_text(j, t, word->valuestring, e);
    tokenizer_free(t);
    return e->code;
}

/* --- the work ---------------------------------------------------------------------------------------------------- */

static void show_next(struct job *j, const char *label) {
    progress_end(&j->progress);
    j->progress = progress_new(j->f, label, 0);
}

static struct prompts prompts_of(const struct job *j) { return (struct prompts){j->ids.data, j->offsets, j->prompts}; }

static enum status check(struct job *j, struct merge *m, const char *dir, struct err *e) {
    const char *verify = flag_text(j->f, "verify");
    struct merge_report *r = &j->report;
    if (strcmp(verify, "none") == 0) return ST_OK;
    show_next(j, "checking weights");
    if (merge_check_weights(m, dir, &r->weights, e) != ST_OK) return e->code;
    r->checked_weights = true;
    if (strcmp(verify, "weights") == 0) return ST_OK;
    show_next(j, "comparing outputs");
    struct prompts p = prompts_of(j);
    if (merge_check_outputs(m, dir, &p, &r->outputs, e) != ST_OK) return e->code;
    r->checked_outputs = true;
    if (r->outputs.rms <= r->outputs.allowed) return ST_OK;
    return err_set(
        e, ST_FAIL,
        "%s: the merged model is not base + adapter: logits differ by %.3g (root mean square), rounding explains "
        "%.3g; nothing was written",
        r->out, r->outputs.rms, r->outputs.allowed);
}

static enum status quantise(struct job *j, const char *plain, const char *dir, struct err *e) {
    struct checkpoint_options o = checkpoint_defaults();
    o.type = j->quant_type, o.double_quant = j->double_quant, o.max_shard_size = j->o.max_shard_size;
    o.threads = j->o.be->threads, o.watch = j->o.watch;
    show_next(j, "quantising");
    if (checkpoint_quantize(plain, dir, &o, &j->report.checkpoint, e) != ST_OK) return e->code;
    j->report.quantised = true, j->report.quant_type = dtype_name(j->quant_type);
    if (!j->report.checked_outputs) return ST_OK;
    show_next(j, "measuring the rounding");
    struct prompts p = prompts_of(j);
    j->report.measured_cost = outputs_compare(plain, dir, j->o.be, &p, &j->report.cost, e) == ST_OK;
    return e->code;
}

/* The plain model into `dir`, or into a folder beside from which the quantised one is made. */
static enum status fill(struct job *j, struct merge *m, const char *dir, struct err *e) {
    if (j->quant_type == F32) return merge_write(m, dir, e) == ST_OK ? check(j, m, dir, e) : e->code;
    char *plain = mem_format("%s.plain", dir);
    struct err ignored = {0};
    if (folder_empty(plain, e) == ST_OK && merge_write(m, plain, e) == ST_OK && check(j, m, plain, e) == ST_OK)
        quantise(j, plain, dir, e);
    dir_remove(plain, &ignored);
    free(plain);
    return e->code;
}

static enum status merge(struct job *j, struct err *e) {
    struct folder_out folder = {0};
    struct merge *m = NULL;
    double began = clock_now();
    j->o.model = j->source, j->o.watch = progress_watch(&j->progress);
    if (folder_open(&folder, j->report.out, e) != ST_OK || merge_open(&m, &j->o, e) != ST_OK) goto done;
    j->report.out = folder.path;
    j->report.counts = merge_count(m);
    show_next(j, "merging");
    if (fill(j, m, folder.beside, e) != ST_OK || watch_tell(&j->o.watch, NULL, 1, 1, e) != ST_OK) goto done;
    j->report.seconds = clock_now() - began;
    progress_end(&j->progress);
    if (merge_report_write(&j->report, folder.beside, e) != ST_OK || folder_commit(&folder, e) != ST_OK) goto done;
    if (flag_bool(j->f, "json")) {
        cJSON *o = merge_report_json(&j->report);
        out_json(o);
        cJSON_Delete(o);
    } else {
        merge_report_print(&j->report);
    }
done:
    progress_end(&j->progress);
    folder_abandon(&folder);
    merge_free(m);
    return e->code;
}

static int run_merge(const struct flags *f, struct err *e) {
    struct job j = {.f = f, .progress = progress_new(f, "merging", 0)};
    stop_catch();
    if (read_flags(&j, e) != ST_OK) goto done;
    j.model = model_dir(f->words[0], e);
    if (!j.model || choose_base(&j, e) != ST_OK) goto done;
    j.source = j.original ? j.original : j.model;
    j.o.any_base = flag_bool(f, "any_base") || j.original; // the 4-bit model is what it was trained on
    j.report.model = j.model, j.report.original = j.original, j.report.out = flag_text(f, "out");
    j.report.adapters = j.adapters, j.report.adapter_count = j.o.adapter_count, j.report.dtype = flag_text(f, "dtype");
    j.o.be = session_host(f, "merging", e);
    if (j.o.be && read_prompts(&j, e) == ST_OK) merge(&j, e);
done:
    for (int64_t i = 0; i < j.o.adapter_count; i++) free((char *)j.adapters[i].dir);
    free(j.adapters), free(j.model), free(j.original), free(j.offsets);
    ids_free(&j.ids);
    model_config_free(&j.config);
    backend_free(j.o.be);
    return e->code;
}

const struct verb verb_merge = {
    .name = "merge",
    .arguments = "MODEL --adapter ADAPTER[:WEIGHT]... --out DIR",
    .about = "folds adapters into the model, and checks the result against base + adapter",
    .flags = merge_flags,
    .flag_count = sizeof merge_flags / sizeof *merge_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_merge,
};

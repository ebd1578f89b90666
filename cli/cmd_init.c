/* graft init: a random model of a known shape as a Hugging Face folder, written tensor by tensor. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/folder.h"
#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/shards.h"
#include "base/threads.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/stop.h"
#include "cli/verbs.h"
#include "data/family.h"
#include "data/mini_tokenizer.h"
#include "data/tokenizer.h"
#include "model/preset.h"

static const struct flag init_flags[] = {
    {"out", FLAG_TEXT, NULL, NULL, "folder to write; must not exist"},
    {"tokenizer", FLAG_TEXT, NULL, NULL, "takes tokenizer and vocabulary from this folder"},
    {"dtype", FLAG_TEXT, NULL, "f32|bf16", "of the file; without it f32, a published shape bf16"},
    {"max_shard_size", FLAG_TEXT, "5GB", NULL, "largest file"},
};

/* ---------------------------------------------------------------- tokenizer and configuration */

static enum status copy_file(const char *from_dir, const char *to_dir, const char *name, struct err *e) {
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
    struct file_map m;
    if (file_exists(from) && file_map_open(&m, from, e) == ST_OK) {
        file_write(to, m.data, m.size, e);
        file_map_close(&m);
    }
    free(from);
    free(to);
    return e->code;
}

static enum status copy_tokenizer(const char *name, const char *to, struct err *e) {
    static const char *const files[] = {
        "tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json",    "tokenizer.model",         "vocab.json",
        "merges.txt"};
    char *from = model_dir(name, e);
    for (size_t i = 0; i < sizeof files / sizeof *files && e->code == ST_OK; i++) copy_file(from, to, files[i], e);
    free(from);
    return e->code;
}

enum { ENDS = 5 }; // tokens that may end an answer: of the text, of a turn

/* What the tokenizer in `dir` decides. A small model, and one with another's tokenizer, has exactly its vocabulary. */
static enum status read_tokens(struct preset_tokens *out, int32_t ends[ENDS], const struct preset *p, const char *dir,
                               bool taken, struct err *e) {
    struct tokenizer *t = tokenizer_load(dir, e);
    if (!t) return e->code;
    bool pictures = p->family != FAMILY_TEXT;
    *out = (struct preset_tokens){.vocab = p->published && !taken ? 0 : tokenizer_size(t),
                                  .bos = tokenizer_bos(t),
                                  .eos = tokenizer_eos(t),
                                  .pad = tokenizer_pad(t),
                                  .image = pictures ? tokenizer_id(t, "<image>") : -1};
    ends[0] = out->eos;
    ends[1] = tokenizer_id(t, "<|end_of_text|>");
    ends[2] = tokenizer_id(t, "<|eot_id|>");
    ends[3] = tokenizer_id(t, "<end_of_utterance>");
    ends[4] = tokenizer_id(t, "|ENDOFTEXT|");
    if (p->family == FAMILY_MFUYU && (tokenizer_id(t, PATCH_TOKEN) < 0 || tokenizer_id(t, PICTURE_TOKEN) < 0))
        err_set(e, ST_FAIL, "--tokenizer: it has no token %s or none %s, which %s wants", PATCH_TOKEN, PICTURE_TOKEN,
                p->name);
    if (pictures && p->family != FAMILY_MFUYU && out->image < 0)
        err_set(e, ST_FAIL, "--tokenizer: it has no token <image>, which %s wants for a picture", p->name);
    if (p->family == FAMILY_IDEFICS2 && (tokenizer_id(t, FAKE_TOKEN) < 0 || ends[3] < 0))
        err_set(e, ST_FAIL, "--tokenizer: it has no token %s or none <end_of_utterance>, which %s wants", FAKE_TOKEN,
                p->name);
    tokenizer_free(t);
    return e->code;
}

static enum status write_tree(const char *dir, const char *name, cJSON *tree, struct err *e) {
    json_write_in(dir, name, tree, e);
    cJSON_Delete(tree);
    return e->code;
}

static cJSON *generation_config(const struct preset_tokens *t, const int32_t ends[ENDS]) {
    cJSON *tree = cJSON_CreateObject();
    if (t->bos >= 0) cJSON_AddNumberToObject(tree, "bos_token_id", t->bos);
    cJSON *list = cJSON_AddArrayToObject(tree, "eos_token_id");
    for (int i = 0; i < ENDS; i++)
        if (ends[i] >= 0 && (i == 0 || ends[i] != ends[0])) cJSON_AddItemToArray(list, cJSON_CreateNumber(ends[i]));
    if (!list->child) cJSON_DeleteItemFromObjectCaseSensitive(tree, "eos_token_id");
    if (t->pad >= 0) cJSON_AddNumberToObject(tree, "pad_token_id", t->pad);
    return tree;
}

/* Everything but the weights. */
static enum status write_files(const struct preset *p, const char *dir, const char *tokenizer, bool half,
                               struct err *e) {
    struct preset_tokens t;
    int32_t ends[ENDS];
    if (tokenizer)
        copy_tokenizer(tokenizer, dir, e);
    else
        mini_tokenizer_write(dir, p->family, e);
    if (e->code != ST_OK || read_tokens(&t, ends, p, dir, tokenizer != NULL, e) != ST_OK) return e->code;
    write_tree(dir, "config.json", preset_config(p, &t, half ? "bfloat16" : "float32"), e);
    if (e->code == ST_OK) write_tree(dir, "generation_config.json", generation_config(&t, ends), e);
    if (e->code == ST_OK && p->processor) write_tree(dir, "preprocessor_config.json", cJSON_Parse(p->processor), e);
    if (e->code == ST_OK && p->prompts) write_tree(dir, "processor_config.json", cJSON_Parse(p->prompts), e);
    return e->code;
}

/* ---------------------------------------------------------------- weights */

enum { PART = 1 << 16 };

/* One tensor being filled by all threads. */
struct filling {
    void *data;
    int64_t count;
    bool half;
    float deviation;
    uint64_t seed, stream;
};

/* Four normal numbers from one block of random bits (Box-Muller). */
static void normal_four(const struct filling *f, int64_t block, float out[4]) {
    uint32_t bits[4];
    rng_block(f->seed, f->stream, (uint64_t)block, bits);
    for (int i = 0; i < 4; i += 2) {
        float radius = f->deviation * sqrtf(-2.0f * logf(((float)bits[i] + 0.5f) * 0x1p-32f)), sine, cosine;
        sincosf(6.2831853f * 0x1p-32f * (float)bits[i + 1], &sine, &cosine);
        out[i] = radius * cosine;
        out[i + 1] = radius * sine;
    }
}

static void fill_part(void *arg, int64_t task, int thread) {
    const struct filling *f = arg;
    int64_t end = (task + 1) * PART < f->count ? (task + 1) * PART : f->count;
    (void)thread;
    for (int64_t i = task * PART; i < end; i += 4) {
        float four[4];
        normal_four(f, i / 4, four);
        for (int64_t k = i; k < i + 4 && k < end; k++) {
            if (f->half)
                ((bf16 *)f->data)[k] = bf16_of_float(four[k - i]);
            else
                ((float *)f->data)[k] = four[k - i];
        }
    }
}

static void fill_constant(const struct filling *f, float value) {
    for (int64_t i = 0; i < f->count; i++) {
        if (f->half)
            ((bf16 *)f->data)[i] = bf16_of_float(value);
        else
            ((float *)f->data)[i] = value;
    }
}

static void fill(const struct new_tensor *t, const struct preset *p, uint64_t seed, void *data,
                 struct threads *threads) {
    bool half = t->entry.type == ST_BF16;
    struct filling f = {.data = data,
                        .count = (int64_t)(t->entry.bytes / (half ? 2 : 4)),
                        .half = half,
                        .deviation = (float)(p->deviation > 0 ? p->deviation : 1 / sqrt((double)t->inputs)),
                        .seed = seed,
                        .stream = rng_stream(t->entry.name)};
    if (t->fill == FILL_NORMAL)
        threads_for(threads, (f.count + PART - 1) / PART, fill_part, &f);
    else
        fill_constant(&f, t->fill == FILL_ONE ? 1 : 0);
}

static enum status write_weights(const struct flags *f, const struct preset *p, const char *dir,
                                 const struct new_tensors *t, int64_t max_bytes, struct err *e) {
    struct threads *threads = threads_new((int)flag_int(f, "threads"));
    struct st_entry *entries = mem_alloc(t->count * sizeof *entries);
    size_t largest = 0;
    int64_t done = 0, total = 0;
    for (size_t i = 0; i < t->count; i++) {
        entries[i] = t->list[i].entry;
        if (entries[i].bytes > largest) largest = entries[i].bytes;
        total += (int64_t)entries[i].bytes;
    }
    void *data = mem_alloc(largest);
    struct progress progress = progress_new(f, "writing", total);
    const struct watch watch = progress_watch(&progress);
    struct shards s = {0};
    shards_open(&s, dir, entries, t->count, max_bytes, e);
    for (size_t i = 0; i < t->count && e->code == ST_OK; i++) {
        if (watch_tell(&watch, entries[i].name, done, total, e) != ST_OK) break;
        fill(&t->list[i], p, (uint64_t)flag_int(f, "seed"), data, threads);
        shards_put(&s, data, entries[i].bytes, e);
        done += (int64_t)entries[i].bytes;
    }
    if (e->code == ST_OK) shards_commit(&s, e);
    progress_end(&progress);
    shards_abandon(&s);
    free(data);
    free(entries);
    threads_free(threads);
    return e->code;
}

/* ---------------------------------------------------------------- the command */

static void print_report(const struct flags *f, const struct preset *p, const struct new_tensors *t, int64_t vocab) {
    int64_t bytes = 0, size = t->list[0].entry.type == ST_BF16 ? 2 : 4;
    for (size_t i = 0; i < t->count; i++) bytes += (int64_t)t->list[i].entry.bytes;
    if (flag_bool(f, "json")) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "preset", p->name);
        cJSON_AddStringToObject(o, "out", flag_text(f, "out"));
        cJSON_AddNumberToObject(o, "tensors", (double)t->count);
        cJSON_AddNumberToObject(o, "parameters", (double)(bytes / size));
        cJSON_AddNumberToObject(o, "bytes", (double)bytes);
        cJSON_AddNumberToObject(o, "vocab_size", (double)vocab);
        out_json(o);
        cJSON_Delete(o);
        return;
    }
    char parameters[OUT_NUMBER], size_text[OUT_NUMBER];
    out_text("%s: %s, %s random parameters in %s, %s, vocabulary of %lld\n", flag_text(f, "out"), p->name,
             out_count_text(parameters, bytes / size), size == 2 ? "bf16" : "f32", out_bytes_text(size_text, bytes),
             (long long)vocab);
}

static enum status write_model(const struct flags *f, const struct preset *p, int64_t max_bytes, struct err *e) {
    const char *dtype = flag_text(f, "dtype");
    bool half = dtype ? strcmp(dtype, "bf16") == 0 : p->published;
    struct folder_out out = {0};
    struct model_config c = {0};
    struct new_tensors t = {0};
    if (folder_open(&out, flag_text(f, "out"), e) != ST_OK) goto done;
    if (write_files(p, out.beside, flag_text(f, "tokenizer"), half, e) != ST_OK) goto done;
    if (model_config_read(&c, out.beside, e) != ST_OK) goto done;
    preset_tensors(&t, &c, half ? ST_BF16 : ST_F32, p->published);
    if (write_weights(f, p, out.beside, &t, max_bytes, e) != ST_OK || folder_commit(&out, e) != ST_OK) goto done;
    print_report(f, p, &t, c.text.vocab);
done:
    preset_tensors_free(&t);
    model_config_free(&c);
    folder_abandon(&out);
    return e->code;
}

static void list_presets(bool as_json) {
    cJSON *o = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(o, "presets");
    for (int i = 0; preset_at(i); i++) {
        cJSON_AddItemToArray(list, cJSON_CreateString(preset_at(i)->name));
        if (!as_json) out_text("%s\n", preset_at(i)->name);
    }
    if (as_json) out_json(o);
    cJSON_Delete(o);
}

static int run_init(const struct flags *f, struct err *e) {
    if (f->word_count == 0) {
        list_presets(flag_bool(f, "json"));
        return ST_OK;
    }
    int64_t max_bytes;
    const struct preset *p = preset_find(f->words[0], e);
    if (!p || bytes_parse("max_shard_size", flag_text(f, "max_shard_size"), &max_bytes, e) != ST_OK) return e->code;
    if (!flag_text(f, "out")) return err_set(e, ST_USAGE, "--out is missing; wanted: graft init PRESET --out DIR");
    stop_catch();
    return write_model(f, p, max_bytes, e);
}

const struct verb verb_init = {
    .name = "init",
    .arguments = "[PRESET --out DIR]",
    .about = "a random model of a known shape; alone it lists the presets",
    .flags = init_flags,
    .flag_count = sizeof init_flags / sizeof *init_flags,
    .min_words = 0,
    .max_words = 1,
    .run = run_init,
};

/* Merging: against what PEFT's merge_and_unload gives, the files around the weights, and a checker that must notice. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "lora/merge.h"
#include "lora/merge_config.h"
#include "tests/adapter_fixture.h"
#include "tests/folder.h"
#include "tests/run_command.h"

#define EXPECTED "tests/golden/merge/"

struct merging {
    const char *name; // of the expected tensors
    const char *model;
    const char *adapter[2]; // below tests/golden, or NULL
    double weight[2];
};

static const struct merging MERGINGS[] = {
    {"lora", "llama", {"models/lora/adapter"}, {1}},
    {"rslora", "llama", {"models/rslora/adapter"}, {1}},
    {"dora", "llama", {"models/dora/adapter"}, {1}},
    {"dora-bias", "llama-bias", {"models/dora-bias/adapter"}, {1}},
    {"lora-bias", "llama-bias", {"models/lora-bias/adapter"}, {1}},
    {"bias-all", "llama-bias", {"models/bias-all/adapter"}, {1}},
    {"bias-lora-only", "qwen2", {"models/bias-lora-only/adapter"}, {1}},
    {"saved-modules", "mistral", {"models/saved-modules/adapter"}, {1}},
    {"patterns", "qwen2-heads", {"models/patterns/adapter"}, {1}},
    {"nf4-lora", "nf4", {"models/nf4-lora/adapter"}, {1}},
    {"nf4-dora", "nf4-double", {"models/nf4-dora/adapter"}, {1}},
    {"fp4-lora", "fp4", {"models/fp4-lora/adapter"}, {1}},
    {"mllava-lora", "mllava", {"models/mllava-lora/adapter"}, {1}},
    {"mllava-suffix", "mllava", {"models/mllava-suffix/adapter"}, {1}},
    {"pair", "llama", {"models/lora/adapter", "models/rslora/adapter"}, {0.75, -0.5}},
    {"tied-saved", "qwen2", {"merge/tied-saved"}, {1}},
    {"tied-embed", "qwen2", {"merge/tied-embed"}, {1}},
    {"tied-target", "qwen2", {"merge/tied-target"}, {1}},
};
enum { MERGING_COUNT = sizeof MERGINGS / sizeof *MERGINGS };

static const struct merging *merging_named(const char *name) {
    for (int i = 0; i < MERGING_COUNT; i++)
        if (strcmp(MERGINGS[i].name, name) == 0) return &MERGINGS[i];
    fail_msg("no case %s", name);
    return NULL;
}

/* Options whose texts live in the struct. */
struct asked {
    struct merge_options o;
    struct merge_adapter adapters[2];
    char *texts[3];
};

static void ask(struct asked *a, struct fixture *f, const struct merging *g) {
    *a = (struct asked){0};
    a->texts[2] = mem_format(MODELS "%s/model", g->model);
    a->o = (struct merge_options){
        .model = a->texts[2], .adapters = a->adapters, .as_stored = true, .max_shard_size = 20000, .be = f->be};
    for (int k = 0; k < 2 && g->adapter[k]; k++, a->o.adapter_count++) {
        a->texts[k] = mem_format("tests/golden/%s", g->adapter[k]);
        a->adapters[k] = (struct merge_adapter){a->texts[k], g->weight[k]};
    }
}

static void ask_end(struct asked *a) { free(a->texts[0]), free(a->texts[1]), free(a->texts[2]); }

static int32_t noise[48];
static const int64_t noise_offsets[] = {0, 16, 48};
static const struct prompts PROMPTS = {noise, noise_offsets, 2};

static void fill_noise(void) {
    for (uint64_t i = 0; i < 48; i++) noise[i] = (int32_t)(200 * rng_uniform(9, 9, i));
}

/* --- against PEFT ------------------------------------------------------------------------------------------------ */

static float number(const struct st_entry *t, size_t i) {
    float f;
    uint16_t h;
    if (t->type == ST_F32) return memcpy(&f, (const char *)t->data + 4 * i, 4), f;
    memcpy(&h, (const char *)t->data + 2 * i, 2);
    return t->type == ST_BF16 ? bf16_to_float(h) : f16_to_float(h);
}

/* Sums of a few F32 products in another order: 4 units in the last place of the tensor's largest number, and in a type
 * of 16 bits one unit of that, where the two lie on either side of a cut. */
static void same_numbers(const char *name, const struct st_entry *got, const struct st_entry *want) {
    size_t n = want->bytes / 4;
    double largest = 0, u = got->type == ST_BF16 ? 0x1p-7 : got->type == ST_F16 ? 0x1p-10 : 0;
    if (!got || got->bytes / st_type_size(got->type) != n) fail_msg("%s: %s is missing or misshapen", name, want->name);
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)number(want, i)));
    for (size_t i = 0; i < n; i++) {
        double tolerance = 4 * 0x1p-23 * largest + u * fabs((double)number(want, i));
        if (!(fabs((double)number(got, i) - number(want, i)) <= tolerance))
            fail_msg("%s: %s[%zu] is %.9g, wanted %.9g", name, want->name, i, (double)number(got, i),
                     (double)number(want, i));
    }
}

/* All that PEFT changed, and what it left alone as the base has it. */
static void check_tensors(struct fixture *f, const struct merging *g, const char *dir) {
    struct st_set got = {0}, want = {0}, base = {0};
    char *path = mem_format(EXPECTED "%s.safetensors", g->name), *model = mem_format(MODELS "%s/model", g->model);
    st_open_dir(&got, dir, "model", &f->e);
    st_open_file(&want, path, &f->e);
    st_open_dir(&base, model, "model", &f->e);
    expect_good(&f->e);
    for (size_t i = 0; i < want.count; i++)
        same_numbers(g->name, st_find(&got, want.entries[i].name), &want.entries[i]);
    for (size_t i = 0; i < got.count; i++) {
        const struct st_entry *t = &got.entries[i], *b = st_find(&base, t->name);
        if (st_find(&want, t->name) || (b && b->type == ST_U8)) continue;
        if (!b) b = st_find(&base, "model.embed_tokens.weight"); // a head that was tied to it
        if (t->type != b->type) continue;
        assert_int_equal(t->bytes, b->bytes);
        assert_memory_equal(t->data, b->data, t->bytes);
    }
    st_close(&got), st_close(&want), st_close(&base);
    free(path), free(model);
}

static void merge_case(struct fixture *f, const struct merging *g, bool as_stored, enum dtype type) {
    struct asked a;
    struct merge *m;
    struct weights_check weights;
    struct outputs_check outputs;
    char *dir = mem_format("%s/%s-%s", f->tmp, g->name, as_stored ? "stored" : dtype_name(type));
    ask(&a, f, g);
    a.o.as_stored = as_stored, a.o.type = type;
    dir_make(dir, &f->e);
    merge_open(&m, &a.o, &f->e);
    expect_good(&f->e);
    merge_write(m, dir, &f->e);
    merge_check_weights(m, dir, &weights, &f->e);
    expect_good(&f->e);
    assert_int_equal(weights.changed + weights.equal, merge_count(m).tensors);
    merge_check_outputs(m, dir, &PROMPTS, &outputs, &f->e);
    expect_good(&f->e);
    assert_true(outputs.rms <= outputs.allowed);
    double allowed = outputs.allowed;
    outputs_compare(a.o.model, dir, f->be, &PROMPTS, &outputs, &f->e);
    expect_good(&f->e);
    assert_true(outputs.rms > 4 * allowed || !as_stored); // the check would see an adapter that is missing
    check_tensors(f, g, dir);
    merge_free(m);
    ask_end(&a);
    free(dir);
}

static void test_as_peft_merges(void **state) {
    for (int i = 0; i < MERGING_COUNT; i++) merge_case(*state, &MERGINGS[i], true, F32);
}

static void test_types(void **state) {
    static const char *const names[] = {"lora", "dora", "nf4-dora", "lora-bias", "tied-target"};
    static const enum dtype types[] = {BF16, F16, F32};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 3; k++) merge_case(*state, merging_named(names[i]), false, types[k]);
}

/* --- the checkers notice ----------------------------------------------------------------------------------------- */

/* Writes a merge, changes one number of one tensor, and checks again. */
static enum status check_after(struct fixture *f, const char *name, const char *tensor, size_t at, float factor) {
    struct asked a;
    struct merge *m;
    struct weights_check weights;
    struct st_set set = {0};
    char *dir = mem_format("%s/changed", f->tmp), *path = path_join(dir, "model.safetensors");
    ask(&a, f, merging_named(name));
    a.o.max_shard_size = 1 << 30;
    dir_remove(dir, &f->e), dir_make(dir, &f->e);
    merge_open(&m, &a.o, &f->e);
    merge_write(m, dir, &f->e);
    st_open_file(&set, path, &f->e);
    expect_good(&f->e);
    const struct st_entry *t = st_find(&set, tensor);
    assert_non_null(t);
    float value = number(t, at) * factor;
    long place = (long)((const char *)t->data - (const char *)set.entries[0].data);
    for (size_t i = 0; i < set.count; i++) { // the first of the file
        long p = (long)((const char *)t->data - (const char *)set.entries[i].data);
        if (p > place) place = p;
    }
    FILE *file = fopen(path, "r+b");
    uint64_t header;
    assert_int_equal(fread(&header, 8, 1, file), 1);
    assert_int_equal(fseek(file, 8 + (long)header + place + 4 * (long)at, SEEK_SET), 0);
    assert_int_equal(fwrite(&value, 4, 1, file), 1);
    fclose(file);
    st_close(&set);
    enum status st = merge_check_weights(m, dir, &weights, &f->e);
    merge_free(m);
    ask_end(&a);
    free(dir), free(path);
    return st;
}

static void test_check_weights_notices(void **state) {
    struct fixture *f = *state;
    assert_int_equal(check_after(f, "lora", "model.layers.0.mlp.up_proj.weight", 7, 1.0f), ST_OK);
    expect_error(f, check_after(f, "lora", "model.layers.0.mlp.up_proj.weight", 7, 1.01f), "up_proj.weight");
    expect_error(f, check_after(f, "dora", "model.layers.1.mlp.down_proj.weight", 5, 1.01f), "down_proj.weight");
    expect_error(f, check_after(f, "lora", "model.norm.weight", 3, 1.000001f), "model.norm.weight differs");
    expect_error(f, check_after(f, "lora-bias", "model.layers.0.self_attn.q_proj.bias", 3, 1.01f), "q_proj.bias");
    expect_error(f, check_after(f, "lora", "model.layers.0.mlp.up_proj.weight", 7, NAN), "up_proj.weight");
}

/* Logits of another adapter's merge are not those of this one. */
static void test_check_outputs_notices(void **state) {
    struct fixture *f = *state;
    struct asked a, b;
    struct merge *one, *two;
    struct outputs_check outputs;
    char *dir = mem_format("%s/other", f->tmp);
    dir_make(dir, &f->e);
    ask(&a, f, merging_named("lora")), ask(&b, f, merging_named("rslora"));
    merge_open(&one, &a.o, &f->e), merge_open(&two, &b.o, &f->e);
    merge_write(two, dir, &f->e);
    merge_check_outputs(one, dir, &PROMPTS, &outputs, &f->e);
    expect_good(&f->e);
    assert_true(outputs.rms > outputs.allowed);
    assert_true(outputs.kl_mean > 1e-3);
    merge_free(one), merge_free(two);
    ask_end(&a), ask_end(&b);
    free(dir);
}

enum { WIDE = 9000, WIDTH = 32 }; // more outputs than are compared at once

/* The small Llama with a vocabulary of WIDE: random embeddings, and a head whose rows stand in this order or turned. */
static void write_wide(struct fixture *f, const char *dir, bool turned, double change) {
    const char *from = MODELS "llama/model";
    char *config = path_join(from, "config.json"), *copy = path_join(dir, "config.json"), *text;
    char *tensors = path_join(dir, "model.safetensors");
    float *embed = mem_alloc(WIDE * WIDTH * sizeof *embed), *head = mem_alloc(WIDE * WIDTH * sizeof *head);
    struct st_set set;
    size_t size;
    for (uint64_t i = 0; i < WIDE * WIDTH; i++) {
        uint64_t row = i / WIDTH, place = (turned ? WIDE - 1 - row : row) * WIDTH + i % WIDTH;
        embed[i] = (float)(rng_uniform(21, 1, i) - 0.5);
        head[place] = (float)(rng_uniform(21, 2, i) - 0.5 + change * rng_uniform(21, 3, i));
    }
    dir_make(dir, &f->e);
    file_read(config, &text, &size, &f->e);
    char *wide = json_text_with(text, "vocab_size", "9000");
    file_write(copy, wide, strlen(wide), &f->e);
    st_open_dir(&set, from, "model", &f->e);
    expect_good(&f->e);
    for (size_t i = 0; i < set.count; i++) {
        struct st_entry *t = &set.entries[i];
        bool is_head = strcmp(t->name, "lm_head.weight") == 0;
        if (is_head || strstr(t->name, "embed_tokens")) t->dim[0] = WIDE, t->data = is_head ? head : embed;
    }
    st_write(tensors, set.entries, set.count, &f->e);
    expect_good(&f->e);
    st_close(&set);
    free(config), free(copy), free(text), free(wide), free(tensors), free(embed), free(head);
}

static struct outputs_check compare_wide(struct fixture *f, bool turned) {
    struct outputs_check o = {0};
    char *one = path_join(f->tmp, "one"), *two = path_join(f->tmp, "two");
    dir_remove(one, &f->e), dir_remove(two, &f->e);
    write_wide(f, one, turned, 0), write_wide(f, two, turned, 0.5);
    outputs_compare(one, two, f->be, &PROMPTS, &o, &f->e);
    expect_good(&f->e);
    free(one), free(two);
    return o;
}

/* Sums over the vocabulary do not depend on its order, nor on which part of it holds the largest logit. */
static void test_outputs_by_parts(void **state) {
    struct outputs_check a = compare_wide(*state, false), b = compare_wide(*state, true);
    assert_true(a.kl_mean > 1e-3 && a.top1 < 1 && a.top1 > 0);
    assert_true(fabs(a.kl_mean - b.kl_mean) < 1e-9 && fabs(a.kl_max - b.kl_max) < 1e-9);
    assert_true(fabs(a.rms - b.rms) < 1e-9 && fabs(a.mean - b.mean) < 1e-9);
    assert_true(fabs(a.logit_rms - b.logit_rms) < 1e-9);
    assert_true(a.top1 == b.top1 && a.max == b.max);
}

/* An adapter of the head, whose parts are those of the head's rows. */
static void test_adapted_head_by_parts(void **state) {
    struct fixture *f = *state;
    char *model = path_join(f->tmp, "wide"), *dir = path_join(f->tmp, "adapter"), *out = path_join(f->tmp, "merged");
    cJSON *targets = json_of("[\"lm_head\", \"v_proj\"]");
    struct adapter_options o = {
        .r = 3, .alpha = 3, .use_dora = true, .target_modules = targets, .task_type = "CAUSAL_LM"};
    const struct merging none = {"", "llama", {NULL}, {0}};
    struct outputs_check outputs;
    struct asked a;
    struct merge *m;
    write_wide(f, model, false, 0);
    fixture_load(f, model, NULL);
    struct adapter *adapter = fixture_adapter(f, &o);
    for (int64_t i = 0; i < adapter->count; i++) {
        const struct tensor *t = &adapter->trained[i].value;
        for (int64_t k = 0; strstr(adapter->trained[i].key, "lora_B") && k < tensor_count(t); k++)
            ((float *)t->data)[k] = (float)(rng_uniform(22, (uint64_t)i, (uint64_t)k) - 0.5);
    }
    dir_make(dir, &f->e), dir_make(out, &f->e);
    adapter_write(adapter, dir, &f->e);
    expect_good(&f->e);
    adapter_free(adapter);
    ask(&a, f, &none);
    a.adapters[0] = (struct merge_adapter){dir, 1}, a.o.adapter_count = 1, a.o.model = model;
    merge_open(&m, &a.o, &f->e);
    expect_good(&f->e);
    merge_write(m, out, &f->e);
    merge_check_outputs(m, out, &PROMPTS, &outputs, &f->e);
    expect_good(&f->e);
    assert_true(outputs.rms <= outputs.allowed);
    double allowed = outputs.allowed;
    outputs_compare(model, out, f->be, &PROMPTS, &outputs, &f->e);
    assert_true(outputs.rms > 4 * allowed);
    merge_free(m);
    ask_end(&a);
    cJSON_Delete(targets);
    free(model), free(dir), free(out);
}

/* --- what is refused --------------------------------------------------------------------------------------------- */

static void refuse(struct fixture *f, const struct merging *g, const char *part) {
    struct asked a;
    struct merge *m;
    ask(&a, f, g);
    expect_error(f, merge_open(&m, &a.o, &f->e), part);
    assert_null(m);
    ask_end(&a);
}

static void test_refuses(void **state) {
    struct fixture *f = *state;
    const struct merging weighted = {"", "llama", {"models/dora/adapter"}, {0.5}};
    const struct merging mixture = {"", "llama", {"models/lora/adapter", "models/dora/adapter"}, {1, 1}};
    const struct merging other = {"", "mistral", {"models/lora/adapter"}, {1}};
    const struct merging nothing = {"", "llama", {NULL}, {0}};
    const struct merging zero = {"", "llama", {"models/lora/adapter"}, {0}};
    refuse(f, &weighted, "merge it alone");
    refuse(f, &mixture, "merge it alone");
    refuse(f, &other, "shape");
    refuse(f, &nothing, "no adapter");
    refuse(f, &zero, "weight");
}

/* PEFT's lora_bias on a layer without bias: there is no tensor that could hold it. */
static void test_refuses_bias_without_place(void **state) {
    struct fixture *f = *state;
    struct adapter *adapter;
    struct asked a;
    struct merge *m;
    const struct merging g = {"", "llama", {NULL}, {0}};
    fixture_model(f, "llama");
    struct adapter_options o = {.r = 2, .alpha = 2, .lora_bias = true, .task_type = "CAUSAL_LM"};
    adapter = fixture_adapter(f, &o);
    char *dir = mem_format("%s/adapter", f->tmp);
    dir_make(dir, &f->e);
    adapter_write(adapter, dir, &f->e);
    expect_good(&f->e);
    adapter_free(adapter);
    ask(&a, f, &g);
    a.adapters[0] = (struct merge_adapter){dir, 1}, a.o.adapter_count = 1;
    expect_error(f, merge_open(&m, &a.o, &f->e), "needs a bias");
    ask_end(&a);
    free(dir);
}

/* A base in another form of fewer bits is named as such, before its tensors are missed. */
static void test_refuses_quantised_otherwise(void **state) {
    struct fixture *f = *state;
    static const char *const cases[][2] = {{"{\"quant_method\": \"gptq\", \"bits\": 4}", "quantised by gptq;"},
                                           {"{\"load_in_8bit\": true}", "bitsandbytes in 8 bits"}};
    char *config, *path = path_join(f->tmp, "config.json");
    size_t size;
    assert_int_equal(file_read(MODELS "llama/model/config.json", &config, &size, &f->e), ST_OK);
    for (int i = 0; i < 2; i++) {
        struct merge *m;
        const struct merge_options o = {.model = f->tmp, .base_alone = true, .be = f->be};
        char *text = json_text_with(config, "quantization_config", cases[i][0]);
        file_write(path, text, strlen(text), &f->e);
        expect_error(f, merge_open(&m, &o, &f->e), cases[i][1]);
        free(text);
    }
    free(config), free(path);
}

/* A number that the written type cannot hold. */
static void test_refuses_overflow(void **state) {
    struct fixture *f = *state;
    struct asked a;
    struct merge *m;
    char *dir = mem_format("%s/overflow", f->tmp);
    dir_make(dir, &f->e);
    ask(&a, f, merging_named("lora"));
    a.adapters[0].weight = 1e7;
    a.o.as_stored = false, a.o.type = F16;
    merge_open(&m, &a.o, &f->e);
    expect_good(&f->e);
    expect_error(f, merge_write(m, dir, &f->e), "--dtype bf16");
    merge_free(m);
    ask_end(&a);
    free(dir);
}

/* --- config.json ------------------------------------------------------------------------------------------------- */

static void expect_edit(const char *object, const char *key, const char *value, const char *want) {
    char *got = json_text_with(object, key, value);
    assert_string_equal(got, want);
    free(got);
}

static void test_config_edits(void **state) {
    (void)state;
    expect_edit("{\"a\": 1}", "a", "2", "{\"a\": 2}");
    expect_edit("{\"a\": 1e-05, \"b\": {\"a\": [1, \"}\"]}}", "b", NULL, "{\"a\": 1e-05}");
    expect_edit("{\"q\": {\"a\": 3}, \"a\": 10000.0}", "q", NULL, "{ \"a\": 10000.0}");
    expect_edit("{\"a\":1,\"b\":2,\"c\":3}", "b", NULL, "{\"a\":1,\"c\":3}");
    expect_edit("{\"a\":1}", "a", NULL, "{}");
    expect_edit("{\n  \"a\": 1\n}\n", "b", "true", "{\n  \"a\": 1,\n  \"b\": true\n}\n");
    expect_edit("{}", "b", "true", "{\"b\": true}");
    expect_edit("{\"x\\\"a\": 1}", "a", NULL, "{\"x\\\"a\": 1}");
    expect_edit("{\"b\": \"a\", \"a\" : null }", "a", "7", "{\"b\": \"a\", \"a\" : 7 }");
}

static cJSON *written_config(struct fixture *f, const char *from, const struct merge_config *c) {
    char *path = path_join(f->tmp, "config.json");
    merge_config_write(c, from, f->tmp, &f->e);
    cJSON *tree = json_read(path, &f->e);
    expect_good(&f->e);
    free(path);
    return tree;
}

static void test_config(void **state) {
    struct fixture *f = *state;
    const struct merge_config plain = {.plain = true, .set_dtype = true, .dtype = BF16}, untied = {.untied = true};
    cJSON *c = written_config(f, MODELS "nf4/model", &plain);
    assert_null(json_get(c, "quantization_config"));
    const cJSON *dtype = json_get(c, "dtype") ? json_get(c, "dtype") : json_get(c, "torch_dtype");
    assert_string_equal(dtype->valuestring, "bfloat16");
    cJSON_Delete(c);
    c = written_config(f, MODELS "qwen2/model", &untied);
    assert_true(cJSON_IsFalse(json_get(c, "tie_word_embeddings")));
    cJSON_Delete(c);
}

/* --- the command ------------------------------------------------------------------------------------------------- */

enum { MAX_WORDS = 20, SECONDS = 60 };

/* Runs `graft merge WORDS...`; what it said on both streams is the caller's. */
static char *command(int status, const char *const *words) {
    const char *argv[MAX_WORDS + 3] = {graft_path(), "merge"};
    struct command_result r = {0};
    struct err e = {0};
    for (int i = 0; words[i]; i++) argv[i + 2] = words[i];
    command_run(argv, NULL, "", SECONDS, &r, &e);
    expect_good(&e);
    char *said = mem_format("%s%s", text_str(&r.out), text_str(&r.err));
    if (r.status != status) fail_msg("exit status %d, wanted %d: %s", r.status, status, said);
    command_free(&r);
    return said;
}

#define WORDS(...)                                                                                                     \
    (const char *const[]) { __VA_ARGS__, NULL }

static bool holds(const char *dir, const char *name) {
    char *path = path_join(dir, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

#define NF4_MODEL MODELS "nf4/model"
#define NF4_LORA  MODELS "nf4-lora/adapter"

static void test_command(void **state) {
    struct fixture *f = *state;
    char *out = path_join(f->tmp, "merged"), *small = path_join(f->tmp, "small"), *both = path_join(f->tmp, "both");
    char *report = path_join(out, "merge_report.json"), *config = path_join(small, "config.json");
    char *slashed = mem_format("%s/", out), *card = path_join(out, "README.md"), *text;
    size_t size;
    assert_says(command(0, WORDS(NF4_MODEL "/", "--adapter", NF4_LORA "/", "--out", slashed)), "dequantised");
    assert_int_equal(file_read(card, &text, &size, &f->e), ST_OK);
    assert_contains(text, "# merged\n"); // names are without the slash
    free(slashed), free(card), free(text);
    cJSON *o = json_read(report, &f->e);
    assert_true(json_get(json_get(o, "outputs"), "top1_agreement")->valuedouble >= 0.99);
    assert_int_equal(json_get(json_get(o, "weights"), "changed_as_expected")->valueint, 14);
    cJSON_Delete(o);
    assert_true(holds(out, "tokenizer.json") && holds(out, "README.md"));
    assert_says(command(0, WORDS(NF4_MODEL, "--adapter", NF4_LORA, "--out", small, "--quantize", "nf4", "--json")),
                "quantization_cost");
    o = json_read(config, &f->e);
    expect_good(&f->e);
    assert_non_null(json_get(o, "quantization_config"));
    cJSON_Delete(o);
    assert_says(command(0, WORDS(NF4_MODEL, "--adapter", NF4_LORA ":0.5", "--adapter", NF4_LORA ":-2", "--out", both,
                                 "--prompt", "Hello", "--max_shard_size", "30KB")),
                "14 of 21");
    assert_true(holds(both, "model.safetensors.index.json"));
    free(out), free(small), free(both), free(report), free(config);
}

/* A head that the adapter brings takes the place of the language model's, in weights and in config.json. */
static void test_head(void **state) {
    struct fixture *f = *state;
    char *out = path_join(f->tmp, "scorer"), *config = path_join(out, "config.json");
    char *half = path_join(f->tmp, "half");
    assert_says(command(0, WORDS(MODELS "llama/model", "--adapter", "tests/golden/score/adapter", "--out", out)),
                "top-1 agreement 100%");
    struct model *m = NULL;
    const struct load_options as_it_is = {.quantize = {.type = F32}};
    struct st_set adapter;
    assert_int_equal(model_load(&m, out, f->be, &as_it_is, &f->e), ST_OK);
    assert_int_equal(st_open_dir(&adapter, "tests/golden/score/adapter", "adapter_model", &f->e), ST_OK);
    const struct st_entry *want = st_find(&adapter, "base_model.model.score.weight");
    const struct st_entry *got = st_find(&m->weights.files, "score.weight");
    assert_int_equal(m->config.num_labels, 3);
    assert_false(m->new_head);
    assert_memory_equal(got->data, want->data, want->bytes);
    assert_null(st_find(&m->weights.files, "lm_head.weight"));
    st_close(&adapter);
    model_free(m);
    cJSON *o = json_read(config, &f->e);
    assert_string_equal(json_get(o, "architectures")->child->valuestring, "LlamaForSequenceClassification");
    cJSON_Delete(o);
    assert_says(command(1, WORDS(MODELS "llama/model", "--adapter", "tests/golden/score/adapter:0.5", "--out", half)),
                "classification head");
    free(out), free(config), free(half);
}

/* The adapter of tests/golden/score with the first of its outputs alone. */
static void write_one_output(struct fixture *f, const char *dir) {
    const char *from = "tests/golden/score/adapter";
    char *config = path_join(from, "adapter_config.json"), *copy = path_join(dir, "adapter_config.json"), *text;
    char *tensors = path_join(dir, "adapter_model.safetensors");
    struct st_set set;
    size_t size;
    dir_make(dir, &f->e);
    file_read(config, &text, &size, &f->e);
    file_write(copy, text, size, &f->e);
    st_open_dir(&set, from, "adapter_model", &f->e);
    expect_good(&f->e);
    struct st_entry *score = (struct st_entry *)st_find(&set, "base_model.model.score.weight");
    score->dim[0] = 1;
    st_write(tensors, set.entries, set.count, &f->e);
    expect_good(&f->e);
    st_close(&set);
    free(config), free(copy), free(text), free(tensors);
}

/* A head's only output does not spread over a vocabulary; what rounding may cost is measured by its own size. */
static void test_one_output(void **state) {
    struct fixture *f = *state;
    char *adapter = path_join(f->tmp, "regression"), *out = path_join(f->tmp, "regressor");
    write_one_output(f, adapter);
    assert_says(command(0, WORDS(MODELS "llama/model", "--adapter", adapter, "--out", out, "--dtype", "bf16")),
                "top-1 agreement 100%");
    free(adapter), free(out);
}

static void test_command_refuses(void **state) {
    struct fixture *f = *state;
    char **names, *out = path_join(f->tmp, "merged"), *taken = path_join(f->tmp, "taken");
    char *inside = path_join(taken, "file");
    size_t count;
    assert_says(command(2, WORDS(NF4_MODEL, "--out", out)), "--adapter is missing");
    assert_says(command(2, WORDS(NF4_MODEL, "--adapter", NF4_LORA)), "--out is missing");
    assert_says(command(2, WORDS(NF4_MODEL, "--adapter", NF4_LORA, "--out", out, "--base", "original")),
                "--original DIR");
    assert_says(
        command(2, WORDS(MODELS "llama/model", "--adapter", MODELS "lora/adapter", "--out", out, "--base", "dequant")),
        "not quantised");
    assert_says(command(2, WORDS(NF4_MODEL, "--adapter", NF4_LORA ":0", "--out", out)), "the weight is 0");
    assert_says(command(1, WORDS(NF4_MODEL, "--adapter", "/nowhere", "--out", out)), "/nowhere");
    assert_says(command(1, WORDS(MODELS "nf4-double/model", "--adapter", MODELS "nf4-dora/adapter:0.5", "--out", out)),
                "merge it alone");
    dir_make(taken, &f->e), file_write(inside, "x", 1, &f->e);
    assert_says(command(1, WORDS(NF4_MODEL, "--adapter", NF4_LORA, "--out", taken)), "not empty");
    dir_remove(taken, &f->e);
    dir_list(f->tmp, &names, &count, &f->e);
    expect_good(&f->e);
    assert_int_equal(count, 0); // nothing half done is left
    names_free(names, count);
    free(out), free(taken), free(inside);
}

int main(void) {
    fill_noise();
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(test_as_peft_merges),
        FIXTURE_TEST(test_types),
        FIXTURE_TEST(test_check_weights_notices),
        FIXTURE_TEST(test_check_outputs_notices),
        FIXTURE_TEST(test_outputs_by_parts),
        FIXTURE_TEST(test_adapted_head_by_parts),
        FIXTURE_TEST(test_refuses),
        FIXTURE_TEST(test_refuses_bias_without_place),
        FIXTURE_TEST(test_refuses_quantised_otherwise),
        FIXTURE_TEST(test_refuses_overflow),
        cmocka_unit_test(test_config_edits),
        FIXTURE_TEST(test_config),
        FIXTURE_TEST(test_command),
        FIXTURE_TEST(test_head),
        FIXTURE_TEST(test_one_output),
        FIXTURE_TEST(test_command_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

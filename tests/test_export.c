/* Exports: against files that llama.cpp ran with transformers' logits (their digests), against PEFT's merged weights, a
 * check that must notice, and what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "lora/export.h"
#include "quant/gguf.h"
#include "tests/adapter_fixture.h"
#include "tests/folder.h"
#include "tests/run_command.h"

/* The options of one export; the strings are the caller's. */
struct wanted {
    struct merge_adapter adapter;
    struct export_options o;
};

static void wanted_init(struct wanted *w, struct fixture *f, const char *model, const char *adapter,
                        enum export_part part, enum ggml_type type) {
    *w = (struct wanted){.adapter = {adapter, 1}};
    w->o = (struct export_options){.model = model, .part = part, .type = type, .check = true, .be = f->be};
    w->o.adapters = &w->adapter, w->o.adapter_count = adapter != NULL;
}

static void export_to(struct fixture *f, const struct wanted *w, const char *path, struct export_report *r) {
    export_gguf(&w->o, path, r, &f->e);
    expect_good(&f->e);
}

/* The base model of an adapter folder of tests/golden/models; the caller frees it. */
static char *base_of(struct fixture *f, const char *name) {
    cJSON *config = fixture_adapter_config(f, name);
    const char *base = json_get(config, "base_model_name_or_path")->valuestring; // "../llama/model"
    char *path = mem_format(MODELS "%s", base + 3);
    cJSON_Delete(config);
    return path;
}

/* --- as llama.cpp wants it --------------------------------------------------------------------------------------- */

static bool cut_end(char *name, const char *end) {
    if (!text_ends(name, end)) return false;
    name[strlen(name) - strlen(end)] = 0;
    return true;
}

/* "llama", "lora-alone", "mllava-vision" */
static void check_digest(struct fixture *f, const cJSON *item) {
    char *name = mem_text(item->string), *path = path_join(f->tmp, "file.gguf"), *data, digest[17];
    enum export_part part = cut_end(name, "-alone")    ? EXPORT_ADAPTER
                            : cut_end(name, "-vision") ? EXPORT_VISION
                                                       : EXPORT_MODEL;
    char *adapter = part == EXPORT_ADAPTER ? mem_format(MODELS "%s/adapter", name) : NULL;
    char *model = adapter ? base_of(f, name) : mem_format(MODELS "%s/model", name);
    struct wanted w;
    struct export_report r;
    size_t size;
    wanted_init(&w, f, model, adapter, part, GGML_F32);
    export_to(f, &w, path, &r);
    assert_int_equal(file_read(path, &data, &size, &f->e), ST_OK);
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)hash_bytes(HASH_START, data, size));
    if (strcmp(digest, item->valuestring) != 0)
        fail_msg("%s: the file's digest is %s, llama.cpp ran %s", item->string, digest, item->valuestring);
    unlink(path);
    free(name), free(path), free(adapter), free(model), free(data);
}

/* Each of these files gave transformers' (or PEFT's) logits or features in llama.cpp: tests/interop/interop.py. */
static void test_files_that_ran(void **state) {
    struct fixture *f = *state;
    cJSON *digests = json_read("tests/golden/gguf/digests.json", &f->e), *item;
    expect_good(&f->e);
    assert_true(cJSON_GetArraySize(digests) >= 10);
    cJSON_ArrayForEach(item, digests) check_digest(f, item);
    cJSON_Delete(digests);
}

/* Row o of PEFT's q_proj of a head of D rows is row `turned` of llama.cpp's. */
static int64_t turned(int64_t o, int64_t D) { return o - o % D + (o % D % (D / 2)) * 2 + o % D / (D / 2); }

static void check_rows(const struct gguf *g, const char *name, const struct st_set *s, const char *from, int64_t D) {
    const struct gguf_tensor *got = gguf_find_tensor(g, name);
    const struct st_entry *want = st_find(s, from);
    assert_non_null(got);
    assert_non_null(want);
    assert_int_equal(got->dim[0], want->dim[1]);
    assert_int_equal(got->dim[1], want->dim[0]);
    const int64_t O = want->dim[0], I = want->dim[1];
    const float *y = got->data, *x = want->data;
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < I; i++) {
            float a = y[(D ? turned(o, D) : o) * I + i], b = x[o * I + i];
            if (!(fabsf(a - b) <= 4e-6f))
                fail_msg("%s (%lld,%lld): %g, PEFT has %g", name, (long long)o, (long long)i, (double)a, (double)b);
        }
}

/* The weights are below 2: F32 sums of r + 1 terms in another order differ by at most (r + 4) 2^-24 of their size. */
static void test_merged_as_peft(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"lora", "dora", "nf4-lora"};
    for (int i = 0; i < 3; i++) {
        char *path = mem_format("%s/%s.gguf", f->tmp, names[i]), *adapter = mem_format(MODELS "%s/adapter", names[i]);
        char *expected = mem_format("tests/golden/merge/%s.safetensors", names[i]), *model = base_of(f, names[i]);
        struct wanted w;
        struct export_report r;
        struct gguf g;
        struct st_set s;
        wanted_init(&w, f, model, adapter, EXPORT_MODEL, GGML_F32);
        export_to(f, &w, path, &r);
        assert_int_equal(gguf_open(&g, path, &f->e), ST_OK);
        assert_int_equal(st_open_file(&s, expected, &f->e), ST_OK);
        if (st_find(&s, "model.layers.0.self_attn.q_proj.weight")->type == ST_F32) {
            check_rows(&g, "blk.0.attn_q.weight", &s, "model.layers.0.self_attn.q_proj.weight", 8);
            check_rows(&g, "blk.1.attn_k.weight", &s, "model.layers.1.self_attn.k_proj.weight", 8);
            check_rows(&g, "blk.1.ffn_down.weight", &s, "model.layers.1.mlp.down_proj.weight", 0);
        }
        gguf_close(&g), st_close(&s);
        free(path), free(adapter), free(expected), free(model);
    }
}

/* --- types ------------------------------------------------------------------------------------------------------- */

enum { WIDE = 256, VOCAB = 64 };

static void add_random(struct st_entry *t, const char *name, int64_t O, int64_t I) {
    float *x = mem_alloc((size_t)(O * I) * sizeof *x);
    for (int64_t i = 0; i < O * I; i++) x[i] = (float)(rng_uniform(11, hash_text(HASH_START, name), (uint64_t)i) - 0.5);
    *t = (struct st_entry){.name = name, .type = ST_F32, .rank = I > 1 ? 2 : 1, .dim = {O, I}, .data = x};
    t->bytes = (size_t)(O * I) * sizeof *x;
}

/* A Llama of one layer whose rows are whole blocks of every type. The caller frees the folder's name. */
static char *make_wide(struct fixture *f) {
    static const char config[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 256, "
        "\"intermediate_size\": 256, \"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"vocab_size\": 64, "
        "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": false}";
    static const char *const names[] = {"model.embed_tokens.weight",
                                        "lm_head.weight",
                                        "model.layers.0.self_attn.q_proj.weight",
                                        "model.layers.0.self_attn.k_proj.weight",
                                        "model.layers.0.self_attn.v_proj.weight",
                                        "model.layers.0.self_attn.o_proj.weight",
                                        "model.layers.0.mlp.gate_proj.weight",
                                        "model.layers.0.mlp.up_proj.weight",
                                        "model.layers.0.mlp.down_proj.weight",
                                        "model.norm.weight",
                                        "model.layers.0.input_layernorm.weight",
                                        "model.layers.0.post_attention_layernorm.weight"};
    enum { COUNT = sizeof names / sizeof *names, MATRICES = 9 };
    struct st_entry entries[COUNT];
    char *dir = path_join(f->tmp, "wide"), *path = path_join(dir, "config.json");
    char *weights = path_join(dir, "model.safetensors");
    for (int i = 0; i < COUNT; i++) add_random(&entries[i], names[i], i < 2 ? VOCAB : WIDE, i < MATRICES ? WIDE : 1);
    dir_make(dir, &f->e), file_write(path, config, sizeof config - 1, &f->e);
    st_write(weights, entries, COUNT, &f->e);
    expect_good(&f->e);
    for (int i = 0; i < COUNT; i++) free((void *)entries[i].data);
    free(path), free(weights);
    return dir;
}

/* Uniform numbers have a deviation of range / sqrt(12); rounding to steps of range / n has step / sqrt(12). */
static void test_types(void **state) {
    struct fixture *f = *state;
    static const struct {
        enum ggml_type type, output;
        double least, most; // of the relative error
    } cases[] = {{GGML_F32, GGML_F32, 0, 0},         {GGML_F16, GGML_F16, 1e-5, 4e-4},
                 {GGML_BF16, GGML_BF16, 1e-4, 3e-3}, {GGML_Q8_0, GGML_Q8_0, 1e-3, 6e-3},
                 {GGML_Q4_0, GGML_Q8_0, 2e-2, 1e-1}, {GGML_Q4_K, GGML_Q8_0, 2e-2, 8e-2}};
    char *dir = make_wide(f);
    for (int i = 0; i < 6; i++) {
        char *path = mem_format("%s/%s.gguf", f->tmp, ggml_name(cases[i].type));
        struct wanted w;
        struct export_report r;
        struct gguf g;
        wanted_init(&w, f, dir, NULL, EXPORT_MODEL, cases[i].type);
        export_to(f, &w, path, &r);
        assert_true(r.error >= cases[i].least && r.error <= cases[i].most);
        assert_int_equal(gguf_open(&g, path, &f->e), ST_OK);
        assert_int_equal(gguf_find_tensor(&g, "blk.0.ffn_up.weight")->type, cases[i].type);
        assert_int_equal(gguf_find_tensor(&g, "output.weight")->type, cases[i].output);
        assert_int_equal(gguf_find_tensor(&g, "blk.0.attn_norm.weight")->type, GGML_F32);
        assert_int_equal(r.other_type, cases[i].type == cases[i].output ? 0 : 1);
        gguf_close(&g);
        free(path);
    }
    free(dir);
}

/* Rows of 32 numbers are no blocks of 256, and rows of 60 no blocks of 32. */
static void test_other_types(void **state) {
    struct fixture *f = *state;
    char *path = path_join(f->tmp, "q4.gguf");
    struct wanted w;
    struct export_report r;
    struct gguf g;
    wanted_init(&w, f, MODELS "llama/model", NULL, EXPORT_MODEL, GGML_Q4_K);
    export_to(f, &w, path, &r);
    assert_int_equal(gguf_open(&g, path, &f->e), ST_OK);
    assert_int_equal(gguf_find_tensor(&g, "blk.0.attn_q.weight")->type, GGML_Q8_0);
    assert_int_equal(gguf_find_tensor(&g, "blk.0.ffn_down.weight")->type, GGML_F16);
    assert_int_equal(r.other_type, 16);
    gguf_close(&g);
    free(path);
}

/* --- the check --------------------------------------------------------------------------------------------------- */

/* One changed byte of a tensor, of each type, and one of the head. */
static void test_check_notices(void **state) {
    struct fixture *f = *state;
    static const enum ggml_type types[] = {GGML_F32, GGML_BF16, GGML_Q8_0, GGML_Q4_0, GGML_Q4_K};
    char *dir = make_wide(f);
    for (int i = 0; i < 5; i++) {
        char *path = mem_format("%s/%d.gguf", f->tmp, i), *data;
        struct wanted w;
        struct export_report r;
        struct gguf g;
        size_t size;
        wanted_init(&w, f, dir, NULL, EXPORT_MODEL, types[i]);
        export_to(f, &w, path, &r);
        export_check(&w.o, path, &r, &f->e);
        expect_good(&f->e);
        assert_int_equal(gguf_open(&g, path, &f->e), ST_OK);
        size_t at = (size_t)((const char *)gguf_find_tensor(&g, "blk.0.ffn_up.weight")->data - g.map.data);
        gguf_close(&g);
        assert_int_equal(file_read(path, &data, &size, &f->e), ST_OK);
        data[at + 1] ^= 0x60; // exponent, or the upper byte of a block's scale
        file_write(path, data, size, &f->e);
        export_check(&w.o, path, &r, &f->e);
        expect_error(f, ST_FAIL, "blk.0.ffn_up.weight");
        data[at + 1] ^= 0x60;
        *(char *)memmem(data, size, "llama.block_count", 17) ^= 1;
        file_write(path, data, size, &f->e);
        export_check(&w.o, path, &r, &f->e);
        expect_error(f, ST_FAIL, "its head");
        free(data), free(path);
    }
    free(dir);
}

/* The adapter of an output layer, beside which PEFT stores the layer's own weight, or (changed) another. */
static void write_head_adapter(struct fixture *f, bool changed) {
    const struct adapter_options o = {
        .r = 2, .alpha = 2, .target_modules = json_of("[\"lm_head\"]"), .task_type = "CAUSAL_LM"};
    char *path = path_join(f->tmp, "adapter_model.safetensors");
    struct st_set made = {0};
    fixture_model(f, "llama");
    struct adapter *a = fixture_adapter(f, &o);
    adapter_write(a, f->tmp, &f->e);
    assert_int_equal(st_open_file(&made, path, &f->e), ST_OK);
    struct st_entry all[3] = {made.entries[0], made.entries[1], *st_find(&f->model->weights.files, "lm_head.weight")};
    float *own = mem_alloc(all[2].bytes);
    memcpy(own, all[2].data, all[2].bytes);
    own[all[2].bytes / sizeof *own - 1] += changed ? 1 : 0;
    all[2].name = "base_model.model.lm_head.base_layer.weight", all[2].data = own;
    assert_int_equal(all[2].type, ST_F32);
    st_write(path, all, 3, &f->e);
    expect_good(&f->e);
    st_close(&made);
    adapter_free(a);
    cJSON_Delete((cJSON *)o.target_modules);
    free(own), free(path);
}

static void test_adapted_head(void **state) {
    struct fixture *f = *state;
    char *path = path_join(f->tmp, "head.gguf");
    struct wanted w;
    struct export_report r;
    write_head_adapter(f, false);
    wanted_init(&w, f, MODELS "llama/model", f->tmp, EXPORT_ADAPTER, GGML_F32);
    export_to(f, &w, path, &r);
    assert_int_equal(r.tensors, 2);
    unlink(path);
    write_head_adapter(f, true);
    expect_error(f, export_gguf(&w.o, path, &r, &f->e), "trained whole");
    free(path);
}

/* --- what is refused --------------------------------------------------------------------------------------------- */

static void refuse(struct fixture *f, const char *model, const char *adapter, enum export_part part,
                   enum ggml_type type, const char *says) {
    char *path = path_join(f->tmp, "refused.gguf"), **names;
    struct wanted w;
    struct export_report r;
    size_t count;
    wanted_init(&w, f, model, adapter, part, type);
    export_gguf(&w.o, path, &r, &f->e);
    expect_error(f, part == EXPORT_ADAPTER && type == GGML_Q4_0 ? ST_USAGE : ST_FAIL, says);
    dir_list(f->tmp, &names, &count, &f->e);
    assert_int_equal(count, 0);
    names_free(names, count);
    free(path);
}

static void test_refuses(void **state) {
    struct fixture *f = *state;
    refuse(f, MODELS "llama/model", MODELS "dora/adapter", EXPORT_ADAPTER, GGML_F32, "--part model");
    refuse(f, MODELS "llama-bias/model", MODELS "lora-bias/adapter", EXPORT_ADAPTER, GGML_F32, "biases");
    refuse(f, MODELS "mistral/model", MODELS "saved-modules/adapter", EXPORT_ADAPTER, GGML_F32, "trained whole");
    refuse(f, MODELS "mllava-clip/model", MODELS "mllava-clip-suffix/adapter", EXPORT_ADAPTER, GGML_F32,
           "outside the language model");
    refuse(f, MODELS "llama/model", MODELS "lora/adapter", EXPORT_ADAPTER, GGML_Q4_0, "too coarse");
    refuse(f, MODELS "llama/model", NULL, EXPORT_VISION, GGML_F32, "takes no pictures");
    refuse(f, MODELS "mllava-clip-full/model", NULL, EXPORT_VISION, GGML_F32, "class token");
    refuse(f, MODELS "qwen2-heads/model", NULL, EXPORT_MODEL, GGML_F32, "as wide as the model");
    refuse(f, MODELS "nowhere", NULL, EXPORT_MODEL, GGML_F32, "nowhere");
}

/* A number too large for a matrix in F16, and one that is none. */
static void test_refuses_overflow(void **state) {
    struct fixture *f = *state;
    char *dir = make_wide(f), *path = path_join(f->tmp, "x.gguf"), *weights = path_join(dir, "model.safetensors");
    const float bad[] = {1e5f, NAN};
    for (int i = 0; i < 2; i++) {
        struct wanted w;
        struct export_report r;
        struct st_set s;
        assert_int_equal(st_open_file(&s, weights, &f->e), ST_OK);
        struct st_entry *copy = mem_alloc(s.count * sizeof *copy);
        float *head = mem_alloc(sizeof(float) * VOCAB * WIDE);
        memcpy(copy, s.entries, s.count * sizeof *copy);
        for (size_t k = 0; k < s.count; k++) {
            if (strcmp(copy[k].name, "lm_head.weight") != 0) continue;
            memcpy(head, copy[k].data, copy[k].bytes);
            head[WIDE * 3 + 7] = bad[i];
            copy[k].data = head;
        }
        st_write(weights, copy, s.count, &f->e);
        st_close(&s);
        expect_good(&f->e);
        wanted_init(&w, f, dir, NULL, EXPORT_MODEL, GGML_F16);
        export_gguf(&w.o, path, &r, &f->e);
        expect_error(f, ST_FAIL, "row 3");
        assert_false(file_exists(path));
        free(copy), free(head);
    }
    free(dir), free(path), free(weights);
}

/* --- the command ------------------------------------------------------------------------------------------------- */

/* Runs a shell line in which $0 is graft; its status, and what it said on stderr. The caller frees what is returned. */
static char *shell(const char *line, int *status) {
    struct command_result r = {0};
    struct err e = {0};
    const char *argv[] = {"/bin/sh", "-c", line, graft_path(), NULL};
    assert_int_equal(command_run(argv, NULL, NULL, 120, &r, &e), ST_OK);
    *status = r.status;
    char *said = mem_format("%s%s", text_str(&r.out), text_str(&r.err));
    command_free(&r);
    return said;
}

static void test_command(void **state) {
    struct fixture *f = *state;
    int status;
    char *line =
        mem_format("cd %s && G=$OLDPWD/$0 && case $0 in /*) G=$0;; esac && $G init llama-tiny --out m --quiet && "
                   "$G export m --out m.gguf --type q8_0 --json && cat m.Modelfile",
                   f->tmp);
    char *said = shell(line, &status);
    if (status != 0) fail_msg("%s", said);
    assert_non_null(strstr(said, "\"architecture\": \"llama\""));
    assert_non_null(strstr(said, "FROM ./m.gguf\n"));
    assert_non_null(strstr(said, "{{ .Prompt }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"));
    assert_says(said, "PARAMETER stop \"<|eot_id|>\"");
    free(line);
    line = mem_format("$0 inspect %s/m.gguf", f->tmp);
    said = shell(line, &status);
    assert_non_null(strstr(said, "GGUF, llama, model, m\n"));
    assert_non_null(strstr(said, "tokenizer  gpt2, llama-bpe, 500 tokens"));
    assert_says(said, "head                  1");
    free(line);
    line = mem_format("$0 export %s/m --out %s/m.gguf", f->tmp, f->tmp);
    assert_says(shell(line, &status), "is there already");
    assert_int_equal(status, 1);
    assert_says(shell("$0 export x", &status), "--out is missing");
    assert_int_equal(status, 2);
    assert_says(shell("$0 export x --out y --part adapter", &status), "wants --adapter");
    assert_int_equal(status, 2);
    free(line);
}

/* Named templates go along: in the GGUF file under keys of their own, in other folders where transformers looks. What
 * the template writes behind an answer stops Ollama, though no config says so. */
static void test_named_templates(void **state) {
    struct fixture *f = *state;
    int status;
    char *line =
        mem_format("cd %s && G=$OLDPWD/$0 && case $0 in /*) G=$0;; esac && $G init llama-tiny --out m --quiet "
                   "&& mkdir m/additional_chat_templates && echo '{%% for m in messages %%}{{ m.content "
                   "}}<|end_header_id|>{%% endfor %%}' >m/chat_template.jinja && "
                   "echo two >m/additional_chat_templates/tool-use.jinja && $G export m --out m.gguf --quiet "
                   "&& $G quantize m --out q --quiet && cat m.Modelfile q/additional_chat_templates/tool-use.jinja",
                   f->tmp);
    char *said = shell(line, &status);
    assert_non_null(strstr(said, "PARAMETER stop \"<|end_header_id|>\"\n"));
    assert_non_null(strstr(said, "two\n"));
    assert_int_equal(status, 0);
    char *path = path_join(f->tmp, "m.gguf");
    struct gguf g;
    assert_int_equal(gguf_open(&g, path, &f->e), ST_OK);
    const struct gguf_value *one = gguf_find(&g, "tokenizer.chat_template");
    const struct gguf_value *two = gguf_find(&g, "tokenizer.chat_template.tool_use");
    assert_non_null(one), assert_non_null(two);
    assert_non_null(gguf_find(&g, "tokenizer.chat_templates"));
    gguf_close(&g);
    free(path), free(line);
}

static void test_folder_missing(void **state) {
    struct fixture *f = *state;
    int status;
    char *line = mem_format("$0 export " MODELS "llama/model --out %s/none/x.gguf", f->tmp);
    assert_says(shell(line, &status), "No such file");
    assert_int_equal(status, 1);
    free(line);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(test_files_that_ran),   FIXTURE_TEST(test_merged_as_peft),  FIXTURE_TEST(test_types),
        FIXTURE_TEST(test_other_types),      FIXTURE_TEST(test_check_notices),   FIXTURE_TEST(test_refuses),
        FIXTURE_TEST(test_refuses_overflow), FIXTURE_TEST(test_command),         FIXTURE_TEST(test_folder_missing),
        FIXTURE_TEST(test_adapted_head),     FIXTURE_TEST(test_named_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

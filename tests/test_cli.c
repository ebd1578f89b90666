/* The built graft as a user runs it: help, wrong usage, and the verbs that need no training. Numbers of models are the
 * business of test_golden; here it is what is read, written, said and refused.
 *
 * The binary is $GRAFT (build/release/graft when it is not set). Everything is written into a fresh folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <libavutil/version.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "tests/folder.h"
#include "tests/run_command.h"

static const double SECONDS = 120;
enum { MAX_WORDS = 16, SCREEN_LINES = 40, SCREEN_COLUMNS = 120 };

struct run {
    struct command_result result;
    const char *out, *err;
};

/* Runs `graft WORDS...` with `input` on stdin and wants the exit status. The words end with NULL. */
static void run_with(struct run *r, int status, const char *input, const char *const *words) {
    const char *argv[MAX_WORDS + 2] = {graft_path()};
    for (int i = 0; words[i]; i++) {
        assert_true(i < MAX_WORDS);
        argv[i + 1] = words[i];
    }
    struct err e = {0};
    *r = (struct run){0};
    if (command_run(argv, NULL, input, SECONDS, &r->result, &e) != ST_OK) fail_msg("%s", e.text);
    r->out = text_str(&r->result.out);
    r->err = text_str(&r->result.err);
    if (r->result.status != status)
        fail_msg("graft %s: exit status %d, wanted %d: %s", words[0] ? words[0] : "", r->result.status, status, r->err);
}

#define WORDS(...)                                                                                                     \
    (const char *const[]) { __VA_ARGS__, NULL }

static void end(struct run *r) { command_free(&r->result); }

/* Wrong usage: exit status 2, nothing on stdout, and the sentence says all of it. */
static void refused(int status, const char *const *words, const char *part, const char *more) {
    struct run r;
    run_with(&r, status, "", words);
    assert_string_equal(r.out, "");
    assert_contains(r.err, part);
    assert_contains(r.err, more);
    end(&r);
}

static cJSON *parse(const struct run *r) {
    struct err e = {0};
    cJSON *tree = json_parse(r->out, r->result.out.len, "stdout", &e);
    if (!tree) fail_msg("%s: %.200s", e.text, r->out);
    return tree;
}

static double number(const cJSON *o, const char *key) {
    const cJSON *v = json_get(o, key);
    if (!cJSON_IsNumber(v)) fail_msg("no number %s", key);
    return v->valuedouble;
}

/* ---------------------------------------------------------------- the fresh folder, with one small model in it */

struct place {
    char *dir, *model; // dir/model is a llama-tiny
};

static char *in_place(const struct place *p, const char *name) { return path_join(p->dir, name); }

static int set_up(void **state) {
    struct place *p = mem_alloc(sizeof *p);
    p->dir = folder_new();
    p->model = in_place(p, "model");
    struct run r;
    run_with(&r, 0, "", WORDS("init", "llama-tiny", "--out", p->model, "--quiet"));
    end(&r);
    *state = p;
    return 0;
}

static int tear_down(void **state) {
    struct place *p = *state;
    folder_free(p->dir);
    free(p->model);
    free(p);
    return 0;
}

static void write_file(const char *path, const char *text) {
    struct err e = {0};
    if (file_write(path, text, strlen(text), &e) != ST_OK) fail_msg("%s", e.text);
}

/* ---------------------------------------------------------------- help and wrong usage */

static const char *const verbs[] = {"train", "eval",     "generate", "chat", "quantize", "data",
                                    "plan",  "tokenize", "inspect",  "init", "doctor"};
enum { VERBS = sizeof verbs / sizeof *verbs };

static void test_alone_lists_verbs(void **state) {
    (void)state;
    struct run r;
    run_with(&r, 0, "", WORDS(NULL));
    for (int i = 0; i < VERBS; i++) {
        char *line = mem_format("\n  graft %s ", verbs[i]);
        assert_contains(r.out, line);
        free(line);
    }
    assert_string_equal(r.err, "");
    end(&r);
    run_with(&r, 0, "", WORDS("--version"));
    assert_true(text_starts(r.out, "graft "));
    end(&r);
}

static void test_help_fits_a_screen(void **state) {
    (void)state;
    for (int i = 0; i < VERBS; i++) {
        struct run r;
        run_with(&r, 0, "", WORDS(verbs[i], "--help"));
        assert_contains(r.out, verbs[i]);
        assert_contains(r.out, "--device");
        int lines = 0;
        for (const char *s = r.out; *s; lines++) {
            size_t n = strcspn(s, "\n");
            if (n > SCREEN_COLUMNS) fail_msg("graft %s --help: a line of %zu columns: %.*s", verbs[i], n, (int)n, s);
            s += n + (s[n] == '\n');
        }
        if (lines > SCREEN_LINES) fail_msg("graft %s --help: %d lines", verbs[i], lines);
        end(&r);
    }
}

static void test_help_shows_defaults(void **state) {
    (void)state;
    struct run r;
    run_with(&r, 0, "", WORDS("quantize", "--help"));
    assert_contains(r.out, "--quant_type nf4|fp4");
    assert_contains(r.out, "[nf4]");
    assert_contains(r.out, "[64]");
    assert_contains(r.out, "[5GB]");
    end(&r);
    run_with(&r, 0, "", WORDS("eval", "--help"));
    assert_contains(r.out, "regression|single_label_classification|multi_label_classification\n");
    end(&r);
}

static void test_unknown_names_the_nearest(void **state) {
    (void)state;
    refused(2, WORDS("tokenise"), "tokenise", "did you mean graft tokenize");
    refused(2, WORDS("zzzzzzzz"), "zzzzzzzz", "lists the verbs");
    refused(2, WORDS("quantize", "m", "--blocksise", "64"), "--blocksise", "did you mean --blocksize?");
    refused(2, WORDS("init", "lama-tiny", "--out", "x"), "lama-tiny", "did you mean llama-tiny?");
    refused(2, WORDS("inspect", "m", "--sed", "1"), "--sed", "--seed");
}

static void test_ill_typed_values(void **state) {
    (void)state;
    refused(2, WORDS("quantize", "m", "--out", "x", "--blocksize", "64x"), "blocksize", "64x");
    refused(2, WORDS("quantize", "m", "--out", "x", "--blocksize", "48"), "blocksize", "power of two");
    refused(2, WORDS("quantize", "m", "--out", "x", "--quant_type", "nf5"), "nf5", "nf4|fp4");
    refused(2, WORDS("quantize", "m", "--out", "x", "--quant_type", "nf4|fp4"), "nf4|fp4", "wanted one of");
    refused(2, WORDS("quantize", "m", "--double_quant=maybe", "--out", "x"), "maybe", "true or false");
    refused(2, WORDS("quantize", "m", "--out", "x", "--max_shard_size", "5XB"), "5XB", "500MB");
    refused(2, WORDS("quantize", "m", "--out"), "--out", "wants a value");
    refused(2, WORDS("quantize", "m", "--out", "--quiet"), "--out", "wants a value");
    refused(2, WORDS("quantize", "m"), "--out", "missing");
    refused(2, WORDS("tokenize", "-d", "m"), "-d", "long");
    refused(2, WORDS("tokenize"), "MODEL is missing", "graft tokenize");
    refused(2, WORDS("diff", "m", "--out", "x"), "TUNED is missing", "graft diff");
    refused(2, WORDS("tokenize", "m", "n"), "\"n\"", "too many");
    refused(2, WORDS("tokenize", "m", "--chat", "--decode"), "--chat", "--decode");
    refused(2, WORDS("inspect", "m", "--threads", "9007199254740993"), "--threads", "whole number");
    refused(2, WORDS("inspect", "m", "--dtype", "f64"), "f64", "f32|bf16");
    refused(2, WORDS("inspect", "m", "--device", "\xff"), "--device", "UTF-8");
    refused(1, WORDS("eval", "no/model", "--data", "d.yaml", "--per_row", "no/where"), "no/where", "cannot write");
}

static void test_spellings_of_a_flag(void **state) {
    const struct place *p = *state;
    struct run a, b;
    run_with(&a, 0, "hi", WORDS("tokenize", p->model, "--no_special"));
    run_with(&b, 0, "hi", WORDS("tokenize", "--no-special=true", p->model, "--json=false"));
    assert_string_equal(a.out, b.out);
    end(&b);
    run_with(&b, 0, "hi", WORDS("tokenize", "--no_special", "False", "--no_special", "True", p->model));
    assert_string_equal(a.out, b.out); // the last one counts
    end(&a), end(&b);
}

static void test_full_disk_is_a_failure(void **state) {
    const struct place *p = *state;
    struct err e = {0};
    struct command_result r;
    char *line = mem_format("exec '%s' tokenize '%s' > /dev/full", graft_path(), p->model);
    const char *argv[] = {"/bin/sh", "-c", line, NULL};
    if (command_run(argv, NULL, "hi", SECONDS, &r, &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(r.status, 1);
    assert_contains(text_str(&r.err), "cannot write");
    command_free(&r);
    free(line);
}

/* ---------------------------------------------------------------- where a model is */

static void test_no_model(void **state) {
    (void)state;
    refused(1, WORDS("tokenize", "no/where"), "no/where", "no such model folder");
    refused(1, WORDS("inspect", "../../nowhere"), "../../nowhere", "no such model folder");
    refused(1, WORDS("tokenize", ""), "no such model folder", "wanted");
    refused(1, WORDS("tokenize", "README.md"), "README.md", "is a file");
}

static void test_name_in_the_hub_cache(void **state) {
    const struct place *p = *state;
    static const char commit[] = "0123456789abcdef0123456789abcdef01234567";
    char *cache = in_place(p, "cache"), *refs = path_join(cache, "models--some--model/refs");
    char *snapshots = path_join(cache, "models--some--model/snapshots"), *ref = path_join(refs, "main");
    char *snapshot = path_join(snapshots, commit), *pinned = mem_format("some/model@%s", commit);
    struct err e = {0};
    assert_int_equal(dir_make(refs, &e), ST_OK);
    assert_int_equal(dir_make(snapshots, &e), ST_OK);
    write_file(ref, commit);
    assert_int_equal(symlink(p->model, snapshot), 0);

    setenv("HF_HUB_CACHE", cache, 1);
    const char *const names[] = {"some/model", pinned};
    for (int i = 0; i < 2; i++) {
        struct run r;
        run_with(&r, 0, "hi", WORDS("tokenize", names[i]));
        end(&r);
    }
    refused(1, WORDS("tokenize", "some/model@other"), "some/model@other", cache);
    refused(1, WORDS("tokenize", "other/model"), "other/model", cache);
    write_file(ref, "../../../../../../../etc");
    refused(1, WORDS("tokenize", "some/model"), "some/model", "no such model folder");
    unsetenv("HF_HUB_CACHE");
    free(cache), free(refs), free(snapshots), free(ref), free(snapshot), free(pinned);
}

/* ---------------------------------------------------------------- tokenize */

static void test_tokenize_and_back(void **state) {
    const struct place *p = *state;
    static const char *const texts[] = {
        "", " ", "The children of the mountains.", "x\r\n\n\ty  ", "h\xc3\xa9 \xf0\x9f\x99\x82", "<|eot_id|> 12345"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct run ids, text;
        run_with(&ids, 0, texts[i], WORDS("tokenize", p->model, "--no_special"));
        run_with(&text, 0, ids.out, WORDS("tokenize", p->model, "--decode"));
        assert_string_equal(text.out, texts[i]);
        end(&ids), end(&text);
    }
}

static void test_tokenize_json(void **state) {
    const struct place *p = *state;
    struct run plain, json, back;
    run_with(&plain, 0, "Hello", WORDS("tokenize", p->model));
    run_with(&json, 0, "Hello", WORDS("tokenize", p->model, "--json"));
    cJSON *tree = parse(&json);
    struct text line = {0};
    for (const cJSON *v = json_get(tree, "ids")->child; v; v = v->next)
        text_addf(&line, "%s%d", line.len ? " " : "", (int)v->valuedouble);
    text_add(&line, "\n");
    assert_string_equal(plain.out, text_str(&line));
    cJSON_Delete(tree);

    run_with(&back, 0, json.out, WORDS("tokenize", p->model, "--decode", "--json"));
    tree = parse(&back);
    assert_string_equal(json_get(tree, "text")->valuestring, "<|begin_of_text|>Hello");
    cJSON_Delete(tree);
    text_free(&line);
    end(&plain), end(&json), end(&back);
}

static void test_tokenize_chat(void **state) {
    const struct place *p = *state;
    static const char messages[] = "[{\"role\": \"user\", \"content\": \" Hi \"}]";
    static const char closed[] = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>";
    static const char open[] = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    struct run ids, text;
    run_with(&ids, 0, messages, WORDS("tokenize", p->model, "--chat", "--add_generation_prompt"));
    run_with(&text, 0, ids.out, WORDS("tokenize", p->model, "--decode"));
    char *whole = mem_format("%s%s", closed, open);
    assert_string_equal(text.out, whole);
    end(&ids), end(&text);
    run_with(&ids, 0, messages, WORDS("tokenize", p->model, "--chat"));
    run_with(&text, 0, ids.out, WORDS("tokenize", p->model, "--decode"));
    assert_string_equal(text.out, closed);
    end(&text);
    run_with(&text, 0, ids.out, WORDS("tokenize", p->model, "--decode", "--no_special"));
    assert_string_equal(text.out, "user\n\nHi");
    end(&ids), end(&text);
    run_with(&ids, 1, "{}", WORDS("tokenize", p->model, "--chat"));
    assert_contains(ids.err, "list of messages");
    end(&ids);
    free(whole);
}

static void test_tokenize_refuses(void **state) {
    const struct place *p = *state;
    static const struct {
        const char *input, *flag, *says;
    } cases[] = {{"a\xff", "--quiet", "UTF-8"},
                 {"1 2 x", "--decode", "byte 4"},
                 {"-1", "--decode", "wanted token ids"},
                 {"99999999999", "--decode", "wanted token ids"},
                 {"[", "--chat", "JSON"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run r;
        run_with(&r, 1, cases[i].input, WORDS("tokenize", p->model, cases[i].flag));
        assert_contains(r.err, cases[i].says);
        assert_string_equal(r.out, "");
        end(&r);
    }
}

/* ---------------------------------------------------------------- init, inspect, quantize */

static char *init(const struct place *p, const char *preset, const char *name, const char *flag, const char *value) {
    char *out = in_place(p, name);
    struct run r;
    run_with(&r, 0, "", WORDS("init", preset, "--out", out, flag, value));
    end(&r);
    return out;
}

static bool same_file(const char *a, const char *b, const char *name) {
    char *pa = path_join(a, name), *pb = path_join(b, name);
    struct file_map ma, mb;
    struct err e = {0};
    if (file_map_open(&ma, pa, &e) != ST_OK || file_map_open(&mb, pb, &e) != ST_OK) fail_msg("%s", e.text);
    bool same = ma.size == mb.size && memcmp(ma.data, mb.data, ma.size) == 0;
    file_map_close(&ma), file_map_close(&mb);
    free(pa), free(pb);
    return same;
}

static void test_init_lists(void **state) {
    (void)state;
    struct run r;
    run_with(&r, 0, "", WORDS("init"));
    assert_true(text_starts(r.out, "llama-tiny\n"));
    end(&r);
    run_with(&r, 0, "", WORDS("init", "--json"));
    cJSON *tree = parse(&r);
    assert_string_equal(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(tree, "presets"), 0)->valuestring,
                        "llama-tiny");
    cJSON_Delete(tree);
    end(&r);
}

static void test_init_is_a_function_of_the_seed(void **state) {
    const struct place *p = *state;
    char *one = init(p, "llama-tiny", "one", "--threads", "1"), *two = init(p, "llama-tiny", "two", "--seed", "43");
    assert_true(same_file(p->model, one, "model.safetensors"));
    assert_true(same_file(p->model, one, "tokenizer.json"));
    assert_false(same_file(p->model, two, "model.safetensors"));
    free(one), free(two);
}

/* Norms are 1, biases 0, embeddings random with deviation 1, weights with 1 / sqrt(inputs): of n samples it is known to
 * 1 / sqrt(2 n), and five times that is allowed. */
static void check_tensor(const struct st_entry *t) {
    int64_t n = (int64_t)(t->bytes / sizeof(float));
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, (const char *)t->data + i * (int64_t)sizeof v, sizeof v);
        sum += v, squares += (double)v * v;
    }
    double mean = sum / (double)n, deviation = sqrt(squares / (double)n - mean * mean);
    double inputs = t->rank == 4 ? (double)(t->dim[1] * t->dim[2] * t->dim[3]) : (double)t->dim[1];
    bool embedding = strstr(t->name, "embed_tokens") || strstr(t->name, "position_embedding");
    double wanted = embedding ? 1 : 1 / sqrt(inputs);
    bool bias = text_ends(t->name, ".bias"), norm = t->rank == 1 && !bias;
    if (norm && !(mean == 1 && deviation == 0)) fail_msg("%s: mean %g", t->name, mean);
    if (bias && !(mean == 0 && deviation == 0)) fail_msg("%s: mean %g", t->name, mean);
    if (!norm && !bias && !(fabs(deviation / wanted - 1) <= 5 / sqrt(2.0 * (double)n)))
        fail_msg("%s: deviation %g, wanted %g", t->name, deviation, wanted);
    if (!norm && !bias && !(fabs(mean) <= 5 * wanted / sqrt((double)n))) fail_msg("%s: mean %g", t->name, mean);
}

static void test_init_numbers(void **state) {
    const struct place *p = *state;
    char *dir = init(p, "mllava-tiny", "mllava", "--dtype", "f32");
    struct st_set s;
    struct err e = {0};
    if (st_open_dir(&s, dir, "model", &e) != ST_OK) fail_msg("%s", e.text);
    assert_non_null(st_find(&s, "vision_tower.vision_model.embeddings.patch_embedding.weight"));
    for (size_t i = 0; i < s.count; i++) check_tensor(&s.entries[i]);
    st_close(&s);
    free(dir);
}

/* The split by words of the Llama-3 kind, and merges that were learned from words. */
static void test_init_tokenizer(void **state) {
    const struct place *p = *state;
    char *path = path_join(p->model, "tokenizer.json"), *text = NULL;
    size_t size;
    struct err e = {0};
    if (file_read(path, &text, &size, &e) != ST_OK) fail_msg("%s", e.text);
    assert_contains(text, "|\\\\p{N}{1,3}|");
    assert_contains(text, "\"ignore_merges\": true");
    struct run r;
    run_with(&r, 0, " the question", WORDS("tokenize", p->model, "--no_special"));
    int count = 1;
    for (const char *s = r.out; *s; s++) count += *s == ' ';
    assert_true(count <= 4); // 13 bytes of common words
    end(&r);
    free(text), free(path);
}

static void test_init_writes_whole_or_not(void **state) {
    const struct place *p = *state;
    refused(1, WORDS("init", "llama-tiny", "--out", p->model), p->model, "not empty");
    char *out = in_place(p, "broken"), *no_tokenizer = in_place(p, "cache");
    refused(1, WORDS("init", "llama-tiny", "--out", out, "--tokenizer", no_tokenizer), "tokenizer.json", "cannot open");
    refused(1, WORDS("init", "mllava-tiny", "--out", out, "--tokenizer", p->model), "<image>", "mllava-tiny");
    char **names;
    size_t count;
    struct err e = {0};
    assert_int_equal(dir_list(p->dir, &names, &count, &e), ST_OK);
    for (size_t i = 0; i < count; i++) assert_null(strstr(names[i], "broken"));
    names_free(names, count);
    free(out), free(no_tokenizer);
}

static void test_init_in_shards(void **state) {
    const struct place *p = *state;
    char *dir = init(p, "llama-tiny", "shards", "--max_shard_size", "1MB");
    char *index = path_join(dir, "model.safetensors.index.json");
    assert_true(file_exists(index));
    struct st_set whole, parts;
    struct err e = {0};
    assert_int_equal(st_open_dir(&whole, p->model, "model", &e), ST_OK);
    if (st_open_dir(&parts, dir, "model", &e) != ST_OK) fail_msg("%s", e.text);
    assert_true(parts.shard_count > 2);
    assert_int_equal(parts.count, whole.count);
    for (size_t i = 0; i < whole.count; i++) {
        assert_string_equal(parts.entries[i].name, whole.entries[i].name);
        assert_memory_equal(parts.entries[i].data, whole.entries[i].data, whole.entries[i].bytes);
    }
    st_close(&whole), st_close(&parts);
    free(index), free(dir);
}

static void test_init_with_a_tokenizer(void **state) {
    const struct place *p = *state;
    char *dir = init(p, "qwen2-tiny", "taken", "--tokenizer", "tests/golden/data/model");
    assert_true(same_file(dir, "tests/golden/data/model", "tokenizer.json"));
    struct run r;
    run_with(&r, 0, "", WORDS("inspect", dir, "--json"));
    cJSON *tree = parse(&r);
    assert_true(number(json_get(tree, "config"), "vocab_size") == number(tree, "tokens"));
    cJSON_Delete(tree);
    end(&r);
    free(dir);
}

static void test_inspect_counts(void **state) {
    const struct place *p = *state;
    char *small = in_place(p, "nf4");
    struct run r;
    run_with(&r, 0, "", WORDS("inspect", p->model, "--json"));
    cJSON *tree = parse(&r), *all = cJSON_GetObjectItemCaseSensitive(tree, "all");
    double parameters = number(all, "parameters");
    assert_true(parameters == 866432); // 2 V C + layers (2 C Q + 2 C K + 3 C F + 2 C) + C
    assert_true(number(all, "bytes") == 4 * parameters);
    cJSON_Delete(tree);
    end(&r);

    run_with(&r, 0, "", WORDS("quantize", p->model, "--out", small, "--json", "--blocksize", "128"));
    tree = parse(&r);
    assert_true(number(tree, "quantised") == 28);
    assert_contains(r.err, "128"); // transformers cannot make this size itself
    cJSON_Delete(tree);
    end(&r);

    run_with(&r, 0, "", WORDS("inspect", small, "--json"));
    tree = parse(&r);
    assert_true(number(json_get(tree, "all"), "parameters") == parameters);
    assert_true(number(json_get(tree, "quantised"), "blocksize") == 128);
    assert_true(number(json_get(tree, "quantised"), "weights") == 28);
    cJSON_Delete(tree);
    end(&r);
    refused(1, WORDS("quantize", small, "--out", "never"), "quantised", "unquantised");
    free(small);
}

/* The norm of scale * B A against the product written out. */
static void test_inspect_adapter_norms(void **state) {
    (void)state;
    static const char dir[] = "tests/golden/models/lora/adapter";
    struct st_set s;
    struct err e = {0};
    struct run r;
    if (st_open_dir(&s, dir, "adapter_model", &e) != ST_OK) fail_msg("%s", e.text);
    run_with(&r, 0, "", WORDS("inspect", dir, "--json"));
    cJSON *tree = parse(&r);
    const cJSON *config = json_get(tree, "config"), *modules = json_get(tree, "modules");
    assert_true(cJSON_GetArraySize(modules) > 0);
    for (const cJSON *m = modules->child; m; m = m->next) {
        char *name = mem_format("base_model.model.%s.lora_A.weight", json_get(m, "path")->valuestring);
        const struct st_entry *a = st_find(&s, name);
        memcpy(strstr(name, "lora_A"), "lora_B", 6);
        const struct st_entry *b = st_find(&s, name);
        assert_true(a && b && a->type == ST_F32);
        double sum = 0, scale = number(config, "lora_alpha") / (double)a->dim[0];
        for (int64_t o = 0; o < b->dim[0]; o++)
            for (int64_t i = 0; i < a->dim[1]; i++) {
                double x = 0;
                for (int64_t k = 0; k < a->dim[0]; k++) {
                    float va, vb;
                    memcpy(&va, (const char *)a->data + 4 * (k * a->dim[1] + i), 4);
                    memcpy(&vb, (const char *)b->data + 4 * (o * b->dim[1] + k), 4);
                    x += (double)va * vb;
                }
                sum += x * x;
            }
        double wanted = scale * sqrt(sum), got = number(m, "update_norm"); // two orders of the same double sums
        if (!(fabs(got - wanted) <= 1e-9 * wanted)) fail_msg("%s: %g, wanted %g", name, got, wanted);
        free(name);
    }
    cJSON_Delete(tree);
    st_close(&s);
    end(&r);
}

/* ---------------------------------------------------------------- data */

static const char GOOD[] = "{\"id\": \"a\", \"conversations\": [{\"role\": \"user\", \"content\": \"Hi\"},"
                           " {\"role\": \"assistant\", \"content\": \"Hello there.\"}]}\n";
static const char BAD[] = "{\"id\": \"b\", \"conversations\": [{\"role\": \"user\", \"content\": \"Hi\"},"
                          " {\"role\": \"user\", \"content\": \"Again\"}]}\n";

/* A data YAML over rows.jsonl in a folder of its own; the caller frees the path. */
static char *make_data(const struct place *p, const char *name, const char *rows) {
    char *dir = in_place(p, name), *yaml = path_join(dir, "data.yaml"), *file = path_join(dir, "rows.jsonl");
    struct err e = {0};
    assert_int_equal(dir_make(dir, &e), ST_OK);
    write_file(file, rows);
    write_file(yaml, "data:\n  - {path: rows.jsonl, name: n, format: chat, split: val}\n");
    free(dir), free(file);
    return yaml;
}

static void test_data_names_bad_rows(void **state) {
    const struct place *p = *state;
    char *rows = mem_format("%s%s%s%s", GOOD, BAD, GOOD, BAD), *yaml = make_data(p, "some_bad", rows);
    const char *const with[] = {"data", yaml, "--model", p->model, NULL}, *const without[] = {"data", yaml, NULL};
    const char *const *const ways[] = {with, without};
    for (int i = 0; i < 2; i++) {
        struct run r;
        run_with(&r, 1, "", ways[i]);
        assert_contains(r.out, "bad 2");
        assert_contains(r.out, "row 1 (line 2)");
        assert_contains(r.out, "row 3 (line 4)");
        assert_contains(r.err, "bad rows: 2");
        end(&r);
    }
    struct run r;
    run_with(&r, 0, "", WORDS("data", yaml, "--on_bad_row", "skip", "--json"));
    cJSON *tree = parse(&r);
    assert_true(number(tree->child, "bad") == 2 && number(tree->child, "rows") == 4);
    assert_int_equal(cJSON_GetArraySize(json_get(tree->child, "notes")), 2);
    cJSON_Delete(tree);
    end(&r);
    free(rows), free(yaml);
}

static void test_data_shows_and_dumps(void **state) {
    const struct place *p = *state;
    char *yaml = make_data(p, "good", GOOD), *dump = in_place(p, "row.safetensors");
    struct run r;
    run_with(&r, 0, "", WORDS("data", yaml, "--model", p->model, "--row", "0", "--dump", dump));
    assert_contains(r.out, "rows 1, bad 0");
    assert_contains(r.out, "⟦Hello there.<|eot_id|>⟧");
    end(&r);
    struct st_set s;
    struct err e = {0};
    if (st_open_file(&s, dump, &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(s.count, 3);
    assert_non_null(st_find(&s, "labels"));
    st_close(&s);
    refused(2, WORDS("data", yaml, "--row", "0"), "--row", "--model");
    refused(2, WORDS("data", yaml, "--model", p->model, "--dump", dump), "--dump", "--row");
    run_with(&r, 1, "", WORDS("data", yaml, "--model", p->model, "--row", "1"));
    assert_contains(r.err, "no row 1");
    end(&r);
    refused(1, WORDS("data", yaml, "--split", "train"), yaml, "train");
    free(yaml), free(dump);
}

static void test_doctor(void **state) {
    (void)state;
    struct run r;
    run_with(&r, 0, "", WORDS("doctor", "--json", "--device", "cpu"));
    cJSON *tree = parse(&r);
    static const char *const sections[] = {"processor", "memory", "gpu", "libraries", "folders", "will be used"};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
        if (!cJSON_IsObject(json_get(tree, sections[i]))) fail_msg("no section %s", sections[i]);
    assert_contains(json_get(json_get(tree, "will be used"), "cpu")->valuestring, "CPU");
    cJSON_Delete(tree);
    end(&r);
    run_with(&r, 0, "", WORDS("doctor", "--device", "nonsense"));
    assert_contains(r.out, "problems\n  device nonsense");
    end(&r);
}

/* A machine without FFmpeg does all but read videos. */
static void test_without_ffmpeg(void **state) {
    const struct place *p = *state;
    struct run r;
    char *libraries = in_place(p, "libraries"), *name = mem_format("libavutil.so.%d", LIBAVUTIL_VERSION_MAJOR);
    char *broken = path_join(libraries, name);
    struct err e = {0};
    assert_int_equal(dir_make(libraries, &e), ST_OK);
    write_file(broken, "no library");
    setenv("LD_LIBRARY_PATH", libraries, 1);
    run_with(&r, 0, "", WORDS("doctor", "--device", "cpu"));
    assert_contains(r.out, "FFmpeg         not there");
    assert_contains(r.out, "problems\n  videos are read through FFmpeg, but libavutil.so.");
    end(&r);
    unsetenv("LD_LIBRARY_PATH");
    free(libraries), free(name), free(broken);
}

/* Work on files is done on the host, also where a device is asked for that is not there. */
static void test_files_need_no_device(void **state) {
    const struct place *p = *state;
    struct run r;
    char *out = in_place(p, "small");
    run_with(&r, 0, "", WORDS("quantize", p->model, "--out", out, "--device", "cuda:1"));
    assert_contains(r.err, "quantising is done on the CPU, and does not use --device cuda:1");
    end(&r);
    char *none = in_place(p, "none");
    refused(1, WORDS("diff", p->model, p->model, "--rank", "1", "--out", none, "--device", "cuda"),
            "the decomposition is done on the CPU", "no linear layer differs");
    refused(2, WORDS("quantize", p->model, "--out", none, "--device", "disk"), "device disk", "wanted auto, cpu");
    free(out), free(none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone_lists_verbs),
        cmocka_unit_test(test_help_fits_a_screen),
        cmocka_unit_test(test_help_shows_defaults),
        cmocka_unit_test(test_unknown_names_the_nearest),
        cmocka_unit_test(test_ill_typed_values),
        cmocka_unit_test(test_spellings_of_a_flag),
        cmocka_unit_test(test_full_disk_is_a_failure),
        cmocka_unit_test(test_no_model),
        cmocka_unit_test(test_name_in_the_hub_cache),
        cmocka_unit_test(test_tokenize_and_back),
        cmocka_unit_test(test_tokenize_json),
        cmocka_unit_test(test_tokenize_chat),
        cmocka_unit_test(test_tokenize_refuses),
        cmocka_unit_test(test_init_lists),
        cmocka_unit_test(test_init_is_a_function_of_the_seed),
        cmocka_unit_test(test_init_numbers),
        cmocka_unit_test(test_init_tokenizer),
        cmocka_unit_test(test_init_writes_whole_or_not),
        cmocka_unit_test(test_init_in_shards),
        cmocka_unit_test(test_init_with_a_tokenizer),
        cmocka_unit_test(test_inspect_counts),
        cmocka_unit_test(test_inspect_adapter_norms),
        cmocka_unit_test(test_data_names_bad_rows),
        cmocka_unit_test(test_data_shows_and_dumps),
        cmocka_unit_test(test_doctor),
        cmocka_unit_test(test_without_ffmpeg),
        cmocka_unit_test(test_files_need_no_device),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

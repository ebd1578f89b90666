/* 4-bit blocks against what bitsandbytes wrote (tests/golden/make_quant.py), odd inputs, and whole folders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"
#include "quant/block.h"
#include "quant/bnb.h"
#include "quant/checkpoint.h"
#include "tests/folder.h"

static const char golden[] = "tests/golden/quant/weights.safetensors";

/* One case of the fixture: what was read, and what block_quantize makes of the source. */
static void check_case(const struct st_set *s, const struct st_entry *source, struct threads *t) {
    struct q4_weight w;
    struct err e = {0};
    char *base = mem_text_n(source->name, strlen(source->name) - strlen(".source"));
    char *name = mem_format("%s.weight", base), *values = mem_format("%s.values", base);
    if (bnb_read(&w, s, name, &e) != ST_OK) fail_msg("%s", e.text);
    int64_t n = tensor_count(&w.t), blocks = block_count(n, w.q.blocksize);
    uint8_t *packed = mem_alloc((size_t)n), *absmax8 = mem_alloc((size_t)blocks);
    float *absmax = mem_alloc((size_t)blocks * 4), *nested = mem_alloc((size_t)blocks * 4), map8[256];
    assert_int_equal(n, (int64_t)(source->bytes / st_type_size(source->type)));
    block_quantize(packed, absmax, source->data, w.q.source, n, w.t.type, w.q.blocksize, t);
    assert_memory_equal(packed, w.t.data, tensor_bytes(&w.t));
    assert_memory_equal(block_code(w.t.type), w.q.code, 16 * sizeof(float));
    if (w.q.absmax) assert_memory_equal(absmax, w.q.absmax, (size_t)blocks * 4);
    if (w.q.absmax8) {
        block_map8(map8);
        float offset = block_nest(absmax8, nested, absmax, blocks, map8, t);
        assert_memory_equal(map8, w.q.nested_code, sizeof map8);
        assert_true(fabsf(offset - w.q.nested_offset) <= 1e-6f * fabsf(w.q.nested_offset));
        assert_memory_equal(absmax8, w.q.absmax8, (size_t)blocks);
        for (int64_t i = 0; i < block_count(blocks, 256); i++)
            assert_true(fabsf(nested[i] - w.q.nested_absmax[i]) <= 1e-6f * w.q.nested_absmax[i]);
    }
    char *out = mem_alloc(source->bytes);
    block_dequantize(out, w.q.source, &w.t, t);
    assert_memory_equal(out, st_find(s, values)->data, source->bytes);
    char *text = bnb_state_text(w.t.type, &w.q, w.t.dim[0], w.t.dim[1]);
    assert_non_null(strstr(text, w.q.absmax8 ? "\"nested_offset\": " : "]}"));
    bnb_release(&w);
    free(text), free(out), free(packed), free(absmax), free(absmax8), free(nested), free(values), free(name),
        free(base);
}

static void test_bitsandbytes(void **state) {
    (void)state;
    struct st_set s;
    struct err e = {0};
    int cases = 0;
    assert_int_equal(st_open_file(&s, golden, &e), ST_OK);
    for (int count = 1; count <= 3; count += 2) {
        struct threads *t = threads_new(count);
        for (size_t i = 0; i < s.count; i++)
            if (text_ends(s.entries[i].name, ".source")) check_case(&s, &s.entries[i], t), cases++;
        threads_free(t);
    }
    assert_int_equal(cases, 2 * 8);
    st_close(&s);
}

/* The state is the text that bitsandbytes writes, but for the digits of nested_offset, whose value is the same. */
static void test_state_text(void **state) {
    (void)state;
    struct q4 q = {.blocksize = 64, .source = BF16};
    char *text = bnb_state_text(NF4, &q, 3, 5);
    assert_string_equal(text,
                        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [3, 5]}");
    free(text);
    q.nested_blocksize = 256;
    size_t length = 0;
    static const float offsets[] = {0.0f, 0.1f, 3.4e38f, 1e-45f, 12345.678f};
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        struct err e = {0};
        q.nested_offset = offsets[i];
        text = bnb_state_text(FP4, &q, 1, 1);
        if (i) assert_int_equal(strlen(text), length);
        length = strlen(text);
        cJSON *tree = json_parse(text, length, "state", &e);
        assert_true((float)cJSON_GetObjectItem(tree, "nested_offset")->valuedouble == offsets[i]);
        cJSON_Delete(tree);
        free(text);
    }
}

/* Every 16-bit float, through the three ways into a block, finds the nearest code. */
static void test_nearest_code(void **state) {
    (void)state;
    struct threads *t = threads_new(1);
    uint16_t half[65] = {0};
    float wide[65] = {0}, absmax, absmax32;
    uint8_t packed[33], packed32[33];
    for (int type = NF4; type <= FP4; type++) {
        const float *code = block_code((enum dtype)type);
        for (uint32_t bits = 0; bits < 0x10000; bits += 63) {
            for (int i = 0; i < 63; i++) half[i] = (uint16_t)(bits + i), wide[i] = f16_to_float(half[i]);
            bool finite = true;
            for (int i = 0; i < 63; i++) finite &= isfinite(wide[i]) != 0;
            if (!finite) continue;
            half[63] = 0x7BFF, wide[63] = 65504.0f; // the largest
            block_quantize(packed, &absmax, half, F16, 64, (enum dtype)type, 64, t);
            block_quantize(packed32, &absmax32, wide, F32, 64, (enum dtype)type, 64, t);
            assert_memory_equal(packed, packed32, 32);
            assert_true(absmax == 65504.0f && absmax32 == absmax);
            for (int i = 0; i < 64; i++) {
                double x = (double)wide[i] / 65504.0, best = 3;
                for (int k = 0; k < 16; k++) best = fmin(best, fabs(x - (double)code[k]));
                double got = fabs(x - (double)code[packed[i / 2] >> (i % 2 ? 0 : 4) & 15]);
                assert_true(got <= best + 1e-6); // the cuts are rounded to fp32, some of FP4's to seven digits
            }
        }
    }
    threads_free(t);
}

static void test_blocks_of_nothing(void **state) {
    (void)state;
    struct threads *t = threads_new(1);
    float x[160] = {0}, absmax[3];
    uint8_t packed[80];
    block_quantize(packed, absmax, x, F32, 96, NF4, 64, t);
    for (int i = 0; i < 48; i++) assert_int_equal(packed[i], 0x77);
    assert_true(absmax[0] == 0.0f && absmax[1] == 1e-38f);
    block_quantize(packed, absmax, x, F32, 96, FP4, 64, t);
    for (int i = 0; i < 48; i++) assert_int_equal(packed[i], 0);
    x[3] = NAN, x[64 + 5] = -INFINITY, x[128] = -1e-45f;
    block_quantize(packed, absmax, x, F32, 129, NF4, 64, t);
    assert_true(isnan(absmax[0]) && isinf(absmax[1]) && absmax[2] == 1e-38f);
    assert_int_equal(packed[64] & 15, 7);
    threads_free(t);
}

static void test_unaligned_and_many(void **state) {
    (void)state;
    enum { N = 300001 };
    uint16_t *x = mem_alloc((N + 1) * 2);
    char *shifted = mem_alloc((N + 1) * 2 + 1);
    for (int i = 0; i < N; i++) x[i] = bf16_of_float((float)rng_normal(7, 1, (uint64_t)i));
    memcpy(shifted + 1, x, N * 2);
    static const int sizes[] = {32, 64, 512, 4096};
    for (size_t k = 0; k < 4; k++) {
        int64_t blocks = block_count(N, sizes[k]);
        uint8_t *one = mem_alloc(N), *three = mem_alloc(N);
        float *a = mem_alloc((size_t)blocks * 4), *b = mem_alloc((size_t)blocks * 4);
        struct threads *t1 = threads_new(1), *t3 = threads_new(3);
        block_quantize(one, a, x, BF16, N, FP4, sizes[k], t1);
        block_quantize(three, b, shifted + 1, BF16, N, FP4, sizes[k], t3);
        assert_memory_equal(one, three, N);
        assert_memory_equal(a, b, (size_t)blocks * 4);
        threads_free(t1), threads_free(t3);
        free(one), free(three), free(a), free(b);
    }
    free(x), free(shifted);
}

/* --- reading damaged states -------------------------------------------------------------------------------------- */

/* The tensors of fixture case `name`, with one of them replaced (or left out when with.rank is -1). */
static enum status read_damaged(const char *dir, const char *name, const char *part, struct st_entry with,
                                struct err *e) {
    struct st_set s, damaged;
    struct q4_weight w;
    assert_int_equal(st_open_file(&s, golden, e), ST_OK);
    struct st_entry *kept = mem_alloc((s.count + 1) * sizeof *kept);
    char *path = path_join(dir, "damaged.safetensors"), *full = mem_format("%s.weight", name);
    char *hit = mem_format("%s%s", full, part);
    size_t count = 0;
    bool found = false;
    for (size_t i = 0; i < s.count; i++) {
        if (!text_starts(s.entries[i].name, full)) continue;
        bool this = strcmp(s.entries[i].name, hit) == 0;
        found |= this;
        if (!this) kept[count++] = s.entries[i];
    }
    with.name = hit;
    if (with.rank >= 0) kept[count++] = with;
    if (with.rank < 0) assert_true(found);
    assert_int_equal(st_write(path, kept, count, e), ST_OK);
    assert_int_equal(st_open_file(&damaged, path, e), ST_OK);
    enum status st = bnb_read(&w, &damaged, full, e);
    if (st == ST_OK) bnb_release(&w);
    st_close(&damaged), st_close(&s);
    free(kept), free(path), free(full), free(hit);
    return st;
}

static void assert_damage_found(const char *dir, const char *name, const char *part, struct st_entry with,
                                const char *why) {
    struct err e = {0};
    if (read_damaged(dir, name, part, with, &e) == ST_OK) fail_msg("accepted: %s %s", part, why);
    if (!strstr(e.text, name) || !strstr(e.text, "damaged.safetensors")) fail_msg("does not say where: %s", e.text);
}

static struct st_entry state_entry(const char *text) {
    return (struct st_entry){.type = ST_U8, .rank = 1, .dim = {(int64_t)strlen(text)}, .data = text};
}

static void test_damaged_states(void **state) {
    static const char *const good =
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 129]}";
    static const char *const fp4 =
        "{\"quant_type\": \"fp4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 129]}";
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "{\"quant_type\": \"fp4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 128, \"dtype\": \"float32\", \"shape\": [33, 129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 0, \"dtype\": \"float32\", \"shape\": [33, 129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 63, \"dtype\": \"float32\", \"shape\": [33, 129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float64\", \"shape\": [33, 129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 131]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [-33, -129]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [4257]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [9007199254740992, "
        "9007199254740992]}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 129], "
        "\"nested_blocksize\": 256, "
        "\"nested_offset\": 0.5}",
        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [33, 129], "
        "\"nested_blocksize\": 0, "
        "\"nested_offset\": 0.5}",
    };
    static const char part[] = ".quant_state.bitsandbytes__nf4";
    struct err e = {0};
    assert_int_equal(read_damaged(*state, "nf4", part, state_entry(good), &e), ST_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_damage_found(*state, "nf4", part, state_entry(bad[i]), bad[i]);
    assert_damage_found(*state, "nf4", ".quant_state.bitsandbytes__fp4", state_entry(fp4), "a second state");
}

static void test_damaged_parts(void **state) {
    static const char *const parts[] = {
        "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"};
    static const float nans[256] = {NAN};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        struct st_entry none = {.rank = -1}, three = {.type = ST_F32, .rank = 1, .dim = {3}, .data = nans};
        assert_damage_found(*state, "nf4_bf16_double", parts[i], none, "missing");
        assert_damage_found(*state, "nf4_bf16_double", parts[i], three, "three floats");
    }
    struct st_entry whole = {.type = ST_I32, .rank = 1, .dim = {16}, .data = (float[16]){0}};
    assert_damage_found(*state, "nf4_bf16_double", ".quant_map", whole, "integers");
    struct st_entry map = {.type = ST_F32, .rank = 1, .dim = {16}, .data = nans};
    assert_damage_found(*state, "nf4_bf16_double", ".quant_map", map, "NaN");
    map.dim[0] = 256;
    assert_damage_found(*state, "nf4_bf16_double", ".nested_quant_map", map, "NaN");
    struct st_set s;
    struct err e = {0};
    struct q4_weight w;
    assert_int_equal(st_open_file(&s, golden, &e), ST_OK);
    assert_true(bnb_is_4bit(&s, "nf4.weight") && bnb_is_4bit(&s, "fp4_bf16.weight") && !bnb_is_4bit(&s, "nf4.source"));
    assert_int_equal(bnb_read(&w, &s, "nf4.source", &e), ST_FAIL);
    st_close(&s);
}

/* --- a folder ---------------------------------------------------------------------------------------------------- */

enum { COUNT = 12, BYTES = 200000 };

/* A small model: names as the families use them; every weight is 40 x 33 but for the norm. */
static const char *const model_names[COUNT] = {
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.10.mlp.down_proj.weight",
    "model.vision_model.embeddings.position_embedding.weight",
    "model.vision_model.head.attention.out_proj.weight",
    "vision_tower.fc1.weight",
};

static char *write_model(const char *dir, const char *config, float bad) {
    struct err e = {0};
    char *source = path_join(dir, "model"), *path;
    float *x = mem_alloc(BYTES);
    struct st_entry in[COUNT];
    for (int i = 0; i < BYTES / 4; i++) x[i] = (float)rng_normal(3, 1, (uint64_t)i);
    x[100] = bad;
    for (int i = 0; i < COUNT; i++) {
        bool flat = text_ends(model_names[i], "norm.weight") || text_ends(model_names[i], ".bias");
        in[i] = (struct st_entry){model_names[i], ST_F32, flat ? 1 : 2, {40, flat ? 0 : 33}, x + 1000 * i, 0, NULL};
    }
    assert_int_equal(dir_make(source, &e), ST_OK);
    path = path_join(source, "model.safetensors");
    assert_int_equal(st_write(path, in, COUNT, &e), ST_OK);
    free(path);
    path = path_join(source, "config.json");
    assert_int_equal(file_write(path, config, strlen(config), &e), ST_OK);
    free(path);
    path = path_join(source, "tokenizer.json");
    assert_int_equal(file_write(path, "{}", 2, &e), ST_OK);
    free(path), free(x);
    return source;
}

static enum status quantise(const char *source, const char *dir, const char *name, const struct checkpoint_options *o,
                            struct checkpoint_report *r, struct err *e) {
    struct checkpoint_options mine = *o;
    char *out = path_join(dir, name);
    mine.threads = threads_new(2);
    enum status st = checkpoint_quantize(source, out, &mine, r, e);
    threads_free(mine.threads);
    free(out);
    return st;
}

/* Quantises the model, and says which of its weights became 4-bit (bits) and what the skip list is (the caller
 * frees). */
static unsigned which(const char *dir, const char *config, const char *skip, char **list) {
    struct checkpoint_options o = checkpoint_defaults();
    struct checkpoint_report r;
    struct err e = {0};
    struct st_set s;
    o.skip = skip;
    char *source = write_model(dir, config, 1.0f), *out = path_join(dir, "out"), *path = path_join(out, "config.json");
    if (quantise(source, dir, "out", &o, &r, &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(st_open_dir(&s, out, "model", &e), ST_OK);
    unsigned bits = 0;
    for (unsigned i = 0; i < COUNT; i++)
        if (bnb_is_4bit(&s, model_names[i])) bits |= 1u << i;
    assert_int_equal(r.quantised, __builtin_popcount(bits));
    cJSON *tree = json_read(path, &e);
    const cJSON *q = json_get(tree, "quantization_config");
    assert_true(cJSON_IsTrue(json_get(q, "load_in_4bit")));
    *list = json_text(cJSON_GetObjectItem(q, "llm_int8_skip_modules"), true);
    cJSON_Delete(tree);
    st_close(&s);
    assert_int_equal(dir_remove(out, &e), ST_OK);
    free(source), free(out), free(path);
    return bits;
}

static void test_which_modules(void **state) {
    enum { LM_HEAD = 1, DOWN0 = 8, Q0 = 32, DOWN1 = 64, Q1 = 128, DOWN10 = 256, TOWER = 2048 };
    enum { ALL = DOWN0 | Q0 | DOWN1 | Q1 | DOWN10 | TOWER };
    static const struct {
        const char *config, *skip, *list;
        unsigned bits;
    } cases[] = {
        {"{\"model_type\": \"llama\"}\n", NULL, "null", ALL},
        {"{}", "vision_tower", "[\"lm_head\", \"fc1\"]", ALL & ~TOWER},
        {"{\"a\": 1.0}", ".*(down_proj|lm_head)", "[\"lm_head\", \"down_proj\"]", Q0 | Q1 | TOWER},
        {"{\"a\": 1.0}", "layers\\.1",
         "[\"lm_head\", \"model.layers.1.mlp.down_proj\", \"model.layers.1.self_attn.q_proj\"]", ALL & ~(DOWN1 | Q1)},
        {"{\"model_type\": \"llava\"}", NULL, "[\"vision_tower\", \"model.vision_tower\"]", (ALL & ~TOWER) | LM_HEAD},
        {"{\"model_type\": \"llava\", \"text_config\": {\"tie_word_embeddings\": true}}", NULL,
         "[\"vision_tower\", \"model.vision_tower\", \"lm_head\"]", ALL & ~TOWER},
        {"{\"model_type\": \"llava\"}", "lm_head", "[\"vision_tower\", \"model.vision_tower\", \"lm_head\"]",
         ALL & ~TOWER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *list;
        assert_int_equal(which(*state, cases[i].config, cases[i].skip, &list), cases[i].bits);
        assert_string_equal(list, cases[i].list);
        free(list);
    }
}

/* The rest of config.json keeps its bytes; the threshold has to be written as a float. */
static void test_config_text(void **state) {
    struct checkpoint_options o = checkpoint_defaults();
    struct checkpoint_report r;
    struct err e = {0};
    size_t n;
    char *data, *source = write_model(*state, "{\n  \"rope_theta\": 500000.0,\n  \"x\": 1e-05\n}\n", 1.0f);
    assert_int_equal(quantise(source, *state, "out/", &o, &r, &e), ST_OK);
    char *path = path_join(*state, "out/config.json"), *other = path_join(*state, "out/tokenizer.json");
    assert_int_equal(file_read(path, &data, &n, &e), ST_OK);
    assert_true(text_starts(data, "{\n  \"rope_theta\": 500000.0,\n  \"x\": 1e-05,\n  \"quantization_config\": {\n"));
    assert_non_null(strstr(data, "\"llm_int8_threshold\": 6.0"));
    assert_non_null(strstr(data, "\"bnb_4bit_compute_dtype\": \"float32\""));
    assert_true(file_exists(other));
    free(data), free(path), free(other), free(source);
}

/* Shards hold the same tensors as one file; a limit of one byte gives one file a weight. */
static void test_output_shards(void **state) {
    struct checkpoint_options o = checkpoint_defaults();
    struct checkpoint_report r;
    struct err e = {0};
    struct st_set one, many;
    char *source = write_model(*state, "{}", 1.0f), *a = path_join(*state, "one"), *b = path_join(*state, "many");
    o.type = FP4, o.blocksize = 128;
    assert_int_equal(quantise(source, *state, "one", &o, &r, &e), ST_OK);
    assert_int_equal(r.shards, 1);
    o.max_shard_size = 1;
    assert_int_equal(quantise(source, *state, "many", &o, &r, &e), ST_OK);
    assert_int_equal(r.shards, COUNT);
    assert_int_equal(st_open_dir(&one, a, "model", &e) | st_open_dir(&many, b, "model", &e), ST_OK);
    assert_int_equal(one.count, many.count);
    size_t bytes = 0;
    for (size_t i = 0; i < one.count; i++) {
        assert_string_equal(one.entries[i].name, many.entries[i].name);
        assert_int_equal(one.entries[i].bytes, many.entries[i].bytes);
        assert_memory_equal(one.entries[i].data, many.entries[i].data, one.entries[i].bytes);
        bytes += one.entries[i].bytes;
    }
    assert_int_equal(r.bytes_out, bytes);
    st_close(&one), st_close(&many);
    free(source), free(a), free(b);
}

static void assert_nothing_but_model(const char *dir) {
    char **names;
    size_t count;
    struct err e = {0};
    assert_int_equal(dir_list(dir, &names, &count, &e), ST_OK);
    assert_int_equal(count, 1);
    assert_string_equal(names[0], "model");
    names_free(names, count);
}

static void test_refusals(void **state) {
    struct checkpoint_options o = checkpoint_defaults(), odd = o, lost = o;
    struct checkpoint_report r;
    struct err e = {0};
    odd.blocksize = 48, lost.skip = "nothing_like_it";
    char *source = write_model(*state, "{}", 1.0f);
    assert_int_equal(quantise(source, *state, "out", &odd, &r, &e), ST_USAGE);
    e = (struct err){0};
    assert_int_equal(quantise(source, *state, "out", &lost, &r, &e), ST_USAGE);
    e = (struct err){0};
    assert_int_equal(quantise(source, *state, "model", &o, &r, &e), ST_FAIL); // not empty
    e = (struct err){0};
    assert_int_equal(quantise(source, *state, "model/config.json", &o, &r, &e), ST_FAIL);
    free(source);
    source = write_model(*state, "{\"quantization_config\": {}}", 1.0f);
    e = (struct err){0};
    assert_int_equal(quantise(source, *state, "out", &o, &r, &e), ST_FAIL);
    free(source);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        // element 100 is in lm_head, which is not quantised unless the model is a llava
        source = write_model(*state, "{\"model_type\": \"llava\"}", bad[i]);
        e = (struct err){0};
        assert_int_equal(quantise(source, *state, "out", &o, &r, &e), ST_FAIL);
        assert_non_null(strstr(e.text, "lm_head.weight"));
        free(source);
    }
    assert_nothing_but_model(*state);
}

/* A full disk, at whatever file it strikes: no folder is left. */
static void test_full_disk(void **state) {
    struct checkpoint_options o = checkpoint_defaults();
    struct checkpoint_report r;
    struct rlimit old;
    char *source = write_model(*state, "{}", 1.0f);
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t limits[] = {0, 1, 400, 5000, 30000};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        struct rlimit small = {limits[i], old.rlim_max};
        struct err e = {0};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        enum status st = quantise(source, *state, "out", &o, &r, &e);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, ST_FAIL);
        assert_non_null(strstr(e.text, "out."));
        assert_nothing_but_model(*state);
    }
    free(source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bitsandbytes),
        cmocka_unit_test(test_state_text),
        cmocka_unit_test(test_nearest_code),
        cmocka_unit_test(test_blocks_of_nothing),
        cmocka_unit_test(test_unaligned_and_many),
        FOLDER_TEST(test_damaged_states),
        FOLDER_TEST(test_damaged_parts),
        FOLDER_TEST(test_which_modules),
        FOLDER_TEST(test_config_text),
        FOLDER_TEST(test_output_shards),
        FOLDER_TEST(test_refusals),
        FOLDER_TEST(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

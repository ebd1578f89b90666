/* Fuyu against transformers, PEFT and autograd (golden/make_fuyu.py): losses, gradients of everything that can be
 * trained; its configuration, which layers become 4-bit, memory, generation, and all of it at once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "lora/peft.h"
#include "model/generate.h"
#include "tests/adapter_fixture.h"
#include "tests/expected.h"
#include "tests/training.h"

#define GOLDEN "tests/golden/fuyu"
enum { PATCH = 2, LAYERS = 2, VOCAB = 50, PICTURES = 3 };

struct golden {
    struct expected expected;
    struct batch batch;
    struct batch_image image[PICTURES];
    int64_t row_index[2];
    int32_t positions[64], targets[64];
    struct batch_limits limits;
};

/* The rows as data/ would hand them over. */
static void fill_batch(struct golden *g) {
    struct batch *b = &g->batch;
    const int64_t *sides = expected_data(&g->expected, "sides");
    float *pixels = (float *)expected_data(&g->expected, "patches");
    *b = (struct batch){.rows = 2,
                        .N = expected_count(&g->expected, "ids"),
                        .images = PICTURES,
                        .image = g->image,
                        .row_index = g->row_index};
    b->offsets = (int64_t *)expected_data(&g->expected, "offsets");
    b->ids = (int32_t *)expected_data(&g->expected, "ids");
    b->targets = g->targets;
    memcpy(g->targets, expected_data(&g->expected, "targets"), (size_t)b->N * sizeof *g->targets);
    b->positions = g->positions;
    for (int64_t r = 0; r < 2; r++) {
        int64_t n = b->offsets[r + 1] - b->offsets[r];
        if (n > g->limits.longest) g->limits.longest = n;
        for (int64_t i = 0; i < n; i++) g->positions[b->offsets[r] + i] = (int32_t)i;
    }
    for (int64_t i = 0; i < b->N; i++) b->scored += b->targets[i] != IGNORED;
    for (int i = 0; i < PICTURES; i++) {
        int64_t high = sides[2 * i], wide = sides[2 * i + 1], patches = high * wide;
        g->image[i] = (struct batch_image){.height = high * PATCH, .width = wide * PATCH, .pixels = pixels};
        pixels += patches * 3 * PATCH * PATCH;
        g->limits.patches += patches;
        if (patches > g->limits.most_patches) g->limits.most_patches = patches;
    }
    g->limits.N = b->N, g->limits.rows = 2, g->limits.images = PICTURES, g->limits.scored = b->scored;
}

static void golden_open(struct golden *g) {
    *g = (struct golden){0};
    expected_open(&g->expected, GOLDEN);
    fill_batch(g);
}

static void golden_close(struct golden *g) { expected_close(&g->expected); }

static void load(struct fixture *f) {
    const struct load_options o = {.quantize = {.type = F32}};
    model_load(&f->model, GOLDEN "/model", f->be, &o, &f->e);
    expect_good(&f->e);
}

static void unload(struct fixture *f) {
    model_free(f->model);
    f->model = NULL;
}

/* --- gradients --------------------------------------------------------------------------------------------------- */

static struct adapter *adapter_of(struct fixture *f, const char *name) {
    struct adapter *a = NULL;
    struct adapter_options o = {.finetuning = FINETUNE_FULL};
    cJSON *config = NULL;
    char *dir = mem_format(GOLDEN "/%s", name);
    if (strcmp(name, "full")) {
        assert_int_equal(peft_config_read(&config, dir, &f->e), ST_OK);
        o = options_of(config);
    }
    if (adapter_new(&a, f->model, &o, &f->e) == ST_OK && config) adapter_read(a, dir, &f->e);
    expect_good(&f->e);
    cJSON_Delete(config);
    free(dir);
    return a;
}

/* One step with memory that is measured for exactly this batch. */
static void check_gradients(struct fixture *f, const char *name, enum keep how) {
    struct golden g;
    struct workspace *w = NULL;
    golden_open(&g);
    load(f);
    struct adapter *a = adapter_of(f, name);
    const enum keep keep[LAYERS] = {how, how};
    const struct workspace_options o = {.limits = g.limits, .train = true, .act = F32, .keep = keep};
    workspace_new(&w, f->model, &o, &f->e);
    expect_good(&f->e);
    float sum = 0;
    struct tensor total = tensor_over1(&sum, F32, 1);
    model_step(w, &g.batch, 0, 0, 1.0f / (float)g.batch.scored, &total);
    backend_sync(f->be, &f->e);
    expect_good(&f->e);
    expected_like(&g.expected, name, "loss", w->acts.loss.data, g.batch.scored);
    expected_gradients(&g.expected, name, a);
    workspace_free(w);
    adapter_free(a);
    unload(f);
    golden_close(&g);
}

static void test_full_gradients(void **state) {
    check_gradients(*state, "full", KEEP_ALL);
    check_gradients(*state, "full", KEEP_INPUT);
    check_gradients(*state, "full", KEEP_HOST);
}

static void test_lora_gradients(void **state) {
    check_gradients(*state, "lora", KEEP_ALL);
    check_gradients(*state, "lora", KEEP_SMART);
}

static void test_dora_gradients(void **state) { check_gradients(*state, "dora", KEEP_SMART); }

static void test_patch_gradients(void **state) { check_gradients(*state, "patches", KEEP_INPUT); }

/* --- without a backward ------------------------------------------------------------------------------------------ */

/* Activations in BF16 under an adapter on the head, whose logits are F32: the same losses to the precision of BF16,
 * whose 8 bits a dozen roundings a layer wear down to some hundredths. */
static void test_bf16_head(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"lora", "dora"};
    for (int i = 0; i < 2; i++) {
        struct golden g;
        struct workspace *w = NULL;
        golden_open(&g);
        load(f);
        struct adapter *a = adapter_of(f, names[i]);
        const enum keep keep[LAYERS] = {KEEP_ALL, KEEP_ALL};
        const struct workspace_options o = {.limits = g.limits, .train = true, .act = BF16, .keep = keep};
        workspace_new(&w, f->model, &o, &f->e);
        expect_good(&f->e);
        float sum = 0, want = 0;
        struct tensor total = tensor_over1(&sum, F32, 1);
        model_step(w, &g.batch, 0, 0, 1.0f / (float)g.batch.scored, &total);
        backend_sync(f->be, &f->e);
        expect_good(&f->e);
        char *key = mem_format("%s:loss", names[i]);
        for (int64_t k = 0; k < g.batch.scored; k++) want += ((const float *)expected_data(&g.expected, key))[k];
        if (!(fabsf(sum - want) <= 0.03f * want)) fail_msg("%g, wanted %g", (double)sum, (double)want);
        free(key);
        workspace_free(w);
        adapter_free(a);
        unload(f);
        golden_close(&g);
    }
}

/* One picture after the other: the same losses. */
static void test_evaluation(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"full", "lora", "dora", "patches"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct golden g;
        struct workspace *w = NULL;
        struct adapter *a = NULL;
        golden_open(&g);
        load(f);
        char *dir = mem_format(GOLDEN "/%s", names[i]);
        if (i) adapter_open(&a, f->model, dir, &f->e);
        const struct workspace_options o = {.limits = g.limits, .act = F32};
        workspace_new(&w, f->model, &o, &f->e);
        expect_good(&f->e);
        struct pass p = pass_new(w, 0, 0);
        model_forward(&p, w, &g.batch);
        head_loss(&p, w, NULL, 1);
        backend_sync(f->be, &f->e);
        expect_good(&f->e);
        expected_like(&g.expected, names[i], "loss", w->acts.loss.data, g.batch.scored);
        workspace_free(w);
        adapter_free(a);
        unload(f);
        golden_close(&g);
        free(dir);
    }
}

/* Rows of heads are counted in 32 bits; a pass that has more is refused before anything is planned. */
static void test_too_many_positions(void **state) {
    struct fixture *f = *state;
    struct workspace *w = NULL;
    load(f);
    const struct workspace_options o = {.limits = {.N = INT32_MAX / 9 + 1, .rows = 1, .longest = 1}, .act = F32};
    assert_int_not_equal(workspace_new(&w, f->model, &o, &f->e), ST_OK);
    assert_null(w);
    expect_error(f, ST_FAIL, "more than 3 heads allow");
    unload(f);
}

/* --- generation -------------------------------------------------------------------------------------------------- */

static float *fed_logits(struct fixture *f, struct golden *g, int64_t piece, int64_t at) {
    struct generator *made;
    const struct generator_options o = {.room = 32, .pictures = 2, .most_patches = 6, .piece = piece, .act = F32};
    int64_t n = g->batch.offsets[1];
    generator_new(&made, f->model, &o, &f->e);
    expect_good(&f->e);
    if (at) generator_feed(made, g->batch.ids, at, g->image, 1, &f->e);
    generator_feed(made, g->batch.ids + at, n - at, g->image + (at ? 1 : 0), at ? 1 : 2, &f->e);
    expect_good(&f->e);
    float *logits = mem_alloc(VOCAB * sizeof *logits);
    memcpy(logits, made->logits, VOCAB * sizeof *logits);
    generator_free(made);
    return logits;
}

/* The last logits of the first row, whose two pictures come at once, in pieces as small as a picture, and in two
 * turns. */
static void test_generation(void **state) {
    struct fixture *f = *state;
    struct golden g;
    golden_open(&g);
    load(f);
    float *whole = fed_logits(f, &g, 0, 0), *pieces = fed_logits(f, &g, 1, 0), *turns = fed_logits(f, &g, 0, 13);
    const float *want = expected_data(&g.expected, "logits");
    double allowed = expected_tolerance(&g.expected, "full") * vector_norm(want, VOCAB);
    assert_true(vector_distance(whole, want, VOCAB) <= allowed);
    assert_true(vector_distance(pieces, want, VOCAB) <= allowed);
    assert_true(vector_distance(turns, want, VOCAB) <= allowed);
    struct generator *small;
    const struct generator_options o = {.room = 32, .pictures = 2, .most_patches = 5, .act = F32};
    generator_new(&small, f->model, &o, &f->e);
    expect_good(&f->e);
    generator_feed(small, g.batch.ids, g.batch.offsets[1], g.image, 2, &f->e);
    expect_error(f, ST_FAIL, "a picture has 6 patches, but there is room for 5");
    generator_feed(small, g.batch.ids, g.batch.offsets[1], g.image + 1, 1, &f->e);
    expect_error(f, ST_FAIL, "7 positions of pictures, but its 1 pictures take 1");
    generator_free(small);
    unload(f);
    golden_close(&g);
    free(whole), free(pieces), free(turns);
}

/* --- which layers ------------------------------------------------------------------------------------------------ */

/* transformers' rule: only lm_head keeps its type. */
static void test_quantised_layers(void **state) {
    struct fixture *f = *state;
    const struct load_options o = {.quantize = {.type = NF4, .blocksize = 64}};
    model_load(&f->model, GOLDEN "/model", f->be, &o, &f->e);
    expect_good(&f->e);
    for (int64_t i = 0; i < f->model->linear_count; i++) {
        const struct linear *l = f->model->linears[i];
        if (tensor_is_4bit(&l->W) == (strcmp(l->path, "language_model.lm_head") == 0)) fail_msg("%s", l->path);
    }
    assert_int_equal(f->model->linear_count, LAYERS * 4 + 2);
    unload(f);
}

static int64_t adapted(struct fixture *f, const cJSON *targets, const char *part) {
    int64_t n = 0;
    const struct adapter_options o = {.r = 1, .alpha = 1, .target_modules = targets};
    struct adapter *a = NULL;
    adapter_new(&a, f->model, &o, &f->e);
    expect_good(&f->e);
    for (int64_t i = 0; i < f->model->linear_count; i++)
        n += f->model->linears[i]->lora && strstr(f->model->linears[i]->path, part);
    adapter_free(a);
    return n;
}

/* A suffix is a whole part of a path: dense is not dense_h_to_4h. Mantis' own targets have no patches. */
static void test_targets(void **state) {
    struct fixture *f = *state;
    cJSON *all = json_of("\"all-linear\""), *suffixes = json_of("[\"dense\"]");
    load(f);
    cJSON *mantis = cJSON_CreateString(f->model->config.default_targets);
    assert_int_equal(adapted(f, all, "layers"), LAYERS * 4);
    assert_int_equal(adapted(f, all, "vision_embed_tokens"), 1);
    assert_int_equal(adapted(f, all, "lm_head"), 0);
    assert_int_equal(adapted(f, suffixes, ""), LAYERS);
    assert_int_equal(adapted(f, mantis, ""), LAYERS * 4 + 1);
    assert_int_equal(adapted(f, mantis, "vision_embed_tokens"), 0);
    unload(f);
    cJSON_Delete(all), cJSON_Delete(suffixes), cJSON_Delete(mantis);
}

/* --- config.json ------------------------------------------------------------------------------------------------- */

/* The fixture's config.json with one key of a part (NULL: the top) set, or taken out (value NULL). */
static enum status read_changed(struct fixture *f, struct model_config *c, const char *part, const char *key,
                                const char *value) {
    cJSON *tree = json_read(GOLDEN "/model/config.json", &f->e);
    cJSON *o = part ? cJSON_GetObjectItemCaseSensitive(tree, part) : tree;
    char *path = path_join(f->tmp, "config.json");
    cJSON_DeleteItemFromObjectCaseSensitive(o, key);
    if (value) cJSON_AddItemToObject(o, key, cJSON_Parse(value));
    json_write(path, tree, &f->e);
    expect_good(&f->e);
    cJSON_Delete(tree);
    free(path);
    return model_config_read(c, f->tmp, &f->e);
}

static void refused(struct fixture *f, const char *part, const char *key, const char *value, const char *says) {
    struct model_config c;
    read_changed(f, &c, part, key, value);
    expect_error(f, ST_FAIL, says);
    model_config_free(&c);
}

static void test_refused_configs(void **state) {
    struct fixture *f = *state;
    refused(f, "text_config", "model_type", "\"llama\"", "wanted persimmon");
    refused(f, "text_config", "qk_layernorm", "false", "qk_layernorm is false");
    refused(f, "text_config", "num_attention_heads", "4", "do not fit together");
    refused(f, "text_config", "hidden_act", "\"mish\"", "mish");
    refused(f, "text_config", "partial_rotary_factor", "0.5", "wanted an even number"); // 5 of 10
    refused(f, "text_config", "partial_rotary_factor", "1.2", "wanted an even number");
    refused(f, "text_config", "partial_rotary_factor", "0", "wanted an even number");
    refused(f, NULL, "num_channels", "4", "wanted 3 channels");
    refused(f, NULL, "patch_size", "0", "patch_size is 0");
    refused(f, NULL, "patch_size", "100000", "not possible");
    refused(f, NULL, "tie_word_embeddings", "true", "a head of its own");
}

static void test_config_defaults(void **state) {
    struct fixture *f = *state;
    struct model_config c;
    assert_int_equal(read_changed(f, &c, NULL, "text_config", "{}"), ST_OK);
    assert_int_equal(c.text.vocab, 262144);
    assert_int_equal(c.text.dim, 4096);
    assert_int_equal(c.text.ffn, 16384);
    assert_int_equal(c.text.layers, 36);
    assert_int_equal(c.text.heads * 1000 + c.text.kv_heads, 64064);
    assert_int_equal(c.text.rotary, 32);
    assert_int_equal(c.text.act, ACT_RELU2);
    assert_true(c.text.eps == 1e-5f && c.text.rope.theta == 25000.0);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, NULL, "patch_size", NULL), ST_OK);
    assert_int_equal(c.vision.dim, 2700);
    assert_int_equal(picture_tokens(&c), 0);
    assert_int_equal(picture_features(&c, &(struct batch_image){.height = 60, .width = 90}), 6);
    assert_string_equal(c.default_template, "mfuyu_v1");
    model_config_free(&c);
}

/* What a later transformers writes, and the layout without text_config, mean the same. */
static void test_config_layouts(void **state) {
    struct fixture *f = *state;
    static const char *const dirs[] = {"model", "five", "flat"};
    int64_t first[12];
    for (int i = 0; i < 3; i++) {
        struct model_config c;
        char *dir = path_join(GOLDEN, dirs[i]);
        model_config_read(&c, dir, &f->e);
        expect_good(&f->e);
        const struct text_config *t = &c.text;
        const int64_t numbers[12] = {t->vocab,  t->dim, t->ffn,           t->layers,      t->heads,     t->head_dim,
                                     t->rotary, t->act, t->max_positions, c.vision.patch, c.vision.dim, c.family};
        if (i == 0) memcpy(first, numbers, sizeof first);
        assert_memory_equal(first, numbers, sizeof first);
        assert_int_equal(t->rotary, 6);
        assert_true(t->eps == 3e-4f && t->rope.theta == 40.0 && t->rope.kind == ROPE_PLAIN);
        model_config_free(&c);
        free(dir);
    }
}

/* --- from nothing to a merged model ------------------------------------------------------------------------------ */

static void test_train_and_merge(void **state) {
    (void)state;
    struct training t;
    struct command_result r;
    training_of_preset(&t, "mfuyu-tiny", "mfuyu_v1");
    training_graft(&t, "inspect out --json", 60, &r);
    assert_non_null(strstr(text_str(&r.out), "query_key_value"));
    assert_non_null(strstr(text_str(&r.out), "lm_head"));
    assert_null(strstr(text_str(&r.out), "vision_embed_tokens"));
    command_free(&r);
    training_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_gradients),     cmocka_unit_test(test_lora_gradients),
        cmocka_unit_test(test_dora_gradients),     cmocka_unit_test(test_patch_gradients),
        cmocka_unit_test(test_bf16_head),          cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_too_many_positions), cmocka_unit_test(test_generation),
        cmocka_unit_test(test_quantised_layers),   cmocka_unit_test(test_targets),
        cmocka_unit_test(test_refused_configs),    cmocka_unit_test(test_config_defaults),
        cmocka_unit_test(test_config_layouts),     cmocka_unit_test(test_train_and_merge),
    };
    struct CMUnitTest each[sizeof tests / sizeof *tests];
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        each[i] = tests[i];
        each[i].setup_func = fixture_start, each[i].teardown_func = fixture_end;
    }
    return cmocka_run_group_tests_name("fuyu", each, NULL, NULL);
}

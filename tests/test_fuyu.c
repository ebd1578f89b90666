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
#include "base/text.h"
#include "model/generate.h"
#include "tests/golden_model.h"
#include "tests/training.h"

#define GOLDEN "tests/golden/fuyu"
enum { PATCH = 2, LAYERS = 2, VOCAB = 50 };

/* The model and the rows with their pictures. */
static void open_golden(struct golden *g, struct fixture *f) {
    golden_open(g, GOLDEN);
    const int64_t *sides = expected_data(&g->expected, "sides");
    float *pixels = (float *)expected_data(&g->expected, "patches");
    for (int i = 0; i < GOLDEN_PICTURES; i++) {
        int64_t high = sides[2 * i], wide = sides[2 * i + 1], patches = high * wide;
        golden_add_picture(g, (struct batch_image){high * PATCH, wide * PATCH, pixels, NULL}, patches);
        pixels += patches * 3 * PATCH * PATCH;
    }
    fixture_load(f, GOLDEN "/model", NULL);
}

/* --- gradients --------------------------------------------------------------------------------------------------- */

static void check_gradients(struct fixture *f, const char *name, enum keep how) {
    struct golden g;
    open_golden(&g, f);
    golden_check_step(&g, f, name, how);
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
        float want = 0;
        open_golden(&g, f);
        golden_step(&g, f, names[i], BF16, KEEP_ALL);
        char *key = mem_format("%s:loss", names[i]);
        for (int64_t k = 0; k < g.batch.scored; k++) want += ((const float *)expected_data(&g.expected, key))[k];
        if (!(fabsf(g.loss - want) <= 0.03f * want)) fail_msg("%g, wanted %g", (double)g.loss, (double)want);
        free(key);
        golden_close(&g);
    }
}

/* One picture after the other: the same losses. */
static void test_evaluation(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"full", "lora", "dora", "patches"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct golden g;
        open_golden(&g, f);
        golden_evaluate(&g, f, names[i]);
        golden_close(&g);
    }
}

/* Rows of heads are counted in 32 bits; a pass that has more is refused before anything is planned. */
static void test_too_many_positions(void **state) {
    struct fixture *f = *state;
    struct workspace *w = NULL;
    fixture_load(f, GOLDEN "/model", NULL);
    const struct workspace_options o = {.limits = {.N = INT32_MAX / 9 + 1, .rows = 1, .longest = 1}, .act = F32};
    assert_int_not_equal(workspace_new(&w, f->model, &o, &f->e), ST_OK);
    assert_null(w);
    expect_error(f, ST_FAIL, "more than 3 heads allow");
}

/* --- generation -------------------------------------------------------------------------------------------------- */

/* The last logits of the first row, whose two pictures come at once, in pieces as small as a picture, and in two
 * turns. */
static void test_generation(void **state) {
    struct fixture *f = *state;
    struct golden g;
    open_golden(&g, f);
    float *whole = golden_logits(&g, f, 6, 0, 0), *pieces = golden_logits(&g, f, 6, 1, 0);
    float *turns = golden_logits(&g, f, 6, 0, 13);
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
    golden_close(&g);
    free(whole), free(pieces), free(turns);
}

/* --- which layers ------------------------------------------------------------------------------------------------ */

/* transformers' rule: only lm_head keeps its type. */
static void test_quantised_layers(void **state) {
    struct fixture *f = *state;
    golden_quantise(f, GOLDEN, "language_model.lm_head");
    assert_int_equal(f->model->linear_count, LAYERS * 4 + 2);
}

/* A suffix is a whole part of a path: dense is not dense_h_to_4h. Mantis' own targets have no patches. */
static void test_targets(void **state) {
    struct fixture *f = *state;
    cJSON *all = json_of("\"all-linear\""), *suffixes = json_of("[\"dense\"]");
    fixture_load(f, GOLDEN "/model", NULL);
    cJSON *mantis = cJSON_CreateString(f->model->config.default_targets);
    assert_int_equal(adapted_layers(f, all, "layers"), LAYERS * 4);
    assert_int_equal(adapted_layers(f, all, "vision_embed_tokens"), 1);
    assert_int_equal(adapted_layers(f, all, "lm_head"), 0);
    assert_int_equal(adapted_layers(f, suffixes, ""), LAYERS);
    assert_int_equal(adapted_layers(f, mantis, ""), LAYERS * 4 + 1);
    assert_int_equal(adapted_layers(f, mantis, "vision_embed_tokens"), 0);
    cJSON_Delete(all), cJSON_Delete(suffixes), cJSON_Delete(mantis);
}

/* --- config.json ------------------------------------------------------------------------------------------------- */

static void test_refused_configs(void **state) {
    static const struct config_change changes[] = {
        {"text_config", "model_type", "\"llama\"", "wanted persimmon"},
        {"text_config", "qk_layernorm", "false", "qk_layernorm is false"},
        {"text_config", "num_attention_heads", "4", "do not fit together"},
        {"text_config", "hidden_act", "\"mish\"", "mish"},
        {"text_config", "partial_rotary_factor", "0.5", "wanted an even number"}, // 5 of 10
        {"text_config", "partial_rotary_factor", "1.2", "wanted an even number"},
        {"text_config", "partial_rotary_factor", "0", "wanted an even number"},
        {NULL, "num_channels", "4", "wanted 3 channels"},
        {NULL, "patch_size", "0", "patch_size is 0"},
        {NULL, "patch_size", "100000", "not possible"},
        {NULL, "tie_word_embeddings", "true", "a head of its own"},
    };
    golden_refuse_configs(*state, GOLDEN, changes, sizeof changes / sizeof *changes);
}

static void test_config_defaults(void **state) {
    struct fixture *f = *state;
    struct model_config c;
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "text_config", "{}"), ST_OK);
    assert_int_equal(c.text.vocab, 262144);
    assert_int_equal(c.text.dim, 4096);
    assert_int_equal(c.text.ffn, 16384);
    assert_int_equal(c.text.layers, 36);
    assert_int_equal(c.text.heads * 1000 + c.text.kv_heads, 64064);
    assert_int_equal(c.text.rotary, 32);
    assert_int_equal(c.text.act, ACT_RELU2);
    assert_true(c.text.eps == 1e-5f && c.text.rope.theta == 25000.0);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "patch_size", NULL), ST_OK);
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
        FIXTURE_TEST(test_full_gradients),     FIXTURE_TEST(test_lora_gradients),
        FIXTURE_TEST(test_dora_gradients),     FIXTURE_TEST(test_patch_gradients),
        FIXTURE_TEST(test_bf16_head),          FIXTURE_TEST(test_evaluation),
        FIXTURE_TEST(test_too_many_positions), FIXTURE_TEST(test_generation),
        FIXTURE_TEST(test_quantised_layers),   FIXTURE_TEST(test_targets),
        FIXTURE_TEST(test_refused_configs),    FIXTURE_TEST(test_config_defaults),
        FIXTURE_TEST(test_config_layouts),     FIXTURE_TEST(test_train_and_merge),
    };
    return cmocka_run_group_tests_name("fuyu", tests, NULL, NULL);
}

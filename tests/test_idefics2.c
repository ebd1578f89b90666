/* Idefics2 against transformers, PEFT and autograd (golden/make_idefics2.py): losses, outputs of a head, gradients of
 * everything that can be trained; its configuration, which layers become 4-bit, memory, generation. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/text.h"
#include "model/generate.h"
#include "tests/golden_model.h"
#include "tests/training.h"

#define GOLDEN "tests/golden/idefics2"
enum { PATCH = 3, LATENTS = 3, LABELS = 5, VOCAB = 50 };

/* The model and the rows with their pictures; with a head, labels in the place of targets. */
static void open_golden(struct golden *g, struct fixture *f, bool head) {
    golden_open(g, GOLDEN);
    struct batch *b = &g->batch;
    const int64_t *sides = expected_data(&g->expected, "sides");
    float *pixels = (float *)expected_data(&g->expected, "pixels");
    int32_t *positions = (int32_t *)expected_data(&g->expected, "positions");
    for (int i = 0; i < GOLDEN_PICTURES; i++) {
        int64_t high = sides[2 * i], wide = sides[2 * i + 1], patches = high * wide / (PATCH * PATCH);
        golden_add_picture(g, (struct batch_image){high, wide, pixels, positions}, patches);
        pixels += 3 * high * wide, positions += patches;
    }
    struct load_options o = {.quantize = {.type = F32}};
    if (head) {
        o.head = (struct head_options){PROBLEM_REGRESSION, LABELS, true, 1};
        b->label_count = LABELS, b->labels = (float *)expected_data(&g->expected, "labels"), b->pooled = g->pooled;
        b->scored = g->limits.scored = 2;
        for (int64_t i = 0; i < b->N; i++) b->targets[i] = IGNORED;
    }
    fixture_load(f, GOLDEN "/model", &o);
}

/* --- gradients --------------------------------------------------------------------------------------------------- */

static void check_gradients(struct fixture *f, const char *name, enum keep how) {
    struct golden g;
    open_golden(&g, f, strcmp(name, "score") == 0);
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

static void test_tower_gradients(void **state) { check_gradients(*state, "vision", KEEP_ALL); }

static void test_head_gradients(void **state) { check_gradients(*state, "score", KEEP_ALL); }

/* --- without a backward ------------------------------------------------------------------------------------------ */

/* Through memory that nothing is kept in: the same losses. */
static void test_evaluation(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"full", "lora", "dora", "vision"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct golden g;
        open_golden(&g, f, false);
        golden_evaluate(&g, f, names[i]);
        golden_close(&g);
    }
}

enum { MANY = 35 };

/* Pictures by the dozen, each with a token behind it that is scored. */
struct many {
    struct batch batch;
    struct batch_image image[MANY];
    int64_t offsets[2], row;
    int32_t ids[MANY * (LATENTS + 1)], positions[MANY * (LATENTS + 1)], targets[MANY * (LATENTS + 1)];
};

static void fill_many(struct many *m, struct golden *g) {
    struct batch_limits *l = &g->limits;
    int64_t N = MANY * (LATENTS + 1);
    *m = (struct many){.offsets = {0, N}};
    *l = (struct batch_limits){.N = N, .rows = 1, .images = MANY, .scored = MANY, .longest = N, .most_patches = 16};
    for (int i = 0; i < N; i++) {
        bool token = i % (LATENTS + 1) == LATENTS;
        m->positions[i] = i, m->ids[i] = token ? 1 + i % 40 : -1, m->targets[i] = token ? 1 + i % 7 : IGNORED;
    }
    for (int i = 0; i < MANY; i++) {
        m->image[i] = g->image[(i * i) % 3];
        l->patches += m->image[i].height * m->image[i].width / (PATCH * PATCH);
    }
    m->batch = (struct batch){.rows = 1, .N = N, .scored = MANY, .offsets = m->offsets, .ids = m->ids};
    m->batch.positions = m->positions, m->batch.targets = m->targets, m->batch.row_index = &m->row;
    m->batch.images = MANY, m->batch.image = m->image;
    g->batch = m->batch;
}

static void losses_of(struct fixture *f, const char *name, bool train, float *out) {
    struct golden g;
    struct many m;
    open_golden(&g, f, false);
    fill_many(&m, &g);
    if (name) g.adapter = golden_adapter(f, GOLDEN, name);
    golden_work(&g, f, train, F32, KEEP_ALL);
    golden_forward(&g, f);
    memcpy(out, g.work->acts.loss.data, MANY * sizeof *out);
    golden_close(&g);
}

/* More pictures than go through a frozen tower, or through an evaluation, at a time. */
static void test_many_pictures(void **state) {
    float at_once[MANY], chunks[MANY], tower[MANY], plain[MANY];
    losses_of(*state, "full", true, at_once); // of a tower that is trained all are kept
    losses_of(*state, NULL, false, chunks);
    assert_true(vector_distance(chunks, at_once, MANY) <= 1e-5 * vector_norm(at_once, MANY));
    losses_of(*state, "lora", true, tower);
    losses_of(*state, "lora", false, plain);
    assert_true(vector_distance(tower, plain, MANY) <= 1e-5 * vector_norm(plain, MANY));
    assert_true(vector_distance(tower, at_once, MANY) > 1e-2 * vector_norm(plain, MANY));
}

static size_t memory_of(struct fixture *f, const char *name, struct batch_limits limits) {
    fixture_load(f, GOLDEN "/model", NULL);
    struct adapter *a = golden_adapter(f, GOLDEN, name);
    const enum keep keep[] = {KEEP_ALL, KEEP_ALL};
    const struct workspace_options o = {.limits = limits, .train = true, .act = F32, .keep = keep};
    size_t bytes = workspace_measure(f->model, &o, NULL);
    adapter_free(a);
    return bytes;
}

/* A frozen tower takes the memory of one picture; where no size is said, that of the learned grid is planned for. */
static void test_memory(void **state) {
    struct fixture *f = *state;
    struct batch_limits l = {
        .N = 40, .rows = 1, .images = 8, .scored = 4, .longest = 40, .patches = 8 * 16, .most_patches = 16};
    size_t all = memory_of(f, "full", l), connector = memory_of(f, "lora", l);
    struct batch_limits one = l, unsaid = l;
    one.images = 1, one.patches = 16;
    unsaid.patches = unsaid.most_patches = 0;
    assert_true(connector < all);
    assert_true(memory_of(f, "lora", one) < connector);
    assert_int_equal(memory_of(f, "lora", unsaid), connector);
}

/* --- generation -------------------------------------------------------------------------------------------------- */

/* The last logits of the first row, whose two pictures come at once, in small pieces, and in two turns. */
static void test_generation(void **state) {
    struct fixture *f = *state;
    struct golden g;
    open_golden(&g, f, false);
    float *whole = golden_logits(&g, f, 16, 0, 0), *pieces = golden_logits(&g, f, 16, LATENTS, 0);
    float *turns = golden_logits(&g, f, 16, 0, 8);
    assert_true(vector_distance(pieces, whole, VOCAB) <= 1e-5 * vector_norm(whole, VOCAB));
    assert_true(vector_distance(turns, whole, VOCAB) <= 1e-5 * vector_norm(whole, VOCAB));
    struct generator *small;
    const struct generator_options o = {.room = 32, .pictures = 2, .most_patches = 15, .act = F32};
    generator_new(&small, f->model, &o, &f->e);
    expect_good(&f->e);
    generator_feed(small, g.batch.ids, g.batch.offsets[1], g.image, 2, &f->e);
    expect_error(f, ST_FAIL, "a picture has 16 patches, but there is room for 15");
    generator_free(small);
    golden_close(&g);
    free(whole), free(pieces), free(turns);
}

/* --- which layers ------------------------------------------------------------------------------------------------ */

/* transformers' rule: only lm_head keeps its type, the tower does not. What is no linear layer is never 4-bit. */
static void test_quantised_layers(void **state) {
    struct fixture *f = *state;
    golden_quantise(f, GOLDEN, "lm_head");
    assert_int_equal(f->model->linear_count, 2 * 7 + 2 * 6 + 3 + 2 * 7 + 1);
    assert_int_equal(f->model->vit.patch.W.type, F32);
    assert_int_equal(f->model->connector.latents.type, F32);
}

static void test_targets(void **state) {
    struct fixture *f = *state;
    cJSON *all = json_of("\"all-linear\""), *suffixes = json_of("[\"q_proj\"]");
    fixture_load(f, GOLDEN "/model", NULL);
    assert_int_equal(adapted_layers(f, all, "vision_model"), 12);
    assert_int_equal(adapted_layers(f, all, "connector"), 17);
    assert_int_equal(adapted_layers(f, all, "text_model"), 14);
    assert_int_equal(adapted_layers(f, all, "lm_head"), 0);
    assert_int_equal(adapted_layers(f, suffixes, ""), 6);
    cJSON_Delete(all), cJSON_Delete(suffixes);
}

/* --- config.json ------------------------------------------------------------------------------------------------- */

static void test_refused_configs(void **state) {
    static const struct config_change changes[] = {
        {"text_config", "model_type", "\"llama\"", "wanted mistral"},
        {"vision_config", "num_channels", "4", "num_channels is 4, wanted 3"},
        {"vision_config", "num_attention_heads", "5", "do not fit together"},
        {"vision_config", "patch_size", "0", "patch_size is 0"},
        {"perceiver_config", "num_key_value_heads", "3", "do not fit together"},
        {"perceiver_config", "resampler_depth", "100000000", "at most 4096"},
        {"vision_config", "num_hidden_layers", "100000000", "at most 4096"},
        {"text_config", "num_hidden_layers", "100000000", "at most 4096"},
        {"perceiver_config", "resampler_head_dim", "999", "do not fit together"},
        {"perceiver_config", "hidden_act", "\"mish\"", "mish"},
        {NULL, "image_token_id", "50", "image_token_id 50 is outside the vocabulary of 50"},
    };
    golden_refuse_configs(*state, GOLDEN, changes, sizeof changes / sizeof *changes);
}

static void test_config_defaults(void **state) {
    struct fixture *f = *state;
    struct model_config c;
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "perceiver_config", NULL), ST_OK);
    assert_int_equal(c.perceiver.latents, 64);
    assert_int_equal(c.perceiver.depth, 3);
    assert_int_equal(c.perceiver.heads * c.perceiver.head_dim, 16 * 96);
    assert_int_equal(c.perceiver.kv_heads, 4);
    assert_int_equal(picture_tokens(&c), 64);
    assert_true(c.perceiver.eps == 3e-4f); // the text's
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "text_config", NULL), ST_OK);
    assert_int_equal(c.text.dim, 4096);
    assert_int_equal(c.text.window, 4096);
    assert_true(c.text.eps == 1e-5f && c.perceiver.eps == 1e-5f);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, "text_config", "rms_norm_eps", NULL), ST_OK);
    assert_true(c.text.eps == 1e-6f);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, "perceiver_config", "rms_norm_eps", "0.5"), ST_OK);
    assert_true(c.perceiver.eps == 0.5f);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "vision_config", "{}"), ST_OK);
    assert_int_equal(c.vision.dim, 768);
    assert_int_equal(vision_patches(&c.vision), 49);
    assert_true(c.vision.eps == 1e-6f && c.vision.act == ACT_GELU_TANH && c.vision.used_layers == 12);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "tie_word_embeddings", "true"), ST_OK);
    assert_true(c.text.tied);
    assert_string_equal(c.default_template, "idefics_2");
    assert_int_equal(c.pooling, POOL_BEFORE_FIRST_PAD);
    assert_int_equal(c.pad_token, 0);
    model_config_free(&c);
    assert_int_equal(golden_config(f, &c, GOLDEN, NULL, "pad_token_id", NULL), ST_OK);
    assert_int_equal(c.pad_token, -1); // text_config's does not count
    model_config_free(&c);
}

/* What a later transformers writes means the same. */
static void test_config_of_transformers_5(void **state) {
    struct fixture *f = *state;
    struct model_config a, b;
    model_config_read(&a, GOLDEN "/model", &f->e);
    model_config_read(&b, GOLDEN "/five", &f->e);
    expect_good(&f->e);
    const struct text_config *t = &a.text, *u = &b.text;
    const struct vision_config *v = &a.vision, *w = &b.vision;
    const struct perceiver_config *p = &a.perceiver, *q = &b.perceiver;
    const int64_t one[] = {t->vocab, t->dim, t->ffn,    t->layers,        t->heads,      t->kv_heads,   t->head_dim,
                           t->tied,  t->act, v->dim,    v->ffn,           v->layers,     v->heads,      v->image_size,
                           v->patch, v->act, p->depth,  p->latents,       p->heads,      p->kv_heads,   p->head_dim,
                           p->ffn,   p->act, t->window, t->max_positions, a.image_token, v->used_layers};
    const int64_t two[] = {u->vocab, u->dim, u->ffn,    u->layers,        u->heads,      u->kv_heads,   u->head_dim,
                           u->tied,  u->act, w->dim,    w->ffn,           w->layers,     w->heads,      w->image_size,
                           w->patch, w->act, q->depth,  q->latents,       q->heads,      q->kv_heads,   q->head_dim,
                           q->ffn,   q->act, u->window, u->max_positions, b.image_token, w->used_layers};
    assert_memory_equal(one, two, sizeof one);
    assert_true(t->eps == u->eps && v->eps == w->eps && p->eps == q->eps && p->eps == 3e-4f);
    assert_true(t->rope.theta == u->rope.theta && t->rope.kind == u->rope.kind);
    model_config_free(&a);
    model_config_free(&b);
}

/* --- from nothing to a merged model ------------------------------------------------------------------------------ */

static void test_train_and_merge(void **state) {
    (void)state;
    struct training t;
    struct command_result r;
    training_of_preset(&t, "idefics2-tiny", "idefics_2");
    training_graft(&t, "inspect out --json", 60, &r);
    assert_non_null(strstr(text_str(&r.out), "modality_projection"));
    assert_null(strstr(text_str(&r.out), "vision_model"));
    command_free(&r);
    training_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(test_full_gradients),  FIXTURE_TEST(test_lora_gradients),
        FIXTURE_TEST(test_dora_gradients),  FIXTURE_TEST(test_tower_gradients),
        FIXTURE_TEST(test_head_gradients),  FIXTURE_TEST(test_evaluation),
        FIXTURE_TEST(test_many_pictures),   FIXTURE_TEST(test_memory),
        FIXTURE_TEST(test_generation),      FIXTURE_TEST(test_quantised_layers),
        FIXTURE_TEST(test_targets),         FIXTURE_TEST(test_refused_configs),
        FIXTURE_TEST(test_config_defaults), FIXTURE_TEST(test_config_of_transformers_5),
        FIXTURE_TEST(test_train_and_merge),
    };
    return cmocka_run_group_tests_name("idefics2", tests, NULL, NULL);
}

/* Idefics2 against transformers, PEFT and autograd (golden/make_idefics2.py): losses, outputs of a head, gradients of
 * everything that can be trained; its configuration, which layers become 4-bit, memory, generation. */
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

#define GOLDEN "tests/golden/idefics2"
enum { PATCH = 3, LATENTS = 3, LABELS = 5, LAYERS = 2 };

struct golden {
    struct expected expected;
    struct batch batch;
    struct batch_image image[3];
    int64_t row_index[2], pooled[2];
    int32_t positions[64], targets[64];
    struct batch_limits limits;
};

/* The rows as data/ would hand them over. */
static void fill_batch(struct golden *g) {
    struct batch *b = &g->batch;
    const int64_t *sides = expected_data(&g->expected, "sides");
    float *pixels = (float *)expected_data(&g->expected, "pixels");
    int32_t *positions = (int32_t *)expected_data(&g->expected, "positions");
    *b = (struct batch){
        .rows = 2, .N = expected_count(&g->expected, "ids"), .images = 3, .image = g->image, .row_index = g->row_index};
    b->offsets = (int64_t *)expected_data(&g->expected, "offsets");
    b->ids = (int32_t *)expected_data(&g->expected, "ids");
    b->targets = g->targets;
    memcpy(g->targets, expected_data(&g->expected, "targets"), (size_t)b->N * sizeof *g->targets);
    b->positions = g->positions;
    for (int64_t r = 0; r < 2; r++) {
        int64_t n = b->offsets[r + 1] - b->offsets[r];
        g->pooled[r] = n - 1;
        if (n > g->limits.longest) g->limits.longest = n;
        for (int64_t i = 0; i < n; i++) g->positions[b->offsets[r] + i] = (int32_t)i;
    }
    for (int64_t i = 0; i < b->N; i++) b->scored += b->targets[i] != IGNORED;
    for (int i = 0; i < 3; i++) {
        int64_t high = sides[2 * i], wide = sides[2 * i + 1], patches = high * wide / (PATCH * PATCH);
        g->image[i] = (struct batch_image){high, wide, pixels, positions};
        pixels += 3 * high * wide, positions += patches;
        g->limits.patches += patches;
        if (patches > g->limits.most_patches) g->limits.most_patches = patches;
    }
    g->limits.N = b->N, g->limits.rows = 2, g->limits.images = 3, g->limits.scored = b->scored;
}

static void golden_open(struct golden *g, bool head) {
    *g = (struct golden){0};
    expected_open(&g->expected, GOLDEN);
    fill_batch(g);
    if (!head) return;
    g->batch.label_count = LABELS, g->batch.labels = (float *)expected_data(&g->expected, "labels"),
    g->batch.pooled = g->pooled;
    g->batch.scored = g->limits.scored = 2;
    for (int64_t i = 0; i < g->batch.N; i++) g->targets[i] = IGNORED;
}

static void golden_close(struct golden *g) { expected_close(&g->expected); }

static void load(struct fixture *f, bool head) {
    struct load_options o = {.quantize = {.type = F32}};
    if (head) o.head = (struct head_options){PROBLEM_REGRESSION, LABELS, true, 1};
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
    bool head = strcmp(name, "score") == 0;
    golden_open(&g, head);
    load(f, head);
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
    if (head)
        expected_like(&g.expected, name, "loss", w->acts.outputs.data, 2 * LABELS);
    else
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

static void test_tower_gradients(void **state) { check_gradients(*state, "vision", KEEP_ALL); }

static void test_head_gradients(void **state) { check_gradients(*state, "score", KEEP_ALL); }

/* --- without a backward ------------------------------------------------------------------------------------------ */

/* Through memory that nothing is kept in: the same losses. */
static void test_evaluation(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"full", "lora", "dora", "vision"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct golden g;
        struct workspace *w = NULL;
        struct adapter *a = NULL;
        golden_open(&g, false);
        load(f, false);
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

enum { MANY = 35 };

/* Pictures by the dozen, each with a token behind it that is scored. */
struct many {
    struct batch batch;
    struct batch_image image[MANY];
    int64_t offsets[2], row;
    int32_t ids[MANY * (LATENTS + 1)], positions[MANY * (LATENTS + 1)], targets[MANY * (LATENTS + 1)];
};

static void fill_many(struct many *m, const struct golden *g, struct batch_limits *l) {
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
}

static void losses_of(struct fixture *f, const char *name, bool train, float *out) {
    struct golden g;
    struct many m;
    struct batch_limits limits;
    struct workspace *w = NULL;
    golden_open(&g, false);
    fill_many(&m, &g, &limits);
    load(f, false);
    struct adapter *a = name ? adapter_of(f, name) : NULL;
    const enum keep keep[LAYERS] = {KEEP_ALL, KEEP_ALL};
    const struct workspace_options o = {.limits = limits, .train = train, .act = F32, .keep = keep};
    workspace_new(&w, f->model, &o, &f->e);
    expect_good(&f->e);
    struct pass p = pass_new(w, 0, 0);
    model_forward(&p, w, &m.batch);
    head_loss(&p, w, NULL, 1);
    backend_download(f->be, out, &w->acts.loss);
    backend_sync(f->be, &f->e);
    expect_good(&f->e);
    workspace_free(w);
    adapter_free(a);
    unload(f);
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
    load(f, false);
    struct adapter *a = adapter_of(f, name);
    const enum keep keep[LAYERS] = {KEEP_ALL, KEEP_ALL};
    const struct workspace_options o = {.limits = limits, .train = true, .act = F32, .keep = keep};
    size_t bytes = workspace_measure(f->model, &o, NULL);
    adapter_free(a);
    unload(f);
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

static float *fed_logits(struct fixture *f, struct golden *g, int64_t piece, int64_t at) {
    struct generator *made;
    const struct generator_options o = {.room = 32, .pictures = 2, .most_patches = 16, .piece = piece, .act = F32};
    int64_t n = g->batch.offsets[1];
    generator_new(&made, f->model, &o, &f->e);
    expect_good(&f->e);
    if (at) generator_feed(made, g->batch.ids, at, g->image, 1, &f->e);
    generator_feed(made, g->batch.ids + at, n - at, g->image + (at ? 1 : 0), at ? 1 : 2, &f->e);
    expect_good(&f->e);
    float *logits = mem_alloc(50 * sizeof *logits);
    memcpy(logits, made->logits, 50 * sizeof *logits);
    generator_free(made);
    return logits;
}

/* The last logits of the first row, whose two pictures come at once, in small pieces, and in two turns. */
static void test_generation(void **state) {
    struct fixture *f = *state;
    struct golden g;
    golden_open(&g, false);
    load(f, false);
    float *whole = fed_logits(f, &g, 0, 0), *pieces = fed_logits(f, &g, LATENTS, 0), *turns = fed_logits(f, &g, 0, 8);
    assert_true(vector_distance(pieces, whole, 50) <= 1e-5 * vector_norm(whole, 50));
    assert_true(vector_distance(turns, whole, 50) <= 1e-5 * vector_norm(whole, 50));
    struct generator *small;
    const struct generator_options o = {.room = 32, .pictures = 2, .most_patches = 15, .act = F32};
    generator_new(&small, f->model, &o, &f->e);
    expect_good(&f->e);
    generator_feed(small, g.batch.ids, g.batch.offsets[1], g.image, 2, &f->e);
    expect_error(f, ST_FAIL, "a picture has 16 patches, but there is room for 15");
    generator_free(small);
    unload(f);
    golden_close(&g);
    free(whole), free(pieces), free(turns);
}

/* --- which layers ------------------------------------------------------------------------------------------------ */

/* transformers' rule: only lm_head keeps its type, the tower does not. What is no linear layer is never 4-bit. */
static void test_quantised_layers(void **state) {
    struct fixture *f = *state;
    const struct load_options o = {.quantize = {.type = NF4, .blocksize = 64}};
    model_load(&f->model, GOLDEN "/model", f->be, &o, &f->e);
    expect_good(&f->e);
    for (int64_t i = 0; i < f->model->linear_count; i++) {
        const struct linear *l = f->model->linears[i];
        if (tensor_is_4bit(&l->W) == (strcmp(l->path, "lm_head") == 0)) fail_msg("%s", l->path);
    }
    assert_int_equal(f->model->linear_count, 2 * 7 + 2 * 6 + 3 + 2 * 7 + 1);
    assert_int_equal(f->model->vit.patch.W.type, F32);
    assert_int_equal(f->model->connector.latents.type, F32);
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

static void test_targets(void **state) {
    struct fixture *f = *state;
    cJSON *all = json_of("\"all-linear\""), *suffixes = json_of("[\"q_proj\"]");
    load(f, false);
    assert_int_equal(adapted(f, all, "vision_model"), 12);
    assert_int_equal(adapted(f, all, "connector"), 17);
    assert_int_equal(adapted(f, all, "text_model"), 14);
    assert_int_equal(adapted(f, all, "lm_head"), 0);
    assert_int_equal(adapted(f, suffixes, ""), 6);
    unload(f);
    cJSON_Delete(all), cJSON_Delete(suffixes);
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
    refused(f, "text_config", "model_type", "\"llama\"", "wanted mistral");
    refused(f, "vision_config", "num_channels", "4", "num_channels is 4, wanted 3");
    refused(f, "vision_config", "num_attention_heads", "5", "do not fit together");
    refused(f, "vision_config", "patch_size", "0", "patch_size is 0");
    refused(f, "perceiver_config", "num_key_value_heads", "3", "do not fit together");
    refused(f, "perceiver_config", "resampler_depth", "100000000", "at most 4096");
    refused(f, "vision_config", "num_hidden_layers", "100000000", "at most 4096");
    refused(f, "text_config", "num_hidden_layers", "100000000", "at most 4096");
    refused(f, "perceiver_config", "resampler_head_dim", "999", "do not fit together");
    refused(f, "perceiver_config", "hidden_act", "\"mish\"", "mish");
    refused(f, NULL, "image_token_id", "50", "image_token_id 50 is outside the vocabulary of 50");
}

static void test_config_defaults(void **state) {
    struct fixture *f = *state;
    struct model_config c;
    assert_int_equal(read_changed(f, &c, NULL, "perceiver_config", NULL), ST_OK);
    assert_int_equal(c.perceiver.latents, 64);
    assert_int_equal(c.perceiver.depth, 3);
    assert_int_equal(c.perceiver.heads * c.perceiver.head_dim, 16 * 96);
    assert_int_equal(c.perceiver.kv_heads, 4);
    assert_int_equal(picture_tokens(&c), 64);
    assert_true(c.perceiver.eps == 3e-4f); // the text's
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, NULL, "text_config", NULL), ST_OK);
    assert_int_equal(c.text.dim, 4096);
    assert_int_equal(c.text.window, 4096);
    assert_true(c.text.eps == 1e-5f && c.perceiver.eps == 1e-5f);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, "text_config", "rms_norm_eps", NULL), ST_OK);
    assert_true(c.text.eps == 1e-6f);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, "perceiver_config", "rms_norm_eps", "0.5"), ST_OK);
    assert_true(c.perceiver.eps == 0.5f);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, NULL, "vision_config", "{}"), ST_OK);
    assert_int_equal(c.vision.dim, 768);
    assert_int_equal(vision_patches(&c.vision), 49);
    assert_true(c.vision.eps == 1e-6f && c.vision.act == ACT_GELU_TANH && c.vision.used_layers == 12);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, NULL, "tie_word_embeddings", "true"), ST_OK);
    assert_true(c.text.tied);
    assert_string_equal(c.default_template, "idefics_2");
    assert_int_equal(c.pooling, POOL_BEFORE_FIRST_PAD);
    assert_int_equal(c.pad_token, 0);
    model_config_free(&c);
    assert_int_equal(read_changed(f, &c, NULL, "pad_token_id", NULL), ST_OK);
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
        cmocka_unit_test(test_full_gradients),  cmocka_unit_test(test_lora_gradients),
        cmocka_unit_test(test_dora_gradients),  cmocka_unit_test(test_tower_gradients),
        cmocka_unit_test(test_head_gradients),  cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_many_pictures),   cmocka_unit_test(test_memory),
        cmocka_unit_test(test_generation),      cmocka_unit_test(test_quantised_layers),
        cmocka_unit_test(test_targets),         cmocka_unit_test(test_refused_configs),
        cmocka_unit_test(test_config_defaults), cmocka_unit_test(test_config_of_transformers_5),
        cmocka_unit_test(test_train_and_merge),
    };
    struct CMUnitTest each[sizeof tests / sizeof *tests];
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        each[i] = tests[i];
        each[i].setup_func = fixture_start, each[i].teardown_func = fixture_end;
    }
    return cmocka_run_group_tests_name("idefics2", each, NULL, NULL);
}

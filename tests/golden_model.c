#include "tests/golden_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "lora/peft.h"
#include "model/generate.h"

void golden_open(struct golden *g, const char *folder) {
    *g = (struct golden){.folder = folder};
    const struct expected *x = &g->expected;
    struct batch *b = &g->batch;
    expected_open(&g->expected, folder);
    *b = (struct batch){.rows = 2,
                        .N = expected_count(x, "ids"),
                        .offsets = (int64_t *)expected_data(x, "offsets"),
                        .ids = (int32_t *)expected_data(x, "ids"),
                        .positions = g->positions,
                        .targets = g->targets,
                        .row_index = g->row_index,
                        .image = g->image};
    memcpy(g->targets, expected_data(x, "targets"), (size_t)b->N * sizeof *g->targets);
    for (int64_t r = 0; r < 2; r++) {
        int64_t n = b->offsets[r + 1] - b->offsets[r];
        g->pooled[r] = n - 1;
        if (n > g->limits.longest) g->limits.longest = n;
        for (int64_t i = 0; i < n; i++) g->positions[b->offsets[r] + i] = (int32_t)i;
    }
    for (int64_t i = 0; i < b->N; i++) b->scored += b->targets[i] != IGNORED;
    g->limits.N = b->N, g->limits.rows = 2, g->limits.scored = b->scored;
}

void golden_add_picture(struct golden *g, struct batch_image image, int64_t patches) {
    assert_true(g->batch.images < GOLDEN_PICTURES);
    g->image[g->batch.images++] = image;
    g->limits.images = g->batch.images;
    g->limits.patches += patches;
    if (patches > g->limits.most_patches) g->limits.most_patches = patches;
}

void golden_close(struct golden *g) {
    workspace_free(g->work);
    adapter_free(g->adapter);
    expected_close(&g->expected);
}

/* --- passes ------------------------------------------------------------------------------------------------------ */

struct adapter *golden_adapter(struct fixture *f, const char *folder, const char *name) {
    struct adapter_options o = {.finetuning = FINETUNE_FULL};
    cJSON *config = NULL;
    char *dir = path_join(folder, name);
    if (strcmp(name, "full")) {
        assert_int_equal(peft_config_read(&config, dir, &f->e), ST_OK);
        o = options_of(config);
    }
    struct adapter *a = fixture_adapter(f, &o);
    if (config) adapter_read(a, dir, &f->e);
    expect_good(&f->e);
    cJSON_Delete(config);
    free(dir);
    return a;
}

void golden_work(struct golden *g, struct fixture *f, bool train, enum dtype act, enum keep how) {
    int64_t layers = f->model->config.text.layers;
    assert_true(layers <= (int64_t)(sizeof g->keep / sizeof *g->keep));
    for (int64_t i = 0; i < layers; i++) g->keep[i] = how;
    const struct workspace_options o = {.limits = g->limits, .train = train, .act = act, .keep = g->keep};
    workspace_new(&g->work, f->model, &o, &f->e);
    expect_good(&f->e);
}

void golden_forward(struct golden *g, struct fixture *f) {
    struct pass p = pass_new(g->work, 0, 0);
    model_forward(&p, g->work, &g->batch);
    head_loss(&p, g->work, NULL, 1);
    backend_sync(f->be, &f->e);
    expect_good(&f->e);
}

void golden_step(struct golden *g, struct fixture *f, const char *name, enum dtype act, enum keep how) {
    struct tensor total = tensor_over1(&g->loss, F32, 1);
    g->adapter = golden_adapter(f, g->folder, name);
    golden_work(g, f, true, act, how);
    model_step(g->work, &g->batch, 0, 0, 1.0f / (float)g->batch.scored, &total);
    backend_sync(f->be, &f->e);
    expect_good(&f->e);
}

void golden_check_step(struct golden *g, struct fixture *f, const char *name, enum keep how) {
    const struct batch *b = &g->batch;
    golden_step(g, f, name, F32, how);
    if (b->label_count)
        expected_like(&g->expected, name, "loss", g->work->acts.outputs.data, b->rows * b->label_count);
    else
        expected_like(&g->expected, name, "loss", g->work->acts.loss.data, b->scored);
    expected_gradients(&g->expected, name, g->adapter);
}

void golden_evaluate(struct golden *g, struct fixture *f, const char *name) {
    char *dir = path_join(g->folder, name);
    if (strcmp(name, "full")) adapter_open(&g->adapter, f->model, dir, &f->e);
    golden_work(g, f, false, F32, KEEP_ALL);
    golden_forward(g, f);
    expected_like(&g->expected, name, "loss", g->work->acts.loss.data, g->batch.scored);
    free(dir);
}

float *golden_logits(struct golden *g, struct fixture *f, int64_t most_patches, int64_t piece, int64_t second) {
    struct generator *made;
    const struct generator_options o = {
        .room = 32, .pictures = 2, .most_patches = most_patches, .piece = piece, .act = F32};
    const int32_t *ids = g->batch.ids;
    int64_t n = g->batch.offsets[1], vocab = f->model->config.text.vocab, seen = second ? 1 : 0;
    generator_new(&made, f->model, &o, &f->e);
    expect_good(&f->e);
    if (second) generator_feed(made, ids, second, g->image, 1, &f->e);
    generator_feed(made, ids + second, n - second, g->image + seen, 2 - seen, &f->e);
    expect_good(&f->e);
    float *logits = mem_alloc((size_t)vocab * sizeof *logits);
    memcpy(logits, made->logits, (size_t)vocab * sizeof *logits);
    generator_free(made);
    return logits;
}

/* --- the model --------------------------------------------------------------------------------------------------- */

void golden_quantise(struct fixture *f, const char *folder, const char *head) {
    const struct load_options o = {.quantize = {.type = NF4, .blocksize = 64}};
    char *dir = path_join(folder, "model");
    fixture_load(f, dir, &o);
    for (int64_t i = 0; i < f->model->linear_count; i++) {
        const struct linear *l = f->model->linears[i];
        if (tensor_is_4bit(&l->W) == (strcmp(l->path, head) == 0)) fail_msg("%s", l->path);
    }
    free(dir);
}

enum status golden_config(struct fixture *f, struct model_config *c, const char *folder, const char *part,
                          const char *key, const char *value) {
    char *from = path_join(folder, "model/config.json"), *to = path_join(f->tmp, "config.json");
    cJSON *tree = json_read(from, &f->e);
    cJSON *o = part ? cJSON_GetObjectItemCaseSensitive(tree, part) : tree;
    cJSON_DeleteItemFromObjectCaseSensitive(o, key);
    if (value) cJSON_AddItemToObject(o, key, cJSON_Parse(value));
    json_write(to, tree, &f->e);
    expect_good(&f->e);
    cJSON_Delete(tree);
    free(from), free(to);
    return model_config_read(c, f->tmp, &f->e);
}

void golden_refuse_configs(struct fixture *f, const char *folder, const struct config_change *changes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const struct config_change *x = &changes[i];
        struct model_config c;
        expect_error(f, golden_config(f, &c, folder, x->part, x->key, x->value), x->says);
        model_config_free(&c);
    }
}

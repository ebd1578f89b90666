/* The published shapes have the published number of parameters; every preset is a configuration that graft reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/preset.h"
#include "tests/folder.h"

/* What is read of a config.json, which is deleted. */
static void read_config(struct model_config *c, cJSON *tree, const char *what) {
    struct err e = {0};
    char *dir = folder_new(), *path = path_join(dir, "config.json");
    if (json_write(path, tree, &e) != ST_OK || model_config_read(c, dir, &e) != ST_OK) fail_msg("%s: %s", what, e.text);
    cJSON_Delete(tree);
    folder_free(dir);
    free(path);
}

/* Parameters of a preset with the vocabulary of its shape. */
static int64_t count_parameters(const struct preset *p) {
    const struct preset_tokens tokens = {.bos = 1, .eos = 2, .pad = -1, .image = p->family == FAMILY_TEXT ? -1 : 3};
    struct model_config c;
    struct new_tensors t;
    read_config(&c, preset_config(p, &tokens, "bfloat16"), p->name);
    preset_tensors(&t, &c, ST_BF16, p->published);
    int64_t bytes = 0;
    for (size_t i = 0; i < t.count; i++) {
        bytes += (int64_t)t.list[i].entry.bytes;
        if (i > 0) assert_true(strcmp(t.list[i - 1].entry.name, t.list[i].entry.name) < 0);
    }
    preset_tensors_free(&t);
    model_config_free(&c);
    return bytes / 2;
}

static void test_every_preset_is_read(void **state) {
    (void)state;
    for (int i = 0; preset_at(i); i++)
        if (count_parameters(preset_at(i)) < 100000) fail_msg("%s: too few parameters", preset_at(i)->name);
}

static void test_published_counts(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t parameters;
    } published[] = {{"smollm2-135m", 134515008},
                     {"qwen2.5-0.5b", 494032768},
                     {"llama-3-8b", 8030261248},
                     {"mistral-7b", 7241732096}};
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        struct err e = {0};
        const struct preset *p = preset_find(published[i].name, &e);
        if (!p) fail_msg("%s", e.text);
        int64_t found = count_parameters(p);
        if (found != published[i].parameters)
            fail_msg("%s: %lld parameters, wanted %lld", p->name, (long long)found, (long long)published[i].parameters);
    }
}

/* Llama-3-8B with two tokens more, a tower as published (SigLIP so400m with its pooling head, CLIP ViT-L/14 at 336
 * pixels), and two projections with biases. */
static void test_mantis_is_the_sum_of_its_parts(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t tower, width;
    } mantis[] = {{"mantis-8b-siglip-llama3", 428225600, 1152}, {"mantis-8b-clip-llama3", 303507456, 1024}};
    for (size_t i = 0; i < sizeof mantis / sizeof *mantis; i++) {
        struct err e = {0};
        const int64_t language = 8030261248 + 2 * 2 * 4096;
        const int64_t projector = (mantis[i].width + 1) * 4096 + (4096 + 1) * 4096;
        const struct preset *p = preset_find(mantis[i].name, &e);
        assert_non_null(p);
        assert_int_equal(count_parameters(p), language + mantis[i].tower + projector);
    }
}

/* Mistral-7B with three tokens more, SigLIP so400m for 70 x 70 positions and without its pooling head, and the
 * connector: a gated product on each patch, then three layers of latents. */
static void test_idefics2_is_the_sum_of_its_parts(void **state) {
    (void)state;
    struct err e = {0};
    const int64_t C = 4096, W = 1152, F = 4304, language = 7241732096 + 2 * 3 * C;
    const int64_t block = 4 * (W * W + W) + 4 * W + W * F + F + F * W + W;
    const int64_t tower = 3 * 14 * 14 * W + W + 4900 * W + 27 * block + 2 * W;
    const int64_t layer = 3 * C + 2 * C * 16 * 96 + 2 * C * 4 * 96 + 3 * C * 4 * C;
    const int64_t connector = 2 * W * 14336 + 14336 * C + 64 * C + 3 * layer + C;
    const struct preset *p = preset_find("mantis-8b-idefics2", &e);
    assert_non_null(p);
    assert_int_equal(count_parameters(p), language + tower + connector);
    assert_int_equal(language + tower + connector, 8402768112); // of the published model
}

static void test_unknown_names_the_nearest(void **state) {
    (void)state;
    struct err e = {0};
    assert_null(preset_find("qwen2-tinny", &e));
    assert_int_equal(e.code, ST_USAGE);
    assert_non_null(strstr(e.text, "qwen2-tiny"));
}

/* Fuyu-8B with two tokens more: embedding and head, layers with biases everywhere and norms of heads, the final norm, a
 * patch's layer. */
static void test_fuyu_is_the_sum_of_its_parts(void **state) {
    (void)state;
    struct err e = {0};
    const int64_t vocab = 262144 + 2, C = 4096, F = 4 * C, D = 64;
    const int64_t attention = (C + 1) * 3 * C + (C + 1) * C + 4 * D, ffn = (C + 1) * F + (F + 1) * C;
    const int64_t want = 2 * vocab * C + 36 * (attention + ffn + 4 * C) + 2 * C + (30 * 30 * 3 + 1) * C;
    const struct preset *p = preset_find("mantis-8b-fuyu", &e);
    assert_non_null(p);
    assert_int_equal(count_parameters(p), want);
}

/* The config of a preset with keys set, as it is read. */
static void read_with(struct model_config *c, const char *preset, const char *keys) {
    const struct preset_tokens tokens = {.bos = 1, .eos = 2, .pad = -1, .image = -1};
    struct err e = {0};
    cJSON *tree = preset_config(preset_find(preset, &e), &tokens, "float32"), *set = cJSON_Parse(keys);
    assert_non_null(set);
    for (cJSON *v = set->child; v; v = v->next) {
        cJSON_DeleteItemFromObjectCaseSensitive(tree, v->string);
        cJSON_AddItemToObject(tree, v->string, cJSON_Duplicate(v, true));
    }
    read_config(c, tree, keys);
    cJSON_Delete(set);
}

#define LLAMA3 "\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4"

/* What transformers makes of spellings of both ages, and where it looks for what a spelling leaves out. */
static void test_rope_spellings(void **state) {
    (void)state;
    static const struct {
        const char *keys;
        enum rope_kind kind;
        double theta, factor;
        int64_t positions; // of llama3
    } cases[] = {
        {"{\"rope_theta\": 7, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 3}}", ROPE_LINEAR, 7, 3, 0},
        {"{\"rope_scaling\": null, \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 9}}", ROPE_PLAIN,
         9, 1, 0},
        {"{\"rope_theta\": 7, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 3}, \"rope_parameters\": "
         "{\"rope_type\": \"default\", \"rope_theta\": 9}}",
         ROPE_LINEAR, 7, 3, 0},
        {"{\"rope_theta\": 7, \"rope_scaling\": {\"rope_type\": \"default\", \"rope_theta\": 5}}", ROPE_PLAIN, 5, 1, 0},
        {"{\"max_position_embeddings\": 96, \"rope_parameters\": {" LLAMA3 "}}", ROPE_LLAMA3, 10000, 8, 96},
        {"{\"max_position_embeddings\": 96, \"rope_scaling\": {" LLAMA3 ", \"original_max_position_embeddings\": 64}}",
         ROPE_LLAMA3, 10000, 8, 64},
        {"{\"original_max_position_embeddings\": 48, \"rope_scaling\": {" LLAMA3
         ", \"original_max_position_embeddings\": 64}}",
         ROPE_LLAMA3, 10000, 8, 48},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        char *keys = mem_format("{\"rope_theta\": 10000, \"rope_scaling\": null, %s", cases[i].keys + 1);
        read_with(&c, "llama-tiny", keys);
        const struct rope_config *r = &c.text.rope;
        if (r->kind != cases[i].kind || r->theta != cases[i].theta || r->factor != cases[i].factor ||
            (cases[i].positions && r->original_positions != cases[i].positions))
            fail_msg("%s: kind %d, theta %g, factor %g, positions %lld", keys, (int)r->kind, r->theta, r->factor,
                     (long long)r->original_positions);
        model_config_free(&c);
        free(keys);
    }
    struct model_config c;
    read_with(&c, "mistral-tiny", "{\"num_key_value_heads\": null}");
    assert_int_equal(c.text.kv_heads, c.text.heads);
    model_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_preset_is_read),
        cmocka_unit_test(test_published_counts),
        cmocka_unit_test(test_mantis_is_the_sum_of_its_parts),
        cmocka_unit_test(test_idefics2_is_the_sum_of_its_parts),
        cmocka_unit_test(test_rope_spellings),
        cmocka_unit_test(test_unknown_names_the_nearest),
        cmocka_unit_test(test_fuyu_is_the_sum_of_its_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

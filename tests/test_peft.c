/* PEFT folders both ways. The folders are those of tests/golden/models, which PEFT wrote, whole and broken. */
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
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "lora/adapter.h"
#include "lora/merge.h"
#include "tests/adapter_fixture.h"
#include "tests/compare.h"

/* --- folders that PEFT wrote ------------------------------------------------------------------------------------- */

static void same_tensors(const struct st_set *got, const struct st_set *want) {
    assert_int_equal(got->count, want->count);
    for (size_t i = 0; i < want->count; i++) {
        const struct st_entry *a = &got->entries[i], *b = &want->entries[i];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->type, b->type);
        assert_int_equal(a->rank, b->rank);
        assert_memory_equal(a->dim, b->dim, (size_t)a->rank * sizeof *a->dim);
        assert_memory_equal(a->data, b->data, b->bytes);
    }
}

/* What was written says the same as the fixture's config: every key of it, and every key that is set there. */
static void same_config(struct fixture *f, const cJSON *want) {
    char *path = path_join(f->tmp, "adapter_config.json");
    cJSON *got = json_read(path, &f->e);
    const cJSON *item;
    compare_subset("written", want, got, &f->e);
    expect_good(&f->e);
    cJSON_ArrayForEach(item, want) {
        bool set = !cJSON_IsNull(item) && !cJSON_IsFalse(item) &&
                   (item->child || item->valuedouble != 0 || cJSON_IsTrue(item) || cJSON_IsString(item));
        bool other = strcmp(item->string, "megatron_core") == 0 || strcmp(item->string, "peft_version") == 0 ||
                     strcmp(item->string, "qalora_group_size") == 0;
        if (set && !other && !cJSON_HasObjectItem(got, item->string)) fail_msg("%s was lost", item->string);
    }
    for (item = got->child; item->next; item = item->next) assert_true(strcmp(item->string, item->next->string) < 0);
    cJSON_Delete(got);
    free(path);
}

static void check_written(struct fixture *f, const struct adapter *a, const char *dir, const cJSON *config) {
    struct st_set got = {0}, want = {0};
    adapter_write(a, f->tmp, &f->e);
    st_open_dir(&got, f->tmp, "adapter_model", &f->e);
    st_open_dir(&want, dir, "adapter_model", &f->e);
    expect_good(&f->e);
    same_tensors(&got, &want);
    st_close(&got), st_close(&want);
    same_config(f, config);
}

static void test_open_and_write(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        struct adapter *a;
        cJSON *config = fixture_adapter_config(f, FOLDERS[i]);
        char *dir = mem_format(MODELS "%s/adapter", FOLDERS[i]);
        adapter_open(&a, f->model, dir, &f->e);
        expect_good(&f->e);
        check_written(f, a, dir, config);
        adapter_free(a);
        cJSON_Delete(config);
        free(dir);
    }
}

/* A new adapter with a folder's settings takes that folder's values, and writes the folder again. */
static void test_read(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        struct adapter *a;
        cJSON *config = fixture_adapter_config(f, FOLDERS[i]);
        struct adapter_options o = options_of(config);
        char *dir = mem_format(MODELS "%s/adapter", FOLDERS[i]);
        adapter_new(&a, f->model, &o, &f->e);
        expect_good(&f->e);
        adapter_read(a, dir, &f->e);
        expect_good(&f->e);
        check_written(f, a, dir, config);
        adapter_free(a);
        cJSON_Delete(config);
        free(dir);
    }
}

static void test_scales(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON *config = fixture_adapter_config(
        f, "patterns"); // r 4, alpha 6; down_proj: 2, 9; layer 0 q_proj: 7, 6; layer 1 q_proj: 4, 1
    adapter_open(&a, f->model, MODELS "patterns/adapter", &f->e);
    expect_good(&f->e);
    const struct block *b = f->model->blocks;
    assert_int_equal(b[0].q.lora->rank, 7);
    assert_true(b[0].q.lora->scale == (float)(6.0 / 7));
    assert_true(b[1].q.lora->scale == (float)(1.0 / 4));
    assert_true(b[0].down.lora->scale == (float)(9.0 / 2));
    assert_true(b[1].o.lora->scale == (float)(6.0 / 4));
    assert_null(b[1].v.lora);
    assert_null(b[0].up.lora);
    assert_int_equal(a->lora_count, 7);
    assert_int_equal(a->rank_total, 7 + 4 + 4 + 4 + 2 + 4 + 2);
    adapter_free(a);
    cJSON_Delete(config);
    config = fixture_adapter_config(f, "rslora");
    adapter_open(&a, f->model, MODELS "rslora/adapter", &f->e);
    expect_good(&f->e);
    double alpha = json_get(config, "lora_alpha")->valuedouble, r = json_get(config, "r")->valuedouble;
    assert_true(a->loras[0].scale == (float)(alpha / sqrt(r)));
    assert_true(a->loras[0].stream != a->loras[1].stream);
    adapter_free(a);
    cJSON_Delete(config);
}

/* --- folders of other makes, and bad ones ------------------------------------------------------------------------- */

/* Writes the tensors of a folder (STEM.safetensors) with names changed: `from` becomes `to`, and where `to` is NULL
 * such tensors are left out. */
static void copy_set(struct fixture *f, const char *dir, const char *stem, const char *const (*changes)[2],
                     size_t count) {
    struct st_set set = {0};
    char *path = mem_format("%s/%s.safetensors", f->tmp, stem);
    st_open_dir(&set, dir, stem, &f->e);
    expect_good(&f->e);
    struct st_entry *entries = mem_alloc(set.count * sizeof *entries);
    char **names = mem_alloc(set.count * sizeof(char *));
    size_t n = 0;
    for (size_t i = 0; i < set.count; i++) {
        const char *key = set.entries[i].name, *at = NULL;
        size_t k = 0;
        while (k < count && !(at = strstr(key, changes[k][0]))) k++;
        if (at && !changes[k][1]) continue;
        names[n] = at ? mem_format("%.*s%s%s", (int)(at - key), key, changes[k][1], at + strlen(changes[k][0]))
                      : mem_text(key);
        entries[n] = set.entries[i];
        entries[n].name = names[n], n++;
    }
    st_write(path, entries, n, &f->e);
    expect_good(&f->e);
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(entries), free(names), free(path);
    st_close(&set);
}

static void copy_tensors(struct fixture *f, const char *name, const char *const (*changes)[2], size_t count) {
    char *dir = mem_format(MODELS "%s/adapter", name);
    copy_set(f, dir, "adapter_model", changes, count);
    free(dir);
}

/* A fixture's config with one key set to a JSON value (NULL: taken out). */
static void copy_config(struct fixture *f, const char *name, const char *key, const char *value) {
    char *from = mem_format(MODELS "%s/adapter/adapter_config.json", name),
         *to = path_join(f->tmp, "adapter_config.json");
    cJSON *config = json_read(from, &f->e);
    if (key) cJSON_DeleteItemFromObjectCaseSensitive(config, key);
    if (key && value) cJSON_AddItemToObject(config, key, json_of(value));
    json_write(to, config, &f->e);
    expect_good(&f->e);
    cJSON_Delete(config);
    free(from), free(to);
}

/* Module paths as newer versions of transformers have them. */
static void test_spellings(void **state) {
    struct fixture *f = *state;
    static const char *const newer[][2] = {{"language_model.model", "model.language_model"},
                                           {"vision_tower.vision_model", "model.vision_tower"}};
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "mllava-suffix");
    struct adapter_options o = options_of(config);
    adapter_open(&a, f->model, MODELS "mllava-suffix/adapter", &f->e);
    expect_good(&f->e);
    size_t bytes = tensor_bytes(&a->values);
    float *values = mem_alloc(bytes);
    memcpy(values, a->values.data, bytes);
    adapter_free(a);
    copy_tensors(f, "mllava-suffix", newer, 2);
    copy_config(f, "mllava-suffix", NULL, NULL);
    adapter_open(&a, f->model, f->tmp, &f->e);
    expect_good(&f->e);
    assert_memory_equal(values, a->values.data, bytes);
    assert_non_null(strstr(a->trained[0].key, "model.language_model.layers")); // written as it was read
    adapter_free(a);
    a = fixture_adapter(f, &o);
    adapter_read(a, f->tmp, &f->e);
    expect_good(&f->e);
    assert_memory_equal(values, a->values.data, bytes);
    assert_non_null(strstr(a->trained[0].key, "language_model.model.layers"));
    adapter_free(a);
    free(values);
    cJSON_Delete(config);
}

static void test_config_errors(void **state) {
    struct fixture *f = *state;
    static const char *const cases[][3] = {
        {"use_qalora", "true", "use_qalora"},
        {"alora_invocation_tokens", "[1]", "alora_invocation_tokens"},
        {"layer_replication", "[[0, 2]]", "layer_replication"},
        {"fan_in_fan_out", "true", "fan_in_fan_out"},
        {"trainable_token_indices", "[3]", "trainable_token_indices"},
        {"target_parameters", "[\"x\"]", "target_parameters"},
        {"kasa_config", "{\"beta\": 1}", "kasa_config"},
        {"init_lora_weights", "\"pissa_niter_4\"", "pissa"},
        {"init_lora_weights", "\"OLoRA\"", "OLoRA"},
        {"unheard_of", "true", "unheard_of"},
        {"unheard_of", "{\"a\": 0}", "unheard_of"},
        {"enable_lora", "[true, false]", "enable_lora"},
        {"peft_type", "\"LOHA\"", "LOHA"},
        {"peft_type", NULL, "peft_type"},
        {"peft_type", "3", "peft_type"},
        {"bias", "\"some\"", "bias"},
        {"lora_dropout", "1", "lora_dropout"},
        {"use_dora", "1", "use_dora"},
        {"lora_bias", "true", "lora_B.bias is missing"},
        {"use_dora", "true", "lora_magnitude_vector is missing"},
        {"target_modules", "[\"qkv_proj\"]", "qkv_proj"},
        {"target_modules", "[\"embed_tokens\", \"q_proj\"]", "embed_tokens"},
        {"target_modules", "\".*\"", "no linear layer"},
        {"modules_to_save", "[\"lm_head\"]", "lm_head"},
        {"modules_to_save", "[\"scorer\"]", "scorer"},
        {"r", "60000", "q_proj.lora_A.weight has shape"},
        {"r", "1e300", "r"},
        {"rank_pattern", "{\"q_proj\": 1}", "q_proj.lora_A.weight has shape"},
    };
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "lora");
    uint64_t before = model_state(f->model);
    copy_tensors(f, "lora", NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        copy_config(f, "lora", cases[i][0], cases[i][1]);
        expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), cases[i][2]);
        assert_null(a);
        assert_true(model_state(f->model) == before);
    }
    static const char *const fine[][2] = {
        {"unheard_of", "false"},          {"unheard_of", "{}"},          {"unheard_of", "16"},
        {"unheard_of", "\"x\""},          {"merge_weights", "true"},     {"layers_pattern", "[]"},
        {"init_lora_weights", "\"eva\""}, {"megatron_core", "\"x\""},    {"task_type", NULL},
        {"lora_dropout", "0.5"},          {"loftq_config", "{\"a\": 1}"}};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        copy_config(f, "lora", fine[i][0], fine[i][1]);
        adapter_open(&a, f->model, f->tmp, &f->e);
        expect_good(&f->e);
        adapter_free(a);
    }
    cJSON_Delete(config);
}

/* Towers without vision_model in their paths, as the newest transformers writes them, and adapters on either. */
static void test_flat_tower(void **state) {
    struct fixture *f = *state;
    static const char *const flat[][2] = {{"vision_tower.vision_model", "vision_tower"}};
    static const char *const newer[][2] = {{"language_model.model", "model.language_model"},
                                           {"vision_tower.vision_model", "model.vision_tower"}};
    const struct load_options as_it_is = {.quantize = {.type = F32}};
    char *from = path_join(MODELS "mllava/model", "config.json"), *to = path_join(f->tmp, "config.json"), *text;
    size_t size;
    assert_int_equal(file_read(from, &text, &size, &f->e), ST_OK);
    file_write(to, text, size, &f->e);
    copy_set(f, MODELS "mllava/model", "model", flat, 1);
    copy_config(f, "mllava-suffix", NULL, NULL);
    model_free(f->model);
    model_load(&f->model, f->tmp, f->be, &as_it_is, &f->e);
    expect_good(&f->e);
    for (int i = 0; i < 3; i++) {
        struct adapter *a;
        copy_tensors(f, "mllava-suffix", i == 1 ? flat : newer, (size_t)i);
        adapter_open(&a, f->model, f->tmp, &f->e);
        expect_good(&f->e);
        assert_int_equal(a->lora_count, 2 * 2 + 2 * 3);
        adapter_free(a);
    }
    free(from), free(to), free(text);
}

static void test_tensor_errors(void **state) {
    struct fixture *f = *state;
    static const char *const cases[][3] = {
        {"0.self_attn.q_proj.lora_B", NULL, "layers.0.self_attn.q_proj.lora_B.weight is missing"},
        {"1.self_attn.q_proj.", NULL, "layers.1.self_attn.q_proj.lora_A.weight is missing"},
        {"0.self_attn.q_proj.lora_A", "0.self_attn.x_proj.lora_A", "q_proj.lora_A.weight is missing"},
        {"base_model.model.", "", "is missing"},
    };
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "lora");
    char *path = path_join(f->tmp, "adapter_model.safetensors"), *pickle = path_join(f->tmp, "adapter_model.bin");
    struct adapter_options o = options_of(config);
    copy_config(f, "lora", NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const change[][2] = {{cases[i][0], cases[i][1]}};
        copy_tensors(f, "lora", change, 1);
        expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), cases[i][2]);
        a = fixture_adapter(f, &o);
        expect_error(f, adapter_read(a, f->tmp, &f->e), cases[i][2]);
        adapter_free(a);
    }
    copy_tensors(f, "lora", NULL, 0);
    copy_config(f, "lora", "exclude_modules", "[\"layers.0.self_attn.q_proj\"]");
    expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e),
                 "layers.0.self_attn.q_proj.lora_A.weight belongs to nothing");
    copy_config(f, "lora", NULL, NULL);
    assert_int_equal(remove(path), 0);
    expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), "adapter_model");
    file_write(pickle, "x", 1, &f->e);
    expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), "safe_serialization=True");
    expect_error(f, adapter_open(&a, f->model, MODELS "lora", &f->e), "adapter_config.json");
    free(path), free(pickle);
    cJSON_Delete(config);
}

/* One column less in the first A. */
/* Writes a fixture's adapter with one tensor more, of zeros. */
static void copy_with(struct fixture *f, const char *name, struct st_entry more) {
    struct st_set set = {0};
    char *dir = mem_format(MODELS "%s/adapter", name), *path = path_join(f->tmp, "adapter_model.safetensors");
    st_open_dir(&set, dir, "adapter_model", &f->e);
    expect_good(&f->e);
    struct st_entry *all = mem_alloc((set.count + 1) * sizeof *all);
    memcpy(all, set.entries, set.count * sizeof *all);
    more.type = ST_F32, more.bytes = sizeof(float);
    for (int i = 0; i < more.rank; i++) more.bytes *= (size_t)more.dim[i];
    void *zeros = mem_alloc(more.bytes);
    more.data = zeros;
    all[set.count] = more;
    st_write(path, all, set.count + 1, &f->e);
    expect_good(&f->e);
    copy_config(f, name, NULL, NULL);
    st_close(&set);
    free(all), free(zeros), free(dir), free(path);
}

/* An embedding that grew by four tokens before training. */
static void test_resized_vocabulary(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON_Delete(fixture_adapter_config(f, "lora"));
    const int64_t *dim = f->model->embed.dim;
    copy_with(f, "lora",
              (struct st_entry){
                  .name = "base_model.model.model.embed_tokens.weight", .rank = 2, .dim = {dim[0] + 4, dim[1]}});
    expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), "resize_token_embeddings");
}

/* What PEFT stores a second time where bias is "all" and a module is trained whole. */
static void test_copies_of_biases(void **state) {
    struct fixture *f = *state;
    static const char *const names[] = {"base_model.model.model.layers.0.self_attn.o_proj.original_module.bias",
                                        "base_model.model.model.layers.0.mlp.modules_to_save.default.up_proj.bias",
                                        "base_model.model.model.layers.0.self_attn.o_proj.modules_to_save.weight"};
    cJSON_Delete(fixture_adapter_config(f, "bias-all"));
    for (int i = 0; i < 3; i++) {
        struct adapter *a;
        struct merge *m;
        const struct merge_adapter one = {f->tmp, 1};
        const struct merge_options o = {.model = MODELS "llama-bias/model",
                                        .adapters = &one,
                                        .adapter_count = 1,
                                        .as_stored = true,
                                        .any_base = true,
                                        .be = f->be};
        copy_with(f, "bias-all", (struct st_entry){.name = names[i], .rank = 1, .dim = {36}});
        adapter_open(&a, f->model, f->tmp, &f->e);
        if (i == 2) {
            expect_error(f, f->e.code, "belongs to nothing");
            continue;
        }
        expect_good(&f->e);
        adapter_free(a);
        merge_open(&m, &o, &f->e);
        expect_good(&f->e);
        merge_free(m);
    }
}

static void test_wrong_width(void **state) {
    struct fixture *f = *state;
    struct st_set set = {0};
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "lora");
    char *path = path_join(f->tmp, "adapter_model.safetensors");
    st_open_dir(&set, MODELS "lora/adapter", "adapter_model", &f->e);
    expect_good(&f->e);
    struct st_entry *first = set.entries;
    while (!strstr(first->name, "q_proj.lora_A")) first++;
    first->dim[1]--, first->bytes -= (size_t)first->dim[0] * sizeof(float);
    st_write(path, set.entries, set.count, &f->e);
    copy_config(f, "lora", NULL, NULL);
    expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), "q_proj.lora_A.weight has shape");
    st_close(&set);
    free(path);
    cJSON_Delete(config);
}

static void test_default_targets(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "mllava-suffix");
    copy_tensors(f, "mllava-suffix", NULL, 0);
    copy_config(f, "mllava-suffix", "target_modules", "null");
    adapter_open(&a, f->model, f->tmp, &f->e);
    expect_good(&f->e);
    assert_int_equal(cJSON_GetArraySize(json_get(a->config, "target_modules")), 2);
    adapter_free(a);
    cJSON_Delete(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_and_write),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_flat_tower),
        cmocka_unit_test(test_config_errors),
        cmocka_unit_test(test_tensor_errors),
        cmocka_unit_test(test_wrong_width),
        cmocka_unit_test(test_resized_vocabulary),
        cmocka_unit_test(test_copies_of_biases),
        cmocka_unit_test(test_default_targets),
    };
    return cmocka_run_group_tests(tests, fixture_start, fixture_end);
}

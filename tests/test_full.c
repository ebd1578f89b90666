/* finetuning_type full and projector: what is written is a model, and three steps are those of PyTorch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "tests/compare.h"
#include "tests/folder.h"
#include "tests/training.h"

/* Three steps of AdamW against tests/golden/make_full.py. Another order of the sums is a few times what float32 is away
 * from double there; twenty times is allowed. */
static void check_against_torch(const char *base) {
    struct training t;
    struct err e = {0};
    struct st_set got, want, init;
    char *model = mem_format("tests/golden/models/%s/model", base);
    char *golden = mem_format("tests/golden/full/%s.json", base);
    cJSON *spec = json_read(golden, &e);
    assert_non_null(spec);
    training_open(&t, model);
    training_put_data(&t, "golden.yaml", base);
    struct text flags = {0};
    text_add(&flags, "--finetuning_type full --data_config_file golden.yaml --conv_template llama_3 --shuffle false");
    for (const cJSON *v = json_get(spec, "settings")->child; v; v = v->next) {
        char *value = cJSON_IsString(v) ? mem_text(v->valuestring) : json_text(v, true);
        text_addf(&flags, " --%s %s", v->string, value);
        free(value);
    }
    training_run(&t, "out", text_str(&flags), 0, NULL);

    const struct field fields[] = {{"loss", 1e-6, 0}, {"grad_norm", 1e-5, 0}, {"learning_rate", 1e-12, 0}};
    cJSON *log = training_log(&t, "out");
    if (compare_lines("log.jsonl", "step", log, json_get(spec, "log"), fields, 3, &e) != ST_OK) fail_msg("%s", e.text);
    training_tensors(&t, "out/model.safetensors", &got);
    char *trained = mem_format("%s/tests/golden/full/%s.safetensors", t.here, base);
    char *before = mem_format("%s/%s/model.safetensors", t.here, model);
    training_tensors(&t, trained, &want);
    training_tensors(&t, before, &init);
    double bound = 20 * json_get(spec, "distance")->valuedouble;
    if (compare_update(&got, &want, &init, bound, &e) != ST_OK) fail_msg("%s", e.text);
    st_close(&got), st_close(&want), st_close(&init);
    cJSON_Delete(spec), cJSON_Delete(log);
    text_free(&flags);
    free(model), free(golden), free(trained), free(before);
    training_close(&t);
}

static void test_tied_model_as_torch(void **state) {
    (void)state;
    check_against_torch("qwen2");
}

static void test_untied_model_as_torch(void **state) {
    (void)state;
    check_against_torch("llama");
}

/* The tower's patches, positions, class token and norm learn too; a layer that is not used stays as it is. */
static void test_tower_as_torch(void **state) {
    (void)state;
    check_against_torch("mllava-clip");
}

/* A folder that graft takes as a model, which has learnt; the checkpoint goes on to the same bytes. */
static void test_output_is_a_model(void **state) {
    (void)state;
    struct training t;
    training_open(&t, "tests/golden/models/qwen2/model");
    const char *flags = "--finetuning_type full --max_steps 12 --save_steps 4 --learning_rate 0.01";
    training_run(&t, "out", flags, 0, NULL);
    assert_true(training_loss(&t, "out", 12) < 0.5 * training_loss(&t, "out", 1));
    static const char *const files[] = {"out/config.json", "out/tokenizer.json", "out/tokenizer_config.json",
                                        "out/README.md", "out/checkpoint-8/config.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!training_has(&t, files[i])) fail_msg("%s is missing", files[i]);
    assert_false(training_has(&t, "out/adapter_config.json"));
    cJSON *o = training_json(&t, "eval out --data data.yaml --split train --conv_template plain --device cpu --json");
    assert_true(json_get(o, "loss")->valuedouble < 0.5 * training_loss(&t, "out", 1));
    cJSON_Delete(o);
    char *resumed = mem_format("%s --resume_from_checkpoint out/checkpoint-8", flags);
    training_run(&t, "again", resumed, 0, NULL);
    training_same(&t, "out/model.safetensors", "again/model.safetensors");
    training_no_partial(&t, "again");
    free(resumed);
    training_close(&t);
}

static bool same_entry(const struct st_set *a, const struct st_set *b, const char *name) {
    const struct st_entry *x = st_find(a, name), *y = st_find(b, name);
    assert_true(x && y);
    return x->type == y->type && x->bytes == y->bytes && memcmp(x->data, y->data, x->bytes) == 0;
}

/* The frozen part of a model is copied bit by bit; what is trained is not what it was. */
static void test_frozen_part_is_copied(void **state) {
    (void)state;
    static const struct {
        const char *model, *flags, *moved;
    } cases[] = {
        {"tests/golden/models/llama/model", "--finetuning_type full --freeze .*(layers\\.0|embed|norm|lm_head).*",
         "model.layers.1."},
        {"tests/golden/models/mllava/model", "--finetuning_type projector --conv_template llama_3",
         "multi_modal_projector"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct training t;
        struct st_set got, base;
        training_open(&t, cases[i].model);
        if (i == 1) training_put_data(&t, "data.yaml", "mllava");
        training_run(&t, "out", cases[i].flags, 0, NULL);
        char *path = mem_format("%s/%s/model.safetensors", t.here, cases[i].model);
        training_tensors(&t, "out/model.safetensors", &got);
        training_tensors(&t, path, &base);
        assert_int_equal(got.count, base.count);
        size_t changed = 0;
        for (size_t k = 0; k < base.count; k++) {
            const char *name = base.entries[k].name;
            bool same = same_entry(&got, &base, name);
            changed += !same;
            if (!same && !text_starts(name, cases[i].moved)) fail_msg("%s changed", name);
        }
        assert_true(changed >= 4);
        st_close(&got), st_close(&base);
        free(path);
        training_close(&t);
    }
}

/* A base in BF16 gives a model in BF16, and a checkpoint in F32 between. */
static void test_types_of_the_base(void **state) {
    (void)state;
    struct training t;
    struct err e = {0};
    struct st_set base, got;
    training_open(&t, LLAMA);
    static const char *const copied[] = {"config.json", "tokenizer.json", "tokenizer_config.json"};
    char *dir = training_path(&t, "half");
    assert_int_equal(dir_make(dir, &e), ST_OK);
    for (int i = 0; i < 3; i++) {
        char *from = mem_format("%s/tests/golden/models/llama/model/%s", t.here, copied[i]),
             *to = path_join(dir, copied[i]);
        copy_file(from, to);
        free(from), free(to);
    }
    char *from = mem_format("%s/tests/golden/models/llama/model/model.safetensors", t.here);
    char *to = path_join(dir, "model.safetensors");
    training_tensors(&t, from, &base);
    struct st_entry *entries = mem_alloc(base.count * sizeof *entries);
    for (size_t i = 0; i < base.count; i++) {
        entries[i] = base.entries[i];
        size_t n = base.entries[i].bytes / 4;
        uint16_t *halves = mem_alloc(2 * n);
        for (size_t k = 0; k < n; k++) {
            float x;
            memcpy(&x, (const char *)base.entries[i].data + 4 * k, 4);
            halves[k] = bf16_of_float(x);
        }
        entries[i].type = ST_BF16, entries[i].data = halves, entries[i].bytes = 2 * n;
    }
    assert_int_equal(st_write(to, entries, base.count, &e), ST_OK);
    training_run(&t, "out", "--finetuning_type full --model_name_or_path half --max_steps 4 --save_steps 2", 0, NULL);
    training_tensors(&t, "out/model.safetensors", &got);
    for (size_t i = 0; i < got.count; i++) assert_int_equal(got.entries[i].type, ST_BF16);
    st_close(&got);
    training_tensors(&t, "out/checkpoint-2/model.safetensors", &got);
    for (size_t i = 0; i < got.count; i++) assert_int_equal(got.entries[i].type, ST_F32);
    st_close(&got);
    training_run(&t, "again",
                 "--finetuning_type full --model_name_or_path half --max_steps 4 --save_steps 2 "
                 "--resume_from_checkpoint out/checkpoint-2",
                 0, NULL);
    training_same(&t, "out/model.safetensors", "again/model.safetensors");
    for (size_t i = 0; i < base.count; i++) free((void *)entries[i].data);
    st_close(&base);
    free(entries), free(dir), free(from), free(to);
    training_close(&t);
}

static void test_refusals(void **state) {
    (void)state;
    struct training t;
    training_open(&t, LLAMA);
    training_run(&t, "a", "--finetuning_type full --quantization nf4", 2, "quantised");
    training_run(&t, "a", "--finetuning_type full --use_dora true", 2, "trains no adapter");
    training_run(&t, "b", "--finetuning_type projector", 1, "projector");
    char *flags = mem_format("--finetuning_type full --model_name_or_path %s/tests/golden/models/nf4/model", t.here);
    training_run(&t, "c", flags, 2, "quantised");
    assert_false(training_has(&t, "a") || training_has(&t, "b") || training_has(&t, "c"));
    free(flags);
    training_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tied_model_as_torch),
        cmocka_unit_test(test_untied_model_as_torch),
        cmocka_unit_test(test_tower_as_torch),
        cmocka_unit_test(test_output_is_a_model),
        cmocka_unit_test(test_frozen_part_is_copied),
        cmocka_unit_test(test_types_of_the_base),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

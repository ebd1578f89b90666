/* The keys of a training config: defaults, types, ranges, the nearest right key, paths, and what a resumed run may
 * change. */
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
#include "base/text.h"
#include "base/yaml.h"
#include "lora/settings.h"
#include "tests/folder.h"

static const char NEEDED[] = "model_name_or_path: m\noutput_dir: out\ndata_config_file: d.yaml\n";

static enum status read_text(const char *folder, struct settings *s, const char *text, const char *flags,
                             struct err *e) {
    char *path = path_join(folder, "c.yaml");
    struct err quiet = {0};
    cJSON *given = flags ? json_parse(flags, strlen(flags), "flags", &quiet) : NULL;
    assert_int_equal(file_write(path, text, strlen(text), &quiet), ST_OK);
    enum status st = settings_read(s, path, given, e);
    cJSON_Delete(given);
    free(path);
    return st;
}

/* A config of the needed keys and these lines. */
static struct settings read_more(const char *folder, const char *lines, const char *flags) {
    struct settings s;
    struct err e = {0};
    char *text = mem_format("%s%s", NEEDED, lines);
    if (read_text(folder, &s, text, flags, &e) != ST_OK) fail_msg("%s", e.text);
    free(text);
    return s;
}

static void test_defaults_and_flags(void **state) {
    struct settings s = read_more(*state, "lora_r: 32\nlearning_rate: 1e-5\nrun_name: 7\nmemory_limit: 8000000000\n",
                                  "{\"lora_r\": 4, \"threads\": 2, \"output_dir\": \"here\"}");
    assert_int_equal(settings_int(&s, "lora_r"), 4);
    assert_true(settings_number(&s, "learning_rate") == 1e-5);
    assert_true(settings_number(&s, "lora_alpha") == 16);
    assert_true(settings_is(&s, "eval_strategy", "no"));
    assert_true(settings_bool(&s, "packing"));
    assert_string_equal(settings_text(&s, "run_name"), "7");
    assert_string_equal(settings_text(&s, "memory_limit"), "8000000000");
    assert_string_equal(settings_text(&s, "output_dir"), "here");
    assert_null(settings_get(&s, "init_adapter"));
    settings_free(&s);
}

static void test_json_config(void **state) {
    struct settings s;
    struct err e = {0};
    const char *text =
        "{\"model_name_or_path\": \"m\", \"output_dir\": \"o\", \"data_config_file\": \"d\", \"lora_r\": 3}";
    if (read_text(*state, &s, text, NULL, &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(settings_int(&s, "lora_r"), 3);
    settings_free(&s);
}

/* Relative paths of a file are taken from its folder; a name of the hub is none. */
static void test_paths(void **state) {
    struct settings s = read_more(*state, "init_adapter: a\nresume_from_checkpoint: x/checkpoint-1\n", NULL);
    static const char *const keys[] = {"output_dir", "data_config_file", "init_adapter", "resume_from_checkpoint"};
    static const char *const names[] = {"out", "d.yaml", "a", "x/checkpoint-1"};
    for (int i = 0; i < 4; i++) {
        char *want = path_join(*state, names[i]);
        assert_string_equal(settings_text(&s, keys[i]), want);
        free(want);
    }
    settings_free(&s);
    s = read_more(*state, "resume_from_checkpoint: 'false'\n", "{\"model_name_or_path\": \"org/name\"}");
    assert_string_equal(settings_text(&s, "model_name_or_path"), "org/name");
    assert_string_equal(settings_text(&s, "resume_from_checkpoint"), "false");
    settings_free(&s);
    char *here = realpath(".", NULL), *model = path_join(here, "tests");
    s = read_more(*state, "", "{\"model_name_or_path\": \"./docs/../tests/\", \"output_dir\": \"a/b//\"}");
    assert_string_equal(settings_text(&s, "output_dir"), "a/b");
    assert_string_equal(settings_text(&s, "model_name_or_path"), model); // a folder, as it is seen from anywhere
    settings_free(&s);
    free(here), free(model);
}

static void test_refusals(void **state) {
    static const struct {
        const char *lines, *says;
    } bad[] = {
        {"lora_alhpa: 8\n", "did you mean lora_alpha?"},
        {"lerning_rate: 1\n", "did you mean learning_rate?"},
        {"quantization: nf4|fp4\n", "wanted one of none|nf4|fp4"},
        {"batch_size: 1\n", "unknown key batch_size; here that is per_device_train_batch_size"},
        {"threads: 1\n", "the flag --threads"},
        {"zzzzzzzzzzzz: 1\n", "unknown key zzzzzzzzzzzz"},
        {"lora_r: 2.5\n", "lora_r is 2.5, wanted a whole number"},
        {"lora_r: eight\n", "wanted a whole number"},
        {"lora_r: 0\n", "lora_r is 0"},
        {"learning_rate: fast\n", "wanted a number"},
        {"learning_rate: -1\n", "learning_rate is -1"},
        {"learning_rate: .inf\n", "learning_rate"},
        {"learning_rate: .nan\n", "learning_rate"},
        {"packing: maybe\n", "wanted true or false"},
        {"packing: 1\n", "wanted true or false"},
        {"optim: sgd\n", "wanted one of adamw"},
        {"lr_scheduler_type: cosin\n", "wanted one of constant|"},
        {"quantization: ''\n", "wanted one of none|nf4|fp4"},
        {"init_lora_weights: false\n", "wanted one of true|gaussian"},
        {"run_name: [a]\n", "wanted a text"},
        {"lora_dropout: 1\n", "lora_dropout is 1"},
        {"num_train_epochs: 0\n", "num_train_epochs is 0, wanted more"},
        {"warmup_ratio: 1.5\n", "warmup_ratio is 1.5"},
        {"gradient_accumulation_steps: 0\n", "gradient_accumulation_steps is 0"},
        {"dataloader_num_workers: 0\n", "dataloader_num_workers is 0"},
        {"max_steps: 1e300\n", "max_steps"},
        {"max_steps: -2\n", "max_steps is -2"},
        {"report_to: wandb\n", "wanted jsonl, tensorboard"},
        {"report_to: [jsonl, 3]\n", "wanted jsonl, tensorboard"},
        {"resume_from_checkpoint: 5\n", "resume_from_checkpoint wants"},
        {"data: [1]\n", "one of the two"},
        {"load_best_model_at_end: true\n", "eval_strategy"},
        {"early_stopping_patience: 2\n", "eval_strategy"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct settings s;
        struct err e = {0};
        char *text = mem_format("%s%s", NEEDED, bad[i].lines);
        if (read_text(*state, &s, text, NULL, &e) != ST_USAGE) fail_msg("%s: status %d", bad[i].lines, e.code);
        if (!strstr(e.text, bad[i].says)) fail_msg("%s: says \"%s\", wanted \"%s\"", bad[i].lines, e.text, bad[i].says);
        settings_free(&s);
        free(text);
    }
}

static void test_missing_keys(void **state) {
    static const char *const texts[] = {"output_dir: o\ndata_config_file: d\n",
                                        "model_name_or_path: m\ndata_config_file: d\n",
                                        "model_name_or_path: m\noutput_dir: o\n",
                                        "- a\n",
                                        "a: [\n",
                                        ""};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct settings s;
        struct err e = {0};
        if (read_text(*state, &s, texts[i], NULL, &e) == ST_OK) fail_msg("%s: taken", texts[i]);
        assert_true(strstr(e.text, "c.yaml") != NULL);
        settings_free(&s);
    }
    struct settings s;
    struct err e = {0};
    assert_int_equal(read_text(*state, &s, NEEDED, "{\"output_dir\": \"\"}", &e), ST_USAGE);
    assert_true(strstr(e.text, "output_dir is not set") != NULL);
    settings_free(&s);
}

/* What is written beside a run is a config of the same values, from wherever it is read. */
static void test_yaml_again(void **state) {
    struct settings s = read_more(*state,
                                  "lora_r: 3\nlearning_rate: 0.1\ntarget_modules: [q_proj, k_proj]\n"
                                  "rank_pattern: {\"a.*\": 2}\nfreeze: 'yes'\nrun_name: '12'\n",
                                  NULL);
    struct err e = {0};
    struct settings again;
    struct text differs = {0};
    char *yaml = settings_yaml(&s), *dir = path_join(*state, "deeper"), *path = path_join(dir, "config.yaml");
    assert_int_equal(dir_make(dir, &e), ST_OK);
    assert_int_equal(file_write(path, yaml, strlen(yaml), &e), ST_OK);
    if (settings_read(&again, path, NULL, &e) != ST_OK) fail_msg("%s", e.text);
    settings_differences(s.values, again.values, &differs);
    assert_string_equal(text_str(&differs), "");
    assert_string_equal(settings_text(&again, "run_name"), "12");
    assert_string_equal(settings_text(&again, "freeze"), "yes");
    settings_free(&s), settings_free(&again);
    free(yaml), free(dir), free(path);
}

static void test_differences(void **state) {
    struct settings a = read_more(*state, "lora_r: 3\nsave_steps: 5\n", NULL);
    struct settings b = read_more(*state, "lora_r: 4\nsave_steps: 6\noptim: adamw\nwarmup_steps: 1\n", NULL);
    struct text differs = {0};
    settings_differences(a.values, b.values, &differs);
    assert_string_equal(text_str(&differs), "lora_r (was 3, is 4), warmup_steps (was 0, is 1)");
    text_free(&differs);
    settings_free(&a), settings_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(test_defaults_and_flags), FOLDER_TEST(test_json_config),  FOLDER_TEST(test_paths),
        FOLDER_TEST(test_refusals),           FOLDER_TEST(test_missing_keys), FOLDER_TEST(test_yaml_again),
        FOLDER_TEST(test_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

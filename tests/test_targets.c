/* Which modules an adapter touches: what PEFT's own functions answer to the same configs and paths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "lora/targets.h"

static void good(const struct err *e) {
    if (e->code != ST_OK) print_error("%s\n", e->text);
    assert_int_equal(e->code, ST_OK);
}

static cJSON *json(const char *text) {
    cJSON *v = cJSON_Parse(text);
    assert_non_null(v);
    return v;
}

static const char *const PATHS[] = {"model.layers.0.self_attn.q_proj",
                                    "model.layers.1.self_attn.q_proj",
                                    "model.layers.10.mlp.up_proj",
                                    "lm_head",
                                    "vision_tower.vision_model.encoder.layers.1.mlp.fc1",
                                    "model.blocks.3.layers.1.q_proj",
                                    "q_proj",
                                    "layers.1.q_proj",
                                    "model.xq_proj"};
enum { PATH_COUNT = sizeof PATHS / sizeof *PATHS };

/* An x for each path that PEFT's check_target_module_exists takes. */
static void test_targets(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"target_modules\": [\"q_proj\"]}", "xx...xxx."},
        {"{\"target_modules\": [\"self_attn.q_proj\", \"up_proj\"]}", "xxx......"},
        {"{\"target_modules\": [\"roj\"]}", "........."},
        {"{\"target_modules\": \".*\\\\.(q_proj|up_proj)\"}", "xxx..x.x."},
        {"{\"target_modules\": \"q_proj\"}", "......x.."},
        {"{\"target_modules\": \"model\\\\.layers\\\\.\\\\d+\\\\..*\"}", "xxx......"},
        {"{\"target_modules\": [\"q_proj\"], \"exclude_modules\": [\"layers.0.self_attn.q_proj\"]}", ".x...xxx."},
        {"{\"target_modules\": [\"q_proj\"], \"exclude_modules\": \"model\\\\.layers.*\"}", ".....xxx."},
        {"{\"target_modules\": [\"q_proj\"], \"exclude_modules\": \"layers\"}", "xx...xxx."},
        {"{\"target_modules\": [\"q_proj\", \"up_proj\", \"fc1\"], \"layers_to_transform\": 1}", ".x..x.x.."},
        {"{\"target_modules\": [\"q_proj\", \"up_proj\", \"fc1\"], \"layers_to_transform\": [0, 10]}", "x.x...x.."},
        {"{\"target_modules\": [\"q_proj\"], \"layers_to_transform\": []}", "xx...xxx."},
        {"{\"target_modules\": [\"q_proj\", \"fc1\"], \"layers_to_transform\": [1], \"layers_pattern\": \"layers\"}",
         ".x..xxxx."},
        {"{\"target_modules\": [\"q_proj\", \"fc1\"], \"layers_to_transform\": [3], \"layers_pattern\": [\"h\", "
         "\"blocks\"]}",
         ".....xx.."},
        {"{\"target_modules\": [\"model.layers.0.self_attn.q_proj\"], \"layers_to_transform\": [1]}", "x........"},
        {"{\"target_modules\": [\"q_proj\", \"lm_head\"], \"modules_to_save\": [\"lm_head\", \"layers.1\"]}",
         "x.....x.."},
        {"{\"target_modules\": [\"q_proj\", \"fc1\"], \"modules_to_save\": [\"vision_tower\"]}", "xx...xxx."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct targets *t;
        char got[PATH_COUNT + 1] = "";
        cJSON *config = json(cases[i][0]);
        targets_new(&t, config, "config", &e);
        good(&e);
        for (int k = 0; k < PATH_COUNT; k++) got[k] = targets_match(t, PATHS[k]) ? 'x' : '.';
        if (strcmp(got, cases[i][1]) != 0) print_error("%s\n", cases[i][0]);
        assert_string_equal(got, cases[i][1]);
        targets_free(t);
        cJSON_Delete(config);
    }
}

/* The number of the key that PEFT's get_pattern_key finds for each path, - for none. Ranks count from 1, 9 is r. */
static void test_patterns(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"q_proj\": 1}", "11---111-"},
        {"{\"layers.0.self_attn.q_proj\": 1, \"q_proj\": 2}", "12---222-"},
        {"{\"q_proj\": 1, \"layers.0.self_attn.q_proj\": 2}", "11---111-"},
        {"{\"layers\\\\.\\\\d\\\\..*\": 1}", "11--11-1-"},
        {"{\"proj\": 1}", "---------"},
        {"{\"q\": 1, \"model.layers\": 2}", "---------"},
        {"{\"^model.*q_proj\": 1}", "11---1--1"},
        {"{\".*up_proj|.*q_proj\": 1}", "111--1111"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct targets *t;
        char ranks[PATH_COUNT + 1] = "", alphas[PATH_COUNT + 1] = "";
        cJSON *config = cJSON_CreateObject();
        cJSON_AddNumberToObject(config, "r", 9);
        cJSON_AddNumberToObject(config, "lora_alpha", 9);
        cJSON_AddItemToObject(config, "rank_pattern", json(cases[i][0]));
        cJSON_AddItemToObject(config, "alpha_pattern", json(cases[i][0]));
        targets_new(&t, config, "config", &e);
        good(&e);
        for (int k = 0; k < PATH_COUNT; k++) {
            int64_t r = targets_rank(t, PATHS[k]), alpha = (int64_t)targets_alpha(t, PATHS[k]);
            ranks[k] = r == 9 ? '-' : (char)('0' + r), alphas[k] = alpha == 9 ? '-' : (char)('0' + alpha);
        }
        assert_string_equal(ranks, cases[i][1]);
        assert_string_equal(alphas, cases[i][1]);
        targets_free(t);
        cJSON_Delete(config);
    }
}

static void test_target_errors(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"r\": 0}", "r is 0"},
        {"{\"r\": 1e15}", "wanted 1 to"},
        {"{\"r\": 2.5}", "r"},
        {"{\"lora_alpha\": \"x\"}", "lora_alpha"},
        {"{\"target_modules\": 3}", "target_modules"},
        {"{\"target_modules\": [\"a\", 3]}", "target_modules"},
        {"{\"target_modules\": \"(\"}", "target_modules"},
        {"{\"exclude_modules\": \"(\"}", "exclude_modules"},
        {"{\"modules_to_save\": \"lm_head\"}", "modules_to_save"},
        {"{\"modules_to_save\": [\"(\"]}", "modules_to_save"},
        {"{\"layers_to_transform\": \"1\"}", "layers_to_transform"},
        {"{\"layers_to_transform\": [1, \"2\"]}", "layers_to_transform"},
        {"{\"layers_to_transform\": 1, \"target_modules\": \"q\"}", "layers_to_transform"},
        {"{\"layers_to_transform\": 1, \"layers_pattern\": [\"(\"]}", "layers_pattern"},
        {"{\"rank_pattern\": [1]}", "rank_pattern"},
        {"{\"rank_pattern\": {\"q\": 0}}", "rank_pattern"},
        {"{\"rank_pattern\": {\"q\": 1.5}}", "rank_pattern"},
        {"{\"rank_pattern\": {\"(\": 1}}", "rank_pattern"},
        {"{\"alpha_pattern\": {\"q\": \"x\"}}", "alpha_pattern"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct targets *t;
        cJSON *config = json(cases[i][0]);
        struct err e = {0};
        assert_int_equal(targets_new(&t, config, "config", &e), ST_FAIL);
        if (!strstr(e.text, cases[i][1])) print_error("wanted \"%s\", got \"%s\"\n", cases[i][1], e.text);
        assert_non_null(strstr(e.text, cases[i][1]));
        assert_null(t);
        cJSON_Delete(config);
    }
}

static void test_suffixes(void **state) {
    (void)state;
    const char *wanted[] = {"a.0.q", "a.1.q", "a.0.up", "b.q", "deep.lm_head"}, *others[] = {"lm_head", "c.up"};
    cJSON *got = targets_suffixes(wanted, 5, others, 2);
    char *text = json_text(got, true);
    assert_string_equal(text, "[\"q\", \"0.up\", \"deep.lm_head\"]");
    free(text);
    cJSON_Delete(got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_target_errors),
        cmocka_unit_test(test_suffixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/adapter_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "tests/folder.h"

const char *const FOLDERS[FOLDER_COUNT] = {
    "lora",     "rslora",        "dora",        "dora-bias",      "lora-bias",
    "bias-all", "saved-modules", "patterns",    "bias-lora-only", "nf4-lora",
    "nf4-dora", "fp4-lora",      "mllava-lora", "mllava-suffix",  "mllava-clip-suffix"};

int fixture_start(void **state) {
    struct fixture *f = mem_alloc(sizeof *f);
    f->tmp = folder_new();
    f->be = backend_new("cpu", 1, &f->e);
    *state = f;
    return f->be ? 0 : -1;
}

int fixture_end(void **state) {
    struct fixture *f = *state;
    model_free(f->model);
    backend_free(f->be);
    folder_free(f->tmp);
    free(f);
    return 0;
}

void expect_good(const struct err *e) {
    if (e->code != ST_OK) print_error("%s\n", e->text);
    assert_int_equal(e->code, ST_OK);
}

void fixture_load(struct fixture *f, const char *dir, const struct load_options *o) {
    const struct load_options plain = {.quantize = {.type = F32}};
    model_free(f->model);
    f->model = NULL;
    model_load(&f->model, dir, f->be, o ? o : &plain, &f->e);
    expect_good(&f->e);
}

void fixture_model(struct fixture *f, const char *name) {
    char *dir = mem_format(MODELS "%s/model", name);
    fixture_load(f, dir, NULL);
    free(dir);
}

cJSON *fixture_adapter_config(struct fixture *f, const char *name) {
    char *path = mem_format(MODELS "%s/adapter/adapter_config.json", name);
    cJSON *config = json_read(path, &f->e);
    free(path);
    expect_good(&f->e);
    const char *base = json_get(config, "base_model_name_or_path")->valuestring; // "../llama/model"
    char *model = mem_text_n(base + 3, strlen(base) - strlen("..//model"));
    fixture_model(f, model);
    free(model);
    return config;
}

cJSON *json_of(const char *text) {
    cJSON *v = cJSON_Parse(text);
    assert_non_null(v);
    return v;
}

const struct trained *find_trained(const struct adapter *a, const char *key) {
    for (int64_t i = 0; i < a->count; i++)
        if (strcmp(a->trained[i].key, key) == 0) return &a->trained[i];
    fail_msg("no tensor %s", key);
    return NULL;
}

void expect_error(struct fixture *f, enum status st, const char *part) {
    if (st == ST_OK || !strstr(f->e.text, part)) print_error("wanted \"%s\", got \"%s\"\n", part, f->e.text);
    assert_int_not_equal(st, ST_OK);
    assert_non_null(strstr(f->e.text, part));
    f->e = (struct err){0};
}

static bool is_set(const cJSON *config, const char *key) { return cJSON_IsTrue(json_get(config, key)); }

struct adapter_options options_of(const cJSON *config) {
    const cJSON *task = json_get(config, "task_type");
    const char *bias = json_get(config, "bias")->valuestring;
    return (struct adapter_options){
        .r = json_get(config, "r")->valueint,
        .alpha = json_get(config, "lora_alpha")->valuedouble,
        .dropout = json_get(config, "lora_dropout")->valuedouble,
        .use_dora = is_set(config, "use_dora"),
        .use_rslora = is_set(config, "use_rslora"),
        .lora_bias = is_set(config, "lora_bias"),
        .bias = strcmp(bias, "all") == 0    ? BIAS_ALL
                : strcmp(bias, "none") == 0 ? BIAS_NONE
                                            : BIAS_LORA_ONLY,
        .target_modules = json_get(config, "target_modules"),
        .exclude_modules = json_get(config, "exclude_modules"),
        .rank_pattern = json_get(config, "rank_pattern"),
        .alpha_pattern = json_get(config, "alpha_pattern"),
        .modules_to_save = json_get(config, "modules_to_save"),
        .task_type = task ? task->valuestring : NULL,
        .base_model = json_get(config, "base_model_name_or_path")->valuestring,
    };
}

struct adapter *fixture_adapter(struct fixture *f, const struct adapter_options *o) {
    struct adapter *a;
    adapter_new(&a, f->model, o, &f->e);
    expect_good(&f->e);
    return a;
}

int64_t adapted_layers(struct fixture *f, const cJSON *targets, const char *part) {
    const struct adapter_options o = {.r = 1, .alpha = 1, .target_modules = targets};
    struct adapter *a = fixture_adapter(f, &o);
    int64_t n = 0;
    for (int64_t i = 0; i < f->model->linear_count; i++)
        n += f->model->linears[i]->lora && strstr(f->model->linears[i]->path, part);
    adapter_free(a);
    return n;
}

uint64_t model_state(const struct model *m) {
    uint64_t sum = 0;
    const struct tensor *tied[] = {&m->head.W, &m->head.gW};
    for (int64_t i = 0; i < m->param_count; i++) {
        sum = sum * 31 + (uintptr_t)m->params[i].value->data + (uint64_t)m->params[i].value->type;
        if (m->params[i].grad) sum = sum * 31 + (uintptr_t)m->params[i].grad->data;
    }
    for (int64_t i = 0; i < m->linear_count; i++) sum = sum * 31 + (uintptr_t)m->linears[i]->lora;
    for (int i = 0; i < 2; i++) sum = sum * 31 + (uintptr_t)tied[i]->data;
    return sum;
}

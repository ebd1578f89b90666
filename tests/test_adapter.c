/* Adapters: their first values, PEFT folders both ways, and that they leave nothing behind. The folders are those of
 * tests/golden/models, which PEFT wrote. */
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
#include "base/text.h"
#include "lora/adapter.h"
#include "tests/compare.h"

#define MODELS "tests/golden/models/"

struct fixture {
    struct backend *be;
    struct model *model;
    char *tmp;
    struct err e;
};

static int start(void **state) {
    struct fixture *f = mem_alloc(sizeof *f);
    f->tmp = mem_text("/tmp/graft-adapter-XXXXXX");
    f->be = backend_new("cpu", 1, &f->e);
    *state = f;
    return f->be && mkdtemp(f->tmp) ? 0 : -1;
}

static int end(void **state) {
    struct fixture *f = *state;
    struct err e = {0};
    model_free(f->model);
    backend_free(f->be);
    dir_remove(f->tmp, &e);
    free(f->tmp), free(f);
    return e.code;
}

static void good(const struct err *e) {
    if (e->code != ST_OK) print_error("%s\n", e->text);
    assert_int_equal(e->code, ST_OK);
}

static void load(struct fixture *f, const char *name) {
    const struct load_options o = {.quantize = {.type = F32}};
    char *dir = mem_format(MODELS "%s/model", name);
    model_free(f->model);
    f->model = NULL;
    model_load(&f->model, dir, f->be, &o, &f->e);
    free(dir);
    good(&f->e);
}

/* The config of a fixture's adapter; its model is loaded. */
static cJSON *load_of(struct fixture *f, const char *name) {
    char *path = mem_format(MODELS "%s/adapter/adapter_config.json", name);
    cJSON *config = json_read(path, &f->e);
    free(path);
    good(&f->e);
    const char *base = json_get(config, "base_model_name_or_path")->valuestring; // "../llama/model"
    char *model = mem_text_n(base + 3, strlen(base) - strlen("..//model"));
    load(f, model);
    free(model);
    return config;
}

static cJSON *json(const char *text) {
    cJSON *v = cJSON_Parse(text);
    assert_non_null(v);
    return v;
}

static const struct trained *find_trained(const struct adapter *a, const char *key) {
    for (int64_t i = 0; i < a->count; i++)
        if (strcmp(a->trained[i].key, key) == 0) return &a->trained[i];
    fail_msg("no tensor %s", key);
    return NULL;
}

static void expect_error(struct fixture *f, enum status st, const char *part) {
    if (st == ST_OK || !strstr(f->e.text, part)) print_error("wanted \"%s\", got \"%s\"\n", part, f->e.text);
    assert_int_not_equal(st, ST_OK);
    assert_non_null(strstr(f->e.text, part));
    f->e = (struct err){0};
}

/* --- folders that PEFT wrote ------------------------------------------------------------------------------------- */

static const char *const FOLDERS[] = {"lora",     "rslora",        "dora",        "dora-bias",      "lora-bias",
                                      "bias-all", "saved-modules", "patterns",    "bias-lora-only", "nf4-lora",
                                      "nf4-dora", "fp4-lora",      "mllava-lora", "mllava-suffix"};
enum { FOLDER_COUNT = sizeof FOLDERS / sizeof *FOLDERS };

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
    good(&f->e);
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
    good(&f->e);
    same_tensors(&got, &want);
    st_close(&got), st_close(&want);
    same_config(f, config);
}

static void test_open_and_write(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        struct adapter *a;
        cJSON *config = load_of(f, FOLDERS[i]);
        char *dir = mem_format(MODELS "%s/adapter", FOLDERS[i]);
        adapter_open(&a, f->model, dir, &f->e);
        good(&f->e);
        check_written(f, a, dir, config);
        adapter_free(a);
        cJSON_Delete(config);
        free(dir);
    }
}

static bool is_set(const cJSON *config, const char *key) { return cJSON_IsTrue(json_get(config, key)); }

static struct adapter_options options_of(const cJSON *config) {
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

/* A new adapter with a folder's settings takes that folder's values, and writes the folder again. */
static void test_read(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        struct adapter *a;
        cJSON *config = load_of(f, FOLDERS[i]);
        struct adapter_options o = options_of(config);
        char *dir = mem_format(MODELS "%s/adapter", FOLDERS[i]);
        adapter_new(&a, f->model, &o, &f->e);
        good(&f->e);
        adapter_read(a, dir, &f->e);
        good(&f->e);
        check_written(f, a, dir, config);
        adapter_free(a);
        cJSON_Delete(config);
        free(dir);
    }
}

static void test_scales(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON *config = load_of(f, "patterns"); // r 4, alpha 6; down_proj: 2, 9; layer 0 q_proj: 7, 6; layer 1 q_proj: 4, 1
    adapter_open(&a, f->model, MODELS "patterns/adapter", &f->e);
    good(&f->e);
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
    config = load_of(f, "rslora");
    adapter_open(&a, f->model, MODELS "rslora/adapter", &f->e);
    good(&f->e);
    double alpha = json_get(config, "lora_alpha")->valuedouble, r = json_get(config, "r")->valuedouble;
    assert_true(a->loras[0].scale == (float)(alpha / sqrt(r)));
    assert_true(a->loras[0].stream != a->loras[1].stream);
    adapter_free(a);
    cJSON_Delete(config);
}

/* --- new adapters ------------------------------------------------------------------------------------------------ */

static struct adapter *make(struct fixture *f, const struct adapter_options *o) {
    struct adapter *a;
    adapter_new(&a, f->model, o, &f->e);
    good(&f->e);
    return a;
}

/* Mean and deviation of n independent draws lie within 5 standard errors of what they are drawn from. */
static void check_draws(const float *x, int64_t n, double deviation, double kurtosis, double bound) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        assert_true(fabs(x[i]) <= bound);
        sum += x[i], squares += (double)x[i] * x[i];
    }
    double mean = sum / (double)n, variance = squares / (double)n, expected = deviation * deviation;
    assert_true(fabs(mean) <= 5 * deviation / sqrt((double)n));
    assert_true(fabs(variance - expected) <= 5 * expected * sqrt((kurtosis - 1) / (double)n));
}

static void test_first_values(void **state) {
    struct fixture *f = *state;
    load(f, "llama");
    cJSON *all = json("\"all-linear\"");
    struct adapter_options o = {.r = 64, .alpha = 16, .target_modules = all, .seed = 7};
    for (int gaussian = 0; gaussian < 2; gaussian++) {
        o.init_gaussian = gaussian;
        struct adapter *a = make(f, &o);
        assert_int_equal(a->lora_count, f->model->linear_count - 1);
        for (int64_t i = 0; i < a->lora_count; i++) {
            const struct tensor *A = &a->loras[i].A, *B = &a->loras[i].B;
            double bound = 1 / sqrt((double)A->dim[1]);
            if (gaussian)
                check_draws(A->data, tensor_count(A), 1.0 / 64, 3, INFINITY);
            else
                check_draws(A->data, tensor_count(A), bound / sqrt(3), 1.8, bound);
            for (int64_t k = 0; k < tensor_count(B); k++) assert_true(((float *)B->data)[k] == 0);
        }
        for (int64_t i = 0; i < a->grads.dim[0]; i++) assert_true(((float *)a->grads.data)[i] == 0);
        assert_memory_not_equal(a->loras[0].A.data, a->loras[1].A.data, 64);
        adapter_free(a);
    }
    cJSON_Delete(all);
}

static void test_seed(void **state) {
    struct fixture *f = *state;
    load(f, "llama");
    struct adapter_options o = {.r = 2, .alpha = 2, .seed = 1}, other = o;
    other.seed = 2;
    struct adapter *a = make(f, &o);
    size_t bytes = tensor_bytes(&a->values);
    float *first = mem_alloc(bytes);
    memcpy(first, a->values.data, bytes);
    adapter_free(a);
    a = make(f, &o);
    assert_memory_equal(first, a->values.data, bytes);
    adapter_free(a);
    a = make(f, &other);
    assert_memory_not_equal(first, a->values.data, bytes);
    assert_int_equal(a->lora_count, 2 * f->model->config.text.layers); // q_proj and v_proj
    adapter_free(a);
    free(first);
}

/* B is 0, so the magnitudes are the lengths of the rows of W and the factors are 1. */
static void test_dora_values(void **state) {
    struct fixture *f = *state;
    load(f, "llama");
    struct adapter_options o = {.r = 2, .alpha = 2, .use_dora = true};
    struct adapter *a = make(f, &o);
    const struct linear *l = &f->model->blocks[0].q;
    assert_int_equal(l->W.type, F32);
    for (int64_t i = 0; i < l->W.dim[0]; i++) {
        double squares = 0;
        const float *row = (const float *)l->W.data + i * l->W.dim[1];
        for (int64_t k = 0; k < l->W.dim[1]; k++) squares += (double)row[k] * row[k];
        assert_true(fabs(((float *)l->lora->m.data)[i] - sqrt(squares)) <= 1e-6 * sqrt(squares));
        assert_true(((float *)l->lora->g.data)[i] == 1 && ((float *)l->lora->g_less_1.data)[i] == 0);
    }
    ((float *)l->lora->m.data)[0] *= 2;
    adapter_refresh(a);
    assert_true(((float *)l->lora->g.data)[0] == 2 && ((float *)l->lora->g_less_1.data)[0] == 1);
    adapter_free(a);
}

/* The four arenas have one layout, no two tensors share a number, and what lies between them is zero. */
static void test_arenas(void **state) {
    struct fixture *f = *state;
    cJSON *config = load_of(f, "lora-bias");
    struct adapter_options o = options_of(config);
    struct adapter *a = make(f, &o);
    const char *value = a->values.data, *last = value, *memory = a->memory;
    assert_true(a->with_optimizer);
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *t = &a->trained[i];
        ptrdiff_t at = (char *)t->value.data - value;
        assert_true((char *)t->value.data >= last);
        last = (char *)t->value.data + tensor_bytes(&t->value);
        assert_true((char *)t->grad.data - (char *)a->grads.data == at);
        assert_true((char *)t->m.data - (char *)a->m.data == at && (char *)t->v.data - (char *)a->v.data == at);
        assert_ptr_equal(t->slot->data, t->value.data);
        assert_ptr_equal(t->grad_slot->data, t->grad.data);
        assert_memory_equal(t->value.dim, t->v.dim, sizeof t->value.dim);
    }
    assert_true(last <= value + tensor_bytes(&a->values) && value + tensor_bytes(&a->values) <= (char *)a->grads.data);
    assert_true((char *)a->v.data + tensor_bytes(&a->v) <= memory + a->memory_bytes);
    assert_true(adapter_param_total(a) <= a->values.dim[0]);
    adapter_free(a);
    cJSON_Delete(config);
}

/* --- leaving nothing behind --------------------------------------------------------------------------------------- */

static uint64_t seen_of(const struct model *m) {
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

static void test_free_restores(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        cJSON *config = load_of(f, FOLDERS[i]);
        struct adapter_options o = options_of(config);
        uint64_t before = seen_of(f->model);
        struct adapter *a = make(f, &o);
        assert_true(seen_of(f->model) != before);
        adapter_free(a);
        assert_true(seen_of(f->model) == before);
        o.finetuning = FINETUNE_FULL;
        if (adapter_new(&a, f->model, &o, &f->e) == ST_OK) adapter_free(a); // 4-bit models refuse
        f->e = (struct err){0};
        assert_true(seen_of(f->model) == before);
        cJSON_Delete(config);
    }
    adapter_free(NULL);
}

/* --- whole parameters -------------------------------------------------------------------------------------------- */

static void test_full(void **state) {
    struct fixture *f = *state;
    load(f, "qwen2"); // tied
    struct model *m = f->model;
    struct adapter_options o = {.finetuning = FINETUNE_FULL, .freeze = "model\\.layers\\.0\\..*"};
    const float first = ((const float *)m->embed.data)[5];
    struct adapter *a = make(f, &o);
    const struct trained *embed = find_trained(a, "model.embed_tokens.weight");
    assert_true(((float *)embed->value.data)[5] == first);
    assert_ptr_equal(m->head.W.data, m->embed.data);
    assert_ptr_equal(m->head.gW.data, m->gembed.data);
    assert_ptr_equal(m->embed.data, embed->value.data);
    assert_null(m->blocks[0].q.gW.data);
    assert_non_null(m->blocks[1].q.gW.data);
    for (int64_t i = 0; i < a->count; i++) assert_null(strstr(a->trained[i].key, "layers.0."));
    expect_error(f, adapter_write(a, f->tmp, &f->e), "finetuning_type");
    adapter_free(a);
    o.freeze = ".*";
    expect_error(f, adapter_new(&a, m, &o, &f->e), "freeze");
    o.freeze = "(";
    expect_error(f, adapter_new(&a, m, &o, &f->e), "freeze");
    load(f, "nf4");
    o.freeze = NULL;
    expect_error(f, adapter_new(&a, f->model, &o, &f->e), "4 bits");
}

static void test_projector(void **state) {
    struct fixture *f = *state;
    load(f, "mllava");
    struct adapter_options o = {.finetuning = FINETUNE_PROJECTOR};
    struct adapter *a = make(f, &o);
    assert_int_equal(a->count, 4);
    assert_non_null(f->model->project1.gW.data);
    assert_non_null(f->model->project2.gb.data);
    assert_null(f->model->blocks[0].q.gW.data);
    adapter_free(a);
    load(f, "llama");
    expect_error(f, adapter_new(&a, f->model, &o, &f->e), "projector");
}

/* A tied head that is saved becomes its own matrix, and the embedding stays as it was. */
static void test_tied_head(void **state) {
    struct fixture *f = *state;
    load(f, "qwen2");
    struct model *m = f->model;
    cJSON *save = json("[\"lm_head\"]");
    struct adapter_options o = {.r = 2, .alpha = 4, .modules_to_save = save};
    const void *frozen = m->embed.data;
    struct adapter *a = make(f, &o);
    const struct trained *head = find_trained(a, "base_model.model.lm_head.weight");
    assert_true(head->head);
    assert_ptr_equal(m->head.W.data, head->value.data);
    assert_ptr_equal(m->embed.data, frozen);
    assert_null(m->gembed.data);
    assert_non_null(m->head.gW.data);
    assert_memory_equal(m->head.W.data, frozen, tensor_bytes(&head->value));
    ((float *)head->value.data)[3] = 42;
    adapter_write(a, f->tmp, &f->e);
    adapter_free(a);
    assert_ptr_equal(m->head.W.data, frozen);
    adapter_open(&a, m, f->tmp, &f->e);
    good(&f->e);
    assert_true(((float *)m->head.W.data)[3] == 42);
    assert_ptr_equal(m->embed.data, frozen);
    adapter_free(a);
    cJSON_Delete(save);
}

static void test_heads_flag(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON *config = load_of(f, "saved-modules");
    adapter_open(&a, f->model, MODELS "saved-modules/adapter", &f->e);
    good(&f->e);
    assert_true(find_trained(a, "base_model.model.lm_head.weight")->head);
    assert_false(find_trained(a, "base_model.model.model.embed_tokens.weight")->head);
    assert_false(a->trained[0].head);
    assert_null(f->model->head.gW.data); // opened for use
    assert_false(a->with_optimizer);
    adapter_free(a);
    cJSON_Delete(config);
}

/* Frozen modules get no adapter, and whoever opens the folder puts none there either. */
static void test_freeze(void **state) {
    struct fixture *f = *state;
    load(f, "llama");
    cJSON *regex = json("\".*layers\\\\.1.*\""), *norm = json("[\"norm\"]");
    struct adapter_options o = {.r = 2, .alpha = 4, .freeze = ".*layers\\.0\\..*", .modules_to_save = norm};
    for (int i = 0; i < 2; i++) {
        o.exclude_modules = i ? regex : NULL;
        struct adapter *a;
        if (i) {
            expect_error(f, adapter_new(&a, f->model, &o, &f->e), "q_proj");
            continue;
        }
        a = make(f, &o);
        assert_int_equal(a->lora_count, 2 * (f->model->config.text.layers - 1));
        assert_null(f->model->blocks[0].q.lora);
        adapter_write(a, f->tmp, &f->e);
        adapter_free(a);
        adapter_open(&a, f->model, f->tmp, &f->e);
        good(&f->e);
        assert_int_equal(a->lora_count, 2 * (f->model->config.text.layers - 1));
        adapter_free(a);
    }
    cJSON_Delete(regex), cJSON_Delete(norm);
}

static void test_all_linear(void **state) {
    struct fixture *f = *state;
    load(f, "mllava");
    cJSON *all = json("\"All-Linear\"");
    struct adapter_options o = {.r = 2, .alpha = 4, .target_modules = all};
    struct adapter *a = make(f, &o);
    char *text = json_text(json_get(a->config, "target_modules"), true);
    assert_int_equal(a->lora_count, f->model->linear_count - 1);
    assert_non_null(strstr(text, "\"q_proj\""));
    assert_null(strstr(text, "lm_head"));
    assert_null(strstr(text, "layers"));
    adapter_free(a);
    free(text);
    cJSON_Delete(all);
}

/* --- folders of other makes, and bad ones ------------------------------------------------------------------------- */

/* Writes a fixture's tensors with names changed: `from` becomes `to`, and where `to` is NULL such tensors are left out. */
static void copy_tensors(struct fixture *f, const char *name, const char *const (*changes)[2], size_t count) {
    struct st_set set = {0};
    char *dir = mem_format(MODELS "%s/adapter", name), *path = path_join(f->tmp, "adapter_model.safetensors");
    st_open_dir(&set, dir, "adapter_model", &f->e);
    good(&f->e);
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
    good(&f->e);
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(entries), free(names), free(dir), free(path);
    st_close(&set);
}

/* A fixture's config with one key set to a JSON value (NULL: taken out). */
static void copy_config(struct fixture *f, const char *name, const char *key, const char *value) {
    char *from = mem_format(MODELS "%s/adapter/adapter_config.json", name),
         *to = path_join(f->tmp, "adapter_config.json");
    cJSON *config = json_read(from, &f->e);
    if (key) cJSON_DeleteItemFromObjectCaseSensitive(config, key);
    if (key && value) cJSON_AddItemToObject(config, key, json(value));
    json_write(to, config, &f->e);
    good(&f->e);
    cJSON_Delete(config);
    free(from), free(to);
}

/* Module paths as newer versions of transformers have them. */
static void test_spellings(void **state) {
    struct fixture *f = *state;
    static const char *const newer[][2] = {{"language_model.model", "model.language_model"},
                                           {"vision_tower.vision_model", "model.vision_tower"}};
    struct adapter *a;
    cJSON *config = load_of(f, "mllava-suffix");
    struct adapter_options o = options_of(config);
    adapter_open(&a, f->model, MODELS "mllava-suffix/adapter", &f->e);
    good(&f->e);
    size_t bytes = tensor_bytes(&a->values);
    float *values = mem_alloc(bytes);
    memcpy(values, a->values.data, bytes);
    adapter_free(a);
    copy_tensors(f, "mllava-suffix", newer, 2);
    copy_config(f, "mllava-suffix", NULL, NULL);
    adapter_open(&a, f->model, f->tmp, &f->e);
    good(&f->e);
    assert_memory_equal(values, a->values.data, bytes);
    assert_non_null(strstr(a->trained[0].key, "model.language_model.layers")); // written as it was read
    adapter_free(a);
    a = make(f, &o);
    adapter_read(a, f->tmp, &f->e);
    good(&f->e);
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
        {"init_lora_weights", "\"olora\"", "olora"},
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
    cJSON *config = load_of(f, "lora");
    uint64_t before = seen_of(f->model);
    copy_tensors(f, "lora", NULL, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        copy_config(f, "lora", cases[i][0], cases[i][1]);
        expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), cases[i][2]);
        assert_null(a);
        assert_true(seen_of(f->model) == before);
    }
    static const char *const fine[][2] = {
        {"unheard_of", "true"}, {"layers_pattern", "[]"}, {"init_lora_weights", "\"eva\""}, {"megatron_core", "\"x\""},
        {"task_type", NULL},    {"lora_dropout", "0.5"},  {"loftq_config", "{\"a\": 1}"}};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        copy_config(f, "lora", fine[i][0], fine[i][1]);
        adapter_open(&a, f->model, f->tmp, &f->e);
        good(&f->e);
        adapter_free(a);
    }
    cJSON_Delete(config);
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
    cJSON *config = load_of(f, "lora");
    char *path = path_join(f->tmp, "adapter_model.safetensors"), *pickle = path_join(f->tmp, "adapter_model.bin");
    struct adapter_options o = options_of(config);
    copy_config(f, "lora", NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const change[][2] = {{cases[i][0], cases[i][1]}};
        copy_tensors(f, "lora", change, 1);
        expect_error(f, adapter_open(&a, f->model, f->tmp, &f->e), cases[i][2]);
        a = make(f, &o);
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

static void test_new_errors(void **state) {
    struct fixture *f = *state;
    load(f, "nf4");
    cJSON *none = json("[\"qkv_proj\"]"), *save = json("[\"q_proj\"]"), *missing = json("[\"scorer\"]");
    struct adapter_options o = {.r = 2, .alpha = 4}, x;
    struct adapter *a;
    x = o, x.target_modules = none;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "qkv_proj");
    adapter_new(&a, f->model, &x, &f->e);
    expect_error(f, f->e.code, "up_proj, down_proj");
    x = o, x.modules_to_save = save;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "4 bits");
    x = o, x.modules_to_save = missing;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "scorer");
    x = o, x.use_dora = x.lora_bias = true;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "lora_bias");
    x = o, x.r = 0;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "r is 0");
    x = o, x.alpha = NAN;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "lora_alpha");
    x = o, x.dropout = 1;
    expect_error(f, adapter_new(&a, f->model, &x, &f->e), "lora_dropout");
    cJSON_Delete(none), cJSON_Delete(save), cJSON_Delete(missing);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_and_write), cmocka_unit_test(test_read),          cmocka_unit_test(test_scales),
        cmocka_unit_test(test_first_values),   cmocka_unit_test(test_seed),          cmocka_unit_test(test_dora_values),
        cmocka_unit_test(test_arenas),         cmocka_unit_test(test_free_restores), cmocka_unit_test(test_full),
        cmocka_unit_test(test_projector),      cmocka_unit_test(test_tied_head),     cmocka_unit_test(test_heads_flag),
        cmocka_unit_test(test_freeze),         cmocka_unit_test(test_all_linear),    cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_config_errors),  cmocka_unit_test(test_tensor_errors), cmocka_unit_test(test_new_errors),
    };
    return cmocka_run_group_tests(tests, start, end);
}

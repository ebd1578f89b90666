/* Adapters: their first values, what hangs where, and that they leave nothing behind. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "lora/adapter.h"
#include "tests/adapter_fixture.h"

/* --- new adapters ------------------------------------------------------------------------------------------------ */

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
    fixture_model(f, "llama");
    cJSON *all = json_of("\"all-linear\"");
    struct adapter_options o = {.r = 64, .alpha = 16, .target_modules = all, .seed = 7};
    for (int gaussian = 0; gaussian < 2; gaussian++) {
        o.init_gaussian = gaussian;
        struct adapter *a = fixture_adapter(f, &o);
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
    fixture_model(f, "llama");
    struct adapter_options o = {.r = 2, .alpha = 2, .seed = 1}, other = o;
    other.seed = 2;
    struct adapter *a = fixture_adapter(f, &o);
    size_t bytes = tensor_bytes(&a->values);
    float *first = mem_alloc(bytes);
    memcpy(first, a->values.data, bytes);
    adapter_free(a);
    a = fixture_adapter(f, &o);
    assert_memory_equal(first, a->values.data, bytes);
    adapter_free(a);
    a = fixture_adapter(f, &other);
    assert_memory_not_equal(first, a->values.data, bytes);
    assert_int_equal(a->lora_count, 2 * f->model->config.text.layers); // q_proj and v_proj
    adapter_free(a);
    free(first);
}

/* B is 0, so the magnitudes are the lengths of the rows of W and the factors are 1. */
static void test_dora_values(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "llama");
    struct adapter_options o = {.r = 2, .alpha = 2, .use_dora = true};
    struct adapter *a = fixture_adapter(f, &o);
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
    cJSON *config = fixture_adapter_config(f, "lora-bias");
    struct adapter_options o = options_of(config);
    struct adapter *a = fixture_adapter(f, &o);
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

/* Every A and B has its copy, which follows when values change. */
static void test_rounded(void **state) {
    struct fixture *f = *state;
    struct err e = {0};
    fixture_model(f, "llama");
    struct adapter_options o = {.r = 3, .alpha = 2, .use_dora = true};
    struct adapter *a = fixture_adapter(f, &o);
    size_t before = a->memory_bytes;
    assert_int_equal(adapter_round(a, &e), ST_OK);
    assert_int_equal(a->memory_bytes - before, 2 * a->values.dim[0]);
    for (int64_t i = 0; i < a->values.dim[0]; i++) ((float *)a->values.data)[i] = 1 + 0.001f * (float)(i % 1000);
    adapter_refresh(a);
    for (int64_t i = 0; i < a->lora_count; i++) {
        const struct lora *r = &a->loras[i];
        const struct tensor *full[] = {&r->A, &r->B}, *rounded[] = {&r->rounded_A, &r->rounded_B};
        for (int k = 0; k < 2; k++) {
            assert_memory_equal(full[k]->dim, rounded[k]->dim, sizeof full[k]->dim);
            for (int64_t n = 0; n < tensor_count(full[k]); n++)
                assert_int_equal(((bf16 *)rounded[k]->data)[n], bf16_of_float(((float *)full[k]->data)[n]));
        }
    }
    adapter_free(a);
}

/* --- leaving nothing behind --------------------------------------------------------------------------------------- */

static void test_free_restores(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < FOLDER_COUNT; i++) {
        cJSON *config = fixture_adapter_config(f, FOLDERS[i]);
        struct adapter_options o = options_of(config);
        uint64_t before = model_state(f->model);
        struct adapter *a = fixture_adapter(f, &o);
        assert_true(model_state(f->model) != before);
        adapter_free(a);
        assert_true(model_state(f->model) == before);
        o.finetuning = FINETUNE_FULL;
        if (adapter_new(&a, f->model, &o, &f->e) == ST_OK) adapter_free(a); // 4-bit models refuse
        f->e = (struct err){0};
        assert_true(model_state(f->model) == before);
        cJSON_Delete(config);
    }
    adapter_free(NULL);
}

/* --- whole parameters -------------------------------------------------------------------------------------------- */

static void test_full(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "qwen2"); // tied
    struct model *m = f->model;
    struct adapter_options o = {.finetuning = FINETUNE_FULL, .freeze = "model\\.layers\\.0\\..*"};
    const float first = ((const float *)m->embed.data)[5];
    struct adapter *a = fixture_adapter(f, &o);
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
    fixture_model(f, "nf4");
    o.freeze = NULL;
    expect_error(f, adapter_new(&a, f->model, &o, &f->e), "4 bits");
}

static void test_projector(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "mllava");
    struct adapter_options o = {.finetuning = FINETUNE_PROJECTOR};
    struct adapter *a = fixture_adapter(f, &o);
    assert_int_equal(a->count, 4);
    assert_non_null(f->model->project1.gW.data);
    assert_non_null(f->model->project2.gb.data);
    assert_null(f->model->blocks[0].q.gW.data);
    adapter_free(a);
    fixture_model(f, "llama");
    expect_error(f, adapter_new(&a, f->model, &o, &f->e), "projector");
}

/* A tied head that is saved becomes its own matrix, and the embedding stays as it was. */
static void test_tied_head(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "qwen2");
    struct model *m = f->model;
    cJSON *save = json_of("[\"lm_head\"]");
    struct adapter_options o = {.r = 2, .alpha = 4, .modules_to_save = save};
    const void *frozen = m->embed.data;
    struct adapter *a = fixture_adapter(f, &o);
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
    expect_good(&f->e);
    assert_true(((float *)m->head.W.data)[3] == 42);
    assert_ptr_equal(m->embed.data, frozen);
    adapter_free(a);
    cJSON_Delete(save);
}

static void test_heads_flag(void **state) {
    struct fixture *f = *state;
    struct adapter *a;
    cJSON *config = fixture_adapter_config(f, "saved-modules");
    adapter_open(&a, f->model, MODELS "saved-modules/adapter", &f->e);
    expect_good(&f->e);
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
    fixture_model(f, "llama");
    cJSON *regex = json_of("\".*layers\\\\.1.*\""), *norm = json_of("[\"norm\"]");
    struct adapter_options o = {.r = 2, .alpha = 4, .freeze = ".*layers\\.0\\..*", .modules_to_save = norm};
    for (int i = 0; i < 2; i++) {
        o.exclude_modules = i ? regex : NULL;
        struct adapter *a;
        if (i) {
            expect_error(f, adapter_new(&a, f->model, &o, &f->e), "q_proj");
            continue;
        }
        a = fixture_adapter(f, &o);
        assert_int_equal(a->lora_count, 2 * (f->model->config.text.layers - 1));
        assert_null(f->model->blocks[0].q.lora);
        adapter_write(a, f->tmp, &f->e);
        adapter_free(a);
        adapter_open(&a, f->model, f->tmp, &f->e);
        expect_good(&f->e);
        assert_int_equal(a->lora_count, 2 * (f->model->config.text.layers - 1));
        adapter_free(a);
    }
    cJSON_Delete(regex), cJSON_Delete(norm);
}

static void test_all_linear(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "mllava");
    cJSON *all = json_of("\"All-Linear\"");
    struct adapter_options o = {.r = 2, .alpha = 4, .target_modules = all};
    struct adapter *a = fixture_adapter(f, &o);
    char *text = json_text(json_get(a->config, "target_modules"), true);
    assert_int_equal(a->lora_count, f->model->linear_count - 1);
    assert_non_null(strstr(text, "\"q_proj\""));
    assert_null(strstr(text, "lm_head"));
    assert_null(strstr(text, "layers"));
    adapter_free(a);
    free(text);
    cJSON_Delete(all);
}

static void test_new_errors(void **state) {
    struct fixture *f = *state;
    fixture_model(f, "nf4");
    cJSON *none = json_of("[\"qkv_proj\"]"), *save = json_of("[\"q_proj\"]"), *missing = json_of("[\"scorer\"]");
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
        cmocka_unit_test(test_first_values), cmocka_unit_test(test_seed),      cmocka_unit_test(test_dora_values),
        cmocka_unit_test(test_arenas),       cmocka_unit_test(test_rounded),   cmocka_unit_test(test_free_restores),
        cmocka_unit_test(test_full),         cmocka_unit_test(test_projector), cmocka_unit_test(test_tied_head),
        cmocka_unit_test(test_heads_flag),   cmocka_unit_test(test_freeze),    cmocka_unit_test(test_all_linear),
        cmocka_unit_test(test_new_errors),
    };
    return cmocka_run_group_tests(tests, fixture_start, fixture_end);
}

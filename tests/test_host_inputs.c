/* Inputs of layers that wait on the host: a training has the bits that it has without, whenever the copies run; and
 * when the planner chooses it, and what that frees. There is no device here: the CPU plays one, whose copies keep to
 * nothing but what kernels/backend.h says of them. tests/test_device.c trains so on a device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "kernels/ops.h"
#include "lora/plan.h"
#include "tests/training.h"

enum { LAYERS = 4, DIM = 128, N = 37, STEPS = 3 }; // of llama-tiny

struct host_inputs {
    struct training training;
    struct backend *be;
    struct model *model;
    struct adapter *adapter;
    size_t value_bytes; // of an adapter
};

/* --- copies that nobody may count on before they are awaited ----------------------------------------------------- */

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    bool fetch;
};

enum { UNDER_WAY = 4, POISON = 0xFF };
static struct copy copies[UNDER_WAY];
static int copy_count;

static void begin_copy(void *to, const void *from, size_t bytes, bool fetch) {
    assert_true(copy_count < UNDER_WAY);
    copies[copy_count++] = (struct copy){to, from, bytes, fetch};
    if (fetch)
        memset(to, POISON, bytes);
    else
        memcpy(to, from, bytes);
}

static void late_store(struct backend *be, void *host, const struct tensor *src) {
    (void)be;
    begin_copy(host, src->data, tensor_bytes(src), false);
}

static void late_fetch(struct backend *be, const struct tensor *dst, const void *host) {
    (void)be;
    begin_copy(dst->data, host, tensor_bytes(dst), true);
}

static void late_await(struct backend *be) {
    (void)be;
    for (int i = 0; i < copy_count; i++) {
        const struct copy *c = &copies[i];
        for (size_t k = 0; c->fetch && k < c->bytes; k++)
            if (((const unsigned char *)c->to)[k] != POISON) fail_msg("written to while it was fetched");
        if (c->fetch)
            memcpy(c->to, c->from, c->bytes);
        else if (memcmp(c->to, c->from, c->bytes) != 0)
            fail_msg("written to while it was stored");
    }
    copy_count = 0;
}

/* --- a model and its adapter ------------------------------------------------------------------------------------- */

static void good(const struct err *e) {
    if (e->code != ST_OK) fail_msg("%s", e->text);
}

static int open_model(void **state) {
    struct host_inputs *h = *state = mem_alloc(sizeof *h);
    const struct load_options o = {.quantize = {.type = F32}};
    struct err e = {0};
    training_open(&h->training, LLAMA);
    training_done(&h->training, "init llama-tiny --out tiny --quiet");
    char *dir = training_path(&h->training, "tiny");
    h->be = backend_new("cpu", 2, &e);
    good(&e);
    model_load(&h->model, dir, h->be, &o, &e);
    good(&e);
    assert_int_equal(h->model->config.text.layers, LAYERS);
    assert_int_equal(h->model->config.text.dim, DIM);
    free(dir);
    return 0;
}

static int close_model(void **state) {
    struct host_inputs *h = *state;
    model_free(h->model);
    backend_free(h->be);
    training_close(&h->training);
    free(h);
    return 0;
}

static void add_adapter(struct host_inputs *h) {
    struct err e = {0};
    cJSON *targets = cJSON_CreateString("all-linear");
    const struct adapter_options o = {.r = 4, .alpha = 8, .dropout = 0.1, .target_modules = targets, .seed = 5};
    adapter_new(&h->adapter, h->model, &o, &e);
    good(&e);
    cJSON_Delete(targets);
}

/* From here on the backend is a device by its flag and by its copies. */
static void play_device(struct host_inputs *h) {
    static struct backend_calls late;
    late = *h->be->calls;
    late.store = late_store, late.fetch = late_fetch, late.await = late_await;
    h->be->calls = &late;
    h->be->host_memory = false;
}

/* Two rows; a model of 512 tokens. */
struct rows {
    struct batch batch;
    int64_t offsets[3], row_index[2];
    int32_t ids[N], positions[N], targets[N];
};

static void fill_rows(struct rows *r, bool scored) {
    const int64_t first = 20;
    *r = (struct rows){.offsets = {0, first, N}, .row_index = {0, 1}};
    r->batch = (struct batch){.rows = 2,
                              .N = N,
                              .offsets = r->offsets,
                              .ids = r->ids,
                              .positions = r->positions,
                              .targets = r->targets,
                              .row_index = r->row_index};
    for (int i = 0; i < N; i++) {
        r->ids[i] = (i * 31 + 7) % 300;
        r->positions[i] = (int32_t)(i < first ? i : i - first);
        r->targets[i] = scored && i % 3 ? (i * 17 + 2) % 300 : IGNORED;
        r->batch.scored += r->targets[i] != IGNORED;
    }
}

static struct batch_limits limits_of(const struct rows *r) {
    return (struct batch_limits){.N = N, .rows = 2, .scored = r->batch.scored, .longest = r->offsets[1]};
}

static struct workspace *new_workspace(struct host_inputs *h, const enum keep *keep, const struct rows *r) {
    struct workspace *w;
    struct err e = {0};
    const struct workspace_options o = {.limits = limits_of(r), .train = true, .act = F32, .keep = keep};
    workspace_new(&w, h->model, &o, &e);
    good(&e);
    return w;
}

/* Some steps of two micro-batches, between which a pass without anything scored ends before its backward. The values
 * of the adapter, which is made anew; the caller frees them. */
static float *train(struct host_inputs *h, const enum keep *keep) {
    struct rows rows, nothing;
    struct err e = {0};
    float loss = 0;
    struct tensor total = tensor_over1(&loss, F32, 1);
    add_adapter(h);
    struct adapter *a = h->adapter;
    fill_rows(&rows, true), fill_rows(&nothing, false);
    struct workspace *w = new_workspace(h, keep, &rows);
    for (int step = 1; step <= STEPS; step++) {
        const struct adamw o = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1, .step = step};
        op_zero(h->be, &a->grads);
        model_step(w, &rows.batch, 1, (uint64_t)(3 * step), 0.01f, &total);
        model_step(w, &nothing.batch, 1, (uint64_t)(3 * step + 1), 0.01f, &total);
        model_step(w, &rows.batch, 1, (uint64_t)(3 * step + 2), 0.01f, &total);
        op_adamw(h->be, &a->values, &a->m, &a->v, &a->grads, &o);
        adapter_refresh(a);
    }
    backend_sync(h->be, &e);
    good(&e);
    assert_int_equal(copy_count, 0);
    assert_true(isfinite(loss) && loss > 0);
    h->value_bytes = tensor_bytes(&a->values);
    float *values = mem_alloc(h->value_bytes);
    backend_download(h->be, values, &a->values);
    workspace_free(w);
    adapter_free(a);
    return values;
}

/* --- the same bits ----------------------------------------------------------------------------------------------- */

static void check_same(struct host_inputs *h, const enum keep *keep, const float *want) {
    float *got = train(h, keep);
    assert_memory_equal(got, want, h->value_bytes);
    free(got);
}

static void test_same_bits(void **state) {
    struct host_inputs *h = *state;
    static const enum keep all[LAYERS] = {KEEP_ALL, KEEP_ALL, KEEP_ALL, KEEP_ALL},
                           ways[][LAYERS] = {{KEEP_INPUT, KEEP_INPUT, KEEP_INPUT, KEEP_INPUT},
                                             {KEEP_HOST, KEEP_HOST, KEEP_HOST, KEEP_HOST},
                                             {KEEP_HOST, KEEP_HOST, KEEP_HOST, KEEP_INPUT},
                                             {KEEP_HOST, KEEP_HOST, KEEP_SMART, KEEP_ALL},
                                             {KEEP_HOST, KEEP_INPUT, KEEP_HOST, KEEP_HOST},
                                             {KEEP_ALL, KEEP_SMART, KEEP_INPUT, KEEP_HOST}};
    float *want = train(h, all);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) check_same(h, ways[i], want);
    play_device(h);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) check_same(h, ways[i], want);
    free(want);
}

/* The first layer that gives no numbers is found where its output lies. */
static void test_not_finite(void **state) {
    struct host_inputs *h = *state;
    static const enum keep host[LAYERS] = {KEEP_HOST, KEEP_HOST, KEEP_HOST, KEEP_HOST};
    enum { BAD = 1 };
    struct rows rows;
    fill_rows(&rows, true);
    play_device(h);
    add_adapter(h);
    struct workspace *w = new_workspace(h, host, &rows);
    struct pass p = pass_new(w, 0, 0);
    model_forward(&p, w, &rows.batch);
    head_loss(&p, w, NULL, 1);
    assert_int_equal(model_find_nonfinite(w), -1);
    for (int64_t i = 0; i < h->adapter->count; i++)
        if (strstr(h->adapter->trained[i].key, "layers.1.self_attn.o_proj"))
            *(float *)h->adapter->trained[i].value.data = NAN;
    model_forward(&p, w, &rows.batch);
    head_loss(&p, w, NULL, 1);
    assert_int_equal(model_find_nonfinite(w), BAD + 1);
    assert_int_equal(copy_count, 0);
    workspace_free(w);
    adapter_free(h->adapter);
}

/* --- the planner ------------------------------------------------------------------------------------------------- */

static enum status plan(struct host_inputs *h, const char *way, double limit, struct memory_plan *p, struct err *e) {
    struct rows rows;
    struct settings s = {0};
    char *flags = mem_format(
             "{\"output_dir\": \"none\", \"gradient_checkpointing\": \"%s\", \"memory_limit\": \"%.0f\"}", way, limit),
         *path = training_path(&h->training, "c.yaml");
    cJSON *given = cJSON_Parse(flags);
    fill_rows(&rows, true);
    const struct batch_limits limits = limits_of(&rows);
    *p = (struct memory_plan){0};
    if (settings_read(&s, path, given, e) == ST_OK) memory_plan_make(p, h->model, h->adapter, &s, &limits, 0, F32, e);
    settings_free(&s);
    cJSON_Delete(given);
    free(flags), free(path);
    return e->code;
}

/* Bytes of a run that keeps so much. */
static double needed(struct host_inputs *h, const char *way) {
    struct memory_plan p;
    struct err e = {0};
    plan(h, way, 1e12, &p, &e);
    good(&e);
    double total = (double)p.total;
    memory_plan_free(&p);
    return total;
}

enum { INPUT = N * DIM * 4 }; // bytes, a multiple of ARENA_ALIGN

/* A limit so many bytes under what the inputs take wants `host` layers on the host; -1: it cannot be kept. */
static void check_plan(struct host_inputs *h, double under, int64_t host) {
    struct memory_plan p;
    struct err e = {0};
    struct text table = {0};
    double full = needed(h, "full");
    enum status st = plan(h, "auto", full - under, &p, &e);
    if (host < 0) {
        assert_int_equal(st, ST_FAIL);
        assert_non_null(strstr(e.text, "the limit is"));
        memory_plan_free(&p);
        return;
    }
    good(&e);
    assert_int_equal(p.kept_host, host);
    assert_int_equal(p.kept_input, LAYERS - host);
    for (int i = 0; i < LAYERS; i++) assert_int_equal(p.keep[i], i < host ? KEEP_HOST : KEEP_INPUT);
    assert_int_equal(p.host, host * INPUT);
    assert_int_equal(p.total, (int64_t)full - (host > HOST_TURNS ? host - HOST_TURNS : 0) * INPUT);
    memory_plan_text(&p, &table);
    assert_int_equal(strstr(text_str(&table), "on the host") != NULL, host > 0);
    text_free(&table);
    memory_plan_free(&p);
}

/* Two places stay on the device for the inputs to take turns in, so the third layer is the first to free any. */
static void test_planner(void **state) {
    struct host_inputs *h = *state;
    add_adapter(h);
    check_plan(h, 0, 0);
    check_plan(h, 1, -1); // memory of the host is no help for the host
    h->be->host_memory = false;
    check_plan(h, 0, 0);
    check_plan(h, 1, 3);
    check_plan(h, INPUT, 3);
    check_plan(h, INPUT + 1, 4);
    check_plan(h, 2 * INPUT, 4);
    check_plan(h, 2 * INPUT + 1, -1);
    adapter_free(h->adapter);
}

/* A training under such a limit. */
static void test_planned_training(void **state) {
    struct host_inputs *h = *state;
    struct memory_plan roomy, tight;
    struct err e = {0};
    add_adapter(h);
    play_device(h);
    double full = needed(h, "full");
    plan(h, "auto", 1e12, &roomy, &e);
    plan(h, "auto", full - 2 * INPUT, &tight, &e);
    good(&e);
    assert_int_equal(roomy.kept_smart, LAYERS);
    assert_int_equal(tight.kept_host, LAYERS);
    adapter_free(h->adapter);
    float *want = train(h, roomy.keep);
    check_same(h, tight.keep, want);
    free(want);
    memory_plan_free(&roomy), memory_plan_free(&tight);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, open_model, close_model)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_same_bits),
        TEST(test_not_finite),
        TEST(test_planner),
        TEST(test_planned_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Whole trainings on a CUDA device, or on the simulator of one, beside the same trainings on the CPU: the same losses,
 * gradients and adapters but for roundings, and the same bytes from run to run. Without a device everything here is
 * skipped.
 *
 * In f32 what differs is the order of sums: some 2^-24 in each, which a dozen layers and three steps grow to 1e-5 of a
 * loss. In bf16 a number between two roundings may go either way: 2^-9 of an activation, of which a mean over some
 * hundred tokens keeps a tenth; gradients are sums of few such, with less to hide in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "lora/plan.h"
#include "tests/compare.h"
#include "tests/training.h"

static const char PICTURES[] = "tests/golden/models/mllava-lora/config.yaml";

/* Where there is no device the running test ends here. */
static void need_device(void) {
    const char *wanted = getenv("GRAFT_TEST_DEVICE");
    struct err e = {0};
    struct backend *be = backend_new("cuda", 1, &e);
    backend_free(be);
    if (!be && wanted && strcmp(wanted, "cuda") == 0) fail_msg("%s", e.text);
    if (!be) skip();
}

static void close_logs(const struct training *t, const char *a, const char *b, double loss, double norm) {
    const struct field fields[] = {{"step", 0, 0}, {"loss", loss, 0}, {"eval_loss", loss, 0}, {"grad_norm", norm, 0}};
    cJSON *x = training_log(t, a), *y = training_log(t, b);
    assert_int_equal(cJSON_GetArraySize(x), cJSON_GetArraySize(y));
    for (const cJSON *p = x->child, *q = y->child; p; p = p->next, q = q->next)
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            const cJSON *want = json_get(p, fields[i].name), *got = json_get(q, fields[i].name);
            assert_true(!want == !got);
            if (want && !(fabs(got->valuedouble - want->valuedouble) <= fields[i].rel * fabs(want->valuedouble)))
                fail_msg("%s of step %g: %.9g, wanted %.9g", fields[i].name, json_get(p, "step")->valuedouble,
                         got->valuedouble, want->valuedouble);
        }
    cJSON_Delete(x), cJSON_Delete(y);
}

/* Tensors of two folders, to a part of their own size. */
static void close_tensors(const struct training *t, const char *a, const char *b, const char *file, double rel) {
    struct err e = {0};
    struct st_set sets[3] = {0};
    const char *folders[] = {a, b};
    for (int i = 0; i < 2 && e.code == ST_OK; i++) {
        char *name = path_join(folders[i], file), *path = training_path(t, name);
        st_open_file(&sets[i], path, &e);
        free(name), free(path);
    }
    if (e.code == ST_OK) compare_update(&sets[1], &sets[0], &sets[2], rel, &e);
    st_close(&sets[0]), st_close(&sets[1]);
    if (e.code != ST_OK) fail_msg("%s", e.text);
}

static void run_on(const struct training *t, const char *device, const char *flags, const char *out) {
    char *all = mem_format("--device %s --save_steps 1000 %s", device, flags);
    training_run(t, out, all, 0, NULL);
    free(all);
}

static void same_training(void **state, const char *flags, const char *file, double loss, double norm, double rel) {
    need_device();
    run_on(*state, "cpu", flags, "host");
    run_on(*state, "cuda", flags, "device");
    close_logs(*state, "host", "device", loss, norm);
    close_tensors(*state, "host", "device", file, rel);
}

static const char ADAPTER[] = "adapter_model.safetensors", MODEL[] = "model.safetensors";

static void test_lora(void **state) {
    same_training(state,
                  "--max_steps 3 --lora_dropout 0.2 --neftune_noise_alpha 5 --weight_decay 0.1 --eval_strategy steps "
                  "--eval_steps 3",
                  ADAPTER, 1e-5, 1e-4, 1e-3);
}

static void test_lora_bf16(void **state) {
    same_training(state, "--max_steps 3 --dtype bf16", ADAPTER, 5e-3, 5e-2, 0.1);
}

static void test_qlora(void **state) {
    same_training(state, "--max_steps 2 --quantization nf4", ADAPTER, 1e-5, 1e-4, 1e-3);
}

static void test_qlora_bf16(void **state) {
    same_training(state, "--max_steps 2 --quantization nf4 --dtype bf16", ADAPTER, 5e-3, 5e-2, 0.1);
}

static void test_dora(void **state) {
    same_training(state, "--max_steps 2 --use_dora true --lora_dropout 0.1", ADAPTER, 1e-5, 1e-4, 1e-3);
}

static void test_full(void **state) {
    same_training(state, "--max_steps 2 --finetuning_type full --learning_rate 0.001", MODEL, 1e-5, 1e-4, 1e-3);
}

/* Layers that run again give what they gave. */
static void test_checkpointing(void **state) {
    need_device();
    run_on(*state, "cuda", "--max_steps 2 --gradient_checkpointing none", "kept");
    run_on(*state, "cuda", "--max_steps 2 --gradient_checkpointing full", "again");
    training_same(*state, "kept/adapter_model.safetensors", "again/adapter_model.safetensors");
}

/* A number that `graft plan` says of a training on the device. */
static double planned(const struct training *t, const char *flags, const char *key) {
    struct command_result r;
    struct err e = {0};
    double value = 0;
    char *words = mem_format("plan c.yaml --output_dir none --device cuda --json %s", flags);
    training_graft(t, words, 120, &r);
    if (r.status != 0) fail_msg("graft %s: %s", words, text_str(&r.err));
    cJSON *o = json_parse(text_str(&r.out), r.out.len, words, &e);
    if (!o || json_num(o, words, key, -1, &value, &e) != ST_OK) fail_msg("%s", e.text);
    cJSON_Delete(o);
    command_free(&r);
    free(words);
    return value;
}

/* MiB of a simulated device; the caller frees it. */
static char *three_percent_more(const struct training *t, const char *flags) {
    return mem_format("%.0f", ceil(1.03 * planned(t, flags, "total") / 0x1p20));
}

/* Inputs that wait on the host come back as they were. A model of four layers, with a limit that all inputs together
 * are beyond, trains on a device (if it is the simulator's) of 3% more than the plan. */
static void test_host_inputs(void **state) {
    need_device();
    struct training *t = *state;
    training_done(t, "init llama-tiny --out tiny --quiet");
    const char *flags = "--model_name_or_path tiny --max_steps 2 --lora_dropout 0.1 --gradient_checkpointing";
    char *full = mem_format("%s full", flags), *kept = mem_format("%s none", flags);
    char *host = mem_format("%s auto --memory_limit %.0f", flags, planned(t, full, "total") - 1);
    assert_true(planned(t, host, "layers_kept_host") > 2);
    assert_true(planned(t, host, "host") > 0);
    run_on(t, "cuda", kept, "kept");
    char *more = three_percent_more(t, host);
    setenv("GRAFT_SIM_MEMORY", more, 1);
    run_on(t, "cuda", host, "waited");
    unsetenv("GRAFT_SIM_MEMORY");
    training_same(t, "kept/adapter_model.safetensors", "waited/adapter_model.safetensors");
    free(full), free(kept), free(host), free(more);
}

static void test_same_bytes_and_resume(void **state) {
    need_device();
    const char *flags =
        "--device cuda --max_steps 4 --lora_dropout 0.1 --save_steps 2 --save_total_limit 0 --dtype bf16";
    training_run(*state, "once", flags, 0, NULL);
    training_run(*state, "twice", flags, 0, NULL);
    training_same(*state, "once/adapter_model.safetensors", "twice/adapter_model.safetensors");
    char *resumed = mem_format("%s --resume_from_checkpoint once/checkpoint-2", flags);
    training_run(*state, "resumed", resumed, 0, NULL);
    training_same(*state, "once/adapter_model.safetensors", "resumed/adapter_model.safetensors");
    free(resumed);
}

/* A base with a vision tower, from the fixture's own config. */
static void test_pictures(void **state) {
    need_device();
    struct training *t = *state;
    static const char *const devices[] = {"cpu", "cuda"}, *const outs[] = {"host", "device"};
    for (int i = 0; i < 2; i++) {
        struct command_result r;
        char *words = mem_format("train %s/%s --quiet --dtype f32 --max_steps 1 --gradient_accumulation_steps 1 "
                                 "--device %s --output_dir %s/%s",
                                 t->here, PICTURES, devices[i], t->folder, outs[i]);
        training_graft(t, words, 600, &r);
        if (r.status) fail_msg("graft %s: %s", words, text_str(&r.err));
        free(words);
        command_free(&r);
    }
    close_logs(t, "host", "device", 1e-5, 1e-4);
    close_tensors(t, "host", "device", ADAPTER, 1e-3);
}

/* Pictures of other sizes, a perceiver between them and the text, DoRA. */
static void test_idefics2(void **state) {
    need_device();
    struct training *t = *state;
    training_put_data(t, "pictures.yaml", "mllava");
    training_done(t, "init idefics2-tiny --out tiny --quiet");
    same_training(state,
                  "--model_name_or_path tiny --data_config_file pictures.yaml --conv_template idefics_2 --max_steps 1 "
                  "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --use_dora true",
                  ADAPTER, 1e-5, 1e-4, 1e-3);
}

static bool is_simulated(const struct backend *be) { return strstr(backend_describe(be), "simulator") != NULL; }

/* Bytes that a device may hold beside the pieces it was asked for: 3%; and where it is a real one, what it rounds up a
 * dozen pieces by, pages of 2 MiB each, and as much for the code of kernels. */
static double slack(const struct backend *be, double held) {
    return 0.03 * held + (is_simulated(be) ? 0 : 2 * 12 * 0x1p21);
}

/* A backend holds what it says, within 3%; what a training adds to that lies in arenas that are measured to the byte. A
 * device with 3% more than the plan lets the training run; what does not fit is one sentence. Only the simulator's
 * memory can be set. */
static void test_memory(void **state) {
    need_device();
    const char *flags = "--quantization nf4 --per_device_train_batch_size 8 --gradient_checkpointing smart";
    struct err e = {0};
    training_run(*state, "none", "--device cuda --memory_limit 1000000", 1, "the limit is");
    struct backend *first = backend_new("cuda", 1, &e);
    size_t before = backend_memory_free(first);
    struct backend *second = backend_new("cuda", 1, &e);
    double held = (double)before - (double)backend_memory_free(first);
    if (!(fabs(held - (double)second->own_bytes) <= slack(first, held)))
        fail_msg("a backend holds %.0f bytes and says %zu", held, second->own_bytes);
    bool simulated = is_simulated(first);
    backend_free(first), backend_free(second);
    if (!simulated) return;
    char *more = three_percent_more(*state, flags);
    char *run = mem_format("--device cuda --max_steps 1 %s", flags);
    setenv("GRAFT_SIM_MEMORY", more, 1);
    training_run(*state, "fits", run, 0, NULL);
    setenv("GRAFT_SIM_MEMORY", "50", 1);
    training_run(*state, "fails", run, 1, "MiB of the memory of cuda:0 wanted");
    unsetenv("GRAFT_SIM_MEMORY");
    free(more), free(run);
}

/* The plan of a training under c.yaml and these flags. */
static struct memory_plan plan_of(const struct training *t, const struct adapter *a, const struct batch_limits *limits,
                                  const char *flags) {
    struct memory_plan p = {0};
    struct settings s = {0};
    struct err e = {0};
    cJSON *given = cJSON_Parse(flags);
    char *path = training_path(t, "c.yaml");
    if (settings_read(&s, path, given, &e) != ST_OK ||
        memory_plan_make(&p, a->model, a, &s, limits, 0, F32, &e) != ST_OK)
        fail_msg("%s", e.text);
    settings_free(&s);
    cJSON_Delete(given);
    free(path);
    return p;
}

/* What a model of four layers, its adapter and a workspace for long rows take of a device, when a byte less than the
 * inputs of all layers ask for is allowed: within 3% of the plan. Nothing runs. */
static void test_host_inputs_memory(void **state) {
    need_device();
    enum { LAYERS = 4, DIM = 128, N = 8000, INPUT = N * DIM * 4 };
    struct training *t = *state;
    struct err e = {0};
    training_done(t, "init llama-tiny --out tiny --quiet");
    struct backend *first = backend_new("cuda", 1, &e), *be;
    size_t before = backend_memory_free(first);
    struct model *m = NULL;
    struct adapter *a = NULL;
    struct workspace *w = NULL;
    const struct load_options load = {.quantize = {.type = F32}};
    const struct adapter_options adapter = {.r = 4, .alpha = 8};
    const struct batch_limits limits = {.N = N, .rows = 1, .scored = 100, .longest = N};
    char *dir = training_path(t, "tiny");
    be = backend_new("cuda", 1, &e);
    if (!be || model_load(&m, dir, be, &load, &e) != ST_OK || adapter_new(&a, m, &adapter, &e) != ST_OK)
        fail_msg("%s", e.text);
    struct memory_plan full = plan_of(t, a, &limits, "{\"gradient_checkpointing\": \"full\", \"output_dir\": \"x\"}");
    char *less = mem_format("{\"memory_limit\": \"%zu\", \"output_dir\": \"x\"}", full.total - 2 * (size_t)INPUT);
    struct memory_plan plan = plan_of(t, a, &limits, less);
    assert_int_equal(plan.kept_host, LAYERS);
    assert_int_equal(plan.host, LAYERS * INPUT);
    assert_int_equal(plan.table, tensor_bytes(&m->embed)); // which the weights that are planned for are without
    const struct workspace_options o = {.limits = limits, .train = true, .act = F32, .keep = plan.keep};
    if (workspace_new(&w, m, &o, &e) != ST_OK) fail_msg("%s", e.text);
    double held = (double)before - (double)backend_memory_free(first);
    if (!(fabs(held - (double)plan.total) <= slack(first, held)))
        fail_msg("%.0f bytes of the device are held, %zu were planned", held, plan.total);
    workspace_free(w), adapter_free(a), model_free(m);
    backend_free(be), backend_free(first);
    memory_plan_free(&full), memory_plan_free(&plan);
    free(dir), free(less);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TRAINING_TEST(test_lora),
        TRAINING_TEST(test_lora_bf16),
        TRAINING_TEST(test_qlora),
        TRAINING_TEST(test_qlora_bf16),
        TRAINING_TEST(test_dora),
        TRAINING_TEST(test_full),
        TRAINING_TEST(test_checkpointing),
        TRAINING_TEST(test_host_inputs),
        TRAINING_TEST(test_same_bytes_and_resume),
        TRAINING_TEST(test_pictures),
        TRAINING_TEST(test_idefics2),
        TRAINING_TEST(test_memory),
        TRAINING_TEST(test_host_inputs_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

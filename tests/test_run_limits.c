/* Trainings that meet the world: numbers that are not finite, a disk that takes no more, bad rows, more memory than was
 * planned; and what a run leaves behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "tests/folder.h"
#include "tests/training.h"

static void assert_holds(const struct training *t, const char *name, const char *part) {
    struct err e = {0};
    char *path = training_path(t, name), *data;
    size_t size;
    if (file_read(path, &data, &size, &e) != ST_OK) fail_msg("%s", e.text);
    if (!strstr(data, part)) fail_msg("%s does not hold \"%s\"", name, part);
    free(path), free(data);
}

/* --- not finite -------------------------------------------------------------------------------------------------- */

static void test_diverges(void **state) {
    struct training *t = *state;
    static const char *const ways[] = {"", "--packing false", "--gradient_checkpointing full", "--use_dora true"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct st_set set;
        char *out = mem_format("out%zu", i), *flags = mem_format("--learning_rate 1e30 --save_steps 1 %s", ways[i]);
        for (int again = 0; again < 2; again++) { // the checkpoint of step 1 is whole, and leads to the same sentence
            training_run(t, out, flags, 1, "step 2: loss nan, gradient norm nan, first seen in layer ");
            training_run(t, out, flags, 1, ", rows r");
        }
        char *checkpoint = path_join(out, "checkpoint-1/adapter_model.safetensors");
        training_tensors(t, checkpoint, &set);
        st_close(&set);
        char *adapter = path_join(out, "adapter_model.safetensors");
        assert_false(training_has(t, adapter));
        training_no_partial(t, out);
        free(out), free(flags), free(checkpoint), free(adapter);
    }
}

static void test_poisoned_adapter(void **state) {
    struct training *t = *state;
    training_run(t, "first", "--max_steps 2", 0, NULL);
    char *path = training_path(t, "first/adapter_model.safetensors");
    FILE *f = fopen(path, "r+b");
    const unsigned char nan[] = {0, 0, 0xc0, 0x7f};
    assert_non_null(f);
    assert_int_equal(fseek(f, -4, SEEK_END), 0);
    assert_int_equal(fwrite(nan, 1, 4, f), 4);
    assert_int_equal(fclose(f), 0);
    free(path);
    training_run(t, "out", "--init_adapter first", 1, "step 1: loss nan");
    assert_false(training_has(t, "out/adapter_model.safetensors"));
}

/* An adapter goes on only as what it is: the same tensors with another scale would be another adapter. */
static void test_adapter_of_another_meaning(void **state) {
    struct training *t = *state;
    training_run(t, "first", "--max_steps 2 --lora_alpha 6", 0, NULL);
    training_run(t, "same", "--init_adapter first --max_steps 1 --lora_alpha 6", 0, NULL);
    training_run(t, "out", "--init_adapter first --lora_alpha 7", 1, "lora_alpha 6, the run has 7");
    training_run(t, "out", "--init_adapter first --lora_alpha 6 --use_rslora true", 1, "use_rslora");
    assert_false(training_has(t, "out"));
}

/* --- a disk that takes no more ----------------------------------------------------------------------------------- */

static void check_whole_files(const struct training *t, const char *out) {
    static const char *const tensors[] = {"adapter_model.safetensors", "checkpoint-3/adapter_model.safetensors",
                                          "checkpoint-3/optimizer.safetensors"};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        struct st_set set;
        char *name = path_join(out, tensors[i]);
        if (training_has(t, name)) {
            training_tensors(t, name, &set);
            st_close(&set);
        }
        free(name);
    }
}

static void test_full_disk(void **state) {
    struct training *t = *state;
    struct rlimit before, less;
    training_run(t, "whole", "", 0, NULL);
    char *path = training_path(t, "whole/checkpoint-12/optimizer.safetensors");
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN); // writing fails with EFBIG then
    for (int i = 0; i < 8; i++) {
        char *out = mem_format("out%d", i);
        less = before, less.rlim_cur = (rlim_t)((double)s.st_size * i / 8);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &less), 0);
        training_run(t, out, "", 1, "cannot write");
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        training_no_partial(t, out);
        check_whole_files(t, out);
        training_run(t, out, "", 0, NULL); // there is room again
        char *a = path_join(out, "adapter_model.safetensors");
        training_same(t, "whole/adapter_model.safetensors", a);
        free(out), free(a);
    }
    signal(SIGXFSZ, old);
    free(path);
    training_put(t, "file", "");
    training_run(t, "file/out", "", 1, "cannot make the folder");
    training_run(t, "/proc/graft", "", 1, "cannot make the folder");
}

/* --- rows and settings ------------------------------------------------------------------------------------------- */

static void test_bad_rows(void **state) {
    struct training *t = *state;
    training_put(t, "some.jsonl",
                 "{\"id\": \"good\", \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", "
                 "\"value\": \"b\"}]}\n{\"id\": \"bad\"}\n");
    training_put(t, "some.yaml", "data:\n- {path: some.jsonl, name: s, split: train, format: chat, type: json}\n");
    training_run(t, "stop", "--data_config_file some.yaml", 1, "some.jsonl");
    assert_false(training_has(t, "stop"));
    training_run(t, "skip", "--data_config_file some.yaml --on_bad_row skip", 0, NULL);
}

static void test_usage(void **state) {
    struct training *t = *state;
    training_run(t, "out", "--lora_rnak 3", 2, "unknown flag --lora_rnak");
    training_run(t, "out", "--lora_r 2e-4x", 2, "wanted a whole number");
    training_run(t, "out", "--warmup_ratio 3", 2, "warmup_ratio is 3");
    training_put(t, "bad.yaml", "model_name_or_path: m\nlerning_rate: 3\n");
    struct command_result r;
    training_graft(t, "train bad.yaml", 60, &r);
    assert_int_equal(r.status, 2);
    assert_non_null(strstr(text_str(&r.err), "bad.yaml: unknown key lerning_rate; did you mean learning_rate?"));
    command_free(&r);
    assert_false(training_has(t, "out"));
}

/* A micro-batch without a scored token counts as 0, not as NaN; a row that max_seq_len leaves no answer of. */
static void test_nothing_scored(void **state) {
    struct training *t = *state;
    training_put(
        t, "cut.jsonl",
        "{\"id\": \"long\", \"conversations\": [{\"from\": \"human\", \"value\": \"amber kettle rocket orchard violet "
        "marble tunnel amber kettle rocket orchard violet marble tunnel\"}, {\"from\": \"gpt\", \"value\": "
        "\"b\"}]}\n"
        "{\"id\": \"short\", \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", "
        "\"value\": \"b\"}]}\n");
    training_put(t, "cut.yaml", "data:\n- {path: cut.jsonl, name: s, split: train, format: chat, type: json}\n");
    static const char *const ways[] = {"tokens", "micro_batch"};
    double loss[2];
    for (int i = 0; i < 2; i++) {
        char *flags = mem_format("--data_config_file cut.yaml --max_seq_len 81 --conv_template llama_3 "
                                 "--per_device_train_batch_size 1 --shuffle "
                                 "false --max_steps 2 --loss_normalization %s",
                                 ways[i]);
        training_run(t, ways[i], flags, 0, NULL);
        loss[i] = training_loss(t, ways[i], 1);
        free(flags);
    }
    assert_true(loss[0] > 0.1 && fabs(loss[0] - 2 * loss[1]) <= 1e-6 * loss[0]);
    training_run(t, "none", "--data_config_file cut.yaml --conv_template llama_3 --max_seq_len 5", 1,
                 "no row of the train split");
    assert_false(training_has(t, "none"));
}

static void test_options(void **state) {
    struct training *t = *state;
    struct st_set got, base;
    training_run(t, "plain", "", 0, NULL);
    training_run(t, "window", "--attn_window 3", 0, NULL);
    assert_true(training_loss(t, "plain", 1) != training_loss(t, "window", 1));
    training_run(t, "noise", "--neftune_noise_alpha 20", 0, NULL);
    assert_true(training_loss(t, "plain", 1) != training_loss(t, "noise", 1));
    training_run(t, "frozen", "--freeze .*layers\\.0.*", 0, NULL);
    training_tensors(t, "frozen/adapter_model.safetensors", &got);
    for (size_t i = 0; i < got.count; i++) assert_null(strstr(got.entries[i].name, "layers.0"));
    st_close(&got);
    training_run(t, "head", "--modules_to_save [lm_head] --head_learning_rate 0", 0, NULL);
    char *path = mem_format("%s/%s/model.safetensors", t->here, LLAMA);
    training_tensors(t, path, &base);
    for (int moved = 0; moved < 2; moved++) {
        if (moved) training_run(t, "head2", "--modules_to_save [lm_head] --head_learning_rate 0.001", 0, NULL);
        training_tensors(t, moved ? "head2/adapter_model.safetensors" : "head/adapter_model.safetensors", &got);
        const struct st_entry *a = st_find(&got, "base_model.model.lm_head.weight"),
                              *b = st_find(&base, "lm_head.weight");
        assert_true(a && b && a->bytes == b->bytes);
        assert_int_equal(memcmp(a->data, b->data, a->bytes) != 0, moved);
        st_close(&got);
    }
    st_close(&base);
    free(path);
}

/* --- what is left ------------------------------------------------------------------------------------------------ */

static void test_what_is_left(void **state) {
    struct training *t = *state;
    struct err e = {0};
    training_run(t, "out", "--report_to [jsonl,tensorboard] --eval_strategy epoch --run_name Evening", 0, NULL);
    assert_holds(t, "out/README.md", "# Evening");
    assert_holds(t, "out/README.md", "PeftModel");
    assert_holds(t, "out/README.md", "learning\\_rate");
    assert_holds(t, "out/report.html", "<svg");
    assert_holds(t, "out/report.html", "Evening");
    assert_holds(t, "out/checkpoint-12/trainer_state.json", "\"global_step\": 12");
    assert_holds(t, "out/config.yaml", "learning_rate: 0.01");
    char *runs = training_path(t, "out/runs"), **names;
    size_t n;
    assert_int_equal(dir_list(runs, &names, &n, &e), ST_OK);
    assert_true(n == 1 && text_starts(names[0], "events.out.tfevents."));
    names_free(names, n);
    free(runs);
    training_done(t, "train out/config.yaml --output_dir again --dtype f32 --device cpu --quiet");
    training_same(t, "out/adapter_model.safetensors", "again/adapter_model.safetensors");
}

/* --- the plan against the machine -------------------------------------------------------------------------------- */

enum { DIM = 512, FFN = 1376, VOCAB = 8000, HEADS = 8, LAYERS = 2 };

static void add_matrix(struct st_entry *out, const char *name, int64_t rows, int64_t cols) {
    int64_t n = rows * (cols ? cols : 1);
    float *x = mem_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = cols ? 0.03f * (float)rng_normal(7, rng_stream(name), (uint64_t)i) : 1;
    *out = (struct st_entry){.name = name,
                             .type = ST_F32,
                             .rank = cols ? 2 : 1,
                             .dim = {rows, cols},
                             .data = x,
                             .bytes = (size_t)n * sizeof *x};
}

/* A Llama of two wide layers with the tiny model's tokenizer. */
static void put_wide_model(const struct training *t) {
    static const struct {
        const char *name;
        int64_t rows, cols;
    } parts[] = {{"self_attn.q_proj", DIM, DIM}, {"self_attn.k_proj", DIM, DIM}, {"self_attn.v_proj", DIM, DIM},
                 {"self_attn.o_proj", DIM, DIM}, {"mlp.gate_proj", FFN, DIM},    {"mlp.up_proj", FFN, DIM},
                 {"mlp.down_proj", DIM, FFN},    {"input_layernorm", DIM, 0},    {"post_attention_layernorm", DIM, 0}};
    enum { PARTS = sizeof parts / sizeof *parts, TENSORS = LAYERS * PARTS + 3 };
    struct st_entry entries[TENSORS];
    struct err e = {0};
    char *names[LAYERS * PARTS], *dir = training_path(t, "wide");
    assert_int_equal(dir_make(dir, &e), ST_OK);
    for (int i = 0; i < LAYERS * PARTS; i++) {
        names[i] = mem_format("model.layers.%d.%s.weight", i / PARTS, parts[i % PARTS].name);
        add_matrix(&entries[i], names[i], parts[i % PARTS].rows, parts[i % PARTS].cols);
    }
    add_matrix(&entries[TENSORS - 3], "model.embed_tokens.weight", VOCAB, DIM);
    add_matrix(&entries[TENSORS - 2], "lm_head.weight", VOCAB, DIM);
    add_matrix(&entries[TENSORS - 1], "model.norm.weight", DIM, 0);
    char *path = path_join(dir, "model.safetensors");
    if (st_write(path, entries, TENSORS, &e) != ST_OK) fail_msg("%s", e.text);
    for (int i = 0; i < TENSORS; i++) free((void *)entries[i].data);
    for (int i = 0; i < LAYERS * PARTS; i++) free(names[i]);
    free(path);
    char *config =
        mem_format("{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": %d, "
                   "\"intermediate_size\": %d, \"num_hidden_layers\": %d, \"num_attention_heads\": %d, "
                   "\"num_key_value_heads\": %d, \"vocab_size\": %d, \"hidden_act\": \"silu\", \"rms_norm_eps\": "
                   "1e-5, \"tie_word_embeddings\": false, \"torch_dtype\": \"float32\", \"bos_token_id\": 294, "
                   "\"eos_token_id\": 298, \"max_position_embeddings\": 2048}",
                   DIM, FFN, LAYERS, HEADS, HEADS, VOCAB);
    training_put(t, "wide/config.json", config);
    static const char *const copied[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char *from = mem_format("%s/%s/%s", t->here, LLAMA, copied[i]), *to = path_join(dir, copied[i]);
        copy_file(from, to);
        free(from), free(to);
    }
    free(config), free(dir);
}

static void put_long_rows(const struct training *t) {
    struct text all = {0};
    for (int i = 0; i < 8; i++) {
        text_addf(&all,
                  "{\"id\": %d, \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", "
                  "\"value\": \"",
                  i);
        for (int j = 0; j < 60; j++) text_add(&all, "amber kettle ");
        text_add(&all, "\"}]}\n");
    }
    training_put(t, "long.jsonl", text_str(&all));
    training_put(t, "long.yaml", "data:\n- {path: long.jsonl, name: s, split: train, format: chat, type: json}\n");
    text_free(&all);
}

static double peak_of(const struct training *t, const char *out, const char *flags) {
    pid_t child = training_start(t, out, flags);
    struct rusage u;
    int how = 0;
    while (wait4(child, &how, 0, &u) < 0) {}
    if (!WIFEXITED(how) || WEXITSTATUS(how) != 0) fail_msg("train %s: status %d", flags, how);
    return (double)u.ru_maxrss * 1024;
}

/* What two runs differ by in the plan is what they differ by on the machine; the frozen weights are read by both. */
static void test_plan_is_what_happens(void **state) {
    struct training *t = *state;
    put_wide_model(t);
    put_long_rows(t);
    const char *common = "--model_name_or_path wide --data_config_file long.yaml --max_steps 1 "
                         "--gradient_accumulation_steps 1 --gradient_checkpointing none";
    const char *sizes[] = {"--per_device_train_batch_size 1 --lora_r 1 --max_seq_len 8",
                           "--per_device_train_batch_size 2 --lora_r 64 --max_seq_len 0"};
    double plan[2], peak[2];
    for (int i = 0; i < 2; i++) {
        char *flags = mem_format("%s %s", common, sizes[i]);
        char *words = mem_format("plan c.yaml --output_dir none --device cpu --dtype f32 --json %s", flags);
        char *out = mem_format("out%d", i);
        cJSON *o = training_json(t, words);
        plan[i] = json_get(o, "activations")->valuedouble + json_get(o, "adapter")->valuedouble;
        peak[i] = peak_of(t, out, flags);
        cJSON_Delete(o);
        free(flags), free(words), free(out);
    }
    double planned = plan[1] - plan[0], grown = peak[1] - peak[0];
    print_message("planned %.1f MB, grown %.1f MB\n", planned / 1e6, grown / 1e6);
    if (!(fabs(grown - planned) <= 0.1 * planned + 15e6))
        fail_msg("planned %.1f MB more, the process grew by %.1f MB", planned / 1e6, grown / 1e6);
    assert_true(planned > 50e6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TRAINING_TEST(test_diverges),
        TRAINING_TEST(test_poisoned_adapter),
        TRAINING_TEST(test_adapter_of_another_meaning),
        TRAINING_TEST(test_full_disk),
        TRAINING_TEST(test_bad_rows),
        TRAINING_TEST(test_usage),
        TRAINING_TEST(test_nothing_scored),
        TRAINING_TEST(test_options),
        TRAINING_TEST(test_what_is_left),
        TRAINING_TEST(test_plan_is_what_happens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

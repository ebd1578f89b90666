/* A training that is killed, stopped, given other threads, other memory or a broken checkpoint: either the same bytes
 * as a run that nothing disturbed, or one sentence that says why not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "tests/training.h"

/* Everything random and everything that has a state of its own. */
static const char NOISY[] = "--lora_dropout 0.2 --use_dora true --neftune_noise_alpha 5 --weight_decay 0.1 "
                            "--warmup_steps 2 --lr_scheduler_type cosine --max_steps 14 --save_steps 2 "
                            "--eval_strategy steps --eval_steps 3 --load_best_model_at_end true --save_total_limit 1";

static void wait_ms(double ms) {
    struct timespec pause = {(time_t)(ms / 1000), (long)(fmod(ms, 1000) * 1e6)};
    nanosleep(&pause, NULL);
}

static void same_adapter(const struct training *t, const char *a, const char *b) {
    char *x = path_join(a, "adapter_model.safetensors"), *y = path_join(b, "adapter_model.safetensors");
    training_same(t, x, y);
    free(x), free(y);
}

/* Steps 1, 2, ... once each, with the same losses to the last bit. */
static void same_log(const struct training *t, const char *a, const char *b) {
    cJSON *x = training_log(t, a), *y = training_log(t, b);
    assert_int_equal(cJSON_GetArraySize(x), cJSON_GetArraySize(y));
    for (const cJSON *p = x->child, *q = y->child; p; p = p->next, q = q->next) {
        static const char *const keys[] = {"step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens"};
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            const cJSON *v = json_get(p, keys[i]), *w = json_get(q, keys[i]);
            assert_true(!v == !w);
            if (v && !(v->valuedouble == w->valuedouble))
                fail_msg("%s: %.17g, wanted %.17g", keys[i], v->valuedouble, w->valuedouble);
        }
    }
    cJSON_Delete(x), cJSON_Delete(y);
}

/* --- killed ------------------------------------------------------------------------------------------------------ */

/* Whether something half-written lies in a folder of the test. */
static bool is_writing(const struct training *t, const char *out) {
    struct err e = {0};
    char *dir = training_path(t, out), **names;
    size_t n;
    bool found = false;
    if (dir_exists(dir) && dir_list(dir, &names, &n, &e) == ST_OK) {
        for (size_t i = 0; i < n; i++) found |= strstr(names[i], ".partial") != NULL;
        names_free(names, n);
    }
    free(dir);
    return found;
}

/* True when the run ended by itself before the moment came. */
static bool ended(pid_t child, int *state) { return waitpid(child, state, WNOHANG) == child; }

static void kill_now(pid_t child, int *state) {
    kill(child, SIGKILL);
    while (waitpid(child, state, 0) < 0) {}
}

static void test_killed_at_any_moment(void **state) {
    struct training *t = *state;
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    training_run(t, "calm", NOISY, 0, NULL);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double ms = 1e3 * (double)(to.tv_sec - from.tv_sec) + 1e-6 * (double)(to.tv_nsec - from.tv_nsec);
    unsigned random = 12345;
    int kills = 0, how = 0;
    for (int i = 0; i < 60 && kills < 15; i++) {
        pid_t child = training_start(t, "killed", NOISY);
        random = random * 1103515245u + 12345u;
        wait_ms(ms * (double)(random >> 16) / 65536);
        if (ended(child, &how)) continue; // it was faster; the next one begins at its last checkpoint
        kill_now(child, &how);
        kills++;
    }
    training_run(t, "killed", NOISY, 0, NULL);
    assert_true(kills > 0);
    same_adapter(t, "calm", "killed");
    same_log(t, "killed", "calm");
    training_no_partial(t, "killed");
}

static void test_killed_while_it_writes(void **state) {
    struct training *t = *state;
    training_run(t, "calm", NOISY, 0, NULL);
    int kills = 0, how = 0;
    for (int i = 0; i < 25; i++) {
        pid_t child = training_start(t, "killed", NOISY);
        wait_ms(4.0 * i); // beyond the first files, so that each run is caught later
        bool done = false;
        while (!(done = ended(child, &how)) && !is_writing(t, "killed")) {}
        if (done) break;
        wait_ms(0.4 * (i % 6));
        kill_now(child, &how);
        kills += is_writing(t, "killed");
    }
    assert_true(kills > 0);
    training_run(t, "killed", NOISY, 0, NULL);
    same_adapter(t, "calm", "killed");
    same_log(t, "killed", "calm");
    training_no_partial(t, "killed");
}

/* A val split of other characters, which is the worse predicted the better the rows are learnt. */
static void put_odd_val(const struct training *t) {
    training_put(t, "odd.jsonl",
                 "{\"id\": \"o\", \"conversations\": [{\"from\": \"human\", \"value\": \"7\"}, "
                 "{\"from\": \"gpt\", \"value\": \"+[3,141] XYZ 59 {26}\"}]}\n");
    training_put(t, "odd.yaml",
                 "data:\n"
                 "- {path: rows.jsonl, name: rows, split: train, format: chat, type: json}\n"
                 "- {path: odd.jsonl, name: odd, split: val, format: chat, type: json}\n");
}

/* The run stops early, and was killed when the checkpoint of that step was there but nothing else. */
static void test_early_stop_resumes(void **state) {
    struct training *t = *state;
    put_odd_val(t);
    const char *flags =
        "--data_config_file odd.yaml --max_steps 30 --eval_strategy steps --eval_steps 2 --early_stopping_patience 2 "
        "--learning_rate 0.05 --save_steps 2 --save_total_limit 0";
    training_run(t, "calm", flags, 0, NULL);
    cJSON *log = training_log(t, "calm");
    int64_t last = (int64_t)json_get(log->child->prev, "step")->valuedouble;
    cJSON_Delete(log);
    assert_true(last < 30 && last >= 4);
    training_run(t, "again", flags, 0, NULL);
    char *adapter = training_path(t, "again/adapter_model.safetensors");
    assert_int_equal(unlink(adapter), 0);
    free(adapter);
    training_run(t, "again", flags, 0, NULL);
    same_adapter(t, "calm", "again");
    same_log(t, "again", "calm");
}

/* --- asked to stop ----------------------------------------------------------------------------------------------- */

static void test_signals(void **state) {
    struct training *t = *state;
    const char *flags = "--lora_dropout 0.1 --max_steps 60 --save_steps 1000";
    training_run(t, "calm", flags, 0, NULL);
    const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        char *out = mem_format("signal%d", i), *log = path_join(out, "log.jsonl");
        pid_t child = training_start(t, out, flags);
        int how = 0;
        while (!training_has(t, log)) wait_ms(1);
        kill(child, signals[i]);
        while (waitpid(child, &how, 0) < 0) {}
        assert_true(WIFEXITED(how));
        assert_int_equal(WEXITSTATUS(how), 128 + signals[i]);
        char *adapter = path_join(out, "adapter_model.safetensors");
        assert_false(training_has(t, adapter));
        training_run(t, out, flags, 0, NULL);
        same_adapter(t, "calm", out);
        same_log(t, out, "calm");
        training_no_partial(t, out);
        free(adapter), free(out), free(log);
    }
}

/* --- the same numbers however it is done ------------------------------------------------------------------------- */

static void test_same_bytes(void **state) {
    struct training *t = *state;
    const char *noise = "--lora_dropout 0.1 --use_dora true --neftune_noise_alpha 5 --max_steps 5 --save_steps 1000";
    const char *ways[] = {"--threads 1",
                          "--threads 2",
                          "--threads 3",
                          "--gradient_checkpointing none",
                          "--gradient_checkpointing smart",
                          "--gradient_checkpointing full",
                          "--dataloader_num_workers 1",
                          "--dataloader_num_workers 3"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        char *out = mem_format("way%zu", i), *flags = mem_format("%s %s", noise, ways[i]);
        training_run(t, out, flags, 0, NULL);
        same_adapter(t, "way0", out);
        free(out), free(flags);
    }
}

/* Values of a key of `graft plan --json`. */
static double planned(const struct training *t, const char *flags, const char *key) {
    struct err e = {0};
    char *words = mem_format("plan c.yaml --output_dir none --device cpu --dtype f32 --json %s", flags);
    cJSON *o = training_json(t, words);
    double v = 0;
    if (json_num(o, words, key, -1, &v, &e) != ST_OK) fail_msg("%s", e.text);
    cJSON_Delete(o);
    free(words);
    return v;
}

/* Between what everything but the cheap takes and what inputs alone take, some layers run again. */
static void test_memory_limit(void **state) {
    struct training *t = *state;
    double smart = planned(t, "--gradient_checkpointing smart", "total");
    double full = planned(t, "--gradient_checkpointing full", "total");
    assert_true(full < smart);
    char *flags = mem_format("--memory_limit %.0f", (smart + full) / 2),
         *little = mem_format("--memory_limit %.0f", full / 2);
    assert_true(planned(t, flags, "layers_kept_input") > 0);
    training_run(t, "free", "", 0, NULL);
    training_run(t, "tight", flags, 0, NULL);
    same_adapter(t, "free", "tight");
    training_run(t, "none", little, 1, "the limit is");
    assert_false(training_has(t, "none"));
    free(flags), free(little);
}

static void test_packing(void **state) { training_packed_or_not(*state, ""); }

/* --- resuming ---------------------------------------------------------------------------------------------------- */

/* Two trainings would write over each other's checkpoints and log. */
static void test_one_at_a_time(void **state) {
    struct training *t = *state;
    char *out = training_path(t, "out");
    training_run(t, "out", "--max_steps 1", 0, NULL);
    int fd = open(out, O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    training_run(t, "out", "--max_steps 1", 1, "another training");
    close(fd);
    training_run(t, "out", "--max_steps 1", 0, NULL);
    free(out);
}

/* What is there already is said before anything is written over. */
static void test_says_where_it_begins(void **state) {
    static const struct {
        const char *flags, *says;
    } runs[] = {
        {"--max_steps 2", "2 of 4 rows in 2 micro-batches\n"},
        {"--max_steps 2", "holds an earlier run, which is replaced"},
        {"--max_steps 3 --save_steps 3", "holds an earlier run, which is replaced"},
        {"--max_steps 3 --save_steps 3", "all done before (out/checkpoint-3)"},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char *words = mem_format("train c.yaml --device cpu --output_dir out --save_steps 100 %s", runs[i].flags);
        struct command_result r;
        training_graft(*state, words, 60, &r);
        assert_int_equal(r.status, 0);
        if (!strstr(text_str(&r.err), runs[i].says)) fail_msg("%s: %s", words, text_str(&r.err));
        command_free(&r);
        free(words);
    }
}

static void test_resume_refuses(void **state) {
    struct training *t = *state;
    training_run(t, "out", "", 0, NULL);
    training_run(t, "out", "--learning_rate 0.02", 1, "learning_rate (was 0.01");
    training_run(t, "out", "--dtype bf16", 1, "dtype (was f32, is bf16)");
    training_run(t, "out", "--resume_from_checkpoint false", 1, "checkpoint-12");
    char *model = mem_format("--model_name_or_path %s/tests/golden/models/qwen2/model", t->here);
    training_run(t, "out", model, 1, "the base model");
    free(model);
    training_put(t, "other.yaml", "data:\n- {path: val.jsonl, name: r, split: train, format: chat, type: json}\n");
    training_run(t, "out", "--data_config_file other.yaml", 1, "the data");
    training_run(t, "out", "--save_steps 4 --logging_steps 2 --run_name x --gradient_checkpointing full", 0, NULL);
    training_run(t, "elsewhere", "--resume_from_checkpoint out/checkpoint-9", 0, NULL);
    same_adapter(t, "out", "elsewhere");
    training_run(t, "nowhere", "--resume_from_checkpoint out/checkpoint-7", 1, "out/checkpoint-7/graft_state.json");
    assert_false(training_has(t, "nowhere"));
}

/* The second row has no pictures: what only they train has done fewer steps than the rest, and goes on so. */
static void test_resume_behind_a_step_without_pictures(void **state) {
    (void)state;
    struct training t;
    training_open(&t, "tests/golden/models/mllava-clip/model");
    training_put_data(&t, "pictures.yaml", "mllava-clip-suffix");
    const char *flags =
        "--data_config_file pictures.yaml --conv_template llama_3 --target_modules .*(q_proj|fc1) --max_steps 5 "
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --shuffle false --save_steps 3";
    char *resumed = mem_format("%s --resume_from_checkpoint out/checkpoint-3", flags);
    training_run(&t, "out", flags, 0, NULL);
    training_run(&t, "elsewhere", resumed, 0, NULL);
    same_adapter(&t, "out", "elsewhere");
    free(resumed);
    training_close(&t);
}

static void cut_file(const struct training *t, const char *name, off_t size) {
    char *path = training_path(t, name);
    assert_int_equal(truncate(path, size), 0);
    free(path);
}

static void test_damaged_checkpoint(void **state) {
    struct training *t = *state;
    static const char *const files[] = {"optimizer.safetensors", "adapter_model.safetensors", "adapter_config.json",
                                        "graft_state.json"};
    training_run(t, "whole", "", 0, NULL);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        for (int gone = 0; gone < 2; gone++) {
            char *out = mem_format("damaged%zu%d", i, gone), *name = mem_format("%s/checkpoint-12/%s", out, files[i]);
            training_run(t, out, "", 0, NULL);
            char *path = training_path(t, name);
            if (gone)
                unlink(path);
            else
                cut_file(t, name, 30);
            training_run(t, out, "", 1, files[i]);
            free(out), free(name), free(path);
        }
}

/* --- the best ---------------------------------------------------------------------------------------------------- */

static void test_best_and_limit(void **state) {
    struct training *t = *state;
    put_odd_val(t);
    training_run(t, "out",
                 "--data_config_file odd.yaml --max_steps 16 --learning_rate 0.05 --eval_strategy steps --eval_steps 2 "
                 "--load_best_model_at_end true "
                 "--save_steps 2 --save_total_limit 1",
                 0, NULL);
    cJSON *log = training_log(t, "out");
    double best = INFINITY;
    int64_t step = 0;
    int evaluations = 0;
    for (const cJSON *line = log->child; line; line = line->next) {
        const cJSON *v = json_get(line, "eval_loss");
        evaluations += v != NULL;
        if (v && v->valuedouble < best) best = v->valuedouble, step = (int64_t)json_get(line, "step")->valuedouble;
    }
    cJSON_Delete(log);
    assert_int_equal(evaluations, 8);
    assert_true(step > 0 && step < 16);
    char *dir = mem_format("out/checkpoint-%lld", (long long)step);
    same_adapter(t, "out", dir);
    for (int i = 2; i <= 16; i += 2) {
        char *other = mem_format("out/checkpoint-%d", i);
        assert_int_equal(training_has(t, other), i == step || i == 16);
        free(other);
    }
    free(dir);
    training_run(t, "epochs", "--eval_strategy epoch --max_steps 6", 0, NULL); // 24 of 11 rows: steps 3, 6
    log = training_log(t, "epochs");
    int64_t at[2] = {0}, n = 0;
    for (const cJSON *line = log->child; line; line = line->next)
        if (json_get(line, "eval_loss") && n < 2) at[n++] = (int64_t)json_get(line, "step")->valuedouble;
    cJSON_Delete(log);
    assert_int_equal(at[0], 3);
    assert_int_equal(at[1], 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TRAINING_TEST(test_killed_at_any_moment),
        TRAINING_TEST(test_killed_while_it_writes),
        TRAINING_TEST(test_early_stop_resumes),
        TRAINING_TEST(test_signals),
        TRAINING_TEST(test_same_bytes),
        TRAINING_TEST(test_memory_limit),
        TRAINING_TEST(test_packing),
        TRAINING_TEST(test_one_at_a_time),
        TRAINING_TEST(test_says_where_it_begins),
        TRAINING_TEST(test_resume_refuses),
        cmocka_unit_test(test_resume_behind_a_step_without_pictures),
        TRAINING_TEST(test_damaged_checkpoint),
        TRAINING_TEST(test_best_and_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

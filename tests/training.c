#include "tests/training.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "tests/compare.h"

static const double SECONDS = 300; // for one command, sanitizers and the simulator included

char *training_path(const struct training *t, const char *name) { return path_join(t->folder, name); }

void training_put(const struct training *t, const char *name, const char *text) {
    struct err e = {0};
    char *path = training_path(t, name);
    if (file_write(path, text, strlen(text), &e) != ST_OK) fail_msg("%s", e.text);
    free(path);
}

/* Rows of different lengths whose words follow a rule, so that there is something to learn. */
static void put_rows(const struct training *t, const char *name, const char *prefix, int count) {
    static const char *const words[] = {"amber", "kettle", "rocket", "orchard", "violet", "marble", "tunnel"};
    struct text all = {0};
    for (int i = 0; i < count; i++) {
        text_addf(&all, "{\"id\": \"%s%d\", \"conversations\": [{\"from\": \"human\", \"value\": \"", prefix, i);
        for (int j = 0; j < 2 + i % 4; j++) text_addf(&all, "%s%s", j ? " " : "", words[(3 * i + j) % 7]);
        text_add(&all, "?\"}, {\"from\": \"gpt\", \"value\": \"");
        for (int j = 0; j < 2 + i % 3; j++) text_addf(&all, "%s%s", j ? " " : "", words[(5 * i + 2 * j) % 7]);
        text_add(&all, ".\"}]}\n");
    }
    training_put(t, name, text_str(&all));
    text_free(&all);
}

void training_open(struct training *t, const char *model) {
    *t = (struct training){.folder = "/tmp/graft-run-XXXXXX"};
    t->graft = realpath(graft_path(), NULL);
    t->here = realpath(".", NULL);
    if (!t->graft) fail_msg("the program is not there; run make first");
    if (!mkdtemp(t->folder)) fail_msg("cannot make a folder");
    put_rows(t, "rows.jsonl", "r", TRAIN_ROWS);
    put_rows(t, "val.jsonl", "v", VAL_ROWS);
    training_put(t, "data.yaml",
                 "data:\n"
                 "- {path: rows.jsonl, name: rows, split: train, format: chat, type: json}\n"
                 "- {path: val.jsonl, name: val, split: val, format: chat, type: json}\n");
    char *config = mem_format("model_name_or_path: %s/%s\n"
                              "data_config_file: data.yaml\n"
                              "conv_template: plain\n"
                              "max_steps: 12\n"
                              "per_device_train_batch_size: 2\n"
                              "gradient_accumulation_steps: 2\n"
                              "lora_r: 4\n"
                              "learning_rate: 0.01\n"
                              "save_steps: 3\n",
                              t->here, model);
    training_put(t, "c.yaml", config);
    free(config);
}

void training_close(struct training *t) {
    struct err e = {0};
    dir_remove(t->folder, &e);
    free(t->graft), free(t->here);
    if (e.code != ST_OK) fail_msg("%s", e.text);
}

int training_set_up(void **state) {
    struct training *t = *state = mem_alloc(sizeof *t);
    training_open(t, LLAMA);
    return 0;
}

int training_tear_down(void **state) {
    training_close(*state);
    free(*state);
    return 0;
}

void training_put_data(const struct training *t, const char *name, const char *base) {
    char *data =
        mem_format("data:\n- {path: %s/tests/golden/models/%s/rows.jsonl, name: r, split: train, format: chat, "
                   "type: json}\n",
                   t->here, base);
    training_put(t, name, data);
    free(data);
}

/* argv of the program and the words of a line; the caller frees the list and *copy. */
static const char **split(const struct training *t, const char *words, char **copy) {
    size_t n = 1, room = strlen(words) + 3;
    const char **argv = mem_alloc(room * sizeof *argv);
    argv[0] = t->graft;
    *copy = mem_text(words);
    for (char *rest = *copy, *word; (word = strtok_r(rest, " ", &rest));) argv[n++] = word;
    return argv;
}

void training_graft(const struct training *t, const char *words, double seconds, struct command_result *r) {
    struct err e = {0};
    char *copy;
    const char **argv = split(t, words, &copy);
    if (command_run(argv, t->folder, NULL, seconds, r, &e) != ST_OK) fail_msg("%s", e.text);
    free(argv), free(copy);
}

void training_done(const struct training *t, const char *words) {
    struct command_result r;
    training_graft(t, words, SECONDS, &r);
    if (r.status != 0) fail_msg("graft %s: %s", words, text_str(&r.err));
    command_free(&r);
}

cJSON *training_json(const struct training *t, const char *words) {
    struct command_result r;
    struct err e = {0};
    training_graft(t, words, SECONDS, &r);
    if (r.status != 0) fail_msg("graft %s: %s", words, text_str(&r.err));
    cJSON *o = json_parse(text_str(&r.out), r.out.len, words, &e);
    if (!o) fail_msg("%s", e.text);
    command_free(&r);
    return o;
}

static char *train_words(const char *out, const char *flags) {
    const char *device = strstr(flags, "--device ") ? "" : "--device cpu ";
    const char *dtype = strstr(flags, "--dtype ") ? "" : "--dtype f32 ";
    return mem_format("train c.yaml --quiet --output_dir %s %s%s%s", out, device, dtype, flags);
}

void training_run(const struct training *t, const char *out, const char *flags, int status, const char *says) {
    struct command_result r;
    char *words = train_words(out, flags);
    training_graft(t, words, SECONDS, &r);
    if (r.status != status)
        fail_msg("graft %s: exit status %d, signal %d, wanted %d: %s", words, r.status, r.signal, status,
                 text_str(&r.err));
    if (says && !strstr(text_str(&r.err), says))
        fail_msg("graft %s: says \"%s\", wanted \"%s\"", words, text_str(&r.err), says);
    free(words);
    command_free(&r);
}

pid_t training_start(const struct training *t, const char *out, const char *flags) {
    char *words = train_words(out, flags), *copy;
    const char **argv = split(t, words, &copy);
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        if (null >= 0 && dup2(null, 1) >= 0 && dup2(null, 2) >= 0 && chdir(t->folder) == 0)
            execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (child < 0) fail_msg("cannot fork");
    free(argv), free(copy), free(words);
    return child;
}

bool training_has(const struct training *t, const char *name) {
    char *path = training_path(t, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

void training_same(const struct training *t, const char *a, const char *b) {
    struct err e = {0};
    char *paths[2] = {training_path(t, a), training_path(t, b)}, *data[2] = {NULL, NULL};
    size_t size[2];
    for (int i = 0; i < 2; i++)
        if (file_read(paths[i], &data[i], &size[i], &e) != ST_OK) fail_msg("%s", e.text);
    if (size[0] != size[1] || memcmp(data[0], data[1], size[0]) != 0) fail_msg("%s and %s differ", a, b);
    for (int i = 0; i < 2; i++) free(paths[i]), free(data[i]);
}

void training_tensors(const struct training *t, const char *name, struct st_set *set) {
    struct err e = {0};
    char *path = training_path(t, name);
    if (st_open_file(set, path, &e) != ST_OK) fail_msg("%s", e.text);
    free(path);
}

void training_no_partial(const struct training *t, const char *out) {
    struct err e = {0};
    char *dir = training_path(t, out), **names;
    size_t n;
    if (dir_list(dir, &names, &n, &e) != ST_OK) fail_msg("%s", e.text);
    for (size_t i = 0; i < n; i++) {
        if (text_ends(names[i], ".partial")) fail_msg("%s holds %s", out, names[i]);
        char *inside = path_join(out, names[i]), *full = training_path(t, inside);
        if (dir_exists(full)) training_no_partial(t, inside);
        free(inside), free(full);
    }
    names_free(names, n);
    free(dir);
}

cJSON *training_log(const struct training *t, const char *out) {
    struct err e = {0};
    char *name = path_join(out, "log.jsonl"), *path = training_path(t, name);
    cJSON *lines = lines_read(path, "step", &e);
    if (!lines) fail_msg("%s", e.text);
    free(name), free(path);
    return lines;
}

double training_loss(const struct training *t, const char *out, int64_t step) {
    cJSON *lines = training_log(t, out);
    double loss = -1;
    for (const cJSON *line = lines->child; line; line = line->next) {
        const cJSON *s = json_get(line, "step"), *l = json_get(line, "loss");
        if (l && s && (int64_t)s->valuedouble == step) loss = l->valuedouble;
    }
    cJSON_Delete(lines);
    if (loss < 0) fail_msg("%s: no loss of step %lld", out, (long long)step);
    return loss;
}

/* --- from nothing to a merged model ------------------------------------------------------------------------------ */

static double loss_of(const struct training *t, const char *model) {
    char *words = mem_format("eval %s --data pictures.yaml --split train --device cpu --dtype f32 --json", model);
    cJSON *o = training_json(t, words);
    double loss = json_get(o, "loss")->valuedouble;
    cJSON_Delete(o);
    free(words);
    return loss;
}

void training_packed_or_not(const struct training *t, const char *flags) {
    struct err e = {0};
    char *packed = mem_format("%s --max_steps 5", flags), *unpacked = mem_format("%s --packing false", packed);
    training_run(t, "packed", packed, 0, NULL);
    training_run(t, "unpacked", unpacked, 0, NULL);
    cJSON *a = training_log(t, "packed"), *b = training_log(t, "unpacked");
    const struct field fields[] = {{"loss", 1e-5, 0}, {"grad_norm", 1e-4, 0}, {"tokens", 0, 0}};
    if (compare_lines("log.jsonl", "step", b, a, fields, 3, &e) != ST_OK) fail_msg("%s", e.text);
    cJSON_Delete(a), cJSON_Delete(b);
    free(packed), free(unpacked);
}

void training_of_preset(struct training *t, const char *preset, const char *conv_template) {
    training_open(t, LLAMA);
    char *make = mem_format("init %s --out tiny --quiet", preset);
    char *flags = mem_format("--model_name_or_path tiny --data_config_file pictures.yaml --conv_template %s "
                             "--max_steps 30 --lr_scheduler_type constant --use_dora true",
                             conv_template);
    training_put_data(t, "pictures.yaml", "mllava");
    training_done(t, make);
    training_run(t, "out", flags, 0, NULL);
    training_packed_or_not(t, flags);
    training_done(t, "merge tiny --adapter out --out merged --device cpu --quiet");
    double before = loss_of(t, "tiny"), trained = loss_of(t, "tiny --adapter out"), merged = loss_of(t, "merged");
    if (!(trained < 0.5 * before)) fail_msg("%s: loss %g before and %g after", preset, before, trained);
    if (!(fabs(merged - trained) < 1e-4 * trained)) fail_msg("%s: loss %g, merged %g", preset, trained, merged);
    free(make), free(flags);
}

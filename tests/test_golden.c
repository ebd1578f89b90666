/* The built graft against the fixtures under tests/golden/models: one test for each folder with a case.json.
 *
 * The binary is $GRAFT (build/release/graft when it is not set), the device $GRAFT_DEVICE (cpu). Everything runs in a
 * fresh folder; the fixtures are only read. Tolerances are those of the cases, which tests/golden/reference.py derives
 * from the distance between its own single and double precision. */
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
#include "base/safetensors.h"
#include "base/text.h"
#include "tests/compare.h"
#include "tests/folder.h"
#include "tests/run_command.h"

static const char MODELS[] = "tests/golden/models";
static const double SECONDS = 300; // for one command, sanitizers included

struct golden {
    char *folder, *tmp; // absolute
    cJSON *spec;        // case.json
    struct err err;
};

static const char *setting(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

/* ---------------------------------------------------------------- commands of a case */

/* A word of a run line with {case}, {tmp} and {device} filled in; the caller frees it. */
static char *fill(const struct golden *c, const char *word) {
    const char *from[] = {"{case}", "{tmp}", "{device}"};
    const char *to[] = {c->folder, c->tmp, setting("GRAFT_DEVICE", "cpu")};
    struct text t = {0};
    while (*word) {
        size_t taken = 0;
        for (int k = 0; k < 3 && !taken; k++)
            if (text_starts(word, from[k])) text_add(&t, to[k]), taken = strlen(from[k]);
        if (!taken) text_add_char(&t, *word), taken = 1;
        word += taken;
    }
    return t.data ? t.data : mem_text("");
}

static enum status says(const struct command_result *r, const char *verb, struct err *e) {
    const char *said = text_str(&r->err);
    if (r->err.len > 600) said += r->err.len - 600;
    if (r->timed_out) return err_set(e, ST_FAIL, "graft %s: still running after %g s: %s", verb, SECONDS, said);
    if (r->signal) return err_set(e, ST_FAIL, "graft %s: ended by signal %d: %s", verb, r->signal, said);
    if (r->status) return err_set(e, ST_FAIL, "graft %s: exit status %d: %s", verb, r->status, said);
    return ST_OK;
}

/* Runs one line; its stdout goes to out. */
static enum status run_line(struct golden *c, const cJSON *line, struct text *out) {
    size_t count = (size_t)cJSON_GetArraySize(line), n = 0;
    char **argv = mem_alloc((count + 2) * sizeof *argv);
    argv[n++] = realpath(graft_path(), NULL);
    if (!argv[0]) err_set(&c->err, ST_FAIL, "%s: not there; run make first", graft_path());
    for (const cJSON *w = line->child; w; w = w->next) argv[n++] = fill(c, w->valuestring);

    struct command_result r = {0};
    if (c->err.code == ST_OK && command_run((const char *const *)argv, c->tmp, NULL, SECONDS, &r, &c->err) == ST_OK)
        says(&r, argv[1], &c->err);
    if (c->err.code == ST_OK) text_add_n(out, text_str(&r.out), r.out.len);
    command_free(&r);
    for (size_t i = 0; i < n; i++) free(argv[i]);
    free(argv);
    return c->err.code;
}

/* The value of a flag in a run line, filled in; the caller frees it. */
static char *flag_of(struct golden *c, const cJSON *line, const char *name) {
    for (const cJSON *w = line->child; w; w = w->next)
        if (strcmp(w->valuestring, name) == 0 && w->next) return fill(c, w->next->valuestring);
    err_set(&c->err, ST_FAIL, "%s/case.json: a run line has no %s", c->folder, name);
    return mem_text("");
}

/* ---------------------------------------------------------------- what is compared */

static double tolerance(const struct golden *c, const char *key) {
    const cJSON *v = json_get(json_get(c->spec, "tolerance"), key);
    if (!cJSON_IsNumber(v)) fail_msg("%s/case.json: no tolerance %s", c->folder, key);
    return v->valuedouble;
}

/* A file of JSON lines against the expected one of the case. */
static void check_lines(struct golden *c, const char *path, const char *expected, const char *key,
                        const struct field *fields, size_t count) {
    char *want_path = path_join(c->folder, expected);
    cJSON *got = lines_read(path, strcmp(key, "step") ? key : "loss", &c->err), *want = NULL;
    if (got) want = lines_read(want_path, key, &c->err);
    if (want) compare_lines(key, key, got, want, fields, count, &c->err);
    cJSON_Delete(got);
    cJSON_Delete(want);
    free(want_path);
}

static void check_eval(struct golden *c, const cJSON *line, const struct text *out) {
    (void)out;
    const struct field fields[] = {{"tokens", 0, 0}, {"scored", 0, 0}, {"loss_sum", tolerance(c, "rel"), 1e-6}};
    char *path = flag_of(c, line, "--per_row");
    check_lines(c, path, "expected_rows.jsonl", "id", fields, 3);
    free(path);
}

static void check_adapter(struct golden *c, const char *dir) {
    char *paths[] = {path_join(dir, "adapter_model.safetensors"), path_join(c->folder, "expected_adapter.safetensors"),
                     path_join(c->folder, "adapter/adapter_model.safetensors")};
    struct st_set sets[3] = {0};
    for (int i = 0; i < 3 && c->err.code == ST_OK; i++) st_open_file(&sets[i], paths[i], &c->err);
    if (c->err.code == ST_OK) compare_update(&sets[0], &sets[1], &sets[2], tolerance(c, "update_rel"), &c->err);
    for (int i = 0; i < 3; i++) {
        st_close(&sets[i]);
        free(paths[i]);
    }
}

static void check_adapter_config(struct golden *c, const char *dir) {
    char *path = path_join(dir, "adapter_config.json");
    cJSON *got = json_read(path, &c->err);
    if (got) compare_subset(path, got, json_get(json_get(c->spec, "expect"), "adapter_config"), &c->err);
    cJSON_Delete(got);
    free(path);
}

static void check_train(struct golden *c, const cJSON *line, const struct text *out) {
    (void)out;
    const struct field fields[] = {{"loss", tolerance(c, "rel"), 1e-12},
                                   {"grad_norm", tolerance(c, "grad_norm_rel"), 1e-12},
                                   {"learning_rate", 1e-6, 1e-12}};
    char *dir = flag_of(c, line, "--output_dir"), *log = path_join(dir, "log.jsonl");
    check_lines(c, log, "expected_log.jsonl", "step", fields, 3);
    if (c->err.code == ST_OK) check_adapter(c, dir);
    if (c->err.code == ST_OK) check_adapter_config(c, dir);
    free(dir);
    free(log);
}

static void check_generate(struct golden *c, const cJSON *line, const struct text *out) {
    (void)line;
    cJSON *got = json_parse(text_str(out), out->len, "stdout of generate --json", &c->err);
    const cJSON *want = json_get(json_get(c->spec, "expect"), "token_ids");
    if (got) compare_ids("token_ids", json_get(got, "token_ids"), want, &c->err);
    cJSON_Delete(got);
}

static const struct kind {
    const char *name;
    void (*check)(struct golden *c, const cJSON *line, const struct text *out); // of one run line
} KINDS[] = {{"eval", check_eval}, {"train", check_train}, {"generate", check_generate}};

static const struct kind *kind_of(struct golden *c) {
    const char *name = "";
    char *where = path_join(c->folder, "case.json");
    json_str(c->spec, where, "kind", "", &name, &c->err);
    free(where);
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (strcmp(KINDS[i].name, name) == 0) return &KINDS[i];
    err_set(&c->err, ST_FAIL, "%s/case.json: kind \"%s\" is not known", c->folder, name);
    return NULL;
}

/* ---------------------------------------------------------------- the tests */

static void golden_open(struct golden *c, const char *name) {
    *c = (struct golden){0};
    char *relative = path_join(MODELS, name);
    c->folder = realpath(relative, NULL);
    assert_non_null(c->folder);
    c->tmp = folder_new();
    char *spec = path_join(c->folder, "case.json");
    c->spec = json_read(spec, &c->err);
    free(spec);
    free(relative);
}

static void golden_close(struct golden *c) {
    folder_free(c->tmp);
    cJSON_Delete(c->spec);
    free(c->folder);
}

static void test_golden(void **state) {
    struct golden c;
    golden_open(&c, *state);
    const struct kind *kind = c.err.code == ST_OK ? kind_of(&c) : NULL;
    const cJSON *runs = json_get(c.spec, "run");
    if (kind && !cJSON_GetArraySize(runs)) err_set(&c.err, ST_FAIL, "%s/case.json: nothing to run", c.folder);
    for (const cJSON *line = runs ? runs->child : NULL; kind && line && c.err.code == ST_OK; line = line->next) {
        struct text out = {0};
        if (run_line(&c, line, &out) == ST_OK) kind->check(&c, line, &out);
        text_free(&out);
    }
    golden_close(&c);
    if (c.err.code != ST_OK) fail_msg("%s", c.err.text);
}

/* A folder that holds a case, or NULL. */
static char *case_name(const char *name) {
    char *path = mem_format("%s/%s/case.json", MODELS, name);
    bool there = file_exists(path);
    free(path);
    return there ? mem_format("test_golden_%s", name) : NULL;
}

int main(void) {
    struct err e = {0};
    char **names;
    size_t count, n = 0;
    if (dir_list(MODELS, &names, &count, &e) != ST_OK) {
        print_error("%s\n", e.text);
        return 1;
    }
    struct CMUnitTest *tests = mem_alloc((count + 1) * sizeof *tests);
    for (size_t i = 0; i < count; i++) {
        char *title = case_name(names[i]);
        if (title) tests[n++] = (struct CMUnitTest){title, test_golden, NULL, NULL, names[i]};
    }
    if (n == 0) print_error("%s: holds no case\n", MODELS);
    int failed = n ? _cmocka_run_group_tests("golden", tests, n, NULL, NULL) : 1;
    for (size_t i = 0; i < n; i++) free((char *)tests[i].name);
    free(tests);
    names_free(names, count);
    return failed != 0;
}

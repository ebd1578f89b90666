/* The harness itself: what must not pass does not pass, and a command's end is seen as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/compare.h"
#include "tests/run_command.h"

/* ---------------------------------------------------------------- lines */

static cJSON *parse(const char *text) {
    cJSON *v = cJSON_Parse(text);
    assert_non_null(v);
    return v;
}

static const struct field LOSS[] = {{"loss", 1e-3, 0}};

static enum status lines(const char *got, const char *want, struct err *e) {
    cJSON *g = parse(got), *w = parse(want);
    enum status st = compare_lines("log", "step", g, w, LOSS, 1, e);
    cJSON_Delete(g);
    cJSON_Delete(w);
    return st;
}

static void refused(const char *got, const char *want, const char *says) {
    struct err e = {0};
    assert_int_not_equal(lines(got, want, &e), ST_OK);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static const char TWO[] = "[{\"step\":1,\"loss\":2.0},{\"step\":2,\"loss\":-1.0}]";

static void test_lines_accept(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(lines(TWO, TWO, &e), ST_OK);
    assert_int_equal(lines("[{\"step\":2,\"loss\":-1.0009,\"more\":1},{\"step\":1,\"loss\":2.001}]", TWO, &e), ST_OK);
}

static void test_lines_refuse(void **state) {
    (void)state;
    refused("[{\"step\":1,\"loss\":2.01},{\"step\":2,\"loss\":-1}]", TWO, "log 1: loss is 2.01, wanted 2");
    refused("[{\"step\":1,\"loss\":2},{\"step\":2,\"loss\":1}]", TWO, "log 2: loss is 1");
    refused("[{\"step\":1,\"loss\":2}]", TWO, "1 lines");
    refused("[{\"step\":1,\"loss\":2},{\"step\":3,\"loss\":-1}]", TWO, "no line whose step is 2");
    refused("[{\"step\":1,\"loss\":2},{\"step\":1,\"loss\":2}]", TWO, "no line whose step is 2");
    refused("[{\"step\":1,\"loss\":2},{\"step\":2,\"loss\":-1},{\"step\":3,\"loss\":0}]", TWO, "3 lines");
    refused("[{\"step\":1,\"loss\":\"2\"},{\"step\":2,\"loss\":-1}]", TWO, "not a number");
    refused("[{\"step\":1},{\"step\":2,\"loss\":-1}]", TWO, "not a number");
    refused("[]", "[]", "0 lines");
}

static void test_lines_refuse_nan(void **state) {
    (void)state;
    cJSON *got = parse(TWO), *want = parse(TWO);
    cJSON_GetObjectItem(got->child, "loss")->valuedouble = NAN;
    struct err e = {0};
    assert_int_not_equal(compare_lines("log", "step", got, want, LOSS, 1, &e), ST_OK);
    cJSON_Delete(got);
    cJSON_Delete(want);
}

/* ---------------------------------------------------------------- tensors */

static struct st_entry vector(const char *name, const float *data, int64_t n) {
    struct st_entry t = {.name = name, .type = ST_F32, .rank = 1, .dim = {n}, .data = data};
    t.bytes = (size_t)n * sizeof *data;
    return t;
}

static enum status update(struct st_entry *got, size_t count, struct st_entry *want, struct st_entry *init) {
    struct st_set g = {.entries = got, .count = count}, w = {.entries = want, .count = 1};
    struct st_set i = {.entries = init, .count = init ? 1 : 0};
    struct err e = {0};
    return compare_update(&g, &w, &i, 0.01, &e);
}

static void test_update(void **state) {
    (void)state;
    const float before[] = {1, 1}, after[] = {1, 2}, near[] = {1, 2.009f}, far[] = {1, 2.011f}, bad[] = {NAN, 2};
    struct st_entry init = vector("a", before, 2), want = vector("a", after, 2);
    struct st_entry good = vector("a", near, 2), wrong = vector("a", far, 2), none = vector("a", bad, 2);
    struct st_entry shorter = vector("a", after, 1), other = vector("b", after, 2);
    assert_int_equal(update(&good, 1, &want, &init), ST_OK);
    assert_int_not_equal(update(&wrong, 1, &want, &init), ST_OK); // 1.1% of a move of 1
    assert_int_equal(update(&wrong, 1, &want, NULL), ST_OK);      // 0.5% of a norm of 2.2
    assert_int_not_equal(update(&none, 1, &want, &init), ST_OK);
    assert_int_not_equal(update(&shorter, 1, &want, &init), ST_OK);
    assert_int_not_equal(update(&other, 1, &want, &init), ST_OK);
    assert_int_not_equal(update(&init, 0, &want, &init), ST_OK);
    struct st_entry both[] = {good, other};
    assert_int_not_equal(update(both, 2, &want, &init), ST_OK);
    good.type = ST_I32;
    assert_int_not_equal(update(&good, 1, &want, &init), ST_OK);
}

/* ---------------------------------------------------------------- values */

static enum status subset(const char *got, const char *want) {
    cJSON *g = parse(got), *w = parse(want);
    struct err e = {0};
    enum status st = compare_subset("config", g, w, &e);
    cJSON_Delete(g);
    cJSON_Delete(w);
    return st;
}

static void test_subset(void **state) {
    (void)state;
    assert_int_equal(subset("{\"r\":4,\"l\":[\"b\",\"a\"],\"x\":null}", "{\"l\":[\"a\",\"b\"],\"r\":4}"), ST_OK);
    assert_int_not_equal(subset("{\"r\":5}", "{\"r\":4}"), ST_OK);
    assert_int_not_equal(subset("{\"R\":4}", "{\"r\":4}"), ST_OK);
    assert_int_not_equal(subset("{\"l\":[\"a\",\"a\"]}", "{\"l\":[\"a\",\"b\"]}"), ST_OK);
    assert_int_not_equal(subset("{\"l\":[\"a\",\"b\",\"c\"]}", "{\"l\":[\"a\",\"b\"]}"), ST_OK);
    assert_int_not_equal(subset("{\"p\":{\"q\":1,\"z\":2}}", "{\"p\":{\"q\":1}}"), ST_OK);
    assert_int_not_equal(subset("[]", "{\"r\":4}"), ST_OK);
}

static enum status ids(const char *got, const char *want) {
    cJSON *g = parse(got), *w = parse(want);
    struct err e = {0};
    enum status st = compare_ids("ids", g, w, &e);
    cJSON_Delete(g);
    cJSON_Delete(w);
    return st;
}

static void test_ids(void **state) {
    (void)state;
    assert_int_equal(ids("[1,2,3]", "[1,2,3]"), ST_OK);
    assert_int_not_equal(ids("[1,2]", "[1,2,3]"), ST_OK);
    assert_int_not_equal(ids("[1,2,3,4]", "[1,2,3]"), ST_OK);
    assert_int_not_equal(ids("[1,2,4]", "[1,2,3]"), ST_OK);
    assert_int_not_equal(ids("[1,\"2\",3]", "[1,2,3]"), ST_OK);
    assert_int_not_equal(ids("{}", "[]"), ST_OK);
}

/* ---------------------------------------------------------------- commands */

static struct command_result shell(const char *script, const char *dir, const char *input, double seconds) {
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    struct command_result r;
    struct err e = {0};
    if (command_run(argv, dir, input, seconds, &r, &e) != ST_OK) fail_msg("%s", e.text);
    return r;
}

static void test_command_output(void **state) {
    (void)state;
    struct command_result r = shell("pwd; cat; echo wrong >&2; exit 3", "/", "some text", 20);
    assert_string_equal(text_str(&r.out), "/\nsome text");
    assert_string_equal(text_str(&r.err), "wrong\n");
    assert_int_equal(r.status, 3);
    assert_int_equal(r.signal, 0);
    assert_false(r.timed_out);
    command_free(&r);
}

static void test_command_without_input(void **state) {
    (void)state;
    struct command_result r = shell("cat", NULL, NULL, 20);
    assert_int_equal(r.status, 0);
    assert_int_equal(r.out.len, 0);
    command_free(&r);
}

/* More than a pipe holds on both outputs, and an input that is not read to its end. */
static void test_command_large_output(void **state) {
    (void)state;
    struct text input = {0};
    while (input.len < 300000) text_add(&input, "0123456789");
    struct command_result r = shell("head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2", NULL, input.data, 20);
    assert_int_equal(r.out.len, 300000);
    assert_int_equal(r.err.len, 200000);
    assert_int_equal(r.status, 0);
    text_free(&input);
    command_free(&r);
}

static void test_command_time_is_over(void **state) {
    (void)state;
    struct command_result r = shell("echo begun; sleep 30", NULL, NULL, 0.2);
    assert_true(r.timed_out);
    assert_string_equal(text_str(&r.out), "begun\n");
    command_free(&r);
    r = shell("exec >&- 2>&-; sleep 30", NULL, NULL, 0.2); // outputs closed, still running
    assert_true(r.timed_out);
    command_free(&r);
}

static void test_command_signal(void **state) {
    (void)state;
    struct command_result r = shell("kill -SEGV $$", NULL, NULL, 20);
    assert_int_equal(r.signal, 11);
    assert_int_equal(r.status, -1);
    command_free(&r);
}

static void test_command_cannot_start(void **state) {
    (void)state;
    const char *argv[] = {"/nowhere/graft", NULL};
    struct command_result r;
    struct err e = {0};
    assert_int_not_equal(command_run(argv, NULL, NULL, 20, &r, &e), ST_OK);
    assert_non_null(strstr(e.text, "/nowhere/graft: cannot run it"));
    command_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_accept),
        cmocka_unit_test(test_lines_refuse),
        cmocka_unit_test(test_lines_refuse_nan),
        cmocka_unit_test(test_update),
        cmocka_unit_test(test_subset),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_command_output),
        cmocka_unit_test(test_command_without_input),
        cmocka_unit_test(test_command_large_output),
        cmocka_unit_test(test_command_time_is_over),
        cmocka_unit_test(test_command_signal),
        cmocka_unit_test(test_command_cannot_start),
    };
    return cmocka_run_group_tests_name("compare", tests, NULL, NULL);
}

/* The examples, in a short form in which nothing is learned: their commands, files and tables still fit the program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "tests/run_command.h"

/* The folder of the binaries, and one in it for this test. */
static char *build_dir(void) {
    const char *graft = getenv("GRAFT");
    return path_dir(graft ? graft : "build/release/graft");
}

static void run_example(struct command_result *r, const char *script, const char *build, const char *out) {
    const char *argv[] = {"/bin/sh", script, build, out, "short", NULL};
    struct err e = {0};
    assert_int_equal(command_run(argv, NULL, NULL, 300, r, &e), ST_OK);
    if (r->status != 0) print_error("%s\n%s\n", text_str(&r->out), text_str(&r->err));
    assert_int_equal(r->status, 0);
}

static void expect_file(const char *dir, const char *name) {
    char *path = path_join(dir, name);
    if (!file_exists(path)) fail_msg("%s is missing", path);
    free(path);
}

static void expect_line(const struct command_result *r, const char *text) {
    if (!strstr(text_str(&r->out), text)) fail_msg("\"%s\" is not in:\n%s", text, text_str(&r->out));
}

/* A loss that was learned from is lower afterwards, even after two steps. */
static void expect_gain(const struct command_result *r) {
    const char *line = strstr(text_str(&r->out), "  val loss ");
    assert_non_null(line);
    char *end;
    double before = strtod(line + strlen("  val loss "), &end), after = strtod(end, NULL);
    if (!(after > 0 && after < before)) fail_msg("val loss %g before and %g after", before, after);
}

static void test_chat(void **state) {
    (void)state;
    char *build = build_dir(), *out = path_join(build, "tests/chat_example");
    struct command_result first, again;
    struct err e = {0};
    run_example(&first, "examples/chat/run.sh", build, out);
    expect_line(&first, "right answers of 4");
    expect_line(&first, "  question  ");
    expect_gain(&first);
    expect_file(out, "base/model.safetensors");
    expect_file(out, "adapter/adapter_model.safetensors");
    expect_file(out, "adapter/report.html");
    run_example(&again, "examples/chat/run.sh", build, out); // over what the first left, with the same numbers
    const char *table = strstr(text_str(&first.out), "What it learned"), *end = strstr(table, "  time ");
    const char *table2 = strstr(text_str(&again.out), "What it learned");
    assert_non_null(table2);
    assert_memory_equal(table, table2, (size_t)(end - table));
    dir_remove(out, &e);
    command_free(&first);
    command_free(&again);
    free(build);
    free(out);
}

static void test_base(void **state) {
    (void)state;
    char *build = build_dir(), *out = path_join(build, "tests/base_example");
    struct command_result r;
    struct err e = {0};
    dir_remove(out, &e);
    e = (struct err){0};
    run_example(&r, "examples/base/run.sh", build, out);
    expect_file(out, "data/train/00000.mkv");
    expect_file(out, "model/model.safetensors");
    expect_file(out, "model/tokenizer.json");
    dir_remove(out, &e);
    command_free(&r);
    free(build), free(out);
}

static void test_video(void **state) {
    (void)state;
    char *build = build_dir(), *out = path_join(build, "tests/video_example");
    struct command_result r;
    struct err e = {0};
    run_example(&r, "examples/video/run.sh", build, out);
    expect_line(&r, "What it learned");
    expect_line(&r, "  text-to-video alignment ");
    expect_line(&r, "video,visual quality,temporal consistency,dynamic degree,");
    expect_file(out, "adapter/adapter_model.safetensors");
    expect_file(out, "adapter/label_names.json");
    expect_file(out, "adapter/report.html");
    dir_remove(out, &e);
    command_free(&r);
    free(build), free(out);
}

static void test_classification(void **state) {
    (void)state;
    char *build = build_dir(), *out = path_join(build, "tests/classification_example");
    struct command_result r;
    struct err e = {0};
    run_example(&r, "examples/classification/run.sh", build, out);
    expect_line(&r, "What it learned");
    expect_line(&r, "\n  macro F1 ");
    expect_line(&r, "\n  F1 of flicker "); // eval names the classes
    expect_line(&r, "\nid,none,blur,noise,blocks,flicker,class");
    expect_line(&r, "\nval/0000-");
    expect_file(out, "data/train/0000-flicker/7.png");
    expect_file(out, "adapter/adapter_model.safetensors");
    expect_file(out, "adapter/report.html");
    dir_remove(out, &e);
    command_free(&r);
    free(build), free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chat), cmocka_unit_test(test_base),
                                       cmocka_unit_test(test_video), cmocka_unit_test(test_classification)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

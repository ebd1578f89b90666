/* The examples, in a short form in which nothing is learned: their commands, files and tables still fit the program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "tests/run_command.h"

/* An example as its script runs it; out is removed at the end. */
struct example {
    char *build, *out; // folder of the binaries, and one in it
    struct command_result r;
};

static void run_program(struct command_result *r, const char *const *argv) {
    struct err e = {0};
    assert_int_equal(command_run(argv, NULL, NULL, 300, r, &e), ST_OK);
    if (r->status != 0) print_error("%s\n%s\n", text_str(&r->out), text_str(&r->err));
    assert_int_equal(r->status, 0);
}

static void example_folder(struct example *x, const char *name) {
    struct err e = {0};
    char *inside = mem_format("tests/%s_example", name);
    *x = (struct example){.build = path_dir(graft_path())};
    x->out = path_join(x->build, inside);
    dir_remove(x->out, &e);
    free(inside);
}

static void example_run(struct example *x, const char *name) {
    char *script = mem_format("examples/%s/run.sh", name);
    command_free(&x->r);
    run_program(&x->r, (const char *[]){"/bin/sh", script, x->build, x->out, "short", NULL});
    free(script);
}

static void example_end(struct example *x) {
    struct err e = {0};
    dir_remove(x->out, &e);
    command_free(&x->r);
    free(x->build), free(x->out);
}

static void expect_file(const struct example *x, const char *name) {
    char *path = path_join(x->out, name);
    if (!file_exists(path)) fail_msg("%s is missing", path);
    free(path);
}

static const char *expect_line(const struct example *x, const char *text) {
    const char *at = strstr(text_str(&x->r.out), text);
    if (!at) fail_msg("\"%s\" is not in:\n%s", text, text_str(&x->r.out));
    return at;
}

/* A loss that was learned from is lower afterwards, even after two steps. */
static void expect_gain(const struct example *x) {
    char *end;
    double before = strtod(expect_line(x, "  val loss ") + strlen("  val loss "), &end), after = strtod(end, NULL);
    if (!(after > 0 && after < before)) fail_msg("val loss %g before and %g after", before, after);
}

/* What it learned, as a text of its own. */
static char *expect_table(const struct example *x) {
    const char *table = expect_line(x, "What it learned"), *end = strstr(table, "  time ");
    assert_non_null(end);
    return mem_format("%.*s", (int)(end - table), table);
}

static void test_chat(void **state) {
    (void)state;
    struct example x;
    example_folder(&x, "chat");
    example_run(&x, "chat");
    expect_line(&x, "right answers of 4");
    expect_line(&x, "  question  ");
    expect_gain(&x);
    expect_file(&x, "base-nf4/model.safetensors");
    expect_file(&x, "adapter/adapter_model.safetensors");
    expect_file(&x, "adapter/report.html");
    char *first = expect_table(&x);
    example_run(&x, "chat"); // over what the first left, with the same numbers
    char *again = expect_table(&x);
    assert_string_equal(first, again);
    free(first), free(again);
    example_end(&x);
}

static void test_base(void **state) {
    (void)state;
    struct example x;
    example_folder(&x, "base");
    example_run(&x, "base");
    expect_file(&x, "data/pictures/00000.png");
    expect_file(&x, "data/clips/00000.mkv");
    expect_file(&x, "model/model.safetensors");
    expect_file(&x, "model/tokenizer.json");
    example_end(&x);
}

/* Of the model that the repository carries, over the answers of the lessons in dir. */
static double base_loss(const char *graft, const char *dir) {
    struct command_result r;
    char *data = path_join(dir, "data.yaml");
    run_program(&r, (const char *[]){graft, "eval", "examples/base/model", "--data", data, "--split", "val", NULL});
    const char *line = strstr(text_str(&r.out), "loss ");
    assert_non_null(line);
    double loss = strtod(line + strlen("loss "), NULL);
    command_free(&r);
    free(data);
    return loss;
}

/* Each row gets the clip of the one before it. */
static void exchange_clips(const char *dir) {
    struct err e = {0};
    char *path = path_join(dir, "data/val.json");
    cJSON *rows = json_read(path, &e), *row;
    assert_non_null(rows);
    const char *before = cJSON_GetObjectItem(cJSON_GetArrayItem(rows, cJSON_GetArraySize(rows) - 1), "id")->valuestring;
    cJSON_ArrayForEach(row, rows) {
        cJSON_ReplaceItemInObject(row, "video", cJSON_CreateString(before));
        before = cJSON_GetObjectItem(row, "id")->valuestring;
    }
    assert_int_equal(json_write(path, rows, &e), ST_OK);
    cJSON_Delete(rows);
    free(path);
}

/* The base that the other examples start from sees what it is shown: with the clips of other rows the answers are much
 * less likely, though they are just as good a text. */
static void test_base_sees(void **state) {
    (void)state;
    struct example x;
    struct err e = {0};
    example_folder(&x, "base_sees");
    char *maker = path_join(x.build, "examples/make_base_data"), *data = path_join(x.out, "data");
    char *graft = path_join(x.build, "graft"), *list = path_join(x.out, "data.yaml");
    const char *lessons = "data: [{path: data/val.json, name: clips, split: val, type: json, format: chat_video}]";
    run_program(&x.r, (const char *[]){maker, data, "7", "1", "1", "1", "32", NULL});
    assert_int_equal(file_write(list, lessons, strlen(lessons), &e), ST_OK);
    double own = base_loss(graft, x.out);
    exchange_clips(x.out);
    double others = base_loss(graft, x.out);
    if (!(own < 0.5 * others)) fail_msg("loss %g with the clips of the rows, %g with others", own, others);
    free(maker), free(data), free(graft), free(list);
    example_end(&x);
}

static void test_video(void **state) {
    (void)state;
    struct example x;
    example_folder(&x, "video");
    example_run(&x, "video");
    expect_line(&x, "What it learned");
    expect_line(&x, "  text-to-video alignment ");
    expect_line(&x, "video,visual quality,temporal consistency,dynamic degree,");
    expect_file(&x, "adapter/adapter_model.safetensors");
    expect_file(&x, "adapter/label_names.json");
    expect_file(&x, "adapter/report.html");
    example_end(&x);
}

static void test_classification(void **state) {
    (void)state;
    struct example x;
    example_folder(&x, "classification");
    example_run(&x, "classification");
    expect_line(&x, "What it learned");
    expect_line(&x, "\n  macro F1 ");
    expect_line(&x, "\n  F1 of flicker "); // eval names the classes
    expect_line(&x, "\nid,none,blur,noise,blocks,flicker,class");
    expect_line(&x, "\nval/0000-");
    expect_file(&x, "data/train/0000-flicker/7.png");
    expect_file(&x, "adapter/adapter_model.safetensors");
    expect_file(&x, "adapter/report.html");
    example_end(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),  cmocka_unit_test(test_base),           cmocka_unit_test(test_base_sees),
        cmocka_unit_test(test_video), cmocka_unit_test(test_classification),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Row files, chat rows, the data YAML and the mixture: all that needs no tokenizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "data/config.h"
#include "data/mixture.h"
#include "data/rows.h"
#include "tests/folder.h"

static void test_shuffle_is_pythons(void **state) {
    (void)state;
    struct err e = {0};
    cJSON *all = json_read("tests/golden/data/shuffled.json", &e);
    assert_non_null(all);
    for (const cJSON *one = all->child; one; one = one->next) {
        int64_t n = strtoll(one->string, NULL, 10), *order = mem_alloc((size_t)n * sizeof *order);
        for (int64_t i = 0; i < n; i++) order[i] = i;
        mixture_shuffle(order, n);
        int64_t i = 0;
        for (const cJSON *v = one->child; v; v = v->next) assert_int_equal(order[i++], (int64_t)v->valuedouble);
        assert_int_equal(i, n);
        free(order);
    }
    cJSON_Delete(all);
}

static void test_mixture_lengths(void **state) {
    (void)state;
    int64_t shown[3];
    assert_int_equal(mixture_lengths(shown, (int64_t[]){1000, 100000}, 2, true), 10100 + 101000);
    assert_int_equal(shown[0], 10100);
    assert_int_equal(shown[1], 101000);
    assert_int_equal(mixture_lengths(shown, (int64_t[]){5, 0, 7}, 3, false), 12);
    assert_int_equal(shown[1], 0);
    assert_int_equal(mixture_lengths(shown, (int64_t[]){5}, 1, true), 5);
    assert_int_equal(mixture_lengths(shown, (int64_t[]){0, 9}, 2, true), 9);
}

static void test_a_sheet_holds_rows(void **state) {
    const char *folder = *state;
    struct err e = {0};
    struct rows r;
    struct chat_row row;
    char *path = folder_put(folder, "sheet.csv",
                            "video,prompt,Id,quality,\"is it, really?\"\n"
                            "a.mp4,\"a dog, running\",one,2.5,1\n"
                            "\n"
                            "b.mp4,a cat,two,,0\n"
                            "c.mp4,a cow,three,good,0\n");
    assert_int_equal(rows_open(&r, path, &e), ST_OK);
    assert_int_equal(r.count, 3);
    assert_int_equal(class_row_read(&row, &r, 0, &e), ST_OK);
    assert_string_equal(row.id, "one");
    assert_string_equal(row.media, "a.mp4");
    assert_string_equal(row.prompt, "a dog, running");
    assert_float_equal(json_get(row.labels, "quality")->valuedouble, 2.5, 0);
    assert_float_equal(json_get(row.labels, "is it, really?")->valuedouble, 1, 0);
    chat_row_free(&row);
    assert_int_equal(class_row_read(&row, &r, 1, &e), ST_OK);
    assert_int_equal(cJSON_GetArraySize(row.labels), 1); // an empty cell is no label
    chat_row_free(&row);
    assert_int_equal(class_row_read(&row, &r, 2, &e), ST_FAIL);
    assert_contains(e.text, "line 5");
    assert_contains(e.text, "label \"quality\" is not a number but the text \"good\"");
    chat_row_free(&row);
    rows_close(&r);
    free(path);
    e = (struct err){0};
    path = folder_put(folder, "sheet.csv",
                      "video;prompt;quality;\na.mp4;a dog;3,5 ;\n;a cat;2.5;\nc.mp4;a cow;0x1;\n;;;\n");
    assert_int_equal(rows_open(&r, path, &e), ST_OK);
    assert_int_equal(r.count, 3);
    assert_int_equal(class_row_read(&row, &r, 0, &e), ST_OK); // a decimal comma
    assert_float_equal(json_get(row.labels, "quality")->valuedouble, 3.5, 0);
    chat_row_free(&row);
    assert_int_equal(class_row_read(&row, &r, 1, &e), ST_FAIL); // a row of the others' kind has a clip
    assert_contains(e.text, "line 3");
    assert_contains(e.text, "video is not a path");
    chat_row_free(&row);
    e = (struct err){0};
    assert_int_equal(class_row_read(&row, &r, 2, &e), ST_FAIL);
    assert_contains(e.text, "the text \"0x1\"");
    chat_row_free(&row);
    rows_close(&r);
    free(path);
    e = (struct err){0};
    path = folder_put(folder, "sheet.csv",
                      ",video,prompt,quality\n0,a.mp4,a dog,2\n"); // as a data frame's index is written
    assert_int_equal(rows_open(&r, path, &e), ST_FAIL);
    assert_contains(e.text, "line 2: column 1 holds \"0\"");
    free(path);
    e = (struct err){0};
    path = folder_put(folder, "sheet.csv", "video,text\na.mp4,a dog\n");
    assert_int_equal(rows_open(&r, path, &e), ST_FAIL);
    assert_contains(e.text, "no column \"prompt\"");
    free(path);
}

static void test_json_and_jsonl_hold_the_same_rows(void **state) {
    (void)state;
    struct err e = {0};
    struct rows list, lines;
    assert_int_equal(rows_open(&list, "tests/golden/data/rows.json", &e), ST_OK);
    assert_int_equal(rows_open(&lines, "tests/golden/data/rows.jsonl", &e), ST_OK);
    assert_int_equal(list.count, 4);
    assert_int_equal(lines.count, 4);
    for (int64_t i = 0; i < 4; i++) {
        struct chat_row a, b;
        assert_int_equal(chat_row_read(&a, &list, i, &e), ST_OK);
        assert_int_equal(chat_row_read(&b, &lines, i, &e), ST_OK);
        assert_string_equal(a.id, b.id);
        assert_int_equal(a.count, b.count);
        assert_int_equal(a.image_count, b.image_count);
        for (size_t k = 0; k < a.count; k++) assert_string_equal(a.turns[k].text, b.turns[k].text);
        chat_row_free(&a), chat_row_free(&b);
    }
    assert_int_equal(lines.span[1].line, 4);
    rows_close(&list), rows_close(&lines);
}

static void test_row_of_every_shape(void **state) {
    struct err e = {0};
    struct rows rows;
    struct chat_row r;
    assert_int_equal(rows_open(&rows, "tests/golden/data/rows.json", &e), ST_OK);
    assert_int_equal(chat_row_read(&r, &rows, 1, &e), ST_OK);
    assert_string_equal(r.id, "7");
    assert_int_equal(r.count, 4); // the greeting is left out
    assert_false(r.turns[0].assistant);
    assert_string_equal(r.turns[3].text, "It's \\ so.\n");
    assert_int_equal(r.image_count, 2);
    assert_string_equal(r.images[1], "images/2.png");
    chat_row_free(&r);
    assert_int_equal(chat_row_read(&r, &rows, 3, &e), ST_OK);
    assert_string_equal(r.id, "3");
    assert_string_equal(r.turns[2].text, "Open [end], {x} \"] \"}");
    chat_row_free(&r);
    rows_close(&rows);
    char *path = folder_put(*state, "turns.jsonl",
                            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, "
                            "{\"role\": \"assistant\", \"content\": \"a\"}]}\n");
    assert_int_equal(rows_open(&rows, path, &e), ST_OK);
    assert_int_equal(chat_row_read(&r, &rows, 0, &e), ST_OK);
    assert_int_equal(r.count, 2);
    assert_string_equal(r.turns[1].text, "a");
    chat_row_free(&r);
    rows_close(&rows);
    free(path);
}

/* Every beginning of a good file: an error or fewer rows, never a crash, and never a row that is not there. */
static void test_cut_files(void **state) {
    const char *folder = *state;
    for (int lines = 0; lines < 2; lines++) {
        struct err e = {0};
        char *data;
        size_t size;
        assert_int_equal(
            file_read(lines ? "tests/golden/data/rows.jsonl" : "tests/golden/data/rows.json", &data, &size, &e), ST_OK);
        char *path = path_join(folder, lines ? "cut.jsonl" : "cut.json");
        for (size_t n = 0; n < size; n++) {
            struct err inner = {0};
            struct rows rows;
            assert_int_equal(file_write(path, data, n, &e), ST_OK);
            if (rows_open(&rows, path, &inner) != ST_OK) continue;
            if (!lines) assert_int_equal(n, size - 1); // only the final new line may be missing
            for (int64_t i = 0; i < rows.count; i++) {
                struct chat_row r;
                struct err row_err = {0};
                chat_row_read(&r, &rows, i, &row_err);
                if (row_err.code != ST_OK) assert_int_equal(i, rows.count - 1);
                chat_row_free(&r);
            }
            rows_close(&rows);
        }
        free(data), free(path);
    }
}

static void test_bad_rows(void **state) {
    const char *folder = *state;
    static const struct {
        const char *row, *sentence;
    } cases[] = {
        {"{\"id\": \"a\", \"conversation\": [{\"role\": \"user\"", "row 0 (line 1): not valid JSON"},
        {"[]", "wanted an object"},
        {"{\"id\": \"a\"}", "row 0 (line 1) (id a): wanted \"conversation\""},
        {"{\"conversation\": []}", "no turn of the user"},
        {"{\"conversation\": [{\"role\": \"gpt\", \"value\": \"x\"}]}", "no turn of the user"},
        {"{\"conversation\": [{\"content\": \"x\"}]}", "turn 0 has no role"},
        {"{\"conversation\": [{\"role\": \"bot\", \"content\": \"x\"}]}", "turn 0 has role \"bot\""},
        {"{\"conversation\": [{\"role\": \"user\"}]}", "turn 0 has no text"},
        {"{\"conversation\": [{\"role\": \"user\", \"content\": 3}]}", "content is not a string"},
        {"{\"conversation\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"human\", \"content\": \"x\"}]}",
         "turn 1 is the user's, wanted the assistant's"},
        {"{\"conversation\": [{\"role\": \"user\", \"content\": \"x\\u0000y\"}]}", "zero character"},
        {"{\"images\": [\"http://x/a.png\"], \"conversation\": [{\"role\": \"user\", \"content\": \"x\"}]}",
         "picture 0 is an address"},
        {"{\"images\": [{}], \"conversation\": [{\"role\": \"user\", \"content\": \"x\"}]}", "picture 0 is not a path"},
        {"{\"images\": \"x\", \"conversation\": [{\"role\": \"user\", \"content\": \"x\"}]}", "images is not a list"},
        {"{\"conversation\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", "not UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct rows rows;
        struct chat_row r;
        char *path = folder_put(folder, "bad.jsonl", cases[i].row);
        assert_int_equal(rows_open(&rows, path, &e), ST_OK);
        assert_int_equal(chat_row_read(&r, &rows, 0, &e), ST_FAIL);
        assert_contains(e.text, "bad.jsonl");
        assert_contains(e.text, cases[i].sentence);
        chat_row_free(&r);
        rows_close(&rows);
        free(path);
    }
}

static void test_an_escaped_backslash_is_no_zero(void **state) {
    const char *folder = *state;
    struct err e = {0};
    struct rows rows;
    struct chat_row r;
    char *path =
        folder_put(folder, "back.jsonl", "{\"conversation\": [{\"role\": \"user\", \"content\": \"\\\\u0000\"}]}");
    assert_int_equal(rows_open(&rows, path, &e), ST_OK);
    assert_int_equal(chat_row_read(&r, &rows, 0, &e), ST_OK);
    assert_string_equal(r.turns[0].text, "\\u0000");
    chat_row_free(&r);
    rows_close(&rows);
    free(path);
}

static enum status read_config(struct data_config *c, const char *folder, const char *yaml, struct err *e) {
    char *path = folder_put(folder, "data.yaml", yaml);
    struct data_options o = {.file = path, .split = "train", .max_seq_len = 77};
    enum status st = data_config_read(c, &o, e);
    free(path);
    return st;
}

static void test_config_fields(void **state) {
    const char *folder = *state;
    struct err e = {0};
    struct data_config c;
    free(folder_put(folder, "rows.json", "[]"));
    const char *yaml =
        "data:\n"
        "- {path: rows.json, name: a, split: train, format: chat, type: json, shuffle: true, max_size: 3,"
        " max_num_images: 2, max_image_size: 60, vl_only: true, max_seq_len: 9}\n"
        "- {path: rows.json, name: b, split: train, format: chat, max_size: null}\n"
        "- {path: none.json, name: c, split: val, format: classification}\n";
    assert_int_equal(read_config(&c, folder, yaml, &e), ST_OK);
    assert_int_equal(c.count, 2);
    assert_true(c.sets[0].shuffle && c.sets[0].vl_only);
    assert_int_equal(c.sets[0].max_size, 3);
    assert_int_equal(c.sets[0].max_num_images, 2);
    assert_int_equal(c.sets[0].max_image_size, 60);
    assert_int_equal(c.sets[0].max_seq_len, 9);
    assert_int_equal(c.sets[1].max_seq_len, 77);
    assert_int_equal(c.sets[1].max_size, 0);
    assert_string_equal(c.sets[1].folder, folder);
    data_config_free(&c);
}

static void test_config_refusals(void **state) {
    const char *folder = *state;
    static const struct {
        const char *entry, *sentence;
    } cases[] = {
        {"path: rows.json, name: a, split: train", "format is missing"},
        {"path: rows.json, name: a, split: train, format: caht", "did you mean chat?"},
        {"path: rows.json, name: a, split: train, format: siglip_video", "format siglip_video cannot be read yet"},
        {"path: rows.json, name: a, split: trian, format: chat", "did you mean train?"},
        {"path: rows.json, name: a, split: train, format: chat, max_sise: 3", "did you mean max_size?"},
        {"path: rows.json, name: a, split: train, format: chat, max_size: -1", "max_size is -1"},
        {"path: rows.json, name: a, split: train, format: chat, shuffle: 3", "shuffle is 3, wanted true or false"},
        {"path: rows.json, name: a, split: train, format: chat, fps: 3", "fps is not used here"},
        {"path: rows.json, name: a, split: train, format: chat, num_proc: 3", "--threads"},
        {"path: rows.json, name: a, split: train, format: chat, packing_same_mm_media: true", "not supported"},
        {"path: rows.json, name: a, split: train, format: chat, type: huggingface", "type: json"},
        {"path: none.json, name: a, split: train, format: chat, type: json", "none.json"},
        {"path: rows.csv, name: a, split: train, format: chat, type: json", ".jsonl"},
        {"path: rows.json, name: a, split: val, format: chat", "no data set has split: train; the first has val"},
    };
    free(folder_put(folder, "rows.json", "[]"));
    free(folder_put(folder, "rows.csv", ""));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct data_config c;
        char *yaml = mem_format("data:\n- {%s}\n", cases[i].entry);
        assert_int_equal(read_config(&c, folder, yaml, &e), ST_FAIL);
        assert_contains(e.text, cases[i].sentence);
        assert_contains(e.text, "data.yaml");
        data_config_free(&c);
        free(yaml);
    }
    struct err e = {0};
    struct data_config c;
    assert_int_equal(read_config(&c, folder, "dat: []\n", &e), ST_FAIL);
    assert_contains(e.text, "did you mean data?");
    data_config_free(&c);
    e = (struct err){0};
    assert_int_equal(read_config(&c, folder, "- {id: a}\n", &e), ST_FAIL);
    assert_contains(e.text, "wanted a list of data sets");
    data_config_free(&c);
    bool found[DATA_SPLITS];
    e = (struct err){0};
    assert_int_equal(data_config_splits(found, "rows.jsonl", &e), ST_FAIL);
    assert_contains(e.text, "holds rows");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shuffle_is_pythons), cmocka_unit_test(test_mixture_lengths),
        cmocka_unit_test(test_a_sheet_holds_rows), cmocka_unit_test(test_json_and_jsonl_hold_the_same_rows),
        cmocka_unit_test(test_row_of_every_shape), cmocka_unit_test(test_cut_files),
        cmocka_unit_test(test_bad_rows),           cmocka_unit_test(test_an_escaped_backslash_is_no_zero),
        cmocka_unit_test(test_config_fields),      cmocka_unit_test(test_config_refusals),
    };
    return cmocka_run_group_tests(tests, folder_start, folder_end);
}

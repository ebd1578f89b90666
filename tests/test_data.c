/* Data sets, batches, the loader, a row as tensors and as text; against what tokenizers gives (golden/make_data.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/yaml.h"
#include "data/show.h"
#include "tests/data_fixture.h"
#include "tests/folder.h"

#define GOLDEN "tests/golden/data"

static int set_up(void **state) { return data_fixture_start(state, GOLDEN); }

static void test_rows_are_as_expected(void **state) {
    struct data_fixture *x = *state;
    cJSON *expected = golden_json(x, "expected.json");
    struct dataset *d = dataset_of(x, "rows.jsonl", "", (struct data_options){0}, &x->mllava);
    assert_int_equal(dataset_rows(d), cJSON_GetArraySize(expected));
    for (int i = 0; i < cJSON_GetArraySize(expected); i++) {
        const cJSON *want = cJSON_GetArrayItem(expected, i);
        struct row r = row_of(d, i, false);
        check_list(json_get(want, "ids"), r.ids.data, r.ids.len, "id");
        check_list(json_get(want, "labels"), r.labels, r.ids.len, "label");
        assert_int_equal(r.positions, (int64_t)r.ids.len + r.images * (TOKENS_PER_IMAGE - 1));
        row_free(&r);
    }
    cJSON_Delete(expected);
    dataset_free(d);
}

static void test_pictures_of_a_row(void **state) {
    struct data_fixture *x = *state;
    struct dataset *d = dataset_of(x, "rows.json", "", (struct data_options){.decode_images = true}, &x->mllava);
    struct row r = row_of(d, 1, true);
    assert_string_equal(r.id, "7");
    assert_int_equal(r.images, 2);
    assert_int_equal(r.image[1].height, 28);
    /* Picture 2 is one colour: (80, 135, 90) */
    float blue = (float)(90 / 255.0 * 2 - 1);
    for (int k = 0; k < 28 * 28; k++) assert_true(r.image[1].pixels[2 * 28 * 28 + k] - blue < 1e-5f);
    for (int k = 0; k < 28 * 28; k++) assert_true(blue - r.image[1].pixels[2 * 28 * 28 + k] < 1e-5f);
    row_free(&r);
    dataset_free(d);
}

/* The second picture's token is cut; the row keeps one picture. */
static void test_truncation_drops_pictures(void **state) {
    struct data_fixture *x = *state;
    struct dataset *whole = dataset_of(x, "rows.json", "", (struct data_options){0}, &x->mllava);
    struct row r = row_of(whole, 0, false);
    size_t second = r.ids.len - 1;
    while (r.ids.data[second] != x->mllava.image_token) second--;
    assert_int_equal(r.images, 2);
    row_free(&r);
    dataset_free(whole);
    struct text notes = {0};
    struct err e = {0};
    struct data_options o = {.max_seq_len = (int64_t)second};
    struct dataset *cut = dataset_try(x, "rows.json", "", o, &x->mllava, &notes, &e);
    r = row_of(cut, 0, true);
    assert_int_equal(r.ids.len, second);
    assert_int_equal(r.images, 1);
    assert_int_equal(r.scored, 0);
    assert_contains(text_str(&notes), "rows.json: row 0 (id two): no token of the row is trained");
    row_free(&r);
    dataset_free(cut);
    text_free(&notes);
}

static void test_selection(void **state) {
    struct data_fixture *x = *state;
    struct data_options o = {.conv_template = "llama_3"};
    struct dataset *d = dataset_of(x, "text.json", ", max_size: 3", o, &x->text);
    assert_int_equal(dataset_rows(d), 3);
    struct row r = row_of(d, 2, false);
    assert_string_equal(r.id, "t2");
    row_free(&r);
    dataset_free(d);
    d = dataset_of(x, "rows.json", ", max_num_images: 1", (struct data_options){0}, &x->mllava);
    assert_int_equal(dataset_rows(d), 2); // one picture, and none
    assert_int_equal(dataset_bad(d), 0);
    dataset_free(d);
    d = dataset_of(x, "rows.json", ", vl_only: true", (struct data_options){0}, &x->mllava);
    assert_int_equal(dataset_rows(d), 3);
    dataset_free(d);
    /* Python's shuffle of range(7) with seed 42 begins with 1. */
    d = dataset_of(x, "text.json", ", shuffle: true, max_size: 1", o, &x->text);
    r = row_of(d, 0, false);
    assert_string_equal(r.id, "t1");
    row_free(&r);
    dataset_free(d);
}

static const char MIXED[] =
    "{\"conversation\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
    "{\"id\":\"x\",\"conversation\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]}\n"
    "{\"conversation\":[{\"role\":\"user\"\n"
    "{\"images\":[\"none.png\"],\"conversation\":[{\"role\":\"user\",\"content\":\"a\"}]}\n";

static void test_bad_rows(void **state) {
    struct data_fixture *x = *state;
    char *path = folder_put(x->folder, "mixed.jsonl", MIXED);
    struct err e = {0};
    assert_null(dataset_try(x, path, "", (struct data_options){0}, &x->mllava, NULL, &e));
    assert_contains(e.text, "mixed.jsonl: row 1 (line 2) (id x): turn 1 is the user's");
    struct text notes = {0};
    struct err none = {0};
    struct dataset *d =
        dataset_try(x, path, "", (struct data_options){.skip_bad_rows = true}, &x->mllava, &notes, &none);
    assert_non_null(d);
    assert_int_equal(dataset_rows(d), 1);
    assert_int_equal(dataset_bad(d), 3);
    assert_contains(text_str(&notes), "row 1 (line 2)");
    assert_contains(text_str(&notes), "row 2 (line 3): not valid JSON");
    assert_contains(text_str(&notes), "none.png");
    dataset_free(d);
    text_free(&notes);
    free(path);
}

static void test_refusals(void **state) {
    struct data_fixture *x = *state;
    struct data_family small = x->text;
    small.vocab_size = 257;
    struct err e = {0}, two = {0}, three = {0}, four = {0};
    struct data_options o = {.conv_template = "llama_3"};
    assert_null(dataset_try(x, "text.json", "", o, &small, NULL, &e));
    assert_contains(e.text, "vocab");
    assert_null(dataset_try(x, "rows.json", "", o, &x->text, NULL, &two));
    assert_contains(two.text, "reads text only");
    char *path = folder_put(
        x->folder, "system.jsonl",
        "{\"conversation\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"a\"}]}");
    assert_null(dataset_try(x, path, "", o, &x->text, NULL, &three));
    assert_contains(three.text, "has its own");
    struct data_family other = x->mllava;
    other.image_token = 3;
    assert_null(dataset_try(x, "rows.json", "", (struct data_options){0}, &other, NULL, &four));
    assert_contains(four.text, "image_token_index");
    free(path);
}

static void test_own_template(void **state) {
    struct data_fixture *x = *state;
    char *path =
        folder_put(x->folder, "own.jsonl",
                   "{\"conversation\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"Q\"},"
                   "{\"role\":\"assistant\",\"content\":\"A1\"},{\"role\":\"user\",\"content\":\"R\"},"
                   "{\"role\":\"assistant\",\"content\":\"A2 \"}]}");
    struct dataset *d = dataset_of(x, path, "", (struct data_options){0}, &x->text);
    struct row r = row_of(d, 0, false);
    struct text shown = {0};
    show_row(&shown, &r, &x->text, x->tokenizer, false);
    assert_contains(
        text_str(&shown),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A1<|im_end|>⟧\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦A2 <|im_end|>⟧\n");
    text_free(&shown);
    row_free(&r);
    dataset_free(d);
    free(path);
}

/* A template that drops what earlier answers said: no part of its text belongs to one turn. */
static void test_a_template_that_rewrites_turns(void **state) {
    struct data_fixture *x = *state;
    free(folder_put(
        x->folder, "tokenizer_config.json",
        "{\"chat_template\":\"{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% else %}x{% endif %}{% "
        "endfor %}\"}"));
    struct data_family f = x->text;
    f.model_dir = x->folder;
    struct err e = {0};
    assert_null(dataset_try(x, "text.json", "", (struct data_options){0}, &f, NULL, &e));
    assert_contains(e.text, "text.json: row 0 (id t0): the tokenizer's chat template writes a turn differently");
}

static void test_fingerprint(void **state) {
    struct data_fixture *x = *state;
    struct data_options o = {.conv_template = "llama_3"}, shorter = o, other = {.conv_template = "qwen2_vl"};
    shorter.max_seq_len = 4000; // long enough to change no row
    struct dataset *d[5] = {
        dataset_of(x, "text.json", "", o, &x->text),
        dataset_of(x, "text.json", "", o, &x->text),
        dataset_of(x, "text.json", ", shuffle: true", o, &x->text),
        dataset_of(x, "text.json", "", shorter, &x->text),
        dataset_of(x, "text.json", "", other, &x->text),
    };
    assert_true(dataset_fingerprint(d[0]) == dataset_fingerprint(d[1]));
    for (int i = 2; i < 5; i++) assert_true(dataset_fingerprint(d[0]) != dataset_fingerprint(d[i]));
    for (int i = 0; i < 5; i++) dataset_free(d[i]);
}

static void test_mixture_of_two_sets(void **state) {
    struct data_fixture *x = *state;
    struct err e = {0};
    const char *yaml = "[{path: text.json, name: a, split: train, format: chat, max_size: 1},"
                       " {path: text.json, name: b, split: train, format: chat}]";
    cJSON *list = yaml_parse(yaml, strlen(yaml), "inline", &e);
    struct data_options o = {
        .inline_list = list, .inline_dir = GOLDEN, .split = "train", .conv_template = "llama_3", .balancing = true};
    struct dataset *d = dataset_open(&o, &x->text, x->tokenizer, x->threads, NULL, &e);
    assert_non_null(d);
    /* 8 rows; 8 * 1.1 * 1 / (1 + sqrt 7) = 2.4, and with sqrt 7 on top 6.4 */
    assert_int_equal(dataset_rows(d), 2 + 6);
    int64_t tokens = 0, scored = 0;
    static const char *const ids[] = {"t0", "t0", "t0", "t1", "t2", "t3", "t4", "t5"};
    for (int64_t i = 0; i < 8; i++) {
        struct row r = row_of(d, i, false);
        assert_string_equal(r.id, ids[i]);
        tokens += r.positions, scored += r.scored;
        row_free(&r);
    }
    assert_int_equal(dataset_tokens(d), tokens);
    assert_int_equal(dataset_scored(d), scored);
    struct row none;
    assert_int_equal(dataset_row(d, 8, false, &none, &e), ST_FAIL);
    dataset_free(d);
    cJSON_Delete(list);
}

static struct row make_row(const int32_t *ids, const int32_t *labels, size_t n, int64_t images, int64_t positions) {
    struct row r = {.id = mem_text("r"), .images = images, .positions = positions};
    for (size_t i = 0; i < n; i++) ids_add(&r.ids, ids[i]);
    r.labels = mem_alloc(n * sizeof *r.labels);
    memcpy(r.labels, labels, n * sizeof *r.labels);
    r.image = mem_alloc((size_t)images * sizeof *r.image);
    for (int64_t i = 0; i < images; i++)
        r.image[i] = (struct batch_image){.height = 1, .width = 1, .pixels = mem_alloc(3 * sizeof(float))};
    return r;
}

/* Two rows; in the second a picture of two positions stands within the trained part. */
static void test_batch(void **state) {
    (void)state;
    struct data_family f = {.family = FAMILY_MLLAVA, .image_token = 9, .tokens_per_image = 2};
    struct row rows[2] = {
        make_row((int32_t[]){1, 2, 3}, (int32_t[]){1, IGNORED, 3}, 3, 0, 3),
        make_row((int32_t[]){1, 4, 9, 5}, (int32_t[]){IGNORED, 4, 9, 5}, 4, 1, 5),
    };
    rows[1].index = 6;
    struct batch b;
    batch_build(&b, rows, 2, &f);
    static const int32_t ids[] = {1, 2, 3, 1, 4, -1, -1, 5}, positions[] = {0, 1, 2, 0, 1, 2, 3, 4};
    static const int32_t targets[] = {IGNORED, 3, IGNORED, 4, IGNORED, IGNORED, 5, IGNORED};
    assert_int_equal(b.N, 8);
    assert_int_equal(b.scored, 3);
    assert_memory_equal(b.ids, ids, sizeof ids);
    assert_memory_equal(b.positions, positions, sizeof positions);
    assert_memory_equal(b.targets, targets, sizeof targets);
    assert_int_equal(b.offsets[1], 3);
    assert_int_equal(b.offsets[2], 8);
    assert_int_equal(b.row_index[1], 6);
    assert_int_equal(b.images, 1);
    assert_non_null(b.image[0].pixels);
    assert_null(rows[1].image[0].pixels);
    batch_free(&b);
    row_free(&rows[0]), row_free(&rows[1]);
}

/* What the check counted is what a batch holds: with labels at the first position, and with pictures within answers. */
static void test_counts_agree_with_batches(void **state) {
    struct data_fixture *x = *state;
    char *path = folder_put(
        x->folder, "counts.jsonl",
        "{\"conversation\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
        "{\"image\":\"0.png\",\"conversation\":[{\"role\":\"user\",\"content\":\"a\"},"
        "{\"role\":\"assistant\",\"content\":\"b <image> c\"}]}\n");
    char *data, *picture = path_join(x->folder, "0.png");
    size_t size;
    struct err e = {0};
    assert_int_equal(file_read(GOLDEN "/images/0.png", &data, &size, &e), ST_OK);
    assert_int_equal(file_write(picture, data, size, &e), ST_OK);
    static const char *const templates[] = {"llama_3", "plain"};
    for (int k = 0; k < 2; k++) {
        struct dataset *d = dataset_of(x, path, "", (struct data_options){.conv_template = templates[k]}, &x->mllava);
        for (int64_t i = 0; i < dataset_rows(d); i++) {
            struct row r = row_of(d, i, false);
            struct batch b;
            assert_int_equal(r.images, i);
            batch_build(&b, &r, 1, &x->mllava);
            assert_int_equal(b.N, r.positions);
            assert_int_equal(b.scored, r.scored);
            batch_free(&b);
            row_free(&r);
        }
        dataset_free(d);
    }
    free(data), free(path), free(picture);
}

static void add_batch(struct text *t, const struct batch *b) {
    text_add_n(t, (const char *)b->ids, (size_t)b->N * sizeof *b->ids);
    text_add_n(t, (const char *)b->targets, (size_t)b->N * sizeof *b->targets);
    text_add_n(t, (const char *)b->row_index, (size_t)b->rows * sizeof *b->row_index);
    for (int64_t i = 0; i < b->images; i++)
        text_add_n(t, (const char *)b->image[i].pixels,
                   (size_t)(3 * b->image[i].height * b->image[i].width) * sizeof(float));
}

static struct text stream_of(const struct dataset *d, struct loader_options o, struct batch_limits *seen) {
    struct err e = {0};
    struct text all = {0};
    struct loader *l = loader_new(d, &o);
    *seen = (struct batch_limits){.rows = o.rows_per_batch};
    for (int64_t i = 0; i < o.batches; i++) {
        const struct batch *b;
        if (loader_next(l, &b, &e) != ST_OK) fail_msg("%s", e.text);
        add_batch(&all, b);
        if (b->N > seen->N) seen->N = b->N;
        if (b->images > seen->images) seen->images = b->images;
        if (b->scored > seen->scored) seen->scored = b->scored;
        for (int64_t r = 0; r < b->rows; r++) {
            int64_t length = b->offsets[r + 1] - b->offsets[r];
            if (length > seen->longest) seen->longest = length;
        }
    }
    const struct batch *none;
    assert_int_equal(loader_next(l, &none, &e), ST_FAIL);
    loader_free(l);
    return all;
}

/* Batches of 3 out of 4 rows: most span two epochs. */
static void test_loader_is_the_same_for_any_workers(void **state) {
    struct data_fixture *x = *state;
    struct dataset *d = dataset_of(x, "rows.json", "", (struct data_options){0}, &x->mllava);
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        struct loader_options o = {.rows_per_batch = 3, .shuffle = shuffle, .seed = 5, .workers = 1, .batches = 9};
        struct batch_limits seen, other, planned;
        struct text one = stream_of(d, o, &seen);
        o.workers = 4;
        struct text four = stream_of(d, o, &other);
        assert_int_equal(one.len, four.len);
        assert_memory_equal(one.data, four.data, one.len);
        struct loader *l = loader_new(d, &o);
        loader_limits(l, &planned);
        loader_free(l);
        assert_memory_equal(&planned, &seen, sizeof seen);
        /* Resumed at batch 5, the rest is the same. */
        o.first_batch = 5, o.batches = 4;
        struct text rest = stream_of(d, o, &other);
        assert_true(rest.len < one.len);
        assert_memory_equal(rest.data, one.data + one.len - rest.len, rest.len);
        text_free(&one), text_free(&four), text_free(&rest);
    }
    dataset_free(d);
}

static void test_each_epoch_holds_every_row_once(void **state) {
    struct data_fixture *x = *state;
    struct dataset *d = dataset_of(x, "text.json", "", (struct data_options){.conv_template = "llama_3"}, &x->text);
    struct loader_options o = {.rows_per_batch = 2, .shuffle = true, .seed = 1, .workers = 1, .batches = 1};
    struct loader *l = loader_new(d, &o);
    int changed = 0;
    for (int64_t epoch = 0; epoch < 9; epoch++) {
        int seen = 0;
        for (int64_t i = 0; i < 7; i++) {
            seen |= 1 << loader_row(l, epoch * 7 + i);
            changed += loader_row(l, epoch * 7 + i) != loader_row(l, i);
        }
        assert_int_equal(seen, 127);
    }
    assert_true(changed > 0);
    loader_free(l); // with batches that nobody asked for
    dataset_free(d);
}

static void test_a_picture_that_went_away(void **state) {
    struct data_fixture *x = *state;
    struct err e = {0};
    char *path = folder_put(x->folder, "gone.jsonl",
                            "{\"image\":\"p.png\",\"conversation\":[{\"role\":\"user\",\"content\":\"a\"}]}");
    char *data, *picture = path_join(x->folder, "p.png");
    size_t size;
    assert_int_equal(file_read(GOLDEN "/images/0.png", &data, &size, &e), ST_OK);
    assert_int_equal(file_write(picture, data, size, &e), ST_OK);
    struct dataset *d = dataset_of(x, path, "", (struct data_options){0}, &x->mllava);
    unlink(picture);
    struct loader_options o = {.rows_per_batch = 1, .workers = 2, .batches = 3};
    struct loader *l = loader_new(d, &o);
    const struct batch *b;
    assert_int_equal(loader_next(l, &b, &e), ST_FAIL);
    assert_contains(e.text, "p.png");
    loader_free(l);
    dataset_free(d);
    free(data), free(path), free(picture);
}

static void test_dump(void **state) {
    struct data_fixture *x = *state;
    struct err e = {0};
    struct dataset *d = dataset_of(x, "rows.json", "", (struct data_options){0}, &x->mllava);
    char *path = path_join(x->folder, "row.safetensors");
    struct row r = row_of(d, 0, true);
    assert_int_equal(dump_write(path, &r, &x->mllava, &e), ST_OK);
    struct st_set s;
    assert_int_equal(st_open_file(&s, path, &e), ST_OK);
    assert_int_equal(s.count, 4);
    const struct st_entry *pixels = st_find(&s, "pixel_values"), *positions = st_find(&s, "position_ids");
    assert_int_equal(pixels->dim[0], 2);
    assert_int_equal(pixels->dim[3], 28);
    assert_memory_equal((const char *)pixels->data + pixels->bytes / 2, r.image[1].pixels, pixels->bytes / 2);
    assert_int_equal(positions->dim[0], r.positions);
    assert_int_equal(((const int32_t *)positions->data)[r.positions - 1], r.positions - 1);
    assert_memory_equal(st_find(&s, "labels")->data, r.labels, r.ids.len * sizeof *r.labels);
    st_close(&s);
    row_free(&r);
    dataset_free(d);
    free(path);
}

static void test_show_is_safe(void **state) {
    struct data_fixture *x = *state;
    char *path =
        folder_put(x->folder, "bell.jsonl",
                   "{\"id\":\"\\u001b[1m\",\"conversation\":[{\"role\":\"user\",\"content\":\"a\\u001b[31m\\u009bb\"},"
                   "{\"role\":\"assistant\",\"content\":\"c\"}]}");
    struct dataset *d = dataset_of(x, path, "", (struct data_options){.conv_template = "idefics_2"}, &x->text);
    struct row r = row_of(d, 0, false);
    struct text plain = {0}, ansi = {0};
    show_row(&plain, &r, &x->text, x->tokenizer, false);
    show_row(&ansi, &r, &x->text, x->tokenizer, true);
    assert_null(strchr(plain.data, '\033'));
    assert_contains(plain.data, "User:a?[31m?b<end_of_utterance>⟦\nAssistant:c<end_of_utterance>⟧\n");
    assert_contains(ansi.data, "\033[32m\nAssistant:c<end_of_utterance>\033[0m");
    text_free(&plain), text_free(&ansi);
    row_free(&r);
    dataset_free(d);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_are_as_expected),
        cmocka_unit_test(test_pictures_of_a_row),
        cmocka_unit_test(test_truncation_drops_pictures),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_own_template),
        cmocka_unit_test(test_a_template_that_rewrites_turns),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_mixture_of_two_sets),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_counts_agree_with_batches),
        cmocka_unit_test(test_loader_is_the_same_for_any_workers),
        cmocka_unit_test(test_each_epoch_holds_every_row_once),
        cmocka_unit_test(test_a_picture_that_went_away),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_show_is_safe),
    };
    return cmocka_run_group_tests(tests, set_up, data_fixture_end);
}

/* Idefics2's rows against transformers, tokenizers, jinja2 and torch (golden/make_idefics2_data.py): expanded text,
 * labels, pictures of a row and the patches that the tower sees of each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "data/image_set.h"
#include "data/prompt.h"
#include "data/show.h"
#include "tests/data_fixture.h"
#include "tests/folder.h"

#define GOLDEN "tests/golden/idefics2_data"

static int set_up(void **state) { return data_fixture_start(state, GOLDEN); }

/* The family of the fixtures, with the processor of a folder. */
static struct data_family family_of(const struct data_fixture *x, const char *dir) {
    return (struct data_family){.family = FAMILY_IDEFICS2,
                                .model_dir = dir,
                                .default_template = "idefics_2",
                                .vocab_size = 1000,
                                .image_token = tokenizer_id(x->tokenizer, "<image>"),
                                .tokens_per_image = 3,
                                .patch_size = 7,
                                .grid_side = 9,
                                .problem = PROBLEM_REGRESSION,
                                .num_labels = 2,
                                .pad_token = -1};
}

static struct dataset *open_rows(const struct data_fixture *x, const char *file, const char *more, bool decode,
                                 const struct data_family *f, struct err *e) {
    char *fields = mem_format("%s%s", strstr(file, "chat") ? "" : ", format: classification", more);
    struct dataset *d = dataset_try(x, file, fields, (struct data_options){.decode_images = decode}, f, NULL, e);
    free(fields);
    return d;
}

static struct dataset *open_good(const struct data_fixture *x, const char *file, const char *more,
                                 const struct data_family *f) {
    struct err e = {0};
    struct dataset *d = open_rows(x, file, more, true, f, &e);
    if (!d) fail_msg("%s", e.text);
    return d;
}

/* ---------------------------------------------------------------- rows */

static void check_dump(const cJSON *want, const struct row *r, const struct data_family *f) {
    struct dump d;
    dump_init(&d, r, f);
    const cJSON *shape = json_get(want, "shape");
    const struct st_entry *ids = dump_entry(&d, "input_ids"), *pixels, *mask, *patches;
    check_list(json_get(want, "ids"), ids->data, ids->dim[0], "id");
    assert_int_equal(dump_entry(&d, "position_ids")->dim[0], ids->dim[0]);
    if (!r->value_count) check_list(json_get(want, "labels"), dump_entry(&d, "labels")->data, ids->dim[0], "label");
    if (shape) {
        pixels = dump_entry(&d, "pixel_values"), mask = dump_entry(&d, "pixel_attention_mask");
        patches = dump_entry(&d, "patch_position_ids");
        for (int i = 0; i < 4; i++) assert_int_equal(pixels->dim[i], list_item(shape, i));
        assert_int_equal(patches->dim[1],
                         (list_item(shape, 2) / f->patch_size) * (list_item(shape, 3) / f->patch_size));
        check_hash(pixels->data, pixels->bytes, json_get(want, "pixels"), "pixel_values");
        check_hash(mask->data, mask->bytes, json_get(want, "mask"), "pixel_attention_mask");
        check_hash(patches->data, patches->bytes, json_get(want, "positions"), "patch_position_ids");
    } else {
        assert_int_equal(d.count, 3);
    }
    dump_free(&d);
}

/* What the tower is given: whole patches, and as many -1 as there are image tokens. */
static void check_batch(const cJSON *want, struct row *r, const struct data_family *f) {
    struct batch b;
    const cJSON *tower = json_get(want, "tower");
    batch_build(&b, r, 1, f);
    assert_int_equal(b.N, cJSON_GetArraySize(json_get(want, "ids")));
    assert_int_equal(b.images, cJSON_GetArraySize(tower));
    int64_t features = 0;
    for (int64_t i = 0; i < b.N; i++) {
        bool picture = list_item(json_get(want, "ids"), i) == f->image_token;
        assert_int_equal(b.ids[i], picture ? -1 : list_item(json_get(want, "ids"), i));
        features += picture;
    }
    assert_int_equal(features, b.images * f->tokens_per_image);
    for (int64_t i = 0; i < b.images; i++) {
        const cJSON *seen = cJSON_GetArrayItem(tower, (int)i);
        const struct batch_image *im = &b.image[i];
        assert_int_equal(im->height, list_item(seen, 0));
        assert_int_equal(im->width, list_item(seen, 1));
        check_hash(im->pixels, (size_t)(3 * im->height * im->width) * sizeof(float), cJSON_GetArrayItem(seen, 2),
                   "pixels of the tower");
        assert_int_equal(im->patch_positions[0], 0);
    }
    batch_free(&b);
}

static void check_sizes(const cJSON *want, const struct dataset *d, int64_t index) {
    const cJSON *sizes = json_get(want, "sizes");
    struct row r = row_of(d, index, false); // from the heads of the files
    assert_int_equal(r.images, cJSON_GetArraySize(sizes));
    for (int64_t i = 0; i < r.images; i++) {
        assert_int_equal(r.image[i].height, list_item(cJSON_GetArrayItem(sizes, (int)i), 0));
        assert_int_equal(r.image[i].width, list_item(cJSON_GetArrayItem(sizes, (int)i), 1));
        assert_null(r.image[i].pixels);
    }
    row_free(&r);
}

static void check_row(const struct data_fixture *x, const cJSON *want) {
    char *dir = path_join(GOLDEN, json_get(want, "kind")->valuestring);
    char *more = mem_format(", max_image_size: %d", (int)whole_of(want, "max_image_size"));
    const struct data_family f = family_of(x, dir);
    const char *limit = whole_of(want, "max_image_size") > 0 ? more : "";
    struct dataset *d = open_good(x, json_get(want, "file")->valuestring, limit, &f);
    int64_t index = whole_of(want, "row");
    struct row r = row_of(d, index, true);
    for (int64_t i = 0; i < r.value_count; i++) assert_true(r.values[i] == list_item(json_get(want, "labels"), i));
    check_dump(want, &r, &f);
    check_batch(want, &r, &f);
    check_sizes(want, d, index);
    row_free(&r);
    dataset_free(d);
    free(dir), free(more);
}

static void test_rows_as_reference(void **state) {
    cJSON *expected = golden_json(*state, "expected.json");
    int checked = 0;
    for (const cJSON *want = expected->child; want; want = want->next, checked++) check_row(*state, want);
    assert_int_equal(checked, 6 * 2 * 9);
    cJSON_Delete(expected);
}

/* The tokenizer's own template: content in parts, answers between growing renderings. */
static void test_own_template(void **state) {
    struct data_fixture *x = *state;
    static const char *const dirs[] = {GOLDEN "/plain", GOLDEN "/split"};
    cJSON *own = golden_json(*state, "own.json");
    const cJSON *want = own->child;
    for (int k = 0; k < 2; k++) {
        struct data_family f = family_of(x, dirs[k]);
        f.default_template = NULL;
        struct dataset *d = open_good(x, "chat.json", "", &f);
        for (int64_t i = 0; i < 6; i++, want = want->next) {
            struct row r = row_of(d, i, false);
            check_list(json_get(want, "ids"), r.ids.data, r.ids.len, "id");
            check_list(json_get(want, "labels"), r.labels, r.ids.len, "label");
            row_free(&r);
        }
        dataset_free(d);
    }
    cJSON_Delete(own);
}

/* ---------------------------------------------------------------- positions */

static void test_positions_as_torch(void **state) {
    cJSON *all = golden_json(*state, "buckets.json");
    int64_t most = whole_of(all, "most");
    int32_t *got = mem_alloc((size_t)(most * (most + 1) / 2) * sizeof *got);
    for (const cJSON *t = json_get(all, "sides")->child; t; t = t->next) {
        int64_t side = whole_of(t, "side");
        size_t n = 0;
        for (int64_t cols = 1; cols <= most; n += (size_t)cols++)
            image_set_positions(got + n, (struct sides){1, cols}, side);
        check_hash(got, n * sizeof *got, json_get(t, "hash"), "buckets");
    }
    for (const cJSON *t = json_get(all, "odd")->child; t; t = t->next) {
        int64_t n = whole_of(t, "n");
        image_set_positions(got, (struct sides){1, n}, 70);
        check_list(json_get(t, "buckets"), got, n, "bucket");
        image_set_positions(got, (struct sides){n, 1}, 70);
        for (int64_t i = 0; i < n; i++) assert_int_equal(got[i], 70 * list_item(json_get(t, "buckets"), i));
    }
    free(got);
    cJSON_Delete(all);
}

/* One pixel more is a patch more, except for the largest. */
static void test_partial_patches(void **state) {
    const struct data_family f = family_of(*state, "");
    struct batch_image image[] = {{.height = 21, .width = 27}, {.height = 14, .width = 14}, {.height = 15, .width = 8}};
    struct sides largest = image_set_largest(image, 3);
    static const int64_t want[3][2] = {{3, 3}, {2, 2}, {3, 2}};
    for (int i = 0; i < 3; i++) {
        struct sides s = image_set_patches(&image[i], largest, f.patch_size);
        assert_int_equal(s.rows, want[i][0]);
        assert_int_equal(s.cols, want[i][1]);
    }
    struct patch_count c = image_set_count(image, 3, &f);
    assert_int_equal(c.patches, 9 + 4 + 6);
    assert_int_equal(c.most, 9);
}

/* ---------------------------------------------------------------- limits */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static void test_limits_are_reached(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/split");
    struct dataset *d = open_good(x, "chat.json", "", &f);
    struct loader_options o = {.rows_per_batch = 2, .workers = 2, .batches = 3};
    struct loader *l = loader_new(d, &o);
    struct batch_limits planned, seen = {0};
    struct err e = {0};
    loader_limits(l, &planned);
    for (int64_t k = 0; k < o.batches; k++) {
        const struct batch *b;
        int64_t patches = 0;
        if (loader_next(l, &b, &e) != ST_OK) fail_msg("%s", e.text);
        for (int64_t i = 0; i < b->images; i++) {
            int64_t n = b->image[i].height / f.patch_size * (b->image[i].width / f.patch_size);
            patches += n;
            seen.most_patches = larger(seen.most_patches, n);
        }
        seen.patches = larger(seen.patches, patches), seen.N = larger(seen.N, b->N);
        seen.images = larger(seen.images, b->images), seen.scored = larger(seen.scored, b->scored);
    }
    assert_int_equal(planned.patches, seen.patches);
    assert_int_equal(planned.most_patches, seen.most_patches);
    assert_int_equal(planned.images, seen.images);
    assert_int_equal(planned.N, seen.N);
    assert_int_equal(planned.scored, seen.scored);
    assert_int_equal(dataset_row_size(d, 0).images, 10);
    assert_true(dataset_row_size(d, 0).patches >= dataset_row_size(d, 0).most_patches);
    loader_free(l);
    dataset_free(d);
}

/* A picture that grows after the check would not fit the memory that was planned. */
static void test_changed_picture(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/as_it_is");
    char *picture = path_join(x->folder, "p.png");
    const char *text = "[{\"image\": \"p.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"a\"}, "
                       "{\"role\": \"assistant\", \"content\": \"b\"}]}]";
    struct err e = {0};
    const struct batch *b;
    char *rows = folder_put(x->folder, "chat_one.json", text);
    copy_file(GOLDEN "/0.png", picture);
    struct dataset *d = open_good(x, rows, "", &f);
    struct loader_options o = {.rows_per_batch = 1, .workers = 1, .batches = 1};
    struct loader *l = loader_new(d, &o);
    assert_int_equal(loader_next(l, &b, &e), ST_OK);
    loader_free(l);
    copy_file(GOLDEN "/6.png", picture);
    l = loader_new(d, &o);
    assert_int_equal(loader_next(l, &b, &e), ST_FAIL);
    assert_contains(e.text, "a file has changed");
    loader_free(l);
    dataset_free(d);
    free(rows), free(picture);
}

static void test_sides_without_pixels(void **state) {
    (void)state;
    static const int64_t sides[] = {1, 2, 9, 15, 16, 17, 39, 40, 41, 133, 300};
    enum { N = sizeof sides / sizeof *sides };
    for (int i = 0; i < N * N * 2; i++) {
        int64_t width = sides[i % N], height = sides[i / N % N], most = i / N / N ? 40 : 0;
        struct image im = {width, height, mem_alloc((size_t)(3 * width * height))};
        struct err e = {0}, again = {0};
        enum status st = image_mantis_size(&im, most, "p", &e);
        assert_int_equal(image_mantis_sides(&width, &height, most, "p", &again), st);
        assert_string_equal(e.text, again.text);
        if (st == ST_OK) assert_true(im.width == width && im.height == height);
        image_free(&im);
    }
}

/* ---------------------------------------------------------------- prompts */

static void check_prompt(const struct data_fixture *x, const cJSON *want, bool own) {
    struct data_family f = family_of(x, whole_of(want, "pieces") > 1 ? GOLDEN "/split" : GOLDEN "/plain");
    struct prompter p;
    struct row row = {0}, messages = {0};
    struct err e = {0};
    struct prompt prompt = {.text = json_get(want, "text")->valuestring, .images = whole_of(want, "images")};
    if (own) f.default_template = NULL;
    prompter_open(&p, &f, x->tokenizer, NULL, true, &e);
    prompt_encode(&row, &p, &prompt, &e);
    if (e.code != ST_OK) fail_msg("%s", e.text);
    check_list(json_get(want, own ? "own" : "ids"), row.ids.data, row.ids.len, "id");
    assert_int_equal(row.images, prompt.images * prompter_pieces(&p));
    assert_int_equal(row.positions, row.ids.len);
    cJSON *list = cJSON_CreateArray();
    messages_add(list, "user", prompt.text);
    prompt.messages = list, prompt.text = NULL, prompt.where = "messages";
    assert_int_equal(prompt_encode(&messages, &p, &prompt, &e), ST_OK);
    check_list(json_get(want, own ? "own" : "ids"), messages.ids.data, messages.ids.len, "id");
    cJSON_Delete(list);
    row_free(&row), row_free(&messages);
    prompter_close(&p);
}

static void test_prompts(void **state) {
    cJSON *asked = golden_json(*state, "prompts.json");
    for (const cJSON *want = asked->child; want; want = want->next) {
        check_prompt(*state, want, false);
        check_prompt(*state, want, true);
    }
    cJSON_Delete(asked);
}

static void test_prompt_pictures(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/split");
    struct prompter p;
    struct batch_image image[5];
    struct err e = {0}, missing = {0}, surplus = {0}, cut = {0};
    struct row row = {0};
    assert_int_equal(prompter_open(&p, &f, x->tokenizer, NULL, true, &e), ST_OK);
    assert_int_equal(prompt_read_image(image, &p, GOLDEN "/1.png", &e), ST_OK);
    assert_int_equal(image[0].width, 64); // 150 x 8, shrunk and then at least 20 high
    assert_int_equal(image[0].height, 20);
    for (int i = 0; i < 5; i++) {
        assert_non_null(image[i].pixels);
        batch_image_free(&image[i]);
    }
    assert_int_equal(prompt_read_image(image, &p, GOLDEN "/none.png", &missing), ST_FAIL);
    struct prompt two = {.text = "<image><image>", .images = 1};
    assert_int_equal(prompt_encode(&row, &p, &two, &surplus), ST_FAIL);
    assert_contains(surplus.text, "2 <image> for 1 pictures");
    row_free(&row);
    struct prompt long_one = {.text = "<image> why", .images = 1, .max_seq_len = 12};
    assert_int_equal(prompt_encode(&row, &p, &long_one, &cut), ST_FAIL);
    assert_contains(cut.text, "max_seq_len");
    row_free(&row);
    prompter_close(&p);
}

/* ---------------------------------------------------------------- refusals */

/* A processor of one setting more than Idefics2's defaults for tiny pictures, in the folder. */
static void put_processor(const struct data_fixture *x, const char *settings, const char *other) {
    char *json =
        mem_format("{\"image_processor_type\": \"Idefics2ImageProcessor\"%s%s}", *settings ? ", " : "", settings);
    free(folder_put(x->folder, "preprocessor_config.json", json));
    free(folder_put(x->folder, "processor_config.json", other));
    free(json);
}

static void refuse(struct data_fixture *x, const char *settings, const char *other, const char *rows, const char *more,
                   const char *complaint) {
    put_processor(x, settings, other);
    const struct data_family f = family_of(x, x->folder);
    struct err e = {0};
    struct dataset *d = open_rows(x, rows, more, false, &f, &e);
    if (complaint && d) fail_msg("%s is taken", settings);
    if (complaint) assert_contains(e.text, complaint);
    if (!complaint && !d) fail_msg("%s: %s", settings, e.text);
    dataset_free(d);
}

static void test_processor_refusals(void **state) {
    struct data_fixture *x = *state;
    refuse(x, "", "{}", "chat.json", "", NULL);
    refuse(x, "\"size\": {\"shortest_edge\": 20}", "{}", "chat.json", "", "size must hold");
    refuse(x, "\"size\": {\"shortest_edge\": 20, \"longest_edge\": 0}", "{}", "chat.json", "", "size holds a side");
    refuse(x, "\"size\": {\"shortest_edge\": 2, \"longest_edge\": 9, \"width\": 9}", "{}", "chat.json", "",
           "size must");
    refuse(x, "\"size\": {\"height\": 20, \"longest_edge\": 30}", "{}", "chat.json", "", "size must hold");
    refuse(x, "\"size\": 20", "{}", "chat.json", "", "size must hold");
    refuse(x, "\"do_center_crop\": true", "{}", "chat.json", "", "do_center_crop");
    refuse(x, "\"do_split\": null", "{}", "chat.json", "", "do_split");
    refuse(x, "\"do_image_splitting\": 1", "{}", "chat.json", "", "do_image_splitting");
    refuse(x, "", "{\"image_seq_len\": 4}", "chat.json", "", "image_seq_len");
    refuse(x, "", "{\"image_seq_len\": 3}", "chat.json", "", NULL);
    refuse(x, "", "[", "chat.json", "", "processor_config.json");
    refuse(x, "\"do_split\": 1", "{\"image_processor\": {\"image_processor_type\": \"Idefics2ImageProcessor\"}}",
           "chat.json", "", NULL); // the nested one counts
    refuse(x, "", "{\"image_processor\": {\"image_processor_type\": \"Idefics2ImageProcessor\", \"size\": 2}}",
           "chat.json", "", "processor_config.json: size");
    refuse(x, "", "{\"image_processor\": 2}", "chat.json", "", "not a JSON object");
}

static void test_row_refusals(void **state) {
    struct data_fixture *x = *state;
    const char *small = "\"do_resize\": false, \"do_image_splitting\": true";
    refuse(x, "\"do_pad\": false", "{}", "chat.json", "", "do_pad");
    refuse(x, "\"do_pad\": false, \"size\": {\"height\": 9, \"width\": 9}", "{}", "chat.json", "", NULL);
    refuse(x, "\"size\": {\"height\": 6, \"width\": 90}", "{}", "chat.json", "", "a patch of 7 x 7");
    refuse(x, small, "{}", "chat.json", "", NULL);
    refuse(x, "", "{}", "chat.json", ", max_seq_len: 9", "max_seq_len");
    refuse(x, "", "{}", "scores.json", ", max_seq_len: 30", "max_seq_len");

    char *path =
        folder_put(x->folder, "chat_more.json",
                   "[{\"image\": \"x.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"<image><image>\"}, "
                   "{\"role\": \"assistant\", \"content\": \"a\"}]}]");
    refuse(x, "", "{}", path, "", "2 <image> for 1 pictures");
    free(path);
}

/* What belongs to another model is named. */
static void test_family_refusals(void **state) {
    struct data_fixture *x = *state;
    struct processor p;
    struct data_family f = family_of(x, GOLDEN "/plain"), other = f;
    struct err one = {0}, two = {0}, three = {0}, four = {0};
    other.family = FAMILY_MLLAVA;
    assert_int_equal(image_set_open(&p, &other, x->tokenizer, &one), ST_FAIL);
    assert_contains(one.text, "preprocessor_config.json");
    other = f, other.image_token++;
    assert_int_equal(image_set_open(&p, &other, x->tokenizer, &two), ST_FAIL);
    assert_contains(two.text, "<image>");
    other = f, other.grid_side = INT32_MAX;
    assert_int_equal(image_set_open(&p, &other, x->tokenizer, &three), ST_FAIL);
    assert_contains(three.text, "grid");
    struct tokenizer *plain = tokenizer_load("tests/golden/data/model", &four);
    other = f, other.image_token = tokenizer_id(plain, "<image>");
    assert_int_equal(image_set_open(&p, &other, plain, &four), ST_FAIL);
    assert_contains(four.text, FAKE_TOKEN);
    tokenizer_free(plain);
}

/* A cut behind the pictures only shortens what is trained. */
static void test_cut_text(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/plain");
    struct dataset *whole = open_good(x, "chat.json", ", max_size: 1", &f);
    struct row r = row_of(whole, 0, false), cut;
    char *more = mem_format(", max_size: 1, max_seq_len: %zu", r.ids.len - 3);
    struct dataset *d = open_good(x, "chat.json", more, &f);
    cut = row_of(d, 0, false);
    assert_int_equal(cut.ids.len, r.ids.len - 3);
    assert_int_equal(cut.images, 2);
    assert_memory_equal(cut.ids.data, r.ids.data, cut.ids.len * sizeof *cut.ids.data);
    assert_memory_equal(cut.labels, r.labels, cut.ids.len * sizeof *cut.labels);
    free(more);
    row_free(&r), row_free(&cut);
    dataset_free(whole), dataset_free(d);
}

static void test_show(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/plain");
    struct dataset *d = open_good(x, "chat.json", "", &f);
    struct row r = row_of(d, 0, false);
    struct text out = {0};
    char *counted = mem_format("2 pictures of %lld patches", (long long)dataset_row_size(d, 0).patches);
    show_row(&out, &r, &f, x->tokenizer, false);
    assert_contains(text_str(&out), counted);
    free(counted);
    text_free(&out);
    row_free(&r);
    dataset_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_as_reference),
        cmocka_unit_test(test_own_template),
        cmocka_unit_test(test_positions_as_torch),
        cmocka_unit_test(test_partial_patches),
        cmocka_unit_test(test_limits_are_reached),
        cmocka_unit_test(test_changed_picture),
        cmocka_unit_test(test_sides_without_pixels),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_prompt_pictures),
        cmocka_unit_test(test_processor_refusals),
        cmocka_unit_test(test_row_refusals),
        cmocka_unit_test(test_family_refusals),
        cmocka_unit_test(test_cut_text),
        cmocka_unit_test(test_show),
    };
    return cmocka_run_group_tests(tests, set_up, data_fixture_end);
}

/* Idefics2's rows against transformers, tokenizers, jinja2 and torch (golden/make_idefics2_data.py): expanded text,
 * labels, pictures of a row and the patches that the tower sees of each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/yaml.h"
#include "data/dataset.h"
#include "data/dump.h"
#include "data/image_set.h"
#include "data/prompt.h"
#include "data/show.h"

#define GOLDEN "tests/golden/idefics2_data"

struct fixture {
    char folder[48];
    struct tokenizer *tokenizer;
    struct threads *threads;
};

static int set_up(void **state) {
    struct fixture *x = mem_alloc(sizeof *x);
    struct err e = {0};
    snprintf(x->folder, sizeof x->folder, "/tmp/graft-idefics2-data-XXXXXX");
    x->tokenizer = tokenizer_load(GOLDEN "/model", &e);
    if (!mkdtemp(x->folder) || !x->tokenizer) return -1;
    x->threads = threads_new(2);
    *state = x;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *x = *state;
    struct err e = {0};
    tokenizer_free(x->tokenizer);
    threads_free(x->threads);
    dir_remove(x->folder, &e);
    free(x);
    return 0;
}

/* The family of the fixtures, with the processor of a folder. */
static struct data_family family_of(const struct fixture *x, const char *dir) {
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

static void assert_contains(const char *s, const char *part) {
    if (!strstr(s, part)) fail_msg("\"%s\" does not hold \"%s\"", s, part);
}

static cJSON *read_golden(const char *name) {
    struct err e = {0};
    char *path = path_join(GOLDEN, name);
    cJSON *tree = json_read(path, &e);
    if (!tree) fail_msg("%s", e.text);
    free(path);
    return tree;
}

static struct dataset *open_rows(const struct fixture *x, const char *file, const char *more, struct data_options o,
                                 const struct data_family *f, struct err *e) {
    bool chat = strstr(file, "chat") != NULL;
    char *json =
        mem_format("[{path: %s, name: a, split: train, format: %s%s}]", file, chat ? "chat" : "classification", more);
    cJSON *list = yaml_parse(json, strlen(json), "inline", e);
    o.inline_list = list, o.inline_dir = GOLDEN, o.split = "train";
    struct dataset *d = list ? dataset_open(&o, f, x->tokenizer, x->threads, NULL, e) : NULL;
    cJSON_Delete(list);
    free(json);
    return d;
}

static struct dataset *open_good(const struct fixture *x, const char *file, const char *more,
                                 const struct data_family *f) {
    struct err e = {0};
    struct dataset *d = open_rows(x, file, more, (struct data_options){.decode_images = true}, f, &e);
    if (!d) fail_msg("%s", e.text);
    return d;
}

static struct row row_of(const struct dataset *d, int64_t index, bool pixels) {
    struct row r;
    struct err e = {0};
    if (dataset_row(d, index, pixels, &r, &e) != ST_OK) fail_msg("row %lld: %s", (long long)index, e.text);
    return r;
}

static double number_of(const cJSON *o, const char *key) { return json_get(o, key)->valuedouble; }
static int item(const cJSON *list, int64_t i) { return cJSON_GetArrayItem(list, (int)i)->valueint; }

/* ---------------------------------------------------------------- rows */

static void check_list(const cJSON *want, const int32_t *got, size_t n, const char *what) {
    assert_int_equal(n, cJSON_GetArraySize(want));
    for (size_t i = 0; i < n; i++)
        if (got[i] != item(want, (int64_t)i))
            fail_msg("%s %zu is %d, wanted %d", what, i, got[i], item(want, (int64_t)i));
}

static void check_hash(const void *data, size_t n, const cJSON *want, const char *what) {
    char got[20];
    snprintf(got, sizeof got, "%016llx", (unsigned long long)hash_bytes(HASH_START, data, n));
    if (strcmp(got, want->valuestring) != 0) fail_msg("%s: hash %s, wanted %s", what, got, want->valuestring);
}

static const struct st_entry *find(const struct dump *d, const char *name) {
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->entry[i].name, name) == 0) return &d->entry[i];
    fail_msg("the dump has no %s", name);
    return NULL;
}

static void check_dump(const cJSON *want, const struct row *r, const struct data_family *f) {
    struct dump d;
    dump_init(&d, r, f);
    const cJSON *shape = json_get(want, "shape");
    const struct st_entry *ids = find(&d, "input_ids"), *pixels, *mask, *patches;
    check_list(json_get(want, "ids"), ids->data, (size_t)ids->dim[0], "id");
    assert_int_equal(find(&d, "position_ids")->dim[0], ids->dim[0]);
    if (!r->value_count) check_list(json_get(want, "labels"), find(&d, "labels")->data, (size_t)ids->dim[0], "label");
    if (shape) {
        pixels = find(&d, "pixel_values"), mask = find(&d, "pixel_attention_mask");
        patches = find(&d, "patch_position_ids");
        for (int i = 0; i < 4; i++) assert_int_equal(pixels->dim[i], item(shape, i));
        assert_int_equal(patches->dim[1], (item(shape, 2) / f->patch_size) * (item(shape, 3) / f->patch_size));
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
        bool picture = item(json_get(want, "ids"), i) == f->image_token;
        assert_int_equal(b.ids[i], picture ? -1 : item(json_get(want, "ids"), i));
        features += picture;
    }
    assert_int_equal(features, b.images * f->tokens_per_image);
    for (int64_t i = 0; i < b.images; i++) {
        const cJSON *seen = cJSON_GetArrayItem(tower, (int)i);
        const struct batch_image *im = &b.image[i];
        assert_int_equal(im->height, item(seen, 0));
        assert_int_equal(im->width, item(seen, 1));
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
        assert_int_equal(r.image[i].height, item(cJSON_GetArrayItem(sizes, (int)i), 0));
        assert_int_equal(r.image[i].width, item(cJSON_GetArrayItem(sizes, (int)i), 1));
        assert_null(r.image[i].pixels);
    }
    row_free(&r);
}

static void check_row(const struct fixture *x, const cJSON *want) {
    char *dir = path_join(GOLDEN, json_get(want, "kind")->valuestring);
    char *more = mem_format(", max_image_size: %d", (int)number_of(want, "max_image_size"));
    const struct data_family f = family_of(x, dir);
    const char *limit = number_of(want, "max_image_size") > 0 ? more : "";
    struct dataset *d = open_good(x, json_get(want, "file")->valuestring, limit, &f);
    int64_t index = (int64_t)number_of(want, "row");
    struct row r = row_of(d, index, true);
    for (int64_t i = 0; i < r.value_count; i++) assert_true(r.values[i] == item(json_get(want, "labels"), i));
    check_dump(want, &r, &f);
    check_batch(want, &r, &f);
    check_sizes(want, d, index);
    row_free(&r);
    dataset_free(d);
    free(dir), free(more);
}

static void test_rows_as_reference(void **state) {
    cJSON *expected = read_golden("expected.json");
    int checked = 0;
    for (const cJSON *want = expected->child; want; want = want->next, checked++) check_row(*state, want);
    assert_int_equal(checked, 6 * 2 * 9);
    cJSON_Delete(expected);
}

/* The tokenizer's own template: content in parts, answers between growing renderings. */
static void test_own_template(void **state) {
    struct fixture *x = *state;
    static const char *const dirs[] = {GOLDEN "/plain", GOLDEN "/split"};
    cJSON *own = read_golden("own.json");
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
    (void)state;
    cJSON *all = read_golden("buckets.json");
    int64_t most = (int64_t)number_of(all, "most");
    int32_t *got = mem_alloc((size_t)(most * (most + 1) / 2) * sizeof *got);
    for (const cJSON *t = json_get(all, "sides")->child; t; t = t->next) {
        int64_t side = (int64_t)number_of(t, "side");
        size_t n = 0;
        for (int64_t cols = 1; cols <= most; n += (size_t)cols++)
            image_set_positions(got + n, (struct sides){1, cols}, side);
        check_hash(got, n * sizeof *got, json_get(t, "hash"), "buckets");
    }
    for (const cJSON *t = json_get(all, "odd")->child; t; t = t->next) {
        int64_t n = (int64_t)number_of(t, "n");
        image_set_positions(got, (struct sides){1, n}, 70);
        check_list(json_get(t, "buckets"), got, (size_t)n, "bucket");
        image_set_positions(got, (struct sides){n, 1}, 70);
        for (int64_t i = 0; i < n; i++) assert_int_equal(got[i], 70 * item(json_get(t, "buckets"), i));
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
    struct fixture *x = *state;
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

static void copy_picture(const char *from, const char *to) {
    struct err e = {0};
    char *data;
    size_t size;
    assert_int_equal(file_read(from, &data, &size, &e), ST_OK);
    assert_int_equal(file_write(to, data, size, &e), ST_OK);
    free(data);
}

/* A picture that grows after the check would not fit the memory that was planned. */
static void test_changed_picture(void **state) {
    struct fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/as_it_is");
    char *rows = path_join(x->folder, "chat_one.json"), *picture = path_join(x->folder, "p.png");
    const char *text = "[{\"image\": \"p.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"a\"}, "
                       "{\"role\": \"assistant\", \"content\": \"b\"}]}]";
    struct err e = {0};
    const struct batch *b;
    assert_int_equal(file_write(rows, text, strlen(text), &e), ST_OK);
    copy_picture(GOLDEN "/0.png", picture);
    struct dataset *d = open_good(x, rows, "", &f);
    struct loader_options o = {.rows_per_batch = 1, .workers = 1, .batches = 1};
    struct loader *l = loader_new(d, &o);
    assert_int_equal(loader_next(l, &b, &e), ST_OK);
    loader_free(l);
    copy_picture(GOLDEN "/6.png", picture);
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

static void check_prompt(const struct fixture *x, const cJSON *want, bool own) {
    struct data_family f = family_of(x, number_of(want, "pieces") > 1 ? GOLDEN "/split" : GOLDEN "/plain");
    struct prompter p;
    struct row row = {0}, messages = {0};
    struct err e = {0};
    struct prompt prompt = {.text = json_get(want, "text")->valuestring, .images = (int64_t)number_of(want, "images")};
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
    cJSON *asked = read_golden("prompts.json");
    for (const cJSON *want = asked->child; want; want = want->next) {
        check_prompt(*state, want, false);
        check_prompt(*state, want, true);
    }
    cJSON_Delete(asked);
}

static void test_prompt_pictures(void **state) {
    struct fixture *x = *state;
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

/* A folder with a processor of one setting more than Idefics2's defaults for tiny pictures. */
static char *processor_with(const struct fixture *x, const char *settings, const char *other) {
    struct err e = {0};
    char *dir = mem_text(x->folder), *path = path_join(dir, "preprocessor_config.json"),
         *text = path_join(dir, "processor_config.json");
    char *json =
        mem_format("{\"image_processor_type\": \"Idefics2ImageProcessor\"%s%s}", *settings ? ", " : "", settings);
    file_write(path, json, strlen(json), &e);
    file_write(text, other, strlen(other), &e);
    if (e.code != ST_OK) fail_msg("%s", e.text);
    free(json), free(path), free(text);
    return dir;
}

static void refuse(struct fixture *x, const char *settings, const char *other, const char *rows, const char *more,
                   const char *complaint) {
    char *dir = processor_with(x, settings, other);
    const struct data_family f = family_of(x, dir);
    struct err e = {0};
    struct dataset *d = open_rows(x, rows, more, (struct data_options){0}, &f, &e);
    if (complaint && d) fail_msg("%s is taken", settings);
    if (complaint) assert_contains(e.text, complaint);
    if (!complaint && !d) fail_msg("%s: %s", settings, e.text);
    dataset_free(d);
    free(dir);
}

static void test_processor_refusals(void **state) {
    struct fixture *x = *state;
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
    struct fixture *x = *state;
    const char *small = "\"do_resize\": false, \"do_image_splitting\": true";
    refuse(x, "\"do_pad\": false", "{}", "chat.json", "", "do_pad");
    refuse(x, "\"do_pad\": false, \"size\": {\"height\": 9, \"width\": 9}", "{}", "chat.json", "", NULL);
    refuse(x, "\"size\": {\"height\": 6, \"width\": 90}", "{}", "chat.json", "", "a patch of 7 x 7");
    refuse(x, small, "{}", "chat.json", "", NULL);
    refuse(x, "", "{}", "chat.json", ", max_seq_len: 9", "max_seq_len");
    refuse(x, "", "{}", "scores.json", ", max_seq_len: 30", "max_seq_len");

    struct err e = {0};
    char *path = path_join(x->folder, "chat_more.json");
    const char *text =
        "[{\"image\": \"x.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"<image><image>\"}, "
        "{\"role\": \"assistant\", \"content\": \"a\"}]}]";
    assert_int_equal(file_write(path, text, strlen(text), &e), ST_OK);
    refuse(x, "", "{}", path, "", "2 <image> for 1 pictures");
    free(path);
}

/* What belongs to another model is named. */
static void test_family_refusals(void **state) {
    struct fixture *x = *state;
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
    struct fixture *x = *state;
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
    struct fixture *x = *state;
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
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

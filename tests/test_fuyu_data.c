/* Fuyu's rows against transformers, tokenizers and the rules of Mantis (golden/make_fuyu_data.py): text around patches,
 * its budget, labels, patches of pictures; prompts; what is refused. */
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

#define GOLDEN "tests/golden/fuyu_data"
enum { PATCH = 8, CASES = 45 };
static const struct data_options decoded = {.decode_images = true};

static int set_up(void **state) { return data_fixture_start(state, GOLDEN); }

static struct data_family family_of(const struct data_fixture *x, const char *dir) {
    return (struct data_family){.family = FAMILY_MFUYU,
                                .model_dir = dir,
                                .default_template = "mfuyu_v1",
                                .vocab_size = 1000,
                                .image_token = tokenizer_id(x->tokenizer, PATCH_TOKEN),
                                .patch_size = PATCH,
                                .pad_token = -1};
}

/* ---------------------------------------------------------------- rows */

static void check_dump(const cJSON *want, const struct row *r, const struct data_family *f) {
    struct dump d;
    dump_init(&d, r, f);
    const struct st_entry *ids = dump_entry(&d, "input_ids");
    check_list(json_get(want, "ids"), ids->data, ids->dim[0], "id");
    check_list(json_get(want, "labels"), dump_entry(&d, "labels")->data, ids->dim[0], "label");
    assert_int_equal(d.count, json_get(want, "patches") ? 5 : 3);
    if (json_get(want, "patches")) {
        const struct st_entry *patches = dump_entry(&d, "image_patches"),
                              *index = dump_entry(&d, "image_patches_indices");
        assert_int_equal(patches->dim[0], whole_of(want, "patches"));
        assert_int_equal(patches->dim[1], 3 * PATCH * PATCH);
        check_hash(patches->data, patches->bytes, json_get(want, "values"), "image_patches");
        int32_t next = 0;
        for (int64_t i = 0; i < ids->dim[0]; i++) {
            bool patch = ((const int32_t *)ids->data)[i] == f->image_token;
            assert_int_equal(((const int32_t *)index->data)[i], patch ? next++ : -1);
        }
    }
    dump_free(&d);
}

/* Only pictures that are in the text go to the model; each is as many positions as it has patches. */
static void check_batch(const cJSON *want, struct row *r, const struct data_family *f) {
    struct batch b;
    const cJSON *ids = json_get(want, "ids");
    int64_t patches = image_set_count(r->image, r->images, f).patches, features = 0, scored = 0;
    batch_build(&b, r, 1, f);
    assert_int_equal(b.N, cJSON_GetArraySize(ids));
    assert_int_equal(b.images, whole_of(want, "pictures"));
    for (int64_t i = 0; i < b.N; i++) {
        bool patch = list_item(ids, i) == f->image_token;
        assert_int_equal(b.ids[i], patch ? -1 : list_item(ids, i));
        assert_int_equal(b.targets[i], i + 1 < b.N ? list_item(json_get(want, "labels"), i + 1) : IGNORED);
        features += patch;
        scored += b.targets[i] != IGNORED;
    }
    assert_int_equal(features, patches);
    assert_int_equal(b.scored, scored);
    assert_int_equal(r->scored, scored);
    for (int64_t i = 0; i < b.images; i++) { // the first patch's first row, then its second
        const struct batch_image *im = &b.image[i], *from = &r->image[i];
        for (int64_t k = 0; k < 2 * PATCH * 3; k++) {
            int64_t y = k / (3 * PATCH), x = k / 3 % PATCH, c = k % 3;
            assert_true(im->pixels[k] == from->pixels[(c * from->height + y) * from->width + x]);
        }
    }
    batch_free(&b);
}

static void check_sizes(const cJSON *want, const struct row *r) {
    const cJSON *sides = json_get(want, "sides");
    assert_int_equal(r->images + r->unseen, cJSON_GetArraySize(sides));
    for (int64_t i = 0; i < r->images + r->unseen; i++) {
        assert_int_equal(r->image[i].height, PATCH * list_item(cJSON_GetArrayItem(sides, (int)i), 0));
        assert_int_equal(r->image[i].width, PATCH * list_item(cJSON_GetArrayItem(sides, (int)i), 1));
    }
}

static void check_row(const struct data_fixture *x, const cJSON *want) {
    char *dir = path_join(GOLDEN, json_get(want, "kind")->valuestring);
    int64_t most = whole_of(want, "max_seq_len");
    char *more = most ? mem_format(", max_seq_len: %lld", (long long)most) : mem_text("");
    const struct data_family f = family_of(x, dir);
    char *file = mem_format("chat_%lld.json", (long long)whole_of(want, "row"));
    struct dataset *d = dataset_of(x, file, more, decoded, &f);
    struct row r = row_of(d, 0, true), heads = row_of(d, 0, false); // from the heads of the files
    check_sizes(want, &heads);
    assert_true(heads.images == 0 || !heads.image[0].pixels);
    check_dump(want, &r, &f);
    check_batch(want, &r, &f);
    row_free(&r), row_free(&heads);
    dataset_free(d);
    free(dir), free(more), free(file);
}

static void test_rows_as_reference(void **state) {
    cJSON *expected = golden_json(*state, "expected.json");
    int checked = 0;
    for (const cJSON *want = expected->child; want; want = want->next, checked++) check_row(*state, want);
    assert_int_equal(checked, CASES);
    cJSON_Delete(expected);
}

static void test_show(void **state) {
    const struct data_family f = family_of(*state, GOLDEN "/plain");
    struct dataset *d = dataset_of(*state, "chat_0.json", "", decoded, &f);
    struct row r = row_of(d, 0, false);
    struct text out = {0};
    show_row(&out, &r, &f, ((struct data_fixture *)*state)->tokenizer, false);
    assert_contains(text_str(&out), "2 pictures of 51 patches in all");
    assert_contains(text_str(&out), "⟦ASSISTANT: It is a dog.|ENDOFTEXT|⟧");
    text_free(&out);
    row_free(&r);
    dataset_free(d);
}

/* ---------------------------------------------------------------- prompts */

static void test_prompts(void **state) {
    struct data_fixture *x = *state;
    const struct data_family f = family_of(x, GOLDEN "/plain");
    struct prompter p;
    struct err e = {0};
    cJSON *asked = golden_json(x, "prompts.json");
    assert_int_equal(prompter_open(&p, &f, x->tokenizer, NULL, true, &e), ST_OK);
    for (const cJSON *want = asked->child; want; want = want->next) {
        struct batch_image image[2] = {0};
        struct row row;
        int64_t images = whole_of(want, "images");
        for (int64_t i = 0; i < images; i++)
            prompt_read_image(&image[i], &p, i ? GOLDEN "/1.png" : GOLDEN "/0.png", &e);
        const struct prompt prompt = {.text = json_get(want, "text")->valuestring, .images = images, .image = image};
        if (prompt_encode(&row, &p, &prompt, &e) != ST_OK) fail_msg("%s", e.text);
        check_list(json_get(want, "ids"), row.ids.data, (int64_t)row.ids.len, "id");
        assert_int_equal(row.images, images);
        row_free(&row);
        for (int i = 0; i < 2; i++) batch_image_free(&image[i]);
    }
    cJSON_Delete(asked);
    prompter_close(&p);
}

/* ---------------------------------------------------------------- what is refused */

/* A processor file with one key set to another value. */
static void refuse_processor(struct data_fixture *x, const char *key, const char *value, const char *says) {
    struct err e = {0};
    struct processor p;
    cJSON *tree = golden_json(x, "plain/preprocessor_config.json");
    char *path = path_join(x->folder, "preprocessor_config.json");
    cJSON_DeleteItemFromObjectCaseSensitive(tree, key);
    cJSON_AddItemToObject(tree, key, cJSON_Parse(value));
    assert_int_equal(json_write(path, tree, &e), ST_OK);
    const struct data_family f = family_of(x, x->folder);
    image_set_open(&p, &f, x->tokenizer, &e);
    struct batch_image image = {0};
    if (e.code == ST_OK) image_set_measure(&image, &p, 90, 33, "a picture", &e);
    assert_int_not_equal(e.code, ST_OK);
    assert_contains(e.text, says);
    cJSON_Delete(tree);
    free(path);
}

static void test_refused_processors(void **state) {
    struct data_fixture *x = *state;
    refuse_processor(x, "padding_mode", "\"reflect\"", "padding_mode");
    refuse_processor(x, "padding_value", "256", "padding_value is 256");
    refuse_processor(x, "padding_value", "-1", "padding_value is -1");
    refuse_processor(x, "patch_size", "{\"height\": 8, \"width\": 4}", "wanted a square");
    refuse_processor(x, "patch_size", "{\"height\": 10, \"width\": 10}", "patches of 10, the model of 8");
    refuse_processor(x, "size", "{\"height\": 40}", "size");
    refuse_processor(x, "size", "{\"height\": 33, \"width\": 90}", "not made of patches of 8");
    refuse_processor(x, "do_resize", "false", "does not fit into size");
    refuse_processor(x, "do_pad", "false", "not made of patches of 8");
    refuse_processor(x, "do_image_splitting", "true", "do_image_splitting");
    refuse_processor(x, "image_processor_type", "\"SiglipImageProcessor\"", "the key \"do_pad\"");
}

static void refuse_row(struct data_fixture *x, const char *row, const char *more, const char *says) {
    struct err e = {0};
    char *path = folder_put(x->folder, "chat.json", row);
    const struct data_family f = family_of(x, GOLDEN "/plain");
    assert_null(dataset_try(x, path, more, decoded, &f, NULL, &e));
    assert_contains(e.text, says);
    free(path);
}

static void test_refused_rows(void **state) {
    struct data_fixture *x = *state;
    struct processor p;
    refuse_row(x,
               "[{\"conversation\": [{\"role\": \"user\", \"content\": \"|SPEAKER|\"}, {\"role\": \"assistant\", "
               "\"content\": \"a\"}]}]",
               "", "1 |SPEAKER| are in the text");
    refuse_row(x,
               "[{\"image\": \"none.png\", \"conversation\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": "
               "\"assistant\", \"content\": \"a\"}]}]",
               "", "none.png");
    refuse_row(x,
               "[{\"conversation\": [{\"role\": \"user\", \"content\": \"a|ENDOFTEXT||ENDOFTEXT|\"}, {\"role\": "
               "\"assistant\", \"content\": \"a\"}]}]",
               "", "answers begin");
    struct err one = {0}, two = {0};
    struct data_family f = family_of(x, GOLDEN "/plain");
    struct tokenizer *plain = tokenizer_load("tests/golden/data/model", &one);
    assert_int_not_equal(image_set_open(&p, &f, plain, &one), ST_OK);
    assert_contains(one.text, "|SPEAKER|");
    tokenizer_free(plain);
    f.family = FAMILY_IDEFICS2, f.image_token = tokenizer_id(x->tokenizer, "<image>");
    assert_int_not_equal(image_set_open(&p, &f, x->tokenizer, &two), ST_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_as_reference),  cmocka_unit_test(test_show),         cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_refused_processors), cmocka_unit_test(test_refused_rows),
    };
    return cmocka_run_group_tests_name("fuyu data", tests, set_up, data_fixture_end);
}

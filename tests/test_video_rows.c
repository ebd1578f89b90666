/* Rows whose pictures are frames: of a file, a folder or a list; where <video> stands; which tokens are trained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "data/check.h"
#include "data/image.h"
#include "data/show.h"
#include "tests/clip.h"
#include "tests/data_fixture.h"
#include "tests/folder.h"

static const struct clip_options lossless = {"png", "rgb24", 28, 28, 12, 10, NULL, NULL};

static char *in_folder(const struct data_fixture *x, const char *name) { return path_join(x->folder, name); }

/* A picture of one grey, as BMP: 28 x 28, 24 bits, no padding. */
static void put_frame(const struct data_fixture *x, const char *name, int grey) {
    enum { SIDE = 28, HEAD = 54, BYTES = HEAD + SIDE * SIDE * 3 };
    uint8_t b[BYTES] = {'B', 'M'};
    b[2] = BYTES & 255, b[3] = BYTES >> 8, b[10] = HEAD, b[14] = 40, b[18] = SIDE, b[22] = SIDE, b[26] = 1, b[28] = 24;
    memset(b + HEAD, grey, BYTES - HEAD);
    struct err e = {0};
    char *path = in_folder(x, name);
    if (file_write(path, b, BYTES, &e) != ST_OK) fail_msg("%s", e.text);
    free(path);
}

static int set_up(void **state) {
    struct err e = {0};
    if (data_fixture_start(state, "tests/golden/data")) return -1;
    struct data_fixture *x = *state;
    char *clips = in_folder(x, "clips"), *frames = in_folder(x, "clips/frames"), *path = in_folder(x, "clips/a.mov");
    dir_make(frames, &e);
    if (!clip_make(path, &lossless)) return -1;
    for (int i = 0; i < 11; i++) { // 0, 1, ... 10: bytewise, 10 comes before 2
        char *name = mem_format("clips/frames/f_%d.bmp", i);
        put_frame(x, name, 20 * i);
        free(name);
    }
    free(folder_put(x->folder, "clips/frames/notes.txt", "no frame"));
    free(clips), free(frames), free(path);
    return 0;
}

#define TURNS(user)                                                                                                    \
    "\"conversation\":[{\"role\":\"user\",\"content\":\"" user "\"},{\"role\":\"assistant\",\"content\":\"One.\"},"    \
    "{\"role\":\"user\",\"content\":\"And <image> then?\"},{\"role\":\"assistant\",\"content\":\"Two.\"}]"

/* One data set of rows.jsonl; fields are added to it. */
static struct dataset *open_rows(struct data_fixture *x, const char *rows, const char *fields, struct data_options o,
                                 struct text *notes, struct err *e) {
    free(folder_put(x->folder, "rows.jsonl", rows));
    o.inline_dir = x->folder;
    return dataset_try(x, "rows.jsonl", fields, o, &x->mllava, notes, e);
}

static struct dataset *open_good(struct data_fixture *x, const char *rows, const char *fields, struct data_options o) {
    struct err e = {0};
    struct dataset *d = open_rows(x, rows, fields, o, NULL, &e);
    if (!d) fail_msg("%s", e.text);
    return d;
}

/* The processor of the model: 28 x 28 stays, (x / 255 - 0.5) / 0.5. */
static int level(const struct row *r, int64_t picture, int channel, int y, int x) {
    float v = r->image[picture].pixels[(channel * 28 + y) * 28 + x];
    return (int)((v + 1) * 127.5f + 0.5f);
}

static void assert_clip_frames(const struct row *r, const int *frames, int64_t n) {
    assert_int_equal(r->images, n);
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            for (int k = 0; k < 28; k++)
                assert_int_equal(level(r, i, c, k, 27 - k), clip_pixel(frames[i], 27 - k, k, c));
}

static void assert_greys(const struct row *r, const int *frames, int64_t n) {
    assert_int_equal(r->images, n);
    for (int64_t i = 0; i < n; i++) assert_int_equal(level(r, i, 1, 5, 7), 20 * frames[i]);
}

#define VIDEO ", format: chat_video, video_dir: clips"

static void test_file(void **state) {
    struct data_fixture *x = *state;
    static const char row[] = "{\"video\":\"a.mov\"," TURNS("<video>\\nWhat?") "}\n";
    static const int spread[] = {0, 2, 4, 7, 9}, by_fps[] = {0, 3, 6, 9},
                     all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    struct dataset *d = open_good(x, row, VIDEO ", max_num_frames: 5", (struct data_options){0});
    struct row r = row_of(d, 0, true);
    assert_clip_frames(&r, spread, 5);
    row_free(&r), dataset_free(d);
    d = open_good(x, row, VIDEO, (struct data_options){.max_num_frames = 5}); // by the flag
    r = row_of(d, 0, true);
    assert_clip_frames(&r, spread, 5);
    row_free(&r), dataset_free(d);
    d = open_good(x, row, VIDEO ", fps: 4, max_num_frames: 5", (struct data_options){0});
    r = row_of(d, 0, true);
    assert_clip_frames(&r, by_fps, 4);
    row_free(&r), dataset_free(d);
    d = open_good(x, row, VIDEO ", fps: 4", (struct data_options){.decode_images = true});
    r = row_of(d, 0, true);
    assert_clip_frames(&r, all, 12);
    assert_int_equal(r.positions, (int64_t)r.ids.len + 12 * (TOKENS_PER_IMAGE - 1));
    row_free(&r), dataset_free(d);
}

static void test_folder_and_list(void **state) {
    struct data_fixture *x = *state;
    static const char rows[] = "{\"video\":\"frames\"," TURNS(
        "What?") "}\n"
                 "{\"images\":[\"frames/f_9.bmp\",\"frames/f_8.bmp\",\"frames/f_7.bmp\"]," TURNS("What?") "}\n";
    static const int of_folder[] = {0, 5}, of_list[] = {9, 8}, whole[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    struct dataset *d = open_good(x, rows, VIDEO ", max_num_frames: 2, fps: 1", (struct data_options){0});
    struct row r = row_of(d, 0, true);
    assert_greys(&r, of_folder, 2);
    row_free(&r);
    r = row_of(d, 1, true);
    assert_greys(&r, of_list, 2); // int(k * 1.5)
    row_free(&r), dataset_free(d);
    d = open_good(x, rows, VIDEO, (struct data_options){0});
    r = row_of(d, 0, true);
    assert_greys(&r, whole, 11);
    row_free(&r), dataset_free(d);
}

/* Mantis enlarges small pictures of the other formats to 16 pixels first. */
static void test_small_frames(void **state) {
    struct data_fixture *x = *state;
    const struct clip_options small = {"png", "rgb24", 8, 8, 1, 10, NULL, NULL};
    uint8_t rgb[8 * 8 * 3];
    struct image im = {8, 8, rgb}, want;
    char *path = in_folder(x, "clips/small.mov");
    assert_true(clip_make(path, &small));
    for (int i = 0; i < 8 * 8 * 3; i++) rgb[i] = clip_pixel(0, i / 3 % 8, i / 24, i % 3);
    image_resize(&want, &im, 28, 28, RESAMPLE_BICUBIC);
    struct dataset *d = open_good(x, "{\"video\":\"small.mov\"," TURNS("a") "}\n", VIDEO, (struct data_options){0});
    struct row r = row_of(d, 0, true);
    for (int i = 0; i < 28 * 28 * 3; i++) assert_int_equal(level(&r, 0, i % 3, i / 84, i / 3 % 28), want.rgb[i]);
    row_free(&r), dataset_free(d);
    image_free(&want);
    free(path);
}

static char *shown(const struct data_fixture *x, const struct dataset *d, int64_t i) {
    struct row r = row_of(d, i, true);
    struct text t = {0};
    show_row(&t, &r, &x->mllava, x->tokenizer, false);
    row_free(&r);
    return t.data;
}

/* Each answer with its header and its end; nothing else. `<image>` of the row is gone, the frames come first. */
static void test_labels(void **state) {
    struct data_fixture *x = *state;
    struct dataset *d = open_good(x, "{\"video\":\"a.mov\"," TURNS(" <image>\\n<video> What?\\n") "}\n",
                                  VIDEO ", max_num_frames: 2", (struct data_options){0});
    char *s = shown(x, d, 0);
    assert_contains(s, "(image 1: <Image><image></Image>)(image 2: <Image><image></Image>)<video> What?<|eot_id|>");
    assert_contains(s, "⟦<|start_header_id|>assistant<|end_header_id|>\n\nOne.<|eot_id|>⟧");
    assert_contains(s, "And  then?<|eot_id|>⟦<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>⟧");
    free(s);
    dataset_free(d);
}

/* A separator in a user's text does not shift what is trained, unlike in chat rows. */
static void test_labels_by_prefix(void **state) {
    struct data_fixture *x = *state;
    struct dataset *d = open_good(x, "{\"video\":\"a.mov\"," TURNS("<video> a<|eot_id|>b") "}\n",
                                  VIDEO ", max_num_frames: 1", (struct data_options){0});
    char *s = shown(x, d, 0);
    assert_contains(
        s, "b<|eot_id|>⟦<|start_header_id|>assistant<|end_header_id|>\n\nOne.<|eot_id|>⟧<|start_header_id|>user");
    free(s);
    struct row r = row_of(d, 0, true);
    struct dataset *cut =
        open_good(x, "{\"video\":\"a.mov\"," TURNS("<video> a<|eot_id|>b") "}\n", VIDEO ", max_num_frames: 1",
                  (struct data_options){.max_seq_len = (int64_t)r.ids.len - 3});
    struct row c = row_of(cut, 0, true);
    assert_int_equal(c.scored, r.scored - 3);
    row_free(&r), row_free(&c);
    dataset_free(d), dataset_free(cut);
}

static void test_coin(void **state) {
    struct data_fixture *x = *state;
    struct text rows = {0};
    int before = 0;
    for (int i = 0; i < 40; i++) text_add(&rows, "{\"video\":\"a.mov\"," TURNS("Well") "}\n");
    struct dataset *d = open_good(x, text_str(&rows), VIDEO ", max_num_frames: 1", (struct data_options){0});
    struct dataset *again =
        open_good(x, text_str(&rows), VIDEO ", max_num_frames: 1, shuffle: true", (struct data_options){0});
    for (int i = 0; i < 40; i++) {
        char *s = shown(x, d, i);
        bool first = strstr(s, "<video> Well<|eot_id|>") != NULL;
        assert_true(first != (strstr(s, "Well <video><|eot_id|>") != NULL));
        before += first;
        for (int k = 0; k < 40; k++) { // the same row elsewhere in the order
            struct row r = row_of(again, k, true);
            char *other = r.index == i ? shown(x, again, k) : NULL;
            if (other) assert_string_equal(other, s);
            free(other);
            row_free(&r);
        }
        free(s);
    }
    assert_in_range(before, 10, 30);
    dataset_free(d), dataset_free(again);
    text_free(&rows);
}

static void test_selection(void **state) {
    struct data_fixture *x = *state;
    static const char rows[] =
        "{\"video\":\"a.mov\"," TURNS("What?") "}\n"
                                               "{\"images\":[\"frames/f_9.bmp\"]," TURNS("What?") "}\n";
    struct dataset *d = open_good(x, rows, VIDEO ", max_num_images: 5", (struct data_options){0});
    assert_int_equal(dataset_rows(d), 1);
    dataset_free(d);
    d = open_good(x, rows, VIDEO ", max_num_images: 5, max_num_frames: 5", (struct data_options){0});
    assert_int_equal(dataset_rows(d), 2);
    dataset_free(d);
}

/* A clip and its scores; a list of pictures beside it is taken whole. */
static void test_classification(void **state) {
    struct data_fixture *x = *state;
    static const char rows[] = "{\"video\":\"clips/a.mov\",\"prompt\":\"p\",\"labels\":{\"good\":1.5}}\n"
                               "{\"video\":\"of_another_kind\",\"images\":[\"clips/frames/f_1.bmp\",\"clips/frames/"
                               "f_2.bmp\",\"clips/frames/f_3.bmp\"],\"prompt\":\"p\","
                               "\"labels\":{\"good\":0.5}}\n"
                               "{\"video\":\"clips/frames\",\"prompt\":\"p\",\"labels\":{\"good\":0}}\n";
    static const int clip[] = {0, 6}, list[] = {1, 2, 3}, folder[] = {0, 5};
    x->mllava.problem = PROBLEM_REGRESSION, x->mllava.num_labels = 1;
    struct dataset *d = open_good(x, rows, ", format: classification, max_num_frames: 2", (struct data_options){0});
    struct row r = row_of(d, 0, true);
    assert_clip_frames(&r, clip, 2);
    assert_true(r.values[0] == 1.5f);
    row_free(&r);
    r = row_of(d, 1, true);
    assert_greys(&r, list, 3);
    row_free(&r);
    r = row_of(d, 2, true);
    assert_greys(&r, folder, 2);
    row_free(&r), dataset_free(d);
}

/* Rows that come as text, as graft score makes them. */
static void test_rows_of_text(void **state) {
    struct data_fixture *x = *state;
    struct err e = {0};
    static const int frames[] = {0, 4, 8};
    x->mllava.problem = PROBLEM_REGRESSION, x->mllava.num_labels = 1;
    const struct data_options o = {.rows_text = "{\"id\":\"one\",\"video\":\"clips/a.mov\",\"prompt\":\"p\"}\n",
                                   .inline_dir = x->folder,
                                   .split = "test",
                                   .max_num_frames = 3,
                                   .unlabelled = true};
    struct dataset *d = dataset_open(&o, &x->mllava, x->tokenizer, x->threads, NULL, &e);
    if (!d) fail_msg("%s", e.text);
    struct row r = row_of(d, 0, true);
    assert_string_equal(r.id, "one");
    assert_clip_frames(&r, frames, 3);
    row_free(&r), dataset_free(d);
}

/* Workers decode ahead, each batch the same for any number of them. */
static void test_loader(void **state) {
    struct data_fixture *x = *state;
    struct text rows = {0};
    for (int i = 0; i < 6; i++) text_add(&rows, "{\"video\":\"a.mov\"," TURNS("What?") "}\n");
    struct dataset *d = open_good(x, text_str(&rows), VIDEO ", max_num_frames: 3", (struct data_options){0});
    struct loader *one = loader_new(d, &(struct loader_options){.rows_per_batch = 2, .workers = 1, .batches = 6});
    struct loader *four = loader_new(d, &(struct loader_options){.rows_per_batch = 2, .workers = 4, .batches = 6});
    for (int i = 0; i < 6; i++) {
        const struct batch *a, *b;
        struct err e = {0};
        assert_int_equal(loader_next(one, &a, &e), ST_OK);
        assert_int_equal(loader_next(four, &b, &e), ST_OK);
        assert_int_equal(a->images, 6);
        assert_int_equal(b->images, 6);
        for (int k = 0; k < 6; k++)
            assert_memory_equal(a->image[k].pixels, b->image[k].pixels, 3 * 28 * 28 * sizeof(float));
    }
    loader_free(one), loader_free(four);
    dataset_free(d);
    text_free(&rows);
}

static void test_bad_rows(void **state) {
    struct data_fixture *x = *state;
    static const char rows[] = "{\"video\":\"a.mov\"," TURNS(
        "fine") "}\n"
                "{\"id\":\"no\",\"video\":\"none.mov\"," TURNS(
                    "a") "}\n"
                         "{\"id\":\"cut\",\"video\":\"cut.mov\"," TURNS(
                             "a") "}\n"
                                  "{\"id\":\"words\",\"video\":\"words.mp4\"," TURNS(
                                      "a") "}\n"
                                           "{\"id\":\"list\",\"video\":[1]," TURNS(
                                               "a") "}\n"
                                                    "{\"id\":\"far\",\"video\":\"https://a/b.mp4\"," TURNS(
                                                        "a") "}\n"
                                                             "{\"id\":\"nothing\"," TURNS(
                                                                 "a") "}\n"
                                                                      "{\"id\":\"unordered\",\"video\":\"odd\"," TURNS(
                                                                          "a") "}\n"
                                                                               "{\"id\":\"empty\",\"video\":"
                                                                               "\"bare\"," TURNS("a") "}\n";
    static const char *const parts[] = {"row 1 (line 2) (id no): ",
                                        "none.mov: cannot open",
                                        "(id cut): ",
                                        "(id words): ",
                                        "not a video that can be read",
                                        "video is not a path",
                                        "video is an address",
                                        "wanted \"video\" with a path, or \"images\"",
                                        "last.bmp has no number",
                                        "bare: the folder holds no picture"};
    struct err e = {0};
    char *odd = in_folder(x, "clips/odd"), *bare = in_folder(x, "clips/bare"), *whole = in_folder(x, "clips/a.mov"),
         *data;
    size_t size;
    dir_make(odd, &e), dir_make(bare, &e);
    put_frame(x, "clips/odd/last.bmp", 3);
    free(folder_put(x->folder, "clips/words.mp4", "words"));
    assert_int_equal(file_read(whole, &data, &size, &e), ST_OK);
    char *cut = in_folder(x, "clips/cut.mov");
    assert_int_equal(file_write(cut, data, size / 2, &e), ST_OK);
    struct text notes = {0};
    struct data_options o = {.skip_bad_rows = true, .decode_images = true};
    struct dataset *d = open_rows(x, rows, VIDEO ", max_num_frames: 4", o, &notes, &e);
    if (!d) fail_msg("%s", e.text);
    assert_int_equal(dataset_rows(d), 1);
    assert_int_equal(dataset_bad(d), 8);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) assert_contains(text_str(&notes), parts[i]);
    dataset_free(d);
    text_free(&notes);
    free(odd), free(bare), free(whole), free(cut), free(data);
}

static void test_bad_settings(void **state) {
    struct data_fixture *x = *state;
    static const char row[] = "{\"video\":\"a.mov\"," TURNS("a") "}\n";
    static const struct {
        const char *fields, *part;
    } bad[] = {
        {", format: chat_video, video_dir: nowhere", "video_dir: there is no folder"},
        {VIDEO ", fps: 0", "fps is 0, wanted frames a second, more than 0"},
        {VIDEO ", fps: -1", "fps is -1"},
        {VIDEO ", fps: fast", "fps"},
        {VIDEO ", max_num_frames: -1", "max_num_frames is -1"},
        {VIDEO ", max_image_size: 5", "max_image_size is not used here"},
        {", format: chat, max_num_frames: 3", "max_num_frames is not used here (it is for video formats)"},
        {", format: chat, video_dir: clips", "video_dir is not used here"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        assert_null(open_rows(x, row, bad[i].fields, (struct data_options){0}, NULL, &e));
        assert_contains(e.text, bad[i].part);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, data_fixture_end)
    const struct CMUnitTest tests[] = {
        TEST(test_file),   TEST(test_folder_and_list), TEST(test_labels),         TEST(test_labels_by_prefix),
        TEST(test_coin),   TEST(test_selection),       TEST(test_classification), TEST(test_rows_of_text),
        TEST(test_loader), TEST(test_bad_rows),        TEST(test_bad_settings),   TEST(test_small_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

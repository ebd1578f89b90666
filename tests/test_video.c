/* Videos: which frames are taken, the frames of lossless clips pixel by pixel, those of lossy and odd ones against PyAV
 * (golden/make_video.py), and files that are cut short, damaged or none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "data/frames.h"
#include "data/video.h"
#include "tests/clip.h"
#include "tests/folder.h"

#define GOLDEN "tests/golden/video"

/* ---------------------------------------------------------------- which frames */

static struct frame_choice choose(int64_t total, int64_t most, double fps, int64_t num, int64_t den, bool file) {
    struct frame_choice c;
    struct err e = {0};
    const struct frame_rule r = {most, fps};
    const struct frame_source s = {.where = "clip", .total = total, .rate_num = num, .rate_den = den, .file = file};
    if (frames_choose(&c, &r, &s, &e) != ST_OK) fail_msg("%s", e.text);
    return c;
}

static void assert_frames(const struct frame_choice *c, const int64_t *want, int64_t n) {
    assert_int_equal(c->count, n);
    for (int64_t k = 0; k < n; k++) assert_int_equal(frames_index(c, k), want[k]);
}

static void test_spread(void **state) {
    (void)state;
    for (int64_t total = 1; total <= 700; total++)
        for (int64_t most = 1; most <= 70; most++) {
            struct frame_choice c = choose(total, most, 0, 25, 1, true);
            assert_int_equal(c.count, total < most ? total : most);
            for (int64_t k = 0; k < c.count; k++) {
                int64_t i = frames_index(&c, k), exact = total <= most ? k : k * total / most;
                bool whole = total > most && k * total % most == 0; // a double may fall just short of these
                if (i != exact && !(whole && i == exact - 1))
                    fail_msg("frame %lld of %lld from %lld is %lld", (long long)k, (long long)most, (long long)total,
                             (long long)i);
                assert_true(i < total && (k == 0 ? i == 0 : i > frames_index(&c, k - 1)));
            }
        }
}

/* numpy.arange(0, T, T / M).astype(int)[:M] */
static void test_spread_as_numpy(void **state) {
    (void)state;
    static const int64_t videoscore[] = {0, 6, 12, 18, 25, 31, 37, 43, 50, 56, 62, 68, 75, 81, 87, 93};
    static const int64_t long33[] = {0, 4, 8, 12, 16, 20, 24, 28}, list13[] = {0, 1, 3, 4, 6, 8, 9, 11};
    static const int64_t short_of[] = {0,  1,  3,  5,  7,  9,  11, 13, 14, 16, 18,
                                       20, 22, 24, 26, 27, 29, 31, 33, 35, 37, 39};
    struct frame_choice c = choose(100, 16, 0, 0, 0, false);
    assert_frames(&c, videoscore, 16);
    c = choose(33, 8, 0, 12, 1, true);
    assert_frames(&c, long33, 8);
    c = choose(13, 8, 4, 12, 1, false); // a list has no rate
    assert_frames(&c, list13, 8);
    c = choose(41, 22, 0, 25, 1, true);
    assert_frames(&c, short_of, 22);
    c = choose(122, 14, 0, 25, 1, true);
    assert_int_equal(frames_index(&c, 7), 60); // 7 * (122 / 14) is 61 but for the last bit
}

static void test_fps(void **state) {
    (void)state;
    static const int64_t every15[] = {0, 15, 30, 45, 60, 75, 90}, every3[] = {0, 3, 6, 9, 12, 15, 18, 21};
    static const int64_t first4[] = {0, 1, 2, 3}, all3[] = {0, 1, 2};
    struct frame_choice c = choose(100, 32, 2, 30, 1, true);
    assert_frames(&c, every15, 7);
    c = choose(100, 32, 2, 30000, 1001, true); // 14.98 becomes 15
    assert_frames(&c, every15, 7);
    c = choose(33, 8, 4, 12, 1, true);
    assert_frames(&c, every3, 8);
    c = choose(33, 8, 4.5, 12, 1, true); // 2.67
    assert_frames(&c, every3, 8);
    c = choose(33, 4, 60, 12, 1, true); // faster than the clip
    assert_frames(&c, first4, 4);
    c = choose(33, 8, 1e-9, 12, 1, true);
    assert_int_equal(c.count, 1);
    c = choose(3, 8, 1, 12, 1, true); // all fit
    assert_frames(&c, all3, 3);
    c = choose(33, 0, 1, 12, 1, true); // no limit: all
    assert_int_equal(c.count, 33);
}

static void test_too_many(void **state) {
    (void)state;
    struct frame_choice c;
    struct err e = {0}, again = {0};
    const struct frame_rule all = {0}, fps = {8, 2};
    const struct frame_source hour = {.where = "hour.mp4", .total = 90000, .rate_num = 25, .rate_den = 1, .file = true};
    assert_int_equal(frames_choose(&c, &all, &hour, &e), ST_FAIL);
    assert_contains(e.text, "hour.mp4: 90000 frames would be taken, at most 4096 are; set max_num_frames");
    const struct frame_source still = {.where = "a.nut", .total = 90, .rate_den = 1, .file = true};
    assert_int_equal(frames_choose(&c, &fps, &still, &again), ST_FAIL);
    assert_contains(again.text, "frame rate");
}

/* ---------------------------------------------------------------- pixels */

static struct video *open_good(const char *path, struct video_info *info) {
    struct err e = {0};
    struct video *v = video_open(path, &e);
    if (!v || video_info(v, 0, info, &e) != ST_OK) fail_msg("%s", e.text);
    return v;
}

static void assert_painted(const struct image *im, int frame, int tolerance) {
    for (int y = 0; y < im->height; y++)
        for (int x = 0; x < im->width; x++)
            for (int c = 0; c < 3; c++) {
                int got = im->rgb[(y * im->width + x) * 3 + c], want = clip_pixel(frame, x, y, c);
                if (abs(got - want) > tolerance)
                    fail_msg("frame %d (%d, %d) channel %d is %d, wanted %d", frame, x, y, c, got, want);
            }
}

struct lossless {
    const char *name;
    struct clip_options o;
};

/* 33 pixels in a line: whoever writes behind its end shows under AddressSanitizer. The containers differ in whether
 * they say how many frames they hold. */
static const struct lossless clips[] = {
    {"png.mov", {"png", "rgb24", 33, 21, 12, 10, NULL, NULL}},
    {"ffv1.mkv", {"ffv1", "bgr0", 33, 21, 12, 10, NULL, NULL}},
    {"ffv1.avi", {"ffv1", "bgr0", 34, 20, 12, 10, NULL, NULL}},
    {"raw.nut", {"rawvideo", "bgr24", 35, 21, 12, 10, NULL, NULL}},
    {"utvideo.avi", {"utvideo", "gbrp", 34, 20, 12, 10, NULL, NULL}},
};

static void test_lossless(void **state) {
    const char *folder = *state;
    int made = 0;
    for (size_t i = 0; i < sizeof clips / sizeof *clips; i++) {
        static const int64_t wanted[] = {0, 1, 5, 11};
        struct video_info info;
        char *path = path_join(folder, clips[i].name);
        if (clip_make(path, &clips[i].o)) {
            struct video *v = open_good(path, &info);
            assert_int_equal(info.frames, 12);
            assert_int_equal(info.width, clips[i].o.width);
            assert_int_equal(info.height, clips[i].o.height);
            assert_int_equal(info.rate_num, 10 * info.rate_den);
            for (int k = 0; k < 4; k++) {
                struct image im;
                struct err e = {0};
                if (video_frame(v, wanted[k], &im, &e) != ST_OK) fail_msg("%s", e.text);
                assert_painted(&im, (int)wanted[k], 0);
                image_free(&im);
            }
            video_free(v);
            made++;
        }
        free(path);
    }
    assert_true(made >= 3);
}

static void test_counted_once(void **state) {
    const char *folder = *state;
    struct video_info info;
    struct err e = {0};
    char *path = path_join(folder, "ffv1.mkv");
    assert_true(clip_make(path, &clips[1].o));
    struct video *v = video_open(path, &e);
    assert_int_equal(video_info(v, 7, &info, &e), ST_OK); // what an earlier call is said to have found
    assert_int_equal(info.frames, 7);
    video_free(v);
    free(path);
}

static void test_order(void **state) {
    const char *folder = *state;
    struct video_info info;
    struct image im;
    struct err e = {0};
    char *path = path_join(folder, "png.mov");
    assert_true(clip_make(path, &clips[0].o));
    struct video *v = open_good(path, &info);
    assert_int_equal(video_frame(v, 4, &im, &e), ST_OK);
    image_free(&im);
    assert_int_equal(video_frame(v, 4, &im, &e), ST_FAIL);
    assert_contains(e.text, "frame 4 was asked for after frame 4");
    assert_null(im.rgb);
    video_free(v);
    free(path);
}

/* ---------------------------------------------------------------- PyAV */

/* Where the frames of a format are the same to the bit on one machine, another one's vector instructions may round the
 * colours otherwise, by up to 3 levels; frames of a clip differ by much more. */
enum { LEVELS = 3 };

static void check_golden(const char *name, int64_t frames, int64_t first, int64_t second) {
    struct video_info info;
    char *path = mem_format(GOLDEN "/%s", name), *pixels = mem_format(GOLDEN "/%s.rgb", name), *want;
    size_t size;
    struct err e = {0};
    struct video *v = open_good(path, &info);
    if (info.frames != frames)
        fail_msg("%s: %lld frames, wanted %lld", name, (long long)info.frames, (long long)frames);
    if (file_read(pixels, &want, &size, &e) != ST_OK) fail_msg("%s", e.text);
    const int64_t at[] = {first, second};
    for (int k = 0; k < 2; k++) {
        struct image im;
        if (video_frame(v, at[k], &im, &e) != ST_OK) fail_msg("%s", e.text);
        size_t each = (size_t)(im.width * im.height * 3);
        assert_int_equal(size, 2 * each);
        for (size_t i = 0; i < each; i++) {
            int got = im.rgb[i], is = (uint8_t)want[(size_t)k * each + i];
            if (abs(got - is) > LEVELS)
                fail_msg("%s: frame %lld byte %zu is %d, PyAV has %d", name, (long long)at[k], i, got, is);
        }
        image_free(&im);
    }
    video_free(v);
    free(want), free(pixels), free(path);
}

static void test_like_pyav(void **state) {
    (void)state;
    struct csv t;
    struct err e = {0};
    if (csv_read(&t, GOLDEN "/clips.csv", &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(t.columns, 4);
    assert_true(t.rows > 15);
    for (size_t i = 1; i < t.rows; i++)
        check_golden(csv_cell(&t, i, 0), strtoll(csv_cell(&t, i, 1), NULL, 10), strtoll(csv_cell(&t, i, 2), NULL, 10),
                     strtoll(csv_cell(&t, i, 3), NULL, 10));
    csv_free(&t);
}

struct parallel {
    const char *path;
    uint8_t *first[8]; // of each task
};

static void decode_task(void *arg, int64_t task, int thread) {
    struct parallel *p = arg;
    struct video_info info;
    struct image im;
    struct err e = {0};
    (void)thread;
    struct video *v = video_open(p->path, &e);
    if (v && video_info(v, 0, &info, &e) == ST_OK && video_frame(v, 3, &im, &e) == ST_OK) p->first[task] = im.rgb;
    video_free(v);
}

static void test_threads(void **state) {
    (void)state;
    struct parallel p = {.path = GOLDEN "/h264.mp4"};
    struct threads *t = threads_new(4);
    threads_for(t, 8, decode_task, &p);
    for (int i = 0; i < 8; i++) {
        assert_non_null(p.first[i]);
        assert_memory_equal(p.first[i], p.first[0], 32 * 24 * 3);
    }
    for (int i = 0; i < 8; i++) free(p.first[i]);
    threads_free(t);
}

/* ---------------------------------------------------------------- what is wrong with files */

/* Opens bytes and decodes all of them; the sentence of what failed goes to e. */
static int64_t decode_all(const void *data, size_t n, const char *where, struct err *e) {
    struct video_info info;
    int64_t k = 0;
    struct video *v = video_open_bytes(data, n, where, e);
    if (v && video_info(v, 0, &info, e) == ST_OK)
        for (; k < info.frames; k++) {
            struct image im;
            if (video_frame(v, k, &im, e) != ST_OK) break;
            image_free(&im);
        }
    video_free(v);
    return k;
}

static void refuse(const void *data, size_t n, const char *where, const char *part) {
    struct err e = {0};
    decode_all(data, n, where, &e);
    assert_int_equal(e.code, ST_FAIL);
    assert_contains(e.text, where);
    assert_contains(e.text, part);
}

static void test_truncated(void **state) {
    (void)state;
    static const char *const names[] = {"h264.mp4", "vp9.webm", "mpeg4.avi", "pal.gif"};
    for (int i = 0; i < 4; i++) {
        char *path = mem_format(GOLDEN "/%s", names[i]), *data;
        size_t size;
        struct err e = {0};
        if (file_read(path, &data, &size, &e) != ST_OK) fail_msg("%s", e.text);
        int64_t whole = decode_all(data, size, path, &e), refused = 0;
        if (e.code != ST_OK || whole < 5) fail_msg("%s: %lld frames, %s", path, (long long)whole, e.text);
        for (size_t n = 0; n < size; n += 1 + n / 16) {
            struct err cut = {0};
            char *part = mem_alloc(n); // its end is the end of an allocation
            memcpy(part, data, n);
            assert_true(decode_all(part, n, path, &cut) <= whole);
            refused += cut.code != ST_OK;
            free(part);
        }
        assert_true(refused > 3);
        free(data), free(path);
    }
}

/* Such a file does not say how many frames it has; what is left would do as a shorter clip. */
static void test_cut_without_a_count(void **state) {
    (void)state;
    char *data;
    size_t size;
    struct err e = {0};
    assert_int_equal(file_read(GOLDEN "/vp9.webm", &data, &size, &e), ST_OK);
    assert_int_equal(decode_all(data, size, "a.webm", &e), 9);
    assert_int_equal(e.code, ST_OK);
    refuse(data, size - 1, "a.webm", "is cut short: ");
    refuse(data, size * 3 / 4, "a.webm", "is cut short: ");
    free(data);
}

/* The index stands first, so the file still says how many frames it has. */
static void test_cut_names_the_frame(void **state) {
    (void)state;
    char *data;
    size_t size;
    struct err e = {0};
    assert_int_equal(file_read(GOLDEN "/faststart.mp4", &data, &size, &e), ST_OK);
    int64_t good = decode_all(data, size * 3 / 4, "half.mp4", &e);
    assert_true(good > 0 && good < 40);
    assert_contains(e.text, "half.mp4: ");
    assert_contains(e.text, "frame");
    free(data);
}

static void test_refused(void **state) {
    const char *folder = *state;
    static const char text[] = "not a film at all, only some words that go on for a while, and on, and on";
    static const char list[] = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile.ts\n#EXT-X-ENDLIST\n";
    static const char script[] = "ffconcat version 1.0\nfile tests/golden/video/h264.mp4\n";
    static const uint8_t huge[] =
        "GIF89a\xFF\xFF\xFF\xFF\x80\0\0\0\0\0\xFF\xFF\xFF,\0\0\0\0\xFF\xFF\xFF\xFF\0\2\2D\1\0;";
    refuse("", 0, "empty.mp4", "the file is empty");
    refuse(text, sizeof text - 1, "words.mp4", "not a video that can be read");
    refuse(list, sizeof list - 1, "list.m3u8", "not a video that can be read");
    refuse(script, sizeof script - 1, "script.ffconcat", "not a video that can be read");
    refuse(huge, sizeof huge - 1, "huge.gif", "huge.gif: the file is damaged at frame 0");
    char *path = path_join(folder, "sound.mkv"), *data;
    size_t size;
    struct err e = {0};
    clip_make_sound(path);
    assert_int_equal(file_read(path, &data, &size, &e), ST_OK);
    refuse(data, size, path, "holds no video stream");
    free(data), free(path);
    assert_null(video_open("tests/golden/video/none.mp4", &e));
    assert_contains(e.text, "none.mp4: cannot open");
}

static void test_no_frame(void **state) {
    const char *folder = *state;
    static const char *const names[] = {"none.mkv", "none.avi", "none.mov"};
    for (int i = 0; i < 3; i++) {
        const struct clip_options o = {"ffv1", "bgr0", 16, 16, 0, 10, NULL, NULL};
        char *path = path_join(folder, names[i]), *data;
        size_t size;
        struct err e = {0};
        assert_true(clip_make(path, &o));
        assert_int_equal(file_read(path, &data, &size, &e), ST_OK);
        refuse(data, size, path, ": ");
        free(data), free(path);
    }
}

/* Bits of the frames turned over: either the decoder notices, or pixels differ; nothing else happens. */
static void test_damaged(void **state) {
    (void)state;
    char *data;
    size_t size;
    struct err e = {0};
    assert_int_equal(file_read(GOLDEN "/h264.mp4", &data, &size, &e), ST_OK);
    int64_t noticed = 0;
    for (size_t at = 32; at < size; at += 61) {
        struct err bad = {0};
        data[at] ^= 0x55;
        decode_all(data, size, "bad.mp4", &bad);
        if (bad.code != ST_OK) assert_contains(bad.text, "bad.mp4: ");
        noticed += bad.code != ST_OK;
        data[at] ^= 0x55;
    }
    assert_true(noticed > 3);
    free(data);
}

/* ---------------------------------------------------------------- tables */

static void test_csv(void **state) {
    (void)state;
    static const char sheet[] =
        "\xEF\xBB\xBFVideo; prompt \r\na.mp4;\"two\nlines; a \"\"quote\"\"\"\r\n\r\nb.mp4;\n;\n";
    struct csv t;
    struct text out = {0};
    struct err e = {0};
    assert_int_equal(csv_parse(&t, sheet, sizeof sheet - 1, "s.csv", &e), ST_OK);
    assert_int_equal(t.rows, 3);
    assert_int_equal(csv_column(&t, "video"), 0);
    assert_int_equal(csv_column(&t, "prompt"), 1);
    assert_int_equal(csv_column(&t, "none"), 2);
    assert_string_equal(csv_cell(&t, 1, 1), "two\nlines; a \"quote\"");
    assert_string_equal(csv_cell(&t, 2, 1), "");
    assert_int_equal(t.line[2], 5);
    csv_add(&out, "a,b", true), csv_add(&out, "c", false), csv_add(&out, "d\"e", false);
    assert_string_equal(text_str(&out), "\"a,b\",c,\"d\"\"e\"");
    csv_free(&t);
    text_free(&out);
    static const struct {
        const char *text, *part;
    } bad[] = {{"", "is empty"},
               {"a,b\n1\n", "line 2 has 1 cells, the first line has 2"},
               {"a,b\n\"1,2\n", "line 2: a quote is opened and not closed"},
               {"a,b\n\"1\"x,2\n", "follows the closing quote"},
               {"a\xFF,b\n", "UTF-8"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err why = {0};
        assert_int_equal(csv_parse(&t, bad[i].text, strlen(bad[i].text), "s.csv", &why), ST_FAIL);
        assert_contains(why.text, bad[i].part);
        csv_free(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_spread_as_numpy),
        cmocka_unit_test(test_fps),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test_setup_teardown(test_lossless, folder_start, folder_end),
        cmocka_unit_test_setup_teardown(test_counted_once, folder_start, folder_end),
        cmocka_unit_test_setup_teardown(test_order, folder_start, folder_end),
        cmocka_unit_test(test_like_pyav),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_cut_names_the_frame),
        cmocka_unit_test(test_cut_without_a_count),
        cmocka_unit_test_setup_teardown(test_refused, folder_start, folder_end),
        cmocka_unit_test_setup_teardown(test_no_frame, folder_start, folder_end),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_csv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

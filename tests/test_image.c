/* Pictures against what Pillow and transformers gave (tests/golden/make_image.py), and against files that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/threads.h"
#include "data/image.h"
#include "data/processor.h"
#include "tests/folder.h"

static const char FOLDER[] = "tests/golden/image";

static void read_good(struct image *im, const char *name) {
    struct err e = {0};
    char *path = path_join(FOLDER, name);
    if (image_read(im, path, &e) != ST_OK) fail_msg("%s", e.text);
    free(path);
}

static void check_hash(const void *data, size_t n, uint64_t want, const char *what) {
    uint64_t got = hash_bytes(HASH_START, data, n);
    if (got != want)
        fail_msg("%s: hash %016llx, wanted %016llx", what, (unsigned long long)got, (unsigned long long)want);
}

/* The picture in a file of netpbm's P6, as Pillow writes it. */
static void read_ppm(struct image *im, const char *path) {
    struct err e = {0};
    char *data;
    size_t size;
    long width, height;
    int head = 0;
    if (file_read(path, &data, &size, &e) != ST_OK) fail_msg("%s", e.text);
    assert_int_equal(sscanf(data, "P6 %ld %ld 255%n", &width, &height, &head), 2);
    assert_int_equal(size, (size_t)head + 1 + (size_t)(width * height * 3));
    *im = (struct image){width, height, mem_alloc(size)};
    memcpy(im->rgb, data + head + 1, (size_t)(width * height * 3));
    free(data);
}

static void check_against_ppm(const char *name, const char *ppm) {
    struct image got, want;
    struct err e = {0};
    int64_t width, height;
    char *path = path_join(FOLDER, name), *ppm_path = path_join(FOLDER, ppm);
    read_good(&got, name);
    read_ppm(&want, ppm_path);
    if (got.width != want.width || got.height != want.height) fail_msg("%s: another size", name);
    for (int64_t i = 0; i < got.width * got.height * 3; i++)
        if (got.rgb[i] != want.rgb[i])
            fail_msg("%s: channel %lld of pixel %lld is %d, wanted %d", name, (long long)i % 3, (long long)i / 3,
                     got.rgb[i], want.rgb[i]);
    assert_int_equal(image_size(path, &width, &height, &e), ST_OK);
    assert_int_equal(width, want.width);
    assert_int_equal(height, want.height);
    image_free(&got);
    image_free(&want);
    free(path);
    free(ppm_path);
}

static void test_every_format_as_pillow(void **state) {
    (void)state;
    struct err e = {0};
    char **names;
    size_t count;
    int checked = 0;
    assert_int_equal(dir_list(FOLDER, &names, &count, &e), ST_OK);
    for (size_t i = 0; i < count; i++) {
        if (!text_ends(names[i], ".ppm")) continue;
        char *name = mem_text_n(names[i], strlen(names[i]) - 4);
        check_against_ppm(name, names[i]);
        free(name);
        checked++;
    }
    names_free(names, count);
    assert_true(checked > 100);
}

static void test_refusals_are_sentences(void **state) {
    (void)state;
    struct err e = {0};
    char **names;
    size_t count;
    assert_int_equal(dir_list("tests/golden/image/refused", &names, &count, &e), ST_OK);
    assert_true(count > 10);
    for (size_t i = 0; i < count; i++) {
        struct image im;
        struct err why = {0};
        char *path = path_join("tests/golden/image/refused", names[i]);
        if (image_read(&im, path, &why) == ST_OK) fail_msg("%s was read", names[i]);
        assert_non_null(strstr(why.text, names[i]));
        assert_null(im.rgb);
        free(path);
    }
    names_free(names, count);
}

/* Decodes a copy that ends where its memory ends, so that a sanitizer sees a step beyond. */
static void decode_anything(const char *data, size_t n) {
    struct image im;
    struct err e = {0};
    char *copy = mem_alloc(n);
    memcpy(copy, data, n);
    enum status st = image_decode(&im, copy, n, "bytes", &e);
    assert_true(st == ST_OK ? im.rgb && im.width > 0 && im.height > 0 : !im.rgb && strlen(e.text) > 10);
    image_free(&im);
    free(copy);
}

static void damage(const char *data, size_t n) {
    char *copy = mem_alloc(n + 1);
    for (size_t cut = 0; cut < n; cut += cut < 200 ? 1 : 7) decode_anything(data, cut);
    for (uint64_t round = 0; round < 60 && n > 0; round++) {
        memcpy(copy, data, n);
        for (uint64_t i = 0; i <= round % 3; i++)
            copy[rng_bits(1, round, 2 * i) % n] = (char)rng_bits(1, round, 2 * i + 1);
        decode_anything(copy, n);
    }
    free(copy);
}

static void test_damaged_files(void **state) {
    (void)state;
    struct err e = {0};
    char **names;
    size_t count;
    assert_int_equal(dir_list(FOLDER, &names, &count, &e), ST_OK);
    for (size_t i = 0; i < count; i++) {
        char *path = path_join(FOLDER, names[i]), *data;
        size_t size;
        if (!text_ends(path, ".ppm") && !text_ends(path, ".txt") && file_exists(path)) {
            assert_int_equal(file_read(path, &data, &size, &e), ST_OK);
            damage(data, size);
            free(data);
        }
        free(path);
    }
    names_free(names, count);
}

static void check_too_large(const void *data, size_t n) {
    struct image im;
    struct err e = {0};
    assert_int_equal(image_decode(&im, data, n, "bytes", &e), ST_FAIL);
    assert_non_null(strstr(e.text, "wanted at most 178956970"));
}

static void test_headers_that_claim_too_much(void **state) {
    (void)state;
    char gif[] = "GIF89a\xFF\xFF\xFF\xFF\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x4C\1\0;";
    check_too_large(gif, sizeof gif - 1);
    char webp[30] = "RIFF\x16\0\0\0WEBPVP8X\x0A\0\0\0\0\0\0\0\xFE\x3F\0\xFE\x3F";
    check_too_large(webp, sizeof webp);
    char bmp[58] = "BM\x3A\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\0\0\0\x7F\0\0\0\x7F\1\0\x18";
    check_too_large(bmp, sizeof bmp);
}

/* Lines of a text file in FOLDER; the caller frees. */
static char *read_lines(const char *name) {
    struct err e = {0};
    char *path = path_join(FOLDER, name), *data;
    size_t size;
    if (file_read(path, &data, &size, &e) != ST_OK) fail_msg("%s", e.text);
    free(path);
    return data;
}

static void test_resize_as_pillow(void **state) {
    (void)state;
    char *lines = read_lines("resize.txt"), *rest = NULL, name[64];
    int method, checked = 0;
    long width, height;
    unsigned long long want;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        struct image im, out;
        assert_int_equal(sscanf(line, "%63s %d %ld %ld %llx", name, &method, &width, &height, &want), 5);
        read_good(&im, name);
        image_resize(&out, &im, width, height, (enum resample)method);
        assert_int_equal(out.width, width);
        assert_int_equal(out.height, height);
        check_hash(out.rgb, (size_t)(width * height * 3), want, line);
        image_free(&im);
        image_free(&out);
        checked++;
    }
    assert_int_equal(checked, 480);
    free(lines);
}

static void test_sizes_as_mantis(void **state) {
    (void)state;
    char *lines = read_lines("mantis.txt"), *rest = NULL, name[64];
    long most, width, height;
    unsigned long long want;
    int checked = 0;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        struct image im;
        struct err e = {0};
        assert_int_equal(sscanf(line, "%63s %ld %ld %ld %llx", name, &most, &width, &height, &want), 5);
        read_good(&im, name);
        assert_int_equal(image_mantis_size(&im, most, name, &e), ST_OK);
        assert_int_equal(im.width, width);
        assert_int_equal(im.height, height);
        check_hash(im.rgb, (size_t)(width * height * 3), want, line);
        image_free(&im);
        checked++;
    }
    assert_int_equal(checked, 25);
    free(lines);
}

static void test_too_thin_to_size(void **state) {
    (void)state;
    struct image im = {200, 1, mem_alloc(600)};
    struct err e = {0}, other = {0};
    assert_int_equal(image_mantis_size(&im, 60, "thin.png", &e), ST_FAIL);
    assert_non_null(strstr(e.text, "thin.png"));
    image_free(&im);
    im = (struct image){2000000, 1, mem_alloc(6000000)};
    assert_int_equal(image_mantis_size(&im, 0, "thin.png", &other), ST_FAIL);
    image_free(&im);
}

static void test_processor_as_transformers(void **state) {
    (void)state;
    char *lines = read_lines("processor.txt"), *rest = NULL, config[64], name[64];
    long height, width;
    unsigned long long want;
    int checked = 0;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        struct processor p;
        struct image im;
        struct err e = {0};
        assert_int_equal(sscanf(line, "%63s %63s %ld %ld %llx", config, name, &height, &width, &want), 5);
        char *dir = mem_format("%s/processor/%s", FOLDER, config);
        if (processor_load(&p, dir, &e) != ST_OK) fail_msg("%s", e.text);
        free(dir);
        assert_int_equal(p.height, height);
        assert_int_equal(p.width, width);
        read_good(&im, name);
        size_t n = (size_t)(3 * height * width);
        float *pixels = mem_alloc(n * sizeof *pixels);
        assert_int_equal(processor_run(&p, &im, name, pixels, &e), ST_OK);
        check_hash(pixels, n * sizeof *pixels, want, line);
        free(pixels);
        image_free(&im);
        checked++;
    }
    assert_int_equal(checked, 32);
    free(lines);
}

static void check_config(const char *text, const char *complaint) {
    struct processor p;
    struct err e = {0};
    char *dir = folder_new(), *path = path_join(dir, "preprocessor_config.json");
    assert_int_equal(file_write(path, text, strlen(text), &e), ST_OK);
    enum status st = processor_load(&p, dir, &e);
    if (complaint ? st == ST_OK || !strstr(e.text, complaint) : st != ST_OK) fail_msg("%s gives: %s", text, e.text);
    free(path);
    folder_free(dir);
}

#define SIGLIP "{\"image_processor_type\": \"SiglipImageProcessor\""

static void test_processor_refuses(void **state) {
    (void)state;
    check_config(SIGLIP "}", NULL);
    check_config(SIGLIP ", \"size_divisor\": null, \"auto_map\": {}}", NULL);
    check_config(SIGLIP ", \"size_divisor\": 2}", "size_divisor");
    check_config(SIGLIP ", \"do_split\": null}", "do_split");
    check_config(SIGLIP ", \"size\": 20}", "size");
    check_config(SIGLIP ", \"size\": {\"shortest_edge\": 20}}", "size");
    check_config(SIGLIP ", \"size\": {\"height\": 20, \"width\": 20, \"longest_edge\": 30}}", "size");
    check_config(SIGLIP ", \"size\": {\"height\": 20, \"width\": 1e9}}", "size");
    check_config(SIGLIP ", \"size\": {\"height\": 0, \"width\": 3}}", "size");
    check_config(SIGLIP ", \"do_resize\": false}", "do_resize");
    check_config(SIGLIP ", \"do_center_crop\": true}", "do_center_crop");
    check_config(SIGLIP ", \"resample\": 6}", "resample");
    check_config(SIGLIP ", \"image_std\": [1, 0, 1]}", "image_std");
    check_config(SIGLIP ", \"image_mean\": [1, 1]}", "image_mean");
    check_config("{\"image_processor_type\": \"CLIPImageProcessor\", \"do_center_crop\": false}", "shortest_edge");
    check_config("{\"image_processor_type\": \"ViTImageProcessor\"}", "ViTImageProcessor");
    check_config("{}", "image_processor_type");
    check_config("[]", "not a JSON object");
}

static void check_found(const char *dir, const char *asked, const char *want) {
    struct err e = {0};
    char *path = path_join(dir, asked), *found;
    enum status st = image_find(path, &found, &e);
    if (want) {
        assert_int_equal(st, ST_OK);
        assert_string_equal(path_name(found), want);
    } else {
        assert_int_equal(st, ST_FAIL);
        assert_null(found);
    }
    free(found);
    free(path);
}

static void test_find_tries_suffixes(void **state) {
    (void)state;
    static const char *const files[] = {"a.png", "a.jpeg", "b.gif", "c.v2.jpg", ".hidden.png", "d.webp"};
    struct err e = {0};
    char *dir = folder_new();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = path_join(dir, files[i]);
        assert_int_equal(file_write(path, "x", 1, &e), ST_OK);
        free(path);
    }
    check_found(dir, "a.png", "a.png");
    check_found(dir, "a.jpg", "a.png");
    check_found(dir, "a", "a.png");
    check_found(dir, "b.webp", "b.gif");
    check_found(dir, "c.v2", NULL); // the suffix .v2 is replaced: c.jpg
    check_found(dir, "c.v2.png", "c.v2.jpg");
    check_found(dir, ".hidden", ".hidden.png");
    check_found(dir, "d.webp", "d.webp");
    check_found(dir, "d.jpg", NULL);
    folder_free(dir);
}

static const char *const shared_names[] = {"chroma2_progressive.jpg", "color3_4_interlaced.png", "long.gif",
                                           "lossy_alpha.webp"};

static void decode_task(void *arg, int64_t task, int thread) {
    (void)thread;
    struct image im, small;
    struct err e = {0};
    uint64_t *hashes = arg;
    char *path = path_join(FOLDER, shared_names[task % 4]);
    if (image_read(&im, path, &e) == ST_OK) {
        image_resize(&small, &im, 9, 8, RESAMPLE_BICUBIC);
        hashes[task] =
            hash_bytes(hash_bytes(HASH_START, im.rgb, (size_t)(im.width * im.height * 3)), small.rgb, 9 * 8 * 3);
        image_free(&small);
        image_free(&im);
    }
    free(path);
}

static void test_threads_decode_at_once(void **state) {
    (void)state;
    uint64_t hashes[64] = {0};
    struct threads *t = threads_new(4);
    threads_for(t, 64, decode_task, hashes);
    threads_free(t);
    for (int i = 0; i < 64; i++) {
        assert_true(hashes[i] != 0);
        assert_true(hashes[i] == hashes[i % 4]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_format_as_pillow), cmocka_unit_test(test_refusals_are_sentences),
        cmocka_unit_test(test_damaged_files),          cmocka_unit_test(test_headers_that_claim_too_much),
        cmocka_unit_test(test_resize_as_pillow),       cmocka_unit_test(test_sizes_as_mantis),
        cmocka_unit_test(test_too_thin_to_size),       cmocka_unit_test(test_processor_as_transformers),
        cmocka_unit_test(test_processor_refuses),      cmocka_unit_test(test_find_tries_suffixes),
        cmocka_unit_test(test_threads_decode_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The tokenizer against what Hugging Face tokenizers made of the same texts (tests/golden/make_tokenizer.py), and
 * against broken files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "data/tokenizer.h"

static struct tokenizer *load(const char *dir) {
    struct err e = {0};
    struct tokenizer *t = tokenizer_load(dir, &e);
    if (!t) fail_msg("%s", e.text);
    return t;
}

/* The texts of a row are hexadecimal, because they may hold a zero byte. */
static void unhex(const char *hex, struct text *out) {
    text_clear(out);
    text_add(out, "");
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2) text_add_char(out, (char)byte);
}

static void check_ids(const struct ids *got, const cJSON *want, const char *what) {
    if (got->len != (size_t)cJSON_GetArraySize(want))
        fail_msg("%s: %zu ids, wanted %d", what, got->len, cJSON_GetArraySize(want));
    for (size_t i = 0; i < got->len; i++) assert_int_equal(got->data[i], cJSON_GetArrayItem(want, (int)i)->valueint);
}

static void check_row(const struct tokenizer *t, const cJSON *row) {
    struct err e = {0};
    struct ids ids = {0};
    struct text text = {0}, want = {0};
    const char *hex = cJSON_GetStringValue(json_get(row, "text"));
    if (hex) {
        unhex(hex, &text);
        assert_int_equal(tokenizer_encode(t, text.data, text.len, false, &ids, &e), ST_OK);
        check_ids(&ids, json_get(row, "plain"), hex);
        ids_clear(&ids);
        assert_int_equal(tokenizer_encode(t, text.data, text.len, true, &ids, &e), ST_OK);
        check_ids(&ids, json_get(row, "ids"), hex);
    } else {
        const cJSON *id;
        cJSON_ArrayForEach(id, json_get(row, "ids")) ids_add(&ids, id->valueint);
    }
    for (int skip = 0; skip < 2; skip++) {
        text_clear(&text);
        tokenizer_decode(t, ids.data, ids.len, skip, &text);
        unhex(cJSON_GetStringValue(json_get(row, skip ? "skipped" : "decoded")), &want);
        assert_int_equal(text.len, want.len);
        assert_memory_equal(text_str(&text), want.data, want.len);
    }
    ids_free(&ids);
    text_free(&text);
    text_free(&want);
}

static void test_same_as_reference(void **state) {
    (void)state;
    char **names;
    size_t count;
    struct err e = {0};
    assert_int_equal(dir_list("tests/golden/tokenizer", &names, &count, &e), ST_OK);
    assert_true(count >= 10);
    for (size_t i = 0; i < count; i++) {
        char *dir = path_join("tests/golden/tokenizer", names[i]), *path = path_join(dir, "expected.json");
        struct tokenizer *t = load(dir);
        cJSON *rows = json_read(path, &e), *row;
        assert_non_null(rows);
        cJSON_ArrayForEach(row, rows) check_row(t, row);
        cJSON_Delete(rows);
        tokenizer_free(t);
        free(path);
        free(dir);
    }
    names_free(names, count);
}

/* Behind a byte-level decoder every text comes back. */
static void test_round_trip(void **state) {
    (void)state;
    struct tokenizer *t = load("tests/golden/tokenizer/llama3");
    struct err e = {0};
    uint32_t seed = 1;
    for (int run = 0; run < 300; run++) {
        struct text text = {0}, back = {0};
        struct ids ids = {0};
        for (int i = 0; i < run; i++) {
            seed = seed * 1664525u + 1013904223u;
            static const unsigned limits[] = {0x80, 0x300, 0xD800, 0x3000};
            text_add_rune(&text, 1 + (seed >> 8) % (limits[seed >> 6 & 3] - 1));
        }
        assert_int_equal(tokenizer_encode(t, text_str(&text), text.len, false, &ids, &e), ST_OK);
        tokenizer_decode(t, ids.data, ids.len, false, &back);
        assert_string_equal(text_str(&back), text_str(&text));
        text_free(&text);
        text_free(&back);
        ids_free(&ids);
    }
    tokenizer_free(t);
}

/* A long run without a border takes the heap; it must agree with the short way on its parts. */
static void test_long_pieces(void **state) {
    (void)state;
    struct tokenizer *t = load("tests/golden/tokenizer/mistral");
    struct err e = {0};
    struct text text = {0}, back = {0};
    struct ids ids = {0};
    for (int i = 0; i < 200000; i++) text_add(&text, i % 3 ? "the" : "mat");
    assert_int_equal(tokenizer_encode(t, text.data, text.len, false, &ids, &e), ST_OK);
    tokenizer_decode(t, ids.data, ids.len, false, &back);
    assert_string_equal(back.data, text.data);
    assert_true(ids.len < text.len / 2);
    text_free(&text);
    text_free(&back);
    ids_free(&ids);
    tokenizer_free(t);
}

static void test_names(void **state) {
    (void)state;
    struct tokenizer *t = load("tests/golden/tokenizer/mistral");
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_int_equal(tokenizer_pad(t), -1);
    assert_int_equal(tokenizer_prefix(t), 1);
    assert_true(tokenizer_is_special(t, 1));
    assert_string_equal(tokenizer_token(t, 1), "<s>");
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    int64_t size = tokenizer_size(t);
    assert_null(tokenizer_token(t, (int32_t)size));
    assert_null(tokenizer_token(t, -1));
    assert_false(tokenizer_is_special(t, INT32_MIN));
    int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, (int32_t)size};
    struct text out = {0};
    tokenizer_decode(t, wrong, 4, true, &out);
    assert_int_equal(out.len, 0);
    text_free(&out);
    tokenizer_free(t);
}

static void test_not_utf8(void **state) {
    (void)state;
    struct tokenizer *t = load("tests/golden/tokenizer/qwen2");
    struct err e = {0};
    struct ids ids = {0};
    assert_int_equal(tokenizer_encode(t, "ab\xFF", 3, true, &ids, &e), ST_FAIL);
    assert_non_null(strstr(e.text, "byte 2"));
    ids_free(&ids);
    tokenizer_free(t);
}

struct scratch_dir {
    char dir[64], file[96];
};

static void scratch_make(struct scratch_dir *d) {
    snprintf(d->dir, sizeof d->dir, "/tmp/test_tokenizer_XXXXXX");
    assert_non_null(mkdtemp(d->dir));
    snprintf(d->file, sizeof d->file, "%s/tokenizer.json", d->dir);
}

static struct tokenizer *load_bytes(struct scratch_dir *d, const char *s, size_t n, struct err *e) {
    FILE *f = fopen(d->file, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(s, 1, n, f), n);
    fclose(f);
    *e = (struct err){0};
    return tokenizer_load(d->dir, e);
}

#define SMALL_MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[[\"a\",\"b\"]]}"
static const char small[] =
    "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":3,\"content\":\"<\\u0073>\",\"single_word\":false,"
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Digits\","
    "\"individual_digits\":true},\"decoder\":{\"type\":\"Fuse\"}," SMALL_MODEL "}";

static void test_truncated_anywhere(void **state) {
    (void)state;
    struct scratch_dir d;
    struct err e;
    scratch_make(&d);
    for (size_t n = 0; n < sizeof small - 1; n++) {
        assert_null(load_bytes(&d, small, n, &e));
        assert_int_equal(e.code, ST_FAIL);
        assert_true(e.text[0] != 0);
    }
    struct tokenizer *t = load_bytes(&d, small, sizeof small - 1, &e);
    assert_non_null(t);
    assert_int_equal(tokenizer_id(t, "<s>"), 3);
    tokenizer_free(t);
    dir_remove(d.dir, &e);
}

/* What is not supported is refused, and the message says what. */
static void test_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *json, *named;
    } rows[] = {
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{},\"merges\":[]}}", "WordPiece"},
        {"{\"normalizer\":{\"type\":\"Lowercase\"}," SMALL_MODEL "}", "Lowercase"},
        {"{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," SMALL_MODEL "}", "Whitespace"},
        {"{\"decoder\":{\"type\":\"CTC\"}," SMALL_MODEL "}", "CTC"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\"}," SMALL_MODEL "}", "BertProcessing"},
        {"{\"truncation\":{\"max_length\":4}," SMALL_MODEL "}", "truncation"},
        {"{\"padding\":{\"strategy\":{\"Fixed\":4}}," SMALL_MODEL "}", "padding"},
        {"{\"version\":\"2.0\"," SMALL_MODEL "}", "2.0"},
        {"{\"extra\":1," SMALL_MODEL "}", "extra"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]}}", "\"b\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "same id"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4000000000},\"merges\":[]}}", "4000000000"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "token id"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", "merge"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\ud800\":0},\"merges\":[]}}", "surrogates"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\xFF\":0},\"merges\":[]}}", "UTF-8"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[[\"a\",0],[\"b\",-1]]}}", "unk_id is 2"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":null,\"vocab\":[[\"a\",0]]}}", "unk_id is -1"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[]}}", "empty"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0],[\"a\",1]]}}",
         "not in the vocabulary yet"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",1e999]]}}", "a finite number"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",\"0\"]]}}", "a digit"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"dropout\":0.1,\"vocab\":[[\"a\",0]]}}", "dropout"},
        {"{\"version\":\"1.0\"}", "no model"},
        {"{" SMALL_MODEL "} x", "the end"},
    };
    struct scratch_dir d;
    struct err e;
    scratch_make(&d);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_null(load_bytes(&d, rows[i].json, strlen(rows[i].json), &e));
        if (!strstr(e.text, rows[i].named)) fail_msg("\"%s\" does not name %s", e.text, rows[i].named);
    }
    struct text deep = {0};
    text_add(&deep, "{\"normalizer\":");
    for (int i = 0; i < 100000; i++) text_add(&deep, "[");
    assert_null(load_bytes(&d, deep.data, deep.len, &e));
    assert_non_null(strstr(e.text, "nesting"));
    text_free(&deep);
    dir_remove(d.dir, &e);
}

/* tokenizer_config.json's add_bos_token and add_eos_token replace the post-processor. */
static void test_added_ends(void **state) {
    (void)state;
    struct scratch_dir d;
    struct err e;
    struct ids ids = {0};
    scratch_make(&d);
    char *config = path_join(d.dir, "tokenizer_config.json");
    static const char both[] =
        "{\"bos_token\":\"<s>\",\"eos_token\":\"b\",\"add_bos_token\":true,\"add_eos_token\":true}";
    assert_int_equal(file_write(config, both, sizeof both - 1, &(struct err){0}), ST_OK);
    struct tokenizer *t = load_bytes(&d, small, sizeof small - 1, &e);
    assert_non_null(t);
    assert_int_equal(tokenizer_encode(t, "ab", 2, true, &ids, &e), ST_OK);
    assert_int_equal(ids.len, 3);
    assert_int_equal(ids.data[0], 3);
    assert_int_equal(ids.data[1], 2);
    assert_int_equal(ids.data[2], 1);
    tokenizer_force_bos(t);
    ids_clear(&ids);
    assert_int_equal(tokenizer_encode(t, "ab", 2, true, &ids, &e), ST_OK);
    assert_int_equal(ids.len, 2);
    ids_free(&ids);
    free(config);
    tokenizer_free(t);
    dir_remove(d.dir, &e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_reference), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_long_pieces),       cmocka_unit_test(test_names),
        cmocka_unit_test(test_not_utf8),          cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_refused_by_name),   cmocka_unit_test(test_added_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

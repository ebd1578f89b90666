/* The reader refuses whatever is not a whole, sane file, and names the file; the writer's bytes are those of the
 * reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/memory.h"
#include "base/safetensors.h"
#include "base/shards.h"
#include "tests/folder.h"

static const char golden[] = "tests/golden/quant/weights.safetensors";

static void write_bytes(const char *path, const void *data, size_t n) {
    struct err e = {0};
    assert_int_equal(file_write(path, data, n, &e), ST_OK);
}

/* A file with that header and `data` zero bytes behind it. */
static void write_raw(const char *path, const char *header, size_t data) {
    size_t n = strlen(header);
    char *all = mem_alloc(8 + n + data);
    for (int i = 0; i < 8; i++) all[i] = (char)((uint64_t)n >> 8 * i & 255);
    memcpy(all + 8, header, n);
    write_bytes(path, all, 8 + n + data);
    free(all);
}

static void assert_refused(const char *path, const char *why) {
    struct st_set s;
    struct err e = {0};
    if (st_open_file(&s, path, &e) == ST_OK) fail_msg("accepted: %s", why);
    if (!strstr(e.text, path)) fail_msg("%s: the error does not name the file: %s", why, e.text);
    assert_null(s.entries);
    st_close(&s);
}

static void test_reference_bytes(void **state) {
    char *path = path_join(*state, "again.safetensors");
    struct st_set s;
    struct err e = {0};
    struct file_map want, got;
    assert_int_equal(st_open_file(&s, golden, &e), ST_OK);
    assert_int_equal(st_write(path, s.entries, s.count, &e), ST_OK);
    assert_int_equal(file_map_open(&want, golden, &e), ST_OK);
    assert_int_equal(file_map_open(&got, path, &e), ST_OK);
    assert_int_equal(got.size, want.size);
    assert_memory_equal(got.data, want.data, want.size);
    file_map_close(&want), file_map_close(&got);
    st_close(&s);
    free(path);
}

static void test_round_trip(void **state) {
    char *path = path_join(*state, "all.safetensors");
    static const char data[64] = "0123456789abcdefghijklmnopqrstuvwxyz";
    struct st_entry in[ST_U64 + 3] = {0};
    char names[ST_U64 + 1][16];
    size_t count = 0;
    for (int type = 0; type <= ST_U64; type++) {
        snprintf(names[type], sizeof names[type], "t%d\"\n", type);
        in[count++] =
            (struct st_entry){.name = names[type], .type = (enum st_type)type, .rank = 2, .dim = {1, 3}, .data = data};
    }
    in[count++] = (struct st_entry){.name = "scalar", .type = ST_F32, .rank = 0, .data = data};
    in[count++] = (struct st_entry){.name = "empty", .type = ST_F64, .rank = 3, .dim = {2, 0, 5}, .data = data};
    struct st_set s;
    struct err e = {0};
    assert_int_equal(st_write(path, in, count, &e), ST_OK);
    assert_int_equal(st_open_file(&s, path, &e), ST_OK);
    assert_int_equal(s.count, count);
    for (size_t i = 0; i < count; i++) {
        const struct st_entry *t = st_find(&s, in[i].name);
        assert_non_null(t);
        assert_int_equal(t->type, in[i].type);
        assert_int_equal(t->rank, in[i].rank);
        assert_memory_equal(t->dim, in[i].dim, sizeof t->dim);
        assert_memory_equal(t->data, data, t->bytes);
        assert_string_equal(t->file, path);
    }
    assert_int_equal(st_find(&s, "scalar")->bytes, 4);
    assert_int_equal(st_find(&s, "empty")->bytes, 0);
    assert_null(st_find(&s, "t"));
    st_forget(st_find(&s, "scalar"));
    assert_memory_equal(st_find(&s, "scalar")->data, data, 4);
    st_close(&s);
    free(path);
}

static void test_writer_any_order(void **state) {
    char *path = path_join(*state, "one.safetensors"), *other = path_join(*state, "two.safetensors");
    const struct st_entry in[3] = {{.name = "b", .type = ST_U8, .rank = 1, .dim = {5}, .data = "vwxyz"},
                                   {.name = "a", .type = ST_U8, .rank = 1, .dim = {3}, .data = "rst"},
                                   {.name = "c", .type = ST_F32, .rank = 1, .dim = {2}, .data = "abcdefgh"}};
    struct st_writer w;
    struct err e = {0};
    struct file_map x, y;
    assert_int_equal(st_write(path, in, 3, &e), ST_OK);
    assert_int_equal(st_writer_open(&w, other, in, 3, &e), ST_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(st_writer_put_named(&w, &in[i], &e), ST_OK);
    assert_int_equal(st_writer_commit(&w, &e), ST_OK);
    assert_int_equal(file_map_open(&x, path, &e) | file_map_open(&y, other, &e), ST_OK);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_map_close(&x), file_map_close(&y);

    assert_int_equal(st_writer_open(&w, other, in, 3, &e), ST_OK);
    assert_int_equal(st_writer_put_named(&w, &in[0], &e), ST_OK);
    assert_int_equal(st_writer_commit(&w, &e), ST_FAIL); // two are missing
    free(path), free(other);
}

static enum status add_to(struct st_writer *w, const char *data, size_t n) {
    struct err e = {0};
    return st_writer_add(w, data, n, &e);
}

/* A tensor in parts is the tensor; one too many or too few bytes is noticed. */
static void test_writer_parts(void **state) {
    char *path = path_join(*state, "parts.safetensors");
    const struct st_entry in[2] = {{.name = "a", .type = ST_U8, .rank = 1, .dim = {5}},
                                   {.name = "b", .type = ST_U8, .rank = 1, .dim = {3}}};
    struct st_writer w;
    struct st_set s;
    struct err e = {0};
    assert_int_equal(st_writer_open(&w, path, in, 2, &e), ST_OK);
    assert_int_equal(st_writer_begin(&w, &in[1], &e), ST_OK);
    assert_int_equal(add_to(&w, "rst", 3), ST_OK);
    assert_int_equal(st_writer_begin(&w, &in[0], &e), ST_OK);
    assert_int_equal(add_to(&w, "vw", 2) | add_to(&w, "", 0) | add_to(&w, "xyz", 3), ST_OK);
    assert_int_equal(st_writer_commit(&w, &e), ST_OK);
    assert_int_equal(st_open_file(&s, path, &e), ST_OK);
    assert_memory_equal(st_find(&s, "a")->data, "vwxyz", 5);
    assert_memory_equal(st_find(&s, "b")->data, "rst", 3);
    st_close(&s);

    assert_int_equal(st_writer_open(&w, path, in, 2, &e), ST_OK);
    assert_int_equal(st_writer_begin(&w, &in[0], &e), ST_OK);
    assert_int_equal(add_to(&w, "vwxyz!", 6), ST_FAIL);
    assert_int_equal(add_to(&w, "vwx", 3), ST_OK);
    assert_int_equal(st_writer_begin(&w, &in[1], &e), ST_FAIL); // two bytes of a are missing
    st_writer_abandon(&w);
    e = (struct err){0};
    assert_int_equal(st_writer_open(&w, path, in, 1, &e), ST_OK);
    assert_int_equal(st_writer_begin(&w, &in[0], &e), ST_OK);
    assert_int_equal(add_to(&w, "vwx", 3), ST_OK);
    assert_int_equal(st_writer_commit(&w, &e), ST_FAIL);
    free(path);
}

/* In parts, over several files, with a tensor that has no bytes. */
static void test_shards_in_parts(void **state) {
    const struct st_entry in[3] = {{.name = "a", .type = ST_U8, .rank = 1, .dim = {5}, .bytes = 5},
                                   {.name = "b", .type = ST_U8, .rank = 1, .dim = {0}},
                                   {.name = "c", .type = ST_U8, .rank = 1, .dim = {3}, .bytes = 3}};
    char *dir = path_join(*state, "shards");
    struct shards out;
    struct st_set s;
    struct err e = {0};
    assert_int_equal(dir_make(dir, &e), ST_OK);
    assert_int_equal(shards_open(&out, dir, in, 3, 5, &e), ST_OK);
    assert_int_equal(shards_put(&out, "vw", 2, &e) | shards_put(&out, "xyz", 3, &e), ST_OK);
    assert_int_equal(shards_put(&out, "", 0, &e) | shards_put(&out, "rst", 3, &e), ST_OK);
    assert_int_equal(shards_commit(&out, &e), ST_OK);
    assert_int_equal(out.files, 2);
    shards_abandon(&out);
    assert_int_equal(st_open_dir(&s, dir, "model", &e), ST_OK);
    assert_int_equal(s.count, 3);
    assert_memory_equal(st_find(&s, "a")->data, "vwxyz", 5);
    assert_memory_equal(st_find(&s, "c")->data, "rst", 3);
    st_close(&s);
    free(dir);
}

static void test_truncations(void **state) {
    char *path = path_join(*state, "cut.safetensors");
    struct st_entry in[2] = {
        {.name = "a", .type = ST_F32, .rank = 2, .dim = {2, 3}, .data = "abcdefghijklmnopqrstuvwx"},
        {.name = "b", .type = ST_BF16, .rank = 1, .dim = {5}, .data = "abcdefghij"}};
    struct err e = {0};
    char *whole;
    size_t n;
    assert_int_equal(st_write(path, in, 2, &e), ST_OK);
    assert_int_equal(file_read(path, &whole, &n, &e), ST_OK);
    for (size_t cut = 0; cut < n; cut++) {
        write_bytes(path, whole, cut);
        assert_refused(path, "a file that was cut off");
    }
    whole = mem_resize(whole, n + 1);
    whole[n] = 0;
    write_bytes(path, whole, n + 1);
    assert_refused(path, "a byte too many");
    free(whole), free(path);
}

static void test_headers(void **state) {
    static const struct {
        bool good;
        size_t data;
        const char *header;
    } cases[] = {
        {true, 8, "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"},
        {true, 8,
         "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}"
         "   "},
        {true, 4,
         "{\"__metadata__\":null,\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}"},
        {true, 1,
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},"
         "\"b\":{\"dtype\":\"F64\",\"shape\":[0,9007199254740992,9007199254740992],\"data_offsets\":[0,0]}}"},
        {true, 0, "{}"},
        {false, 0, ""},
        {false, 0, "[]"},
        {false, 0, " {}"},
        {false, 0, "{}x"},
        {false, 0, "{\"a\":1}"},
        {false, 0, "{\"\xff\":1}"},
        {false, 0, "{\"__metadata__\":{\"a\":1}}"},
        {false, 0, "{\"__metadata__\":[]}"},
        {false, 1, "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"F7\",\"shape\":[1],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.5]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,-1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1e300],\"data_offsets\":[0,1]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}"},
        {false, 1, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}"},
        {false, 2,
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}"},
        {false, 3,
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[2,3]}}"},
        {false, 2,
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}"},
        {false, 4,
         "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[1,3]}}"},
        {false, 2, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"},
        {false, 2, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}"},
    };
    char *path = path_join(*state, "header.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct st_set s;
        struct err e = {0};
        write_raw(path, cases[i].header, cases[i].data);
        if (!cases[i].good) {
            assert_refused(path, cases[i].header);
            continue;
        }
        if (st_open_file(&s, path, &e) != ST_OK) fail_msg("%s: %s", cases[i].header, e.text);
        st_close(&s);
    }
    free(path);
}

static void test_deep_json_and_lengths(void **state) {
    char *path = path_join(*state, "deep.safetensors");
    char *deep = mem_alloc(200001);
    memset(deep, '[', 200000);
    memcpy(deep, "{\"a\":", 5);
    write_raw(path, deep, 0);
    assert_refused(path, "deep nesting");
    static const char lengths[][9] = {"\xff\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\x7f",
                                      "\x03\0\0\0\0\0\0\0", "\0\0\0\0\0\0\0\x80"};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        char all[10] = "";
        memcpy(all, lengths[i], 8), memcpy(all + 8, "{}", 2);
        write_bytes(path, all, sizeof all);
        assert_refused(path, "a header length beyond the file");
        struct st_set s;
        struct err e = {0};
        assert_int_equal(st_open_file(&s, path, &e), ST_FAIL);
        assert_non_null(strstr(e.text, "header claims"));
    }
    struct st_set s;
    struct err e = {0};
    assert_int_equal(st_open_file(&s, *state, &e), ST_FAIL); // a folder
    free(deep), free(path);
}

static const char index_good[] = "{\"metadata\":{},\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}";

static enum status open_folder(const char *dir, const char *index, struct err *e) {
    struct st_set s;
    char *path = path_join(dir, "model.safetensors.index.json");
    write_bytes(path, index, strlen(index));
    enum status st = st_open_dir(&s, dir, "model", e);
    if (st == ST_OK) assert_int_equal(s.count, 2);
    if (st == ST_OK) assert_memory_equal(st_find(&s, "b")->data, "2", 1);
    st_close(&s);
    free(path);
    return st;
}

static void test_shards(void **state) {
    struct err e = {0};
    struct st_set s;
    struct st_entry a = {.name = "a", .type = ST_U8, .rank = 1, .dim = {1}, .data = "1"};
    struct st_entry b = {.name = "b", .type = ST_U8, .rank = 1, .dim = {1}, .data = "2"};
    char *x = path_join(*state, "x.safetensors"), *y = path_join(*state, "y.safetensors");
    assert_int_equal(st_open_dir(&s, *state, "model", &e), ST_FAIL);
    assert_non_null(strstr(e.text, "model.safetensors"));
    e = (struct err){0};
    char *pickle = path_join(*state, "pytorch_model.bin");
    write_bytes(pickle, "x", 1);
    assert_int_equal(st_open_dir(&s, *state, "model", &e), ST_FAIL);
    assert_non_null(strstr(e.text, "save_pretrained"));
    e = (struct err){0};
    remove(pickle), free(pickle);
    assert_int_equal(st_write(x, &a, 1, &e) | st_write(y, &b, 1, &e), ST_OK);
    assert_int_equal(open_folder(*state, index_good, &e), ST_OK);
    static const char *const bad[] = {
        "{}",
        "[]",
        "{\"weight_map\":{}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"y.safetensors\",\"b\":\"x.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\",\"c\":\"y.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"none.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"./y.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"..\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":7}}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        e = (struct err){0};
        if (open_folder(*state, bad[i], &e) == ST_OK) fail_msg("accepted: %s", bad[i]);
        assert_non_null(strstr(e.text, *state));
    }
    e = (struct err){0};
    struct st_entry again[2] = {a, b};
    assert_int_equal(st_write(x, again, 2, &e), ST_OK); // b is in both shards
    assert_int_equal(open_folder(*state, index_good, &e), ST_FAIL);
    free(x), free(y);
}

/* A disk that is full: the file does not appear, and what stood there before stays. */
static void test_write_fails(void **state) {
    char *path = path_join(*state, "full.safetensors"), *zeros = mem_alloc(1 << 20), **names;
    struct st_entry in = {.name = "a", .type = ST_U8, .rank = 1, .dim = {1 << 20}, .data = zeros};
    struct rlimit old, small;
    struct err e = {0};
    size_t count;
    write_bytes(path, "before", 6);
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){65536, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum status st = st_write(path, &in, 1, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(st, ST_FAIL);
    assert_non_null(strstr(e.text, path));
    e = (struct err){0};
    assert_int_equal(dir_list(*state, &names, &count, &e), ST_OK);
    assert_int_equal(count, 1);
    names_free(names, count);
    char *data;
    assert_int_equal(file_read(path, &data, &count, &e), ST_OK);
    assert_string_equal(data, "before");
    free(data), free(path), free(zeros);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(test_reference_bytes), FOLDER_TEST(test_round_trip),      FOLDER_TEST(test_writer_any_order),
        FOLDER_TEST(test_writer_parts),    FOLDER_TEST(test_shards_in_parts), FOLDER_TEST(test_truncations),
        FOLDER_TEST(test_headers),         FOLDER_TEST(test_shards),          FOLDER_TEST(test_deep_json_and_lengths),
        FOLDER_TEST(test_write_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

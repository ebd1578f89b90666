#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "quant/ggml.h"
#include "quant/gguf.h"

/* --- blocks ------------------------------------------------------------------------------------------------------ */

static void check_blocks(const char *name) {
    struct err e = {0};
    struct st_set s;
    enum ggml_type type;
    assert_true(ggml_find(&type, name));
    assert_int_equal(st_open_file(&s, "tests/golden/gguf/blocks.safetensors", &e), ST_OK);
    char *values = mem_format("x_%s", name);
    const struct st_entry *x = st_find(&s, "x"), *q = st_find(&s, name), *y = st_find(&s, values);
    int64_t n = x->dim[0] * x->dim[1];
    float *in = mem_alloc(x->bytes), *out = mem_alloc(x->bytes);
    uint8_t *got = mem_alloc(q->bytes + 1);
    memcpy(in, x->data, x->bytes);
    got[q->bytes] = 0xA5;
    ggml_quantize(type, got, in, n);
    assert_int_equal(n / ggml_block(type) * (int64_t)ggml_block_bytes(type), q->bytes);
    for (size_t i = 0; i < q->bytes; i++)
        if (got[i] != ((const uint8_t *)q->data)[i])
            fail_msg("%s: byte %zu of row %lld is %d, wanted %d", name, i,
                     (long long)(i / (q->bytes / (size_t)x->dim[0])), got[i], ((const uint8_t *)q->data)[i]);
    assert_int_equal(got[q->bytes], 0xA5);
    ggml_dequantize(type, out, got, n);
    assert_memory_equal(out, y->data, y->bytes);
    free(in), free(out), free(got), free(values);
    st_close(&s);
}

/* Bytes are those of ggml's reference quantisers, values those of gguf-py. */
static void test_blocks_are_ggmls(void **state) {
    (void)state;
    check_blocks("q8_0");
    check_blocks("q4_0");
    check_blocks("q4_k");
}

static void test_floats(void **state) {
    (void)state;
    const float x[4] = {1, -0.333333343f, 65504, 1e-8f};
    const uint16_t half[4] = {0x3C00, 0xB555, 0x7BFF, 0}, brain[4] = {0x3F80, 0xBEAB, 0x4780, 0x322C};
    uint16_t got[4];
    float back[4];
    ggml_quantize(GGML_F16, got, x, 4);
    assert_memory_equal(got, half, sizeof half);
    ggml_quantize(GGML_BF16, got, x, 4);
    assert_memory_equal(got, brain, sizeof brain);
    ggml_dequantize(GGML_BF16, back, got, 4);
    for (int i = 0; i < 4; i++) assert_true(fabsf(back[i] - x[i]) <= fabsf(x[i]) / 256);
    ggml_quantize(GGML_F32, back, x, 4);
    assert_memory_equal(back, x, sizeof x);
}

/* --- the container ----------------------------------------------------------------------------------------------- */

static const char PATH[] = "build/test_gguf.gguf";

static const float VECTOR[3] = {1, 2, 3};
static const uint16_t MATRIX[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static const struct gguf_tensor TENSORS[] = {
    {.name = "norm", .type = GGML_F32, .rank = 1, .dim = {3}, .bytes = 12},
    {.name = "matrix", .type = GGML_F16, .rank = 2, .dim = {4, 2}, .bytes = 16},
};

static void write_sample(void) {
    struct err e = {0};
    struct gguf_head h = {0};
    struct gguf_writer w;
    const int32_t numbers[] = {-1, 0, 7};
    gguf_add_string(&h, "general.architecture", "llama");
    gguf_add_u32(&h, "llama.block_count", 2);
    gguf_add_f32(&h, "llama.eps", 1e-5);
    gguf_add_bool(&h, "flag", true);
    gguf_add_array(&h, "numbers", GGUF_I32, numbers, 3);
    gguf_add_strings(&h, "words", 2);
    gguf_item(&h, "a", 1), gguf_item(&h, "", 0);
    assert_int_equal(gguf_writer_open(&w, PATH, &h, TENSORS, 2, &e), ST_OK);
    assert_int_equal(gguf_writer_put(&w, VECTOR, 12, &e), ST_OK);
    assert_int_equal(gguf_writer_put(&w, MATRIX, 6, &e), ST_OK);
    assert_int_equal(gguf_writer_put(&w, MATRIX + 3, 10, &e), ST_OK);
    assert_int_equal(gguf_writer_commit(&w, &e), ST_OK);
    gguf_writer_abandon(&w);
    gguf_head_free(&h);
}

static void test_round_trip(void **state) {
    (void)state;
    struct err e = {0};
    struct gguf g;
    struct text t = {0};
    int64_t blocks, flag;
    double eps;
    write_sample();
    assert_true(gguf_is_file(PATH));
    assert_int_equal(gguf_open(&g, PATH, &e), ST_OK);
    assert_int_equal(g.value_count, 6);
    assert_int_equal(g.tensor_count, 2);
    assert_true(gguf_int(&g, "llama.block_count", &blocks) && blocks == 2);
    assert_true(gguf_int(&g, "flag", &flag) && flag == 1);
    assert_true(gguf_number(gguf_find(&g, "llama.eps"), &eps) && eps == (double)1e-5f);
    assert_true(gguf_text(&g, "general.architecture", &t));
    assert_string_equal(t.data, "llama");
    assert_false(gguf_text(&g, "flag", &t));
    assert_false(gguf_int(&g, "llama.eps", &blocks));
    const struct gguf_value *v = gguf_find(&g, "numbers");
    assert_true(v->kind == GGUF_ARRAY && v->item == GGUF_I32 && v->count == 3);
    assert_int_equal(gguf_find(&g, "words")->count, 2);
    const struct gguf_tensor *m = gguf_find_tensor(&g, "matrix");
    assert_memory_equal(m->data, MATRIX, sizeof MATRIX);
    assert_memory_equal(gguf_find_tensor(&g, "norm")->data, VECTOR, sizeof VECTOR);
    assert_int_equal((size_t)((const char *)m->data - g.map.data) % GGUF_ALIGN, 0);
    assert_null(gguf_find_tensor(&g, "other"));
    text_free(&t);
    gguf_close(&g);
}

/* A file that gguf-py wrote, with values of every kind. */
static void test_reads_gguf_py(void **state) {
    (void)state;
    static const struct {
        const char *key;
        double value;
    } numbers[] = {{"u8", 200},
                   {"i8", -3},
                   {"u16", 60000},
                   {"i16", -300},
                   {"u32", 4000000000.0},
                   {"i32", -70000},
                   {"u64", 1099511627776.0},
                   {"i64", -1099511627776.0},
                   {"f32", (double)0.1f},
                   {"f64", 0.1},
                   {"yes", 1}};
    struct err e = {0};
    struct gguf g;
    struct text t = {0};
    double value;
    assert_int_equal(gguf_open(&g, "tests/golden/gguf/sample.gguf", &e), ST_OK);
    for (int i = 0; i < 11; i++) {
        assert_true(gguf_number(gguf_find(&g, numbers[i].key), &value));
        assert_true(value == numbers[i].value);
    }
    assert_true(gguf_text(&g, "text", &t));
    assert_string_equal(t.data, "h\xC3\xA9");
    assert_int_equal(gguf_find(&g, "list")->count, 3);
    assert_int_equal(gguf_find(&g, "words")->item, GGUF_STRING);
    const struct gguf_tensor *two = gguf_find_tensor(&g, "two"), *three = gguf_find_tensor(&g, "three");
    assert_true(two->rank == 2 && two->dim[0] == 4 && two->dim[1] == 3 && two->type == GGML_F16);
    float x[32];
    ggml_dequantize(GGML_F16, x, two->data, 12);
    for (int i = 0; i < 12; i++) assert_true(x[i] == (float)i);
    assert_true(three->type == GGML_Q8_0 && three->dim[0] == 32 && three->dim[1] == 2 && three->bytes == 68);
    ggml_dequantize(GGML_Q8_0, x, (const char *)three->data + 34, 32);
    for (int i = 0; i < 32; i++) assert_true(fabs((double)x[i] - (2 * (32 + i) / 63.0 - 1)) <= 0.005);
    text_free(&t);
    gguf_close(&g);
}

/* Every truncation of a valid file is refused with a sentence, but for those that only lack the last padding. */
static void test_truncations(void **state) {
    (void)state;
    struct err e = {0};
    char *data, cut[] = "build/test_gguf_cut.gguf";
    size_t size;
    write_sample();
    assert_int_equal(file_read(PATH, &data, &size, &e), ST_OK);
    for (size_t n = 0; n + GGUF_ALIGN - 16 % GGUF_ALIGN < size; n++) {
        struct gguf g;
        assert_int_equal(file_write(cut, data, n, &e), ST_OK);
        assert_int_equal(gguf_open(&g, cut, &e), ST_FAIL);
        assert_non_null(strstr(e.text, cut));
        e = (struct err){0};
    }
    free(data);
}

/* Any byte of the head may be anything: the reader must come back. */
static void test_mutations(void **state) {
    (void)state;
    struct err e = {0};
    char *data, path[] = "build/test_gguf_bad.gguf";
    size_t size;
    static const unsigned char values[] = {0, 1, 0x7F, 0x80, 0xFF};
    write_sample();
    assert_int_equal(file_read(PATH, &data, &size, &e), ST_OK);
    for (size_t i = 0; i < size; i++) {
        char old = data[i];
        for (size_t k = 0; k < sizeof values; k++) {
            struct gguf g;
            data[i] = (char)values[k];
            assert_int_equal(file_write(path, data, size, &e), ST_OK);
            if (gguf_open(&g, path, &e) == ST_OK)
                for (size_t t = 0; t < g.tensor_count; t++) {
                    const char *at = g.tensors[t].data;
                    assert_true(at >= g.map.data && at + g.tensors[t].bytes <= g.map.data + g.map.size);
                }
            gguf_close(&g);
            e = (struct err){0};
        }
        data[i] = old;
    }
    free(data);
}

static void test_twice(void **state) {
    (void)state;
    struct err e = {0};
    struct gguf g;
    struct gguf_head h = {0};
    struct gguf_writer w;
    gguf_add_u32(&h, "a", 1), gguf_add_u32(&h, "a", 2);
    assert_int_equal(gguf_writer_open(&w, PATH, &h, NULL, 0, &e), ST_OK);
    assert_int_equal(gguf_writer_commit(&w, &e), ST_OK);
    assert_int_equal(gguf_open(&g, PATH, &e), ST_FAIL);
    assert_non_null(strstr(e.text, "the value a twice"));
    gguf_head_free(&h);
}

/* What was not put is noticed before the file gets its name. */
static void test_missing_bytes(void **state) {
    (void)state;
    struct err e = {0};
    struct gguf_head h = {0};
    struct gguf_writer w;
    remove(PATH);
    assert_int_equal(gguf_writer_open(&w, PATH, &h, TENSORS, 2, &e), ST_OK);
    assert_int_equal(gguf_writer_put(&w, VECTOR, 12, &e), ST_OK);
    assert_int_equal(gguf_writer_commit(&w, &e), ST_FAIL);
    gguf_writer_abandon(&w);
    assert_false(file_exists(PATH));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_are_ggmls), cmocka_unit_test(test_floats),
        cmocka_unit_test(test_round_trip),       cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_mutations),        cmocka_unit_test(test_twice),
        cmocka_unit_test(test_reads_gguf_py),    cmocka_unit_test(test_missing_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

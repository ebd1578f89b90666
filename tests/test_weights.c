/* Dense weights that become 4-bit while they are loaded: on the CPU, and on a device or the simulator of one, what the
 * backend holds then is what quant/block.h makes of the same numbers on the host, byte for byte.
 * GRAFT_TEST_DEVICE=cpu leaves the device out, =cuda the CPU, and demands the device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"
#include "model/weights.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

enum { MODULES = 3 };
enum { RANDOM = -1, ZEROS = -2, ALL = -3 }; // numbers of a file

/* A folder with the weights of linear layers and nothing else. */
struct folder {
    char path[32];
    struct st_set files;
};

/* --- files ------------------------------------------------------------------------------------------------------- */

struct module {
    const char *path;
    int64_t O, I;
    enum st_type type;
};

/* Numbers of many sizes; every seventh row of 500 is zeros. */
static void fill(void *data, enum st_type type, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double v = i / 500 % 7 == 3 ? 0 : ldexp(2 * rng_uniform(7, 1, (uint64_t)i) - 1, (int)(i / 700 % 5) - 2);
        float wide = (float)v;
        uint16_t half = type == ST_BF16 ? bf16_of_float(wide) : f16_of_float(wide);
        size_t size = st_type_size(type);
        memcpy((char *)data + (size_t)i * size, type == ST_F32 ? (void *)&wide : &half, size);
    }
}

static size_t module_bytes(const struct module *m) { return (size_t)(m->O * m->I) * st_type_size(m->type); }

/* model.safetensors of these weights. The numbers begin `blanks` bytes past a multiple of 64. spoil: RANDOM, ZEROS, or
 * the module (ALL: of all) whose last element has these bits. */
static void folder_open(struct folder *f, const struct module *modules, int count, int blanks, int spoil,
                        uint32_t bits) {
    struct text head = {0};
    struct err e = {0};
    size_t at = 0;
    *f = (struct folder){.path = "/tmp/graft-weights-XXXXXX"};
    if (!mkdtemp(f->path)) fail_msg("cannot make a folder");
    for (int i = 0; i < count; i++) {
        const struct module *m = &modules[i];
        text_addf(&head, "%s\"%s.weight\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],\"data_offsets\":[%zu,%zu]}",
                  i ? "," : "{", m->path, st_type_name(m->type), (long long)m->O, (long long)m->I, at,
                  at + module_bytes(m));
        at += module_bytes(m);
    }
    text_add(&head, "}");
    while ((head.len + 8) % 64) text_add(&head, " ");
    for (int i = 0; i < blanks; i++) text_add(&head, " ");
    char *all = mem_alloc(8 + head.len + at), *data = all + 8 + head.len;
    memcpy(all, &(uint64_t){head.len}, 8);
    memcpy(all + 8, text_str(&head), head.len);
    for (int i = 0; i < count; i++) {
        size_t size = st_type_size(modules[i].type), bytes = module_bytes(&modules[i]);
        if (spoil != ZEROS) fill(data, modules[i].type, modules[i].O * modules[i].I);
        data += bytes;
        if (i == spoil || spoil == ALL) memcpy(data - size, &bits, size);
    }
    char *path = path_join(f->path, "model.safetensors");
    if (file_write(path, all, (size_t)(data - all), &e) != ST_OK ||
        st_open_dir(&f->files, f->path, "model", &e) != ST_OK)
        fail_msg("%s", e.text);
    free(path), free(all);
    text_free(&head);
}

static void folder_close(struct folder *f) {
    struct err e = {0};
    st_close(&f->files);
    if (dir_remove(f->path, &e) != ST_OK) fail_msg("%s", e.text);
}

/* --- loading ----------------------------------------------------------------------------------------------------- */

struct loaded {
    struct weights weights;
    struct linear linears[MODULES];
    void *memory;
    size_t bytes;
};

static void call_all(struct loaded *l, const struct module *modules, int count) {
    for (int i = 0; i < count; i++)
        weights_linear(&l->weights, &l->linears[i], modules[i].path, modules[i].O, modules[i].I, false);
}

/* As model_load does it: once to count, once to place. */
static enum status load(struct loaded *l, const struct folder *f, struct backend *be, const struct quantize_on_load *q,
                        const struct module *modules, int count, struct err *e) {
    struct arena counted = {0};
    *l = (struct loaded){0};
    if (weights_open(&l->weights, f->path, be, q, e) != ST_OK) return e->code;
    l->weights.arena = &counted;
    call_all(l, modules, count);
    l->bytes = counted.peak;
    l->memory = backend_alloc(be, l->bytes);
    if (!l->memory) return err_set(e, ST_FAIL, "%s", be->err.text);
    struct arena real = arena_over(l->memory, l->bytes);
    l->weights.arena = &real;
    l->weights.placing = true;
    call_all(l, modules, count);
    assert_int_equal(real.used, counted.used);
    assert_int_equal(real.peak, counted.peak);
    return weights_finish(&l->weights);
}

static void unload(struct loaded *l, struct backend *be) {
    for (int i = 0; i < MODULES; i++) free((char *)l->linears[i].path);
    weights_close(&l->weights);
    backend_release(be, l->memory);
}

/* What the backend holds at a place; the caller frees it. */
static void *held(struct backend *be, const void *place, size_t bytes) {
    struct tensor t = tensor_over1((void *)place, U8, (int64_t)bytes);
    void *copy = mem_alloc(bytes + 1);
    backend_download(be, copy, &t);
    return copy;
}

static void same(struct backend *be, const void *place, const void *want, size_t bytes, const char *what,
                 const struct module *m) {
    uint8_t *got = held(be, place, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (got[i] != ((const uint8_t *)want)[i])
            fail_msg("%s, %s (%lld,%lld) %s: byte %zu of %s is %d, wanted %d", be->name, m->path, (long long)m->O,
                     (long long)m->I, st_type_name(m->type), i, what, got[i], ((const uint8_t *)want)[i]);
    free(got);
}

/* A weight of the backend against quant/block.h. */
static void check_weight(struct backend *be, const struct tensor *W, const struct folder *f, const struct module *m,
                         const struct quantize_on_load *how) {
    static const enum dtype types[] = {[ST_F32] = F32, [ST_BF16] = BF16, [ST_F16] = F16};
    char *name = mem_format("%s.weight", m->path);
    const struct st_entry *from = st_find(&f->files, name);
    const struct q4 *q = W->q4;
    int64_t n = m->O * m->I, blocks = block_count(n, how->blocksize), groups = block_count(blocks, NESTED_BLOCKSIZE);
    uint8_t *packed = mem_alloc((size_t)n / 2 + 1), *absmax8 = mem_alloc((size_t)blocks);
    float *absmax = mem_alloc((size_t)blocks * sizeof(float)), *nested = mem_alloc((size_t)groups * sizeof(float));
    float map[256], offset = 0;
    block_map8(map);
    block_quantize(packed, absmax, from->data, types[m->type], n, how->type, how->blocksize, be->threads);
    if (how->double_quant) offset = block_nest(absmax8, nested, absmax, blocks, map, be->threads);
    assert_true(W->type == how->type && W->dim[0] == m->O && W->dim[1] == m->I);
    assert_int_equal(q->source, types[m->type]);
    assert_int_equal(q->blocksize, how->blocksize);
    same(be, W->data, packed, (size_t)(n + 1) / 2, "codes", m);
    same(be, q->code, block_code(how->type), 16 * sizeof(float), "values", m);
    assert_true(!q->absmax == how->double_quant);
    if (how->double_quant) {
        assert_int_equal(q->nested_blocksize, NESTED_BLOCKSIZE);
        assert_memory_equal(&q->nested_offset, &offset, sizeof offset);
        same(be, q->absmax8, absmax8, (size_t)blocks, "scales in 8 bits", m);
        same(be, q->nested_absmax, nested, (size_t)groups * sizeof(float), "scales of scales", m);
        same(be, q->nested_code, map, sizeof map, "map", m);
    } else {
        same(be, q->absmax, absmax, (size_t)blocks * sizeof(float), "scales", m);
    }
    free(packed), free(absmax8), free(absmax), free(nested), free(name);
}

/* --- the tests --------------------------------------------------------------------------------------------------- */

typedef void backend_fn(struct backend *be);

static void on_backends(backend_fn *run) {
    static const char *const names[] = {"cpu", "cuda"};
    const char *only = getenv("GRAFT_TEST_DEVICE");
    int ran = 0;
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        if (only && *only && strcmp(only, names[i]) != 0) continue;
        struct backend *be = backend_new(names[i], 2, &e);
        if (!be && only && strcmp(only, names[i]) == 0) fail_msg("%s", e.text);
        if (!be) continue;
        run(be);
        backend_free(be);
        ran++;
    }
    assert_true(ran > 0);
}

static void check_folder(struct backend *be, const struct module *modules, int count, int blanks,
                         const struct quantize_on_load *how) {
    struct folder f;
    struct loaded l;
    struct err e = {0};
    folder_open(&f, modules, count, blanks, RANDOM, 0);
    if (load(&l, &f, be, how, modules, count, &e) != ST_OK) fail_msg("%s", e.text);
    for (int i = 0; i < count; i++) check_weight(be, &l.linears[i].W, &f, &modules[i], how);
    unload(&l, be);
    folder_close(&f);
}

static void all_settings(struct backend *be) {
    static const struct module modules[MODULES] = {
        {"a", 33, 129, ST_F32}, {"b", 64, 96, ST_BF16}, {"c", 7, 301, ST_F16}};
    for (int i = 0; i < 4; i++)
        for (int size = 32; size <= 4096; size *= 2) {
            const struct quantize_on_load how = {.type = i & 1 ? FP4 : NF4, .double_quant = i & 2, .blocksize = size};
            check_folder(be, modules, MODULES, 0, &how);
        }
}

/* Every type, with and without double quantisation, every size of block. */
static void test_bytes_are_those_of_the_host(void **state) {
    (void)state;
    on_backends(all_settings);
}

static void no_alignment(struct backend *be) {
    static const struct module modules[MODULES] = {
        {"a", 33, 129, ST_F32}, {"b", 65, 97, ST_BF16}, {"c", 7, 301, ST_F16}};
    const struct quantize_on_load how = {.type = NF4, .double_quant = true, .blocksize = 64};
    for (int blanks = 1; blanks < 4; blanks++) check_folder(be, modules, MODULES, blanks, &how);
}

/* A file whose numbers lie at odd addresses. */
static void test_unaligned_files(void **state) {
    (void)state;
    on_backends(no_alignment);
}

static void several_pieces(struct backend *be) {
    static const struct module modules[MODULES] = {
        {"a", 1, 100, ST_BF16}, {"b", 2050, 2049, ST_BF16}, {"c", 1, 100, ST_BF16}};
    const struct quantize_on_load how = {.type = NF4, .double_quant = true, .blocksize = 4096};
    check_folder(be, modules, MODULES, 0, &how);
    if (!be->host_memory) return;
    const struct quantize_on_load single = {.type = FP4, .double_quant = false, .blocksize = 64};
    check_folder(be, modules, MODULES, 1, &single);
}

/* A weight of more elements than are quantised at a time, and its neighbours. */
static void test_large_weights(void **state) {
    (void)state;
    on_backends(several_pieces);
}

/* Beside the weights as they stay, a device needs room for the scales and a piece of one weight at a time, the CPU for
 * the scales. Nothing is placed. */
static void room(struct backend *be) {
    static const struct module big = {"a", 3 << 12, 1 << 10, ST_BF16};
    const struct quantize_on_load how = {.type = NF4, .double_quant = true, .blocksize = 64};
    struct folder f;
    struct weights w;
    struct err e = {0};
    struct linear l = {0};
    struct arena counted = {0};
    char *path;
    folder_open(&f, &big, 1, 0, ZEROS, 0);
    if (weights_open(&w, f.path, be, &how, &e) != ST_OK) fail_msg("%s", e.text);
    w.arena = &counted;
    weights_linear(&w, &l, big.path, big.O, big.I, false);
    path = (char *)l.path;
    size_t n = (size_t)(big.O * big.I), stays = n / 2 + n / 64 + n / 64 / 256 * 4;
    assert_true(counted.used >= stays && counted.used < stays + 4096);
    assert_true(counted.peak - counted.used < n / 64 * 4 + (be->host_memory ? 4096 : 2 * n / 2));
    weights_close(&w);
    folder_close(&f);
    free(path);
}

static void test_room_for_dense_numbers(void **state) {
    (void)state;
    on_backends(room);
}

static const struct module three[MODULES] = {{"a", 33, 129, ST_F32}, {"b", 64, 96, ST_BF16}, {"c", 64, 97, ST_F16}};

static void refuses(struct backend *be, int spoil, uint32_t bits, bool twice, const char *says) {
    for (int i = 0; i < 2; i++) {
        const struct quantize_on_load how = {.type = NF4, .double_quant = i, .blocksize = 64};
        struct folder f;
        struct loaded l;
        struct err e = {0};
        folder_open(&f, three, MODULES, 0, spoil, bits);
        assert_int_equal(load(&l, &f, be, &how, three, twice ? MODULES - 1 : MODULES, &e), ST_FAIL);
        if (!strstr(e.text, says)) fail_msg("%s, wanted %s", e.text, says);
        unload(&l, be);
        folder_close(&f);
    }
}

static void nonfinite(struct backend *be) {
    refuses(be, 0, 0x7FC00000u, false, "tensor a.weight holds NaN or infinity; it cannot be quantised");
    refuses(be, 0, 0xFF800000u, false, "tensor a.weight holds NaN or infinity; it cannot be quantised");
    refuses(be, 1, 0x7F80u, false, "tensor b.weight holds NaN or infinity; it cannot be quantised");
    refuses(be, 2, 0xFE01u, false, "tensor c.weight holds NaN or infinity; it cannot be quantised");
    refuses(be, ALL, 0xFFFFFFFFu, false, "tensor a.weight holds NaN or infinity"); // the first of them
    refuses(be, RANDOM, 0, true, "tensor c.weight is not part of the model");
}

static void test_nan_and_infinity_are_named(void **state) {
    (void)state;
    on_backends(nonfinite);
}

/* The same patterns as of `graft quantize --skip`: whole parts of a path, in any place. */
static void test_skipped_modules(void **state) {
    static const struct module modules[MODULES] = {
        {"m.0.q_proj", 4, 64, ST_F32}, {"m.1.q_proj", 4, 64, ST_BF16}, {"m.1.mlp.up", 4, 64, ST_F16}};
    static const struct {
        const char *skip;
        unsigned left; // bit i: module i stays in its type
    } cases[] = {{"q_proj", 3}, {"up|lm_head", 4}, {"m\\.1", 6}, {".*q_proj", 3}, {"m.1.q_proj", 2},
                 {"mlp", 4},    {"q_pro", 0},      {"m", 7},     {"1\\.mlp", 4}};
    (void)state;
    struct err e = {0};
    struct backend *be = backend_new("cpu", 1, &e);
    assert_non_null(be);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct quantize_on_load how = {.type = NF4, .blocksize = 64, .skip = cases[i].skip};
        struct folder f;
        struct loaded l;
        unsigned left = 0;
        folder_open(&f, modules, MODULES, 0, RANDOM, 0);
        if (load(&l, &f, be, &how, modules, MODULES, &e) != ST_OK) fail_msg("%s", e.text);
        for (int k = 0; k < MODULES; k++) left |= (unsigned)!tensor_is_4bit(&l.linears[k].W) << k;
        if (left != cases[i].left) fail_msg("%s leaves %u, wanted %u", cases[i].skip, left, cases[i].left);
        unload(&l, be);
        folder_close(&f);
    }
    backend_free(be);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_are_those_of_the_host),
        cmocka_unit_test(test_unaligned_files),
        cmocka_unit_test(test_large_weights),
        cmocka_unit_test(test_room_for_dense_numbers),
        cmocka_unit_test(test_nan_and_infinity_are_named),
        cmocka_unit_test(test_skipped_modules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

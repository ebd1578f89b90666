#include "tests/op_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"

enum { GUARD = 64, GUARD_BYTE = 0xA5 };

struct check_block {
    struct check_block *next;
    char *memory;       // GUARD bytes, the tensor, GUARD bytes; doubles have no guards
    size_t bytes;       // of the tensor; 0: doubles
    struct backend *be; // whose memory it is; NULL: doubles
    uint64_t hash;
    bool output;
};

/* --- values ------------------------------------------------------------------------------------------------------- */

double check_get(const struct tensor *t, int64_t i) {
    switch (t->type) {
    case F32:
        return (double)((const float *)t->data)[i];
    case BF16:
        return (double)bf16_to_float(((const bf16 *)t->data)[i]);
    case F16:
        return (double)f16_to_float(((const f16 *)t->data)[i]);
    default:
        return (double)((const int32_t *)t->data)[i];
    }
}

void check_set(const struct tensor *t, int64_t i, double value) {
    if (t->type == F32) ((float *)t->data)[i] = (float)value;
    if (t->type == BF16) ((bf16 *)t->data)[i] = bf16_of_float((float)value);
    if (t->type == F16) ((f16 *)t->data)[i] = f16_of_float((float)value);
    if (t->type == I32) ((int32_t *)t->data)[i] = (int32_t)value;
    if (t->type == I64) ((int64_t *)t->data)[i] = (int64_t)value;
}

double check_rounded(double x, enum dtype type) {
    if (type == BF16) return (double)bf16_to_float(bf16_of_float((float)x));
    return type == F16 ? (double)f16_to_float(f16_of_float((float)x)) : x;
}

uint32_t check_random(struct check *c) { return rng_bits(1234, 0, c->draws++); }

/* --- memory ------------------------------------------------------------------------------------------------------- */

static uint64_t hash_of(const void *p, size_t n) { return hash_bytes(HASH_START, p, n); }

static void seal_inputs(struct check_block *b) {
    for (; b; b = b->next) b->hash = b->bytes && !b->output ? hash_of(b->memory + GUARD, b->bytes) : 0;
}

static struct check_block *block_new(struct check *c, size_t bytes, size_t guard) {
    struct check_block *b = mem_alloc(sizeof *b);
    b->be = guard ? c->be : NULL;
    b->memory = guard ? backend_host_alloc(c->be, bytes + 2 * guard) : mem_alloc(bytes);
    if (!b->memory) fail_msg("%s", c->be->err.text);
    memset(b->memory, GUARD_BYTE, guard);
    memset(b->memory + guard + bytes, GUARD_BYTE, guard);
    b->next = c->blocks;
    c->blocks = b;
    return b;
}

static struct tensor tensor_new(struct check *c, struct tensor shape, bool output) {
    struct check_block *b = block_new(c, tensor_bytes(&shape), GUARD);
    if (output) seal_inputs(c->blocks);
    b->bytes = tensor_bytes(&shape);
    b->output = output;
    shape.data = b->memory + GUARD;
    memset(shape.data, 0xFF, b->bytes); // NaN in every float type
    return shape;
}

double *check_zeros(struct check *c, int64_t n) {
    return (double *)block_new(c, (size_t)(n + 1) * sizeof(double), 0)->memory;
}

void check_sync(struct check *c) {
    struct err e = {0};
    if (backend_sync(c->be, &e) != ST_OK) fail_msg("%s", e.text);
}

double *check_values(struct check *c, const struct tensor *t) {
    check_sync(c);
    double *v = check_zeros(c, tensor_count(t));
    for (int64_t i = 0; i < tensor_count(t); i++) v[i] = check_get(t, i);
    return v;
}

static struct tensor input_new(struct check *c, struct tensor shape, double low, double high) {
    struct tensor t = tensor_new(c, shape, false);
    for (int64_t i = 0; i < tensor_count(&t); i++) check_set(&t, i, low + (high - low) * (check_random(c) * 0x1p-32));
    return t;
}

struct tensor check_input1(struct check *c, enum dtype type, int64_t d0, double low, double high) {
    return input_new(c, tensor_over1(NULL, type, d0), low, high);
}

struct tensor check_input2(struct check *c, enum dtype type, int64_t d0, int64_t d1, double low, double high) {
    return input_new(c, tensor_over2(NULL, type, d0, d1), low, high);
}

struct tensor check_input3(struct check *c, enum dtype type, int64_t d0, int64_t d1, int64_t d2, double low,
                           double high) {
    return input_new(c, tensor_over3(NULL, type, d0, d1, d2), low, high);
}

struct tensor check_indices(struct check *c, int64_t n, int64_t low, int64_t limit) {
    struct tensor t = tensor_new(c, tensor_over1(NULL, I32, n), false);
    for (int64_t i = 0; i < n; i++)
        ((int32_t *)t.data)[i] = (int32_t)(low + (int64_t)(check_random(c) % (uint64_t)(limit - low)));
    return t;
}

struct tensor check_offsets(struct check *c, int64_t n, const int64_t *values) {
    struct tensor t = tensor_new(c, tensor_over1(NULL, I64, n), false);
    memcpy(t.data, values, (size_t)n * sizeof *values);
    return t;
}

struct tensor check_output(struct check *c, const struct tensor *t) {
    return tensor_new(c, *t, true);
}

struct tensor check_output1(struct check *c, enum dtype type, int64_t d0) {
    return tensor_new(c, tensor_over1(NULL, type, d0), true);
}

struct tensor check_output2(struct check *c, enum dtype type, int64_t d0, int64_t d1) {
    return tensor_new(c, tensor_over2(NULL, type, d0, d1), true);
}

struct tensor check_copy(struct check *c, const struct tensor *t) {
    struct tensor y = tensor_new(c, *t, true);
    check_sync(c);
    memcpy(y.data, t->data, tensor_bytes(t));
    return y;
}

/* --- comparing ---------------------------------------------------------------------------------------------------- */

bool check_is_near(double got, double want, double size, double units, enum dtype type) {
    double tolerance = 2 * fabs(check_rounded(want, type) - want) + units * 0x1p-24 * size + 1e-37;
    return fabs(got - want) <= tolerance;
}

static void describe(const struct check *c, char *text, size_t n) {
    int used = snprintf(text, n, "%s, %s, shape", c->isa, dtype_name(c->act));
    for (int i = 0; i < 8; i++) used += snprintf(text + used, n - (size_t)used, " %lld", (long long)c->shape[i]);
}

static void add_to_digest(struct check *c, const struct tensor *got) {
    c->digest = (c->digest ^ hash_of(got->data, tensor_bytes(got))) * 0x100000001B3u;
}

void check_near(struct check *c, const char *name, const struct tensor *got, const double *want, const double *size,
                double units) {
    char where[256];
    check_sync(c);
    for (int64_t i = 0; i < tensor_count(got); i++) {
        double s = size ? size[i] : fabs(want[i]), g = check_get(got, i);
        if (check_is_near(g, want[i], s, units, got->type)) continue;
        describe(c, where, sizeof where);
        fail_msg("%s[%lld] is %.9g, wanted %.9g: %.3g units of %.3g (%s)", name, (long long)i, g, want[i],
                 fabs(g - want[i]) / s * 0x1p24, s, where);
    }
    add_to_digest(c, got);
}

void check_equal(struct check *c, const char *name, const struct tensor *got, const double *want) {
    char where[256];
    check_sync(c);
    for (int64_t i = 0; i < tensor_count(got); i++) {
        if (check_get(got, i) == want[i]) continue;
        describe(c, where, sizeof where);
        fail_msg("%s[%lld] is %.9g, wanted exactly %.9g (%s)", name, (long long)i, check_get(got, i), want[i], where);
    }
    add_to_digest(c, got);
}

static bool both_nan(const float *a, const float *b) { return isnan(*a) && isnan(*b); }

void check_bytes(struct check *c, const char *name, const struct tensor *got, const void *want) {
    char where[256];
    const uint8_t *g = got->data, *w = want;
    check_sync(c);
    for (size_t i = 0; i < tensor_bytes(got); i++) {
        if (g[i] == w[i]) continue;
        if (got->type == F32 && both_nan((const float *)got->data + i / 4, (const float *)want + i / 4)) continue;
        describe(c, where, sizeof where);
        fail_msg("byte %zu of %s is %d, wanted %d (%s)", i, name, g[i], w[i], where);
    }
    add_to_digest(c, got);
}

/* --- running ------------------------------------------------------------------------------------------------------ */

static void verify_blocks(const struct check *c) {
    char where[256];
    describe(c, where, sizeof where);
    for (const struct check_block *b = c->blocks; b; b = b->next) {
        if (!b->bytes) continue;
        for (size_t i = 0; i < GUARD; i++)
            if ((unsigned char)b->memory[i] != GUARD_BYTE ||
                (unsigned char)b->memory[GUARD + b->bytes + i] != GUARD_BYTE)
                fail_msg("a guard byte around a tensor of %zu bytes was written (%s)", b->bytes, where);
        if (!b->output && b->hash && b->hash != hash_of(b->memory + GUARD, b->bytes))
            fail_msg("an input of %zu bytes was written (%s)", b->bytes, where);
    }
}

static void free_blocks(struct check *c) {
    for (struct check_block *b = c->blocks, *next; b; b = next) {
        next = b->next;
        if (b->be)
            backend_host_release(b->be, b->memory);
        else
            free(b->memory);
        free(b);
    }
    c->blocks = NULL;
}

static uint64_t run_once(struct check *c, case_fn *fn) {
    c->draws = c->digest = 0;
    fn(c, c->shape);
    check_sync(c);
    verify_blocks(c);
    free_blocks(c);
    return c->digest;
}

static void run_isa(const char *isa, case_fn *fn, const int64_t (*shapes)[8], int count) {
    struct err e = {0};
    setenv("GRAFT_CPU_ISA", isa, 1);
    struct backend *one = backend_new("cpu", 1, &e), *three = backend_new("cpu", 3, &e);
    unsetenv("GRAFT_CPU_ISA");
    if (!one || !three) {
        print_message("skip: %s\n", e.text);
        backend_free(one), backend_free(three);
        return;
    }
    for (int i = 0; i < 2 * count; i++) {
        struct check c = {.be = one, .act = i % 2 ? BF16 : F32, .isa = isa, .shape = shapes[i / 2]};
        uint64_t first = run_once(&c, fn);
        if (run_once(&c, fn) != first) fail_msg("the second run gave other bits (%s, shape %d)", isa, i / 2);
        c.be = three;
        if (run_once(&c, fn) != first) fail_msg("three threads gave other bits (%s, shape %d)", isa, i / 2);
    }
    backend_free(one), backend_free(three);
}

/* The device runs each launch to its end, so that a fault is reported where it is. */
static void run_device(case_fn *fn, const int64_t (*shapes)[8], int count, bool demanded) {
    static bool said;
    struct err e = {0};
    setenv("CUDA_LAUNCH_BLOCKING", "1", 0);
    struct backend *be = backend_new("cuda", 1, &e);
    if (!be && demanded) fail_msg("%s", e.text);
    if (!be && !said) print_message("skip: %s\n", e.text);
    said = true;
    for (int i = 0; be && i < 2 * count; i++) {
        struct check c = {.be = be, .act = i % 2 ? BF16 : F32, .isa = "cuda", .shape = shapes[i / 2]};
        uint64_t first = run_once(&c, fn);
        if (run_once(&c, fn) != first) fail_msg("the second run gave other bits (cuda, shape %d)", i / 2);
    }
    backend_free(be);
}

void check_case(case_fn *fn, const int64_t (*shapes)[8], int count) {
    static const char *const isas[] = {"x86-64", "x86-64-v3", "x86-64-v4"};
    const char *only = getenv("GRAFT_TEST_DEVICE");
    bool cuda = only && strcmp(only, "cuda") == 0, cpu = only && strcmp(only, "cpu") == 0;
    for (size_t i = 0; i < sizeof isas / sizeof *isas && !cuda; i++) run_isa(isas[i], fn, shapes, count);
    if (!cpu) run_device(fn, shapes, count, cuda);
}

#include "base/tensor.h"

#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name;
    size_t size;
} kinds[] = {
    [F32] = {"f32", 4}, [BF16] = {"bf16", 2}, [F16] = {"f16", 2}, [I32] = {"i32", 4},
    [I64] = {"i64", 8}, [U8] = {"u8", 1},     [NF4] = {"nf4", 0}, [FP4] = {"fp4", 0},
};

size_t dtype_size(enum dtype type) { return kinds[type].size; }

const char *dtype_name(enum dtype type) { return kinds[type].name; }

struct tensor tensor_over1(void *data, enum dtype type, int64_t d0) {
    return (struct tensor){.data = data, .type = type, .rank = 1, .dim = {d0, 1, 1, 1}};
}

struct tensor tensor_over2(void *data, enum dtype type, int64_t d0, int64_t d1) {
    return (struct tensor){.data = data, .type = type, .rank = 2, .dim = {d0, d1, 1, 1}};
}

struct tensor tensor_over3(void *data, enum dtype type, int64_t d0, int64_t d1, int64_t d2) {
    return (struct tensor){.data = data, .type = type, .rank = 3, .dim = {d0, d1, d2, 1}};
}

int64_t tensor_count(const struct tensor *t) { return t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]; }

bool tensor_is_4bit(const struct tensor *t) { return t->type == NF4 || t->type == FP4; }

size_t tensor_bytes(const struct tensor *t) {
    size_t n = (size_t)tensor_count(t);
    return tensor_is_4bit(t) ? (n + 1) / 2 : n * dtype_size(t->type);
}

static void want(bool fits, const char *what) {
    if (fits) return;
    fprintf(stderr, "graft: %s does not fit the tensor\n", what);
    abort();
}

struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t count) {
    want(!tensor_is_4bit(t) && first >= 0 && count >= 0 && first + count <= t->dim[0], "a range of rows");
    struct tensor part = *t;
    size_t row = t->dim[0] ? tensor_bytes(t) / (size_t)t->dim[0] : 0;
    if (t->data) part.data = (char *)t->data + (size_t)first * row;
    part.dim[0] = count;
    return part;
}

struct tensor tensor_as2(const struct tensor *t, int64_t d0, int64_t d1) {
    want(d0 * d1 == tensor_count(t), "a shape");
    return tensor_over2(t->data, t->type, d0, d1);
}

struct tensor tensor_as3(const struct tensor *t, int64_t d0, int64_t d1, int64_t d2) {
    want(d0 * d1 * d2 == tensor_count(t), "a shape");
    return tensor_over3(t->data, t->type, d0, d1, d2);
}

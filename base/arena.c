#include "base/arena.h"

#include <stdio.h>
#include <stdlib.h>

struct arena arena_over(void *memory, size_t size) {
    return (struct arena){.base = memory, .size = size};
}

void *arena_bytes(struct arena *a, size_t bytes) {
    size_t at = a->used, want = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (a->base && want > a->size - at) {
        fprintf(stderr, "graft: arena of %zu bytes is full: %zu used, %zu wanted\n", a->size, at, want);
        abort();
    }
    a->used = at + want;
    if (a->used > a->peak) a->peak = a->used;
    return a->base ? a->base + at : NULL;
}

static struct tensor place(struct arena *a, struct tensor t) {
    t.data = arena_bytes(a, tensor_bytes(&t));
    return t;
}

struct tensor arena_tensor1(struct arena *a, enum dtype type, int64_t d0) {
    return place(a, tensor_over1(NULL, type, d0));
}

struct tensor arena_tensor2(struct arena *a, enum dtype type, int64_t d0, int64_t d1) {
    return place(a, tensor_over2(NULL, type, d0, d1));
}

struct tensor arena_tensor3(struct arena *a, enum dtype type, int64_t d0, int64_t d1, int64_t d2) {
    return place(a, tensor_over3(NULL, type, d0, d1, d2));
}

#include "data/bpe_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 wide = (unsigned __int128)a * b;
    return (uint64_t)wide ^ (uint64_t)(wide >> 64);
}

/* 64 bits that depend on every byte. */
static uint64_t table_hash(const char *s, size_t n) {
    uint64_t h = UINT64_C(0x8EBC6AF09C88C6E3) ^ n, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = mix(h ^ word, UINT64_C(0x589965CC75374CC3));
    }
    word = 0;
    memcpy(&word, s, n);
    return mix(h ^ word, UINT64_C(0x1D8E4E27C47D124F));
}

static size_t power_for(size_t expected) {
    size_t size = 16;
    while (size < expected * 2) size *= 2;
    return size;
}

void string_table_init(struct string_table *t, size_t expected) {
    size_t size = power_for(expected);
    *t = (struct string_table){mem_alloc(size * sizeof *t->slots), size - 1, 0};
}

void string_table_free(struct string_table *t) {
    free(t->slots);
    *t = (struct string_table){0};
}

/* The slot that holds s, or the empty one where it would go. */
static struct string_slot *string_find(const struct string_table *t, const char *s, size_t n) {
    for (size_t i = table_hash(s, n) & t->mask;; i = (i + 1) & t->mask) {
        struct string_slot *slot = &t->slots[i];
        if (!slot->s || (slot->len == n && memcmp(slot->s, s, n) == 0)) return slot;
    }
}

int32_t string_table_get(const struct string_table *t, const char *s, size_t n) {
    const struct string_slot *slot = string_find(t, s, n);
    return slot->s ? slot->id : -1;
}

static void string_grow(struct string_table *t) {
    struct string_table bigger;
    string_table_init(&bigger, t->mask + 1);
    for (size_t i = 0; i <= t->mask; i++)
        if (t->slots[i].s) *string_find(&bigger, t->slots[i].s, t->slots[i].len) = t->slots[i];
    bigger.count = t->count;
    free(t->slots);
    *t = bigger;
}

struct string_slot *string_table_put(struct string_table *t, const char *s, size_t n) {
    if (t->count * 2 > t->mask) string_grow(t);
    struct string_slot *slot = string_find(t, s, n);
    if (!slot->s) {
        *slot = (struct string_slot){s, (uint32_t)n, -1};
        t->count++;
    }
    return slot;
}

void pair_table_init(struct pair_table *t, size_t expected) {
    size_t size = power_for(expected);
    *t = (struct pair_table){mem_alloc(size * sizeof *t->slots), size - 1, 0};
    for (size_t i = 0; i < size; i++) t->slots[i].rank = NO_RANK;
}

void pair_table_free(struct pair_table *t) {
    free(t->slots);
    *t = (struct pair_table){0};
}

static struct pair_slot *pair_find(const struct pair_table *t, uint64_t pair) {
    for (size_t i = pair_home(pair, t->mask);; i = (i + 1) & t->mask)
        if (t->slots[i].rank == NO_RANK || t->slots[i].pair == pair) return &t->slots[i];
}

static void pair_grow(struct pair_table *t) {
    struct pair_table bigger;
    pair_table_init(&bigger, t->mask + 1);
    for (size_t i = 0; i <= t->mask; i++)
        if (t->slots[i].rank != NO_RANK) *pair_find(&bigger, t->slots[i].pair) = t->slots[i];
    bigger.count = t->count;
    free(t->slots);
    *t = bigger;
}

void pair_table_put(struct pair_table *t, int32_t left, int32_t right, uint32_t rank, int32_t result) {
    if (t->count * 2 > t->mask) pair_grow(t);
    struct pair_slot *slot = pair_find(t, pair_key(left, right));
    t->count += slot->rank == NO_RANK;
    *slot = (struct pair_slot){pair_key(left, right), rank, result};
}

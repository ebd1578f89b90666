/* The hash tables of bpe.c: token text to id, pair of ids to rank. Open addressing, at most half full. */
#ifndef DATA_BPE_TABLE_H
#define DATA_BPE_TABLE_H

#include <stddef.h>
#include <stdint.h>

/* Strings that live elsewhere, each with an id. */
struct string_table {
    struct string_slot {
        const char *s; // NULL: empty
        uint32_t len;
        int32_t id;
    } * slots;
    size_t mask, count;
};
void string_table_init(struct string_table *t, size_t expected);
void string_table_free(struct string_table *t);
int32_t string_table_get(const struct string_table *t, const char *s, size_t n); // -1 when absent
/* The slot of s: its id is -1 when it is new, and then s must be made to point at lasting bytes. */
struct string_slot *string_table_put(struct string_table *t, const char *s, size_t n);

/* Pairs of ids, each with the rank of its merge and the id that it becomes. */
struct pair_table {
    struct pair_slot {
        uint64_t pair; // left in the high half
        uint32_t rank; // NO_RANK: empty
        int32_t result;
    } * slots;
    size_t mask, count;
};
#define NO_RANK UINT32_MAX
void pair_table_init(struct pair_table *t, size_t expected);
void pair_table_free(struct pair_table *t);
void pair_table_put(struct pair_table *t, int32_t left, int32_t right, uint32_t rank, int32_t result);

static inline uint64_t pair_key(int32_t left, int32_t right) { return (uint64_t)left << 32 | (uint32_t)right; }

static inline size_t pair_home(uint64_t pair, size_t mask) {
    uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(h ^ h >> 32) & mask;
}

/* The rank of a pair and, in *result, what it becomes; NO_RANK when it does not merge. */
static inline uint32_t pair_rank(const struct pair_table *t, int32_t left, int32_t right, int32_t *result) {
    uint64_t pair = pair_key(left, right);
    for (size_t i = pair_home(pair, t->mask);; i = (i + 1) & t->mask) {
        const struct pair_slot *slot = &t->slots[i];
        if (slot->rank == NO_RANK) return NO_RANK;
        if (slot->pair != pair) continue;
        *result = slot->result;
        return slot->rank;
    }
}

#endif

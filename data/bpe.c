/* Read bpe_encode first. Speed comes from three things: a piece seen before in this call is copied from the output, not
 * merged again (struct seen); a long piece is cut where no merge can cross, so that most of what is merged is short;
 * and a short run of symbols is merged by scanning, a long one with a heap. */
#include "data/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/bpe_table.h"

enum { RUNE_PAGE = 256, RUNE_PAGES = 0x110000 / RUNE_PAGE, BORDER_BITS = 1 << 16 };

struct token {
    char *text; // NULL: no such id
    uint32_t len;
};

struct block { // where token texts live; never moves
    struct block *next;
    size_t used, room;
    char bytes[];
};

struct bpe {
    char *where;
    struct bpe_rules rules;
    char *unk; // NULL: unknown characters are dropped
    int32_t unk_id;
    struct block *blocks;
    struct token *tokens; // by id
    size_t token_room;
    int32_t limit;
    struct string_table ids; // token text -> id
    struct string_table raw; // byte_level: the bytes that a token stands for -> id
    struct pair_table merges;
    uint32_t merge_count;
    int32_t byte_id[256];              // byte_level: a byte's own token; else its <0xHH>; -1: none
    int32_t *rune_pages[RUNE_PAGES];   // the token of a single character; NULL page, -1: none
    uint64_t border[BORDER_BITS / 64]; // bit of (last character, first character): a merge may join the two
};

/* Pieces already encoded in this call: their ids are copied from where they stand in the output. */
enum { SEEN_BYTES = 24, SEEN_WAYS = 1 << 14 };
struct seen {
    uint64_t key[SEEN_BYTES / 8]; // the piece, padded with zeros
    uint32_t at;                  // in the output
    uint16_t count;
    uint16_t len; // bytes; 0: free
};

struct bpe_scratch {
    struct seen *seen;
    size_t seen_mask;
    int32_t *symbols; // of the piece
    size_t symbol_count, symbol_room;
    struct link *links; // the heap way
    uint64_t *heap;
    size_t link_room, heap_room;
};

static unsigned byte_to_rune(unsigned char byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174) return byte;
    if (byte <= 32) return 0x100u + byte;
    return byte == 173 ? 0x143 : 0x121u + (byte - 127u);
}

int rune_to_byte(unsigned rune) {
    if ((rune >= 33 && rune <= 126) || (rune >= 161 && rune <= 172) || (rune >= 174 && rune <= 255)) return (int)rune;
    if (rune >= 0x100 && rune <= 0x120) return (int)rune - 0x100;
    if (rune >= 0x121 && rune <= 0x142) return (int)rune - 0x121 + 127;
    return rune == 0x143 ? 173 : -1;
}

struct bpe *bpe_new(const char *where) {
    struct bpe *b = mem_alloc(sizeof *b);
    b->where = mem_text(where);
    string_table_init(&b->ids, 1024);
    pair_table_init(&b->merges, 1024);
    b->unk_id = -1;
    return b;
}

void bpe_free(struct bpe *b) {
    if (!b) return;
    for (struct block *k = b->blocks, *next; k; k = next) next = k->next, free(k);
    for (int i = 0; i < RUNE_PAGES; i++) free(b->rune_pages[i]);
    string_table_free(&b->ids);
    string_table_free(&b->raw);
    pair_table_free(&b->merges);
    free(b->tokens);
    free(b->unk);
    free(b->where);
    free(b);
}

/* A lasting copy of s, with a final zero. */
static char *keep(struct bpe *b, const char *s, size_t n) {
    enum { ROOM = 1 << 18 };
    if (!b->blocks || b->blocks->room - b->blocks->used <= n) {
        size_t room = n + 1 > ROOM ? n + 1 : ROOM;
        struct block *k = mem_resize(NULL, sizeof *k + room);
        k->next = b->blocks, k->used = 0, k->room = room;
        b->blocks = k;
    }
    char *copy = b->blocks->bytes + b->blocks->used;
    if (n) memcpy(copy, s, n);
    copy[n] = 0;
    b->blocks->used += n + 1;
    return copy;
}

enum status bpe_add_token(struct bpe *b, const char *s, size_t n, int64_t id, struct err *e) {
    if (id < 0 || id >= TOKEN_LIMIT)
        return err_set(e, ST_FAIL, "%s: the id of token \"%.40s\" is %lld, wanted 0 to %d", b->where, s, (long long)id,
                       TOKEN_LIMIT - 1);
    if ((size_t)id >= b->token_room) {
        size_t room = b->token_room ? b->token_room * 2 : 4096;
        while (room <= (size_t)id) room *= 2;
        b->tokens = mem_resize(b->tokens, room * sizeof *b->tokens);
        memset(b->tokens + b->token_room, 0, (room - b->token_room) * sizeof *b->tokens);
        b->token_room = room;
    }
    struct string_slot *slot = string_table_put(&b->ids, s, n);
    if (slot->id >= 0)
        b->tokens[slot->id].text = NULL;
    else
        slot->s = keep(b, s, n);
    if (b->tokens[id].text)
        return err_set(e, ST_FAIL, "%s: tokens \"%.40s\" and \"%.40s\" have the same id %lld", b->where,
                       b->tokens[id].text, s, (long long)id);
    slot->id = (int32_t)id;
    b->tokens[id] = (struct token){(char *)slot->s, (uint32_t)n};
    if (id >= b->limit) b->limit = (int32_t)id + 1;
    return ST_OK;
}

/* The bit that says whether some merge joins a token ending in `last` with one starting in `first`. Two pairs may share
 * a bit: then a cut is missed, never made wrongly. */
static size_t border_bit(unsigned last, unsigned first) {
    return (last * 0x9E3779B1u ^ first * 0x85EBCA6Bu) >> 16 & (BORDER_BITS - 1);
}

static unsigned first_rune(const char *s) {
    int len;
    return utf8_rune(s, &len);
}

static unsigned last_rune(const char *s, size_t n) {
    do n--;
    while (n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80);
    return first_rune(s + n);
}

static enum status no_token(const struct bpe *b, const char *what, struct err *e) {
    return err_set(e, ST_FAIL, "%s: merge %u needs the token \"%.60s\", which is not in the vocabulary", b->where,
                   b->merge_count, what);
}

enum status bpe_add_merge(struct bpe *b, struct text *left, struct text *right, struct err *e) {
    if (left->len == 0 || right->len == 0)
        return err_set(e, ST_FAIL, "%s: merge %u has an empty half", b->where, b->merge_count);
    int32_t l = bpe_id(b, left->data, left->len), r = bpe_id(b, right->data, right->len);
    if (l < 0) return no_token(b, left->data, e);
    if (r < 0) return no_token(b, right->data, e);
    size_t bit = border_bit(last_rune(left->data, left->len), first_rune(right->data));
    text_add_n(left, right->data, right->len);
    int32_t result = bpe_id(b, left->data, left->len);
    if (result < 0) return no_token(b, left->data, e);
    b->border[bit / 64] |= UINT64_C(1) << bit % 64;
    pair_table_put(&b->merges, l, r, b->merge_count++, result);
    return ST_OK;
}

static void set_rune_id(struct bpe *b, unsigned rune, int32_t id) {
    int32_t **page = &b->rune_pages[rune / RUNE_PAGE];
    if (!*page) {
        *page = mem_alloc(RUNE_PAGE * sizeof **page);
        for (int i = 0; i < RUNE_PAGE; i++) (*page)[i] = -1;
    }
    (*page)[rune % RUNE_PAGE] = id;
}

static int32_t rune_id(const struct bpe *b, unsigned rune) {
    const int32_t *page = b->rune_pages[rune / RUNE_PAGE];
    return page ? page[rune % RUNE_PAGE] : -1;
}

/* The bytes that a token of the byte alphabet stands for; false when a character is not of the alphabet. */
static bool raw_bytes(const struct token *t, struct text *raw) {
    text_clear(raw);
    for (size_t at = 0; at < t->len;) {
        int len, byte = rune_to_byte(utf8_rune(t->text + at, &len));
        if (byte < 0) return false;
        text_add_char(raw, (char)byte);
        at += (size_t)len;
    }
    return true;
}

static void index_raw(struct bpe *b) {
    struct text raw = {0};
    string_table_init(&b->raw, b->ids.count);
    for (int32_t id = 0; id < b->limit; id++) {
        if (!b->tokens[id].text || b->tokens[id].len == 0 || !raw_bytes(&b->tokens[id], &raw)) continue;
        struct string_slot *slot = string_table_put(&b->raw, raw.data, raw.len);
        slot->s = keep(b, raw.data, raw.len);
        slot->id = id;
    }
    text_free(&raw);
}

static void index_runes(struct bpe *b) {
    for (int32_t id = 0; id < b->limit; id++) {
        const struct token *t = &b->tokens[id];
        if (!t->text || t->len == 0 || t->len > 4) continue;
        int len;
        unsigned rune = utf8_rune(t->text, &len);
        if ((size_t)len == t->len) set_rune_id(b, rune, id);
    }
    for (unsigned i = 0; i < 256; i++) {
        char name[8] = "<0x00>";
        name[3] = "0123456789ABCDEF"[i >> 4], name[4] = "0123456789ABCDEF"[i & 15];
        b->byte_id[i] = b->rules.byte_level ? rune_id(b, byte_to_rune((unsigned char)i)) : bpe_id(b, name, 6);
    }
}

enum status bpe_finish(struct bpe *b, const struct bpe_rules *rules, const char *unk, struct err *e) {
    if (b->ids.count == 0) return err_set(e, ST_FAIL, "%s: the vocabulary is empty", b->where);
    b->rules = *rules;
    b->unk = unk ? mem_text(unk) : NULL;
    b->unk_id = unk ? bpe_id(b, unk, strlen(unk)) : -1;
    if (rules->byte_level && rules->ignore_merges) index_raw(b);
    index_runes(b);
    return ST_OK;
}

size_t bpe_count(const struct bpe *b) { return b->ids.count; }
int32_t bpe_limit(const struct bpe *b) { return b->limit; }
int32_t bpe_id(const struct bpe *b, const char *s, size_t n) { return string_table_get(&b->ids, s, n); }

const char *bpe_token(const struct bpe *b, int32_t id) { return id >= 0 && id < b->limit ? b->tokens[id].text : NULL; }

size_t bpe_token_len(const struct bpe *b, int32_t id) { return bpe_token(b, id) ? b->tokens[id].len : 0; }

struct bpe_rules bpe_rules_of(const struct bpe *b) {
    return b->rules;
}
int32_t bpe_unknown(const struct bpe *b) { return b->unk_id; }
size_t bpe_merge_count(const struct bpe *b) { return b->merge_count; }

/* A pair that a file lists twice counts once; what it leaves free has the ids -1. */
void bpe_merges(const struct bpe *b, int32_t *left, int32_t *right, int32_t *result) {
    for (uint32_t i = 0; i < b->merge_count; i++) left[i] = right[i] = result[i] = -1;
    for (size_t i = 0; i <= b->merges.mask; i++) {
        const struct pair_slot *slot = &b->merges.slots[i];
        if (slot->rank == NO_RANK) continue;
        left[slot->rank] = (int32_t)(slot->pair >> 32), right[slot->rank] = (int32_t)(slot->pair & 0xFFFFFFFF);
        result[slot->rank] = slot->result;
    }
}

struct bpe_scratch *bpe_scratch_new(size_t expected) {
    struct bpe_scratch *w = mem_alloc(sizeof *w);
    size_t ways = 16;
    while (ways < SEEN_WAYS && ways < expected / 8) ways *= 2;
    w->seen = mem_alloc(ways * sizeof *w->seen);
    w->seen_mask = ways - 1;
    return w;
}

void bpe_scratch_free(struct bpe_scratch *w) {
    if (!w) return;
    free(w->seen);
    free(w->symbols);
    free(w->links);
    free(w->heap);
    free(w);
}

/* A run of a few symbols: look for the lowest rank, merge, look again. Returns how many are left. */
enum { SHORT = 48 };
static size_t merge_short(const struct bpe *b, int32_t *s, size_t n) {
    uint32_t rank[SHORT];
    int32_t result[SHORT];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = pair_rank(&b->merges, s[i], s[i + 1], &result[i]);
    while (n > 1) {
        size_t low = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[low]) low = i;
        if (rank[low] == NO_RANK) break;
        s[low] = result[low];
        n--;
        for (size_t i = low + 1; i < n; i++) s[i] = s[i + 1];
        for (size_t i = low; i + 1 < n; i++) rank[i] = rank[i + 1], result[i] = result[i + 1];
        if (low + 1 < n) rank[low] = pair_rank(&b->merges, s[low], s[low + 1], &result[low]);
        if (low > 0) rank[low - 1] = pair_rank(&b->merges, s[low - 1], s[low], &result[low - 1]);
    }
    return n;
}

/* The heap way: symbols are a doubly linked list, the heap holds rank << 32 | position of the left symbol. An entry is
 * stale when the pair that now stands at its position has another rank. */
struct link {
    int32_t id; // -1: swallowed by its left neighbour
    uint32_t before, after;
};
#define NOWHERE UINT32_MAX

static void heap_push(struct bpe_scratch *w, size_t *count, uint64_t entry) {
    if (*count == w->heap_room) {
        w->heap_room = w->heap_room ? w->heap_room * 2 : 1024;
        w->heap = mem_resize(w->heap, w->heap_room * sizeof *w->heap);
    }
    size_t i = (*count)++;
    for (; i > 0 && w->heap[(i - 1) / 2] > entry; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = entry;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count) {
    uint64_t top = heap[0], last = heap[--*count];
    size_t i = 0, n = *count;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* Offers the pair whose left symbol is at `at` to the heap. */
static void offer(const struct bpe *b, struct bpe_scratch *w, size_t *count, uint32_t at) {
    int32_t result;
    if (at == NOWHERE || w->links[at].after == NOWHERE) return;
    uint32_t rank = pair_rank(&b->merges, w->links[at].id, w->links[w->links[at].after].id, &result);
    if (rank != NO_RANK) heap_push(w, count, (uint64_t)rank << 32 | at);
}

static size_t merge_long(const struct bpe *b, struct bpe_scratch *w, int32_t *s, size_t n) {
    if (n > w->link_room) {
        w->links = mem_resize(w->links, n * sizeof *w->links);
        w->link_room = n;
    }
    struct link *l = w->links;
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        l[i] = (struct link){s[i], i ? (uint32_t)i - 1 : NOWHERE, i + 1 < n ? (uint32_t)i + 1 : NOWHERE};
    for (size_t i = 0; i < n; i++) offer(b, w, &count, (uint32_t)i);
    while (count > 0) {
        uint64_t top = heap_pop(w->heap, &count);
        uint32_t at = (uint32_t)top, right = l[at].after;
        int32_t result = -1;
        if (l[at].id < 0 || right == NOWHERE) continue;
        if (pair_rank(&b->merges, l[at].id, l[right].id, &result) != (uint32_t)(top >> 32)) continue;
        l[at].id = result;
        l[at].after = l[right].after;
        l[right].id = -1;
        if (l[at].after != NOWHERE) l[l[at].after].before = at;
        offer(b, w, &count, l[at].before);
        offer(b, w, &count, at);
    }
    size_t left = 0;
    for (uint32_t at = 0; at != NOWHERE; at = l[at].after) s[left++] = l[at].id;
    return left;
}

static void merge(const struct bpe *b, struct bpe_scratch *w, int32_t *s, size_t n, struct ids *out) {
    n = n <= SHORT ? merge_short(b, s, n) : merge_long(b, w, s, n);
    for (size_t i = 0; i < n; i++) ids_add(out, s[i]);
}

/* Where s has, or would get, its place among the pieces seen; *key is its bytes. NULL when it is too long. */
static struct seen *find_seen(struct bpe_scratch *w, const char *s, size_t n, uint64_t *key) {
    if (n > SEEN_BYTES) return NULL;
    key[0] = key[1] = key[2] = 0;
    memcpy(key, s, n);
    uint64_t h = (key[0] ^ key[1] * UINT64_C(0xA0761D6478BD642F) ^ key[2] * UINT64_C(0xE7037ED1A0B428DB) ^ n) *
                 UINT64_C(0x9E3779B97F4A7C15);
    return &w->seen[(h ^ h >> 29) >> 16 & w->seen_mask];
}

static bool repeat_seen(const struct seen *place, const uint64_t *key, size_t n, struct ids *out) {
    if (!place || place->len != n || memcmp(place->key, key, sizeof place->key) != 0) return false;
    ids_repeat(out, place->at, place->count);
    return true;
}

static void remember(struct seen *place, const uint64_t *key, size_t n, size_t at, const struct ids *out) {
    if (!place || at > UINT32_MAX) return;
    memcpy(place->key, key, sizeof place->key);
    place->at = (uint32_t)at;
    place->count = (uint16_t)(out->len - at); // at most one id a byte
    place->len = (uint16_t)n;
}

static void add_symbol(struct bpe_scratch *w, int32_t id) {
    if (w->symbol_count == w->symbol_room) {
        w->symbol_room = w->symbol_room ? w->symbol_room * 2 : 256;
        w->symbols = mem_resize(w->symbols, w->symbol_room * sizeof *w->symbols);
    }
    w->symbols[w->symbol_count++] = id;
}

static bool has_all_bytes(const struct bpe *b, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (b->byte_id[(unsigned char)s[i]] < 0) return false;
    return true;
}

/* The unk that is due but not yet written: it waits for what follows, since the next unknown may fuse with it. */
static void flush_unk(const struct bpe *b, struct bpe_scratch *w, bool *due) {
    if (*due) add_symbol(w, b->unk_id);
    *due = false;
}

/* A character that is not in the vocabulary. Bytes overtake an unk that is due, as the reference does it. */
static enum status add_unknown(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, bool *due,
                               struct err *e) {
    if (b->rules.byte_fallback && !b->rules.byte_level && has_all_bytes(b, s, n)) {
        for (size_t i = 0; i < n; i++) add_symbol(w, b->byte_id[(unsigned char)s[i]]);
        return ST_OK;
    }
    if (!b->unk) return ST_OK;
    if (b->unk_id < 0)
        return err_set(e, ST_FAIL, "%s: the unknown token \"%s\" is not in the vocabulary", b->where, b->unk);
    if (!b->rules.fuse_unk) flush_unk(b, w, due);
    *due = true;
    return ST_OK;
}

static bool may_join(const struct bpe *b, unsigned last, unsigned first) {
    size_t bit = border_bit(last, first);
    return b->border[bit / 64] >> bit % 64 & 1;
}

static void merge_symbols(const struct bpe *b, struct bpe_scratch *w, struct ids *out) {
    if (w->symbol_count) merge(b, w, w->symbols, w->symbol_count, out);
    w->symbol_count = 0;
}

/* A stretch of characters that are all in the vocabulary. */
static void encode_known(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, struct ids *out) {
    uint64_t key[SEEN_BYTES / 8];
    struct seen *place = find_seen(w, s, n, key);
    if (repeat_seen(place, key, n, out)) return;
    size_t before = out->len;
    for (size_t at = 0; at < n;) {
        int len;
        add_symbol(w, rune_id(b, utf8_rune(s + at, &len)));
        at += (size_t)len;
    }
    merge_symbols(b, w, out);
    remember(place, key, n, before, out);
}

/* From `at`, the end of the longest stretch of known characters that may join each to the next; *cut is true when it
 * ends because the next known one cannot join. */
static size_t known_stretch(const struct bpe *b, const char *s, size_t n, size_t at, bool *cut) {
    int len;
    *cut = true;
    unsigned last = 0;
    for (size_t from = at; at < n; at += (size_t)len) {
        unsigned rune = utf8_rune(s + at, &len);
        if (rune_id(b, rune) < 0) return *cut = false, at;
        if (at > from && !may_join(b, last, rune)) return at;
        last = rune;
    }
    return at;
}

/* Characters. Where an unknown one stands its neighbours are encoded with it, in one run of symbols, because the tokens
 * that stand for it may take part in merges. */
static enum status encode_chars(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, struct ids *out,
                                struct err *e) {
    bool due = false;
    size_t at = 0;
    while (at < n) {
        bool cut;
        size_t end = known_stretch(b, s, n, at, &cut);
        if (cut && w->symbol_count == 0 && !due) {
            encode_known(b, w, s + at, end - at, out);
            at = end;
            continue;
        }
        if (end > at) flush_unk(b, w, &due);
        while (at < end) {
            int len;
            add_symbol(w, rune_id(b, utf8_rune(s + at, &len)));
            at += (size_t)len;
        }
        if (cut) {
            merge_symbols(b, w, out);
            continue;
        }
        int len;
        utf8_rune(s + at, &len);
        if (add_unknown(b, w, s + at, (size_t)len, &due, e) != ST_OK) return e->code;
        at += (size_t)len;
    }
    flush_unk(b, w, &due);
    merge_symbols(b, w, out);
    return ST_OK;
}

/* A byte whose character of the alphabet is not in the vocabulary: unknown, or the bytes of that character. */
static enum status add_unknown_byte(const struct bpe *b, struct bpe_scratch *w, char byte, bool *due, struct err *e) {
    struct text rune = {0};
    text_add_rune(&rune, byte_to_rune((unsigned char)byte));
    enum status st = ST_OK;
    int32_t fallback[2] = {-1, -1};
    for (size_t i = 0; i < rune.len && b->rules.byte_fallback; i++) {
        char *name = mem_format("<0x%02X>", (unsigned char)rune.data[i]);
        fallback[i] = bpe_id(b, name, 6);
        free(name);
    }
    if (fallback[0] >= 0 && (rune.len == 1 || fallback[1] >= 0))
        for (size_t i = 0; i < rune.len; i++) add_symbol(w, fallback[i]);
    else
        st = add_unknown(b, w, rune.data, rune.len, due, e);
    text_free(&rune);
    return st;
}

/* Bytes. A piece is a word or so; only a long one is worth cutting. */
static enum status encode_bytes(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, struct ids *out,
                                struct err *e) {
    bool due = false;
    unsigned last = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_id[(unsigned char)s[i]];
        if (id < 0) {
            if (add_unknown_byte(b, w, s[i], &due, e) != ST_OK) return e->code;
            last = 0;
            continue;
        }
        unsigned rune = byte_to_rune((unsigned char)s[i]);
        flush_unk(b, w, &due);
        if (last && !may_join(b, last, rune)) merge_symbols(b, w, out);
        add_symbol(w, id);
        last = rune;
    }
    flush_unk(b, w, &due);
    merge_symbols(b, w, out);
    return ST_OK;
}

enum status bpe_encode(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, struct ids *out,
                       struct err *e) {
    if (b->rules.ignore_merges) {
        int32_t id = string_table_get(b->rules.byte_level ? &b->raw : &b->ids, s, n);
        if (id >= 0) return ids_add(out, id), ST_OK;
    }
    if (!b->rules.byte_level) return encode_chars(b, w, s, n, out, e);
    uint64_t key[SEEN_BYTES / 8];
    struct seen *place = find_seen(w, s, n, key);
    if (repeat_seen(place, key, n, out)) return ST_OK;
    size_t before = out->len;
    if (encode_bytes(b, w, s, n, out, e) != ST_OK) return e->code;
    remember(place, key, n, before, out);
    return ST_OK;
}

#include "data/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "data/bpe_table.h"

static enum status need_flag(const cJSON *o, const char *where, const char *key, bool *out, struct err *e) {
    if (!json_get(o, key)) return err_set(e, ST_FAIL, "%s: an added token has no %s", where, key);
    return json_bool(o, where, key, false, out, e);
}

static enum status read_token(const cJSON *o, const char *where, struct added_token *t, struct err *e) {
    const char *content;
    int64_t id;
    if (!cJSON_IsObject(o)) return err_set(e, ST_FAIL, "%s: an added token is not an object", where);
    if (!json_get(o, "id")) return err_set(e, ST_FAIL, "%s: an added token has no id", where);
    if (!json_get(o, "content")) return err_set(e, ST_FAIL, "%s: an added token has no content", where);
    if (json_int(o, where, "id", 0, &id, e) != ST_OK || json_str(o, where, "content", "", &content, e) != ST_OK ||
        need_flag(o, where, "single_word", &t->single_word, e) != ST_OK ||
        need_flag(o, where, "lstrip", &t->lstrip, e) != ST_OK ||
        need_flag(o, where, "rstrip", &t->rstrip, e) != ST_OK ||
        need_flag(o, where, "normalized", &t->normalized, e) != ST_OK ||
        need_flag(o, where, "special", &t->special, e) != ST_OK)
        return e->code;
    if (id < 0 || id >= TOKEN_LIMIT)
        return err_set(e, ST_FAIL, "%s: the id of the added token \"%.40s\" is %lld, wanted 0 to %d", where, content,
                       (long long)id, TOKEN_LIMIT - 1);
    t->shown_normal = t->normalized;
    t->content = mem_text(content);
    t->len = strlen(content);
    return ST_OK;
}

const struct added_token *added_get(const struct added *a, int32_t id) {
    if (id < 0 || id >= a->limit || !a->by_id[id]) return NULL;
    return &a->tokens[a->by_id[id] - 1];
}

const struct added_token *added_find(const struct added *a, const char *content) {
    for (size_t i = a->count; i-- > 0;)
        if (strcmp(a->tokens[i].content, content) == 0) return added_get(a, a->tokens[i].id);
    return NULL;
}

/* Contents to ids while the list is read: the same content keeps its id, a new one gets the id after the largest so
 * far, which is at least the size of the vocabulary. */
static enum status number(const struct bpe *b, struct bpe *names, struct added_token *t, int32_t *next,
                          const char *where, struct err *e) {
    t->id = bpe_id(b, t->content, t->len);
    if (t->id < 0) t->id = bpe_id(names, t->content, t->len);
    if (t->id < 0) {
        t->id = *next;
        if (bpe_token(b, t->id))
            return err_set(e, ST_FAIL, "%s: the added token \"%.40s\" would get id %d, which is \"%.40s\" already",
                           where, t->content, t->id, bpe_token(b, t->id));
        if (bpe_add_token(names, t->content, t->len, t->id, e) != ST_OK) return e->code;
    }
    if (t->id >= *next) *next = t->id + 1;
    return ST_OK;
}

static int by_bytes(const void *x, const void *y) {
    const struct added_word *a = x, *b = y;
    size_t n = a->len < b->len ? a->len : b->len;
    int c = memcmp(a->s, b->s, n);
    if (c) return c;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return a->order > b->order ? -1 : a->order < b->order;
}

static void add_word(struct added_set *set, const char *s, size_t n, int32_t id) {
    if (n == 0) return;
    set->words[set->count] = (struct added_word){mem_text_n(s, n), n, set->count, id};
    set->starts[(unsigned char)*s] = true;
    set->count++;
}

static void fill_sets(struct added *a, const struct normalizer *z, const struct runes *r) {
    struct text buffers[2] = {{0}, {0}};
    a->raw.words = mem_alloc(a->count * sizeof *a->raw.words);
    a->normal.words = mem_alloc(a->count * sizeof *a->normal.words);
    for (size_t i = 0; i < a->count; i++) {
        struct added_token *t = &a->tokens[i];
        const char *s = t->content;
        size_t n = t->len;
        if (t->shown_normal) normalizer_apply(z, r, buffers, &s, &n);
        t->shown = mem_text_n(s, n);
        t->shown_len = n;
        if (t->normalized)
            add_word(&a->normal, t->shown, n, t->id);
        else
            add_word(&a->raw, t->content, t->len, t->id);
    }
    qsort(a->raw.words, a->raw.count, sizeof *a->raw.words, by_bytes);
    qsort(a->normal.words, a->normal.count, sizeof *a->normal.words, by_bytes);
    text_free(&buffers[0]);
    text_free(&buffers[1]);
}

static void index_ids(struct added *a) {
    for (size_t i = 0; i < a->count; i++)
        if (a->tokens[i].id >= a->limit) a->limit = a->tokens[i].id + 1;
    a->by_id = mem_alloc((size_t)a->limit * sizeof *a->by_id);
    for (size_t i = 0; i < a->count; i++) a->by_id[a->tokens[i].id] = i + 1;
}

/* A content that comes again: the later flags hold, but once special, or shown normalised, it stays so. */
static void replace_token(struct added *a, size_t old, struct added_token *t) {
    t->special |= a->tokens[old].special;
    t->shown_normal |= a->tokens[old].shown_normal;
    free(a->tokens[old].content);
    a->tokens[old] = *t;
    *t = (struct added_token){0};
}

enum status added_init(struct added *a, const cJSON *json, const struct bpe *b, const struct normalizer *z,
                       const struct runes *r, const char *where, struct err *e) {
    *a = (struct added){0};
    if (!json) return ST_OK;
    if (!cJSON_IsArray(json)) return err_set(e, ST_FAIL, "%s: added_tokens is not a list", where);
    struct bpe *names = bpe_new(where); // contents that are not in the vocabulary -> id
    struct string_table seen;           // contents -> index into tokens
    string_table_init(&seen, 16);
    int32_t next = (int32_t)bpe_count(b);
    a->tokens = mem_alloc((size_t)cJSON_GetArraySize(json) * sizeof *a->tokens);
    const cJSON *item;
    cJSON_ArrayForEach(item, json) {
        struct added_token *t = &a->tokens[a->count];
        if (read_token(item, where, t, e) != ST_OK) break;
        if (t->len == 0) {
            free(t->content);
            continue;
        }
        if (number(b, names, t, &next, where, e) != ST_OK) {
            free(t->content);
            break;
        }
        struct string_slot *slot = string_table_put(&seen, cJSON_GetStringValue(json_get(item, "content")), t->len);
        if (slot->id >= 0)
            replace_token(a, (size_t)slot->id, t);
        else
            slot->id = (int32_t)a->count++;
    }
    string_table_free(&seen);
    bpe_free(names);
    if (e->code != ST_OK) return e->code;
    fill_sets(a, z, r);
    index_ids(a);
    for (size_t i = 0; i < a->count; i++)
        if (a->tokens[i].shown_len == 0)
            return err_set(e, ST_FAIL, "%s: the normalizer leaves nothing of the added token \"%.40s\"", where,
                           a->tokens[i].content);
    return ST_OK;
}

static void free_set(struct added_set *set) {
    for (size_t i = 0; i < set->count; i++) free(set->words[i].s);
    free(set->words);
}

void added_free(struct added *a) {
    free_set(&a->raw);
    free_set(&a->normal);
    for (size_t i = 0; i < a->count; i++) free(a->tokens[i].content), free(a->tokens[i].shown);
    free(a->tokens);
    free(a->by_id);
    *a = (struct added){0};
}

/* The longest word that s starts with, or NULL: words [lo, hi) share their first `depth` bytes with s. */
static const struct added_word *longest(const struct added_set *set, const char *s, size_t n) {
    const struct added_word *best = NULL, *words = set->words;
    size_t lo = 0, hi = set->count;
    for (size_t depth = 0; lo < hi; depth++) {
        if (words[lo].len == depth) {
            best = &words[lo];
            while (lo < hi && words[lo].len == depth) lo++;
        }
        if (depth == n) break;
        unsigned char byte = (unsigned char)s[depth];
        size_t top = hi, bottom = lo;
        while (lo < top) { // the first whose byte is not below
            size_t mid = lo + (top - lo) / 2;
            if ((unsigned char)words[mid].s[depth] < byte)
                lo = mid + 1;
            else
                top = mid;
        }
        for (top = hi, bottom = lo; bottom < top;) { // the first whose byte is above
            size_t mid = bottom + (top - bottom) / 2;
            if ((unsigned char)words[mid].s[depth] <= byte)
                bottom = mid + 1;
            else
                top = mid;
        }
        hi = bottom;
    }
    return best;
}

static bool word_at(const struct runes *r, const char *s, size_t n, size_t at) {
    int len;
    return at < n && rune_classes(r, utf8_rune(s + at, &len)) & RUNE_WORD;
}

static bool stands_alone(const struct runes *r, const char *s, size_t n, size_t start, size_t end) {
    return !(start > 0 && word_at(r, s, n, rune_before(s, start))) && !word_at(r, s, n, end);
}

const struct added_token *added_next(const struct added *a, const struct added_set *set, const struct runes *r,
                                     const char *s, size_t n, size_t *from, size_t done, size_t *start, size_t *end) {
    for (size_t at = *from; at < n; at++) {
        if (!set->starts[(unsigned char)s[at]]) continue;
        const struct added_word *word = longest(set, s + at, n - at);
        if (!word) continue;
        const struct added_token *t = added_get(a, word->id);
        *start = at, *end = *from = at + word->len;
        if (t->single_word && !stands_alone(r, s, n, *start, *end)) {
            at = *end - 1;
            continue;
        }
        if (t->lstrip) {
            *start = rune_space_before(r, s, *start);
            if (*start < done) *start = done;
        }
        if (t->rstrip) *end = rune_skip_space(r, s, n, *end);
        return t;
    }
    *from = n;
    return NULL;
}

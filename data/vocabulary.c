#include "data/vocabulary.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "data/tokenizer_parts.h"

static bool is_byte(const char *s, size_t n) {
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && strspn(s + 3, "0123456789ABCDEF") == 2;
}

static struct word word_of(const struct vocabulary *v, const struct tokenizer *t, int32_t id) {
    const struct added_token *added = added_get(&t->added, id);
    if (added) return (struct word){added->content, added->len, added->special ? WORD_CONTROL : WORD_USER, 0};
    struct word w = {bpe_token(t->bpe, id), bpe_token_len(t->bpe, id), WORD_NORMAL, 0};
    if (!w.text)
        w.kind = WORD_UNUSED;
    else if (id == v->unknown)
        w.kind = WORD_UNKNOWN;
    else if (!v->byte_level && is_byte(w.text, w.len))
        w.kind = WORD_BYTE;
    return w;
}

/* Ways to cut a token in two that both are tokens. */
static int64_t count_splits(const struct bpe *b, const struct word *w) {
    int64_t n = 0;
    for (size_t at = 0, next; at < w->len; at = next) {
        int len;
        utf8_rune(w->text + at, &len);
        next = at + (size_t)len;
        if (next < w->len && bpe_id(b, w->text, next) >= 0 && bpe_id(b, w->text + next, w->len - next) >= 0) n++;
    }
    return n;
}

static void add_merges(struct vocabulary *v, const struct bpe *b) {
    v->merge_count = (int64_t)bpe_merge_count(b);
    size_t bytes = (size_t)v->merge_count * sizeof *v->left;
    v->left = mem_alloc(bytes), v->right = mem_alloc(bytes);
    int32_t *result = mem_alloc(bytes);
    int64_t *first = mem_alloc((size_t)v->count * sizeof *first), *made = mem_alloc((size_t)v->count * sizeof *made);
    bpe_merges(b, v->left, v->right, result);
    v->scores_suffice = true;
    for (int64_t i = 0; i < v->merge_count; i++) {
        if (result[i] < 0) continue;
        if (made[result[i]]++ == 0) first[result[i]] = i;
        if (i - first[result[i]] >= made[result[i]]) v->scores_suffice = false; // other tokens' merges lie between
    }
    for (int64_t i = 0; i < v->count; i++) {
        struct word *w = &v->words[i];
        w->score = -(float)(made[i] ? first[i] : v->merge_count + i);
        if (w->kind == WORD_NORMAL && !v->byte_level && count_splits(b, w) != made[i]) v->scores_suffice = false;
    }
    free(result), free(first), free(made);
}

void vocabulary_init(struct vocabulary *v, const struct tokenizer *t) {
    struct bpe_rules rules = bpe_rules_of(t->bpe);
    *v = (struct vocabulary){.byte_level = rules.byte_level, .ignore_merges = rules.ignore_merges};
    v->cut = pretokenizer_kind(&t->pretokenizer);
    v->space_prefix = normalizer_prepends(&t->normalizer) ||
                      (t->pretokenizer.last == LAST_METASPACE && t->pretokenizer.prefix != META_NEVER);
    v->unknown = bpe_unknown(t->bpe);
    v->bos = t->prefix.len > 0 && t->bos >= 0 && t->prefix.data[0] == t->bos;
    v->eos = t->suffix.len > 0 && t->eos >= 0 && t->suffix.data[t->suffix.len - 1] == t->eos;
    v->count = tokenizer_size(t);
    v->words = mem_alloc((size_t)v->count * sizeof *v->words);
    for (int64_t i = 0; i < v->count; i++) v->words[i] = word_of(v, t, (int32_t)i);
    add_merges(v, t->bpe);
}

void vocabulary_free(struct vocabulary *v) {
    free(v->words), free(v->left), free(v->right);
    *v = (struct vocabulary){0};
}

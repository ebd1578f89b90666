/* The way of a text: cut at the added tokens that are matched as typed; normalise each part; cut at the added tokens
 * that are matched normalised; pre-tokenize; encode each piece. One struct encoder carries a call through it. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "data/tokenizer_parts.h"

struct encoder {
    const struct tokenizer *t;
    struct bpe_scratch *scratch;
    void *match;           // PCRE2's, or NULL
    struct text normal[2]; // a part of the text, normalised
    struct text spaced;    // a piece with what the pre-tokenizer put in
    struct ids *out;
    struct err *e;
};

/* Blanks become the metaspace, and at the front one may be put. */
static void add_metaspaces(const struct pretokenizer *p, const char *s, size_t n, bool first, struct text *out) {
    size_t len = strlen(p->meta);
    bool has = n > 0 && (*s == ' ' || (n >= len && memcmp(s, p->meta, len) == 0));
    text_clear(out);
    if (!has && (p->prefix == META_ALWAYS || (p->prefix == META_FIRST && first))) text_add_n(out, p->meta, len);
    for (const char *end = s + n, *blank; s < end; s = blank + 1) {
        blank = memchr(s, ' ', (size_t)(end - s));
        if (!blank) {
            text_add_n(out, s, (size_t)(end - s));
            return;
        }
        text_add_n(out, s, (size_t)(blank - s));
        text_add_n(out, p->meta, len);
    }
}

/* A piece that nothing cuts any more. */
static enum status encode_whole(struct encoder *c, const char *s, size_t n) {
    if (!c->t->unigram) return bpe_encode(c->t->bpe, c->scratch, s, n, c->out, c->e);
    unigram_encode(c->t->unigram, s, n, c->out);
    return ST_OK;
}

static enum status encode_metaspaced(struct encoder *c, const char *s, size_t n, bool first) {
    const struct pretokenizer *p = &c->t->pretokenizer;
    add_metaspaces(p, s, n, first, &c->spaced);
    s = text_str(&c->spaced), n = c->spaced.len;
    size_t len = strlen(p->meta);
    while (n > 0) {
        const char *next = p->split && n > 1 ? memmem(s + 1, n - 1, p->meta, len) : NULL;
        size_t piece = next ? (size_t)(next - s) : n;
        if (encode_whole(c, s, piece) != ST_OK) return c->e->code;
        s += piece, n -= piece;
    }
    return ST_OK;
}

/* Cuts s by the stages from `stage` on and encodes what they leave. first: s starts where the whole text does. */
static enum status encode_piece(struct encoder *c, int stage, const char *s, size_t n, bool first) {
    const struct pretokenizer *p = &c->t->pretokenizer;
    if (stage == p->count) {
        if (p->last == LAST_METASPACE) return encode_metaspaced(c, s, n, first);
        return encode_whole(c, s, n);
    }
    const struct stage *g = &p->stages[stage];
    if (g->add_space && *s != ' ') {
        text_clear(&c->spaced);
        text_add_char(&c->spaced, ' ');
        text_add_n(&c->spaced, s, n);
        s = c->spaced.data, n = c->spaced.len;
    }
    for (size_t at = 0, end; at < n; at = end) {
        end = stage_next(g, c->t->runes, c->match, s, n, at);
        if (end == 0)
            return err_set(c->e, ST_FAIL, "the pre-tokenizer's expression takes too long on this text of %zu bytes", n);
        if (encode_piece(c, stage + 1, s + at, end - at, first && at == 0) != ST_OK) return c->e->code;
    }
    return ST_OK;
}

/* Normalised text between tokens that were matched as typed. */
static enum status encode_normal(struct encoder *c, const char *s, size_t n, bool first) {
    const struct added *a = &c->t->added;
    const struct added_token *t;
    size_t from = 0, done = 0, start, end;
    while ((t = added_next(a, &a->normal, c->t->runes, s, n, &from, done, &start, &end))) {
        if (start > done && encode_piece(c, 0, s + done, start - done, first && done == 0) != ST_OK) return c->e->code;
        if (end > start) ids_add(c->out, t->id);
        done = end;
    }
    return done < n ? encode_piece(c, 0, s + done, n - done, first && done == 0) : ST_OK;
}

static enum status encode_part(struct encoder *c, const char *s, size_t n, bool first) {
    normalizer_apply(&c->t->normalizer, c->t->runes, c->normal, &s, &n);
    return n > 0 ? encode_normal(c, s, n, first) : ST_OK;
}

static enum status encode_text(struct encoder *c, const char *s, size_t n) {
    const struct added *a = &c->t->added;
    const struct added_token *t;
    size_t from = 0, done = 0, start, end;
    while ((t = added_next(a, &a->raw, c->t->runes, s, n, &from, done, &start, &end))) {
        if (start > done && encode_part(c, s + done, start - done, done == 0) != ST_OK) return c->e->code;
        if (end > start) ids_add(c->out, t->id);
        done = end;
    }
    return done < n ? encode_part(c, s + done, n - done, done == 0) : ST_OK;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool add_special, struct ids *out,
                             struct err *e) {
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n) return err_set(e, ST_FAIL, "the text to tokenize is not UTF-8 at byte %zu", valid);
    if (n > INT32_MAX)
        return err_set(e, ST_FAIL, "the text to tokenize has %zu bytes, wanted at most %d", n, INT32_MAX);
    struct encoder c = {.t = t, .out = out, .e = e};
    c.scratch = bpe_scratch_new(n);
    c.match = pretokenizer_match_new(&t->pretokenizer);
    for (size_t i = 0; add_special && i < t->prefix.len; i++) ids_add(out, t->prefix.data[i]);
    enum status st = encode_text(&c, text, n);
    for (size_t i = 0; add_special && i < t->suffix.len; i++) ids_add(out, t->suffix.data[i]);
    pretokenizer_match_free(c.match);
    bpe_scratch_free(c.scratch);
    text_free(&c.normal[0]);
    text_free(&c.normal[1]);
    text_free(&c.spaced);
    return st;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special, struct text *out) {
    struct strings tokens = {0};
    for (size_t i = 0; i < n; i++) {
        const struct added_token *a = added_get(&t->added, ids[i]);
        bool as_typed = a && strcmp(a->shown, a->content) == 0; // special tokens are known by what they show
        if (a && skip_special && a->special && as_typed) continue;
        if (a)
            strings_add(&tokens, a->shown, a->shown_len);
        else if (bpe_token(t->bpe, ids[i]))
            strings_add(&tokens, bpe_token(t->bpe, ids[i]), bpe_token_len(t->bpe, ids[i]));
    }
    detokenizer_apply(&t->detokenizer, &tokens, out);
    strings_free(&tokens);
}

int64_t tokenizer_size(const struct tokenizer *t) {
    return t->added.limit > bpe_limit(t->bpe) ? t->added.limit : bpe_limit(t->bpe);
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token) {
    int32_t id = bpe_id(t->bpe, token, strlen(token));
    if (id >= 0) return id;
    const struct added_token *a = added_find(&t->added, token);
    return a ? a->id : -1;
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id) {
    const struct added_token *a = added_get(&t->added, id);
    return a ? a->content : bpe_token(t->bpe, id);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    const struct added_token *a = added_get(&t->added, id);
    return a && a->special;
}

int32_t tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const struct tokenizer *t) { return t->eos; }
int32_t tokenizer_pad(const struct tokenizer *t) { return t->pad; }
size_t tokenizer_prefix(const struct tokenizer *t) { return t->prefix.len; }

void tokenizer_force_bos(struct tokenizer *t) {
    ids_clear(&t->prefix);
    ids_clear(&t->suffix);
    if (t->bos >= 0) ids_add(&t->prefix, t->bos);
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    free(t->runes);
    unigram_free(t->unigram);
    bpe_free(t->bpe);
    normalizer_free(&t->normalizer);
    pretokenizer_free(&t->pretokenizer);
    added_free(&t->added);
    detokenizer_free(&t->detokenizer);
    ids_free(&t->prefix);
    ids_free(&t->suffix);
    free(t);
}

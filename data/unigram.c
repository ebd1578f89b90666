/* The pieces are a trie whose nodes lie breadth first, so that a node's children lie side by side, sorted by their
 * byte. The best cut is found from front to back: where each prefix of the text ends best, then back along these ends.
 * Of two equal sums the one found first stays, shorter pieces being tried before longer ones. */
#include "data/unigram.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { UNKNOWN_PENALTY = 10, NO_PIECE = -1 };

struct node {
    uint32_t child; // the first one
    uint16_t children;
    uint8_t byte;
    int32_t id; // of the piece that ends here, or NO_PIECE
};

struct unigram {
    const struct bpe *vocab;
    double *scores; // (bpe_limit)
    double unk_score;
    int32_t unk;
    int32_t byte_id[256]; // of <0xHH>; all -1 without byte_fallback
    struct node *nodes;   // nodes[0] is the root
    size_t count, room;
};

/* ---------------------------------------------------------------- the trie */

struct piece {
    const char *text;
    size_t len;
    int32_t id;
};

static int compare_pieces(const void *a, const void *b) {
    const struct piece *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

/* What of the sorted pieces lies below a node. */
struct below {
    size_t from, to, depth;
};

static void add_node(struct unigram *u, struct below **below, size_t *room, uint8_t byte, struct below part) {
    if (u->count == *room) {
        *room = *room ? 2 * *room : 1024;
        u->nodes = mem_resize(u->nodes, *room * sizeof *u->nodes);
        *below = mem_resize(*below, *room * sizeof **below);
    }
    (*below)[u->count] = part;
    u->nodes[u->count++] = (struct node){.byte = byte, .id = NO_PIECE};
}

/* Each node in turn gets its children behind all nodes that are there. */
static void build_trie(struct unigram *u, const struct piece *pieces, size_t count) {
    struct below *below = NULL;
    size_t room = 0;
    add_node(u, &below, &room, 0, (struct below){0, count, 0});
    for (size_t i = 0; i < u->count; i++) {
        struct below b = below[i];
        if (b.from < b.to && pieces[b.from].len == b.depth) u->nodes[i].id = pieces[b.from++].id;
        u->nodes[i].child = (uint32_t)u->count;
        for (size_t at = b.from, end; at < b.to; at = end) {
            char byte = pieces[at].text[b.depth];
            for (end = at; end < b.to && pieces[end].text[b.depth] == byte;) end++;
            add_node(u, &below, &room, (uint8_t)byte, (struct below){at, end, b.depth + 1});
            u->nodes[i].children++;
        }
    }
    free(below);
}

static const struct node *child_of(const struct unigram *u, const struct node *n, uint8_t byte) {
    const struct node *low = u->nodes + n->child, *end = low + n->children, *high = end;
    while (low < high) {
        const struct node *middle = low + (high - low) / 2;
        if (middle->byte < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && low->byte == byte ? low : NULL;
}

struct unigram *unigram_new(const struct bpe *vocab, const double *scores, int32_t unk, bool byte_fallback) {
    struct unigram *u = mem_alloc(sizeof *u);
    int32_t limit = bpe_limit(vocab);
    struct piece *pieces = mem_alloc((size_t)limit * sizeof *pieces);
    double least = scores[0];
    size_t count = 0;
    *u = (struct unigram){.vocab = vocab, .unk = unk, .scores = mem_alloc((size_t)limit * sizeof *u->scores)};
    memcpy(u->scores, scores, (size_t)limit * sizeof *scores);
    for (int32_t id = 0; id < limit; id++) {
        if (scores[id] < least) least = scores[id];
        if (bpe_token_len(vocab, id) == 0) continue;
        pieces[count++] = (struct piece){bpe_token(vocab, id), bpe_token_len(vocab, id), id};
    }
    u->unk_score = least - UNKNOWN_PENALTY;
    qsort(pieces, count, sizeof *pieces, compare_pieces);
    build_trie(u, pieces, count);
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        u->byte_id[i] = byte_fallback ? bpe_id(vocab, name, 6) : -1;
    }
    free(pieces);
    return u;
}

void unigram_free(struct unigram *u) {
    if (!u) return;
    free(u->scores);
    free(u->nodes);
    free(u);
}

/* ---------------------------------------------------------------- the best cut */

/* Where a prefix of the text ends: its best last piece. */
struct end {
    double score; // of the whole prefix
    int32_t id;
    uint32_t length; // of the last piece; 0: no way leads here
};

static void offer(struct end *end, double score, int32_t id, size_t length) {
    if (end->length == 0 || score > end->score) *end = (struct end){score, id, (uint32_t)length};
}

/* Every piece that begins at `at`. */
static void offer_pieces(const struct unigram *u, struct end *ends, const char *s, size_t n, size_t at) {
    const struct node *node = u->nodes;
    double before = ends[at].score;
    int rune;
    bool known = false;
    utf8_rune(s + at, &rune);
    for (size_t len = 1; at + len <= n && (node = child_of(u, node, (uint8_t)s[at + len - 1])); len++) {
        if (node->id == NO_PIECE) continue;
        offer(&ends[at + len], u->scores[node->id] + before, node->id, len);
        known = known || len == (size_t)rune;
    }
    if (!known) offer(&ends[at + (size_t)rune], u->unk_score + before, u->unk, (size_t)rune);
}

/* The ids from back to front are turned around: out from `from` on. */
static void reverse(struct ids *out, size_t from) {
    for (size_t i = from, k = out->len; i + 1 < k; i++) {
        int32_t id = out->data[i];
        out->data[i] = out->data[--k];
        out->data[k] = id;
    }
}

/* From back to front. */
static void add_unknown(const struct unigram *u, const char *s, size_t n, struct ids *out) {
    int32_t id = bpe_id(u->vocab, s, n);
    bool bytes = id < 0;
    for (size_t i = 0; i < n; i++) bytes = bytes && u->byte_id[(unsigned char)s[i]] >= 0;
    if (!bytes) {
        ids_add(out, id >= 0 ? id : u->unk);
        return;
    }
    for (size_t i = n; i-- > 0;) ids_add(out, u->byte_id[(unsigned char)s[i]]);
}

void unigram_encode(const struct unigram *u, const char *s, size_t n, struct ids *out) {
    struct end *ends = mem_alloc((n + 1) * sizeof *ends);
    int rune;
    for (size_t at = 0; at < n; at += (size_t)rune) {
        offer_pieces(u, ends, s, n, at);
        utf8_rune(s + at, &rune);
    }
    size_t before = out->len;
    for (size_t end = n, begin; end > 0; end = begin) {
        begin = end - ends[end].length;
        if (ends[end].id != u->unk) {
            ids_add(out, ends[end].id);
            continue;
        }
        while (begin > 0 && ends[begin].id == u->unk) begin -= ends[begin].length;
        add_unknown(u, s + begin, end - begin, out);
    }
    reverse(out, before);
    free(ends);
}

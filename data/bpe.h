/* The vocabulary and the merges: pieces of text to ids by byte pair encoding, and ids to token text.
 *
 * A piece starts as one symbol per character (per byte, behind a byte-level pre-tokenizer); then the neighbouring pair
 * of the lowest rank becomes one symbol, leftmost first, until no pair has a rank. */
#ifndef DATA_BPE_H
#define DATA_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"
#include "data/tokenizer.h"

enum { TOKEN_LIMIT = 1 << 24 }; // ids are below; bounds what a small file can make us allocate

struct bpe_rules {
    bool byte_level;    // pieces are raw bytes, the vocabulary is written in the byte alphabet
    bool byte_fallback; // a character that is not in the vocabulary becomes its <0xHH> tokens
    bool fuse_unk;      // neighbouring unknown characters become one unk
    bool ignore_merges; // a piece that is a token is that token
};

struct bpe;
struct bpe *bpe_new(const char *where); // where: names the file in errors
void bpe_free(struct bpe *b);

/* Building, in this order. A token that comes again takes the later id. */
enum status bpe_add_token(struct bpe *b, const char *s, size_t n, int64_t id, struct err *e);
enum status bpe_add_merge(struct bpe *b, struct text *left, struct text *right, struct err *e); // the next rank
enum status bpe_finish(struct bpe *b, const struct bpe_rules *rules, const char *unk, struct err *e);

size_t bpe_count(const struct bpe *b);                        // tokens, each counted once
int32_t bpe_limit(const struct bpe *b);                       // largest id + 1
int32_t bpe_id(const struct bpe *b, const char *s, size_t n); // -1 when there is no such token
const char *bpe_token(const struct bpe *b, int32_t id);       // NULL when there is none
size_t bpe_token_len(const struct bpe *b, int32_t id);        // bytes of bpe_token

/* Laying it open. Merges in the order of their ranks: left[i], right[i] become result[i]. */
struct bpe_rules bpe_rules_of(const struct bpe *b);
int32_t bpe_unknown(const struct bpe *b); // -1: none
size_t bpe_merge_count(const struct bpe *b);
void bpe_merges(const struct bpe *b, int32_t *left, int32_t *right, int32_t *result); // (bpe_merge_count) each

/* What one call of the tokenizer keeps between pieces; not shared by threads. expected: bytes of text to come. */
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_new(size_t expected);
void bpe_scratch_free(struct bpe_scratch *w);

/* Adds the ids of one piece (valid UTF-8 unless byte_level) to out. */
enum status bpe_encode(const struct bpe *b, struct bpe_scratch *w, const char *s, size_t n, struct ids *out,
                       struct err *e);

/* The byte alphabet: bytes that print stand for themselves, the 68 others for U+0100 and up. */
int rune_to_byte(unsigned rune); // -1 when it is not in the alphabet

#endif

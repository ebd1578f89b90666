/* What the tokenizer asks about a code point: classes as the published tokenizers' regular expressions see them
 * (Unicode 16), and canonical composition as their normalizer does it (Unicode 9: a mark that is younger does not
 * reorder). utf8proc's tables are the base; the ranges where it differs are listed in rune.c. */
#ifndef DATA_RUNE_H
#define DATA_RUNE_H

#include <stddef.h>

#include "base/text.h"

enum rune_class {
    RUNE_LETTER = 1,  // \p{L}
    RUNE_NUMBER = 2,  // \p{N}
    RUNE_SPACE = 4,   // \s
    RUNE_WORD = 8,    // \w
    RUNE_DIGIT = 16,  // what the Digits pre-tokenizer takes: \p{N} and a few younger ones
    RUNE_UNSURE = 32, // composing it may change it or what stands before it
    RUNE_YOUNG = 64,  // utf8proc would compose or reorder it; the published normalizer does not know it
};

enum { RUNE_TABLE = 0x40000 }; // beyond lie only private use, tags and variation selectors

struct runes {
    unsigned char classes[RUNE_TABLE];
};

struct runes *runes_new(void); // the caller frees it with free

static inline unsigned rune_classes(const struct runes *r, unsigned rune) {
    if (rune < RUNE_TABLE) return r->classes[rune];
    return rune >= 0xE0100 && rune <= 0xE01EF ? RUNE_WORD : 0;
}

/* Adds the canonical composition (NFC) of s, which must be valid UTF-8, to out. */
void rune_compose(const struct runes *r, const char *s, size_t n, struct text *out);

/* True when s is its own canonical composition for sure. */
bool rune_composed(const struct runes *r, const char *s, size_t n);

/* The end of the run of white space that starts at `at`, and the start of the one that ends at `at`. */
size_t rune_skip_space(const struct runes *r, const char *s, size_t n, size_t at);
size_t rune_space_before(const struct runes *r, const char *s, size_t at);

/* The start of the code point that ends just before at; at must not be 0. */
size_t rune_before(const char *s, size_t at);

#endif

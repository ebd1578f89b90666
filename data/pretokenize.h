/* Cutting text into the pieces that are encoded on their own: tokenizer.json's pre_tokenizer. It is a list of stages,
 * each of which cuts the pieces of the one before; the expressions of the published tokenizers are matched by hand,
 * any other Split expression by PCRE2. What is done to a piece last (bytes, or the metaspace) is the caller's. */
#ifndef DATA_PRETOKENIZE_H
#define DATA_PRETOKENIZE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "data/rune.h"

enum { STAGE_LIMIT = 16 };

enum last_stage {
    LAST_NONE,
    LAST_BYTES,     // ByteLevel: pieces are bytes
    LAST_METASPACE, // blanks become `meta`
};

enum meta_prefix { META_NEVER, META_FIRST, META_ALWAYS };

struct pretokenizer {
    struct stage {
        const struct word_rules *rules; // matched by hand, or
        void *regex;                    // a pcre2_code, or
        bool digits, each;              // Digits: runs of digits, or each digit for itself
        bool add_space;                 // before the stage, a piece that does not start with a blank gets one
    } stages[STAGE_LIMIT];
    int count;
    enum last_stage last;
    char meta[5]; // Metaspace: what stands for a blank, one character
    enum meta_prefix prefix;
    bool split; // Metaspace: a piece starts at each `meta`
};

/* json may be NULL (null). Anything not supported is refused by name. */
enum status pretokenizer_init(struct pretokenizer *p, const cJSON *json, const char *where, struct err *e);
void pretokenizer_free(struct pretokenizer *p);

/* The published tokenizer that cuts text in the same way: "llama3", "qwen2", "gpt2", "smollm" (gpt2, each digit on its
 * own); NULL: none of these. */
const char *pretokenizer_kind(const struct pretokenizer *p);

/* What PCRE2 matches into; one for each call of the tokenizer. NULL when no stage needs it. */
void *pretokenizer_match_new(const struct pretokenizer *p);
void pretokenizer_match_free(void *match);

/* The end of the piece of the stage that starts at `at` (at < n); 0 when the expression takes too long. */
size_t stage_next(const struct stage *g, const struct runes *r, void *match, const char *s, size_t n, size_t at);

#endif

/* A tokenizer laid open, for those who write it down in another format. */
#ifndef DATA_VOCABULARY_H
#define DATA_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer.h"

enum word_kind { WORD_NORMAL = 1, WORD_UNKNOWN, WORD_CONTROL, WORD_USER, WORD_UNUSED, WORD_BYTE };

struct vocabulary {
    bool byte_level;    // tokens in the byte alphabet; else blanks are U+2581 and bytes <0xHH>
    const char *cut;    // pretokenizer_kind
    bool ignore_merges; // a piece that is a token is that token
    bool space_prefix;  // a blank comes before the text
    bool bos, eos;      // the post-processor adds them
    int32_t unknown;    // -1: none
    int64_t count;      // ids
    struct word {
        const char *text; // the tokenizer's; NULL: no such id
        size_t len;
        enum word_kind kind;
        float score; // minus the rank of the first merge that makes it; those that none makes come last
    } * words;       // (count)
    int64_t merge_count;
    int32_t *left, *right; // (merge_count) ids, -1 where there is none; in the order of ranks

    /* Whether joining whichever neighbours make the token of the highest score does what the merges do: so it is where
     * the merges were made from scores. */
    bool scores_suffice;
};

/* The tokenizer must outlive it. */
void vocabulary_init(struct vocabulary *v, const struct tokenizer *t);
void vocabulary_free(struct vocabulary *v);

#endif

/* The added tokens of tokenizer.json: found in a text before anything else looks at it. */
#ifndef DATA_ADDED_TOKENS_H
#define DATA_ADDED_TOKENS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/bpe.h"
#include "data/normalize.h"
#include "data/rune.h"

struct added {
    struct added_token {
        char *content;
        size_t len;
        char *shown; // what decoding shows for it: the content, normalised when the token is
        size_t shown_len;
        int32_t id;
        bool single_word, lstrip, rstrip, normalized, special;
        bool shown_normal; // some definition of this content was normalized
    } * tokens;
    size_t count;
    struct added_set { // contents in bytewise order
        struct added_word {
            char *s;
            size_t len, order; // order: the later of two equal words wins
            int32_t id;
        } * words;
        size_t count;
        bool starts[256]; // bytes that a word starts with
    } raw, normal;        // matched in the text as given; in normalised text
    size_t *by_id;        // id - first -> index into tokens + 1, 0: none
    int32_t limit;        // largest id + 1
};

/* json: the list, NULL for none. Ids are not what the file says: a token of the vocabulary keeps its id there, others
 * are numbered on from the size of the vocabulary. */
enum status added_init(struct added *a, const cJSON *json, const struct bpe *b, const struct normalizer *z,
                       const struct runes *r, const char *where, struct err *e);
void added_free(struct added *a);

const struct added_token *added_get(const struct added *a, int32_t id);           // NULL when it is not an added token
const struct added_token *added_find(const struct added *a, const char *content); // the same, by content

/* The next token at or after *from (stripped white space included in [*start, *end)), or NULL. *done is the end of the
 * one before, and is where the text between them starts; *from is where to search on.
 * A token of white space may lie in what the one before it stripped: then it is empty (*end <= *start) and gives no
 * id. */
const struct added_token *added_next(const struct added *a, const struct added_set *set, const struct runes *r,
                                     const char *s, size_t n, size_t *from, size_t done, size_t *start, size_t *end);

#endif

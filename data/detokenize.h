/* tokenizer.json's decoder: what turns the texts of tokens into the text they stand for. */
#ifndef DATA_DETOKENIZE_H
#define DATA_DETOKENIZE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/text.h"

/* Texts, end to end. */
struct strings {
    struct text bytes;
    size_t *ends; // (count)
    size_t count, room;
};
void strings_add(struct strings *list, const char *s, size_t n);
void strings_free(struct strings *list);

struct detokenizer {
    struct undo *steps;
    int count;
    bool absent; // null: tokens are joined with blanks
};

/* json may be NULL (null). Anything not supported is refused by name. */
enum status detokenizer_init(struct detokenizer *d, const cJSON *json, const char *where, struct err *e);
void detokenizer_free(struct detokenizer *d);

/* Adds the text of the tokens to out; the list is used up. */
void detokenizer_apply(const struct detokenizer *d, struct strings *tokens, struct text *out);

#endif

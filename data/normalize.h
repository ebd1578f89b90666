/* tokenizer.json's normalizer: Prepend, Replace of a string, NFC, and sequences of these. */
#ifndef DATA_NORMALIZE_H
#define DATA_NORMALIZE_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "base/status.h"
#include "base/text.h"
#include "data/rune.h"

struct normalizer {
    struct step *steps;
    int count;
};

/* json may be NULL (null). Anything not supported is refused by name. */
enum status normalizer_init(struct normalizer *z, const cJSON *json, const char *where, struct err *e);
bool normalizer_prepends(const struct normalizer *z);
void normalizer_free(struct normalizer *z);

/* Normalises *s (*n bytes, UTF-8). Where that changes nothing *s stays; else it points into one of the two texts, until
 * the next call with them. */
void normalizer_apply(const struct normalizer *z, const struct runes *r, struct text buffers[2], const char **s,
                      size_t *n);

#endif

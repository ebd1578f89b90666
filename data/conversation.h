/* Mantis' conversation templates by name, and which tokens of a rendered conversation are trained. */
#ifndef DATA_CONVERSATION_H
#define DATA_CONVERSATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"
#include "data/tokenizer.h"

struct turn {
    bool assistant;
    const char *text;
};

struct conversation; // a template, const and static

const struct conversation *conversation_find(const char *name, struct err *e); // names the known ones when it fails
const char *conversation_name(const struct conversation *c);

/* Whether only the second turn counts, as a caption with its pictures before it (the template "plain"). */
bool conversation_is_caption(const struct conversation *c);

/* Adds the turns as the template writes them. open: ends where the assistant's answer begins. */
void conversation_render(const struct conversation *c, const struct turn *turns, size_t count, bool open,
                         struct text *out);

/* Adds a jinja chat template that writes messages of users and assistants in the same way; others are left out. A
 * caption's template has none: nothing is added. */
void conversation_jinja(const struct conversation *c, struct text *out);

/* labels (n) become ids where they are trained and IGNORED elsewhere. */
enum status conversation_labels(const struct conversation *c, const struct tokenizer *t, const int32_t *ids, size_t n,
                                int32_t image_token, int32_t *labels, struct err *e);

#endif

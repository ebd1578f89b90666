/* How a text with pictures becomes ids for Fuyu, as Mantis writes it: the text is cut at each `<image>`, and the part
 * before the picture j ends with `image j: `, from 0. Each part that is not empty begins with `<s>`. Then come
 * `|IMAGE|`, the patches of the picture row by row, each row with `|NEWLINE|` behind it, and `|ENDOFIMAGE|`. A text
 * without pictures is encoded as it is. */
#ifndef DATA_FUYU_TEXT_H
#define DATA_FUYU_TEXT_H

#include "data/chat.h"

int64_t fuyu_patches(const struct batch_image *image, int64_t patch);

/* Adds the ids to out. `<image>` beyond p->count are deleted. With pictures, p->most is a budget: the first part of the
 * text, or picture, that would exceed it is left out whole, with all that follows. */
enum status fuyu_encode(const struct tokenizer *t, int64_t patch, const char *text, const struct chat_pictures *p,
                        struct ids *out, struct err *e);

#endif

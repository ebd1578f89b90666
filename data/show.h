/* A row as the model sees it, as text: special tokens visible, trained parts marked. */
#ifndef DATA_SHOW_H
#define DATA_SHOW_H

#include <stdbool.h>

#include "base/text.h"
#include "data/dataset.h"

/* ansi: trained parts in green, for a terminal; else between ⟦ and ⟧. Control characters of the data become
 * '?', so that a row cannot steer the terminal. */
void show_row(struct text *out, const struct row *r, const struct data_family *f, const struct tokenizer *t, bool ansi);

#endif

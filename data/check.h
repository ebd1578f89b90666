/* What can be checked of a data YAML without a model: its fields, every row's JSON and turns, the head of every
 * picture. */
#ifndef DATA_CHECK_H
#define DATA_CHECK_H

#include <stdint.h>

#include "base/status.h"
#include "base/text.h"
#include "base/threads.h"
#include "data/dataset.h"

struct rows_report {
    int64_t rows, bad, turns, images; // turns and pictures of the good rows
};

/* All rows of the split, also those that a mixture would leave out. Every bad row adds a sentence to notes, one a
 * line. */
enum status rows_check(struct rows_report *r, const struct data_options *o, struct threads *threads, struct text *notes,
                       struct err *e);

#endif

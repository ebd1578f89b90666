/* What dataset.c and row.c share. A dataset does not change once it is open. */
#ifndef DATA_DATASET_PARTS_H
#define DATA_DATASET_PARTS_H

#include "data/chat.h"
#include "data/config.h"
#include "data/dataset.h"
#include "data/processor.h"
#include "data/rows.h"

/* A row that passed the check. */
struct entry {
    int32_t row; // in the file
    int32_t positions, scored, images;
};

struct set {
    const struct set_config *config;
    struct rows rows;
    struct entry *entry; // (count), in the order of the set
    int64_t count;
    int64_t first, shown; // of the mixture: rows first .. first + shown - 1; more than count: they repeat
};

struct dataset {
    struct data_config config;
    struct data_family family;
    struct chat chat;
    struct chat_template *own; // NULL when a conversation template is used
    struct processor processor;
    struct set *set; // (config.count)
    int64_t rows, bad, tokens, scored;
    uint64_t fingerprint;
};

/* Of a row of the mixture, which must be one. */
const struct entry *dataset_entry(const struct dataset *d, int64_t row);

/* Fills out from a row of a set's file, without pixels; `chat_row` stays the caller's. */
enum status row_encode(struct row *out, const struct dataset *d, const struct set *s, const struct chat_row *chat_row,
                       int64_t index, struct err *e);

/* The pixels of the row's pictures. */
enum status row_read_images(struct row *out, const struct dataset *d, const struct set *s,
                            const struct chat_row *chat_row, struct err *e);

/* The path of picture i; the caller frees. */
char *row_image_path(const struct set *s, const struct chat_row *chat_row, int64_t i);

#endif

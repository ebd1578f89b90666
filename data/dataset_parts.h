/* What dataset.c and row.c share. A dataset does not change once it is open. */
#ifndef DATA_DATASET_PARTS_H
#define DATA_DATASET_PARTS_H

#include "data/chat.h"
#include "data/config.h"
#include "data/dataset.h"
#include "data/image_set.h"
#include "data/processor.h"
#include "data/rows.h"

/* A row that passed the check. */
struct entry {
    int32_t row; // in the file
    int32_t positions, scored, images;
    int64_t patches, most_patches;
    int64_t frames; // that its video file holds; 0: it has none
};

struct set {
    const struct set_config *config;
    struct rows rows;
    struct entry *entry; // (count), in the order of the set
    int64_t count;
    int64_t first, shown; // of the mixture: rows first .. first + shown - 1; more than count: they repeat
};

/* The labels of all classification rows. */
struct label_names {
    char **name; // (count)
    int64_t count;
};

struct dataset {
    struct data_config config;
    enum problem problem;
    struct label_names labels;
    bool unlabelled;
    bool graded; // a label of some row is neither 0 nor 1
    struct data_family family;
    struct chat chat;
    struct chat_template *own; // NULL when a conversation template is used
    struct processor processor;
    struct set *set; // (config.count)
    int64_t rows, bad, tokens, scored;
    uint64_t fingerprint;
};

/* A row of the file, by its set's format; its video, if any, is open. frames: as entry has it, 0: not known yet. */
enum status set_row_read(const struct set *s, struct chat_row *r, int64_t index, int64_t frames, struct err *e);

/* Names in the order of the row's labels, or in that of the family where it has them. */
enum status label_names_init(struct label_names *n, const struct chat_row *r, const struct data_family *f,
                             struct err *e);
void label_names_free(struct label_names *n);

/* values (count) of a row, which has just these labels; each as the problem wants it. */
enum status label_values(float *values, const struct label_names *n, const struct chat_row *r, enum problem p,
                         int64_t num_labels, struct err *e);

/* Of a row of the mixture, which must be one. */
const struct entry *dataset_entry(const struct dataset *d, int64_t row);

/* Fills out from a row of a set's file, without pixels; `chat_row` stays the caller's. */
enum status row_encode(struct row *out, const struct dataset *d, const struct set *s, const struct chat_row *chat_row,
                       int64_t index, struct err *e);

/* The sides of the row's pictures from the heads of their files, of all of them, also of those whose token was cut. */
enum status row_measure_images(struct row *out, const struct dataset *d, const struct set *s,
                               const struct chat_row *chat_row, struct err *e);

/* The pixels of the row's pictures. keep false: only to see that they can be had, one after the other. */
enum status row_read_images(struct row *out, const struct dataset *d, const struct set *s,
                            const struct chat_row *chat_row, bool keep, struct err *e);

/* The path of picture i; the caller frees. */
char *row_image_path(const struct set *s, const struct chat_row *chat_row, int64_t i);

#endif

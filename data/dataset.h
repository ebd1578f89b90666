/* From a Mantis data YAML to checked rows, and from rows to micro-batches.
 *
 *   dataset_open   reads the YAML and every row's JSON, builds the mixture of one split, tokenizes and checks each row
 *                  (on all threads), keeps lengths; a bad row is an error or is counted and named (on_bad_row)
 *   loader_new     fixes the order for a seed; any position can be had at once, so a run resumes where it stopped
 *   loader_next    the next micro-batch, made by worker threads ahead of time; bytes in, same bits out, for any number
 * of workers
 *
 * Fields of the YAML are honoured or refused by name, never ignored. */
#ifndef DATA_DATASET_H
#define DATA_DATASET_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/batch.h"
#include "base/status.h"
#include "base/text.h"
#include "base/threads.h"
#include "data/family.h"
#include "data/tokenizer.h"

struct data_options {
    const char *file;         // the data YAML (or JSON), or NULL with `inline_list`
    const cJSON *inline_list; // the list under `data:` of a training config; relative paths are taken from inline_dir
    const char *inline_dir;
    const char *rows_text; // instead of both: rows of one classification set, one JSON object a line; their paths are
                           // taken from inline_dir
    const char *split;     // "train", "val", "test"
    const char *conv_template; // NULL: the family's default
    int64_t max_seq_len;       // 0: no limit; a data set's own max_seq_len overrides it
    int64_t max_num_frames;    // of a video; 0: no limit; a data set's own max_num_frames overrides it
    bool balancing;            // dataset_balancing
    bool skip_bad_rows;        // on_bad_row: skip
    bool unlabelled;           // classification rows are read without their labels, and need none
    bool decode_images;        // decode every picture while checking, not only its head
};

struct dataset;

/* Bad rows under skip_bad_rows are added to notes, one sentence a line: file, index, reason. */
struct dataset *dataset_open(const struct data_options *o, const struct data_family *f, const struct tokenizer *t,
                             struct threads *threads, struct text *notes, struct err *e);
void dataset_free(struct dataset *d);

int64_t dataset_rows(const struct dataset *d);   // of the mixture (balanced: virtual rows)
int64_t dataset_bad(const struct dataset *d);    // rows left out
int64_t dataset_tokens(const struct dataset *d); // positions of all rows of the mixture
int64_t dataset_scored(const struct dataset *d);

/* Classification rows: what their labels are (generation: chat rows), how many, and their names in order. */
enum problem dataset_problem(const struct dataset *d);
int64_t dataset_label_count(const struct dataset *d);
const char *const *dataset_label_names(const struct dataset *d);

uint64_t dataset_fingerprint(const struct dataset *d); // of everything that decides what a row becomes

/* What the check found out about a row of the mixture. */
struct row_size {
    int64_t positions, scored, images;
    int64_t patches, most_patches; // of all its pictures, of the largest; 0: they are of one known size
};
struct row_size dataset_row_size(const struct dataset *d, int64_t row);

/* One row as the model will see it. Owned by the caller: row_free. */
struct row {
    const char *id;   // "id" of the JSON as text, else its index
    const char *file; // of the data set
    int64_t index;    // within the file, from 0
    struct ids ids;   // mllava: one image_token per picture, not expanded
    int32_t *labels;  // (ids.len), IGNORED where not trained, not shifted
    int64_t images;
    int64_t unseen;            // mfuyu: pictures behind these whose tokens were cut
    struct batch_image *image; // (images + unseen), as the processor makes them; pixels are NULL unless asked for
    int64_t positions;         // that the language model sees, pictures expanded
    int64_t scored;            // targets that will be scored; of a classification row: 1
    int64_t value_count;       // labels of a classification row (zeros where they are not read); 0: a chat row
    float *values;             // (value_count), in the order of dataset_label_name
};
enum status dataset_row(const struct dataset *d, int64_t row, bool pixels, struct row *out, struct err *e);
void row_free(struct row *r);

/* Rows end to end as one micro-batch: shifts labels to targets, expands pictures. Takes pixels over from the rows; with
 * Idefics2 and Fuyu, which cut pictures into patches, the rows keep theirs. */
void batch_build(struct batch *b, struct row *rows, int64_t count, const struct data_family *f);
void batch_free(struct batch *b);

struct loader_options {
    int64_t rows_per_batch;
    bool shuffle;
    uint64_t seed;
    int workers;         // at least 1
    int64_t first_batch; // where to start: batch k holds stream rows k * rows_per_batch ...
    int64_t batches;     // how many will be asked for
};

struct loader;

/* The stream is epoch after epoch of the mixture, each in its own order (file order without shuffle), without a gap:
 * a batch may span two epochs. */
struct loader *loader_new(const struct dataset *d, const struct loader_options *o);
void loader_free(struct loader *l);
void loader_limits(const struct loader *l, struct batch_limits *out); // from the known lengths, nothing is read
int64_t loader_row(const struct loader *l, int64_t position);         // row of the mixture at a position of the stream

/* The batch lives until the next call. Fails when a row that passed the check cannot be read any more. */
enum status loader_next(struct loader *l, const struct batch **b, struct err *e);

#endif

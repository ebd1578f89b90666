/* What tests of data share: a folder to write to, a tokenizer, threads; data sets of one file, their rows, and what
 * another program gave for them. Except for dataset_try every function fails the running test when something is not
 * there. */
#ifndef TESTS_DATA_FIXTURE_H
#define TESTS_DATA_FIXTURE_H

#include "base/json.h"
#include "data/dataset.h"
#include "data/dump.h"

enum { TOKENS_PER_IMAGE = 5 }; // of mllava

struct data_fixture {
    const char *golden; // holds model/ with the tokenizer, and rows
    char *folder, *model;
    struct tokenizer *tokenizer;
    struct threads *threads;
    struct data_family text, mllava; // of golden/model
};

int data_fixture_start(void **state, const char *golden);
int data_fixture_end(void **state);

/* A set of one file of o.inline_dir, else of x->golden (or an absolute path): of format chat, unless the fields, such
 * as ", fps: 2", say another. */
struct dataset *dataset_try(const struct data_fixture *x, const char *file, const char *fields, struct data_options o,
                            const struct data_family *f, struct text *notes, struct err *e);
struct dataset *dataset_of(const struct data_fixture *x, const char *file, const char *fields, struct data_options o,
                           const struct data_family *f);
struct row row_of(const struct dataset *d, int64_t index, bool pixels);
const struct st_entry *dump_entry(const struct dump *d, const char *name);

cJSON *golden_json(const struct data_fixture *x, const char *name); // the caller deletes it
int64_t whole_of(const cJSON *o, const char *key);
int list_item(const cJSON *list, int64_t i);
void check_list(const cJSON *want, const int32_t *got, int64_t n, const char *what);
void check_hash(const void *data, size_t bytes, const cJSON *want, const char *what);

#endif

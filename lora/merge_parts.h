/* What the files of a merge share: merge.c (plan), merge_write.c (arithmetic and writing), merge_check.c and
 * merge_outputs.c. */
#ifndef LORA_MERGE_PARTS_H
#define LORA_MERGE_PARTS_H

#include "base/safetensors.h"
#include "lora/adapter.h"
#include "lora/head.h"
#include "lora/merge.h"
#include "lora/peft.h"
#include "lora/targets.h"
#include "quant/bnb.h"

/* An adapter's files. */
struct merge_source {
    const char *dir;
    char *where; // path of adapter_config.json
    double weight;
    cJSON *config;
    struct targets *targets;
    struct st_set file;
    bool *used; // (file.count)
    struct spelling keys;
    bool dora, rslora;
};

/* What one adapter has for one tensor; NULL: nothing. */
struct change {
    const struct st_entry *whole;     // takes the place of the base
    const struct st_entry *A, *B, *m; // (r,I) (O,r) (O)
    const struct st_entry *bias;      // (O), added to a bias
    double scale;                     // of the adapter, times its weight
};

/* A tensor that is written. */
struct merge_item {
    struct st_entry out;         // its name is owned
    const struct st_entry *from; // packed when four_bit
    bool four_bit;
    enum dtype source; // of the base's numbers
    bool changed;
    bool copied;            // the bytes of the base as they are
    int64_t O, I;           // rows and columns; a vector is one row
    struct change *changes; // (sources)
};

struct merge {
    struct merge_options o;
    struct model *model;
    struct merge_source *sources; // (o.adapter_count)
    struct merge_item *items;     // (count)
    size_t count;
    struct merge_counts counts;
    struct head_info head; // that the first adapter brings
};

/* A tensor's numbers while it is merged or checked. */
struct merge_numbers {
    const struct merge *m;
    const struct merge_item *item;
    const void *base; // rows of type
    enum dtype type;
    void *dequantised; // owned, or NULL
    bool replaced;     // an adapter has something that takes the place of the base
    int64_t R;         // ranks of all adapters together
    float *A, *B;      // (R,I) (O,R) with the scales in B; NULL with R 0
    float *magnitude;  // (O), DoRA; or NULL
    float *add;        // (I) of a bias; or NULL
};

enum status numbers_open(struct merge_numbers *n, const struct merge *m, const struct merge_item *item, struct err *e);
void numbers_close(struct merge_numbers *n);

/* x (I) = the row before the low-rank part: the base, or what replaces it, and what is added to a bias. */
void numbers_row(const struct merge_numbers *n, int64_t row, float *x);

/* x (count,I) = rows of the merged tensor, before they are rounded. No more rows at once than numbers_block. */
enum status numbers_merged(const struct merge_numbers *n, int64_t first, int64_t count, float *x, struct err *e);
int64_t numbers_block(const struct merge_numbers *n);

/* Rows of an entry of an item's shape, which will not be read soon. */
void rows_forget(const struct merge_item *item, const struct st_entry *t, int64_t first, int64_t count);

bool entry_is_float(const struct st_entry *t);

double rounding_unit(enum st_type type); // the largest relative error of one rounding

#endif

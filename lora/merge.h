/* Folds adapters into the model they were trained on: a Hugging Face folder that needs no adapter.
 *
 *   merge_open            model and adapters are read and checked against each other; what becomes of each tensor
 *   merge_write           one tensor after the other: base as F32, + s B A, DoRA's magnitude, one rounding
 *   merge_check_weights   reads what was written and compares it with what was to be, by other formulas
 *   merge_check_outputs   logits of the written model against those of base and adapter
 *
 * A base in 4 bits counts as its dequantised values, rounded to the type that was quantised as bitsandbytes does.
 * Several adapters: what they add is added up, each times its weight. DoRA is no sum and stands alone. A tied output
 * layer that comes to differ from the embedding is written beside it, and config.json no longer says tied. */
#ifndef LORA_MERGE_H
#define LORA_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/watch.h"
#include "kernels/backend.h"

struct merge;

struct merge_adapter {
    const char *dir; // a PEFT folder
    double weight;   // 1: as it was trained
};

struct merge_options {
    const char *model;
    const struct merge_adapter *adapters;
    int64_t adapter_count;
    bool as_stored;         // each tensor keeps its type, a 4-bit one the type that was quantised
    enum dtype type;        // else all of them: F32, BF16 or F16
    int64_t max_shard_size; // bytes
    bool base_alone;        // without an adapter the merged model is the base; else that is an error
    bool any_base;          // an adapter that says it was trained on other weights is taken too
    struct backend *be;     // of the host
    struct watch watch;     // told before each tensor: when writing in bytes, when checking in tensors
};

struct merge_counts {
    int64_t tensors, changed; // written; of them, those that an adapter changes
    int64_t bytes_in, bytes_out;
    bool four_bit; // the base
    bool untied;
};

struct weights_check {
    int64_t changed, equal; // tensors that an adapter changed, and others
    double worst;           // largest error of a tensor, in units of what rounding may cost; above 1 is a failure
    const char *worst_name; // lives as long as the merge; NULL: none
};

/* Names and shapes must fit; the adapters must be of a kind that can be merged. The options must outlive the merge. */
enum status merge_open(struct merge **m, const struct merge_options *o, struct err *e);
void merge_free(struct merge *m);
struct merge_counts merge_count(const struct merge *m);

/* Weights, config.json, tokenizer and processor files into a folder that exists. */
enum status merge_write(struct merge *m, const char *dir, struct err *e);

/* Fails, naming the tensor, when one is not what it should be. */
enum status merge_check_weights(struct merge *m, const char *dir, struct weights_check *out, struct err *e);

/* What is fed to both models. Texts are ids end to end; a picture of noise is added where the family takes pictures. */
struct prompts {
    const int32_t *ids;
    const int64_t *offsets; // (count + 1)
    int64_t count;
};

struct outputs_check {
    int64_t positions;
    double max, mean;       // |difference| of logits
    double rms, logit_rms;  // of the differences; of the logits less their mean over the vocabulary, unless that is one
    double kl_mean, kl_max; // KL(wanted || got) in nats, per position
    double top1;            // share of positions whose largest logit is the same one
    double allowed;         // of rms
};

/* Compares; the verdict (rms <= allowed) is the caller's. */
enum status merge_check_outputs(struct merge *m, const char *dir, const struct prompts *p, struct outputs_check *out,
                                struct err *e);

/* The same between two folders, the first the wanted one; allowed is not set. */
enum status outputs_compare(const char *wanted, const char *got, struct backend *be, const struct prompts *p,
                            struct outputs_check *out, struct err *e);

#endif

/* Quantises a Hugging Face model folder into one that transformers loads as a bitsandbytes 4-bit model: the weights of
 * linear layers (quant/modules.h) become 4-bit, every other tensor stays as it is, config.json gains a
 * quantization_config, the tokenizer's and processor's files come along. Weights pass through one at a time.
 *
 * The output folder appears whole under its name or not at all: it is written beside, as NAME.PID.partial. */
#ifndef QUANT_CHECKPOINT_H
#define QUANT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/tensor.h"
#include "base/threads.h"

/* Called before each weight with its name and the bytes of the source behind and ahead. */
typedef void checkpoint_progress(void *arg, const char *name, int64_t done, int64_t total);

struct checkpoint_options {
    enum dtype type;        // NF4 or FP4
    bool double_quant;      // absmax in 8 bits
    int blocksize;          // 32 .. 4096, a power of two; transformers can set 64 only, but reads any
    const char *skip;       // regular expression of modules to keep, or NULL; see modules_choose
    int64_t max_shard_size; // bytes of tensors in a file; a tensor and its scales are never split
    struct threads *threads;
    checkpoint_progress *progress; // or NULL
    void *progress_arg;
};
struct checkpoint_options checkpoint_defaults(void); // nf4, double, 64, 5 GB; threads are the caller's to set

struct checkpoint_report {
    int64_t tensors;   // in the source
    int64_t quantised; // of them
    int64_t bytes_in, bytes_out;
    int64_t shards; // files written
};

enum status checkpoint_quantize(const char *source, const char *out, const struct checkpoint_options *o,
                                struct checkpoint_report *report, struct err *e);

#endif

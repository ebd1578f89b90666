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
#include "base/watch.h"

struct checkpoint_options {
    enum dtype type;        // NF4 or FP4
    bool double_quant;      // absmax in 8 bits
    int blocksize;          // 32 .. 4096, a power of two; transformers can set 64 only, but reads any
    const char *skip;       // regular expression of modules to keep, or NULL; see modules_choose
    int64_t max_shard_size; // bytes of tensors in a file; a tensor and its scales are never split
    struct threads *threads;
    struct watch watch; // told before each weight, in bytes of the source
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

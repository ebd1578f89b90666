/* Models that can be made from nothing: shapes by name, and which tensors a shape has. */
#ifndef MODEL_PRESET_H
#define MODEL_PRESET_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/safetensors.h"
#include "base/status.h"
#include "model/config.h"

struct preset {
    const char *name;
    bool published; // the shape of a published model; else a small one
    enum family family;
    double deviation;      // of random weights; 0: 1 / sqrt(inputs), with which a model of any depth learns at once
    const char *config;    // JSON of config.json without what the tokenizer decides
    const char *processor; // of preprocessor_config.json, or NULL
    const char *prompts;   // of processor_config.json, or NULL
};

const struct preset *preset_find(const char *name, struct err *e); // names the known ones when it fails
const struct preset *preset_at(int i);                             // NULL after the last

/* What the tokenizer decides. */
struct preset_tokens {
    int64_t vocab; // 0: that of the shape
    int32_t bos, eos, pad, image;
};

/* config.json; the caller deletes it. dtype: "float32" or "bfloat16". */
cJSON *preset_config(const struct preset *p, const struct preset_tokens *t, const char *dtype);

enum fill { FILL_ONE, FILL_ZERO, FILL_NORMAL };

/* A tensor of a new model: its place in the file without data, and what its numbers are. */
struct new_tensor {
    struct st_entry entry; // the name is owned
    enum fill fill;
    int64_t inputs; // that one output sums over; of an embedding 1
};

struct new_tensors {
    struct new_tensor *list; // (count), by name
    size_t count;
};

/* Every tensor of a checkpoint of this configuration, as published ones name them. head: the attention pooling that a
 * published SigLIP has behind its blocks and that no family uses. */
void preset_tensors(struct new_tensors *t, const struct model_config *c, enum st_type type, bool head);
void preset_tensors_free(struct new_tensors *t);

#endif

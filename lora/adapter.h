/* What is trained: low-rank adapters beside linear layers, and parameters of the model that are trained whole
 * (modules_to_save, biases, the projector, or all of them). Read and written as a PEFT folder: adapter_config.json and
 * adapter_model.safetensors.
 *
 * All trained numbers lie in one F32 arena, their gradients in a second of the same layout, the optimizer's two moments
 * in a third and fourth: an op over all of them is one call. */
#ifndef LORA_ADAPTER_H
#define LORA_ADAPTER_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/status.h"
#include "model/model.h"

enum finetuning { FINETUNE_LORA, FINETUNE_FULL, FINETUNE_PROJECTOR };

enum bias_training { BIAS_NONE, BIAS_ALL, BIAS_LORA_ONLY };

/* Names and meanings are PEFT's (LoraConfig). cJSON values belong to the caller and may be NULL. */
struct adapter_options {
    enum finetuning finetuning;
    int64_t r;
    double alpha, dropout;
    bool use_dora, use_rslora, init_gaussian;
    const cJSON *target_modules; // a list of suffixes, one regular expression, or "all-linear"; NULL: q_proj and v_proj
    const cJSON *exclude_modules;              // a list or one regular expression
    const cJSON *layers_to_transform;          // a number or a list
    const cJSON *rank_pattern, *alpha_pattern; // objects: regular expression -> number, the first that matches counts
    const cJSON *modules_to_save;              // a list
    bool lora_bias;                            // PEFT's lora_bias: B has a bias of its own
    enum bias_training bias;                   // PEFT's bias
    const char *freeze;     // regular expression on parameter names: not trained whatever else says so; NULL: none
    const char *task_type;  // "CAUSAL_LM"
    const char *base_model; // base_model_name_or_path
    uint64_t seed;
};

/* One trained tensor. */
struct trained {
    char *key;                       // in adapter_model.safetensors
    struct tensor value, grad, m, v; // F32
    bool head;                       // learns at head_learning_rate (modules_to_save of an output head)
    bool decays;                     // all but the bias of a head, and adapters on layers that nothing reads
    bool of_pictures;                // has a gradient only in steps with pictures
    struct tensor *slot, *grad_slot; // where the network reads value and adds to grad; grad_slot NULL: it cannot
    struct tensor frozen;            // what was in slot, of a parameter of the model; data NULL for an adapter's own
};

struct adapter {
    struct model *model;
    enum finetuning finetuning;
    cJSON *config; // adapter_config.json as it will be written
    cJSON *labels; // label_names.json (lora/head.h), or NULL
    struct lora *loras;
    int64_t lora_count, rank_total;
    struct trained *trained;
    int64_t count;
    struct tensor values, grads, m, v; // (n) F32: all trained tensors in the order of `trained`, zeros between
    struct tensor rounded;             // (n) BF16: values of adapter_round; data NULL without
    void *memory;
    size_t memory_bytes;
    bool with_optimizer;
};

/* Makes the adapter, initialises it from the seed and hangs it into the model. Targets that match nothing, a module
 * that cannot be trained, a pattern that is no regular expression: one sentence that names it. */
enum status adapter_new(struct adapter **a, struct model *m, const struct adapter_options *o, struct err *e);

/* Reads a PEFT folder and hangs it into the model for use; no gradients. Another tuner type, and an option that would
 * change the mathematics and is not supported (use_qalora, ...), is refused by name; a shape that does not fit names
 * the tensor. */
enum status adapter_open(struct adapter **a, struct model *m, const char *dir, struct err *e);

/* init_adapter: sets the values of a new adapter from a PEFT folder that must hold exactly its tensors, and give them
 * the same meaning (lora_alpha, use_rslora, use_dora). */
enum status adapter_read(struct adapter *a, const char *dir, struct err *e);

/* Takes itself out of the model again. */
void adapter_free(struct adapter *a);

/* adapter_config.json and adapter_model.safetensors into a folder that exists; each file is whole or not there. */
enum status adapter_write(const struct adapter *a, const char *dir, struct err *e);

/* For runs in BF16, whose products round A and B: rounds them once whenever values change, into 2 more bytes a number.
 * Where the device multiplies in BF16, the bits of a product stay the same. */
enum status adapter_round(struct adapter *a, struct err *e);

/* After values changed: what is derived from them. */
void adapter_refresh(struct adapter *a);

int64_t adapter_param_total(const struct adapter *a); // trained numbers

#endif

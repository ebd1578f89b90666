/* The README.md of an adapter: what the Hub shows about it, with the front matter that the Hub reads. All strings are
 * plain text; they are quoted and escaped as the place needs. */
#ifndef LORA_MODEL_CARD_H
#define LORA_MODEL_CARD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/text.h"

struct card_row {
    const char *name, *value;
};

/* NULL and 0 leave a part out, except for name and base_model. */
struct model_card {
    const char *name;         // the heading, and what the example calls the adapter
    const char *base_model;   // a name on the Hub, or a folder, which the front matter then leaves out
    const char *method;       // "LoRA", "QLoRA", "DoRA"; also a tag, in small letters
    const char *pipeline_tag; // "text-generation", "image-text-to-text", "text-classification"
    const char *auto_class;   // a name of transformers, as it is; "AutoModelForCausalLM" is the default
    const char *quant_type;   // "nf4", "fp4": the example then loads the base model so
    const char *license;
    const char *summary; // a paragraph
    bool whole;          // the folder is a model of its own, not an adapter
    const char *const *datasets;
    size_t dataset_count;
    const struct card_row *settings; // the training settings, in order
    size_t setting_count;
    const struct card_row *results; // measures, in order
    size_t result_count;
};

void model_card_text(const struct model_card *c, struct text *out);
enum status model_card_write(const struct model_card *c, const char *path, struct err *e); // whole or not at all

#endif

/* config.json of a merged model: the base's text with a few keys changed, so that every number stays as it was written.
 * */
#ifndef LORA_MERGE_CONFIG_H
#define LORA_MERGE_CONFIG_H

#include <stdbool.h>

#include "base/status.h"
#include "base/tensor.h"
#include "lora/head.h"

struct merge_config {
    bool plain;     // no quantization_config
    bool untied;    // tie_word_embeddings is false
    bool set_dtype; // dtype, or torch_dtype, is that of `dtype`
    enum dtype dtype;
    const struct head_info *head; // a new head takes the language model's place; NULL: none does
    const char *model_type;       // with a head
};

enum status merge_config_write(const struct merge_config *c, const char *from, const char *to, struct err *e);

/* The text of an object with a member set to a JSON text, or taken out with value NULL; the text must be valid. The
 * caller frees what comes back. */
char *json_text_with(const char *object, const char *key, const char *value);

#endif

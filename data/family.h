/* What a model family wants of its data: the one thing that the cli carries from a model's configuration to data/. */
#ifndef DATA_FAMILY_H
#define DATA_FAMILY_H

#include <stdint.h>

#include "base/batch.h"

struct data_family {
    enum family family;
    const char *model_dir;        // where tokenizer and processor files are
    const char *default_template; // Mantis' conversation template of the family, or NULL: the tokenizer's chat_template
    int64_t vocab_size;           // ids at or above it are an error; 0: not known
    int32_t image_token;          // mllava: the id that stands for a picture
    int64_t tokens_per_image;     // mllava: positions that a picture takes in the language model
};

#endif

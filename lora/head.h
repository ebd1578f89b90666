/* What travels with an adapter that trains a classification head: label_names.json beside adapter_config.json, which
 * PEFT leaves alone. {"problem_type": "regression", "label_names": ["visual quality", ...]}: names in the order of
 * the outputs. */
#ifndef LORA_HEAD_H
#define LORA_HEAD_H

#include <cjson/cJSON.h>

#include "base/problem.h"
#include "base/status.h"

#include <stdint.h>

struct head_info {
    enum problem problem; // generation: the adapter has no head; unsaid: only its tensors tell of it
    int64_t num_labels;
    const char **names; // (num_labels), or NULL
    bool bias;
    cJSON *file; // owns the names; NULL without label_names.json
};

enum status head_info_read(struct head_info *h, const char *adapter_dir, struct err *e);
void head_info_free(struct head_info *h);

/* Changes the text of a config.json for a head of n outputs: id2label and label2id by the names, or as LABEL_i;
 * problem_type unless it is unsaid; the class of transformers where a new head takes the language model's place
 * (model_type; NULL: the model had the head before). */
void head_config_edit(char **text, const char *model_type, enum problem p, const char *const *names, int64_t n);

/* The content of label_names.json; the caller deletes it. names may be NULL. */
cJSON *head_labels(enum problem p, const char *const *names, int64_t count);
enum status head_labels_write(const cJSON *labels, const char *dir, struct err *e);

#endif

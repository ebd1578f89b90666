/* The files of a PEFT folder, both ways: adapter_config.json and adapter_model.safetensors.
 *
 * What is read is strict where the mathematics is at stake: an option that would change it and is not supported is
 * refused by name. What is written holds few keys, because older PEFT raises on keys that it does not know. */
#ifndef LORA_PEFT_H
#define LORA_PEFT_H

#include <cjson/cJSON.h>

#include "base/safetensors.h"
#include "base/status.h"
#include "lora/adapter.h"

/* The options as a config. target_modules is what was asked for, q_proj and v_proj by default. */
cJSON *peft_config_new(const struct adapter_options *o);

/* adapter_config.json of a folder, with the same default; what is not supported is an error. The caller deletes it. */
enum status peft_config_read(cJSON **config, const char *dir, struct err *e);

/* The keys of a config that are written, sorted, with defaults where they are missing. The caller deletes it. */
cJSON *peft_config_written(const cJSON *config);

/* adapter_model.safetensors of a folder. */
enum status peft_tensors_open(struct st_set *s, const char *dir, struct err *e);

/* Path prefixes of the parts of a model, which differ between the versions of transformers that wrote it. */
struct spelling {
    const char *text, *vision, *projector; // the latter two NULL where they are spelled in one way
    const char *head;
};
struct spelling spelling_of_model(const struct model *m);
struct spelling spelling_of_file(const struct model *m, const struct st_set *s);

/* A path, or the name of a parameter, in another spelling; the caller frees it. */
char *spelling_change(const char *path, const struct spelling *from, const struct spelling *to);

/* Whether a tensor is one of those that PEFT stores a second time: with bias "all", those of modules_to_save. */
bool peft_is_copy(const char *key);

/* The values of all trained tensors from a file that must hold exactly these, but for what the model leaves out. Keys
 * are those of the adapter, changed into the file's spelling. dir names the folder in errors. */
enum status peft_tensors_load(struct adapter *a, const struct st_set *s, const char *dir, const struct spelling *ours,
                              const struct spelling *file, struct err *e);

#endif

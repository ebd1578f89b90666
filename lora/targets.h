/* Which modules an adapter touches, and with what rank and alpha: the rules of PEFT over module paths
 * ("model.layers.0.mlp .up_proj"), read from an adapter_config.json. In this order: exclude_modules and modules_to_save
 * take a module out; target_modules as one string is a regular expression on the whole path, as a list it holds paths
 * or their last parts; with a list of last parts, layers_to_transform keeps only those layers. */
#ifndef LORA_TARGETS_H
#define LORA_TARGETS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"

struct targets;

enum { LORA_MAX_RANK = 65536 };

/* The config must outlive the targets. `where` names it in errors. */
enum status targets_new(struct targets **t, const cJSON *config, const char *where, struct err *e);
void targets_free(struct targets *t);

bool targets_match(const struct targets *t, const char *path);
int64_t targets_rank(const struct targets *t, const char *path);
double targets_alpha(const struct targets *t, const char *path);

/* Whether a parameter belongs to a module that modules_to_save trains whole: one whose path ends with an entry. */
bool targets_save(const struct targets *t, const char *param);
bool targets_entry_saves(const char *entry, const char *param); // the rule for one entry of modules_to_save

/* target_modules, or another list or string of a config, for a sentence: "q_proj, v_proj". */
void targets_name(const cJSON *list_or_string, struct text *out);

/* The shortest last parts (at dots) of the paths in `wanted` that end none of the paths in `others`, each once. */
cJSON *targets_suffixes(const char *const *wanted, size_t wanted_count, const char *const *others, size_t others_count);

#endif

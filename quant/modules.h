/* Which weights of a checkpoint become 4-bit: those of linear layers, except the ones that transformers keeps, which
 * are the output layer, layers tied to the embedding and the classification head. In model_type llava it is the vision
 * tower that is kept, and the output layer is not, since Mantis passes llm_int8_skip_modules=["vision_tower"]. */
#ifndef QUANT_MODULES_H
#define QUANT_MODULES_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/regex.h"
#include "base/safetensors.h"
#include "base/status.h"

/* Whether r matches a run of whole components of a module's path: "down_proj", "layers\.[0-3]", "vision_model" and
 * ".*(down_proj|lm_head)" all match one below or at these names. */
bool modules_match(const struct regex *r, const char *path);

/* quantise (s->count): whether entry i becomes 4-bit. skip keeps further modules, or NULL: a regular expression as
 * modules_match takes it. Matching no linear layer is an error.
 * *skip_modules: what config.json has to say as llm_int8_skip_modules so that transformers builds the same layers, a
 * list or null; the caller deletes it. */
enum status modules_choose(bool *quantise, cJSON **skip_modules, const struct st_set *s, const cJSON *config,
                           const char *skip, struct err *e);

#endif

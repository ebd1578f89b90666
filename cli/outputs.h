/* What a head gives, by name, as eval and score show it. */
#ifndef CLI_OUTPUTS_H
#define CLI_OUTPUTS_H

#include <cjson/cJSON.h>
#include <stdint.h>

#include "base/problem.h"
#include "lora/evaluate.h"

cJSON *outputs_json(const char *const *names, const float *outputs, int64_t n);
void outputs_print(const char *const *names, const float *outputs, int64_t n); // a line each

/* Metrics of all rows, of each label and the interval of the first; as lines, or into an object. */
void outcome_print(const struct outcome *o, const char *const *names, uint64_t seed);
void outcome_json(cJSON *to, const struct outcome *o, const char *const *names, uint64_t seed);

#endif

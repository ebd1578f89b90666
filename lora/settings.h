/* The keys of a training config: read from YAML or JSON, overridden by flags, checked against one table. Every key has
 * its resolved value, so that the run can be printed, stored beside the adapter and compared when it resumes. */
#ifndef LORA_SETTINGS_H
#define LORA_SETTINGS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/flag.h"
#include "base/status.h"

enum { TRAINING_KEYS = 67 };
extern const struct flag training_keys[TRAINING_KEYS];

struct settings {
    cJSON *values; // object: every key of the table, in its order, with the resolved value (null: unset)
    char *dir;     // folder of the config file: relative paths of an inline `data:` list are taken from it
    char *path;
};

/* overrides: an object of keys given as flags (their relative paths are taken from where the user stands), or NULL. */
enum status settings_read(struct settings *s, const char *path, const cJSON *overrides, struct err *e);
void settings_free(struct settings *s);

const cJSON *settings_get(const struct settings *s, const char *key); // NULL: unset
const char *settings_text(const struct settings *s, const char *key); // NULL: unset
int64_t settings_int(const struct settings *s, const char *key);
double settings_number(const struct settings *s, const char *key);
bool settings_bool(const struct settings *s, const char *key);
bool settings_is(const struct settings *s, const char *key, const char *value); // a text equal to value

/* As YAML, in the order of the table, unset keys left out, paths absolute, so that it is a config that means the same
 * wherever it lies; the caller frees it. */
char *settings_yaml(const struct settings *s);

/* Names the first few keys whose values differ between two runs and would change its numbers; empty text: none. */
struct text;
void settings_differences(const cJSON *before, const cJSON *now, struct text *out);

#endif

/* YAML over libyaml, as the same tree that JSON gives: mappings become objects in file order, sequences lists, plain
 * scalars the numbers, booleans and nulls of YAML 1.2's core schema (and yes/no/on/off are strings, so `eval_strategy:
 * no` is the string "no"), quoted scalars strings. 1e-5 is a number here, as people mean it. Anchors, aliases, tags and
 * duplicate keys are refused. JSON is YAML, so a .json configuration is read by the same call. */
#ifndef BASE_YAML_H
#define BASE_YAML_H

#include <cjson/cJSON.h>

#include "base/status.h"

cJSON *yaml_read(const char *path, struct err *e);
cJSON *yaml_parse(const char *text, size_t n, const char *where, struct err *e);

/* One plain scalar as its value: "2e-4" a number, "true" a boolean, "null" null, else a string. Also what a flag's
 * value on the command line means. */
cJSON *yaml_scalar(const char *s);

/* The tree as YAML text; the caller frees it. What yaml_parse reads back is equal. */
char *yaml_text(const cJSON *v);

#endif

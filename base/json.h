/* JSON over cJSON, with the checks that cJSON leaves out: the text must be UTF-8, nothing but white space may follow
 * the value, nesting is bounded. Getters name the file, the key, what was found and what was wanted. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* `where` names the text in an error, e.g. a path or "rows.jsonl line 3". The caller deletes the tree. */
cJSON *json_parse(const char *text, size_t n, const char *where, struct err *e);
cJSON *json_read(const char *path, struct err *e);

/* Values of an object. A missing key, and null, give the fallback; another type is an error that names where and
 * key. */
enum status json_int(const cJSON *o, const char *where, const char *key, int64_t fallback, int64_t *out, struct err *e);
enum status json_num(const cJSON *o, const char *where, const char *key, double fallback, double *out, struct err *e);
enum status json_bool(const cJSON *o, const char *where, const char *key, bool fallback, bool *out, struct err *e);
/* The string lives as long as the tree. */
enum status json_str(const cJSON *o, const char *where, const char *key, const char *fallback, const char **out,
                     struct err *e);

const cJSON *json_get(const cJSON *o, const char *key); // NULL when absent or null
bool json_is_integer(const cJSON *v);                   // a number without fraction that a double holds exactly

/* The tree as text (indented by two blanks unless compact); the caller frees it. Numbers keep 17 digits. */
char *json_text(const cJSON *v, bool compact);
enum status json_write(const char *path, const cJSON *v, struct err *e); // indented, final newline, whole or not at all
enum status json_write_in(const char *dir, const char *name, const cJSON *v,
                          struct err *e); // the file NAME of a folder

/* s as a JSON string with its quotes; the caller frees it. */
char *json_quote(const char *s);

#endif

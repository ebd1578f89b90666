/* What "the same result" means for files that graft writes. Every comparison passes only when error <= tolerance is
 * true, so NaN fails; names missing on either side fail. The first difference is left in err: what, where, got, want.
 * tests/test_compare.c feeds these wrong results. */
#ifndef TESTS_COMPARE_H
#define TESTS_COMPARE_H

#include <stdbool.h>

#include "base/json.h"
#include "base/safetensors.h"
#include "base/status.h"

/* A number of a line, near when |got - want| <= rel |want| + abs. */
struct field {
    const char *name;
    double rel, abs;
};

/* A file of JSON lines as a list, only those that have the key. The caller deletes it. */
cJSON *lines_read(const char *path, const char *key, struct err *e);

/* Lists of objects that are matched by key: the same keys, once each; of the fields, those that want has. */
enum status compare_lines(const char *what, const char *key, const cJSON *got, const cJSON *want,
                          const struct field *fields, size_t count, struct err *e);

/* Float tensors by name: ||got - want|| <= rel ||want - init|| + 1e-7; init is 0 for a tensor that is not in it. */
enum status compare_update(const struct st_set *got, const struct st_set *want, const struct st_set *init, double rel,
                           struct err *e);

/* Every key of want is in got with the same value; lists of strings may come in any order. */
enum status compare_subset(const char *what, const cJSON *got, const cJSON *want, struct err *e);

/* Lists of integers. */
enum status compare_ids(const char *what, const cJSON *got, const cJSON *want, struct err *e);

#endif

/* Regular expressions over PCRE2, matched as Python's re does with str patterns (UTF-8, Unicode classes). */
#ifndef BASE_REGEX_H
#define BASE_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct regex;

/* `where` names the pattern's origin in an error, e.g. "target_modules". */
struct regex *regex_new(const char *pattern, const char *where, struct err *e);
void regex_free(struct regex *r);

bool regex_full(const struct regex *r, const char *s);   // re.fullmatch
bool regex_prefix(const struct regex *r, const char *s); // re.match
bool regex_search(const struct regex *r, const char *s); // re.search

#endif

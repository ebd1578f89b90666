#include "base/flag.h"

#include <string.h>

bool flag_allows(const struct flag *f, const char *value) {
    size_t n = strcspn(value, "|");
    if (!f->choices) return true;
    if (value[n] || n == 0) return false;
    for (const char *at = f->choices; at; at = strchr(at, '|')) {
        at += *at == '|';
        if (strncmp(at, value, n) == 0 && (at[n] == '|' || at[n] == 0)) return true;
    }
    return false;
}

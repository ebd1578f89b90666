/* A named, typed value with its default, its choices and a few words of help: a flag of a verb, or a key of a training
 * config (which is a flag of `graft train` too). One table row is the check, the default and the help text. */
#ifndef BASE_FLAG_H
#define BASE_FLAG_H

#include <stdbool.h>

enum flag_type {
    FLAG_BOOL,   // true or false; alone it means true
    FLAG_INT,    // whole number
    FLAG_NUMBER, // any number
    FLAG_TEXT,
    FLAG_LIST, // text that may be given several times
    FLAG_ANY,  // a YAML scalar or flow list/map: numbers, booleans, "[a, b]"
};

struct flag {
    const char *name;
    enum flag_type type;
    const char *fallback; // as text; NULL: unset
    const char *choices;  // "nf4|fp4"; NULL: any value
    const char *help;     // a few words
};

/* Whether a text is one of a flag's choices; of a flag without choices any is. */
bool flag_allows(const struct flag *f, const char *value);

#endif

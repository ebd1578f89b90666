/* Typed flags. Each verb has a table of them; the table is the help text, the defaults and the check in one. Long flags
 * only, `--key value` or `--key=value`, `_` and `-` are the same. An unknown flag or an ill-typed value is wrong usage,
 * answered with the nearest right name. */
#ifndef CLI_FLAGS_H
#define CLI_FLAGS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/flag.h"
#include "base/status.h"

struct flags;

struct verb {
    const char *name;
    const char *arguments; // "MODEL --out DIR"; those that must be there come first
    const char *about;     // one line
    const struct flag *flags;
    size_t flag_count;
    int min_words, max_words;                         // arguments that are not flags
    int (*run)(const struct flags *f, struct err *e); // exit status; a failure leaves its sentence in e
};

/* The words and flags of one command line, checked. */
struct flags {
    const struct verb *verb;
    const char **words;
    int word_count;
    cJSON *given; // object: flag name (with _) -> value of its type; lists for FLAG_LIST
};

enum status flags_parse(struct flags *f, const struct verb *v, int argc, char **argv, struct err *e);
void flags_free(struct flags *f);

/* What was given, else the table's default. */
const char *flag_text(const struct flags *f, const char *name); // NULL: unset
int64_t flag_int(const struct flags *f, const char *name);
double flag_number(const struct flags *f, const char *name);
bool flag_bool(const struct flags *f, const char *name);
const cJSON *flag_list(const struct flags *f, const char *name); // NULL: never given
bool flag_given(const struct flags *f, const char *name);

/* The flags that every verb takes: device, threads, dtype, seed, quiet, json. */
extern const struct flag common_flags[];
extern const size_t common_flag_count;

#endif

#include "cli/flags.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/yaml.h"

const struct flag common_flags[] = {
    {"device", FLAG_TEXT, "auto", NULL, "auto, cpu, cuda or cuda:N"},
    {"threads", FLAG_INT, "0", NULL, "threads of the host; 0: all that there are"},
    {"dtype", FLAG_TEXT, NULL, "f32|bf16", "type of the computation"},
    {"seed", FLAG_INT, "42", NULL, "of everything random"},
    {"quiet", FLAG_BOOL, "false", NULL, "no progress and no notes"},
    {"json", FLAG_BOOL, "false", NULL, "results as JSON"},
};
const size_t common_flag_count = sizeof common_flags / sizeof *common_flags;

static const struct flag *find_in(const struct flag *list, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

/* A verb's own flag of a name hides the common one. */
static const struct flag *find_flag(const struct verb *v, const char *name) {
    const struct flag *own = find_in(v->flags, v->flag_count, name);
    return own ? own : find_in(common_flags, common_flag_count, name);
}

static enum status unknown_flag(const struct verb *v, const char *name, struct err *e) {
    const char **names = mem_alloc((v->flag_count + common_flag_count) * sizeof *names);
    size_t n = 0;
    for (size_t i = 0; i < v->flag_count; i++) names[n++] = v->flags[i].name;
    for (size_t i = 0; i < common_flag_count; i++) names[n++] = common_flags[i].name;
    const char *near = text_nearest(name, names, n);
    if (near)
        err_set(e, ST_USAGE, "unknown flag --%s; did you mean --%s?", name, near);
    else
        err_set(e, ST_USAGE, "unknown flag --%s; graft %s --help lists the known ones", name, v->name);
    free(names);
    return e->code;
}

/* ---------------------------------------------------------------- values */

static cJSON *read_int(const struct flag *flag, const char *s, struct err *e) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    bool held = errno == 0 && v >= -(1LL << 53) && v <= 1LL << 53; // a double holds it
    if (*s && *end == 0 && held) return cJSON_CreateNumber((double)v);
    err_set(e, ST_USAGE, "--%s is \"%s\", wanted a whole number", flag->name, s);
    return NULL;
}

static cJSON *read_number(const struct flag *flag, const char *s, struct err *e) {
    char *end;
    double v = strtod(s, &end);
    if (*s && *end == 0 && isfinite(v)) return cJSON_CreateNumber(v);
    err_set(e, ST_USAGE, "--%s is \"%s\", wanted a number", flag->name, s);
    return NULL;
}

/* As in a config, and as Python writes them. */
static bool is_true(const char *s) { return strcmp(s, "true") == 0 || strcmp(s, "True") == 0; }
static bool is_false(const char *s) { return strcmp(s, "false") == 0 || strcmp(s, "False") == 0; }

static cJSON *read_bool(const struct flag *flag, const char *s, struct err *e) {
    if (is_true(s)) return cJSON_CreateTrue();
    if (is_false(s)) return cJSON_CreateFalse();
    err_set(e, ST_USAGE, "--%s is \"%s\", wanted true or false", flag->name, s);
    return NULL;
}

static cJSON *read_text(const struct flag *flag, const char *s, struct err *e) {
    if (flag_allows(flag, s)) return cJSON_CreateString(s);
    err_set(e, ST_USAGE, "--%s is \"%s\", wanted one of %s", flag->name, s, flag->choices);
    return NULL;
}

static cJSON *read_any(const struct flag *flag, const char *s, struct err *e) {
    if (*s != '[' && *s != '{') return yaml_scalar(s);
    struct err inner = {0};
    char *where = mem_format("--%s", flag->name);
    cJSON *v = yaml_parse(s, strlen(s), where, &inner);
    free(where);
    if (!v) err_set(e, ST_USAGE, "%s", inner.text);
    return v;
}

static cJSON *read_value(const struct flag *flag, const char *s, struct err *e) {
    if (utf8_valid_prefix(s, strlen(s)) != strlen(s)) {
        err_set(e, ST_USAGE, "--%s: the value is not UTF-8", flag->name);
        return NULL;
    }
    switch (flag->type) {
    case FLAG_BOOL:
        return read_bool(flag, s, e);
    case FLAG_INT:
        return read_int(flag, s, e);
    case FLAG_NUMBER:
        return read_number(flag, s, e);
    case FLAG_ANY:
        return read_any(flag, s, e);
    default:
        return read_text(flag, s, e);
    }
}

/* The last value of a flag counts; a list keeps all of them. */
static void keep(struct flags *f, const struct flag *flag, cJSON *value) {
    if (flag->type != FLAG_LIST) {
        cJSON_DeleteItemFromObjectCaseSensitive(f->given, flag->name);
        cJSON_AddItemToObject(f->given, flag->name, value);
        return;
    }
    cJSON *list = cJSON_GetObjectItemCaseSensitive(f->given, flag->name);
    if (!list) list = cJSON_AddArrayToObject(f->given, flag->name);
    cJSON_AddItemToArray(list, value);
}

/* ---------------------------------------------------------------- the command line */

/* argv[*at] is a flag; *at moves on to its last word. */
static enum status read_flag(struct flags *f, int argc, char **argv, int *at, struct err *e) {
    const char *word = argv[*at] + 2, *equals = strchr(word, '=');
    char *name = mem_text_n(word, equals ? (size_t)(equals - word) : strlen(word));
    for (char *p = name; *p; p++)
        if (*p == '-') *p = '_';
    const struct flag *flag = find_flag(f->verb, name);
    const char *next = *at + 1 < argc ? argv[*at + 1] : NULL, *value = NULL;
    if (!flag) {
        unknown_flag(f->verb, name, e);
    } else if (equals) {
        value = equals + 1;
    } else if (flag->type == FLAG_BOOL) {
        bool said = next && (is_true(next) || is_false(next));
        value = said ? next : "true";
        *at += said;
    } else if (next && !text_starts(next, "--")) {
        value = next;
        *at += 1;
    } else {
        err_set(e, ST_USAGE, "--%s wants a value", name);
    }
    cJSON *v = value ? read_value(flag, value, e) : NULL;
    if (v) keep(f, flag, v);
    free(name);
    return e->code;
}

static enum status check_words(const struct flags *f, struct err *e) {
    const struct verb *v = f->verb;
    if (f->word_count < v->min_words) {
        const char *word = v->arguments; // they begin with the words, in order
        for (int i = 0; i < f->word_count; i++) word += strcspn(word, " ") + 1;
        return err_set(e, ST_USAGE, "%.*s is missing; wanted: graft %s %s", (int)strcspn(word, " "), word, v->name,
                       v->arguments);
    }
    if (f->word_count > v->max_words)
        return err_set(e, ST_USAGE, "\"%s\" is one word too many; wanted: graft %s %s", f->words[v->max_words], v->name,
                       v->arguments);
    return ST_OK;
}

enum status flags_parse(struct flags *f, const struct verb *v, int argc, char **argv, struct err *e) {
    *f = (struct flags){.verb = v, .given = cJSON_CreateObject()};
    f->words = mem_alloc(((size_t)argc + 1) * sizeof *f->words);
    for (int i = 0; i < argc && e->code == ST_OK; i++) {
        if (text_starts(argv[i], "--"))
            read_flag(f, argc, argv, &i, e);
        else if (argv[i][0] == '-' && argv[i][1])
            err_set(e, ST_USAGE, "%s: flags are long, as in --help", argv[i]);
        else
            f->words[f->word_count++] = argv[i];
    }
    return e->code == ST_OK ? check_words(f, e) : e->code;
}

void flags_free(struct flags *f) {
    free(f->words);
    cJSON_Delete(f->given);
    *f = (struct flags){0};
}

/* ---------------------------------------------------------------- asking */

static const cJSON *given(const struct flags *f, const char *name) {
    return cJSON_GetObjectItemCaseSensitive(f->given, name);
}

static const char *fallback(const struct flags *f, const char *name) {
    const struct flag *flag = find_flag(f->verb, name);
    return flag ? flag->fallback : NULL;
}

bool flag_given(const struct flags *f, const char *name) { return given(f, name) != NULL; }

const char *flag_text(const struct flags *f, const char *name) {
    const cJSON *v = given(f, name);
    return cJSON_IsString(v) ? v->valuestring : fallback(f, name);
}

int64_t flag_int(const struct flags *f, const char *name) {
    const cJSON *v = given(f, name);
    if (v) return (int64_t)v->valuedouble;
    const char *s = fallback(f, name);
    return s ? strtoll(s, NULL, 10) : 0;
}

double flag_number(const struct flags *f, const char *name) {
    const cJSON *v = given(f, name);
    if (v) return v->valuedouble;
    const char *s = fallback(f, name);
    return s ? strtod(s, NULL) : 0;
}

bool flag_bool(const struct flags *f, const char *name) {
    const cJSON *v = given(f, name);
    if (v) return cJSON_IsTrue(v);
    const char *s = fallback(f, name);
    return s && strcmp(s, "true") == 0;
}

const cJSON *flag_list(const struct flags *f, const char *name) { return given(f, name); }

/* Filters of single values. Those that go through a list are in jinja_lists.c. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/jinja_parts.h"

static struct value filter_default(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"default_value", "boolean", NULL};
    if (!jinja_args_check(r, a, 0, 2, names)) return v;
    const struct value *otherwise = jinja_arg(a, 0, "default_value");
    bool replace = v.kind == V_UNDEFINED || (jinja_arg_truth(a, 1, "boolean", false) && !jinja_truth(&v));
    if (!replace) return v;
    return otherwise ? *otherwise : jinja_literal("");
}

static struct value filter_trim(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"chars", NULL};
    const struct value *chars;
    if (!jinja_args_check(r, a, 0, 1, names) || !jinja_arg_text(r, a, 0, "chars", &chars)) return v;
    return jinja_strip(r, jinja_to_string(r, v), chars, true, true);
}

static struct value filter_replace(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"old", "new", "count", NULL};
    int64_t most = -1;
    if (!jinja_args_check(r, a, 2, 3, names)) return v;
    const struct value *from = jinja_arg(a, 0, "old"), *to = jinja_arg(a, 1, "new"), *count = jinja_arg(a, 2, "count");
    if (!from || !to) return jinja_fail(r, "replace wants old and new");
    if (count && count->kind != V_NONE && !jinja_arg_whole(r, a, 2, "count", -1, &most)) return v;
    struct value old = jinja_to_string(r, *from), new = jinja_to_string(r, *to);
    return jinja_failed(r) ? v : jinja_replace(r, jinja_to_string(r, v), old, new, most);
}

enum { WIDEST_INDENT = 64 };

/* What one level of indentation is: a number of blanks, or a string. False with the error set. */
static bool indent_text(struct render *r, const struct value *width, char text[WIDEST_INDENT + 1]) {
    int64_t n = 0;
    bool blanks = jinja_whole(width, &n);
    if (!blanks && width->kind != V_STRING) {
        jinja_fail(r, "an indentation of %s", jinja_kind_name(width));
    } else if (n > WIDEST_INDENT || (!blanks && width->len > WIDEST_INDENT)) {
        jinja_fail(r, "an indentation of more than %d characters", WIDEST_INDENT);
    } else {
        size_t len = blanks ? (n > 0 ? (size_t)n : 0) : width->len;
        if (blanks)
            memset(text, ' ', len);
        else
            memcpy(text, width->text, len);
        text[len] = 0;
    }
    return !jinja_failed(r);
}

/* All lines but the first are indented, empty ones only with blank. */
static struct value filter_indent(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"width", "first", "blank", NULL};
    char pad[WIDEST_INDENT + 1] = "    ";
    if (!jinja_args_check(r, a, 0, 3, names)) return v;
    const struct value *width = jinja_arg(a, 0, "width");
    bool first = jinja_arg_truth(a, 1, "first", false), blank = jinja_arg_truth(a, 2, "blank", false);
    if (width && !indent_text(r, width, pad)) return v;
    struct text t = {0};
    v = jinja_to_string(r, v);
    text_add_n(&t, v.text, v.kind == V_STRING ? v.len : 0);
    text_add_char(&t, '\n'); // so that a newline at the end begins one more line
    struct value lines = jinja_lines(r, jinja_text(r, &t));
    for (size_t i = 0; i < lines.list->count && jinja_step(r, 1); i++) {
        const struct value *line = &lines.list->items[i];
        if (i) text_add_char(&t, '\n');
        if (i ? blank || line->len : first) text_add(&t, pad);
        text_add_n(&t, line->text, line->len);
    }
    return jinja_text(r, &t);
}

/* tojson as transformers sets it up: no HTML escapes, and Python's separators. */
static struct value filter_tojson(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys", NULL};
    char pad[WIDEST_INDENT + 1] = "";
    if (!jinja_args_check(r, a, 0, 4, names)) return v;
    const struct value *indent = jinja_arg(a, 1, "indent"), *separators = jinja_arg(a, 2, "separators");
    struct json_style style = {.ascii = jinja_arg_truth(a, 0, "ensure_ascii", false),
                               .sort = jinja_arg_truth(a, 3, "sort_keys", false),
                               .pretty = indent && indent->kind != V_NONE,
                               .indent = pad,
                               .colon = ": "};
    style.comma = style.pretty ? "," : ", ";
    if (style.pretty && !indent_text(r, indent, pad)) return v;
    if (separators && separators->kind != V_NONE) {
        const struct list *l = separators->kind == V_LIST ? separators->list : NULL;
        if (!l || l->count != 2 || l->items[0].kind != V_STRING || l->items[1].kind != V_STRING)
            return jinja_fail(r, "tojson wants two strings for separators");
        style.comma = jinja_string(r, l->items[0].text, l->items[0].len).text;
        style.colon = jinja_string(r, l->items[1].text, l->items[1].len).text;
    }
    struct text t = {0};
    jinja_dump(r, &t, &v, &style, 0);
    return jinja_text(r, &t);
}

/* The whole of v as a number in Python's notation; true and *x, else false. */
static bool parse_number(struct render *r, const struct value *v, bool whole, double *x, int64_t *i) {
    struct value s = jinja_strip(r, *v, NULL, true, true);
    char b[64];
    size_t n = 0, digits = 0;
    if (s.len >= sizeof b) return false;
    for (size_t k = 0; k < s.len; k++) {
        bool digit = s.text[k] >= '0' && s.text[k] <= '9';
        bool between = k && k + 1 < s.len && s.text[k - 1] >= '0' && s.text[k - 1] <= '9';
        digits += digit;
        if (s.text[k] == '_' && between && s.text[k + 1] >= '0' && s.text[k + 1] <= '9') continue;
        if (!digit && !strchr(whole ? "+-" : "+-.eE", s.text[k])) return false;
        b[n++] = s.text[k];
    }
    b[n] = 0;
    char *end;
    errno = 0;
    if (whole)
        *i = strtoll(b, &end, 10);
    else
        *x = strtod(b, &end);
    return digits > 0 && *end == 0 && !(whole && errno == ERANGE);
}

static struct value to_int(struct value otherwise, double x) {
    return x == x && fabs(x) < 0x1p63 ? jinja_int((int64_t)x) : otherwise;
}

static struct value filter_int(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"default", "base", NULL};
    int64_t i, base;
    double x;
    if (!jinja_args_check(r, a, 0, 2, names) || !jinja_arg_whole(r, a, 1, "base", 10, &base)) return v;
    const struct value *given = jinja_arg(a, 0, "default");
    struct value otherwise = given ? *given : jinja_int(0);
    if (base != 10) return jinja_fail(r, "int with another base than 10 is not supported");
    if (v.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so int cannot use it", v.text);
    if (jinja_whole(&v, &i)) return jinja_int(i);
    if (v.kind == V_FLOAT) return to_int(otherwise, v.real);
    if (v.kind != V_STRING) return otherwise;
    if (parse_number(r, &v, true, &x, &i)) return jinja_int(i);
    return parse_number(r, &v, false, &x, &i) ? to_int(otherwise, x) : otherwise;
}

static struct value filter_float(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"default", NULL};
    double x;
    int64_t i;
    if (!jinja_args_check(r, a, 0, 1, names)) return v;
    const struct value *given = jinja_arg(a, 0, "default");
    if (v.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so float cannot use it", v.text);
    if (jinja_number(&v, &x)) return jinja_float(x);
    if (v.kind == V_STRING && parse_number(r, &v, false, &x, &i)) return jinja_float(x);
    return given ? *given : jinja_float(0);
}

static struct value filter_abs(struct render *r, struct value v, const struct args *a) {
    int64_t i;
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (v.kind == V_FLOAT) return jinja_float(fabs(v.real));
    if (!jinja_whole(&v, &i)) return jinja_fail(r, "abs of %s", jinja_kind_name(&v));
    if (i == INT64_MIN) return jinja_fail(r, "an integer grew beyond 64 bits");
    return jinja_int(i < 0 ? -i : i);
}

/* Half goes to the even digit of the exact binary value, as the C library prints it. */
static struct value filter_round(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"precision", "method", NULL};
    int64_t digits, i;
    double x;
    char b[400];
    if (!jinja_args_check(r, a, 0, 2, names) || !jinja_arg_whole(r, a, 0, "precision", 0, &digits)) return v;
    const struct value *method = jinja_arg(a, 1, "method");
    bool common = !method || jinja_is_text(method, "common"), ceiling = method && jinja_is_text(method, "ceil");
    if (!common && !ceiling && !jinja_is_text(method, "floor"))
        return jinja_fail(r, "round wants common, ceil or floor");
    if (!jinja_number(&v, &x)) return jinja_fail(r, "round of %s", jinja_kind_name(&v));
    if (digits < 0 || digits > 15) return jinja_fail(r, "round to %lld digits is not supported", (long long)digits);
    if (common && jinja_whole(&v, &i)) return jinja_int(i);
    if (x != x || isinf(x)) return jinja_float(x);
    if (!common) {
        double scale = pow(10, (double)digits);
        return jinja_float((ceiling ? ceil(x * scale) : floor(x * scale)) / scale);
    }
    snprintf(b, sizeof b, "%.*f", (int)digits, x);
    return jinja_float(strtod(b, NULL));
}

static struct value filter_escape(struct render *r, struct value v, bool force) {
    if (v.kind == V_STRING && v.markup && !force) return v;
    struct text t = {0};
    v = jinja_to_string(r, v);
    if (jinja_failed(r) || !jinja_step(r, v.len / 16)) return v;
    jinja_escape(&t, v.text, v.len);
    v = jinja_text(r, &t);
    v.markup = true;
    return v;
}

/* Filters without arguments that take anything as a string. */
static struct value plain_filter(struct render *r, const char *name, struct value v, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (strcmp(name, "e") == 0 || strcmp(name, "escape") == 0) return filter_escape(r, v, false);
    if (strcmp(name, "forceescape") == 0) return filter_escape(r, v, true);
    v = jinja_to_string(r, v);
    if (jinja_failed(r)) return v;
    if (strcmp(name, "upper") == 0) return jinja_recase(r, v, CASE_UPPER);
    if (strcmp(name, "lower") == 0) return jinja_recase(r, v, CASE_LOWER);
    if (strcmp(name, "title") == 0) return jinja_recase(r, v, CASE_WORDS);
    if (strcmp(name, "capitalize") == 0) return jinja_recase(r, v, CASE_CAPITAL);
    if (strcmp(name, "safe") == 0) v.markup = true;
    return v;
}

struct filter {
    const char *name;
    struct value (*apply)(struct render *r, struct value v, const struct args *a);
};
static const struct filter filters[] = {
    {"default", filter_default}, {"d", filter_default},     {"trim", filter_trim}, {"replace", filter_replace},
    {"indent", filter_indent},   {"tojson", filter_tojson}, {"int", filter_int},   {"float", filter_float},
    {"abs", filter_abs},         {"round", filter_round},
};
static const char *const plain_filters[] = {"upper", "lower", "title",  "capitalize", "string",
                                            "safe",  "e",     "escape", "forceescape"};

static const struct filter *find_filter(const char *name) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strcmp(filters[i].name, name) == 0) return &filters[i];
    return NULL;
}

static bool is_plain(const char *name) {
    for (size_t i = 0; i < sizeof plain_filters / sizeof *plain_filters; i++)
        if (strcmp(plain_filters[i], name) == 0) return true;
    return false;
}

bool jinja_filter_known(const char *name) {
    return find_filter(name) || is_plain(name) || jinja_list_filter_known(name);
}

struct value jinja_filter(struct render *r, const char *name, struct value v, const struct args *a) {
    const struct filter *f = find_filter(name);
    if (f) return f->apply(r, v, a);
    if (is_plain(name)) return plain_filter(r, name, v, a);
    if (jinja_list_filter_known(name)) return jinja_list_filter(r, name, v, a);
    return jinja_fail(r, "the filter %.60s is not supported", name);
}

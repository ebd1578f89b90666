/* What can follow `is`. */
#include <math.h>
#include <string.h>

#include "data/jinja_parts.h"

enum test {
    IS_DEFINED,
    IS_UNDEFINED,
    IS_NONE,
    IS_BOOLEAN,
    IS_TRUE,
    IS_FALSE,
    IS_INTEGER,
    IS_FLOAT,
    IS_NUMBER,
    IS_STRING,
    IS_MAPPING,
    IS_ITERABLE,
    IS_SEQUENCE,
    IS_CALLABLE,
    IS_ODD,
    IS_EVEN,
    IS_UPPER,
    IS_LOWER,
    IS_ESCAPED,
    IS_FILTER,
    IS_TEST,
    IS_DIVISIBLE,
    IS_EQUAL,
    IS_UNEQUAL,
    IS_LESS,
    IS_AT_MOST,
    IS_GREATER,
    IS_AT_LEAST,
    IS_IN,
    IS_SAME,
};

static const struct {
    const char *name;
    enum test test;
} tests[] = {
    {"defined", IS_DEFINED},   {"undefined", IS_UNDEFINED},
    {"none", IS_NONE},         {"boolean", IS_BOOLEAN},
    {"true", IS_TRUE},         {"false", IS_FALSE},
    {"integer", IS_INTEGER},   {"float", IS_FLOAT},
    {"number", IS_NUMBER},     {"string", IS_STRING},
    {"mapping", IS_MAPPING},   {"iterable", IS_ITERABLE},
    {"sequence", IS_SEQUENCE}, {"callable", IS_CALLABLE},
    {"odd", IS_ODD},           {"even", IS_EVEN},
    {"upper", IS_UPPER},       {"lower", IS_LOWER},
    {"escaped", IS_ESCAPED},   {"filter", IS_FILTER},
    {"test", IS_TEST},         {"divisibleby", IS_DIVISIBLE},
    {"eq", IS_EQUAL},          {"equalto", IS_EQUAL},
    {"==", IS_EQUAL},          {"ne", IS_UNEQUAL},
    {"!=", IS_UNEQUAL},        {"lt", IS_LESS},
    {"lessthan", IS_LESS},     {"<", IS_LESS},
    {"le", IS_AT_MOST},        {"<=", IS_AT_MOST},
    {"gt", IS_GREATER},        {"greaterthan", IS_GREATER},
    {">", IS_GREATER},         {"ge", IS_AT_LEAST},
    {">=", IS_AT_LEAST},       {"in", IS_IN},
    {"sameas", IS_SAME},
};

static int find_test(const char *name) {
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (strcmp(tests[i].name, name) == 0) return (int)tests[i].test;
    return -1;
}

bool jinja_test_known(const char *name) { return find_test(name) >= 0; }

static bool is_iterable(const struct value *v) {
    return v->kind == V_STRING || v->kind == V_LIST || v->kind == V_DICT || v->kind == V_UNDEFINED || v->kind == V_LOOP;
}

/* Has a length and an index. */
static bool is_sequence(const struct value *v) {
    if (v->kind == V_LIST) return v->list->kind <= LIST_RANGE;
    return v->kind == V_STRING || v->kind == V_DICT || v->kind == V_UNDEFINED;
}

static bool remainder_is(struct render *r, struct value v, struct value by, int64_t want) {
    struct value rest = jinja_binary(r, "%", v, by), wanted = jinja_int(want);
    return !jinja_failed(r) && jinja_equal(r, &rest, &wanted);
}

static bool has_case(struct render *r, struct value v, const char *method) {
    struct value s = jinja_to_string(r, v);
    struct method m = {s, method};
    struct args none = {.of = method};
    if (jinja_failed(r)) return false;
    s = jinja_method(r, &m, &none);
    return jinja_truth(&s);
}

static bool is_name_of(struct render *r, const struct value *v, bool (*known)(const char *)) {
    return v->kind == V_STRING && known(jinja_string(r, v->text, v->len).text);
}

/* The same object. Equal strings and numbers count as one, as Python keeps short ones once. */
static bool same(struct render *r, const struct value *a, const struct value *b) {
    if (a->kind != b->kind) return false;
    if (a->kind == V_LIST) return a->list == b->list;
    return a->kind == V_DICT ? a->dict == b->dict : jinja_equal(r, a, b);
}

static bool binary_test(struct render *r, enum test test, const struct value *v, const struct value *b) {
    switch (test) {
    case IS_DIVISIBLE:
        return remainder_is(r, *v, *b, 0);
    case IS_EQUAL:
        return jinja_equal(r, v, b);
    case IS_UNEQUAL:
        return !jinja_equal(r, v, b);
    case IS_LESS:
        return jinja_order(r, v, b) < 0;
    case IS_AT_MOST:
        return jinja_order(r, v, b) <= 0;
    case IS_GREATER:
        return jinja_order(r, v, b) > 0;
    case IS_AT_LEAST:
        return jinja_order(r, v, b) >= 0;
    case IS_IN:
        return jinja_contains(r, b, v);
    default:
        return same(r, v, b);
    }
}

bool jinja_test(struct render *r, const char *name, struct value v, const struct args *a) {
    int test = find_test(name);
    if (test < 0) return jinja_fail(r, "the test %.60s is not supported", name), false;
    size_t want = test >= IS_DIVISIBLE;
    if (!jinja_args_check(r, a, want, want, NULL)) return false;
    switch ((enum test)test) {
    case IS_DEFINED:
        return v.kind != V_UNDEFINED;
    case IS_UNDEFINED:
        return v.kind == V_UNDEFINED;
    case IS_NONE:
        return v.kind == V_NONE;
    case IS_BOOLEAN:
        return v.kind == V_BOOLEAN;
    case IS_TRUE:
        return v.kind == V_BOOLEAN && v.truth;
    case IS_FALSE:
        return v.kind == V_BOOLEAN && !v.truth;
    case IS_INTEGER:
        return v.kind == V_INTEGER;
    case IS_FLOAT:
        return v.kind == V_FLOAT;
    case IS_NUMBER:
        return v.kind == V_INTEGER || v.kind == V_FLOAT || v.kind == V_BOOLEAN;
    case IS_STRING:
        return v.kind == V_STRING;
    case IS_MAPPING:
        return v.kind == V_DICT;
    case IS_ITERABLE:
        return is_iterable(&v);
    case IS_SEQUENCE:
        return is_sequence(&v);
    case IS_CALLABLE:
        return v.kind == V_MACRO || v.kind == V_METHOD || v.kind == V_FUNCTION || v.kind == V_UNDEFINED;
    case IS_ODD:
        return remainder_is(r, v, jinja_int(2), 1);
    case IS_EVEN:
        return remainder_is(r, v, jinja_int(2), 0);
    case IS_UPPER:
        return has_case(r, v, "isupper");
    case IS_LOWER:
        return has_case(r, v, "islower");
    case IS_ESCAPED:
        return v.kind == V_STRING && v.markup;
    case IS_FILTER:
        return is_name_of(r, &v, jinja_filter_known);
    case IS_TEST:
        return is_name_of(r, &v, jinja_test_known);
    default:
        return binary_test(r, (enum test)test, &v, &a->at[0]);
    }
}

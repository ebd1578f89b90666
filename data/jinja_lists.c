/* Filters that go through the elements of a value. */
#include <stdlib.h>
#include <string.h>

#include "data/jinja_parts.h"

/* The value at a path such as "function.name" or 0, each step an element or an attribute. path none: v itself. */
static struct value follow(struct render *r, struct value v, const struct value *path) {
    if (!path || path->kind == V_NONE) return v;
    if (path->kind != V_STRING) return jinja_getitem(r, v, *path);
    const char *at = path->text, *end = at + path->len;
    for (bool more = true; more && jinja_step(r, 1);) {
        const char *dot = memchr(at, '.', (size_t)(end - at)), *stop = dot ? dot : end;
        struct value key = {.kind = V_STRING, .text = at, .len = (size_t)(stop - at)};
        size_t digits = strspn(at, "0123456789");
        if (key.len && key.len < 10 && digits >= key.len) key = jinja_int(strtoll(at, NULL, 10));
        v = jinja_getitem(r, v, key);
        more = dot != NULL;
        at = stop + more;
    }
    return v;
}

/* Strings without their case, unless it counts. */
static struct value fold(struct render *r, struct value v, bool case_sensitive) {
    return v.kind == V_STRING && !case_sensitive ? jinja_recase(r, v, CASE_LOWER) : v;
}

static struct value filter_first(struct render *r, struct value v, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (v.kind == V_STRING && v.len) return jinja_getitem(r, v, jinja_int(0));
    if (v.kind == V_LIST && v.list->kind == LIST_GENERATOR && v.list->count) { // takes one, leaves the rest
        v.list->count--;
        return *v.list->items++;
    }
    const struct list *l = jinja_elements(r, v);
    return l && l->count ? l->items[0] : jinja_undefined("the first element of nothing");
}

static struct value filter_last(struct render *r, struct value v, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (v.kind == V_LIST && v.list->kind == LIST_GENERATOR) return jinja_fail(r, "last of a generator");
    if (v.kind == V_STRING && v.len) return jinja_getitem(r, v, jinja_int(-1));
    const struct list *l = jinja_elements(r, v);
    return l && l->count ? l->items[l->count - 1] : jinja_undefined("the last element of nothing");
}

static struct value filter_length(struct render *r, struct value v, const struct args *a) {
    return jinja_args_check(r, a, 0, 0, NULL) ? jinja_int((int64_t)jinja_length(r, &v)) : v;
}

/* All elements as a new list of this kind, backwards if asked. */
static struct value collect(struct render *r, struct value v, enum list_kind kind, bool backwards) {
    const struct list *all = jinja_elements(r, v);
    if (!all) return jinja_none();
    struct list *l = jinja_list_new(r, kind, all->count);
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++)
        jinja_list_add(r, l, all->items[backwards ? all->count - 1 - i : i]);
    return jinja_list_value(l);
}

static struct value filter_list(struct render *r, struct value v, const struct args *a) {
    return jinja_args_check(r, a, 0, 0, NULL) ? collect(r, v, LIST_PLAIN, false) : v;
}

static struct value filter_reverse(struct render *r, struct value v, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (v.kind != V_STRING) return collect(r, v, LIST_GENERATOR, true);
    const struct value part[3] = {jinja_none(), jinja_none(), jinja_int(-1)};
    return jinja_slice(r, v, part);
}

static struct value filter_join(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"d", "attribute", NULL};
    if (!jinja_args_check(r, a, 0, 2, names)) return v;
    const struct value *glue = jinja_arg(a, 0, "d"), *path = jinja_arg(a, 1, "attribute");
    const struct list *all = jinja_elements(r, v);
    if (!all) return v;
    struct list *l = jinja_list_new(r, LIST_PLAIN, all->count);
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++) jinja_list_add(r, l, follow(r, all->items[i], path));
    struct value s = glue ? jinja_to_string(r, *glue) : jinja_literal("");
    return jinja_failed(r) ? v : jinja_join(r, s, l, true);
}

static struct value filter_items(struct render *r, struct value v, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL)) return v;
    if (v.kind == V_UNDEFINED) return jinja_list_value(jinja_list_new(r, LIST_GENERATOR, 0));
    if (v.kind != V_DICT) return jinja_fail(r, "items wants a dict, found %s", jinja_kind_name(&v));
    struct method m = {v, "items"};
    v = jinja_method(r, &m, a);
    return jinja_failed(r) ? v : collect(r, v, LIST_GENERATOR, false);
}

/* The arguments from i on, for the filter or test that is called with each element. */
static struct args rest_of(const struct args *a, size_t i, const char *of) {
    struct args rest = *a;
    rest.of = of;
    rest.at = a->at + i;
    rest.count = a->count - i;
    return rest;
}

/* The name in argument i as a C string; NULL with the error set. */
static const char *name_at(struct render *r, const struct args *a, size_t i) {
    if (a->count > i && a->at[i].kind == V_STRING) return jinja_string(r, a->at[i].text, a->at[i].len).text;
    jinja_fail(r, "%s wants a name as argument %zu", a->of, i + 1);
    return NULL;
}

static struct value filter_map(struct render *r, struct value v, const struct args *a) {
    const struct value *path = jinja_arg(a, SIZE_MAX, "attribute"), *otherwise = jinja_arg(a, SIZE_MAX, "default");
    const struct list *all = jinja_elements(r, v);
    struct list *l = jinja_list_new(r, LIST_GENERATOR, all ? all->count : 0);
    bool by_path = path && a->count == 0;
    const char *name = by_path ? "" : name_at(r, a, 0);
    if (!all || !name) return v;
    if (!by_path && !jinja_filter_known(name)) return jinja_fail(r, "the filter %.60s is not supported", name);
    struct args rest = rest_of(a, by_path ? 0 : 1, name);
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++) {
        struct value one = all->items[i];
        if (jinja_enter(r)) one = by_path ? follow(r, one, path) : jinja_filter(r, name, one, &rest);
        r->depth--;
        if (by_path && otherwise && one.kind == V_UNDEFINED) one = *otherwise;
        jinja_list_add(r, l, one);
    }
    return jinja_list_value(l);
}

/* select and reject look at the element, selectattr and rejectattr at what its path leads to; without the name of a
 * test at whether it is true. */
static struct value pick(struct render *r, struct value v, const struct args *a, bool attribute, bool wanted) {
    const struct list *all = jinja_elements(r, v);
    if (!all) return v;
    if (attribute && a->count == 0) return jinja_fail(r, "%s wants the name of an attribute", a->of);
    struct list *l = jinja_list_new(r, LIST_GENERATOR, 0);
    const char *test = a->count > attribute ? name_at(r, a, attribute) : NULL;
    if (jinja_failed(r)) return v;
    if (test && !jinja_test_known(test)) return jinja_fail(r, "the test %.60s is not supported", test);
    struct args rest = rest_of(a, test ? attribute + 1u : a->count, test ? test : a->of);
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++) {
        struct value one = attribute ? follow(r, all->items[i], &a->at[0]) : all->items[i];
        if (jinja_failed(r)) break;
        bool passes = test ? jinja_test(r, test, one, &rest) : jinja_truth(&one);
        if (passes == wanted) jinja_list_add(r, l, all->items[i]);
    }
    return jinja_list_value(l);
}

static struct value filter_select(struct render *r, struct value v, const struct args *a) {
    return pick(r, v, a, false, true);
}
static struct value filter_reject(struct render *r, struct value v, const struct args *a) {
    return pick(r, v, a, false, false);
}
static struct value filter_selectattr(struct render *r, struct value v, const struct args *a) {
    return pick(r, v, a, true, true);
}
static struct value filter_rejectattr(struct render *r, struct value v, const struct args *a) {
    return pick(r, v, a, true, false);
}

/* Sorts by key, keeping the order of equal ones; into and from change places at each doubling of the runs. */
static struct pair *merge_sort(struct render *r, struct pair *from, size_t n, bool backwards) {
    struct pair *into = jinja_room(r, n * sizeof *into);
    if (!into) return from;
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t start = 0; start < n; start += 2 * run) {
            size_t middle = start + run < n ? start + run : n, end = start + 2 * run < n ? start + 2 * run : n;
            for (size_t i = start, j = middle, to = start; to < end; to++) {
                bool right = i == middle;
                if (i < middle && j < end && jinja_step(r, 1)) {
                    int order = jinja_order(r, &from[j].key, &from[i].key);
                    right = backwards ? order > 0 : order < 0;
                }
                into[to] = right ? from[j++] : from[i++];
            }
        }
        struct pair *sorted = into;
        into = from;
        from = sorted;
    }
    return from;
}

/* The key of v to sort by: a tuple of what the paths, parted by commas, lead to. */
static struct value sort_key(struct render *r, struct value v, const struct value *path, bool case_sensitive) {
    if (!path || path->kind != V_STRING) return fold(r, follow(r, v, path), case_sensitive);
    struct list *key = jinja_list_new(r, LIST_TUPLE, 0);
    const char *at = path->text, *end = at + path->len;
    for (bool more = true; more && jinja_step(r, 1);) {
        const char *comma = memchr(at, ',', (size_t)(end - at)), *stop = comma ? comma : end;
        struct value one = jinja_string(r, at, (size_t)(stop - at));
        jinja_list_add(r, key, fold(r, follow(r, v, &one), case_sensitive));
        more = comma != NULL;
        at = stop + more;
    }
    return jinja_list_value(key);
}

static struct value filter_sort(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"reverse", "case_sensitive", "attribute", NULL};
    if (!jinja_args_check(r, a, 0, 3, names)) return v;
    bool backwards = jinja_arg_truth(a, 0, "reverse", false),
         sensitive = jinja_arg_truth(a, 1, "case_sensitive", false);
    const struct list *all = jinja_elements(r, v);
    struct pair *pairs = all ? jinja_room(r, all->count * sizeof *pairs) : NULL;
    if (!pairs) return v;
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++)
        pairs[i] = (struct pair){sort_key(r, all->items[i], jinja_arg(a, 2, "attribute"), sensitive), all->items[i]};
    if (jinja_failed(r)) return v;
    pairs = merge_sort(r, pairs, all->count, backwards);
    struct list *l = jinja_list_new(r, LIST_PLAIN, all->count);
    for (size_t i = 0; i < all->count && !jinja_failed(r); i++) jinja_list_add(r, l, pairs[i].value);
    return jinja_list_value(l);
}

static struct value filter_dictsort(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"case_sensitive", "by", "reverse", NULL};
    if (!jinja_args_check(r, a, 0, 3, names)) return v;
    if (v.kind != V_DICT) return jinja_fail(r, "dictsort wants a dict, found %s", jinja_kind_name(&v));
    const struct value *by = jinja_arg(a, 1, "by");
    bool sensitive = jinja_arg_truth(a, 0, "case_sensitive", false), values = by && jinja_is_text(by, "value");
    if (by && !values && !jinja_is_text(by, "key")) return jinja_fail(r, "dictsort sorts by key or value");
    size_t n = v.dict->count;
    struct pair *pairs = jinja_room(r, n * sizeof *pairs);
    if (!pairs) return v;
    for (size_t i = 0; i < n && jinja_step(r, 1); i++) {
        struct list *both = jinja_list_new(r, LIST_TUPLE, 2);
        jinja_list_add(r, both, v.dict->pairs[i].key);
        jinja_list_add(r, both, v.dict->pairs[i].value);
        pairs[i] = (struct pair){fold(r, values ? v.dict->pairs[i].value : v.dict->pairs[i].key, sensitive),
                                 jinja_list_value(both)};
    }
    pairs = merge_sort(r, pairs, n, jinja_arg_truth(a, 2, "reverse", false));
    struct list *l = jinja_list_new(r, LIST_PLAIN, n);
    for (size_t i = 0; i < n && !jinja_failed(r); i++) jinja_list_add(r, l, pairs[i].value);
    return jinja_list_value(l);
}

static struct value filter_unique(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    if (!jinja_args_check(r, a, 0, 2, names)) return v;
    bool sensitive = jinja_arg_truth(a, 0, "case_sensitive", false);
    const struct list *all = jinja_elements(r, v);
    struct list *l = jinja_list_new(r, LIST_GENERATOR, 0), *seen = jinja_list_new(r, LIST_PLAIN, 0);
    struct value keys = jinja_list_value(seen);
    for (size_t i = 0; all && i < all->count && jinja_step(r, 1); i++) {
        struct value key = fold(r, follow(r, all->items[i], jinja_arg(a, 1, "attribute")), sensitive);
        if (jinja_failed(r) || jinja_contains(r, &keys, &key)) continue;
        jinja_list_add(r, seen, key);
        jinja_list_add(r, l, all->items[i]);
    }
    return jinja_list_value(l);
}

static struct value extreme(struct render *r, struct value v, const struct args *a, int sign) {
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    if (!jinja_args_check(r, a, 0, 2, names)) return v;
    bool sensitive = jinja_arg_truth(a, 0, "case_sensitive", false);
    const struct list *all = jinja_elements(r, v);
    struct value best = jinja_undefined("the least or greatest of nothing"), best_key = best;
    for (size_t i = 0; all && i < all->count && jinja_step(r, 1); i++) {
        struct value key = fold(r, follow(r, all->items[i], jinja_arg(a, 1, "attribute")), sensitive);
        if (i && (jinja_failed(r) || sign * jinja_order(r, &key, &best_key) <= 0)) continue;
        best = all->items[i];
        best_key = key;
    }
    return best;
}

static struct value filter_min(struct render *r, struct value v, const struct args *a) { return extreme(r, v, a, -1); }
static struct value filter_max(struct render *r, struct value v, const struct args *a) { return extreme(r, v, a, 1); }

static struct value filter_sum(struct render *r, struct value v, const struct args *a) {
    static const char *const names[] = {"attribute", "start", NULL};
    if (!jinja_args_check(r, a, 0, 2, names)) return v;
    const struct value *start = jinja_arg(a, 1, "start");
    const struct list *all = jinja_elements(r, v);
    struct value total = start ? *start : jinja_int(0);
    if (total.kind == V_STRING) return jinja_fail(r, "sum of strings; join joins them");
    for (size_t i = 0; all && i < all->count && jinja_step(r, 1); i++)
        total = jinja_binary(r, "+", total, follow(r, all->items[i], jinja_arg(a, 0, "attribute")));
    return total;
}

static const struct {
    const char *name;
    struct value (*apply)(struct render *r, struct value v, const struct args *a);
} filters[] = {
    {"first", filter_first},
    {"last", filter_last},
    {"length", filter_length},
    {"count", filter_length},
    {"list", filter_list},
    {"reverse", filter_reverse},
    {"join", filter_join},
    {"items", filter_items},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
    {"sort", filter_sort},
    {"dictsort", filter_dictsort},
    {"unique", filter_unique},
    {"min", filter_min},
    {"max", filter_max},
    {"sum", filter_sum},
};

bool jinja_list_filter_known(const char *name) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strcmp(filters[i].name, name) == 0) return true;
    return false;
}

struct value jinja_list_filter(struct render *r, const char *name, struct value v, const struct args *a) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strcmp(filters[i].name, name) == 0) return filters[i].apply(r, v, a);
    return v;
}

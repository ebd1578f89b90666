/* Attributes, indices and slices. `a.b` looks for an attribute first and for a key second, `a['b']` the other way. */
#include <string.h>

#include "data/jinja_parts.h"

/* Named so in the error that follows when the value is used. */
static struct value missing(struct render *r, const struct value *v, const char *name, size_t n) {
    const char *kind = jinja_kind_name(v);
    if (n > 80) n = 80;
    struct text t = {0};
    text_add_n(&t, name, n);
    text_addf(&t, " of %s", kind);
    struct value text = jinja_text(r, &t);
    return jinja_undefined(text.text);
}

static struct value loop_attribute(struct render *r, const struct value *v, const char *name) {
    const struct loop *l = v->loop;
    if (strcmp(name, "index") == 0) return jinja_int(l->index + 1);
    if (strcmp(name, "index0") == 0) return jinja_int(l->index);
    if (strcmp(name, "first") == 0) return jinja_bool(l->index == 0);
    if (strcmp(name, "last") == 0) return jinja_bool(l->index + 1 >= l->count);
    if (strcmp(name, "length") == 0) return jinja_int(l->count);
    if (strcmp(name, "revindex") == 0) return jinja_int(l->count - l->index);
    if (strcmp(name, "revindex0") == 0) return jinja_int(l->count - l->index - 1);
    if (strcmp(name, "depth") == 0) return jinja_int(1);
    if (strcmp(name, "depth0") == 0) return jinja_int(0);
    if (strcmp(name, "previtem") == 0)
        return l->index > 0 ? l->items[l->index - 1] : jinja_undefined("loop.previtem of the first turn");
    if (strcmp(name, "nextitem") == 0)
        return l->index + 1 < l->count ? l->items[l->index + 1] : jinja_undefined("loop.nextitem of the last turn");
    if (strcmp(name, "changed") == 0) return jinja_fail(r, "loop.changed is not supported");
    return missing(r, v, name, strlen(name));
}

static bool attribute(struct render *r, const struct value *v, const char *name, struct value *out) {
    if (v->kind == V_NAMESPACE) {
        const struct value *found = jinja_dict_find(v->dict, name);
        if (found) *out = *found;
        return found != NULL;
    }
    if (v->kind == V_MACRO && strcmp(name, "name") == 0) return *out = jinja_literal(v->macro->node->text), true;
    if (!jinja_method_known(v, name)) return false;
    struct method *m = jinja_alloc(&r->pool, sizeof *m);
    *m = (struct method){*v, name};
    *out = (struct value){.kind = V_METHOD, .method = m};
    return true;
}

struct value jinja_getattr(struct render *r, struct value v, const char *name) {
    struct value out;
    if (v.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so it has no attribute %s", v.text, name);
    if (attribute(r, &v, name, &out)) return out;
    if (v.kind == V_LOOP) return loop_attribute(r, &v, name);
    const struct value *found = v.kind == V_DICT ? jinja_dict_find(v.dict, name) : NULL;
    return found ? *found : missing(r, &v, name, strlen(name));
}

/* Bytes from s to the n-th code point. */
static size_t rune_offset(const struct value *s, size_t n) {
    size_t at = 0;
    for (int len; n > 0 && at < s->len; n--) {
        utf8_rune(s->text + at, &len);
        at += (size_t)len;
    }
    return at;
}

static struct value substring(const struct value *s, size_t from, size_t count) {
    size_t start = rune_offset(s, from);
    struct value rest = {.kind = V_STRING, .text = s->text + start, .len = s->len - start};
    rest.len = rune_offset(&rest, count);
    rest.markup = s->markup;
    return rest;
}

static bool has_order(const struct value *v) {
    return v->kind == V_STRING || (v->kind == V_LIST && v->list->kind <= LIST_RANGE);
}

struct value jinja_getitem(struct render *r, struct value v, struct value key) {
    struct value out;
    int64_t i;
    if (v.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so it has no elements", v.text);
    if (v.kind == V_DICT) {
        const struct value *found = jinja_dict_get(r, v.dict, &key);
        if (found) return *found;
    }
    if (has_order(&v) && jinja_whole(&key, &i)) {
        int64_t n = (int64_t)jinja_length(r, &v);
        if (i < 0) i += n;
        if (i >= 0 && i < n) return v.kind == V_STRING ? substring(&v, (size_t)i, 1) : v.list->items[i];
        return missing(r, &v, "an element beyond the end", 25);
    }
    if (key.kind != V_STRING) return missing(r, &v, "an element", 10);
    struct value name = jinja_string(r, key.text, key.len);
    if (strlen(name.text) == key.len && attribute(r, &v, name.text, &out)) return out;
    if (v.kind == V_LOOP) return loop_attribute(r, &v, name.text);
    return missing(r, &v, key.text, key.len);
}

/* One bound of a slice over n elements, between lowest and highest; `otherwise` when it is left out. */
static bool bound(struct render *r, const struct value *part, int64_t n, int64_t lowest, int64_t highest,
                  int64_t otherwise, int64_t *out) {
    *out = otherwise;
    if (part->kind == V_NONE) return true;
    if (!jinja_whole(part, out)) return jinja_fail(r, "%s as the bound of a slice", jinja_kind_name(part)), false;
    if (*out < 0) *out += n;
    if (*out < lowest) *out = lowest;
    if (*out > highest) *out = highest;
    return true;
}

/* Every step-th code point or element from..to, as Python counts. */
struct value jinja_slice(struct render *r, struct value v, const struct value part[3]) {
    int64_t step = 1, from, to;
    if (v.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so it has no elements", v.text);
    if (!has_order(&v)) return missing(r, &v, "a slice", 7);
    if (part[2].kind != V_NONE && !jinja_whole(&part[2], &step))
        return jinja_fail(r, "%s as the step of a slice", jinja_kind_name(&part[2]));
    if (step == 0) return jinja_fail(r, "a slice with step 0");
    int64_t n = (int64_t)jinja_length(r, &v), low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    if (!bound(r, &part[0], n, low, high, step < 0 ? high : low, &from)) return jinja_none();
    if (!bound(r, &part[1], n, low, high, step < 0 ? low : high, &to)) return jinja_none();
    if (v.kind == V_STRING && step == 1) return substring(&v, (size_t)from, to > from ? (size_t)(to - from) : 0);
    if (step > n) step = n + 1;
    if (step < -n) step = -n - 1;
    const struct list *all = jinja_elements(r, v);
    struct list *l = jinja_list_new(r, v.kind == V_LIST ? v.list->kind : LIST_PLAIN, 0);
    for (int64_t i = from; all && (step > 0 ? i < to : i > to) && jinja_step(r, 1); i += step)
        if (i >= 0 && i < (int64_t)all->count) jinja_list_add(r, l, all->items[i]);
    if (v.kind == V_LIST) return jinja_list_value(l);
    return jinja_join(r, jinja_literal(""), l, true);
}

/* Values: made, compared, counted and printed. Text is UTF-8 throughout; order by bytes is order by code point. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"
#include "data/jinja_parts.h"

struct chunk {
    struct chunk *next;
    size_t used, size;
    _Alignas(16) unsigned char data[];
};

enum { CHUNK_BYTES = 16384 };

void *jinja_alloc(struct pool *p, size_t bytes) {
    size_t n = (bytes + 15) & ~(size_t)15;
    if (!p->chunks || p->chunks->size - p->chunks->used < n) {
        size_t size = n > CHUNK_BYTES ? n : CHUNK_BYTES;
        struct chunk *c = mem_alloc(sizeof *c + size);
        c->size = size;
        c->next = p->chunks;
        p->chunks = c;
        p->bytes += size;
    }
    void *at = p->chunks->data + p->chunks->used;
    p->chunks->used += n;
    return at;
}

void jinja_pool_free(struct pool *p) {
    for (struct chunk *c = p->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *p = (struct pool){0};
}

struct value jinja_fail(struct render *r, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err_set(&r->err, ST_FAIL, "%s: line %d: %s", r->where, r->line, text);
    return jinja_undefined("a failed expression");
}

bool jinja_failed(const struct render *r) { return r->err.code != ST_OK; }

bool jinja_step(struct render *r, size_t n) {
    r->steps += n < JINJA_STEPS ? (int64_t)n : JINJA_STEPS;
    if (r->steps > JINJA_STEPS) jinja_fail(r, "the template runs too long (%d steps)", JINJA_STEPS);
    if (r->pool.bytes > JINJA_BYTES) jinja_fail(r, "the template needs more than %d MiB", JINJA_BYTES >> 20);
    return !jinja_failed(r);
}

bool jinja_enter(struct render *r) {
    if (++r->depth > JINJA_DEPTH) jinja_fail(r, "more than %d calls or values within each other", JINJA_DEPTH);
    return !jinja_failed(r);
}

void *jinja_room(struct render *r, size_t bytes) {
    if (bytes > JINJA_BYTES || r->pool.bytes + bytes > JINJA_BYTES) {
        jinja_fail(r, "the template needs more than %d MiB", JINJA_BYTES >> 20);
        return NULL;
    }
    return jinja_step(r, bytes / 256) ? jinja_alloc(&r->pool, bytes) : NULL;
}

const char *jinja_kind_name(const struct value *v) {
    switch (v->kind) {
    case V_UNDEFINED:
        return "undefined";
    case V_NONE:
        return "none";
    case V_BOOLEAN:
        return "true or false";
    case V_INTEGER:
        return "an integer";
    case V_FLOAT:
        return "a number";
    case V_STRING:
        return "a string";
    case V_DICT:
        return "a dict";
    case V_NAMESPACE:
        return "a namespace";
    case V_MACRO:
        return "a macro";
    case V_METHOD:
        return "a method";
    case V_FUNCTION:
        return "a function";
    case V_LOOP:
        return "the loop";
    default:
        break;
    }
    static const char *const kinds[] = {"a list", "a tuple", "a range", "a view of a dict", "a generator"};
    return kinds[v->list->kind];
}

struct value jinja_literal(const char *s) {
    return (struct value){.kind = V_STRING, .text = s, .len = strlen(s)};
}
struct value jinja_bool(bool b) {
    return (struct value){.kind = V_BOOLEAN, .truth = b};
}
struct value jinja_int(int64_t i) {
    return (struct value){.kind = V_INTEGER, .integer = i};
}
struct value jinja_float(double x) {
    return (struct value){.kind = V_FLOAT, .real = x};
}
struct value jinja_none(void) {
    return (struct value){.kind = V_NONE};
}
struct value jinja_undefined(const char *what) {
    return (struct value){.kind = V_UNDEFINED, .text = what};
}
struct value jinja_list_value(struct list *l) {
    return (struct value){.kind = V_LIST, .list = l};
}

struct value jinja_string(struct render *r, const char *s, size_t n) {
    char *copy = jinja_room(r, n + 1);
    if (!copy) return jinja_literal("");
    memcpy(copy, s, n);
    return (struct value){.kind = V_STRING, .text = copy, .len = n};
}

struct value jinja_text(struct render *r, struct text *t) {
    struct value v = jinja_string(r, text_str(t), t->len);
    text_free(t);
    return v;
}

struct list *jinja_list_new(struct render *r, enum list_kind kind, size_t room) {
    struct list *l = jinja_alloc(&r->pool, sizeof *l);
    l->kind = kind;
    if (room) l->items = jinja_room(r, room * sizeof *l->items);
    l->room = l->items ? room : 0;
    return l;
}

void jinja_list_add(struct render *r, struct list *l, struct value v) {
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 8;
        struct value *items = jinja_room(r, room * sizeof *items);
        if (!items) return;
        if (l->count) memcpy(items, l->items, l->count * sizeof *items);
        l->items = items;
        l->room = room;
    }
    l->items[l->count++] = v;
}

struct dict *jinja_dict_new(struct render *r, size_t room) {
    struct dict *d = jinja_alloc(&r->pool, sizeof *d);
    if (room) d->pairs = jinja_room(r, room * sizeof *d->pairs);
    d->room = d->pairs ? room : 0;
    return d;
}

const struct value *jinja_dict_get(struct render *r, const struct dict *d, const struct value *key) {
    if (!jinja_step(r, d->count / 8)) return NULL;
    for (size_t i = 0; i < d->count; i++)
        if (jinja_equal(r, &d->pairs[i].key, key)) return &d->pairs[i].value;
    return NULL;
}

const struct value *jinja_dict_find(const struct dict *d, const char *key) {
    for (size_t i = 0; i < d->count; i++)
        if (jinja_is_text(&d->pairs[i].key, key)) return &d->pairs[i].value;
    return NULL;
}

void jinja_dict_set(struct render *r, struct dict *d, struct value key, struct value v) {
    bool list = key.kind == V_LIST && key.list->kind != LIST_TUPLE;
    if (list || key.kind == V_DICT || key.kind == V_UNDEFINED) {
        jinja_fail(r, "%s cannot be a key", jinja_kind_name(&key));
        return;
    }
    struct value *old = (struct value *)jinja_dict_get(r, d, &key);
    if (old) {
        *old = v;
        return;
    }
    if (d->count == d->room) {
        size_t room = d->room ? 2 * d->room : 8;
        struct pair *pairs = jinja_room(r, room * sizeof *pairs);
        if (!pairs) return;
        if (d->count) memcpy(pairs, d->pairs, d->count * sizeof *pairs);
        d->pairs = pairs;
        d->room = room;
    }
    d->pairs[d->count++] = (struct pair){key, v};
}

bool jinja_is_text(const struct value *v, const char *s) {
    return v->kind == V_STRING && v->len == strlen(s) && memcmp(v->text, s, v->len) == 0;
}

static struct value json_string(struct render *r, const char *s) {
    struct value v = jinja_literal(s);
    if (!jinja_step(r, v.len / 256) || utf8_valid_prefix(s, v.len) == v.len) return v;
    return jinja_fail(r, "a variable holds a string that is not UTF-8");
}

/* JSON knows one kind of number: one without fraction is an integer here. Strings are not copied. */
struct value jinja_json(struct render *r, const cJSON *j) {
    struct value v = jinja_none();
    if (cJSON_IsBool(j)) return jinja_bool(cJSON_IsTrue(j));
    if (cJSON_IsString(j)) return json_string(r, j->valuestring);
    if (cJSON_IsNumber(j)) {
        double x = j->valuedouble;
        return x == trunc(x) && fabs(x) <= 0x1p53 ? jinja_int((int64_t)x) : jinja_float(x);
    }
    if (!cJSON_IsArray(j) && !cJSON_IsObject(j)) return v;
    if (jinja_enter(r) && cJSON_IsArray(j)) {
        v = jinja_list_value(jinja_list_new(r, LIST_PLAIN, 0));
        for (const cJSON *c = j->child; c && jinja_step(r, 1); c = c->next) jinja_list_add(r, v.list, jinja_json(r, c));
    } else if (!jinja_failed(r)) {
        v = (struct value){.kind = V_DICT, .dict = jinja_dict_new(r, 0)};
        for (const cJSON *c = j->child; c && jinja_step(r, 1); c = c->next)
            jinja_dict_set(r, v.dict, json_string(r, c->string), jinja_json(r, c));
    }
    r->depth--;
    return v;
}

bool jinja_truth(const struct value *v) {
    switch (v->kind) {
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOLEAN:
        return v->truth;
    case V_INTEGER:
        return v->integer != 0;
    case V_FLOAT:
        return v->real != 0;
    case V_STRING:
        return v->len > 0;
    case V_LIST:
        return v->list->count > 0 || v->list->kind == LIST_GENERATOR;
    case V_DICT:
        return v->dict->count > 0;
    default:
        return true;
    }
}

bool jinja_whole(const struct value *v, int64_t *i) {
    *i = v->kind == V_BOOLEAN ? v->truth : v->kind == V_INTEGER ? v->integer : 0;
    return v->kind == V_BOOLEAN || v->kind == V_INTEGER;
}

bool jinja_number(const struct value *v, double *x) {
    int64_t i;
    if (v->kind == V_FLOAT) return *x = v->real, true;
    if (!jinja_whole(v, &i)) return false;
    return *x = (double)i, true;
}

static bool equal_lists(struct render *r, const struct list *a, const struct list *b) {
    if (a->kind != b->kind || a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (!jinja_equal(r, &a->items[i], &b->items[i])) return false;
    return true;
}

static bool equal_dicts(struct render *r, const struct dict *a, const struct dict *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++) {
        const struct value *other = jinja_dict_get(r, b, &a->pairs[i].key);
        if (!other || !jinja_equal(r, &a->pairs[i].value, other)) return false;
    }
    return true;
}

static bool equal_nested(struct render *r, const struct value *a, const struct value *b) {
    bool same = false;
    if (jinja_enter(r) && jinja_step(r, 1))
        same = a->kind == V_LIST ? equal_lists(r, a->list, b->list) : equal_dicts(r, a->dict, b->dict);
    r->depth--;
    return same;
}

bool jinja_equal(struct render *r, const struct value *a, const struct value *b) {
    int64_t i, j;
    double x, y;
    if (jinja_whole(a, &i) && jinja_whole(b, &j)) return i == j;
    if (jinja_number(a, &x) && jinja_number(b, &y)) return x == y;
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case V_UNDEFINED:
    case V_NONE:
        return true;
    case V_STRING:
        return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
    case V_LIST:
    case V_DICT:
        return equal_nested(r, a, b);
    case V_FUNCTION:
        return strcmp(a->text, b->text) == 0;
    default:
        return a->dict == b->dict; // the rest are objects, each equal to itself
    }
}

static int order_bytes(const struct value *a, const struct value *b) {
    size_t n = a->len < b->len ? a->len : b->len;
    int c = memcmp(a->text, b->text, n);
    return c ? c : a->len < b->len ? -1 : a->len > b->len;
}

static int order_lists(struct render *r, const struct list *a, const struct list *b) {
    size_t n = a->count < b->count ? a->count : b->count;
    for (size_t i = 0; i < n && jinja_step(r, 1); i++)
        if (!jinja_equal(r, &a->items[i], &b->items[i])) return jinja_order(r, &a->items[i], &b->items[i]);
    return a->count < b->count ? -1 : a->count > b->count;
}

int jinja_order(struct render *r, const struct value *a, const struct value *b) {
    int64_t i, j;
    double x, y;
    if (jinja_whole(a, &i) && jinja_whole(b, &j)) return i < j ? -1 : i > j;
    if (jinja_number(a, &x) && jinja_number(b, &y)) return x < y ? -1 : x > y;
    if (a->kind == V_STRING && b->kind == V_STRING) return order_bytes(a, b);
    int order = 0;
    if (a->kind == V_LIST && b->kind == V_LIST && a->list->kind == b->list->kind && a->list->kind <= LIST_TUPLE) {
        if (jinja_enter(r)) order = order_lists(r, a->list, b->list);
        r->depth--;
        return order;
    }
    if (a->kind == V_UNDEFINED || b->kind == V_UNDEFINED)
        jinja_fail(r, "'%s' is undefined, so it cannot be compared", (a->kind == V_UNDEFINED ? a : b)->text);
    else
        jinja_fail(r, "%s and %s cannot be put in order", jinja_kind_name(a), jinja_kind_name(b));
    return 0;
}

bool jinja_contains(struct render *r, const struct value *in, const struct value *v) {
    if (in->kind == V_STRING) {
        if (v->kind != V_STRING) {
            jinja_fail(r, "%s is looked for in a string", jinja_kind_name(v));
            return false;
        }
        return jinja_step(r, in->len / 256) && memmem(in->text, in->len, v->text, v->len) != NULL;
    }
    if (in->kind == V_DICT) return jinja_dict_get(r, in->dict, v) != NULL;
    const struct list *l = jinja_elements(r, *in);
    for (size_t i = 0; l && i < l->count && jinja_step(r, 1); i++)
        if (jinja_equal(r, &l->items[i], v)) return true;
    return false;
}

/* The list as it is read once: a generator is empty afterwards. */
const struct list *jinja_elements(struct render *r, struct value v) {
    struct list *l = jinja_list_new(r, LIST_PLAIN, 0);
    if (v.kind == V_LIST) {
        *l = *v.list;
        if (v.list->kind == LIST_GENERATOR) v.list->count = 0;
    } else if (v.kind == V_DICT) {
        for (size_t i = 0; i < v.dict->count && jinja_step(r, 1); i++) jinja_list_add(r, l, v.dict->pairs[i].key);
    } else if (v.kind == V_STRING) {
        for (size_t i = 0; i < v.len && jinja_step(r, 1);) {
            int n;
            utf8_rune(v.text + i, &n);
            jinja_list_add(r, l, (struct value){.kind = V_STRING, .text = v.text + i, .len = (size_t)n});
            i += (size_t)n;
        }
    } else if (v.kind != V_UNDEFINED) {
        jinja_fail(r, "%s has no elements to go through", jinja_kind_name(&v));
        return NULL;
    }
    return l;
}

size_t jinja_runes(const char *s, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xC0) != 0x80;
    return count;
}

size_t jinja_length(struct render *r, const struct value *v) {
    jinja_step(r, v->kind == V_STRING ? v->len / 256 : 0);
    if (v->kind == V_UNDEFINED) return 0;
    if (v->kind == V_STRING) return jinja_runes(v->text, v->len);
    if (v->kind == V_DICT) return v->dict->count;
    if (v->kind == V_LOOP) return (size_t)v->loop->count;
    if (v->kind == V_LIST && v->list->kind != LIST_GENERATOR) return v->list->count;
    jinja_fail(r, "%s has no length", jinja_kind_name(v));
    return 0;
}

bool jinja_space(unsigned c) {
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

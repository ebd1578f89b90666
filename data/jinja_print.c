/* Values as text: as {{ }} prints them, which is what Python prints, and as JSON. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "data/jinja_parts.h"

/* The shortest digits that read back as x, with an exponent below 1e-4 and from 1e16 on. */
static void print_float(struct text *out, double x, const char *inf, const char *nan) {
    if (x != x || isinf(x)) {
        text_addf(out, "%s%s", x < 0 ? "-" : "", x != x ? nan : inf);
        return;
    }
    char b[40];
    int digits = 0;
    do snprintf(b, sizeof b, "%.*e", digits, x);
    while (strtod(b, NULL) != x && digits++ < 17);
    int exponent = (int)strtol(strchr(b, 'e') + 1, NULL, 10);
    if (exponent < -4 || exponent >= 16) {
        text_add(out, b);
        return;
    }
    text_addf(out, "%.*f", digits > exponent ? digits - exponent : 1, x);
}

static bool printable(unsigned rune) {
    if (rune < 0x7F) return rune >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)rune)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

/* A string within a list or dict, in quotes. */
static void print_quoted(struct text *out, const char *s, size_t n) {
    char quote = memchr(s, '\'', n) && !memchr(s, '"', n) ? '"' : '\'';
    text_add_char(out, quote);
    for (size_t i = 0; i < n;) {
        int len;
        unsigned c = utf8_rune(s + i, &len);
        i += (size_t)len;
        if (c == '\n')
            text_add(out, "\\n");
        else if (c == '\t')
            text_add(out, "\\t");
        else if (c == '\r')
            text_add(out, "\\r");
        else if (c == '\\' || c == (unsigned)quote)
            text_addf(out, "\\%c", (char)c);
        else if (printable(c))
            text_add_rune(out, c);
        else
            text_addf(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
    text_add_char(out, quote);
}

static void print_inner(struct render *r, struct text *out, const struct value *v);

static void print_list(struct render *r, struct text *out, const struct list *l) {
    bool tuple = l->kind == LIST_TUPLE;
    text_add_char(out, tuple ? '(' : '[');
    for (size_t i = 0; i < l->count && !jinja_failed(r); i++) {
        if (i) text_add(out, ", ");
        print_inner(r, out, &l->items[i]);
    }
    if (tuple && l->count == 1) text_add_char(out, ',');
    text_add_char(out, tuple ? ')' : ']');
}

static void print_dict(struct render *r, struct text *out, const struct dict *d) {
    text_add_char(out, '{');
    for (size_t i = 0; i < d->count && !jinja_failed(r); i++) {
        if (i) text_add(out, ", ");
        print_inner(r, out, &d->pairs[i].key);
        text_add(out, ": ");
        print_inner(r, out, &d->pairs[i].value);
    }
    text_add_char(out, '}');
}

/* v as an element of a list or dict. */
static void print_inner(struct render *r, struct text *out, const struct value *v) {
    if (v->kind == V_STRING && !v->markup) {
        if (jinja_step(r, 1 + v->len / 64)) print_quoted(out, v->text, v->len);
    } else if (v->kind == V_UNDEFINED || v->kind == V_STRING) {
        jinja_fail(r, "%s within a list or dict is printed, which is not supported",
                   v->kind == V_STRING ? "a safe string" : "an undefined value");
    } else {
        jinja_print(r, out, v);
    }
}

void jinja_print(struct render *r, struct text *out, const struct value *v) {
    if (out->len > JINJA_BYTES || !jinja_step(r, 1 + (v->kind == V_STRING ? v->len / 256 : 0))) {
        jinja_fail(r, "the text grew beyond %d MiB", JINJA_BYTES >> 20);
        return;
    }
    switch (v->kind) {
    case V_UNDEFINED:
        return;
    case V_NONE:
        text_add(out, "None");
        return;
    case V_BOOLEAN:
        text_add(out, v->truth ? "True" : "False");
        return;
    case V_INTEGER:
        text_addf(out, "%" PRId64, v->integer);
        return;
    case V_FLOAT:
        print_float(out, v->real, "inf", "nan");
        return;
    case V_STRING:
        text_add_n(out, v->text, v->len);
        return;
    default:
        break;
    }
    bool plain = v->kind == V_DICT || (v->kind == V_LIST && v->list->kind <= LIST_TUPLE);
    if (!plain)
        jinja_fail(r, "%s is printed, which is not supported", jinja_kind_name(v));
    else if (jinja_enter(r) && v->kind == V_DICT)
        print_dict(r, out, v->dict);
    else if (!jinja_failed(r))
        print_list(r, out, v->list);
    r->depth -= plain;
}

struct value jinja_to_string(struct render *r, struct value v) {
    if (v.kind == V_STRING) return v;
    struct text t = {0};
    jinja_print(r, &t, &v);
    return jinja_text(r, &t);
}

static void dump_string(struct text *out, const struct value *v, bool ascii) {
    text_add_char(out, '"');
    for (size_t i = 0; i < v->len;) {
        static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
        int n;
        unsigned c = utf8_rune(v->text + i, &n);
        const char *known = c && c < 0x80 ? strchr(from, (int)c) : NULL;
        if (known)
            text_addf(out, "\\%c", to[known - from]);
        else if (c < 0x20 || (ascii && c > 0x7E && c < 0x10000))
            text_addf(out, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            text_addf(out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + (c & 0x3FF));
        else
            text_add_n(out, v->text + i, (size_t)n);
        i += (size_t)n;
    }
    text_add_char(out, '"');
}

static void dump_line(struct text *out, const struct json_style *style, int level) {
    if (!style->pretty) return;
    text_add_char(out, '\n');
    for (int i = 0; i < level; i++) text_add(out, style->indent);
}

static void dump_key(struct render *r, struct text *out, const struct value *key, const struct json_style *style) {
    struct text t = {0};
    if (key->kind == V_STRING) {
        dump_string(out, key, style->ascii);
        return;
    }
    if (key->kind == V_BOOLEAN || key->kind == V_NONE || key->kind == V_INTEGER || key->kind == V_FLOAT)
        jinja_dump(r, &t, key, style, 0);
    else
        jinja_fail(r, "tojson: %s cannot be a key", jinja_kind_name(key));
    text_addf(out, "\"%s\"", text_str(&t));
    text_free(&t);
}

static int by_key(const void *a, const void *b) {
    const struct value *x = &(*(const struct pair *const *)a)->key, *y = &(*(const struct pair *const *)b)->key;
    size_t n = x->len < y->len ? x->len : y->len;
    int c = memcmp(x->text, y->text, n);
    return c ? c : x->len < y->len ? -1 : x->len > y->len;
}

static void dump_dict(struct render *r, struct text *out, const struct dict *d, const struct json_style *style,
                      int level) {
    const struct pair **order = jinja_room(r, d->count * sizeof *order);
    bool texts = true;
    if (!order) return;
    for (size_t i = 0; i < d->count; i++) {
        order[i] = &d->pairs[i];
        texts = texts && d->pairs[i].key.kind == V_STRING;
    }
    if (style->sort && !texts) {
        jinja_fail(r, "tojson: only keys that are strings can be sorted");
        return;
    }
    if (style->sort && d->count) qsort(order, d->count, sizeof *order, by_key);
    text_add_char(out, '{');
    for (size_t i = 0; i < d->count && !jinja_failed(r); i++) {
        if (i) text_add(out, style->comma);
        dump_line(out, style, level + 1);
        dump_key(r, out, &order[i]->key, style);
        text_add(out, style->colon);
        jinja_dump(r, out, &order[i]->value, style, level + 1);
    }
    if (d->count) dump_line(out, style, level);
    text_add_char(out, '}');
}

static void dump_list(struct render *r, struct text *out, const struct list *l, const struct json_style *style,
                      int level) {
    text_add_char(out, '[');
    for (size_t i = 0; i < l->count && !jinja_failed(r); i++) {
        if (i) text_add(out, style->comma);
        dump_line(out, style, level + 1);
        jinja_dump(r, out, &l->items[i], style, level + 1);
    }
    if (l->count) dump_line(out, style, level);
    text_add_char(out, ']');
}

void jinja_dump(struct render *r, struct text *out, const struct value *v, const struct json_style *style, int level) {
    size_t cost = 1 + (v->kind == V_STRING ? v->len / 64 : 0) + (style->pretty ? (size_t)level : 0);
    if (out->len > JINJA_BYTES) jinja_fail(r, "the text grew beyond %d MiB", JINJA_BYTES >> 20);
    if (!jinja_enter(r) || !jinja_step(r, cost)) {
        r->depth--;
        return;
    }
    if (v->kind == V_NONE)
        text_add(out, "null");
    else if (v->kind == V_BOOLEAN)
        text_add(out, v->truth ? "true" : "false");
    else if (v->kind == V_INTEGER)
        text_addf(out, "%" PRId64, v->integer);
    else if (v->kind == V_FLOAT)
        print_float(out, v->real, "Infinity", "NaN");
    else if (v->kind == V_STRING)
        dump_string(out, v, style->ascii);
    else if (v->kind == V_DICT)
        dump_dict(r, out, v->dict, style, level);
    else if (v->kind == V_LIST && v->list->kind <= LIST_TUPLE)
        dump_list(r, out, v->list, style, level);
    else if (v->kind == V_UNDEFINED)
        jinja_fail(r, "'%s' is undefined, so it cannot be written as JSON", v->text);
    else
        jinja_fail(r, "%s cannot be written as JSON", jinja_kind_name(v));
    r->depth--;
}

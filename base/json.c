#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

static int line_of(const char *text, const char *at) {
    int line = 1;
    for (const char *p = text; p < at; p++) line += *p == '\n';
    return line;
}

cJSON *json_parse(const char *text, size_t n, const char *where, struct err *e) {
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n) {
        err_set(e, ST_FAIL, "%s: not UTF-8 at byte %zu", where, valid);
        return NULL;
    }
    if (n >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) text += 3, n -= 3;
    const char *end = NULL;
    cJSON *v = cJSON_ParseWithLengthOpts(text, n, &end, 0);
    if (!v) {
        const char *at = end && end >= text && end <= text + n ? end : text;
        err_set(e, ST_FAIL, "%s: not valid JSON at line %d (byte %zu)", where, line_of(text, at), (size_t)(at - text));
        return NULL;
    }
    while (end < text + n && strchr(" \t\r\n", *end) && *end) end++;
    if (end < text + n) {
        err_set(e, ST_FAIL, "%s: something follows the JSON value at line %d", where, line_of(text, end));
        cJSON_Delete(v);
        return NULL;
    }
    return v;
}

cJSON *json_read(const char *path, struct err *e) {
    char *data;
    size_t size;
    if (file_read(path, &data, &size, e) != ST_OK) return NULL;
    cJSON *v = json_parse(data, size, path, e);
    free(data);
    return v;
}

static const char *kind_of(const cJSON *v) {
    if (cJSON_IsBool(v)) return "true or false";
    if (cJSON_IsNumber(v)) return "a number";
    if (cJSON_IsString(v)) return "a string";
    if (cJSON_IsArray(v)) return "a list";
    return cJSON_IsObject(v) ? "an object" : "null";
}

static enum status wrong(const cJSON *v, const char *where, const char *key, const char *want, struct err *e) {
    if (cJSON_IsString(v))
        return err_set(e, ST_FAIL, "%s: %s is \"%.60s\", wanted %s", where, key, v->valuestring, want);
    if (cJSON_IsNumber(v)) return err_set(e, ST_FAIL, "%s: %s is %g, wanted %s", where, key, v->valuedouble, want);
    return err_set(e, ST_FAIL, "%s: %s is %s, wanted %s", where, key, kind_of(v), want);
}

const cJSON *json_get(const cJSON *o, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

bool json_is_integer(const cJSON *v) {
    return cJSON_IsNumber(v) && v->valuedouble == trunc(v->valuedouble) && fabs(v->valuedouble) <= 0x1p53;
}

enum status json_int(const cJSON *o, const char *where, const char *key, int64_t fallback, int64_t *out,
                     struct err *e) {
    const cJSON *v = json_get(o, key);
    *out = fallback;
    if (!v) return ST_OK;
    if (!json_is_integer(v)) return wrong(v, where, key, "a whole number", e);
    *out = (int64_t)v->valuedouble;
    return ST_OK;
}

enum status json_num(const cJSON *o, const char *where, const char *key, double fallback, double *out, struct err *e) {
    const cJSON *v = json_get(o, key);
    *out = fallback;
    if (!v) return ST_OK;
    if (!cJSON_IsNumber(v)) return wrong(v, where, key, "a number", e);
    *out = v->valuedouble;
    return ST_OK;
}

enum status json_bool(const cJSON *o, const char *where, const char *key, bool fallback, bool *out, struct err *e) {
    const cJSON *v = json_get(o, key);
    *out = fallback;
    if (!v) return ST_OK;
    if (!cJSON_IsBool(v)) return wrong(v, where, key, "true or false", e);
    *out = cJSON_IsTrue(v);
    return ST_OK;
}

enum status json_str(const cJSON *o, const char *where, const char *key, const char *fallback, const char **out,
                     struct err *e) {
    const cJSON *v = json_get(o, key);
    *out = fallback;
    if (!v) return ST_OK;
    if (!cJSON_IsString(v)) return wrong(v, where, key, "a string", e);
    *out = v->valuestring;
    return ST_OK;
}

static void quote_into(struct text *t, const char *s) {
    text_add_char(t, '"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            text_addf(t, "\\%c", c);
        else if (c == '\n')
            text_add(t, "\\n");
        else if (c == '\t')
            text_add(t, "\\t");
        else if (c == '\r')
            text_add(t, "\\r");
        else if (c < ' ')
            text_addf(t, "\\u%04x", c);
        else
            text_add_char(t, (char)c);
    }
    text_add_char(t, '"');
}

char *json_quote(const char *s) {
    struct text t = {0};
    quote_into(&t, s);
    return t.data;
}

/* The shortest decimal that reads back as the same double. */
static void number_into(struct text *t, double x) {
    if (x == trunc(x) && fabs(x) < 1e15) {
        text_addf(t, "%.0f", x);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        char b[40];
        snprintf(b, sizeof b, "%.*g", digits, x);
        if (digits < 17 && strtod(b, NULL) != x) continue;
        text_add(t, b);
        return;
    }
}

static void newline(struct text *t, int depth, bool compact) {
    if (compact) return;
    text_add_char(t, '\n');
    for (int i = 0; i < depth; i++) text_add(t, "  ");
}

static void value_into(struct text *t, const cJSON *v, int depth, bool compact) {
    if (cJSON_IsString(v))
        quote_into(t, v->valuestring);
    else if (cJSON_IsNumber(v) && isfinite(v->valuedouble))
        number_into(t, v->valuedouble);
    else if (cJSON_IsBool(v))
        text_add(t, cJSON_IsTrue(v) ? "true" : "false");
    else if (!cJSON_IsArray(v) && !cJSON_IsObject(v))
        text_add(t, "null");
    else {
        bool object = cJSON_IsObject(v);
        text_add_char(t, object ? '{' : '[');
        for (const cJSON *c = v->child; c; c = c->next) {
            newline(t, depth + 1, compact);
            if (object) {
                quote_into(t, c->string);
                text_add(t, ": ");
            }
            value_into(t, c, depth + 1, compact);
            if (c->next) text_add(t, compact ? ", " : ",");
        }
        if (v->child) newline(t, depth, compact);
        text_add_char(t, object ? '}' : ']');
    }
}

char *json_text(const cJSON *v, bool compact) {
    struct text t = {0};
    value_into(&t, v, 0, compact);
    return t.data;
}

enum status json_write(const char *path, const cJSON *v, struct err *e) {
    struct text t = {0};
    value_into(&t, v, 0, false);
    text_add_char(&t, '\n');
    enum status st = file_write(path, t.data, t.len, e);
    text_free(&t);
    return st;
}

enum status json_write_in(const char *dir, const char *name, const cJSON *v, struct err *e) {
    char *path = path_join(dir, name);
    json_write(path, v, e);
    free(path);
    return e->code;
}

#include "base/yaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

enum { DEEPEST = 64 };

struct reader {
    yaml_parser_t parser;
    const char *where;
    struct err *e;
};

static bool is_any(const char *s, const char *const *words) {
    for (; *words; words++)
        if (strcmp(s, *words) == 0) return true;
    return false;
}

/* A decimal number, and nothing else: no hexadecimal, no blanks, no "nan" or "inf" spelled as words. */
static bool read_number(const char *s, double *out) {
    if (!*s || s[strspn(s, "+-.0123456789eE")] != 0 || !strpbrk(s, "0123456789")) return false;
    char *end;
    *out = strtod(s, &end);
    return *end == 0;
}

cJSON *yaml_scalar(const char *s) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const trues[] = {"true", "True", "TRUE", NULL};
    static const char *const falses[] = {"false", "False", "FALSE", NULL};
    double number;
    if (is_any(s, nulls)) return cJSON_CreateNull();
    if (is_any(s, trues)) return cJSON_CreateTrue();
    if (is_any(s, falses)) return cJSON_CreateFalse();
    return read_number(s, &number) ? cJSON_CreateNumber(number) : cJSON_CreateString(s);
}

static cJSON *refuse(struct reader *r, const yaml_mark_t *at, const char *what) {
    err_set(r->e, ST_FAIL, "%s: line %zu: %s", r->where, at->line + 1, what);
    return NULL;
}

static bool next(struct reader *r, yaml_event_t *event) {
    if (yaml_parser_parse(&r->parser, event)) return true;
    err_set(r->e, ST_FAIL, "%s: not valid YAML at line %zu (%s)", r->where, r->parser.problem_mark.line + 1,
            r->parser.problem ? r->parser.problem : "unreadable");
    return false;
}

static cJSON *value(struct reader *r, yaml_event_t *event, int depth);

static cJSON *list(struct reader *r, int depth) {
    cJSON *all = cJSON_CreateArray();
    for (;;) {
        yaml_event_t event;
        if (!next(r, &event)) break;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        cJSON *v = end ? NULL : value(r, &event, depth);
        yaml_event_delete(&event);
        if (end) return all;
        if (!v) break;
        cJSON_AddItemToArray(all, v);
    }
    cJSON_Delete(all);
    return NULL;
}

/* Reads `key: value` into the object; false at the end of the mapping (*end) or on an error. */
static bool pair(struct reader *r, cJSON *object, int depth, bool *end) {
    yaml_event_t key, event;
    if (!next(r, &key)) return false;
    *end = key.type == YAML_MAPPING_END_EVENT;
    bool added = false;
    if (*end) {
    } else if (key.type != YAML_SCALAR_EVENT) {
        refuse(r, &key.start_mark, "a key is not a plain word");
    } else if (cJSON_GetObjectItemCaseSensitive(object, (char *)key.data.scalar.value)) {
        err_set(r->e, ST_FAIL, "%s: line %zu: %s is given twice", r->where, key.start_mark.line + 1,
                (char *)key.data.scalar.value);
    } else if (next(r, &event)) {
        cJSON *v = value(r, &event, depth);
        yaml_event_delete(&event);
        if (v) added = cJSON_AddItemToObject(object, (char *)key.data.scalar.value, v);
    }
    yaml_event_delete(&key);
    return added;
}

static cJSON *mapping(struct reader *r, int depth) {
    cJSON *object = cJSON_CreateObject();
    bool end = false;
    while (pair(r, object, depth, &end)) {}
    if (end) return object;
    cJSON_Delete(object);
    return NULL;
}

static cJSON *scalar(struct reader *r, const yaml_event_t *event) {
    const char *s = (const char *)event->data.scalar.value;
    if (strlen(s) != event->data.scalar.length) return refuse(r, &event->start_mark, "a value holds a zero byte");
    if (event->data.scalar.tag)
        return refuse(r, &event->start_mark, "tags (!) are not supported; write the plain value");
    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? yaml_scalar(s) : cJSON_CreateString(s);
}

static cJSON *value(struct reader *r, yaml_event_t *event, int depth) {
    if (depth > DEEPEST) return refuse(r, &event->start_mark, "nested too deeply");
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        if (event->data.scalar.anchor) break;
        return scalar(r, event);
    case YAML_SEQUENCE_START_EVENT:
        if (event->data.sequence_start.anchor) break;
        return list(r, depth + 1);
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor) break;
        return mapping(r, depth + 1);
    default:
        break;
    }
    return refuse(r, &event->start_mark, "anchors and aliases (& and *) are not supported; write the value out");
}

/* The events of a whole stream around its one document. */
static cJSON *document(struct reader *r) {
    cJSON *tree = NULL;
    bool ended = false;
    while (!ended && r->e->code == ST_OK) {
        yaml_event_t event;
        if (!next(r, &event)) break;
        if (event.type == YAML_STREAM_END_EVENT)
            ended = true;
        else if (event.type == YAML_DOCUMENT_START_EVENT && tree)
            refuse(r, &event.start_mark, "a second document begins; one is wanted");
        else if (event.type != YAML_STREAM_START_EVENT && event.type != YAML_DOCUMENT_START_EVENT &&
                 event.type != YAML_DOCUMENT_END_EVENT)
            tree = value(r, &event, 0);
        yaml_event_delete(&event);
    }
    if (r->e->code == ST_OK) return tree ? tree : cJSON_CreateNull();
    cJSON_Delete(tree);
    return NULL;
}

cJSON *yaml_parse(const char *text, size_t n, const char *where, struct err *e) {
    struct reader r = {.where = where, .e = e};
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n) {
        err_set(e, ST_FAIL, "%s: not UTF-8 at byte %zu", where, valid);
        return NULL;
    }
    if (!yaml_parser_initialize(&r.parser)) {
        err_set(e, ST_FAIL, "%s: no memory for the YAML reader", where);
        return NULL;
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    cJSON *tree = document(&r);
    yaml_parser_delete(&r.parser);
    return tree;
}

cJSON *yaml_read(const char *path, struct err *e) {
    char *data;
    size_t size;
    if (file_read(path, &data, &size, e) != ST_OK) return NULL;
    cJSON *tree = yaml_parse(data, size, path, e);
    free(data);
    return tree;
}

/* A string that a plain scalar would turn into something else, or break, is quoted as in JSON (which YAML reads). */
static void scalar_into(struct text *t, const cJSON *v) {
    cJSON *plain = cJSON_IsString(v) ? yaml_scalar(v->valuestring) : NULL;
    bool safe =
        plain && cJSON_IsString(plain) && *v->valuestring &&
        v->valuestring[strspn(v->valuestring, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")] ==
            0 &&
        v->valuestring[0] != '-';
    char *text = safe ? mem_text(v->valuestring) : json_text(v, true);
    text_add(t, text);
    free(text);
    cJSON_Delete(plain);
}

static bool holds_items(const cJSON *v) { return (cJSON_IsArray(v) || cJSON_IsObject(v)) && v->child; }

static void block_into(struct text *t, const cJSON *v, int depth) {
    for (const cJSON *c = v->child; c; c = c->next) {
        text_addf(t, "%*s", depth * 2, "");
        if (cJSON_IsObject(v)) {
            cJSON key = {.type = cJSON_String, .valuestring = c->string};
            scalar_into(t, &key);
            text_add_char(t, ':');
        } else {
            text_add_char(t, '-');
        }
        if (holds_items(c)) {
            text_add_char(t, '\n');
            block_into(t, c, depth + 1);
        } else {
            text_add_char(t, ' ');
            scalar_into(t, c);
            text_add_char(t, '\n');
        }
    }
}

char *yaml_text(const cJSON *v) {
    struct text t = {0};
    if (holds_items(v))
        block_into(&t, v, 0);
    else {
        scalar_into(&t, v);
        text_add_char(&t, '\n');
    }
    return t.data;
}

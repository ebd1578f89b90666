#include "data/normalize.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

enum { DEEPEST = 16, LONGEST = 64 }; // LONGEST bounds by how much a step can make a text grow

struct step {
    enum { PREPEND, REPLACE, COMPOSE } kind;
    char *from, *to; // REPLACE: from by to; PREPEND: to
};

static enum status step_of(struct normalizer *z, const cJSON *json, const char *where, int depth, struct err *e);

static enum status add_step(struct normalizer *z, int kind, const char *from, const char *to, const char *where,
                            struct err *e) {
    if (strlen(from) > LONGEST || strlen(to) > LONGEST)
        return err_set(e, ST_FAIL, "%s: normalizer: a string of more than %d bytes is not supported", where, LONGEST);
    z->steps = mem_resize(z->steps, ((size_t)z->count + 1) * sizeof *z->steps);
    z->steps[z->count++] = (struct step){kind, mem_text(from), mem_text(to)};
    return ST_OK;
}

static enum status replace_of(struct normalizer *z, const cJSON *json, const char *where, struct err *e) {
    const cJSON *from = cJSON_GetObjectItemCaseSensitive(json_get(json, "pattern"), "String");
    const char *to;
    if (!cJSON_IsString(from) || !*from->valuestring)
        return err_set(e, ST_FAIL, "%s: Replace with another pattern than a String is not supported", where);
    if (json_str(json, where, "content", "", &to, e) != ST_OK) return e->code;
    return add_step(z, REPLACE, from->valuestring, to, where, e);
}

static enum status sequence_of(struct normalizer *z, const cJSON *json, const char *where, int depth, struct err *e) {
    const cJSON *list = json_get(json, "normalizers"), *item;
    if (!cJSON_IsArray(list) || depth > DEEPEST)
        return err_set(e, ST_FAIL, "%s: normalizer: normalizers is not a list", where);
    cJSON_ArrayForEach(item, list) {
        if (z->count >= DEEPEST) return err_set(e, ST_FAIL, "%s: more than %d normalizers in sequence", where, DEEPEST);
        if (step_of(z, item, where, depth + 1, e) != ST_OK) return e->code;
    }
    return ST_OK;
}

static enum status step_of(struct normalizer *z, const cJSON *json, const char *where, int depth, struct err *e) {
    const char *type, *to;
    if (json_str(json, where, "type", "", &type, e) != ST_OK) return e->code;
    if (strcmp(type, "Sequence") == 0) return sequence_of(z, json, where, depth, e);
    if (strcmp(type, "Replace") == 0) return replace_of(z, json, where, e);
    if (strcmp(type, "NFC") == 0) return add_step(z, COMPOSE, "", "", where, e);
    if (strcmp(type, "Prepend") != 0)
        return err_set(e, ST_FAIL, "%s: the normalizer \"%.40s\" is not supported", where, type);
    if (json_str(json, where, "prepend", "", &to, e) != ST_OK) return e->code;
    return add_step(z, PREPEND, "", to, where, e);
}

enum status normalizer_init(struct normalizer *z, const cJSON *json, const char *where, struct err *e) {
    *z = (struct normalizer){0};
    return json ? step_of(z, json, where, 0, e) : ST_OK;
}

bool normalizer_prepends(const struct normalizer *z) {
    for (int i = 0; i < z->count; i++)
        if (z->steps[i].kind == PREPEND) return true;
    return false;
}

void normalizer_free(struct normalizer *z) {
    for (int i = 0; i < z->count; i++) free(z->steps[i].from), free(z->steps[i].to);
    free(z->steps);
    *z = (struct normalizer){0};
}

static void replace(const struct step *step, const char *s, size_t n, struct text *out) {
    size_t from = strlen(step->from), to = strlen(step->to), done = 0;
    for (const char *hit; (hit = memmem(s + done, n - done, step->from, from)); done = (size_t)(hit - s) + from) {
        text_add_n(out, s + done, (size_t)(hit - s) - done);
        text_add_n(out, step->to, to);
    }
    text_add_n(out, s + done, n - done);
}

void normalizer_apply(const struct normalizer *z, const struct runes *r, struct text buffers[2], const char **s,
                      size_t *n) {
    for (int i = 0; i<z->count && * n> 0; i++) {
        const struct step *step = &z->steps[i];
        if (step->kind == COMPOSE && rune_composed(r, *s, *n)) continue;
        struct text *out = &buffers[*s == buffers[0].data];
        text_clear(out);
        if (step->kind == COMPOSE) rune_compose(r, *s, *n, out);
        if (step->kind == PREPEND) text_add(out, step->to), text_add_n(out, *s, *n);
        if (step->kind == REPLACE) replace(step, *s, *n, out);
        *s = text_str(out), *n = out->len;
    }
}

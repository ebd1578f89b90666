#include "tests/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

static const double FLOOR = 1e-7; // under a tolerance that scales with an update

cJSON *lines_read(const char *path, const char *key, struct err *e) {
    char *data;
    size_t size;
    if (file_read(path, &data, &size, e) != ST_OK) return NULL;
    cJSON *list = cJSON_CreateArray();
    for (char *line = data; e->code == ST_OK && line < data + size;) {
        char *end = memchr(line, '\n', (size_t)(data + size - line));
        size_t n = end ? (size_t)(end - line) : (size_t)(data + size - line);
        cJSON *v = n ? json_parse(line, n, path, e) : NULL;
        if (v && json_get(v, key))
            cJSON_AddItemToArray(list, v);
        else
            cJSON_Delete(v);
        line += n + 1;
    }
    free(data);
    if (e->code == ST_OK) return list;
    cJSON_Delete(list);
    return NULL;
}

/* The object of a list whose key has the value of v's. */
static const cJSON *find_line(const cJSON *list, const char *key, const cJSON *v) {
    const cJSON *wanted = json_get(v, key);
    for (const cJSON *line = list ? list->child : NULL; line; line = line->next)
        if (cJSON_Compare(json_get(line, key), wanted, true)) return line;
    return NULL;
}

static enum status compare_field(const char *what, const char *id, const struct field *f, const cJSON *got,
                                 const cJSON *want, struct err *e) {
    const cJSON *g = json_get(got, f->name), *w = json_get(want, f->name);
    if (!w) return ST_OK;
    if (!cJSON_IsNumber(g)) return err_set(e, ST_FAIL, "%s %s: %s is not a number", what, id, f->name);
    double error = fabs(g->valuedouble - w->valuedouble), limit = f->rel * fabs(w->valuedouble) + f->abs;
    if (error <= limit) return ST_OK;
    return err_set(e, ST_FAIL, "%s %s: %s is %.9g, wanted %.9g (error %.3g > %.3g)", what, id, f->name, g->valuedouble,
                   w->valuedouble, error, limit);
}

enum status compare_lines(const char *what, const char *key, const cJSON *got, const cJSON *want,
                          const struct field *fields, size_t count, struct err *e) {
    int g = cJSON_GetArraySize(got), w = cJSON_GetArraySize(want);
    if (g != w || w == 0) return err_set(e, ST_FAIL, "%s: %d lines with a %s, wanted %d", what, g, key, w);
    for (const cJSON *line = want->child; line && e->code == ST_OK; line = line->next) {
        char *id = cJSON_PrintUnformatted(json_get(line, key));
        const cJSON *found = find_line(got, key, line);
        if (!found) err_set(e, ST_FAIL, "%s: no line whose %s is %s", what, key, id);
        for (size_t i = 0; found && i < count; i++) compare_field(what, id, &fields[i], found, line, e);
        free(id);
    }
    return e->code;
}

static bool same_shape(const struct st_entry *a, const struct st_entry *b) {
    return a->type == b->type && a->rank == b->rank && memcmp(a->dim, b->dim, sizeof a->dim[0] * (size_t)a->rank) == 0;
}

/* || a - b ||, b may be NULL. */
static double distance(const struct st_entry *a, const struct st_entry *b) {
    double sum = 0;
    for (size_t i = 0; i < a->bytes / sizeof(float); i++) {
        float x, y = 0; // the bytes of a file need not be aligned
        memcpy(&x, (const char *)a->data + i * sizeof x, sizeof x);
        if (b) memcpy(&y, (const char *)b->data + i * sizeof y, sizeof y);
        sum += ((double)x - y) * ((double)x - y);
    }
    return sqrt(sum);
}

static enum status compare_tensor(const struct st_entry *got, const struct st_entry *want, const struct st_entry *init,
                                  double rel, struct err *e) {
    if (want->type != ST_F32) return err_set(e, ST_FAIL, "%s: wanted as %s", want->name, st_type_name(want->type));
    if (!same_shape(got, want)) return err_set(e, ST_FAIL, "%s: another type or shape than wanted", want->name);
    if (init && !same_shape(init, want)) return err_set(e, ST_FAIL, "%s: another shape before training", want->name);
    double error = distance(got, want), limit = rel * distance(want, init) + FLOOR;
    if (error <= limit) return ST_OK;
    return err_set(e, ST_FAIL, "%s: ||got - want|| is %.3g, wanted at most %.3g", want->name, error, limit);
}

enum status compare_update(const struct st_set *got, const struct st_set *want, const struct st_set *init, double rel,
                           struct err *e) {
    if (want->count == 0) return err_set(e, ST_FAIL, "no tensors are wanted");
    for (size_t i = 0; i < want->count; i++) {
        const struct st_entry *w = &want->entries[i], *g = st_find(got, w->name);
        if (!g) return err_set(e, ST_FAIL, "%s: missing", w->name);
        if (compare_tensor(g, w, init ? st_find(init, w->name) : NULL, rel, e) != ST_OK) return e->code;
    }
    for (size_t i = 0; i < got->count; i++)
        if (!st_find(want, got->entries[i].name)) return err_set(e, ST_FAIL, "%s: not wanted", got->entries[i].name);
    return ST_OK;
}

static int count_in(const cJSON *list, const cJSON *v) {
    int n = 0;
    for (const cJSON *item = list->child; item; item = item->next) n += cJSON_Compare(item, v, true);
    return n;
}

static bool same_value(const cJSON *a, const cJSON *b) {
    if (!cJSON_IsArray(a) || !cJSON_IsArray(b)) return cJSON_Compare(a, b, true);
    if (cJSON_GetArraySize(a) != cJSON_GetArraySize(b)) return false;
    for (const cJSON *item = b->child; item; item = item->next)
        if (count_in(a, item) != count_in(b, item)) return false;
    return true;
}

enum status compare_subset(const char *what, const cJSON *got, const cJSON *want, struct err *e) {
    for (const cJSON *w = want->child; w && e->code == ST_OK; w = w->next) {
        const cJSON *g = cJSON_GetObjectItemCaseSensitive(got, w->string);
        if (g && same_value(g, w)) continue;
        char *found = g ? cJSON_PrintUnformatted(g) : mem_text("absent"), *wanted = cJSON_PrintUnformatted(w);
        err_set(e, ST_FAIL, "%s: %s is %s, wanted %s", what, w->string, found, wanted);
        free(found);
        free(wanted);
    }
    return e->code;
}

enum status compare_ids(const char *what, const cJSON *got, const cJSON *want, struct err *e) {
    if (!cJSON_IsArray(got)) return err_set(e, ST_FAIL, "%s: not a list", what);
    int count = cJSON_GetArraySize(want), i = 0;
    if (cJSON_GetArraySize(got) != count)
        return err_set(e, ST_FAIL, "%s: %d of them, wanted %d", what, cJSON_GetArraySize(got), count);
    const cJSON *g = got->child;
    for (const cJSON *w = want->child; w; w = w->next, g = g->next, i++)
        if (!cJSON_IsNumber(g) || !cJSON_Compare(g, w, true))
            return err_set(e, ST_FAIL, "%s[%d]: got %g, wanted %g", what, i, g->valuedouble, w->valuedouble);
    return ST_OK;
}

/* One row of a classification set, as Mantis reads it: a prompt, pictures, and labels that are numbers by name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/dataset_parts.h"

enum status class_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e) {
    if (row_open(c, r, index, e) != ST_OK) return e->code;
    const cJSON *prompt = json_get(c->tree, "prompt"), *labels = json_get(c->tree, "labels"), *v;
    if (!cJSON_IsString(prompt)) return err_set(e, ST_FAIL, "%s: wanted \"prompt\" with a string", c->where);
    if (labels && (!cJSON_IsObject(labels) || !labels->child))
        return err_set(e, ST_FAIL, "%s: labels is not what was wanted, at least one name and its number", c->where);
    if (labels && cJSON_GetArraySize(labels) > MOST_LABELS)
        return err_set(e, ST_FAIL, "%s: %d labels, at most %d are taken", c->where, cJSON_GetArraySize(labels),
                       MOST_LABELS);
    for (v = labels ? labels->child : NULL; v; v = v->next)
        if (cJSON_IsString(v))
            return err_set(e, ST_FAIL, "%s: label \"%.80s\" is not a number but the text \"%.80s\"", c->where,
                           v->string, v->valuestring);
        else if (!cJSON_IsNumber(v) || !isfinite((float)v->valuedouble))
            return err_set(e, ST_FAIL, "%s: label \"%.80s\" is not a number", c->where, v->string);
    c->prompt = prompt->valuestring;
    c->labels = labels;
    if (row_read_pictures(c, e) != ST_OK) return e->code;
    return c->image_count ? ST_OK : row_read_media(c, e);
}

/* --- names ------------------------------------------------------------------------------------------------------- */

static const cJSON *find_label(const struct chat_row *r, const char *name) {
    return cJSON_GetObjectItemCaseSensitive(r->labels, name);
}

static void set_names(struct label_names *n, const char *const *names, int64_t count) {
    n->name = mem_alloc((size_t)count * sizeof *n->name);
    for (n->count = 0; n->count < count; n->count++) n->name[n->count] = mem_text(names[n->count]);
}

static bool has_just(const struct chat_row *r, const char *const *names, int64_t count) {
    if (cJSON_GetArraySize(r->labels) != count) return false;
    for (int64_t i = 0; i < count; i++)
        if (!find_label(r, names[i])) return false;
    return true;
}

enum status label_names_init(struct label_names *n, const struct chat_row *r, const struct data_family *f,
                             struct err *e) {
    int64_t count = cJSON_GetArraySize(r->labels), at = 0;
    *n = (struct label_names){0};
    const char **own = mem_alloc((size_t)count * sizeof *own);
    for (const cJSON *v = r->labels->child; v; v = v->next) own[at++] = v->string;
    bool single = f->problem == PROBLEM_SINGLE_LABEL || (f->problem == PROBLEM_UNSAID && count == 1);
    for (int64_t i = 0; i < count && e->code == ST_OK; i++)
        if (find_label(r, own[i])->string != own[i])
            err_set(e, ST_FAIL, "%s: label \"%.80s\" comes twice", r->where, own[i]);
    if (single && count != 1)
        err_set(e, ST_FAIL,
                "%s: %lld labels; a row of problem_type single_label_classification has one, the class index", r->where,
                (long long)count);
    bool named = f->label_names && !single && (f->names_bind || has_just(r, f->label_names, f->num_labels));
    if (e->code == ST_OK) set_names(n, named ? f->label_names : own, named ? f->num_labels : count);
    if (e->code == ST_OK && !single && f->num_labels && n->count != f->num_labels)
        err_set(e, ST_FAIL, "%s: the row has %lld labels, the model's head has %lld outputs", r->where,
                (long long)n->count, (long long)f->num_labels);
    free(own);
    return e->code;
}

void label_names_free(struct label_names *n) {
    for (int64_t i = 0; i < n->count; i++) free(n->name[i]);
    free(n->name);
    *n = (struct label_names){0};
}

/* --- values ------------------------------------------------------------------------------------------------------ */

static enum status check_value(const struct chat_row *r, const cJSON *v, enum problem p, int64_t num_labels,
                               struct err *e) {
    double x = v->valuedouble;
    if (p == PROBLEM_SINGLE_LABEL && (x != floor(x) || x < 0 || (num_labels && x >= (double)num_labels)))
        return err_set(e, ST_FAIL, "%s: label \"%.80s\" is %g, wanted a class index, a whole number from 0 to %lld",
                       r->where, v->string, x, (long long)num_labels - 1);
    if (p == PROBLEM_MULTI_LABEL && (x < 0 || x > 1))
        return err_set(e, ST_FAIL, "%s: label \"%.80s\" is %g, wanted 0 or 1", r->where, v->string, x);
    return ST_OK;
}

enum status label_values(float *values, const struct label_names *n, const struct chat_row *r, enum problem p,
                         int64_t num_labels, struct err *e) {
    if (!r->labels)
        return err_set(e, ST_FAIL, "%s: has no labels, wanted \"%.80s\" and what else the first row has", r->where,
                       n->count ? n->name[0] : "labels");
    for (int64_t i = 0; i < n->count; i++) {
        const cJSON *v = find_label(r, n->name[i]);
        if (!v)
            return err_set(e, ST_FAIL, "%s: label \"%.80s\" is missing; the first row or the model's head has it",
                           r->where, n->name[i]);
        if (check_value(r, v, p, num_labels, e) != ST_OK) return e->code;
        values[i] = (float)v->valuedouble;
    }
    if (cJSON_GetArraySize(r->labels) == n->count) return ST_OK;
    for (const cJSON *v = r->labels->child; v; v = v->next) {
        bool known = false;
        for (int64_t i = 0; i < n->count; i++)
            known = known || (strcmp(n->name[i], v->string) == 0 && find_label(r, v->string) == v);
        if (!known)
            return err_set(e, ST_FAIL,
                           "%s: label \"%.80s\" is one too many; the first row or the model's head does not have it",
                           r->where, v->string);
    }
    return ST_OK;
}

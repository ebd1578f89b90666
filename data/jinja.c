#include "data/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/jinja_parts.h"

struct jinja *jinja_new(const char *source, const char *where, struct err *e) {
    struct jinja *j = NULL;
    size_t n = strlen(source);
    if (n > JINJA_SOURCE_BYTES) {
        err_set(e, ST_FAIL, "%s: the template has %zu bytes, wanted at most %d", where, n, JINJA_SOURCE_BYTES);
        return NULL;
    }
    if (utf8_valid_prefix(source, n) < n) {
        err_set(e, ST_FAIL, "%s: the template is not UTF-8 at byte %zu", where, utf8_valid_prefix(source, n));
        return NULL;
    }
    struct err failure = {0};
    j = mem_alloc(sizeof *j);
    j->where = mem_text(where);
    const struct token *tokens = jinja_lex(&j->pool, source, where, &failure);
    if (tokens) j->body = jinja_parse(&j->pool, tokens, where, &failure);
    if (j->body) return j;
    err_set(e, failure.code, "%s", failure.text);
    jinja_free(j);
    return NULL;
}

void jinja_free(struct jinja *j) {
    if (!j) return;
    jinja_pool_free(&j->pool);
    free(j->where);
    free(j);
}

/* The names that the template starts with. Only names of the object itself, so a list of pairs is not taken. */
static void set_globals(struct render *r, const cJSON *vars) {
    r->globals = jinja_alloc(&r->pool, sizeof *r->globals);
    for (const cJSON *v = vars ? vars->child : NULL; v && !jinja_failed(r); v = v->next) {
        struct binding *b = jinja_alloc(&r->pool, sizeof *b);
        b->name = v->string ? v->string : "";
        b->value = jinja_json(r, v);
        b->next = r->globals->bindings;
        r->globals->bindings = b;
    }
}

enum status jinja_render(const struct jinja *j, const cJSON *vars, struct text *out, struct err *e) {
    struct render r = {.where = j->where, .line = 1};
    struct text t = {0};
    set_globals(&r, vars);
    if (!jinja_failed(&r)) jinja_run(&r, j->body, &t);
    if (jinja_failed(&r))
        err_set(e, r.err.code, "%s", r.err.text);
    else
        text_add_n(out, text_str(&t), t.len);
    text_free(&t);
    jinja_pool_free(&r.pool);
    return r.err.code;
}

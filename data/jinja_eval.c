/* The tree walked: expressions to values, statements to text. A scope is made for the template, each turn of a loop,
 * each call and each block that has names of its own; a name is looked up outwards and set in the innermost scope, so
 * what a loop sets is gone with its turn. Only the attributes of a namespace outlive that. */
#include <string.h>

#include "data/jinja_parts.h"

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static struct value eval(struct render *r, struct scope *s, const struct node *n);
static struct value call_macro(struct render *r, const struct macro *m, const struct args *a);
static enum flow run_body(struct render *r, struct scope *s, const struct node *first, struct text *out);

static struct scope *new_scope(struct render *r, struct scope *parent) {
    struct scope *s = jinja_alloc(&r->pool, sizeof *s);
    s->parent = parent;
    return s;
}

static struct binding *find(struct render *r, struct scope *s, const char *name, bool outwards) {
    for (; s; s = outwards ? s->parent : NULL)
        for (struct binding *b = s->bindings; b; b = b->next) {
            r->steps++;
            if (strcmp(b->name, name) == 0) return b;
        }
    return NULL;
}

static void set_name(struct render *r, struct scope *s, const char *name, struct value v) {
    struct binding *b = find(r, s, name, false);
    if (!b) {
        b = jinja_alloc(&r->pool, sizeof *b);
        b->name = name;
        b->next = s->bindings;
        s->bindings = b;
    }
    b->value = v;
}

static struct value eval_name(struct render *r, struct scope *s, const char *name) {
    struct binding *b = find(r, s, name, true);
    if (b) return b->value;
    if (jinja_function_known(name)) return (struct value){.kind = V_FUNCTION, .text = name};
    return jinja_undefined(name);
}

static struct value eval_items(struct render *r, struct scope *s, const struct node *n, enum list_kind kind) {
    struct list *l = jinja_list_new(r, kind, 0);
    for (const struct node *k = n->kids; k && !jinja_failed(r); k = k->next) jinja_list_add(r, l, eval(r, s, k));
    return jinja_list_value(l);
}

static struct value eval_dict(struct render *r, struct scope *s, const struct node *n) {
    struct dict *d = jinja_dict_new(r, 0);
    for (const struct node *k = n->kids; k && k->next && !jinja_failed(r); k = k->next->next) {
        struct value key = eval(r, s, k);
        jinja_dict_set(r, d, key, eval(r, s, k->next));
    }
    return (struct value){.kind = V_DICT, .dict = d};
}

static struct args eval_args(struct render *r, struct scope *s, const struct node *kids, const char *of) {
    struct args a = {.of = of};
    size_t count = 0;
    for (const struct node *k = kids; k; k = k->next) count++;
    a.at = jinja_alloc(&r->pool, count * sizeof *a.at);
    a.named = jinja_alloc(&r->pool, count * sizeof *a.named);
    for (const struct node *k = kids; k && !jinja_failed(r); k = k->next) {
        if (k->kind == N_KEYWORD)
            a.named[a.named_count++] = (struct named){k->text, eval(r, s, k->a)};
        else
            a.at[a.count++] = eval(r, s, k);
    }
    return a;
}

static const char *callee_name(const struct node *n) { return n->text[0] ? n->text : "what is called"; }

static struct value eval_call(struct render *r, struct scope *s, const struct node *n) {
    struct value f = eval(r, s, n->a);
    struct args a = eval_args(r, s, n->kids, callee_name(n->a));
    r->line = n->line;
    if (jinja_failed(r)) return jinja_none();
    if (f.kind == V_MACRO) return call_macro(r, f.macro, &a);
    if (f.kind == V_METHOD) return jinja_method(r, f.method, &a);
    if (f.kind == V_FUNCTION) return jinja_function(r, f.text, &a);
    if (f.kind == V_UNDEFINED) return jinja_fail(r, "'%s' is undefined, so it cannot be called", f.text);
    return jinja_fail(r, "%s is %s, which cannot be called", a.of, jinja_kind_name(&f));
}

static struct value eval_filter(struct render *r, struct scope *s, const struct node *n, struct value v) {
    struct args a = eval_args(r, s, n->kids, n->text);
    r->line = n->line;
    return jinja_failed(r) ? jinja_none() : jinja_filter(r, n->text, v, &a);
}

static struct value eval_test(struct render *r, struct scope *s, const struct node *n) {
    struct value v = eval(r, s, n->a);
    struct args a = eval_args(r, s, n->kids, n->text);
    r->line = n->line;
    return jinja_bool(!jinja_failed(r) && jinja_test(r, n->text, v, &a));
}

static struct value eval_index(struct render *r, struct scope *s, const struct node *n) {
    struct value v = eval(r, s, n->a);
    if (n->b->kind != N_SLICE) {
        struct value key = eval(r, s, n->b);
        r->line = n->line;
        return jinja_failed(r) ? jinja_none() : jinja_getitem(r, v, key);
    }
    const struct node *at[3] = {n->b->a, n->b->b, n->b->c};
    struct value part[3];
    for (int i = 0; i < 3; i++) part[i] = at[i] ? eval(r, s, at[i]) : jinja_none();
    r->line = n->line;
    return jinja_failed(r) ? jinja_none() : jinja_slice(r, v, part);
}

static bool compare(struct render *r, const char *op, const struct value *a, const struct value *b) {
    if (strcmp(op, "==") == 0) return jinja_equal(r, a, b);
    if (strcmp(op, "!=") == 0) return !jinja_equal(r, a, b);
    if (strcmp(op, "in") == 0) return jinja_contains(r, b, a);
    if (strcmp(op, "not in") == 0) return !jinja_contains(r, b, a);
    double x, y;
    if (jinja_number(a, &x) && jinja_number(b, &y) && (x != x || y != y)) return false;
    int order = jinja_order(r, a, b);
    if (op[0] == '<') return op[1] ? order <= 0 : order < 0;
    return op[1] ? order >= 0 : order > 0;
}

/* a < b < c is a < b and b < c, with b evaluated once. */
static struct value eval_comparison(struct render *r, struct scope *s, const struct node *n) {
    struct value left = eval(r, s, n->a);
    for (const struct node *k = n->kids; k && !jinja_failed(r); k = k->next) {
        struct value right = eval(r, s, k->a);
        r->line = n->line;
        if (jinja_failed(r) || !compare(r, k->text, &left, &right)) return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

static struct value eval_sign(struct render *r, struct scope *s, const struct node *n) {
    struct value v = eval(r, s, n->a);
    bool minus = n->kind == N_NEGATE;
    int64_t i;
    r->line = n->line;
    if (jinja_failed(r)) return jinja_none();
    if (v.kind == V_FLOAT) return jinja_float(minus ? -v.real : v.real);
    if (!jinja_whole(&v, &i)) return jinja_fail(r, "a sign before %s", jinja_kind_name(&v));
    if (minus && i == INT64_MIN) return jinja_fail(r, "an integer grew beyond 64 bits");
    return jinja_int(minus ? -i : i);
}

static struct value eval_concat(struct render *r, struct scope *s, const struct node *n) {
    struct text t = {0};
    for (const struct node *k = n->kids; k && !jinja_failed(r); k = k->next) {
        struct value v = eval(r, s, k);
        if (!jinja_failed(r)) jinja_print(r, &t, &v);
    }
    return jinja_text(r, &t);
}

static struct value eval_binary(struct render *r, struct scope *s, const struct node *n) {
    struct value a = eval(r, s, n->a);
    struct value b = jinja_failed(r) ? jinja_none() : eval(r, s, n->b);
    r->line = n->line;
    return jinja_failed(r) ? jinja_none() : jinja_binary(r, n->text, a, b);
}

static struct value eval_node(struct render *r, struct scope *s, const struct node *n) {
    struct value v;
    switch (n->kind) {
    case N_CONST:
        return n->value;
    case N_NAME:
        return eval_name(r, s, n->text);
    case N_LIST:
        return eval_items(r, s, n, LIST_PLAIN);
    case N_TUPLE:
        return eval_items(r, s, n, LIST_TUPLE);
    case N_DICT:
        return eval_dict(r, s, n);
    case N_GETITEM:
        return eval_index(r, s, n);
    case N_CALL:
        return eval_call(r, s, n);
    case N_TEST:
        return eval_test(r, s, n);
    case N_NEGATE:
    case N_PLUS:
        return eval_sign(r, s, n);
    case N_BINARY:
        return eval_binary(r, s, n);
    case N_CONCAT:
        return eval_concat(r, s, n);
    case N_COMPARE:
        return eval_comparison(r, s, n);
    case N_GETATTR:
        v = eval(r, s, n->a);
        r->line = n->line;
        return jinja_failed(r) ? v : jinja_getattr(r, v, n->text);
    case N_FILTER:
        v = eval(r, s, n->a);
        return jinja_failed(r) ? v : eval_filter(r, s, n, v);
    case N_NOT:
        v = eval(r, s, n->a);
        return jinja_bool(!jinja_truth(&v));
    case N_AND:
        v = eval(r, s, n->a);
        return jinja_truth(&v) ? eval(r, s, n->b) : v;
    case N_OR:
        v = eval(r, s, n->a);
        return jinja_truth(&v) ? v : eval(r, s, n->b);
    case N_CHOICE:
        v = eval(r, s, n->a);
        if (jinja_truth(&v)) return eval(r, s, n->b);
        return n->c ? eval(r, s, n->c) : jinja_undefined("an if without else");
    default:
        return jinja_fail(r, "an expression that cannot stand here");
    }
}

static struct value eval(struct render *r, struct scope *s, const struct node *n) {
    struct value v = jinja_none();
    r->line = n->line;
    if (jinja_step(r, 1) && jinja_enter(r)) v = eval_node(r, s, n);
    r->depth--;
    return v;
}

static void assign(struct render *r, struct scope *s, const struct node *target, struct value v) {
    if (target->kind == N_NAME) {
        set_name(r, s, target->text, v);
    } else if (target->kind == N_GETATTR) {
        struct value space = eval_name(r, s, target->a->text);
        if (space.kind != V_NAMESPACE)
            jinja_fail(r, "%s.%s is set, but %s is not a namespace", target->a->text, target->text, target->a->text);
        else if (target->text[0] == '_')
            jinja_fail(r, "an attribute of a namespace cannot begin with _");
        else
            jinja_dict_set(r, space.dict, jinja_literal(target->text), v);
    } else {
        size_t want = 0, i = 0;
        for (const struct node *k = target->kids; k; k = k->next) want++;
        const struct list *l = jinja_elements(r, v);
        if (!l) return;
        if (l->count != want) {
            jinja_fail(r, "%zu values for %zu names", l->count, want);
            return;
        }
        for (const struct node *k = target->kids; k && !jinja_failed(r); k = k->next) assign(r, s, k, l->items[i++]);
    }
}

/* What the body prints, through the chain of filters. */
static struct value filtered_body(struct render *r, struct scope *s, const struct node *n) {
    struct text t = {0};
    run_body(r, new_scope(r, s), n->kids, &t);
    struct value v = jinja_text(r, &t);
    const struct node *chain[JINJA_NESTING];
    int count = 0;
    for (const struct node *f = n->b; f; f = f->a) {
        if (count == JINJA_NESTING) return jinja_fail(r, "too many filters in one chain");
        chain[count++] = f;
    }
    while (count-- > 0 && !jinja_failed(r)) v = eval_filter(r, s, chain[count], v);
    return v;
}

/* The items that pass the loop's own `if`, where the loop's names are set but `loop` is not. */
static const struct list *loop_items(struct render *r, struct scope *s, const struct node *n) {
    struct value v = eval(r, s, n->b);
    if (jinja_failed(r)) return NULL;
    const struct list *all = jinja_elements(r, v);
    if (!all || !n->c) return all;
    struct list *kept = jinja_list_new(r, LIST_PLAIN, 0);
    for (size_t i = 0; i < all->count && jinja_step(r, 1); i++) {
        struct scope *turn = new_scope(r, s);
        assign(r, turn, n->a, all->items[i]);
        if (jinja_failed(r)) break;
        struct value pass = eval(r, turn, n->c);
        if (jinja_truth(&pass)) jinja_list_add(r, kept, all->items[i]);
    }
    return kept;
}

static void run_for(struct render *r, struct scope *s, const struct node *n, struct text *out) {
    const struct list *l = loop_items(r, s, n);
    if (!l || jinja_failed(r)) return;
    struct loop *loop = jinja_alloc(&r->pool, sizeof *loop);
    *loop = (struct loop){l->items, 0, (int64_t)l->count};
    bool reached_end = false; // of some turn: else runs when none did, also when each was left by continue
    for (; loop->index < loop->count && jinja_step(r, 1); loop->index++) {
        struct scope *turn = new_scope(r, s);
        set_name(r, turn, "loop", (struct value){.kind = V_LOOP, .loop = loop});
        assign(r, turn, n->a, l->items[loop->index]);
        enum flow f = jinja_failed(r) ? FLOW_BREAK : run_body(r, turn, n->kids, out);
        reached_end |= f == FLOW_ON;
        if (f == FLOW_BREAK) break;
    }
    if (n->d && !reached_end && !jinja_failed(r)) run_body(r, new_scope(r, s), n->d->kids, out);
}

static enum flow run_if(struct render *r, struct scope *s, const struct node *n, struct text *out) {
    for (; n && n->kind == N_IF; n = n->b) {
        struct value v = eval(r, s, n->a);
        if (jinja_failed(r)) return FLOW_BREAK;
        if (jinja_truth(&v)) return run_body(r, s, n->kids, out);
    }
    return n ? run_body(r, s, n->kids, out) : FLOW_ON;
}

static struct value new_macro(struct render *r, struct scope *s, const struct node *n) {
    struct macro *m = jinja_alloc(&r->pool, sizeof *m);
    *m = (struct macro){n, s};
    return (struct value){.kind = V_MACRO, .macro = m};
}

/* {% call f(x) %} body {% endcall %}: f(x) where `caller` is the body; handed over as a named argument. */
static void run_call_block(struct render *r, struct scope *s, const struct node *n, struct text *out) {
    struct value f = eval(r, s, n->b->a);
    struct args a = eval_args(r, s, n->b->kids, callee_name(n->b->a));
    if (jinja_failed(r)) return;
    if (f.kind != V_MACRO) {
        jinja_fail(r, "{%% call %%} wants a macro, found %s", jinja_kind_name(&f));
        return;
    }
    struct named *named = jinja_alloc(&r->pool, (a.named_count + 1) * sizeof *named);
    if (a.named_count) memcpy(named, a.named, a.named_count * sizeof *named);
    named[a.named_count] = (struct named){"caller", new_macro(r, s, n)};
    a.named = named;
    a.named_count++;
    struct value v = call_macro(r, f.macro, &a);
    if (!jinja_failed(r)) jinja_print(r, out, &v);
}

/* Binds the parameters of m in s: by position, by name, by default. */
static void bind_parameters(struct render *r, struct scope *s, const struct macro *m, const struct args *a) {
    size_t i = 0, used = 0;
    for (const struct node *k = m->node->a; k && !jinja_failed(r); k = k->next, i++) {
        const struct value *given = jinja_arg(a, i, k->text);
        for (size_t j = 0; j < a->named_count; j++) {
            if (strcmp(a->named[j].name, k->text) != 0) continue;
            if (i < a->count) jinja_fail(r, "%s got two values for %s", a->of, k->text);
            used++;
        }
        if (given)
            set_name(r, s, k->text, *given);
        else
            set_name(r, s, k->text, k->a ? eval(r, s, k->a) : jinja_undefined(k->text));
    }
    const struct value *caller = jinja_arg(a, SIZE_MAX, "caller");
    if (caller && !find(r, s, "caller", false)) {
        set_name(r, s, "caller", *caller);
        used++;
    }
    if (a->count > i) jinja_fail(r, "%s takes %zu arguments, found %zu", a->of, i, a->count);
    if (a->named_count > used) jinja_fail(r, "%s got a named argument that it does not take", a->of);
}

static struct value call_macro(struct render *r, const struct macro *m, const struct args *a) {
    struct text t = {0};
    struct scope *s = new_scope(r, m->scope);
    if (jinja_enter(r)) bind_parameters(r, s, m, a);
    if (!jinja_failed(r)) run_body(r, s, m->node->kids, &t);
    r->depth--;
    return jinja_text(r, &t);
}

static enum flow run_with(struct render *r, struct scope *s, const struct node *n, struct text *out) {
    struct scope *inner = new_scope(r, s);
    for (const struct node *k = n->a; k && !jinja_failed(r); k = k->next) assign(r, inner, k->a, eval(r, s, k->b));
    return jinja_failed(r) ? FLOW_BREAK : run_body(r, inner, n->kids, out);
}

static enum flow run_statement(struct render *r, struct scope *s, const struct node *n, struct text *out) {
    struct value v;
    switch (n->kind) {
    case N_DATA:
        text_add_n(out, n->value.text, n->value.len);
        return FLOW_ON;
    case N_OUTPUT:
        v = eval(r, s, n->a);
        if (!jinja_failed(r)) jinja_print(r, out, &v);
        return FLOW_ON;
    case N_IF:
        return run_if(r, s, n, out);
    case N_FOR:
        run_for(r, s, n, out);
        return FLOW_ON;
    case N_SET:
        v = eval(r, s, n->b);
        if (!jinja_failed(r)) assign(r, s, n->a, v);
        return FLOW_ON;
    case N_SET_BLOCK:
        v = filtered_body(r, s, n);
        if (!jinja_failed(r)) assign(r, s, n->a, v);
        return FLOW_ON;
    case N_MACRO:
        set_name(r, s, n->text, new_macro(r, s, n));
        return FLOW_ON;
    case N_CALL_BLOCK:
        run_call_block(r, s, n, out);
        return FLOW_ON;
    case N_FILTER_BLOCK:
        v = filtered_body(r, s, n);
        if (!jinja_failed(r)) jinja_print(r, out, &v);
        return FLOW_ON;
    case N_WITH:
        return run_with(r, s, n, out);
    case N_SCOPE:
        return run_body(r, new_scope(r, s), n->kids, out);
    case N_BREAK:
        return FLOW_BREAK;
    case N_CONTINUE:
        return FLOW_CONTINUE;
    default:
        jinja_fail(r, "a statement that cannot stand here");
        return FLOW_BREAK;
    }
}

static enum flow run_body(struct render *r, struct scope *s, const struct node *first, struct text *out) {
    enum flow f = FLOW_ON;
    if (jinja_enter(r)) {
        for (const struct node *n = first; n && f == FLOW_ON; n = n->next) {
            r->line = n->line;
            size_t before = out->len;
            if (!jinja_step(r, 1)) break;
            f = run_statement(r, s, n, out);
            if (!jinja_step(r, (out->len - before) / 64)) break;
            if (out->len > JINJA_BYTES) jinja_fail(r, "the text grew beyond %d MiB", JINJA_BYTES >> 20);
        }
    }
    r->depth--;
    return f;
}

void jinja_run(struct render *r, const struct node *body, struct text *out) {
    run_body(r, new_scope(r, r->globals), body->kids, out);
}

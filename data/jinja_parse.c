/* Tokens to a tree, by recursive descent. After the first error the parser stands on T_END, where every loop stops. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "data/jinja_parts.h"

struct parser {
    struct pool *pool;
    const char *where;
    struct err *e;
    const struct token *t; // the next token
    int depth, loops;
};

static const struct token end_token = {.kind = T_END, .text = ""};

static struct node *new_node(struct parser *p, enum node_kind kind) {
    struct node *n = jinja_alloc(p->pool, sizeof *n);
    n->kind = kind;
    n->line = p->t->line;
    n->text = "";
    return n;
}

static struct node *fail_at(struct parser *p, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

static struct node *fail_at(struct parser *p, int line, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err_set(p->e, ST_FAIL, "%s: line %d: %s", p->where, line, text);
    p->t = &end_token;
    return new_node(p, N_CONST);
}

static const char *token_name(const struct token *t) {
    switch (t->kind) {
    case T_END:
        return "the end";
    case T_DATA:
        return "text";
    case T_VAR_BEGIN:
        return "{{";
    case T_VAR_END:
        return "}}";
    case T_BLOCK_BEGIN:
        return "{%";
    case T_BLOCK_END:
        return "%}";
    case T_STRING:
        return "a string";
    case T_INTEGER:
    case T_FLOAT:
        return "a number";
    default:
        return t->text;
    }
}

static struct node *wanted(struct parser *p, const char *what) {
    return fail_at(p, p->t->line, "wanted %s, found %.60s", what, token_name(p->t));
}

static bool is_operator(const struct parser *p, const char *s) {
    return p->t->kind == T_OPERATOR && strcmp(p->t->text, s) == 0;
}
static bool is_word(const struct token *t, const char *s) { return t->kind == T_NAME && strcmp(t->text, s) == 0; }

static bool take_operator(struct parser *p, const char *s) {
    if (!is_operator(p, s)) return false;
    p->t++;
    return true;
}

static bool take_word(struct parser *p, const char *s) {
    if (!is_word(p->t, s)) return false;
    p->t++;
    return true;
}

static void expect_operator(struct parser *p, const char *s) {
    if (!take_operator(p, s)) wanted(p, s);
}

static const char *expect_name(struct parser *p) {
    if (p->t->kind != T_NAME) return wanted(p, "a name"), "";
    return p->t++->text;
}

static bool too_deep(struct parser *p) {
    if (++p->depth <= JINJA_NESTING) return false;
    fail_at(p, p->t->line, "more than %d levels within each other", JINJA_NESTING);
    return true;
}

static struct node *parse_expression(struct parser *p);
static struct node *parse_or(struct parser *p);
static struct node *parse_unary(struct parser *p, bool filters);

static struct node *join2(struct parser *p, enum node_kind kind, const char *text, struct node *a, struct node *b) {
    struct node *n = new_node(p, kind);
    n->line = a->line;
    n->text = text;
    n->a = a;
    n->b = b;
    return n;
}

/* What follows "(": positional and named arguments up to ")". */
static struct node *parse_arguments(struct parser *p) {
    struct node *first = NULL, **last = &first;
    bool named = false;
    expect_operator(p, "(");
    while (p->t->kind != T_END && !is_operator(p, ")")) {
        if (is_operator(p, "*") || is_operator(p, "**"))
            return fail_at(p, p->t->line, "%s in a call is not supported", p->t->text);
        struct node *n;
        if (p->t->kind == T_NAME && p->t[1].kind == T_OPERATOR && strcmp(p->t[1].text, "=") == 0) {
            n = new_node(p, N_KEYWORD);
            n->text = p->t->text;
            p->t += 2;
            n->a = parse_expression(p);
            named = true;
        } else {
            if (named) return fail_at(p, p->t->line, "a positional argument follows a named one");
            n = parse_expression(p);
        }
        *last = n;
        last = &n->next;
        if (!take_operator(p, ",")) break;
    }
    expect_operator(p, ")");
    return first;
}

/* The index within brackets; "[" is taken already. */
static struct node *parse_index(struct parser *p) {
    struct node *n = new_node(p, N_SLICE);
    if (!is_operator(p, ":")) {
        struct node *index = parse_expression(p);
        if (!is_operator(p, ":")) return index;
        n->a = index;
    }
    p->t++;
    if (!is_operator(p, ":") && !is_operator(p, "]")) n->b = parse_expression(p);
    if (take_operator(p, ":") && !is_operator(p, "]")) n->c = parse_expression(p);
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n) {
    while (p->t->kind == T_OPERATOR) {
        if (take_operator(p, ".")) {
            if (p->t->kind == T_INTEGER) {
                struct node *key = new_node(p, N_CONST);
                key->value = jinja_int(p->t++->integer);
                n = join2(p, N_GETITEM, "", n, key);
            } else {
                n = join2(p, N_GETATTR, expect_name(p), n, NULL);
            }
        } else if (take_operator(p, "[")) {
            n = join2(p, N_GETITEM, "", n, parse_index(p));
            if (is_operator(p, ",")) return fail_at(p, p->t->line, "an index with a comma is not supported");
            expect_operator(p, "]");
        } else if (is_operator(p, "(")) {
            n = join2(p, N_CALL, "", n, NULL);
            n->kids = parse_arguments(p);
        } else {
            break;
        }
    }
    return n;
}

/* Expressions up to the closing bracket, a comma after the last is fine. */
static void parse_items(struct parser *p, struct node *list, const char *close) {
    struct node **last = &list->kids;
    while (p->t->kind != T_END && !is_operator(p, close)) {
        *last = parse_expression(p);
        last = &(*last)->next;
        if (list->kind == N_DICT) {
            expect_operator(p, ":");
            *last = parse_expression(p);
            last = &(*last)->next;
        }
        if (!take_operator(p, ",")) break;
    }
    expect_operator(p, close);
}

static struct node *parse_bracket(struct parser *p) {
    struct node *n = new_node(p, is_operator(p, "[") ? N_LIST : is_operator(p, "{") ? N_DICT : N_TUPLE);
    p->t++;
    if (n->kind == N_LIST) return parse_items(p, n, "]"), n;
    if (n->kind == N_DICT) return parse_items(p, n, "}"), n;
    if (take_operator(p, ")")) return n;
    n->kids = parse_expression(p);
    if (take_operator(p, ")")) return n->kids;
    expect_operator(p, ",");
    struct node *rest = new_node(p, N_TUPLE);
    parse_items(p, rest, ")");
    n->kids->next = rest->kids;
    return n;
}

static struct node *parse_constant(struct parser *p) {
    struct node *n = new_node(p, N_CONST);
    const struct token *t = p->t++;
    if (t->kind == T_INTEGER) n->value = jinja_int(t->integer);
    if (t->kind == T_FLOAT) n->value = jinja_float(t->real);
    if (t->kind != T_STRING) return n;
    const char *s = t->text;
    size_t len = t->len;
    for (; p->t->kind == T_STRING; p->t++) { // neighbours are one string
        char *both = jinja_alloc(p->pool, len + p->t->len + 1);
        memcpy(both, s, len);
        memcpy(both + len, p->t->text, p->t->len);
        s = both;
        len += p->t->len;
    }
    n->value = (struct value){.kind = V_STRING, .text = s, .len = len};
    return n;
}

static struct node *parse_primary(struct parser *p) {
    const struct token *t = p->t;
    if (t->kind == T_STRING || t->kind == T_INTEGER || t->kind == T_FLOAT) return parse_constant(p);
    if (is_operator(p, "(") || is_operator(p, "[") || is_operator(p, "{")) return parse_bracket(p);
    if (t->kind != T_NAME) return wanted(p, "an expression");
    struct node *n = new_node(p, N_CONST);
    p->t++;
    if (strcmp(t->text, "true") == 0 || strcmp(t->text, "True") == 0)
        n->value = jinja_bool(true);
    else if (strcmp(t->text, "false") == 0 || strcmp(t->text, "False") == 0)
        n->value = jinja_bool(false);
    else if (strcmp(t->text, "none") == 0 || strcmp(t->text, "None") == 0)
        n->value = jinja_none();
    else
        n->kind = N_NAME, n->text = t->text;
    return n;
}

/* One filter after its "|", or at the head of a filter block. */
static struct node *parse_filter(struct parser *p, struct node *of) {
    struct node *n = new_node(p, N_FILTER);
    n->a = of;
    n->text = expect_name(p);
    if (*n->text && !jinja_filter_known(n->text))
        return fail_at(p, n->line, "the filter %.60s is not supported", n->text);
    if (is_operator(p, "(")) n->kids = parse_arguments(p);
    return n;
}

static struct node *parse_test(struct parser *p, struct node *of) {
    bool negated = take_word(p, "not");
    struct node *n = new_node(p, N_TEST);
    n->a = of;
    n->text = expect_name(p);
    if (*n->text && !jinja_test_known(n->text)) return fail_at(p, n->line, "the test %.60s is not supported", n->text);
    bool ends = is_word(p->t, "else") || is_word(p->t, "or") || is_word(p->t, "and");
    if (is_operator(p, "("))
        n->kids = parse_arguments(p);
    else if (is_word(p->t, "is"))
        return fail_at(p, p->t->line, "a test cannot follow a test");
    else if (!ends && (p->t->kind == T_NAME || p->t->kind == T_STRING || p->t->kind == T_INTEGER ||
                       p->t->kind == T_FLOAT || is_operator(p, "[") || is_operator(p, "{")))
        n->kids = parse_postfix(p, parse_primary(p));
    return negated ? join2(p, N_NOT, "", n, NULL) : n;
}

static struct node *parse_filters(struct parser *p, struct node *n) {
    for (;;) {
        if (take_operator(p, "|")) {
            n = parse_filter(p, n);
        } else if (take_word(p, "is")) {
            n = parse_test(p, n);
        } else if (is_operator(p, "(")) {
            n = join2(p, N_CALL, "", n, NULL);
            n->kids = parse_arguments(p);
        } else {
            return n;
        }
    }
}

static struct node *parse_unary(struct parser *p, bool filters) {
    struct node *n;
    if (too_deep(p)) return new_node(p, N_CONST);
    if (is_operator(p, "-") || is_operator(p, "+")) {
        n = new_node(p, is_operator(p, "-") ? N_NEGATE : N_PLUS);
        p->t++;
        n->a = parse_unary(p, false);
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    if (filters) n = parse_filters(p, n);
    p->depth--;
    return n;
}

static struct node *parse_power(struct parser *p) {
    struct node *n = parse_unary(p, true);
    while (take_operator(p, "**")) n = join2(p, N_BINARY, "**", n, parse_unary(p, true));
    return n;
}

static struct node *parse_product(struct parser *p) {
    struct node *n = parse_power(p);
    while (is_operator(p, "*") || is_operator(p, "/") || is_operator(p, "//") || is_operator(p, "%")) {
        const char *op = p->t++->text;
        n = join2(p, N_BINARY, op, n, parse_power(p));
    }
    return n;
}

static struct node *parse_concat(struct parser *p) {
    struct node *first = parse_product(p);
    if (!is_operator(p, "~")) return first;
    struct node *n = join2(p, N_CONCAT, "", first, NULL), **last = &first->next;
    n->kids = first;
    while (take_operator(p, "~")) {
        *last = parse_product(p);
        last = &(*last)->next;
    }
    return n;
}

static struct node *parse_sum(struct parser *p) {
    struct node *n = parse_concat(p);
    while (is_operator(p, "+") || is_operator(p, "-")) {
        const char *op = p->t++->text;
        n = join2(p, N_BINARY, op, n, parse_concat(p));
    }
    return n;
}

/* Takes a comparison operator, or gives NULL. */
static const char *take_comparison(struct parser *p) {
    static const char *const all[] = {"==", "!=", "<", "<=", ">", ">="};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (take_operator(p, all[i])) return all[i];
    if (take_word(p, "in")) return "in";
    if (!is_word(p->t, "not") || !is_word(p->t + 1, "in")) return NULL;
    p->t += 2;
    return "not in";
}

static struct node *parse_comparison(struct parser *p) {
    struct node *first = parse_sum(p), *n = NULL, **last = NULL;
    for (const char *op; (op = take_comparison(p));) {
        if (!n) {
            n = join2(p, N_COMPARE, "", first, NULL);
            last = &n->kids;
        }
        *last = join2(p, N_OPERAND, op, parse_sum(p), NULL);
        last = &(*last)->next;
    }
    return n ? n : first;
}

static struct node *parse_not(struct parser *p) {
    if (!is_word(p->t, "not")) return parse_comparison(p);
    struct node *n = new_node(p, N_NOT);
    p->t++;
    if (too_deep(p)) return n;
    n->a = parse_not(p);
    p->depth--;
    return n;
}

static struct node *parse_and(struct parser *p) {
    struct node *n = parse_not(p);
    while (take_word(p, "and")) n = join2(p, N_AND, "", n, parse_not(p));
    return n;
}

static struct node *parse_or(struct parser *p) {
    struct node *n = parse_and(p);
    while (take_word(p, "or")) n = join2(p, N_OR, "", n, parse_and(p));
    return n;
}

static struct node *parse_expression(struct parser *p) {
    if (too_deep(p)) return new_node(p, N_CONST);
    struct node *n = parse_or(p);
    while (take_word(p, "if")) {
        struct node *test = parse_or(p);
        n = join2(p, N_CHOICE, "", test, n);
        if (take_word(p, "else")) n->c = parse_expression(p);
    }
    p->depth--;
    return n;
}

/* One expression, or a tuple without brackets. Choices are left out in the items of a loop, where `if` filters. */
static struct node *parse_tuple(struct parser *p, bool choices) {
    struct node *first = choices ? parse_expression(p) : parse_or(p);
    if (!is_operator(p, ",")) return first;
    struct node *n = join2(p, N_TUPLE, "", first, NULL), **last = &first->next;
    n->a = NULL;
    n->kids = first;
    while (take_operator(p, ",")) {
        bool ends = p->t->kind == T_VAR_END || p->t->kind == T_BLOCK_END || p->t->kind == T_END || is_operator(p, ")");
        if (ends) break;
        *last = choices ? parse_expression(p) : parse_or(p);
        last = &(*last)->next;
    }
    return n;
}

static struct node *parse_target_name(struct parser *p, bool attributes) {
    struct node *n = new_node(p, N_NAME);
    if (take_operator(p, "(")) {
        n->kind = N_TUPLE;
        struct node **last = &n->kids;
        if (too_deep(p)) return n;
        do {
            if (is_operator(p, ")")) break;
            *last = parse_target_name(p, attributes);
            last = &(*last)->next;
        } while (take_operator(p, ","));
        p->depth--;
        expect_operator(p, ")");
        return n;
    }
    n->text = expect_name(p);
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (strcmp(n->text, constants[i]) == 0) return fail_at(p, n->line, "cannot assign to %s", n->text);
    if (attributes && take_operator(p, ".")) n = join2(p, N_GETATTR, expect_name(p), n, NULL);
    return n;
}

/* What is assigned to: a name, an attribute of a namespace, or a tuple of these. */
static struct node *parse_target(struct parser *p, bool attributes) {
    struct node *first = parse_target_name(p, attributes);
    if (!is_operator(p, ",")) return first;
    struct node *n = join2(p, N_TUPLE, "", first, NULL), **last = &first->next;
    n->a = NULL;
    n->kids = first;
    while (take_operator(p, ",")) {
        if (p->t->kind != T_NAME && !is_operator(p, "(")) break;
        if (is_word(p->t, "in")) break;
        *last = parse_target_name(p, attributes);
        last = &(*last)->next;
    }
    return n;
}

static struct node *parse_statement(struct parser *p);

static void expect_block_end(struct parser *p) {
    if (p->t->kind != T_BLOCK_END) {
        wanted(p, "%}");
        return;
    }
    p->t++;
}

/* Statements up to a tag with one of the words in ends (a list that ends in NULL), which stays the next token; the
 * whole template when ends is NULL. */
static struct node *parse_body(struct parser *p, const char *const *ends) {
    struct node *first = NULL, **last = &first;
    int line = p->t->line;
    if (too_deep(p)) return NULL;
    while (p->t->kind != T_END) {
        struct node *n;
        if (p->t->kind == T_DATA) {
            n = new_node(p, N_DATA);
            n->value = (struct value){.kind = V_STRING, .text = p->t->text, .len = p->t->len};
            p->t++;
        } else if (p->t->kind == T_VAR_BEGIN) {
            n = new_node(p, N_OUTPUT);
            p->t++;
            n->a = parse_tuple(p, true);
            if (p->t->kind != T_VAR_END) return wanted(p, "}}");
            p->t++;
        } else {
            p->t++; // T_BLOCK_BEGIN: the lexer gives nothing else outside of tags
            for (int i = 0; ends && ends[i]; i++)
                if (is_word(p->t, ends[i])) return p->depth--, first;
            n = parse_statement(p);
            expect_block_end(p);
        }
        *last = n;
        last = &n->next;
    }
    p->depth--;
    if (ends) fail_at(p, line, "a block begins here that has no {%% %s %%}", ends[0]);
    return first;
}

static struct node *body_until(struct parser *p, const char *end) {
    expect_block_end(p);
    struct node *body = parse_body(p, (const char *const[]){end, NULL});
    p->t += p->t->kind != T_END;
    return body;
}

static struct node *parse_if(struct parser *p) {
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    struct node *first = new_node(p, N_IF), *n = first;
    for (;;) {
        n->a = parse_tuple(p, false);
        expect_block_end(p);
        n->kids = parse_body(p, ends);
        if (!take_word(p, "elif")) break;
        n->b = new_node(p, N_IF);
        n = n->b;
    }
    if (take_word(p, "else")) {
        n->b = new_node(p, N_SCOPE);
        n->b->kids = body_until(p, "endif");
    } else {
        p->t += p->t->kind != T_END;
    }
    return first;
}

static struct node *parse_for(struct parser *p) {
    static const char *const ends[] = {"endfor", "else", NULL};
    struct node *n = new_node(p, N_FOR);
    n->a = parse_target(p, false);
    if (!take_word(p, "in")) return wanted(p, "in");
    n->b = parse_tuple(p, false);
    if (take_word(p, "if")) n->c = parse_expression(p);
    if (is_word(p->t, "recursive")) return fail_at(p, p->t->line, "a recursive for is not supported");
    expect_block_end(p);
    p->loops++;
    n->kids = parse_body(p, ends);
    p->loops--;
    if (take_word(p, "else")) {
        n->d = new_node(p, N_SCOPE);
        n->d->kids = body_until(p, "endfor");
    } else {
        p->t += p->t->kind != T_END;
    }
    return n;
}

static struct node *parse_set(struct parser *p) {
    struct node *n = new_node(p, N_SET);
    n->a = parse_target(p, true);
    if (take_operator(p, "=")) {
        n->b = parse_tuple(p, true);
        return n;
    }
    n->kind = N_SET_BLOCK;
    if (n->a->kind == N_TUPLE) return wanted(p, "=");
    while (take_operator(p, "|")) n->b = parse_filter(p, n->b);
    n->kids = body_until(p, "endset");
    return n;
}

/* "(a, b=1)": names, each with its default in a. */
static struct node *parse_parameters(struct parser *p) {
    struct node *first = NULL, **last = &first;
    bool defaults = false;
    expect_operator(p, "(");
    while (p->t->kind != T_END && !is_operator(p, ")")) {
        struct node *n = new_node(p, N_NAME);
        n->text = expect_name(p);
        if (take_operator(p, "=")) {
            n->a = parse_expression(p);
            defaults = true;
        } else if (defaults) {
            return fail_at(p, n->line, "a parameter without default follows one with a default");
        }
        *last = n;
        last = &n->next;
        if (!take_operator(p, ",")) break;
    }
    expect_operator(p, ")");
    return first;
}

/* The body of what is called has its own loops: break cannot leave it. */
static struct node *called_body(struct parser *p, const char *end) {
    int loops = p->loops;
    p->loops = 0;
    struct node *body = body_until(p, end);
    p->loops = loops;
    return body;
}

static struct node *parse_macro(struct parser *p) {
    struct node *n = new_node(p, N_MACRO);
    n->text = expect_name(p);
    n->a = parse_parameters(p);
    n->kids = called_body(p, "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p) {
    struct node *n = new_node(p, N_CALL_BLOCK);
    n->text = "caller";
    if (is_operator(p, "(")) n->a = parse_parameters(p);
    n->b = parse_expression(p);
    if (n->b->kind != N_CALL) return fail_at(p, n->line, "wanted a call after {%% call");
    n->kids = called_body(p, "endcall");
    return n;
}

static struct node *parse_with(struct parser *p) {
    struct node *n = new_node(p, N_WITH), **last = &n->a;
    while (p->t->kind != T_END && p->t->kind != T_BLOCK_END) {
        struct node *set = new_node(p, N_SET);
        set->a = parse_target_name(p, false);
        expect_operator(p, "=");
        set->b = parse_expression(p);
        *last = set;
        last = &set->next;
        if (!take_operator(p, ",")) break;
    }
    n->kids = body_until(p, "endwith");
    return n;
}

static struct node *parse_filter_block(struct parser *p) {
    struct node *n = new_node(p, N_FILTER_BLOCK);
    n->b = parse_filter(p, NULL);
    while (take_operator(p, "|")) n->b = parse_filter(p, n->b);
    n->kids = body_until(p, "endfilter");
    return n;
}

static struct node *parse_statement(struct parser *p) {
    const struct token *t = p->t;
    const char *word = expect_name(p);
    if (strcmp(word, "if") == 0) return parse_if(p);
    if (strcmp(word, "for") == 0) return parse_for(p);
    if (strcmp(word, "set") == 0) return parse_set(p);
    if (strcmp(word, "macro") == 0) return parse_macro(p);
    if (strcmp(word, "call") == 0) return parse_call_block(p);
    if (strcmp(word, "with") == 0) return parse_with(p);
    if (strcmp(word, "filter") == 0) return parse_filter_block(p);
    struct node *n = new_node(p, N_SCOPE);
    n->line = t->line;
    if (strcmp(word, "generation") == 0) return n->kids = called_body(p, "endgeneration"), n;
    n->kind = strcmp(word, "break") == 0 ? N_BREAK : N_CONTINUE;
    if (strcmp(word, "break") != 0 && strcmp(word, "continue") != 0)
        return fail_at(p, t->line, "{%% %.60s %%} is not supported here", word);
    if (p->loops == 0) return fail_at(p, t->line, "{%% %s %%} stands outside of a loop", word);
    return n;
}

struct node *jinja_parse(struct pool *pool, const struct token *tokens, const char *where, struct err *e) {
    struct parser p = {.pool = pool, .where = where, .e = e, .t = tokens};
    struct node *n = new_node(&p, N_SCOPE);
    n->kids = parse_body(&p, NULL);
    return e->code == ST_OK ? n : NULL;
}

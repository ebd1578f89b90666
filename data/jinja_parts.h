/* What the files of the Jinja interpreter share; nobody else includes it.
 *
 * Read in this order: jinja_lex.c (source to tokens, white space control), jinja_parse.c (tokens to a tree),
 * jinja_eval.c (the tree walked), jinja_value.c and jinja_print.c (what values are and print as), jinja_access.c and
 * jinja_text.c (indices, operators), jinja_filters.c, jinja_lists.c, jinja_tests.c and jinja_methods.c (the library),
 * jinja.c (the ends).
 *
 * A template comes from a download and may be hostile. The tree is bounded by the source and by a nesting limit; a
 * rendering counts its steps, its bytes and its depth, and stops with an error at the limits below. Nothing a template
 * holds can be changed by it except the attributes of a namespace, so values have no cycles outside of namespaces.
 * Errors are sticky: the first one is kept, every loop ends when there is one, and the values that are still handed
 * around are undefined. Memory is a pool that goes with the template or with the rendering. */
#ifndef DATA_JINJA_PARTS_H
#define DATA_JINJA_PARTS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"

enum {
    JINJA_NESTING = 150,         // blocks, brackets and operators within each other in the source
    JINJA_DEPTH = 1200,          // calls within calls, values within values, terms of one long sum
    JINJA_STEPS = 20000000,      // nodes visited; long strings and lists count by their length
    JINJA_BYTES = 256 << 20,     // what one rendering may hold
    JINJA_SOURCE_BYTES = 4 << 20 // of a template
};

/* Memory that is given back all at once. */
struct pool {
    struct chunk *chunks;
    size_t bytes;
};
void *jinja_alloc(struct pool *p, size_t bytes); // zeroed
void jinja_pool_free(struct pool *p);

enum value_kind {
    V_UNDEFINED, // text: what is undefined, for the error when it is used
    V_NONE,
    V_BOOLEAN,
    V_INTEGER,
    V_FLOAT,
    V_STRING, // text, len bytes of UTF-8
    V_LIST,
    V_DICT,
    V_NAMESPACE,
    V_MACRO,
    V_METHOD,   // of a value, not yet called
    V_FUNCTION, // text: its name
    V_LOOP,
};

struct value {
    enum value_kind kind;
    bool markup; // a string that passed `safe` or `escape`: what is added to it is escaped
    size_t len;
    union {
        bool truth;
        int64_t integer;
        double real;
        const char *text;
        struct list *list;
        struct dict *dict; // of a namespace too
        const struct macro *macro;
        const struct method *method;
        const struct loop *loop;
    };
};

/* A view (d.items()) has no index; a generator (what select gives) is used up by reading it and is always true. */
enum list_kind { LIST_PLAIN, LIST_TUPLE, LIST_RANGE, LIST_VIEW, LIST_GENERATOR };

struct list {
    enum list_kind kind;
    size_t count, room;
    struct value *items;
};

struct pair {
    struct value key, value;
};

struct dict {
    size_t count, room;
    struct pair *pairs; // in the order of insertion
};

struct method {
    struct value self;
    const char *name;
};

struct macro {
    const struct node *node; // N_MACRO, or N_CALL_BLOCK for what `caller` is
    struct scope *scope;     // where it was defined
};

struct loop {
    const struct value *items;
    int64_t index, count; // index from 0
};

struct binding {
    const char *name;
    struct value value;
    struct binding *next;
};

struct scope {
    struct scope *parent;
    struct binding *bindings;
};

enum token_kind {
    T_END,
    T_DATA,
    T_VAR_BEGIN,
    T_VAR_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INTEGER,
    T_FLOAT,
    T_OPERATOR
};

struct token {
    enum token_kind kind;
    int line;
    const char *text; // the name, the operator, the string unescaped
    size_t len;
    int64_t integer;
    double real;
};

enum node_kind {
    // expressions
    N_CONST,   // value
    N_NAME,    // text
    N_LIST,    // kids
    N_TUPLE,   // kids; also a target
    N_DICT,    // kids: key, value, key, value
    N_GETATTR, // a . text; as a target, a is the name of a namespace
    N_GETITEM, // a [ b ]
    N_SLICE,   // a : b : c, each may be missing
    N_CALL,    // a ( kids )
    N_KEYWORD, // text = a, among the kids of a call
    N_FILTER,  // a | text ( kids ); a is missing in a chain that filters a block
    N_TEST,    // a is text ( kids )
    N_NOT,     // a
    N_NEGATE,  // a
    N_PLUS,    // a
    N_AND,     // a, b
    N_OR,      // a, b
    N_CHOICE,  // b if a else c, which may be missing
    N_BINARY,  // a text b
    N_CONCAT,  // kids
    N_COMPARE, // a, kids: N_OPERAND
    N_OPERAND, // text a
    // statements
    N_DATA,         // value
    N_OUTPUT,       // a
    N_IF,           // a, kids; b: the N_IF of an elif, or an N_SCOPE for else
    N_FOR,          // target a, items b, filter c, kids; d: N_SCOPE of else
    N_SET,          // target a, value b
    N_SET_BLOCK,    // target a, filters b, kids
    N_MACRO,        // text, a: first parameter (N_NAME with a default in a), kids
    N_CALL_BLOCK,   // a: the parameters of caller, b: the call, kids
    N_FILTER_BLOCK, // b: filters, kids
    N_WITH,         // a: first N_SET, kids
    N_SCOPE,        // kids
    N_BREAK,
    N_CONTINUE,
};

struct node {
    enum node_kind kind;
    int line;
    const char *text;
    struct value value;
    struct node *a, *b, *c, *d;
    struct node *kids, *next; // a list of children, and the next in the list that this one is in
};

struct jinja {
    struct pool pool;
    char *where;
    struct node *body; // N_SCOPE
};

/* The tokens of source, ending in T_END; NULL with the error set. */
const struct token *jinja_lex(struct pool *p, const char *source, const char *where, struct err *e);
struct node *jinja_parse(struct pool *p, const struct token *tokens, const char *where, struct err *e);

/* One rendering. */
struct render {
    const char *where;
    struct pool pool;
    struct err err;
    int64_t steps;
    int depth, line;
    struct scope *globals;
};

struct named {
    const char *name;
    struct value value;
};

/* Evaluated arguments of a call. */
struct args {
    const char *of; // what is called, for errors
    struct value *at;
    struct named *named;
    size_t count, named_count;
};

struct value jinja_fail(struct render *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool jinja_failed(const struct render *r);
bool jinja_step(struct render *r, size_t n);        // counts n steps; false when the rendering has to end
bool jinja_enter(struct render *r);                 // one level deeper; pair with r->depth--, also when it fails
void *jinja_room(struct render *r, size_t bytes);   // NULL, with the error set, beyond the limit
const char *jinja_kind_name(const struct value *v); // "a string"

struct value jinja_string(struct render *r, const char *s, size_t n); // copies
struct value jinja_text(struct render *r, struct text *t);            // copies and frees t
struct value jinja_literal(const char *s);                            // s must live as long as the rendering
struct value jinja_bool(bool b);
struct value jinja_int(int64_t i);
struct value jinja_float(double x);
struct value jinja_none(void);
struct value jinja_undefined(const char *what);
struct value jinja_json(struct render *r, const cJSON *j);

struct list *jinja_list_new(struct render *r, enum list_kind kind, size_t room);
void jinja_list_add(struct render *r, struct list *l, struct value v);
struct value jinja_list_value(struct list *l);
struct dict *jinja_dict_new(struct render *r, size_t room);
void jinja_dict_set(struct render *r, struct dict *d, struct value key, struct value v);
const struct value *jinja_dict_get(struct render *r, const struct dict *d, const struct value *key);
const struct value *jinja_dict_find(const struct dict *d, const char *key);
bool jinja_is_text(const struct value *v, const char *s);

bool jinja_truth(const struct value *v);
bool jinja_number(const struct value *v, double *x); // booleans count as 0 and 1
bool jinja_whole(const struct value *v, int64_t *i); // an integer or a boolean
bool jinja_equal(struct render *r, const struct value *a, const struct value *b);
int jinja_order(struct render *r, const struct value *a, const struct value *b); // < 0, 0, > 0
bool jinja_contains(struct render *r, const struct value *in, const struct value *v);
void jinja_print(struct render *r, struct text *out, const struct value *v); // as {{ v }} does
struct value jinja_to_string(struct render *r, struct value v);              // a string stays as it is

/* How tojson writes. */
struct json_style {
    bool ascii, sort, pretty;
    const char *indent, *comma, *colon;
};
void jinja_dump(struct render *r, struct text *out, const struct value *v, const struct json_style *style, int level);

/* The elements that a loop over v visits, as a list that must not be changed; NULL with the error set. */
const struct list *jinja_elements(struct render *r, struct value v);
size_t jinja_length(struct render *r, const struct value *v);
size_t jinja_runes(const char *s, size_t n);
bool jinja_space(unsigned rune); // what Python's str.isspace says

struct value jinja_getattr(struct render *r, struct value v, const char *name);
struct value jinja_getitem(struct render *r, struct value v, struct value key);
struct value jinja_slice(struct render *r, struct value v, const struct value part[3]); // undefined: left out
struct value jinja_binary(struct render *r, const char *op, struct value a, struct value b);

/* Argument i, or the one of that name, or NULL. */
const struct value *jinja_arg(const struct args *a, size_t i, const char *name);
/* False, with the error set, when there are more than most, fewer than least, or an unknown name (names ends in
 * NULL). */
bool jinja_args_check(struct render *r, const struct args *a, size_t least, size_t most, const char *const *names);
bool jinja_arg_whole(struct render *r, const struct args *a, size_t i, const char *name, int64_t fallback,
                     int64_t *out);
bool jinja_arg_truth(const struct args *a, size_t i, const char *name, bool fallback);
/* A string, or NULL where it is left out or none; false, with the error set, for anything else. */
bool jinja_arg_text(struct render *r, const struct args *a, size_t i, const char *name, const struct value **out);

struct value jinja_filter(struct render *r, const char *name, struct value v, const struct args *a);
struct value jinja_list_filter(struct render *r, const char *name, struct value v, const struct args *a);
bool jinja_list_filter_known(const char *name);
bool jinja_filter_known(const char *name);
bool jinja_test(struct render *r, const char *name, struct value v, const struct args *a);
bool jinja_test_known(const char *name);
bool jinja_method_known(const struct value *v, const char *name);
struct value jinja_method(struct render *r, const struct method *m, const struct args *a);
struct value jinja_function(struct render *r, const char *name, const struct args *a);
bool jinja_function_known(const char *name);
void jinja_run(struct render *r, const struct node *body, struct text *out);

/* Text operations that filters and methods share. */
enum letter_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITAL, CASE_WORDS };
struct value jinja_recase(struct render *r, struct value s, enum letter_case how);
struct value jinja_strip(struct render *r, struct value s, const struct value *chars, bool left, bool right);
struct value jinja_replace(struct render *r, struct value s, struct value from, struct value to, int64_t most);
struct value jinja_join(struct render *r, struct value glue, const struct list *parts, bool convert);
struct value jinja_lines(struct render *r, struct value s);
void jinja_escape(struct text *out, const char *s, size_t n);

#endif

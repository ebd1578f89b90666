/* Template source to tokens. Text outside of tags becomes T_DATA with the white space control already applied:
 * a tag that begins with '-' takes the white space before it, a block or comment tag without '+' takes the blanks
 * between it and the start of its line, a tag that ends with '-' takes the white space after it, and a block or
 * comment tag takes the newline that follows it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/jinja_parts.h"

struct lexer {
    struct pool *pool;
    const char *where;
    struct err *e;
    const char *at, *end;
    int line;
    bool line_start; // what was read last ended with a newline
    struct token *tokens;
    size_t count, room;
    char open[JINJA_NESTING]; // brackets that are open within the tag
    int depth;
};

static bool fail_at(struct lexer *x, const char *what) {
    err_set(x->e, ST_FAIL, "%s: line %d: %s", x->where, x->line, what);
    return false;
}

static struct token *add_token(struct lexer *x, enum token_kind kind) {
    if (x->count == x->room) {
        x->room = x->room ? 2 * x->room : 64;
        x->tokens = mem_resize(x->tokens, x->room * sizeof *x->tokens);
    }
    struct token *t = &x->tokens[x->count++];
    *t = (struct token){.kind = kind, .line = x->line, .text = ""};
    return t;
}

static void set_text(struct lexer *x, struct token *t, const char *s, size_t n) {
    char *copy = jinja_alloc(x->pool, n + 1);
    memcpy(copy, s, n);
    t->text = copy;
    t->len = n;
}

static bool starts(const struct lexer *x, const char *at, const char *s) {
    size_t n = strlen(s);
    return (size_t)(x->end - at) >= n && memcmp(at, s, n) == 0;
}

/* The first byte of s that is not white space. */
static const char *skip_space(const char *s, const char *end) {
    while (s < end) {
        int n;
        if (!jinja_space(utf8_rune(s, &n))) break;
        s += n;
    }
    return s;
}

/* The end of s without the white space at its end. */
static const char *trim_end(const char *s, const char *end) {
    while (end > s) {
        const char *p = end - 1;
        while (p > s && ((unsigned char)*p & 0xC0) == 0x80) p--;
        int n;
        if (!jinja_space(utf8_rune(p, &n))) break;
        end = p;
    }
    return end;
}

static void advance(struct lexer *x, const char *to) {
    for (const char *p = x->at; p < to; p++) x->line += *p == '\n';
    if (to > x->at) x->line_start = to[-1] == '\n';
    x->at = to;
}

/* The text from x->at up to a tag at `to`, whose sign is '-', '+' or 0. */
static void add_data(struct lexer *x, const char *to, char sign, bool variable) {
    const char *stop = to;
    if (sign == '-') {
        stop = trim_end(x->at, to);
    } else if (sign != '+' && !variable) {
        const char *line = to;
        while (line > x->at && line[-1] != '\n') line--;
        if ((line > x->at || x->line_start) && skip_space(line, to) == to) stop = line;
    }
    if (stop > x->at) set_text(x, add_token(x, T_DATA), x->at, (size_t)(stop - x->at));
    advance(x, to);
}

/* Where the end of a block or comment tag stops, if one begins at `at`, else NULL. close is "%}" or "#}". */
static const char *tag_end(const struct lexer *x, const char *at, const char *close) {
    if (*at == '+' && starts(x, at + 1, close)) return at + 3;
    if (*at == '-' && starts(x, at + 1, close)) return skip_space(at + 3, x->end);
    if (!starts(x, at, close)) return NULL;
    return at + 2 < x->end && at[2] == '\n' ? at + 3 : at + 2;
}

static bool read_comment(struct lexer *x) {
    for (const char *p = x->at; p < x->end; p++) {
        const char *stop = tag_end(x, p, "#}");
        if (stop) return advance(x, stop), true;
    }
    return fail_at(x, "a comment is not closed, wanted #}");
}

static bool word(const struct lexer *x, const char **at, const char *s) {
    const char *p = skip_space(*at, x->end);
    if (!starts(x, p, s)) return false;
    *at = skip_space(p + strlen(s), x->end);
    return true;
}

/* After "{%" and its sign: where "raw %}" stops, else NULL. */
static const char *raw_begin(const struct lexer *x, const char *at) {
    if (!word(x, &at, "raw")) return NULL;
    if (starts(x, at, "-%}")) return skip_space(at + 3, x->end);
    return starts(x, at, "%}") ? at + 2 : NULL;
}

static char sign_at(const struct lexer *x, const char *at) {
    return at < x->end && (*at == '-' || *at == '+') ? *at : 0;
}

static bool read_raw(struct lexer *x) {
    for (const char *p = x->at; p < x->end; p++) {
        if (!starts(x, p, "{%")) continue;
        char sign = sign_at(x, p + 2);
        const char *at = p + 2 + (sign != 0), *stop;
        if (!word(x, &at, "endraw") || !(stop = tag_end(x, at, "%}"))) continue;
        add_data(x, p, sign, false);
        advance(x, stop);
        return true;
    }
    return fail_at(x, "a raw block is not closed, wanted {% endraw %}");
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name(char c) { return is_digit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* Digits with single underscores between them; returns where they stop. */
static const char *digits(const struct lexer *x, const char *p) {
    while (p < x->end && (is_digit(*p) || (*p == '_' && p + 1 < x->end && is_digit(p[1])))) p++;
    return p;
}

static bool read_number(struct lexer *x) {
    const char *p = digits(x, x->at), *q;
    bool real = false;
    bool after_dot = x->count && x->tokens[x->count - 1].kind == T_OPERATOR && x->at[-1] == '.';
    if (!after_dot && p + 1 < x->end && *p == '.' && is_digit(p[1])) real = true, p = digits(x, p + 1);
    if (!after_dot && p < x->end && (*p == 'e' || *p == 'E')) {
        q = p + 1 + (p + 1 < x->end && (p[1] == '+' || p[1] == '-'));
        if (q < x->end && is_digit(*q)) real = true, p = digits(x, q);
    }
    if (p < x->end && is_name(*p)) return fail_at(x, "a number runs into a name");
    struct token *t = add_token(x, real ? T_FLOAT : T_INTEGER);
    struct text plain = {0};
    for (q = x->at; q < p; q++)
        if (*q != '_') text_add_char(&plain, *q);
    errno = 0;
    t->real = strtod(text_str(&plain), NULL);
    errno = 0;
    if (!real) t->integer = strtoll(text_str(&plain), NULL, 10);
    bool beyond = !real && errno == ERANGE;
    text_free(&plain);
    if (beyond) return fail_at(x, "an integer has more than 64 bits");
    advance(x, p);
    return true;
}

static int hex_digit(char c) {
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The escape at p (after the backslash, before end); returns where it stops, or NULL with the error set. */
static const char *unescape(struct lexer *x, struct text *out, const char *p, const char *end) {
    static const char from[] = "ntrabfv\\'\"", to[] = "\n\t\r\a\b\f\v\\'\"";
    const char *known = strchr(from, *p);
    if (known) return text_add_char(out, to[known - from]), p + 1;
    if (*p == '\n') return p + 1;
    unsigned rune = 0;
    if (*p >= '0' && *p <= '7') {
        for (int i = 0; i < 3 && p < end && *p >= '0' && *p <= '7'; i++) rune = 8 * rune + (unsigned)(*p++ - '0');
        return text_add_rune(out, rune), p;
    }
    int want = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;
    if (*p == 'N') return fail_at(x, "\\N{...} in a string is not supported"), NULL;
    if (want == 0) return text_add_char(out, '\\'), p; // as Python: the backslash stays
    p++;
    for (int i = 0; i < want; i++, p++) {
        int digit = p < end ? hex_digit(*p) : -1;
        if (digit < 0 || rune > 0x10FFFF) return fail_at(x, "a string holds a broken escape"), NULL;
        rune = 16 * rune + (unsigned)digit;
    }
    if (rune > 0x10FFFF || (rune >= 0xD800 && rune < 0xE000))
        return fail_at(x, "a string escapes what is not a character"), NULL;
    return text_add_rune(out, rune), p;
}

static bool read_string(struct lexer *x) {
    const char quote = *x->at, *p = x->at + 1;
    while (p < x->end && *p != quote) p += *p == '\\' && p + 1 < x->end ? 2 : 1;
    if (p >= x->end) return fail_at(x, "a string is not closed");
    struct text s = {0};
    for (const char *q = x->at + 1; q && q < p;) {
        if (*q == '\\')
            q = unescape(x, &s, q + 1, p);
        else
            text_add_char(&s, *q++);
    }
    if (x->e->code == ST_OK) set_text(x, add_token(x, T_STRING), text_str(&s), s.len);
    text_free(&s);
    advance(x, p + 1);
    return x->e->code == ST_OK;
}

static bool read_operator(struct lexer *x) {
    static const char *const all[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                      "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!starts(x, x->at, all[i])) continue;
        char c = all[i][0];
        if (c == '(' || c == '[' || c == '{') {
            if (x->depth == JINJA_NESTING) return fail_at(x, "too many brackets within each other");
            x->open[x->depth++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (c == ')' || c == ']' || c == '}') {
            if (x->depth == 0 || x->open[x->depth - 1] != c) return fail_at(x, "a closing bracket has no partner");
            x->depth--;
        }
        struct token *t = add_token(x, T_OPERATOR);
        t->text = all[i];
        t->len = strlen(all[i]);
        advance(x, x->at + t->len);
        return true;
    }
    return fail_at(x, "a character that no expression can hold");
}

/* What stands between "{{" or "{%" and its end. */
static bool read_tag(struct lexer *x, bool variable) {
    x->depth = 0;
    for (;;) {
        advance(x, skip_space(x->at, x->end));
        if (x->at >= x->end) return fail_at(x, variable ? "wanted }}, found the end" : "wanted %}, found the end");
        const char *stop = NULL;
        if (x->depth == 0 && variable)
            stop = starts(x, x->at, "-}}") ? skip_space(x->at + 3, x->end) : starts(x, x->at, "}}") ? x->at + 2 : NULL;
        else if (x->depth == 0)
            stop = tag_end(x, x->at, "%}");
        if (stop) {
            add_token(x, variable ? T_VAR_END : T_BLOCK_END);
            return advance(x, stop), true;
        }
        char c = *x->at;
        if (is_digit(c)) {
            if (!read_number(x)) return false;
        } else if (is_name(c)) {
            const char *p = x->at;
            while (p < x->end && is_name(*p)) p++;
            set_text(x, add_token(x, T_NAME), x->at, (size_t)(p - x->at));
            advance(x, p);
        } else if (c == '\'' || c == '"') {
            if (!read_string(x)) return false;
        } else if (!read_operator(x)) {
            return false;
        }
    }
}

/* Reads the text up to the next tag, and the tag. */
static bool read_piece(struct lexer *x) {
    const char *p = x->at;
    while (p < x->end && !(starts(x, p, "{{") || starts(x, p, "{%") || starts(x, p, "{#"))) p++;
    if (p >= x->end) return add_data(x, x->end, '+', true), true;
    char kind = p[1], sign = sign_at(x, p + 2);
    const char *inside = p + 2 + (sign != 0), *raw = kind == '%' ? raw_begin(x, inside) : NULL;
    add_data(x, p, sign, kind == '{');
    if (raw) return advance(x, raw), read_raw(x);
    if (kind == '#') return advance(x, inside), read_comment(x);
    add_token(x, kind == '{' ? T_VAR_BEGIN : T_BLOCK_BEGIN);
    advance(x, inside);
    return read_tag(x, kind == '{');
}

/* The source with "\r\n" and "\r" as "\n" and without one newline at its end; its length goes to *n. */
static char *normal_source(struct pool *pool, const char *source, size_t *n) {
    char *copy = jinja_alloc(pool, strlen(source) + 1), *to = copy;
    for (const char *s = source; *s; s++) {
        if (*s == '\r' && s[1] == '\n') continue;
        *to++ = *s == '\r' ? '\n' : *s;
    }
    if (to > copy && to[-1] == '\n') to--;
    *to = 0;
    *n = (size_t)(to - copy);
    return copy;
}

const struct token *jinja_lex(struct pool *pool, const char *source, const char *where, struct err *e) {
    size_t n;
    struct lexer x = {.pool = pool, .where = where, .e = e, .line = 1, .line_start = true};
    x.at = normal_source(pool, source, &n);
    x.end = x.at + n;
    bool ok = true;
    while (ok && x.at < x.end) ok = read_piece(&x);
    add_token(&x, T_END);
    struct token *kept = jinja_alloc(pool, x.count * sizeof *kept);
    memcpy(kept, x.tokens, x.count * sizeof *kept);
    free(x.tokens);
    return ok ? kept : NULL;
}

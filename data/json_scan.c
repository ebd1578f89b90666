#include "data/json_scan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 64 };

bool json_scan_wrong(struct json_scan *c, const char *wanted) {
    size_t line = 1;
    for (size_t i = 0; i < c->at; i++) line += c->text[i] == '\n';
    err_set(c->e, ST_FAIL, "%s: not valid JSON at line %zu (byte %zu): wanted %s", c->where, line, c->at, wanted);
    return false;
}

static void skip_space(struct json_scan *c) {
    while (c->at < c->n &&
           (c->text[c->at] == ' ' || c->text[c->at] == '\n' || c->text[c->at] == '\r' || c->text[c->at] == '\t'))
        c->at++;
}

bool json_scan_take(struct json_scan *c, char mark) {
    skip_space(c);
    if (c->at == c->n || c->text[c->at] != mark) return false;
    c->at++;
    return true;
}

bool json_scan_need(struct json_scan *c, char mark) {
    char wanted[] = {'"', mark, '"', 0};
    return json_scan_take(c, mark) || json_scan_wrong(c, wanted);
}

bool json_scan_end(struct json_scan *c) {
    skip_space(c);
    return c->at == c->n || json_scan_wrong(c, "the end");
}

static bool four_digits(struct json_scan *c, unsigned *out) {
    if (c->n - c->at < 4) return json_scan_wrong(c, "four hexadecimal digits");
    *out = 0;
    for (int i = 0; i < 4; i++) {
        char d = c->text[c->at + (size_t)i];
        unsigned v = d >= '0' && d <= '9'   ? (unsigned)(d - '0')
                     : d >= 'a' && d <= 'f' ? (unsigned)(d - 'a' + 10)
                     : d >= 'A' && d <= 'F' ? (unsigned)(d - 'A' + 10)
                                            : 16;
        if (v == 16) return json_scan_wrong(c, "four hexadecimal digits");
        *out = *out * 16 + v;
    }
    c->at += 4;
    return true;
}

/* What follows \u; surrogates must come as a pair. */
static bool escaped_rune(struct json_scan *c, struct text *out) {
    unsigned rune, low;
    if (!four_digits(c, &rune)) return false;
    if (rune >= 0xD800 && rune < 0xE000) {
        if (rune >= 0xDC00 || c->n - c->at < 6 || c->text[c->at] != '\\' || c->text[c->at + 1] != 'u')
            return json_scan_wrong(c, "a pair of surrogates");
        c->at += 2;
        if (!four_digits(c, &low)) return false;
        if (low < 0xDC00 || low >= 0xE000) return json_scan_wrong(c, "a pair of surrogates");
        rune = 0x10000 + ((rune - 0xD800) << 10) + (low - 0xDC00);
    }
    text_add_rune(out, rune);
    return true;
}

static bool escape(struct json_scan *c, struct text *out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (c->at == c->n) return json_scan_wrong(c, "the end of a string");
    char letter = c->text[c->at++];
    if (letter == 'u') return escaped_rune(c, out);
    const char *found = letter ? strchr(from, letter) : NULL;
    if (!found) return json_scan_wrong(c, "a known escape");
    text_add_char(out, to[found - from]);
    return true;
}

bool json_scan_string(struct json_scan *c, struct text *out) {
    text_clear(out);
    if (!json_scan_take(c, '"')) return json_scan_wrong(c, "a string");
    for (;;) {
        size_t from = c->at;
        while (c->at < c->n && c->text[c->at] != '"' && c->text[c->at] != '\\' && (unsigned char)c->text[c->at] >= 32)
            c->at++;
        text_add_n(out, c->text + from, c->at - from);
        if (c->at == c->n || (unsigned char)c->text[c->at] < 32) return json_scan_wrong(c, "the end of a string");
        if (c->text[c->at++] == '"') return true;
        if (!escape(c, out)) return false;
    }
}

static bool is_digit(const struct json_scan *c) {
    return c->at < c->n && c->text[c->at] >= '0' && c->text[c->at] <= '9';
}

bool json_scan_id(struct json_scan *c, int64_t *out) {
    skip_space(c);
    size_t from = c->at;
    for (*out = 0; is_digit(c) && *out < INT64_C(1) << 32; c->at++) *out = *out * 10 + (c->text[c->at] - '0');
    bool zeros = c->at - from > 1 && c->text[from] == '0';
    bool more = c->at < c->n && strchr(".eE", c->text[c->at]) && c->text[c->at];
    return (c->at > from && !zeros && !more && *out < INT64_C(1) << 32) || json_scan_wrong(c, "a token id");
}

static bool skip_digits(struct json_scan *c) {
    if (!is_digit(c)) return json_scan_wrong(c, "a digit");
    while (is_digit(c)) c->at++;
    return true;
}

static bool skip_number(struct json_scan *c) {
    if (c->text[c->at] == '-') c->at++;
    if (c->at < c->n && c->text[c->at] == '0')
        c->at++;
    else if (!skip_digits(c))
        return false;
    if (c->at < c->n && c->text[c->at] == '.') {
        c->at++;
        if (!skip_digits(c)) return false;
    }
    if (c->at == c->n || (c->text[c->at] != 'e' && c->text[c->at] != 'E')) return true;
    c->at++;
    if (c->at < c->n && (c->text[c->at] == '+' || c->text[c->at] == '-')) c->at++;
    return skip_digits(c);
}

bool json_scan_number(struct json_scan *c, double *out) {
    char copy[64];
    skip_space(c);
    size_t from = c->at;
    if (c->at == c->n || !skip_number(c)) return json_scan_wrong(c, "a number");
    size_t n = c->at - from;
    if (n >= sizeof copy) return json_scan_wrong(c, "a number of at most 63 characters");
    memcpy(copy, c->text + from, n);
    copy[n] = 0;
    *out = strtod(copy, NULL);
    return isfinite(*out) || json_scan_wrong(c, "a finite number");
}

static bool skip_word(struct json_scan *c, const char *word) {
    size_t n = strlen(word);
    if (c->n - c->at < n || memcmp(c->text + c->at, word, n) != 0) return json_scan_wrong(c, "a value");
    c->at += n;
    return true;
}

static bool skip_value(struct json_scan *c, int depth, struct text *ignored) {
    bool first = true, failed = false;
    skip_space(c);
    if (c->at == c->n) return json_scan_wrong(c, "a value");
    if (depth > DEEPEST) return json_scan_wrong(c, "less nesting");
    switch (c->text[c->at]) {
    case '{':
        c->at++;
        while (json_scan_member(c, &first, ignored, &failed))
            if (!skip_value(c, depth + 1, ignored)) return false;
        return !failed;
    case '[':
        c->at++;
        while (json_scan_item(c, &first, &failed))
            if (!skip_value(c, depth + 1, ignored)) return false;
        return !failed;
    case '"':
        return json_scan_string(c, ignored);
    case 't':
        return skip_word(c, "true");
    case 'f':
        return skip_word(c, "false");
    case 'n':
        return skip_word(c, "null");
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9':
        return skip_number(c);
    default:
        return json_scan_wrong(c, "a value");
    }
}

bool json_scan_skip(struct json_scan *c) {
    struct text ignored = {0};
    bool ok = skip_value(c, 0, &ignored);
    text_free(&ignored);
    return ok;
}

static bool another(struct json_scan *c, bool *first, char end, bool *failed) {
    if (*first) {
        *first = false;
        return !json_scan_take(c, end);
    }
    if (json_scan_take(c, end)) return false;
    if (json_scan_need(c, ',')) return true;
    *failed = true;
    return false;
}

bool json_scan_item(struct json_scan *c, bool *first, bool *failed) { return another(c, first, ']', failed); }

bool json_scan_member(struct json_scan *c, bool *first, struct text *key, bool *failed) {
    if (!another(c, first, '}', failed)) return false;
    *failed = !json_scan_string(c, key) || !json_scan_need(c, ':');
    return !*failed;
}

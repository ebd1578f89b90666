/* What filters and methods do with strings, and the operators. Case follows Unicode's simple mappings and the sharp s;
 * the few other characters that become several (ligatures) keep their case. */
#include <math.h>
#include <string.h>
#include <utf8proc.h>

#include "data/jinja_parts.h"

static bool cased(unsigned c) {
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

static void add_upper(struct text *t, unsigned c) {
    if (c == 0xDF)
        text_add(t, "SS");
    else
        text_add_rune(t, (unsigned)utf8proc_toupper((utf8proc_int32_t)c));
}

static void add_title(struct text *t, unsigned c) {
    if (c == 0xDF)
        text_add(t, "Ss");
    else
        text_add_rune(t, (unsigned)utf8proc_totitle((utf8proc_int32_t)c));
}

/* A capital sigma that ends a word has a form of its own. */
static bool final_sigma(const char *s, size_t n, size_t at, bool after_cased) {
    int len;
    if (!after_cased) return false;
    return at >= n || !cased(utf8_rune(s + at, &len));
}

struct value jinja_recase(struct render *r, struct value s, enum letter_case how) {
    struct text t = {0};
    bool before = false, start = true; // the character before is cased; a word begins here
    if (!jinja_step(r, s.len / 16)) return s;
    for (size_t i = 0; i < s.len;) {
        int n;
        unsigned c = utf8_rune(s.text + i, &n);
        i += (size_t)n;
        bool head = how == CASE_TITLE ? !before : (how == CASE_CAPITAL || how == CASE_WORDS) && start;
        if (how == CASE_UPPER || (head && how == CASE_WORDS))
            add_upper(&t, c);
        else if (head)
            add_title(&t, c);
        else if (c == 0x3A3 && final_sigma(s.text, s.len, i, before))
            text_add_rune(&t, 0x3C2);
        else if (c == 0x130)
            text_add(&t, "i\xCC\x87");
        else
            text_add_rune(&t, (unsigned)utf8proc_tolower((utf8proc_int32_t)c));
        before = cased(c);
        start = how == CASE_WORDS && (c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || jinja_space(c));
    }
    struct value v = jinja_text(r, &t);
    v.markup = s.markup;
    return v;
}

static bool strips(unsigned c, const struct value *chars) {
    if (!chars) return jinja_space(c);
    for (size_t i = 0; i < chars->len;) {
        int n;
        if (utf8_rune(chars->text + i, &n) == c) return true;
        i += (size_t)n;
    }
    return false;
}

/* Without white space, or the given characters, at its ends; a part of s. */
struct value jinja_strip(struct render *r, struct value s, const struct value *chars, bool left, bool right) {
    int n;
    if (chars && chars->kind != V_STRING)
        return jinja_fail(r, "strip wants a string, found %s", jinja_kind_name(chars));
    if (!jinja_step(r, s.len / 64 * (1 + (chars ? chars->len : 0)))) return s;
    while (left && s.len && strips(utf8_rune(s.text, &n), chars)) {
        s.text += n;
        s.len -= (size_t)n;
    }
    while (right && s.len) {
        size_t at = s.len - 1;
        while (at > 0 && ((unsigned char)s.text[at] & 0xC0) == 0x80) at--;
        if (!strips(utf8_rune(s.text + at, &n), chars)) break;
        s.len = at;
    }
    return s;
}

/* Replaces the first `most` places, all when it is negative; an empty `from` stands between all characters. */
struct value jinja_replace(struct render *r, struct value s, struct value from, struct value to, int64_t most) {
    struct text t = {0};
    const char *at = s.text, *end = s.text + s.len;
    for (int64_t done = 0; (most < 0 || done < most) && jinja_step(r, 1 + to.len / 64); done++) {
        const char *hit = from.len ? memmem(at, (size_t)(end - at), from.text, from.len) : at;
        if (!hit) break;
        text_add_n(&t, at, (size_t)(hit - at));
        text_add_n(&t, to.text, to.len);
        at = hit + from.len;
        if (t.len > JINJA_BYTES) jinja_fail(r, "the text grew beyond %d MiB", JINJA_BYTES >> 20);
        if (from.len) continue;
        if (at == end) break;
        int n;
        utf8_rune(at, &n);
        text_add_n(&t, at, (size_t)n);
        at += n;
    }
    text_add_n(&t, at, (size_t)(end - at));
    return jinja_text(r, &t);
}

/* convert: parts that are no strings are printed, as the filter does; the method refuses them. */
struct value jinja_join(struct render *r, struct value glue, const struct list *parts, bool convert) {
    struct text t = {0};
    for (size_t i = 0; i < parts->count && jinja_step(r, 1 + glue.len / 64); i++) {
        const struct value *p = &parts->items[i];
        if (!convert && p->kind != V_STRING) jinja_fail(r, "join wants strings, found %s", jinja_kind_name(p));
        if (i) text_add_n(&t, glue.text, glue.len);
        if (!jinja_failed(r)) jinja_print(r, &t, p);
    }
    return jinja_text(r, &t);
}

static bool ends_line(unsigned c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

struct value jinja_lines(struct render *r, struct value s) {
    struct list *l = jinja_list_new(r, LIST_PLAIN, 0);
    size_t start = 0;
    for (size_t i = 0; i < s.len && jinja_step(r, 1);) {
        int n;
        unsigned c = utf8_rune(s.text + i, &n);
        size_t at = i;
        i += (size_t)n;
        if (!ends_line(c)) continue;
        if (c == '\r' && i < s.len && s.text[i] == '\n') i++;
        jinja_list_add(r, l, (struct value){.kind = V_STRING, .text = s.text + start, .len = at - start});
        start = i;
    }
    if (start < s.len)
        jinja_list_add(r, l, (struct value){.kind = V_STRING, .text = s.text + start, .len = s.len - start});
    return jinja_list_value(l);
}

void jinja_escape(struct text *out, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        switch (s[i]) {
        case '&':
            text_add(out, "&amp;");
            break;
        case '<':
            text_add(out, "&lt;");
            break;
        case '>':
            text_add(out, "&gt;");
            break;
        case '\'':
            text_add(out, "&#39;");
            break;
        case '"':
            text_add(out, "&#34;");
            break;
        default:
            text_add_char(out, s[i]);
        }
    }
}

static struct value add_strings(struct render *r, const struct value *a, const struct value *b) {
    struct text t = {0};
    bool markup = a->markup || b->markup;
    const struct value *both[2] = {a, b};
    if (!jinja_step(r, (a->len + b->len) / 64)) return *a;
    for (int i = 0; i < 2; i++) {
        if (markup && !both[i]->markup)
            jinja_escape(&t, both[i]->text, both[i]->len);
        else
            text_add_n(&t, both[i]->text, both[i]->len);
    }
    struct value v = jinja_text(r, &t);
    v.markup = markup;
    return v;
}

static struct value add_lists(struct render *r, const struct list *a, const struct list *b) {
    struct list *l = jinja_list_new(r, a->kind, a->count + b->count);
    for (size_t i = 0; i < a->count + b->count && !jinja_failed(r); i++)
        jinja_list_add(r, l, i < a->count ? a->items[i] : b->items[i - a->count]);
    return jinja_list_value(l);
}

/* A string or list n times. */
static struct value repeat(struct render *r, const struct value *v, int64_t n) {
    size_t one = v->kind == V_STRING ? v->len : v->list->count;
    size_t each = v->kind == V_STRING ? 1 : sizeof *v->list->items;
    if (n < 0 || one == 0) n = 0;
    if (n > 0 && (uint64_t)n > JINJA_BYTES / (one * each))
        return jinja_fail(r, "the template needs more than %d MiB", JINJA_BYTES >> 20);
    struct list *l = jinja_list_new(r, v->kind == V_LIST ? v->list->kind : LIST_PLAIN, 0);
    struct text t = {0};
    for (int64_t i = 0; i < n && jinja_step(r, 1 + one / 64); i++) {
        if (v->kind == V_STRING) text_add_n(&t, v->text, v->len);
        for (size_t k = 0; v->kind == V_LIST && k < one; k++) jinja_list_add(r, l, v->list->items[k]);
    }
    if (v->kind == V_STRING) return jinja_text(r, &t);
    return jinja_list_value(l);
}

static bool is_sequence(const struct value *v) {
    return v->kind == V_STRING || (v->kind == V_LIST && v->list->kind <= LIST_TUPLE);
}

static struct value beyond(struct render *r) { return jinja_fail(r, "an integer grew beyond 64 bits"); }

static struct value power(struct render *r, int64_t base, int64_t n) {
    int64_t y = 1;
    if (base == 0 || base == 1) return jinja_int(n == 0 ? 1 : base);
    if (base == -1) return jinja_int(n % 2 ? -1 : 1);
    for (; n > 0; n--)
        if (__builtin_mul_overflow(y, base, &y)) return beyond(r);
    return jinja_int(y);
}

/* Whole numbers, with division and remainder rounding down. */
static struct value whole_binary(struct render *r, const char *op, int64_t a, int64_t b) {
    int64_t y;
    bool over = false;
    if ((op[0] == '/' || op[0] == '%') && b == 0) return jinja_fail(r, "a division by zero");
    if (strcmp(op, "/") == 0) return jinja_float((double)a / (double)b);
    if (strcmp(op, "**") == 0)
        return b < 0 && a != 0 ? jinja_float(pow((double)a, (double)b))
               : b < 0         ? jinja_fail(r, "a division by zero")
                               : power(r, a, b);
    if (op[0] == '+')
        over = __builtin_add_overflow(a, b, &y);
    else if (op[0] == '-')
        over = __builtin_sub_overflow(a, b, &y);
    else if (op[0] == '*')
        over = __builtin_mul_overflow(a, b, &y);
    else if (b == -1) // INT64_MIN / -1 does not fit
        over = op[0] == '/' ? __builtin_sub_overflow(0, a, &y) : (y = 0, false);
    else if (op[0] == '/')
        y = a / b - (a % b != 0 && (a < 0) != (b < 0));
    else
        y = a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
    return over ? beyond(r) : jinja_int(y);
}

static struct value real_binary(struct render *r, const char *op, double a, double b) {
    if ((op[0] == '/' || op[0] == '%') && b == 0) return jinja_fail(r, "a division by zero");
    if (op[0] == '+') return jinja_float(a + b);
    if (op[0] == '-') return jinja_float(a - b);
    if (strcmp(op, "*") == 0) return jinja_float(a * b);
    if (strcmp(op, "/") == 0) return jinja_float(a / b);
    if (strcmp(op, "**") == 0) {
        if (a == 0 && b < 0) return jinja_fail(r, "a division by zero");
        if (a < 0 && b != floor(b)) return jinja_fail(r, "a root of a negative number");
        return jinja_float(pow(a, b));
    }
    double rest = fmod(a, b);
    if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
    return jinja_float(op[0] == '%' ? rest : floor((a - rest) / b + 0.5));
}

struct value jinja_binary(struct render *r, const char *op, struct value a, struct value b) {
    int64_t i, j;
    double x, y;
    if (jinja_whole(&a, &i) && jinja_whole(&b, &j)) return whole_binary(r, op, i, j);
    if (jinja_number(&a, &x) && jinja_number(&b, &y)) return real_binary(r, op, x, y);
    if (a.kind == V_UNDEFINED || b.kind == V_UNDEFINED)
        return jinja_fail(r, "'%s' is undefined, so %s cannot use it", a.kind == V_UNDEFINED ? a.text : b.text, op);
    if (strcmp(op, "+") == 0 && a.kind == V_STRING && b.kind == V_STRING) return add_strings(r, &a, &b);
    if (strcmp(op, "+") == 0 && is_sequence(&a) && is_sequence(&b) && a.kind == b.kind && a.list->kind == b.list->kind)
        return add_lists(r, a.list, b.list);
    if (strcmp(op, "*") == 0 && is_sequence(&a) && jinja_whole(&b, &j)) return repeat(r, &a, j);
    if (strcmp(op, "*") == 0 && is_sequence(&b) && jinja_whole(&a, &i)) return repeat(r, &b, i);
    if (strcmp(op, "%") == 0 && a.kind == V_STRING) return jinja_fail(r, "%% on a string is not supported");
    return jinja_fail(r, "%s %s %s has no meaning", jinja_kind_name(&a), op, jinja_kind_name(&b));
}

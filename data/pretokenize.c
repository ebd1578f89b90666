#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pretokenize.h"

#include <pcre2.h>
#include <string.h>

#include "base/json.h"

/* The published expressions are one with four settings. In order, the first that matches takes the piece:
 *
 *     's 't 're 've 'm 'll 'd                        in any case, when fold
 *     [^\r\n\p{L}\p{N}]?\p{L}+                       lead: any character before the letters; else a blank
 *     \p{N}{1,digits}                                 digits 0: a blank and any number of them
 *      ?[^\s\p{L}\p{N}]+[\r\n]*                       the line ends only with lead
 *     \s*[\r\n]+                                      only with lead
 *     \s+(?!\S) | \s+
 */
struct word_rules {
    const char *pattern;
    bool fold, lead;
    int digits;
};

#define FOLDED_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define FOLDED_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct word_rules word_rules[] = {
    {FOLDED_HEAD "\\p{N}{1,3}" FOLDED_TAIL, true, true, 3},
    {FOLDED_HEAD "\\p{N}" FOLDED_TAIL, true, true, 1},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", false, false, 0},
};
static const struct word_rules *const blank_rules = &word_rules[2]; // what ByteLevel cuts by

static enum status stage_of(struct pretokenizer *p, const cJSON *json, const char *where, int depth, struct err *e);

static enum status need_bool(const cJSON *o, const char *where, const char *key, bool *out, struct err *e) {
    if (!json_get(o, key)) return err_set(e, ST_FAIL, "%s: the pre-tokenizer has no %s", where, key);
    return json_bool(o, where, key, false, out, e);
}

static enum status add_stage(struct pretokenizer *p, struct stage g, const char *where, struct err *e) {
    if (p->count == STAGE_LIMIT)
        return err_set(e, ST_FAIL, "%s: more than %d pre-tokenizers in sequence", where, STAGE_LIMIT);
    p->stages[p->count++] = g;
    return ST_OK;
}

/* The pattern as PCRE2 must have it to mean what it means to Oniguruma: \s and \w are spelled out. False for what the
 * two read differently and the published tokenizers do not use. */
static bool translate(const char *p, struct text *out) {
    static const char space[] = "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
                                "\\x{202f}\\x{205f}\\x{3000}";
    static const char word[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}";
    static const char latin[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"; // \w too, but not within a class
    bool in_class = false;
    for (; *p; p++) {
        char c = p[0], next = p[1];
        if (c == '\\' && next && strchr("sSwW", next)) {
            bool negated = next == 'S' || next == 'W';
            if (negated && in_class) return false;
            const char *set = next == 's' || next == 'S' ? space : word;
            text_addf(out,
                      in_class  ? "%s%s"
                      : negated ? "[^%s%s]"
                                : "[%s%s]",
                      set, set == word && !in_class ? latin : "");
            p++;
            continue;
        }
        if (c == '\\' && next && strchr("bBhHRXGK", next)) return false;
        if (in_class && (c == '[' || (c == '&' && next == '&'))) return false;
        if (c == '[') in_class = true;
        if (c == ']') in_class = false;
        text_add_char(out, c);
        if (c == '\\' && next) text_add_char(out, *++p);
    }
    return true;
}

static void *compile(const char *original, const char *where, struct err *e) {
    int number;
    PCRE2_SIZE at;
    struct text pattern = {0};
    if (!translate(original, &pattern)) {
        text_free(&pattern);
        err_set(e, ST_FAIL, "%s: Split: \"%.200s\" is not supported", where, original);
        return NULL;
    }
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text_str(&pattern), PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &number, &at, NULL);
    text_free(&pattern);
    if (!code) {
        char why[128] = "";
        pcre2_get_error_message(number, (PCRE2_UCHAR *)why, sizeof why);
        err_set(e, ST_FAIL, "%s: Split: \"%.200s\" is not supported: %s", where, original, why);
        return NULL;
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    return code;
}

static enum status split_of(struct pretokenizer *p, const cJSON *json, const char *where, struct err *e) {
    const char *behavior, *pattern;
    bool invert;
    struct stage g = {0};
    if (json_str(json, where, "behavior", "", &behavior, e) != ST_OK) return e->code;
    if (strcmp(behavior, "Isolated") != 0)
        return err_set(e, ST_FAIL, "%s: Split with behavior \"%.40s\" is not supported, wanted Isolated", where,
                       behavior);
    if (need_bool(json, where, "invert", &invert, e) != ST_OK) return e->code;
    const cJSON *regex = cJSON_GetObjectItemCaseSensitive(json_get(json, "pattern"), "Regex");
    if (!cJSON_IsString(regex))
        return err_set(e, ST_FAIL, "%s: Split with another pattern than a Regex is not supported", where);
    pattern = regex->valuestring;
    for (size_t i = 0; i < sizeof word_rules / sizeof word_rules[0]; i++)
        if (strcmp(pattern, word_rules[i].pattern) == 0) g.rules = &word_rules[i];
    if (!g.rules && !(g.regex = compile(pattern, where, e))) return e->code;
    if (add_stage(p, g, where, e) == ST_OK) return ST_OK; // invert changes nothing where all pieces are kept
    pcre2_code_free(g.regex);
    return e->code;
}

static enum status bytes_of(struct pretokenizer *p, const cJSON *json, const char *where, struct err *e) {
    bool add_space, use_regex, trim;
    if (need_bool(json, where, "add_prefix_space", &add_space, e) != ST_OK ||
        need_bool(json, where, "trim_offsets", &trim, e) != ST_OK ||
        json_bool(json, where, "use_regex", true, &use_regex, e) != ST_OK)
        return e->code;
    p->last = LAST_BYTES;
    if (!add_space && !use_regex) return ST_OK;
    return add_stage(p, (struct stage){.rules = use_regex ? blank_rules : NULL, .add_space = add_space}, where, e);
}

static enum status metaspace_of(struct pretokenizer *p, const cJSON *json, const char *where, struct err *e) {
    const char *meta, *prefix;
    bool always;
    if (json_str(json, where, "replacement", "", &meta, e) != ST_OK ||
        json_bool(json, where, "add_prefix_space", true, &always, e) != ST_OK ||
        json_str(json, where, "prepend_scheme", always ? "always" : "never", &prefix, e) != ST_OK ||
        json_bool(json, where, "split", true, &p->split, e) != ST_OK)
        return e->code;
    int len = 0;
    if (*meta) utf8_rune(meta, &len);
    if (len == 0 || meta[len])
        return err_set(e, ST_FAIL, "%s: Metaspace replaces by \"%.20s\", wanted one character", where, meta);
    memcpy(p->meta, meta, (size_t)len + 1);
    p->last = LAST_METASPACE;
    static const char *const names[] = {"never", "first", "always"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(prefix, names[i]) != 0) continue;
        p->prefix = (enum meta_prefix)i;
        if (always || p->prefix == META_NEVER) return ST_OK;
        return err_set(e, ST_FAIL, "%s: Metaspace: add_prefix_space false contradicts prepend_scheme \"%s\"", where,
                       prefix);
    }
    return err_set(e, ST_FAIL, "%s: Metaspace: prepend_scheme is \"%.40s\", wanted first, always or never", where,
                   prefix);
}

static enum status sequence_of(struct pretokenizer *p, const cJSON *json, const char *where, int depth, struct err *e) {
    const cJSON *list = json_get(json, "pretokenizers"), *item;
    if (!cJSON_IsArray(list) || depth > STAGE_LIMIT)
        return err_set(e, ST_FAIL, "%s: pre_tokenizer: pretokenizers is not a list", where);
    cJSON_ArrayForEach(item, list) if (stage_of(p, item, where, depth + 1, e) != ST_OK) return e->code;
    return ST_OK;
}

static enum status stage_of(struct pretokenizer *p, const cJSON *json, const char *where, int depth, struct err *e) {
    const char *type;
    if (json_str(json, where, "type", "", &type, e) != ST_OK) return e->code;
    if (strcmp(type, "Sequence") == 0) return sequence_of(p, json, where, depth, e);
    if (p->last != LAST_NONE)
        return err_set(e, ST_FAIL, "%s: pre_tokenizer: \"%.40s\" after %s is not supported", where, type,
                       p->last == LAST_BYTES ? "ByteLevel" : "Metaspace");
    if (strcmp(type, "Split") == 0) return split_of(p, json, where, e);
    if (strcmp(type, "ByteLevel") == 0) return bytes_of(p, json, where, e);
    if (strcmp(type, "Metaspace") == 0) return metaspace_of(p, json, where, e);
    if (strcmp(type, "Digits") == 0) {
        struct stage g = {.digits = true};
        if (need_bool(json, where, "individual_digits", &g.each, e) != ST_OK) return e->code;
        return add_stage(p, g, where, e);
    }
    return err_set(e, ST_FAIL, "%s: the pre-tokenizer \"%.40s\" is not supported", where, type);
}

enum status pretokenizer_init(struct pretokenizer *p, const cJSON *json, const char *where, struct err *e) {
    *p = (struct pretokenizer){0};
    return json ? stage_of(p, json, where, 0, e) : ST_OK;
}

void pretokenizer_free(struct pretokenizer *p) {
    for (int i = 0; i < p->count; i++) pcre2_code_free(p->stages[i].regex);
    p->count = 0;
}

const char *pretokenizer_kind(const struct pretokenizer *p) {
    static const char *const names[] = {"llama3", "qwen2", "gpt2"};
    const struct stage *last = &p->stages[p->count - 1], *first = &p->stages[0];
    if (p->count < 1 || p->count > 2 || !last->rules || last->add_space) return NULL;
    if (p->count == 1) return names[last->rules - word_rules];
    return last->rules == blank_rules && first->digits && first->each && !first->add_space ? "smollm" : NULL;
}

void *pretokenizer_match_new(const struct pretokenizer *p) {
    for (int i = 0; i < p->count; i++)
        if (p->stages[i].regex) return pcre2_match_data_create(1, NULL);
    return NULL;
}

void pretokenizer_match_free(void *match) { pcre2_match_data_free(match); }

/* One character of a piece: its classes, and where the next one is. */
struct look {
    unsigned rune, classes;
    size_t next;
};

static inline struct look look_at(const struct runes *r, const char *s, size_t n, size_t at) {
    if (at >= n) return (struct look){0, RUNE_SPACE, n}; // what follows the end is neither letter, number nor other
    if ((unsigned char)s[at] < 0x80)
        return (struct look){(unsigned char)s[at], r->classes[(unsigned char)s[at]], at + 1};
    int len;
    unsigned rune = utf8_rune(s + at, &len);
    return (struct look){rune, rune_classes(r, rune), at + (size_t)len};
}

/* The end of the run of characters of a class that starts at `at`, at most `most` of them (0: any number). */
static size_t run_of(const struct runes *r, const char *s, size_t n, size_t at, unsigned class, int most) {
    for (int count = 1; at < n; count++) {
        struct look c = look_at(r, s, n, at);
        if (!(c.classes & class)) break;
        at = c.next;
        if (count == most) break;
    }
    return at;
}

static bool is_other(struct look c) { return !(c.classes & (RUNE_LETTER | RUNE_NUMBER | RUNE_SPACE)); }

static size_t run_of_others(const struct runes *r, const char *s, size_t n, size_t at) {
    while (at < n) {
        struct look c = look_at(r, s, n, at);
        if (!is_other(c)) break;
        at = c.next;
    }
    return at;
}

/* The end of 's, 't, 're, 've, 'm, 'll or 'd at `at`, or 0. The long s folds to s. */
static size_t contraction(const char *s, size_t n, size_t at, bool fold) {
    if (s[at] != '\'' || n - at < 2) return 0;
    char a = s[at + 1], b = n - at > 2 ? s[at + 2] : 0;
    if (fold && n - at > 2 && memcmp(s + at + 1, "\xC5\xBF", 2) == 0) return at + 3;
    if (fold && a >= 'A' && a <= 'Z') a = (char)(a + 32);
    if (fold && b >= 'A' && b <= 'Z') b = (char)(b + 32);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? at + 3 : 0;
}

static size_t spaces(const struct word_rules *rules, const struct runes *r, const char *s, size_t n, size_t at) {
    size_t end = rune_skip_space(r, s, n, at);
    if (rules->lead)
        for (size_t i = end; i > at; i--)
            if (s[i - 1] == '\n' || s[i - 1] == '\r') return i;
    size_t last = rune_before(s, end);
    return end == n || last == at ? end : last;
}

static size_t next_word(const struct word_rules *rules, const struct runes *r, const char *s, size_t n, size_t at) {
    size_t end = contraction(s, n, at, rules->fold);
    if (end) return end;
    struct look c = look_at(r, s, n, at);
    if (c.classes & RUNE_LETTER) return run_of(r, s, n, c.next, RUNE_LETTER, 0);
    bool blank = c.rune == ' ', line = c.rune == '\r' || c.rune == '\n';
    struct look d = look_at(r, s, n, c.next);
    if (d.classes & RUNE_LETTER && (rules->lead ? !line && !(c.classes & RUNE_NUMBER) : blank))
        return run_of(r, s, n, d.next, RUNE_LETTER, 0);
    if (c.classes & RUNE_NUMBER) return run_of(r, s, n, at, RUNE_NUMBER, rules->digits);
    if (rules->digits == 0 && blank && d.classes & RUNE_NUMBER) return run_of(r, s, n, c.next, RUNE_NUMBER, 0);
    if (!is_other(c) && !(blank && is_other(d))) return spaces(rules, r, s, n, at);
    end = run_of_others(r, s, n, c.next);
    while (rules->lead && end < n && (s[end] == '\r' || s[end] == '\n')) end++;
    return end;
}

static size_t next_digits(const struct stage *g, const struct runes *r, const char *s, size_t n, size_t at) {
    struct look c = look_at(r, s, n, at);
    if (c.classes & RUNE_DIGIT) return g->each ? c.next : run_of(r, s, n, c.next, RUNE_DIGIT, 0);
    for (at = c.next; at < n; at = c.next) {
        c = look_at(r, s, n, at);
        if (c.classes & RUNE_DIGIT) break;
    }
    return at;
}

static int match_from(const struct stage *g, pcre2_match_data *match, const char *s, size_t n, size_t from) {
    int found = pcre2_match(g->regex, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, match, NULL);
    if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
    return pcre2_match(g->regex, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, NULL);
}

/* Matches and the gaps between them are pieces; a match of nothing in a gap cuts it. */
static size_t next_match(const struct stage *g, pcre2_match_data *match, const char *s, size_t n, size_t at) {
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(match);
    for (size_t from = at; from < n;) {
        int rc = match_from(g, match, s, n, from);
        if (rc == PCRE2_ERROR_NOMATCH) return n;
        if (rc < 0) return 0;
        if (found[0] > at) return found[0];
        if (found[1] > at) return found[1];
        int len;
        utf8_rune(s + from, &len);
        from += (size_t)len;
    }
    return n;
}

size_t stage_next(const struct stage *g, const struct runes *r, void *match, const char *s, size_t n, size_t at) {
    if (g->rules) return next_word(g->rules, r, s, n, at);
    if (g->digits) return next_digits(g, r, s, n, at);
    return g->regex ? next_match(g, match, s, n, at) : n;
}

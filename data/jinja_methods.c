/* Methods of strings, dicts and lists, the functions that every template knows, and how arguments are read. What would
 * change a value (append, update, pop) is refused, as the sandbox refuses it. */
#include <string.h>
#include <time.h>
#include <utf8proc.h>

#include "data/jinja_parts.h"

const struct value *jinja_arg(const struct args *a, size_t i, const char *name) {
    if (i < a->count) return &a->at[i];
    for (size_t k = 0; k < a->named_count; k++)
        if (strcmp(a->named[k].name, name) == 0) return &a->named[k].value;
    return NULL;
}

bool jinja_args_check(struct render *r, const struct args *a, size_t least, size_t most, const char *const *names) {
    for (size_t k = 0; k < a->named_count; k++) {
        const char *const *n = names;
        while (n && *n && strcmp(*n, a->named[k].name) != 0) n++;
        if (n && *n) continue;
        jinja_fail(r, "%s takes no argument %.60s", a->of, a->named[k].name);
        return false;
    }
    size_t all = a->count + a->named_count;
    if (all < least) jinja_fail(r, "%s wants at least %zu arguments, found %zu", a->of, least, all);
    if (a->count > most) jinja_fail(r, "%s wants at most %zu arguments, found %zu", a->of, most, a->count);
    return !jinja_failed(r);
}

bool jinja_arg_whole(struct render *r, const struct args *a, size_t i, const char *name, int64_t fallback,
                     int64_t *out) {
    const struct value *v = jinja_arg(a, i, name);
    *out = fallback;
    if (!v || jinja_whole(v, out)) return true;
    jinja_fail(r, "%s wants an integer for %s, found %s", a->of, name, jinja_kind_name(v));
    return false;
}

bool jinja_arg_truth(const struct args *a, size_t i, const char *name, bool fallback) {
    const struct value *v = jinja_arg(a, i, name);
    return v ? jinja_truth(v) : fallback;
}

bool jinja_arg_text(struct render *r, const struct args *a, size_t i, const char *name, const struct value **out) {
    const struct value *v = jinja_arg(a, i, name);
    *out = v && v->kind != V_NONE ? v : NULL;
    if (!*out || v->kind == V_STRING) return true;
    jinja_fail(r, "%s wants a string for %s, found %s", a->of, name, jinja_kind_name(v));
    return false;
}

static bool listed(const char *const *names, const char *name) {
    for (; *names; names++)
        if (strcmp(*names, name) == 0) return true;
    return false;
}

static const char *const string_methods[] = {
    "strip",     "lstrip",       "rstrip",       "split",        "rsplit",     "splitlines", "startswith", "endswith",
    "upper",     "lower",        "title",        "capitalize",   "replace",    "find",       "rfind",      "index",
    "count",     "join",         "isdigit",      "isalpha",      "isalnum",    "isspace",    "isupper",    "islower",
    "zfill",     "removeprefix", "removesuffix", "partition",    "rpartition", "format",     "format_map", "encode",
    "center",    "ljust",        "rjust",        "swapcase",     "casefold",   "expandtabs", "translate",  "isnumeric",
    "isdecimal", "istitle",      "isascii",      "isidentifier", "rindex",     NULL};
static const char *const dict_methods[] = {"items", "keys",       "values", "get",     "copy",     "update",
                                           "pop",   "setdefault", "clear",  "popitem", "fromkeys", NULL};
static const char *const list_methods[] = {"index",  "count", "copy",  "append", "extend",  "insert",
                                           "remove", "pop",   "clear", "sort",   "reverse", NULL};
static const char *const tuple_methods[] = {"index", "count", NULL};
static const char *const loop_methods[] = {"cycle", NULL};

bool jinja_method_known(const struct value *v, const char *name) {
    if (v->kind == V_STRING) return listed(string_methods, name);
    if (v->kind == V_DICT) return listed(dict_methods, name);
    if (v->kind == V_LOOP) return listed(loop_methods, name);
    if (v->kind != V_LIST || v->list->kind > LIST_TUPLE) return false;
    return listed(v->list->kind == LIST_PLAIN ? list_methods : tuple_methods, name);
}

static struct value part_of(const char *s, const char *end) {
    return (struct value){.kind = V_STRING, .text = s, .len = (size_t)(end - s)};
}

/* Words between runs of white space, at most `most` cuts when that is not negative. */
static void split_space(struct render *r, struct list *l, const struct value *s, int64_t most) {
    const char *at = s->text, *end = s->text + s->len;
    for (int n; jinja_step(r, 1);) {
        while (at < end && jinja_space(utf8_rune(at, &n))) at += n;
        if (at == end) return;
        const char *start = at;
        if (most >= 0 && (int64_t)l->count >= most) {
            jinja_list_add(r, l, part_of(at, end));
            return;
        }
        while (at < end && !jinja_space(utf8_rune(at, &n))) at += n;
        jinja_list_add(r, l, part_of(start, at));
    }
}

/* The last place of `what` in the n bytes at s, or NULL. */
static const char *find_last(const char *s, size_t n, const struct value *what) {
    for (size_t at = n >= what->len ? n - what->len + 1 : 0; at-- > 0;)
        if (memcmp(s + at, what->text, what->len) == 0) return s + at;
    return NULL;
}

static struct value split(struct render *r, const struct value *s, const struct args *a, bool from_right) {
    static const char *const names[] = {"sep", "maxsplit", NULL};
    const struct value *sep;
    int64_t most;
    if (!jinja_args_check(r, a, 0, 2, names) || !jinja_arg_text(r, a, 0, "sep", &sep)) return jinja_none();
    if (!jinja_arg_whole(r, a, 1, "maxsplit", -1, &most)) return jinja_none();
    struct list *l = jinja_list_new(r, LIST_PLAIN, 0);
    if (!sep && from_right && most >= 0) return jinja_fail(r, "rsplit at white space with a limit is not supported");
    if (!sep) return split_space(r, l, s, most), jinja_list_value(l);
    if (sep->len == 0) return jinja_fail(r, "%s at an empty string", a->of);
    const char *at = s->text, *end = s->text + s->len;
    if (!jinja_step(r, s->len / 64 * (from_right ? sep->len : 1))) return jinja_none();
    for (int64_t cuts = 0; (most < 0 || cuts < most) && jinja_step(r, 1); cuts++) {
        const char *hit =
            from_right ? find_last(at, (size_t)(end - at), sep) : memmem(at, (size_t)(end - at), sep->text, sep->len);
        if (!hit) break;
        jinja_list_add(r, l, from_right ? part_of(hit + sep->len, end) : part_of(at, hit));
        if (from_right)
            end = hit;
        else
            at = hit + sep->len;
    }
    jinja_list_add(r, l, part_of(at, end));
    for (size_t i = 0, k = l->count; from_right && k > i + 1; i++, k--) {
        struct value other = l->items[i];
        l->items[i] = l->items[k - 1];
        l->items[k - 1] = other;
    }
    return jinja_list_value(l);
}

static bool has_end(const struct value *s, const struct value *part, bool at_start) {
    return part->len <= s->len && memcmp(at_start ? s->text : s->text + s->len - part->len, part->text, part->len) == 0;
}

static struct value starts_or_ends(struct render *r, const struct value *s, const struct args *a, bool at_start) {
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    const struct value *any = &a->at[0];
    if (any->kind == V_STRING) return jinja_bool(has_end(s, any, at_start));
    if (any->kind != V_LIST || any->list->kind != LIST_TUPLE)
        return jinja_fail(r, "%s wants a string or a tuple of strings, found %s", a->of, jinja_kind_name(any));
    for (size_t i = 0; i < any->list->count; i++) {
        const struct value *part = &any->list->items[i];
        if (part->kind != V_STRING) return jinja_fail(r, "%s wants strings, found %s", a->of, jinja_kind_name(part));
        if (has_end(s, part, at_start)) return jinja_bool(true);
    }
    return jinja_bool(false);
}

/* find, rfind, index and count, in code points; only the whole string can be searched. */
static struct value search(struct render *r, const struct value *s, const char *name, const struct args *a) {
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    const struct value *what = &a->at[0];
    if (what->kind != V_STRING) return jinja_fail(r, "%s wants a string, found %s", name, jinja_kind_name(what));
    if (!jinja_step(r, s->len / 64)) return jinja_none();
    if (strcmp(name, "count") == 0) {
        int64_t count = what->len ? 0 : (int64_t)jinja_runes(s->text, s->len) + 1;
        for (const char *at = s->text, *end = at + s->len; what->len; count++) {
            at = memmem(at, (size_t)(end - at), what->text, what->len);
            if (!at) break;
            at += what->len;
        }
        return jinja_int(count);
    }
    bool last = strcmp(name, "rfind") == 0;
    if (last && !jinja_step(r, s->len / 64 * what->len)) return jinja_none();
    const char *hit = last ? find_last(s->text, s->len, what) : memmem(s->text, s->len, what->text, what->len);
    if (hit) return jinja_int((int64_t)jinja_runes(s->text, (size_t)(hit - s->text)));
    return strcmp(name, "index") == 0 ? jinja_fail(r, "index: the string is not found") : jinja_int(-1);
}

static bool rune_is(unsigned c, const char *name) {
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    bool letter = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
    bool digit = k == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9;
    if (strcmp(name, "isdigit") == 0) return digit;
    if (strcmp(name, "isalpha") == 0) return letter;
    if (strcmp(name, "isspace") == 0) return jinja_space(c);
    return letter || digit || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

/* isupper and islower: some character has a case, and none has the other one. */
static bool all_of_case(const struct value *s, bool upper) {
    bool some = false;
    for (size_t i = 0; i < s->len;) {
        int n;
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)utf8_rune(s->text + i, &n));
        if (k == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU) || k == UTF8PROC_CATEGORY_LT) return false;
        some |= k == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
        i += (size_t)n;
    }
    return some;
}

static struct value classify(struct render *r, const struct value *s, const char *name, const struct args *a) {
    if (!jinja_args_check(r, a, 0, 0, NULL) || !jinja_step(r, s->len / 16)) return jinja_none();
    if (strcmp(name, "isupper") == 0 || strcmp(name, "islower") == 0)
        return jinja_bool(all_of_case(s, strcmp(name, "isupper") == 0));
    for (size_t i = 0; i < s->len;) {
        int n;
        if (!rune_is(utf8_rune(s->text + i, &n), name)) return jinja_bool(false);
        i += (size_t)n;
    }
    return jinja_bool(s->len > 0);
}

static struct value partition(struct render *r, const struct value *s, const struct args *a, bool last) {
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    const struct value *sep = &a->at[0];
    if (sep->kind != V_STRING || sep->len == 0) return jinja_fail(r, "%s wants a string that is not empty", a->of);
    if (!jinja_step(r, s->len / 64 * sep->len)) return jinja_none();
    const char *end = s->text + s->len;
    const char *hit = last ? find_last(s->text, s->len, sep) : memmem(s->text, s->len, sep->text, sep->len);
    struct list *l = jinja_list_new(r, LIST_TUPLE, 3);
    if (!hit && last) jinja_list_add(r, l, jinja_literal("")), jinja_list_add(r, l, jinja_literal(""));
    jinja_list_add(r, l, hit ? part_of(s->text, hit) : *s);
    if (!hit && !last) jinja_list_add(r, l, jinja_literal("")), jinja_list_add(r, l, jinja_literal(""));
    if (hit) jinja_list_add(r, l, *sep), jinja_list_add(r, l, part_of(hit + sep->len, end));
    return jinja_list_value(l);
}

static struct value remove_end(struct render *r, struct value s, const struct args *a, bool at_start) {
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    if (a->at[0].kind != V_STRING) return jinja_fail(r, "%s wants a string", a->of);
    if (!has_end(&s, &a->at[0], at_start)) return s;
    if (at_start) s.text += a->at[0].len;
    s.len -= a->at[0].len;
    return s;
}

static struct value zfill(struct render *r, const struct value *s, const struct args *a) {
    int64_t width, n = (int64_t)jinja_runes(s->text, s->len);
    if (!jinja_args_check(r, a, 1, 1, NULL) || !jinja_arg_whole(r, a, 0, "width", 0, &width)) return jinja_none();
    if (width > 1000) return jinja_fail(r, "zfill to more than 1000 characters");
    bool sign = s->len && (s->text[0] == '-' || s->text[0] == '+');
    struct text t = {0};
    if (sign) text_add_char(&t, s->text[0]);
    for (; n < width; n++) text_add_char(&t, '0');
    text_add_n(&t, s->text + sign, s->len - sign);
    return jinja_text(r, &t);
}

static struct value replace_method(struct render *r, const struct value *s, const struct args *a) {
    static const char *const names[] = {"count", NULL};
    int64_t most;
    if (!jinja_args_check(r, a, 2, 3, names) || !jinja_arg_whole(r, a, 2, "count", -1, &most)) return jinja_none();
    if (a->count < 2 || a->at[0].kind != V_STRING || a->at[1].kind != V_STRING)
        return jinja_fail(r, "replace wants two strings");
    return jinja_replace(r, *s, a->at[0], a->at[1], most);
}

static struct value string_method(struct render *r, struct value s, const char *name, const struct args *a) {
    static const struct {
        const char *name;
        enum letter_case how;
    } cases[] = {{"upper", CASE_UPPER}, {"lower", CASE_LOWER}, {"title", CASE_TITLE}, {"capitalize", CASE_CAPITAL}};
    static const char *const flags[] = {"isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", NULL};
    static const char *const searches[] = {"find", "rfind", "index", "count", NULL};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(name, cases[i].name) == 0)
            return jinja_args_check(r, a, 0, 0, NULL) ? jinja_recase(r, s, cases[i].how) : jinja_none();
    if (strcmp(name, "strip") == 0 || strcmp(name, "lstrip") == 0 || strcmp(name, "rstrip") == 0) {
        const struct value *chars;
        if (!jinja_args_check(r, a, 0, 1, NULL) || !jinja_arg_text(r, a, 0, "chars", &chars)) return jinja_none();
        return jinja_strip(r, s, chars, name[0] != 'r', name[0] != 'l');
    }
    if (listed(flags, name)) return classify(r, &s, name, a);
    if (listed(searches, name)) return search(r, &s, name, a);
    if (strcmp(name, "split") == 0 || strcmp(name, "rsplit") == 0) return split(r, &s, a, name[0] == 'r');
    if (strcmp(name, "startswith") == 0) return starts_or_ends(r, &s, a, true);
    if (strcmp(name, "endswith") == 0) return starts_or_ends(r, &s, a, false);
    if (strcmp(name, "replace") == 0) return replace_method(r, &s, a);
    if (strcmp(name, "partition") == 0 || strcmp(name, "rpartition") == 0) return partition(r, &s, a, name[0] == 'r');
    if (strcmp(name, "removeprefix") == 0) return remove_end(r, s, a, true);
    if (strcmp(name, "removesuffix") == 0) return remove_end(r, s, a, false);
    if (strcmp(name, "zfill") == 0) return zfill(r, &s, a);
    if (strcmp(name, "splitlines") == 0) return jinja_args_check(r, a, 0, 0, NULL) ? jinja_lines(r, s) : jinja_none();
    if (strcmp(name, "join") != 0) return jinja_fail(r, "the method %s of a string is not supported", name);
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    const struct list *parts = jinja_elements(r, a->at[0]);
    return parts ? jinja_join(r, s, parts, false) : jinja_none();
}

static struct value dict_method(struct render *r, const struct dict *d, const char *name, const struct args *a) {
    if (strcmp(name, "get") == 0) {
        if (!jinja_args_check(r, a, 1, 2, NULL)) return jinja_none();
        const struct value *found = jinja_dict_get(r, d, &a->at[0]);
        return found ? *found : a->count > 1 ? a->at[1] : jinja_none();
    }
    if (!jinja_args_check(r, a, 0, 0, NULL)) return jinja_none();
    bool keys = strcmp(name, "keys") == 0, items = strcmp(name, "items") == 0;
    if (strcmp(name, "copy") == 0) { // a copy is as good as the dict, which nothing changes
        struct dict *copy = jinja_alloc(&r->pool, sizeof *copy);
        *copy = *d;
        copy->room = copy->count;
        return (struct value){.kind = V_DICT, .dict = copy};
    }
    if (!keys && !items && strcmp(name, "values") != 0)
        return jinja_fail(r, "the method %s of a dict is not allowed in a template", name);
    struct list *l = jinja_list_new(r, LIST_VIEW, d->count);
    for (size_t i = 0; i < d->count && jinja_step(r, 1); i++) {
        struct list *both = items ? jinja_list_new(r, LIST_TUPLE, 2) : NULL;
        if (items) jinja_list_add(r, both, d->pairs[i].key), jinja_list_add(r, both, d->pairs[i].value);
        jinja_list_add(r, l, items ? jinja_list_value(both) : keys ? d->pairs[i].key : d->pairs[i].value);
    }
    return jinja_list_value(l);
}

static struct value list_method(struct render *r, struct value v, const char *name, const struct args *a) {
    if (strcmp(name, "copy") == 0) return jinja_args_check(r, a, 0, 0, NULL) ? v : jinja_none();
    bool index = strcmp(name, "index") == 0;
    if (!index && strcmp(name, "count") != 0)
        return jinja_fail(r, "the method %s of a list is not allowed in a template", name);
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    int64_t count = 0;
    for (size_t i = 0; i < v.list->count && jinja_step(r, 1); i++) {
        if (!jinja_equal(r, &v.list->items[i], &a->at[0])) continue;
        if (index) return jinja_int((int64_t)i);
        count++;
    }
    return index ? jinja_fail(r, "index: the list does not hold the value") : jinja_int(count);
}

struct value jinja_method(struct render *r, const struct method *m, const struct args *a) {
    if (m->self.kind == V_STRING) return string_method(r, m->self, m->name, a);
    if (m->self.kind == V_DICT) return dict_method(r, m->self.dict, m->name, a);
    if (m->self.kind == V_LIST) return list_method(r, m->self, m->name, a);
    if (a->count == 0) return jinja_fail(r, "loop.cycle wants at least one argument");
    return a->at[(size_t)m->self.loop->index % a->count];
}

enum { LONGEST_RANGE = 100000 }; // the sandbox's own limit

static struct value range(struct render *r, const struct args *a) {
    int64_t from = 0, to, step = 1;
    if (!jinja_args_check(r, a, 1, 3, NULL)) return jinja_none();
    if (!jinja_arg_whole(r, a, a->count > 1, "stop", 0, &to)) return jinja_none();
    if (a->count > 1 && !jinja_arg_whole(r, a, 0, "start", 0, &from)) return jinja_none();
    if (!jinja_arg_whole(r, a, 2, "step", 1, &step)) return jinja_none();
    if (step == 0) return jinja_fail(r, "range with step 0");
    struct list *l = jinja_list_new(r, LIST_RANGE, 0);
    for (int64_t i = from; step > 0 ? i < to : i > to;) {
        if (l->count == LONGEST_RANGE) return jinja_fail(r, "a range of more than %d numbers", LONGEST_RANGE);
        if (!jinja_step(r, 1)) break;
        jinja_list_add(r, l, jinja_int(i));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return jinja_list_value(l);
}

/* dict(...) and namespace(...): the pairs of one dict or list of pairs, then the named arguments. */
static struct value make_dict(struct render *r, const struct args *a, enum value_kind kind) {
    struct dict *d = jinja_dict_new(r, 0);
    if (a->count > 1) return jinja_fail(r, "%s wants at most one positional argument", a->of);
    if (a->count && a->at[0].kind == V_DICT) {
        const struct dict *old = a->at[0].dict;
        for (size_t i = 0; i < old->count && jinja_step(r, 1); i++)
            jinja_dict_set(r, d, old->pairs[i].key, old->pairs[i].value);
    } else if (a->count) {
        const struct list *l = jinja_elements(r, a->at[0]);
        for (size_t i = 0; l && i < l->count && jinja_step(r, 1); i++) {
            const struct list *both = jinja_elements(r, l->items[i]);
            if (both && both->count != 2) return jinja_fail(r, "%s wants pairs", a->of);
            if (both) jinja_dict_set(r, d, both->items[0], both->items[1]);
        }
    }
    for (size_t i = 0; i < a->named_count && jinja_step(r, 1); i++)
        jinja_dict_set(r, d, jinja_literal(a->named[i].name), a->named[i].value);
    for (size_t i = 0; kind == V_NAMESPACE && i < d->count; i++)
        if (d->pairs[i].key.kind == V_STRING && d->pairs[i].key.len && d->pairs[i].key.text[0] == '_')
            return jinja_fail(r, "an attribute of a namespace cannot begin with _");
    return (struct value){.kind = kind, .dict = d};
}

static struct value time_now(struct render *r, const struct args *a) {
    char text[1024];
    struct tm now;
    time_t seconds = time(NULL);
    if (!jinja_args_check(r, a, 1, 1, NULL)) return jinja_none();
    if (a->at[0].kind != V_STRING) return jinja_fail(r, "strftime_now wants a string");
    struct value format = jinja_string(r, a->at[0].text, a->at[0].len);
    if (format.len == 0 || !localtime_r(&seconds, &now)) return jinja_literal("");
    size_t n = strftime(text, sizeof text, format.text, &now);
    if (n == 0 || utf8_valid_prefix(text, n) < n) return jinja_fail(r, "strftime_now cannot write this format");
    return jinja_string(r, text, n);
}

static struct value raise(struct render *r, const struct args *a) {
    struct text t = {0};
    if (a->count) jinja_print(r, &t, &a->at[0]);
    struct value v = jinja_fail(r, "the template refuses these messages: %.300s", text_str(&t));
    text_free(&t);
    return v;
}

static const char *const functions[] = {"range",  "dict",   "namespace", "raise_exception", "strftime_now", "cycler",
                                        "joiner", "lipsum", NULL};
bool jinja_function_known(const char *name) { return listed(functions, name); }

struct value jinja_function(struct render *r, const char *name, const struct args *a) {
    if (strcmp(name, "range") == 0) return range(r, a);
    if (strcmp(name, "dict") == 0) return make_dict(r, a, V_DICT);
    if (strcmp(name, "namespace") == 0) return make_dict(r, a, V_NAMESPACE);
    if (strcmp(name, "raise_exception") == 0) return raise(r, a);
    if (strcmp(name, "strftime_now") == 0) return time_now(r, a);
    return jinja_fail(r, "the function %s is not supported", name);
}

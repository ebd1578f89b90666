#include "data/detokenize.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "data/bpe.h"

enum { DEEPEST = 16, LONGEST = 64 };

struct undo {
    enum { REPLACE, BYTES, FUSE, STRIP, BYTE_LEVEL, METASPACE } kind;
    char from[LONGEST + 1], to[LONGEST + 1]; // REPLACE; STRIP and METASPACE: the character in from
    size_t start, stop;                      // STRIP: how many at most
    bool drop_first;                         // METASPACE: in the first token the character is left out
};

void strings_add(struct strings *list, const char *s, size_t n) {
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 64;
        list->ends = mem_resize(list->ends, list->room * sizeof *list->ends);
    }
    text_add_n(&list->bytes, s, n);
    list->ends[list->count++] = list->bytes.len;
}

void strings_free(struct strings *list) {
    text_free(&list->bytes);
    free(list->ends);
    *list = (struct strings){0};
}

static const char *string_at(const struct strings *list, size_t i, size_t *n) {
    size_t start = i ? list->ends[i - 1] : 0;
    *n = list->ends[i] - start;
    return text_str(&list->bytes) + start;
}

static enum status undo_of(struct detokenizer *d, const cJSON *json, const char *where, int depth, struct err *e);

static enum status sequence_of(struct detokenizer *d, const cJSON *json, const char *where, int depth, struct err *e) {
    const cJSON *list = json_get(json, "decoders"), *item;
    if (!cJSON_IsArray(list) || depth > DEEPEST)
        return err_set(e, ST_FAIL, "%s: decoder: decoders is not a list", where);
    cJSON_ArrayForEach(item, list) {
        if (d->count >= DEEPEST) return err_set(e, ST_FAIL, "%s: more than %d decoders in sequence", where, DEEPEST);
        if (undo_of(d, item, where, depth + 1, e) != ST_OK) return e->code;
    }
    return ST_OK;
}

static enum status one_character(const char *s, const char *where, const char *key, char *out, struct err *e) {
    int len = 0;
    if (*s) utf8_rune(s, &len);
    if (len == 0 || s[len])
        return err_set(e, ST_FAIL, "%s: decoder: %s is \"%.20s\", wanted one character", where, key, s);
    memcpy(out, s, (size_t)len + 1);
    return ST_OK;
}

static enum status replace_of(struct undo *u, const cJSON *json, const char *where, struct err *e) {
    const cJSON *from = cJSON_GetObjectItemCaseSensitive(json_get(json, "pattern"), "String");
    const char *to;
    if (!cJSON_IsString(from) || !*from->valuestring)
        return err_set(e, ST_FAIL, "%s: decoder: Replace with another pattern than a String is not supported", where);
    if (json_str(json, where, "content", "", &to, e) != ST_OK) return e->code;
    if (strlen(from->valuestring) > LONGEST || strlen(to) > LONGEST)
        return err_set(e, ST_FAIL, "%s: decoder: a string of more than %d bytes is not supported", where, LONGEST);
    memcpy(u->from, from->valuestring, strlen(from->valuestring) + 1);
    memcpy(u->to, to, strlen(to) + 1);
    return ST_OK;
}

static enum status strip_of(struct undo *u, const cJSON *json, const char *where, struct err *e) {
    const char *content;
    int64_t start, stop;
    if (json_str(json, where, "content", "", &content, e) != ST_OK ||
        json_int(json, where, "start", 0, &start, e) != ST_OK || json_int(json, where, "stop", 0, &stop, e) != ST_OK)
        return e->code;
    if (start < 0 || stop < 0) return err_set(e, ST_FAIL, "%s: decoder: Strip of less than nothing", where);
    u->start = (size_t)start, u->stop = (size_t)stop;
    return one_character(content, where, "content", u->from, e);
}

static enum status metaspace_of(struct undo *u, const cJSON *json, const char *where, struct err *e) {
    const char *meta, *prefix;
    bool always;
    if (json_str(json, where, "replacement", "", &meta, e) != ST_OK ||
        json_bool(json, where, "add_prefix_space", true, &always, e) != ST_OK ||
        json_str(json, where, "prepend_scheme", always ? "always" : "never", &prefix, e) != ST_OK)
        return e->code;
    u->drop_first = strcmp(prefix, "never") != 0;
    if (u->drop_first && strcmp(prefix, "first") != 0 && strcmp(prefix, "always") != 0)
        return err_set(e, ST_FAIL, "%s: decoder: prepend_scheme is \"%.40s\", wanted first, always or never", where,
                       prefix);
    return one_character(meta, where, "replacement", u->from, e);
}

static enum status undo_of(struct detokenizer *d, const cJSON *json, const char *where, int depth, struct err *e) {
    static const char *const names[] = {"Replace", "ByteFallback", "Fuse", "Strip", "ByteLevel", "Metaspace"};
    const char *type;
    if (json_str(json, where, "type", "", &type, e) != ST_OK) return e->code;
    if (strcmp(type, "Sequence") == 0) return sequence_of(d, json, where, depth, e);
    int kind = 0;
    while (kind < 6 && strcmp(type, names[kind]) != 0) kind++;
    if (kind == 6) return err_set(e, ST_FAIL, "%s: the decoder \"%.40s\" is not supported", where, type);
    d->steps = mem_resize(d->steps, ((size_t)d->count + 1) * sizeof *d->steps);
    struct undo *u = &d->steps[d->count++];
    *u = (struct undo){.kind = kind};
    if (kind == REPLACE) return replace_of(u, json, where, e);
    if (kind == STRIP) return strip_of(u, json, where, e);
    return kind == METASPACE ? metaspace_of(u, json, where, e) : ST_OK;
}

enum status detokenizer_init(struct detokenizer *d, const cJSON *json, const char *where, struct err *e) {
    *d = (struct detokenizer){.absent = !json};
    return json ? undo_of(d, json, where, 0, e) : ST_OK;
}

void detokenizer_free(struct detokenizer *d) {
    free(d->steps);
    *d = (struct detokenizer){0};
}

static void replace_all(struct text *out, const char *s, size_t n, const char *from, const char *to) {
    size_t len = strlen(from), done = 0;
    for (const char *hit; (hit = memmem(s + done, n - done, from, len)); done = (size_t)(hit - s) + len) {
        text_add_n(out, s + done, (size_t)(hit - s) - done);
        text_add(out, to);
    }
    text_add_n(out, s + done, n - done);
}

/* The bytes as text: each longest piece that could have started a character, but did not, becomes one U+FFFD. */
static void add_lossy(struct text *out, const char *s, size_t n) {
    while (n > 0) {
        size_t good = utf8_valid_prefix(s, n);
        text_add_n(out, s, good);
        s += good, n -= good;
        if (n == 0) return;
        const unsigned char *u = (const unsigned char *)s;
        size_t want = u[0] >= 0xF0 && u[0] <= 0xF4 ? 4 : u[0] >= 0xE0 && u[0] < 0xF0 ? 3 : 1, bad = 1;
        unsigned low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
        unsigned high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
        for (; bad < want && bad < n && u[bad] >= low && u[bad] <= high; bad++) low = 0x80, high = 0xBF;
        text_add_rune(out, 0xFFFD);
        s += bad, n -= bad;
    }
}

/* The byte that a token like <0x0A> stands for, or -1. The digits are read as loosely as the reference does. */
static int byte_token(const char *s, size_t n) {
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = s[i];
        if (i == 3 && c == '+') continue;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* A run of byte tokens is text when it is UTF-8 as a whole, else one U+FFFD for each byte. */
static void flush_bytes(struct strings *out, struct text *run) {
    if (run->len > 0 && utf8_valid_prefix(run->data, run->len) == run->len)
        strings_add(out, run->data, run->len);
    else
        for (size_t i = 0; i < run->len; i++) strings_add(out, "\xEF\xBF\xBD", 3);
    text_clear(run);
}

static void undo_bytes(const struct strings *in, struct strings *out) {
    struct text run = {0};
    for (size_t i = 0; i < in->count; i++) {
        size_t n;
        const char *s = string_at(in, i, &n);
        int byte = byte_token(s, n);
        if (byte >= 0) {
            text_add_char(&run, (char)byte);
            continue;
        }
        flush_bytes(out, &run);
        strings_add(out, s, n);
    }
    flush_bytes(out, &run);
    text_free(&run);
}

static void undo_byte_level(const struct strings *in, struct strings *out) {
    struct text bytes = {0}, clean = {0};
    for (size_t i = 0; i < in->count; i++) {
        size_t n, mark = bytes.len;
        const char *s = string_at(in, i, &n);
        for (size_t at = 0; at < n;) {
            int len, byte = rune_to_byte(utf8_rune(s + at, &len));
            if (byte < 0) { // not of the byte alphabet: an added token, whose text stands for itself
                bytes.len = mark;
                text_add_n(&bytes, s, n);
                break;
            }
            text_add_char(&bytes, (char)byte);
            at += (size_t)len;
        }
    }
    add_lossy(&clean, text_str(&bytes), bytes.len);
    strings_add(out, text_str(&clean), clean.len);
    text_free(&bytes);
    text_free(&clean);
}

static void undo_strip(const struct undo *u, const char *s, size_t n, struct strings *out) {
    size_t len = strlen(u->from);
    for (size_t i = 0; i < u->start && n >= len && memcmp(s, u->from, len) == 0; i++) s += len, n -= len;
    for (size_t i = 0; i < u->stop && n >= len && memcmp(s + n - len, u->from, len) == 0; i++) n -= len;
    strings_add(out, s, n);
}

static void undo_step(const struct undo *u, const struct strings *in, struct strings *out) {
    if (u->kind == BYTES) {
        undo_bytes(in, out);
        return;
    }
    if (u->kind == BYTE_LEVEL) {
        undo_byte_level(in, out);
        return;
    }
    if (u->kind == FUSE) {
        strings_add(out, text_str(&in->bytes), in->bytes.len);
        return;
    }
    struct text changed = {0};
    for (size_t i = 0; i < in->count; i++) {
        size_t n;
        const char *s = string_at(in, i, &n);
        if (u->kind == STRIP) {
            undo_strip(u, s, n, out);
            continue;
        }
        text_clear(&changed);
        replace_all(&changed, s, n, u->from, u->kind == REPLACE ? u->to : i == 0 && u->drop_first ? "" : " ");
        strings_add(out, text_str(&changed), changed.len);
    }
    text_free(&changed);
}

void detokenizer_apply(const struct detokenizer *d, struct strings *tokens, struct text *out) {
    for (int i = 0; i < d->count; i++) {
        struct strings next = {0};
        undo_step(&d->steps[i], tokens, &next);
        strings_free(tokens);
        *tokens = next;
    }
    for (size_t i = 0; i < tokens->count; i++) {
        size_t n;
        const char *s = string_at(tokens, i, &n);
        if (d->absent && i > 0) text_add_char(out, ' ');
        text_add_n(out, s, n);
    }
}

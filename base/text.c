#include "base/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static void reserve(struct text *t, size_t more) {
    size_t want = t->len + more + 1;
    if (want <= t->room) return;
    size_t room = t->room ? t->room : 64;
    while (room < want) room *= 2;
    t->data = mem_resize(t->data, room);
    t->room = room;
}

void text_add_n(struct text *t, const char *s, size_t n) {
    reserve(t, n);
    if (n) memcpy(t->data + t->len, s, n);
    t->len += n;
    t->data[t->len] = 0;
}

void text_add(struct text *t, const char *s) { text_add_n(t, s, strlen(s)); }

void text_add_char(struct text *t, char c) { text_add_n(t, &c, 1); }

void text_add_rune(struct text *t, unsigned rune) {
    char b[4];
    size_t n = 0;
    if (rune < 0x80) {
        b[n++] = (char)rune;
    } else if (rune < 0x800) {
        b[n++] = (char)(0xC0 | rune >> 6);
        b[n++] = (char)(0x80 | (rune & 63));
    } else if (rune < 0x10000) {
        b[n++] = (char)(0xE0 | rune >> 12);
        b[n++] = (char)(0x80 | (rune >> 6 & 63));
        b[n++] = (char)(0x80 | (rune & 63));
    } else {
        b[n++] = (char)(0xF0 | rune >> 18);
        b[n++] = (char)(0x80 | (rune >> 12 & 63));
        b[n++] = (char)(0x80 | (rune >> 6 & 63));
        b[n++] = (char)(0x80 | (rune & 63));
    }
    text_add_n(t, b, n);
}

void text_addf(struct text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n > 0) {
        reserve(t, (size_t)n);
        vsnprintf(t->data + t->len, (size_t)n + 1, format, again);
        t->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

void text_clear(struct text *t) {
    t->len = 0;
    if (t->data) t->data[0] = 0;
}

void text_free(struct text *t) {
    free(t->data);
    *t = (struct text){0};
}

const char *text_str(const struct text *t) { return t->data ? t->data : ""; }

/* Length of the valid UTF-8 sequence at s (n bytes left), or 0. */
static size_t sequence(const unsigned char *s, size_t n) {
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    if (s[0] == 0xE0 && s[1] < 0xA0) return 0; // overlong
    if (s[0] == 0xED && s[1] > 0x9F) return 0; // surrogate
    if (s[0] == 0xF0 && s[1] < 0x90) return 0; // overlong
    if (s[0] == 0xF4 && s[1] > 0x8F) return 0; // beyond U+10FFFF
    return len;
}

size_t utf8_valid_prefix(const char *s, size_t n) {
    size_t at = 0;
    while (at < n) {
        uint64_t eight;
        if (at + 8 <= n && (memcpy(&eight, s + at, 8), (eight & 0x8080808080808080u) == 0)) {
            at += 8;
            continue;
        }
        size_t len = sequence((const unsigned char *)s + at, n - at);
        if (len == 0) return at;
        at += len;
    }
    return n;
}

unsigned utf8_rune(const char *s, int *n) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) return *n = 1, u[0];
    if (u[0] < 0xE0) return *n = 2, (u[0] & 31u) << 6 | (u[1] & 63u);
    if (u[0] < 0xF0) return *n = 3, (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
    return *n = 4, (u[0] & 7u) << 18 | (u[1] & 63u) << 12 | (u[2] & 63u) << 6 | (u[3] & 63u);
}

bool text_starts(const char *s, const char *prefix) { return strncmp(s, prefix, strlen(prefix)) == 0; }

bool text_ends(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && memcmp(s + n - m, suffix, m) == 0;
}

enum { LONGEST_WORD = 63 };

/* Levenshtein distance of two words of at most LONGEST_WORD bytes, where a swap of neighbours counts as one. */
static int distance(const char *a, const char *b) {
    int rows[3][LONGEST_WORD + 1], n = (int)strlen(b);
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= n; j++) last[j] = j, before[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        now[0] = i;
        for (int j = 1; j <= n; j++) {
            int d = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < d) d = last[j] + 1;
            if (now[j - 1] + 1 < d) d = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < d)
                d = before[j - 2] + 1;
            now[j] = d;
        }
        int *free_row = before;
        before = last, last = now, now = free_row;
    }
    return last[n];
}

const char *text_nearest(const char *s, const char *const *words, size_t count) {
    const char *best = NULL;
    int nearest = 1 + (int)strlen(s) / 2; // more than half of it mistyped is another word
    if (strlen(s) > LONGEST_WORD) return NULL;
    for (size_t i = 0; i < count; i++) {
        if (strlen(words[i]) > LONGEST_WORD) continue;
        int d = distance(s, words[i]);
        if (d < nearest) nearest = d, best = words[i];
    }
    return best;
}

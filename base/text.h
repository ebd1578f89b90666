/* A growing byte string. Always ends with a zero byte that is not counted, so data is a C string when it holds none. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
    char *data; // (len + 1), or NULL while nothing was added
    size_t len;
    size_t room;
};

void text_add(struct text *t, const char *s);
void text_add_n(struct text *t, const char *s, size_t n);
void text_add_char(struct text *t, char c);
void text_add_rune(struct text *t, unsigned rune); // UTF-8 of one code point
void text_addf(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_clear(struct text *t); // keeps the room
void text_free(struct text *t);
const char *text_str(const struct text *t); // never NULL

/* The first byte of s (n bytes) that is not valid UTF-8 (surrogates and overlong forms are not), or n. */
size_t utf8_valid_prefix(const char *s, size_t n);

/* The code point at s, whose length goes to *n. s must be valid UTF-8 and not at its end. */
unsigned utf8_rune(const char *s, int *n);

bool text_starts(const char *s, const char *prefix);
bool text_ends(const char *s, const char *suffix);

/* The word of the list (count) that is nearest to s by edit distance, or NULL when none is near enough to be meant. */
const char *text_nearest(const char *s, const char *const *words, size_t count);

#endif

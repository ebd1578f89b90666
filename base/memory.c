#include "base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *or_end(void *p, size_t bytes) {
    if (p) return p;
    fprintf(stderr, "graft: out of memory (%zu bytes wanted)\n", bytes);
    abort();
}

void *mem_alloc(size_t bytes) {
    size_t n = bytes ? bytes : 1;
    return or_end(calloc(1, n), n);
}

void *mem_resize(void *old, size_t bytes) {
    size_t n = bytes ? bytes : 1;
    return or_end(realloc(old, n), n);
}

char *mem_text(const char *s) { return mem_text_n(s, strlen(s)); }

char *mem_text_n(const char *s, size_t n) {
    char *copy = mem_alloc(n + 1);
    memcpy(copy, s, n);
    return copy;
}

char *mem_format(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *s = mem_alloc((size_t)(n < 0 ? 0 : n) + 1);
    if (n > 0) vsnprintf(s, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return s;
}

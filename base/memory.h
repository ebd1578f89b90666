/* Allocation on the host that cannot return NULL: when the machine is out of memory there is nothing a caller could
 * still do, so these end the program with one sentence. Large, planned memory comes from arenas, which do return. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stddef.h>

void *mem_alloc(size_t bytes);             // zeroed; mem_alloc(0) is a valid pointer
void *mem_resize(void *old, size_t bytes); // as realloc; the new part is not zeroed
char *mem_text(const char *s);             // a copy of s
char *mem_text_n(const char *s, size_t n); // a copy of the first n bytes, with a final zero
char *mem_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

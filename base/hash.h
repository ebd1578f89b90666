/* FNV-1a, 64 bits: names a thing by its content (a data set, a configuration). Not for adversaries. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_START UINT64_C(0xcbf29ce484222325)

uint64_t hash_bytes(uint64_t so_far, const void *data, size_t n);
uint64_t hash_text(uint64_t so_far, const char *s); // the final zero counts, so that "a","b" differs from "ab"

#endif

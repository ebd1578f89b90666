#include "base/hash.h"

#include <string.h>

uint64_t hash_bytes(uint64_t so_far, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) so_far = (so_far ^ p[i]) * UINT64_C(0x100000001b3);
    return so_far;
}

uint64_t hash_text(uint64_t so_far, const char *s) { return hash_bytes(so_far, s, strlen(s) + 1); }

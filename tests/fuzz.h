/* What fuzzers share. For libFuzzer, which gives the entry its bytes. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sums every byte that a reader was given, so that a sanitizer sees it touched. */
static inline unsigned fuzz_touch(const void *data, size_t n) {
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((const unsigned char *)data)[i];
    return sum;
}

/* A file in memory with these bytes, to be closed; its path. Negative: none. */
static inline int fuzz_file(char path[64], const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd >= 0 && write(fd, data, size) == (ssize_t)size ? fd : -1;
}

#endif

/* Whatever the bytes: the safetensors reader and the reader of 4-bit weights refuse or read them, and stay in
 * bounds. */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "quant/bnb.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sums every byte that a reader was given, so that a sanitizer sees it touched. */
static unsigned touch(const void *data, size_t n) {
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((const unsigned char *)data)[i];
    return sum;
}

static unsigned read_weight(const struct st_set *s, const char *name) {
    struct q4_weight w;
    struct err e = {0};
    if (!bnb_is_4bit(s, name) || bnb_read(&w, s, name, &e) != ST_OK) return 0;
    int64_t n = tensor_count(&w.t), blocks = (n - 1) / w.q.blocksize + 1;
    unsigned sum = touch(w.t.data, tensor_bytes(&w.t)) + touch(w.q.code, 64);
    for (int64_t i = 0; i < blocks; i++) sum += q4_absmax(&w.q, i) > 0;
    bnb_release(&w);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    char path[64];
    struct st_set s;
    struct err e = {0};
    volatile unsigned sum = 0;
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (st_open_file(&s, path, &e) == ST_OK) {
        for (size_t i = 0; i < s.count; i++) {
            sum += touch(s.entries[i].data, s.entries[i].bytes) + read_weight(&s, s.entries[i].name);
            sum += st_find(&s, s.entries[i].name) != &s.entries[i];
        }
        st_close(&s);
    }
    close(fd);
    return 0;
}

/* Whatever the bytes: the safetensors reader and the reader of 4-bit weights refuse or read them, and stay in
 * bounds. */
#include "base/safetensors.h"
#include "quant/bnb.h"
#include "tests/fuzz.h"

static unsigned read_weight(const struct st_set *s, const char *name) {
    struct q4_weight w;
    struct err e = {0};
    if (!bnb_is_4bit(s, name) || bnb_read(&w, s, name, &e) != ST_OK) return 0;
    int64_t n = tensor_count(&w.t), blocks = (n - 1) / w.q.blocksize + 1;
    unsigned sum = fuzz_touch(w.t.data, tensor_bytes(&w.t)) + fuzz_touch(w.q.code, 64);
    for (int64_t i = 0; i < blocks; i++) sum += q4_absmax(&w.q, i) > 0;
    bnb_release(&w);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    int fd = fuzz_file(path, data, size);
    struct st_set s;
    struct err e = {0};
    volatile unsigned sum = 0;
    if (fd < 0) return 0;
    if (st_open_file(&s, path, &e) == ST_OK) {
        for (size_t i = 0; i < s.count; i++) {
            sum += fuzz_touch(s.entries[i].data, s.entries[i].bytes) + read_weight(&s, s.entries[i].name);
            sum += st_find(&s, s.entries[i].name) != &s.entries[i];
        }
        st_close(&s);
    }
    close(fd);
    return 0;
}

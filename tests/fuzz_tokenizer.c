/* Fuzzing entry: the input up to its first zero byte is a tokenizer.json, the rest is a text to encode with it. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "data/tokenizer.h"
#include "tests/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char dir[] = "/tmp/fuzz_tokenizer_XXXXXX";
    if (!mkdtemp(dir)) return 0;
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t json = zero ? (size_t)(zero - data) : size;
    char *path = path_join(dir, "tokenizer.json");
    struct err e = {0}, ignored = {0};
    struct tokenizer *t = NULL;
    if (file_write(path, data, json, &e) == ST_OK) t = tokenizer_load(dir, &e);
    if (t && zero) {
        struct ids ids = {0};
        struct text text = {0};
        tokenizer_encode(t, (const char *)zero + 1, size - json - 1, true, &ids, &e);
        tokenizer_decode(t, ids.data, ids.len, false, &text);
        ids_free(&ids);
        text_free(&text);
    }
    tokenizer_free(t);
    dir_remove(dir, &ignored);
    free(path);
    return 0;
}

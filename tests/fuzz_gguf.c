/* Whatever the bytes: the reader of GGUF files refuses or reads them, and stays in bounds. */
#include <stdlib.h>

#include "base/memory.h"
#include "quant/ggml.h"
#include "quant/gguf.h"
#include "tests/fuzz.h"

static unsigned read_tensor(const struct gguf_tensor *t) {
    unsigned sum = fuzz_touch(t->data, t->bytes);
    if (!ggml_is_computed(t->type)) return sum;
    float *x = mem_alloc((size_t)t->dim[0] * sizeof *x);
    ggml_dequantize((enum ggml_type)t->type, x, t->data, t->dim[0]);
    sum += fuzz_touch(x, (size_t)t->dim[0] * sizeof *x);
    free(x);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    int fd = fuzz_file(path, data, size);
    struct gguf g;
    struct err e = {0};
    volatile unsigned sum = 0;
    if (fd < 0) return 0;
    if (gguf_open(&g, path, &e) == ST_OK) {
        double number;
        for (size_t i = 0; i < g.value_count; i++) {
            sum += fuzz_touch(g.values[i].data, g.values[i].bytes) + (gguf_find(&g, g.values[i].key) != &g.values[i]);
            sum += gguf_number(&g.values[i], &number) && number > 0;
        }
        for (size_t i = 0; i < g.tensor_count; i++) sum += read_tensor(&g.tensors[i]);
        gguf_close(&g);
    }
    close(fd);
    return 0;
}

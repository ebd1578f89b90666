/* Whatever the bytes: the reader of GGUF files refuses or reads them, and stays in bounds. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "quant/ggml.h"
#include "quant/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sums every byte that a reader was given, so that a sanitizer sees it touched. */
static unsigned touch(const void *data, size_t n) {
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((const unsigned char *)data)[i];
    return sum;
}

static unsigned read_tensor(const struct gguf_tensor *t) {
    unsigned sum = touch(t->data, t->bytes);
    if (!ggml_is_computed(t->type)) return sum;
    float *x = mem_alloc((size_t)t->dim[0] * sizeof *x);
    ggml_dequantize((enum ggml_type)t->type, x, t->data, t->dim[0]);
    sum += touch(x, (size_t)t->dim[0] * sizeof *x);
    free(x);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    char path[64];
    struct gguf g;
    struct err e = {0};
    volatile unsigned sum = 0;
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (gguf_open(&g, path, &e) == ST_OK) {
        double number;
        for (size_t i = 0; i < g.value_count; i++) {
            sum += touch(g.values[i].data, g.values[i].bytes) + (gguf_find(&g, g.values[i].key) != &g.values[i]);
            sum += gguf_number(&g.values[i], &number) && number > 0;
        }
        for (size_t i = 0; i < g.tensor_count; i++) sum += read_tensor(&g.tensors[i]);
        gguf_close(&g);
    }
    close(fd);
    return 0;
}

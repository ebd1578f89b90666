/* How fast weights become 4-bit, and numbers again: one matrix of a large layer, best of several runs, in billions of
 * elements a second and GB/s of source. bench/quant_peer.py measures bitsandbytes on the same matrix. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/rng.h"
#include "quant/block.h"
#include "quant/q4.h"

enum { ROWS = 4096, COLUMNS = 14336, RUNS = 7 };

static void print_row(const char *what, enum dtype source, double seconds) {
    double n = (double)ROWS * COLUMNS;
    printf("%-28s %-5s %8.2f ms %7.2f Gelem/s %7.2f GB/s\n", what, dtype_name(source), 1e3 * seconds, n / seconds / 1e9,
           n * (double)dtype_size(source) / seconds / 1e9);
}

struct room {
    uint8_t *packed, *absmax8;
    float *absmax, *nested;
    void *x, *out;
};

static void time_type(const struct room *r, enum dtype source, enum dtype type, bool nest, struct threads *t) {
    int64_t n = (int64_t)ROWS * COLUMNS;
    float map8[256];
    double best = 1e9, best_back = 1e9;
    block_map8(map8);
    struct q4 q = {.blocksize = 64, .source = source, .code = block_code(type), .absmax = r->absmax};
    struct tensor w = tensor_over2(r->packed, type, ROWS, COLUMNS);
    w.q4 = &q;
    for (int i = 0; i < RUNS; i++) {
        double start = clock_now();
        block_quantize(r->packed, r->absmax, r->x, source, n, type, 64, t);
        if (nest) block_nest(r->absmax8, r->nested, r->absmax, n / 64, map8, t);
        double middle = clock_now();
        block_dequantize(r->out, source, &w, t);
        double end = clock_now();
        if (middle - start < best) best = middle - start;
        if (end - middle < best_back) best_back = end - middle;
    }
    char *what = mem_format("quantise %s%s", dtype_name(type), nest ? " double" : "");
    print_row(what, source, best);
    if (!nest) print_row("dequantise", source, best_back);
    free(what);
}

int main(int argc, char **argv) {
    size_t n = (size_t)ROWS * COLUMNS;
    struct threads *t = threads_new(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0);
    struct room r = {mem_alloc(n / 2),  mem_alloc(n / 64), mem_alloc(n / 16),
                     mem_alloc(n / 64), mem_alloc(n * 4),  mem_alloc(n * 4)};
    static const enum dtype sources[] = {BF16, F16, F32};
    printf("%d x %d, block 64, %d threads\n", ROWS, COLUMNS, threads_count(t));
    for (int k = 0; k < 3; k++) {
        for (size_t i = 0; i < n; i++) {
            float v = 0.02f * ((float)(rng_bits(1, 2, i % 1000003) >> 8) * 0x1p-23f - 1.0f);
            if (sources[k] == F32) ((float *)r.x)[i] = v;
            if (sources[k] == BF16) ((uint16_t *)r.x)[i] = bf16_of_float(v);
            if (sources[k] == F16) ((uint16_t *)r.x)[i] = f16_of_float(v);
        }
        time_type(&r, sources[k], NF4, false, t);
        time_type(&r, sources[k], NF4, true, t);
        time_type(&r, sources[k], FP4, false, t);
    }
    free(r.packed), free(r.absmax8), free(r.absmax), free(r.nested), free(r.x), free(r.out);
    threads_free(t);
    return 0;
}

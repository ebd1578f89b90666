#include "base/floats.h"

#include <string.h>

#include "base/half.h"

enum dtype floats_type(const struct st_entry *t) { return t->type == ST_F32 ? F32 : t->type == ST_BF16 ? BF16 : F16; }

void floats_read(float *out, const void *data, enum dtype type, int64_t first, int64_t n) {
    const char *from = (const char *)data + (size_t)first * dtype_size(type);
    if (type == F32) {
        memcpy(out, from, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, 2);
        out[i] = type == BF16 ? bf16_to_float(h) : f16_to_float(h);
    }
}

double floats_square_sum(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

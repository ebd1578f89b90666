/* Runs of numbers to and from F32. The 16-bit floats are handled by integer arithmetic that vectorises; the bits are
 * those of base/half.h. */
#ifndef KERNELS_CPU_CONVERT_H
#define KERNELS_CPU_CONVERT_H

#include "base/half.h"
#include "base/tensor.h"

static inline void floats_of_bf16(float *restrict y, const bf16 *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = bf16_to_float(x[i]);
}

static inline void bf16_of_floats(bf16 *restrict y, const float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = bf16_of_float(x[i]);
}

void floats_of_f16(float *restrict y, const f16 *restrict x, int64_t n);
void f16_of_floats(f16 *restrict y, const float *restrict x, int64_t n);

/* Elements at .. at + n of t as F32: in place when t is F32, else converted into buffer (n). */
static inline const float *floats_of(const struct tensor *t, int64_t at, int64_t n, float *buffer) {
    if (t->type == F32) return (const float *)t->data + at;
    if (t->type == BF16)
        floats_of_bf16(buffer, (const bf16 *)t->data + at, n);
    else
        floats_of_f16(buffer, (const f16 *)t->data + at, n);
    return buffer;
}

/* Where elements from `at` on are to be computed: in place when t is F32, else in buffer; floats_store brings them
 * home. */
static inline float *floats_place(const struct tensor *t, int64_t at, float *buffer) {
    return t->type == F32 ? (float *)t->data + at : buffer;
}

static inline void floats_store(const struct tensor *t, int64_t at, int64_t n, const float *placed) {
    if (t->type == BF16) bf16_of_floats((bf16 *)t->data + at, placed, n);
    if (t->type == F16) f16_of_floats((f16 *)t->data + at, placed, n);
}

#endif

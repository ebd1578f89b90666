/* Numbers of files and tensors as F32: of a type F32, BF16 or F16, at any address. And what is asked of F32 numbers in
 * more than one room. */
#ifndef BASE_FLOATS_H
#define BASE_FLOATS_H

#include <stdint.h>

#include "base/safetensors.h"
#include "base/tensor.h"

enum dtype floats_type(const struct st_entry *t); // of an entry of one of these types

/* n numbers from `first` on. */
void floats_read(float *out, const void *data, enum dtype type, int64_t first, int64_t n);

double floats_square_sum(const float *x, int64_t n); // in double, from the first to the last

static inline float floats_at(const void *data, enum dtype type, int64_t i) {
    float x;
    floats_read(&x, data, type, i, 1);
    return x;
}

#endif

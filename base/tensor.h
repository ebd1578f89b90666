/* A view of numbers: pointer, type, shape. Row-major, last dimension fastest, no strides. Never owns its memory, which
 * may be the host's or a device's; only kernels look behind data.
 *
 * A 4-bit tensor (NF4, FP4) keeps its true shape in dim and its packed codes in data; the scales are in q4, in the
 * layout of bitsandbytes (quant/q4.h). */
#ifndef BASE_TENSOR_H
#define BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { F32, BF16, F16, I32, I64, U8, NF4, FP4 };

enum { MAX_RANK = 4 };

struct q4; // scales of a 4-bit tensor, quant/q4.h

struct tensor {
    void *data;
    enum dtype type;
    int rank;
    int64_t dim[MAX_RANK]; // those beyond rank are 1
    const struct q4 *q4;   // NULL unless type is NF4 or FP4
};

struct tensor tensor_over1(void *data, enum dtype type, int64_t d0);
struct tensor tensor_over2(void *data, enum dtype type, int64_t d0, int64_t d1);
struct tensor tensor_over3(void *data, enum dtype type, int64_t d0, int64_t d1, int64_t d2);

int64_t tensor_count(const struct tensor *t); // elements
size_t tensor_bytes(const struct tensor *t);  // of data; 4-bit: two elements a byte, rounded up
bool tensor_is_4bit(const struct tensor *t);

/* Rows [first, first + count) of a tensor whose type is not 4-bit: same type, dim[0] = count. */
struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t count);

/* The same numbers under another shape; the counts must be equal. */
struct tensor tensor_as2(const struct tensor *t, int64_t d0, int64_t d1);
struct tensor tensor_as3(const struct tensor *t, int64_t d0, int64_t d1, int64_t d2);

size_t dtype_size(enum dtype type);      // bytes of one element; 0 for 4-bit types
const char *dtype_name(enum dtype type); // "f32", "bf16", "nf4", ...

#endif

/* GGUF files (version 3): a head of typed values by name, then tensors. Written for llama.cpp and read back to be
 * checked and shown.
 *
 * Reader: the file is mapped; counts, lengths and offsets are compared with its size before they are used, names are
 * unique, tensors lie within the file. Version 2 differs from 3 by nothing that is read here. Big-endian files are
 * refused.
 * Writer: names, types and shapes first, then the tensors' bytes in that order, in pieces. */
#ifndef QUANT_GGUF_H
#define QUANT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "base/text.h"

enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS
};

enum { GGUF_MAX_RANK = 4, GGUF_ALIGN = 32 };

struct gguf_value {
    char *key;
    enum gguf_kind kind, item; // item: of an array
    uint64_t count;            // of an array, 1 otherwise
    const char *data;          // into the map, at any address; of strings: a u64 length before each
    size_t bytes;
};

struct gguf_tensor {
    const char *name;
    uint32_t type; // as in quant/ggml.h
    int rank;
    int64_t dim[GGUF_MAX_RANK]; // fastest first: columns, then rows
    const void *data;           // reader: into the map
    size_t bytes;
};

struct gguf {
    char *path;
    struct file_map map;
    struct gguf_value *values; // (value_count), sorted by key
    size_t value_count;
    struct gguf_tensor *tensors; // (tensor_count), sorted by name
    size_t tensor_count;
    size_t head_bytes; // before the first tensor's data
};

enum status gguf_open(struct gguf *g, const char *path, struct err *e);
void gguf_close(struct gguf *g);
bool gguf_is_file(const char *path); // begins as one does

const struct gguf_value *gguf_find(const struct gguf *g, const char *key);          // NULL when absent
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); // NULL when absent
const char *gguf_kind_name(enum gguf_kind kind);

/* A whole number or a truth value, and any number; false when it is absent or of another kind. */
bool gguf_int(const struct gguf *g, const char *key, int64_t *out);
bool gguf_number(const struct gguf_value *v, double *out);
bool gguf_text(const struct gguf *g, const char *key, struct text *out); // adds a string to out

/* The bytes of a tensor of that type and shape; 0 when they are more than a file can have, or not whole blocks. */
size_t gguf_tensor_bytes(uint32_t type, const int64_t *dim, int rank);

/* --- writing ----------------------------------------------------------------------------------------------------- */

struct gguf_head {
    struct text bytes; // the values end to end
    uint64_t count;
};
void gguf_add_u32(struct gguf_head *h, const char *key, int64_t value);
void gguf_add_f32(struct gguf_head *h, const char *key, double value);
void gguf_add_bool(struct gguf_head *h, const char *key, bool value);
void gguf_add_string(struct gguf_head *h, const char *key, const char *value);
void gguf_add_array(struct gguf_head *h, const char *key, enum gguf_kind item, const void *data, uint64_t n);
/* An array whose strings are added by gguf_item afterwards, exactly n of them. */
void gguf_add_strings(struct gguf_head *h, const char *key, uint64_t n);
void gguf_item(struct gguf_head *h, const char *s, size_t n);
void gguf_head_free(struct gguf_head *h);

struct gguf_writer {
    struct file_out out;
    const struct gguf_tensor *tensors; // (count), the caller's; bytes are set, data is not used
    size_t count, next;
    size_t put; // bytes of tensors[next] so far
};
enum status gguf_writer_open(struct gguf_writer *w, const char *path, const struct gguf_head *h,
                             const struct gguf_tensor *tensors, size_t count, struct err *e);
enum status gguf_writer_put(struct gguf_writer *w, const void *data, size_t n, struct err *e);
/* All is on its way to the disk: the file can be read at w->out.beside. */
enum status gguf_writer_flush(struct gguf_writer *w, struct err *e);
enum status gguf_writer_commit(struct gguf_writer *w, struct err *e);
void gguf_writer_abandon(struct gguf_writer *w); // fine after commit, and on zeros

#endif

/* safetensors files (https://github.com/huggingface/safetensors, format of 2023): 8 bytes header length, a JSON header,
 * then the tensors end to end. Reading maps the file; nothing is trusted before it was compared with the file's size.
 *
 * Reader: header length and JSON are bounded (100 MB); offsets must tile the data without hole or overlap and end at
 * the file's end; counts and bytes must agree with shape and type; duplicate names and unknown types are errors.
 * Writer: types by size descending as the reference orders them (U64 first, BOOL last), then names; {"format":"pt"}. */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

enum st_type { ST_BOOL, ST_U8, ST_I8, ST_I16, ST_U16, ST_F16, ST_BF16, ST_I32, ST_U32, ST_F32, ST_F64, ST_I64, ST_U64 };

enum { ST_MAX_RANK = 8 };

struct st_entry {
    const char *name;
    enum st_type type;
    int rank;
    int64_t dim[ST_MAX_RANK];
    const void *data; // into the map, not always aligned (reader), or the caller's bytes (writer: see st_writer)
    size_t bytes;
    const char *file; // path of the shard it came from
};

/* All tensors of a model or adapter folder, or of one file. Entries are sorted by name; st_find is a binary search. */
struct st_set {
    struct st_entry *entries; // (count)
    size_t count;
    struct st_shard *shards; // maps and names, private to safetensors.c
    size_t shard_count;
};

/* One file. */
enum status st_open_file(struct st_set *s, const char *path, struct err *e);

/* A folder: `stem`.safetensors, or the shards that `stem`.safetensors.index.json maps (names with a slash or .. are
 * refused; every mapped tensor must be in its shard, every tensor of a shard must be mapped). stem is "model" or
 * "adapter_model". */
enum status st_open_dir(struct st_set *s, const char *dir, const char *stem, struct err *e);
void st_close(struct st_set *s);

const struct st_entry *st_find(const struct st_set *s, const char *name); // NULL when absent

/* The entry's data will not be read soon: its pages leave the process (reading them again brings them back). */
void st_forget(const struct st_entry *t);
void st_forget_all(const struct st_set *s);

/* At most n bytes of an entry's data from `at` on, as an entry that can be forgotten. */
struct st_entry st_part(const struct st_entry *t, size_t at, size_t n);

const char *st_type_name(enum st_type type); // "F32"
size_t st_type_size(enum st_type type);

/* Writes a file in one go: entries with data, in any order. Atomic. */
enum status st_write(const char *path, const struct st_entry *entries, size_t count, struct err *e);

/* Writes a file whose tensors are produced one after the other, so that no more than a part of one need be in memory.
 * All names, types and shapes are given first; then each is put once: st_writer_put puts order[next],
 * st_writer_put_named any, and st_writer_begin says which tensor's bytes st_writer_add gives part by part. */
struct st_writer {
    struct file_out out;
    struct st_entry *order; // (count), in file order; names are the caller's
    uint64_t *begin;        // (count), place in the file
    uint64_t position;      // of the stream
    uint64_t missing;       // bytes of the tensor that was begun last
    size_t count, next;     // next: how many were begun
};
enum status st_writer_open(struct st_writer *w, const char *path, const struct st_entry *entries, size_t count,
                           struct err *e);
enum status st_writer_put(struct st_writer *w, const void *data, struct err *e); // the bytes of order[next]
enum status st_writer_put_named(struct st_writer *w, const struct st_entry *entry, struct err *e); // its data
enum status st_writer_begin(struct st_writer *w, const struct st_entry *entry, struct err *e);
enum status st_writer_add(struct st_writer *w, const void *data, size_t n, struct err *e);
enum status st_writer_commit(struct st_writer *w, struct err *e);
void st_writer_abandon(struct st_writer *w); // fine after commit

#endif

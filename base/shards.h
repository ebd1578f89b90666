/* The tensors of a model folder, written one after the other into model.safetensors or, when they are more than a file
 * may hold, into model-00001-of-0000N.safetensors with model.safetensors.index.json. They reach the disk while what
 * follows is done, at the latest in the folder's commit (base/folder.h). */
#ifndef BASE_SHARDS_H
#define BASE_SHARDS_H

#include <stddef.h>
#include <stdint.h>

#include "base/safetensors.h"
#include "base/status.h"

struct shards {
    const struct st_entry *entries; // (count), the caller's
    int64_t *shard;                 // (count), file of each
    char *dir;
    size_t count, next;
    int64_t files, total;
    struct st_writer writer;
};

/* Names, types and shapes of all tensors; max_bytes of tensors go into a file, but a tensor is never split. A tensor is
 * put at once or in parts, one without numbers by a part of 0 bytes. */
enum status shards_open(struct shards *s, const char *dir, const struct st_entry *entries, size_t count,
                        int64_t max_bytes, struct err *e);
enum status shards_put(struct shards *s, const void *data, size_t n, struct err *e); // next bytes of entries[next]
enum status shards_commit(struct shards *s, struct err *e);                          // after the last one
void shards_abandon(struct shards *s);                                               // fine after commit

#endif

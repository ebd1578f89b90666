#include "base/shards.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"

static char *file_name(const struct shards *s, int64_t file) {
    if (s->files == 1) return mem_text("model.safetensors");
    return mem_format("model-%05lld-of-%05lld.safetensors", (long long)file + 1, (long long)s->files);
}

/* Opens the file of entries[next] with all entries that go into it, at that one. */
static enum status open_file(struct shards *s, struct err *e) {
    size_t end = s->next;
    while (end < s->count && s->shard[end] == s->shard[s->next]) end++;
    char *name = file_name(s, s->shard[s->next]), *path = path_join(s->dir, name);
    if (st_writer_open(&s->writer, path, s->entries + s->next, end - s->next, e) == ST_OK)
        st_writer_begin(&s->writer, &s->entries[s->next], e);
    s->writer.out.folder_flush = true;
    free(path);
    free(name);
    return e->code;
}

enum status shards_open(struct shards *s, const char *dir, const struct st_entry *entries, size_t count,
                        int64_t max_bytes, struct err *e) {
    *s = (struct shards){.entries = entries, .count = count, .dir = mem_text(dir)};
    s->shard = mem_alloc(count * sizeof *s->shard);
    int64_t held = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t bytes = (int64_t)entries[i].bytes;
        if (held > 0 && held + bytes > max_bytes) s->files++, held = 0;
        held += bytes;
        s->total += bytes;
        s->shard[i] = s->files;
    }
    s->files++;
    return count ? open_file(s, e) : err_set(e, ST_FAIL, "%s: there are no tensors to write", dir);
}

enum status shards_put(struct shards *s, const void *data, size_t n, struct err *e) {
    if (st_writer_add(&s->writer, data, n, e) != ST_OK || s->writer.missing > 0) return e->code;
    s->next++;
    bool last = s->next == s->count;
    if (!last && s->shard[s->next] == s->shard[s->next - 1])
        return st_writer_begin(&s->writer, &s->entries[s->next], e);
    if (st_writer_commit(&s->writer, e) != ST_OK || last) return e->code;
    return open_file(s, e);
}

enum status shards_commit(struct shards *s, struct err *e) {
    if (s->files == 1) return ST_OK;
    cJSON *tree = cJSON_CreateObject(), *map;
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(tree, "metadata"), "total_size", (double)s->total);
    map = cJSON_AddObjectToObject(tree, "weight_map");
    for (size_t i = 0; i < s->count; i++) {
        char *name = file_name(s, s->shard[i]);
        cJSON_AddStringToObject(map, s->entries[i].name, name);
        free(name);
    }
    json_write_in(s->dir, "model.safetensors.index.json", tree, e);
    cJSON_Delete(tree);
    return e->code;
}

void shards_abandon(struct shards *s) {
    st_writer_abandon(&s->writer);
    free(s->shard);
    free(s->dir);
    *s = (struct shards){0};
}

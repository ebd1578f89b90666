#include "base/safetensors.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

enum { HEADER_LIMIT = 100000000, INDEX_LIMIT = 100000000 };

/* One mapped file. The names of its tensors live in the header's tree. */
struct st_shard {
    struct file_map map;
    char *path;
    cJSON *header;
};

/* In the order of enum st_type. */
static const struct {
    const char *name;
    size_t size;
} types[] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},   [ST_I8] = {"I8", 1},     [ST_I16] = {"I16", 2},
    [ST_U16] = {"U16", 2},   [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2}, [ST_I32] = {"I32", 4},
    [ST_U32] = {"U32", 4},   [ST_F32] = {"F32", 4}, [ST_F64] = {"F64", 8},   [ST_I64] = {"I64", 8},
    [ST_U64] = {"U64", 8},
};
enum { TYPES = sizeof types / sizeof types[0] };

const char *st_type_name(enum st_type type) { return types[type].name; }

size_t st_type_size(enum st_type type) { return types[type].size; }

/* --- one entry of a header --------------------------------------------------------------------------------------- */

static bool type_of(const char *name, enum st_type *out) {
    for (int i = 0; i < TYPES; i++)
        if (strcmp(types[i].name, name) == 0) return *out = (enum st_type)i, true;
    return false;
}

static bool is_count(const cJSON *v) { return json_is_integer(v) && v->valuedouble >= 0; }

/* Bytes that type and shape ask for; false when they do not fit in 63 bits. */
static bool entry_bytes(const struct st_entry *t, uint64_t *bytes) {
    uint64_t n = types[t->type].size;
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(n, (uint64_t)t->dim[i], &n) || n > INT64_MAX) return false;
    *bytes = n;
    return true;
}

static enum status read_type(struct st_entry *t, const cJSON *o, struct err *e) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(o, "dtype");
    if (!cJSON_IsString(type)) return err_set(e, ST_FAIL, "%s: tensor %.200s has no dtype", t->file, t->name);
    if (!type_of(type->valuestring, &t->type))
        return err_set(e, ST_FAIL,
                       "%s: tensor %.200s has dtype %.40s, wanted one of BOOL U8 I8 I16 U16 F16 BF16 I32 U32 "
                       "F32 F64 I64 U64",
                       t->file, t->name, type->valuestring);
    return ST_OK;
}

static enum status read_shape(struct st_entry *t, const cJSON *o, struct err *e) {
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(o, "shape"), *d;
    if (!cJSON_IsArray(shape)) return err_set(e, ST_FAIL, "%s: tensor %.200s has no shape", t->file, t->name);
    cJSON_ArrayForEach(d, shape) {
        if (t->rank == ST_MAX_RANK)
            return err_set(e, ST_FAIL, "%s: tensor %.200s has more than %d dimensions", t->file, t->name, ST_MAX_RANK);
        if (!is_count(d))
            return err_set(e, ST_FAIL, "%s: tensor %.200s has a dimension that is not a whole number of 0 or more",
                           t->file, t->name);
        t->dim[t->rank++] = (int64_t)d->valuedouble;
    }
    return ST_OK;
}

/* Leaves the first byte, relative to the data, in *begin. The data's size is `room`. */
static enum status read_span(struct st_entry *t, const cJSON *o, size_t room, size_t *begin, struct err *e) {
    const cJSON *span = cJSON_GetObjectItemCaseSensitive(o, "data_offsets");
    const cJSON *first = cJSON_IsArray(span) ? span->child : NULL, *last = first ? first->next : NULL;
    if (!last || last->next || !is_count(first) || !is_count(last))
        return err_set(e, ST_FAIL, "%s: tensor %.200s: data_offsets are not two whole numbers", t->file, t->name);
    if (first->valuedouble > last->valuedouble || last->valuedouble > (double)room)
        return err_set(e, ST_FAIL, "%s: tensor %.200s spans bytes %.0f to %.0f of %zu; the file is cut off or damaged",
                       t->file, t->name, first->valuedouble, last->valuedouble, room);
    *begin = (size_t)first->valuedouble;
    t->bytes = (size_t)last->valuedouble - *begin;
    uint64_t want = 0;
    if (!entry_bytes(t, &want) || want != t->bytes)
        return err_set(e, ST_FAIL, "%s: tensor %.200s has %zu bytes, which is not what its shape and dtype %s need",
                       t->file, t->name, t->bytes, types[t->type].name);
    return ST_OK;
}

static enum status read_entry(struct st_entry *t, const struct st_shard *shard, const cJSON *o, size_t data,
                              struct err *e) {
    *t = (struct st_entry){.name = o->string, .file = shard->path};
    size_t begin = 0;
    if (!cJSON_IsObject(o)) return err_set(e, ST_FAIL, "%s: tensor %.200s is not an object", t->file, t->name);
    if (read_type(t, o, e) != ST_OK || read_shape(t, o, e) != ST_OK) return e->code;
    if (read_span(t, o, shard->map.size - data, &begin, e) != ST_OK) return e->code;
    t->data = shard->map.data + data + begin;
    return ST_OK;
}

/* --- one file ---------------------------------------------------------------------------------------------------- */

static enum status read_header(struct st_shard *shard, size_t *data, struct err *e) {
    const struct file_map *m = &shard->map;
    if (m->size < 8)
        return err_set(e, ST_FAIL, "%s: has %zu bytes, too few for a safetensors file", shard->path, m->size);
    uint64_t n = 0;
    for (int i = 0; i < 8; i++) n |= (uint64_t)(unsigned char)m->data[i] << 8 * i;
    if (n > HEADER_LIMIT || n > m->size - 8)
        return err_set(e, ST_FAIL,
                       "%s: its header claims %llu bytes, but the file has %zu; it is cut off or no safetensors file",
                       shard->path, (unsigned long long)n, m->size);
    if (n == 0 || m->data[8] != '{')
        return err_set(e, ST_FAIL, "%s: the header is not a JSON object; this is no safetensors file", shard->path);
    char *text = mem_text_n(m->data + 8, (size_t)n);
    shard->header = json_parse(text, (size_t)n, shard->path, e);
    free(text);
    *data = 8 + (size_t)n;
    return e->code;
}

static enum status check_metadata(const struct st_shard *shard, const cJSON *o, struct err *e) {
    if (cJSON_IsNull(o)) return ST_OK;
    const cJSON *v;
    if (!cJSON_IsObject(o)) return err_set(e, ST_FAIL, "%s: __metadata__ is not an object", shard->path);
    cJSON_ArrayForEach(v, o) if (!cJSON_IsString(v)) return err_set(
        e, ST_FAIL, "%s: __metadata__ %.200s is not a string", shard->path, v->string);
    return ST_OK;
}

static int by_data(const void *a, const void *b) {
    const struct st_entry *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct st_entry *)a)->name, ((const struct st_entry *)b)->name);
}

/* The entries of a file lie end to end from `data` to the file's end. Sorts them by place. */
static enum status check_tiling(const struct st_shard *shard, size_t data, struct st_entry *entries, size_t count,
                                struct err *e) {
    const char *at = shard->map.data + data, *end = shard->map.data + shard->map.size;
    if (count) qsort(entries, count, sizeof *entries, by_data);
    for (size_t i = 0; i < count; i++) {
        if ((const char *)entries[i].data != at)
            return err_set(e, ST_FAIL, "%s: tensor %.200s overlaps another one, or follows a hole in the data",
                           shard->path, entries[i].name);
        at += entries[i].bytes;
    }
    if (at != end)
        return err_set(e, ST_FAIL, "%s: %zu bytes at the end belong to no tensor", shard->path, (size_t)(end - at));
    return ST_OK;
}

/* Appends the tensors of shard, which is mapped, to the set's entries. */
static enum status read_shard(struct st_set *s, struct st_shard *shard, struct err *e) {
    size_t data = 0, count = 0;
    if (read_header(shard, &data, e) != ST_OK) return e->code;
    for (const cJSON *o = shard->header->child; o; o = o->next) count++;
    s->entries = mem_resize(s->entries, (s->count + count + 1) * sizeof *s->entries);
    struct st_entry *entries = s->entries + s->count;
    count = 0;
    for (const cJSON *o = shard->header->child; o; o = o->next) {
        enum status st = strcmp(o->string, "__metadata__") == 0 ? check_metadata(shard, o, e)
                                                                : read_entry(&entries[count++], shard, o, data, e);
        if (st != ST_OK) return st;
    }
    s->count += count;
    return check_tiling(shard, data, entries, count, e);
}

static enum status open_shard(struct st_set *s, size_t i, const char *path, struct err *e) {
    struct st_shard *shard = &s->shards[i];
    shard->path = mem_text(path);
    if (file_map_open(&shard->map, path, e) != ST_OK) return e->code;
    return read_shard(s, shard, e);
}

static enum status sort_names(struct st_set *s, struct err *e) {
    if (s->count) qsort(s->entries, s->count, sizeof *s->entries, by_name);
    for (size_t i = 1; i < s->count; i++)
        if (strcmp(s->entries[i - 1].name, s->entries[i].name) == 0)
            return err_set(e, ST_FAIL, "%s: tensor %.200s is there twice", s->entries[i].file, s->entries[i].name);
    return ST_OK;
}

static void shards_new(struct st_set *s, size_t count) {
    *s = (struct st_set){.shards = mem_alloc(count * sizeof *s->shards), .shard_count = count};
}

enum status st_open_file(struct st_set *s, const char *path, struct err *e) {
    shards_new(s, 1);
    if (open_shard(s, 0, path, e) == ST_OK) sort_names(s, e);
    if (e->code != ST_OK) st_close(s);
    return e->code;
}

void st_close(struct st_set *s) {
    for (size_t i = 0; i < s->shard_count; i++) {
        cJSON_Delete(s->shards[i].header);
        file_map_close(&s->shards[i].map);
        free(s->shards[i].path);
    }
    free(s->shards), free(s->entries);
    *s = (struct st_set){0};
}

const struct st_entry *st_find(const struct st_set *s, const char *name) {
    struct st_entry key = {.name = name};
    return s->count ? bsearch(&key, s->entries, s->count, sizeof key, by_name) : NULL;
}

void st_forget(const struct st_entry *t) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)t->data, last = first + t->bytes;
    first = (first + page - 1) / page * page, last = last / page * page;
    if (first < last) madvise((void *)first, last - first, MADV_DONTNEED);
}

void st_forget_all(const struct st_set *s) {
    for (size_t i = 0; i < s->shard_count; i++) {
        const struct file_map *m = &s->shards[i].map;
        st_forget(&(struct st_entry){.data = m->data, .bytes = m->size});
    }
}

struct st_entry st_part(const struct st_entry *t, size_t at, size_t n) {
    return (struct st_entry){.data = (const char *)t->data + at, .bytes = n < t->bytes - at ? n : t->bytes - at};
}

/* --- a folder ---------------------------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The distinct file names of a weight_map, sorted, in *files (the caller frees the array, not the strings). */
static enum status list_shards(const cJSON *map, const char *index, const char ***files, size_t *count, struct err *e) {
    size_t n = 0;
    *count = 0;
    for (const cJSON *v = map->child; v; v = v->next) n++;
    *files = mem_alloc(n * sizeof **files);
    n = 0;
    for (const cJSON *v = map->child; v; v = v->next) {
        const char *file = cJSON_IsString(v) ? v->valuestring : "";
        if (!*file || strpbrk(file, "/\\") || strstr(file, ".."))
            return err_set(e, ST_FAIL,
                           "%s: tensor %.200s is mapped to \"%.100s\", wanted the name of a file in that folder", index,
                           v->string, file);
        (*files)[n++] = file;
    }
    if (n) qsort(*files, n, sizeof **files, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp((*files)[i], (*files)[*count - 1]) != 0) (*files)[(*count)++] = (*files)[i];
    return ST_OK;
}

static int by_key(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

/* The weight_map and the tensors of the set, which are sorted by name, say the same. */
static enum status check_map(const struct st_set *s, const cJSON *map, const char *index, struct err *e) {
    size_t n = 0, i = 0;
    for (const cJSON *v = map->child; v; v = v->next) n++;
    const cJSON **keys = mem_alloc(n * sizeof *keys);
    n = 0;
    for (const cJSON *v = map->child; v; v = v->next) keys[n++] = v;
    if (n) qsort(keys, n, sizeof *keys, by_key);
    for (; i < n || i < s->count; i++) {
        int order = i == n ? 1 : i == s->count ? -1 : strcmp(keys[i]->string, s->entries[i].name);
        if (order < 0)
            err_set(e, ST_FAIL, "%s: tensor %.200s is not in %s", index, keys[i]->string, keys[i]->valuestring);
        else if (order > 0)
            err_set(e, ST_FAIL, "%s: tensor %.200s of %s is not mapped", index, s->entries[i].name, s->entries[i].file);
        else if (strcmp(keys[i]->valuestring, path_name(s->entries[i].file)) != 0)
            err_set(e, ST_FAIL, "%s: tensor %.200s is mapped to %s but is in %s", index, keys[i]->string,
                    keys[i]->valuestring, s->entries[i].file);
        else
            continue;
        break;
    }
    free(keys);
    return e->code;
}

static enum status open_index(struct st_set *s, const char *dir, const char *index, struct err *e) {
    struct file_map m;
    const char **files = NULL;
    size_t count = 0;
    if (file_map_open(&m, index, e) != ST_OK) return e->code;
    bool large = m.size > INDEX_LIMIT;
    file_map_close(&m);
    if (large) return err_set(e, ST_FAIL, "%s: has more than %d bytes", index, INDEX_LIMIT);
    cJSON *tree = json_read(index, e);
    const cJSON *map = tree ? cJSON_GetObjectItemCaseSensitive(tree, "weight_map") : NULL;
    if (!cJSON_IsObject(map) || !map->child) {
        err_set(e, ST_FAIL, "%s: has no weight_map", index);
        goto done;
    }
    if (list_shards(map, index, &files, &count, e) != ST_OK) goto done;
    shards_new(s, count);
    for (size_t i = 0; i < count && e->code == ST_OK; i++) {
        char *path = path_join(dir, files[i]);
        open_shard(s, i, path, e);
        free(path);
    }
    if (e->code == ST_OK && sort_names(s, e) == ST_OK) check_map(s, map, index, e);
done:
    if (e->code != ST_OK) st_close(s);
    free(files);
    cJSON_Delete(tree);
    return e->code;
}

static void refuse_missing(const char *dir, const char *stem, struct err *e) {
    char *pickle = path_join(dir, "pytorch_model.bin"), *index = path_join(dir, "pytorch_model.bin.index.json");
    bool pickles = file_exists(pickle) || file_exists(index);
    err_set(e, ST_FAIL, "%s: holds neither %s.safetensors nor %s.safetensors.index.json%s", dir, stem, stem,
            pickles ? "; its pytorch_model.bin is a pickle, which can run code when it is read: load the model with "
                      "transformers and store it again with save_pretrained"
                    : "");
    free(pickle), free(index);
}

enum status st_open_dir(struct st_set *s, const char *dir, const char *stem, struct err *e) {
    *s = (struct st_set){0};
    char *file = mem_format("%s/%s.safetensors", dir, stem);
    char *index = mem_format("%s/%s.safetensors.index.json", dir, stem);
    if (file_exists(file))
        st_open_file(s, file, e);
    else if (file_exists(index))
        open_index(s, dir, index, e);
    else
        refuse_missing(dir, stem, e);
    free(file), free(index);
    return e->code;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static int by_type_and_name(const void *a, const void *b) {
    const struct st_entry *x = a, *y = b;
    if (x->type != y->type) return x->type > y->type ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void add_entry(struct text *t, const struct st_entry *entry, uint64_t begin) {
    char *name = json_quote(entry->name);
    text_addf(t, ",%s:{\"dtype\":\"%s\",\"shape\":[", name, types[entry->type].name);
    for (int i = 0; i < entry->rank; i++) text_addf(t, i ? ",%lld" : "%lld", (long long)entry->dim[i]);
    text_addf(t, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
              (unsigned long long)(begin + entry->bytes));
    free(name);
}

/* The header of w->order as it stands in the file; fills bytes and begin. */
static enum status lay_out(struct st_writer *w, struct text *t, const char *path, struct err *e) {
    uint64_t at = 0, bytes = 0;
    text_add_n(t, "\0\0\0\0\0\0\0\0", 8);
    text_add(t, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < w->count; i++) {
        struct st_entry *entry = &w->order[i];
        if (!entry_bytes(entry, &bytes) || at + bytes > INT64_MAX / 2)
            return err_set(e, ST_FAIL, "%s: tensor %.200s is too large", path, entry->name);
        entry->bytes = (size_t)bytes;
        w->begin[i] = at;
        add_entry(t, entry, at);
        at += bytes;
    }
    text_add_char(t, '}');
    while (t->len % 8) text_add_char(t, ' ');
    for (int i = 0; i < 8; i++) t->data[i] = (char)((uint64_t)(t->len - 8) >> 8 * i & 255);
    for (size_t i = 0; i < w->count; i++) w->begin[i] += t->len;
    return ST_OK;
}

enum status st_writer_open(struct st_writer *w, const char *path, const struct st_entry *entries, size_t count,
                           struct err *e) {
    struct text t = {0};
    *w = (struct st_writer){.order = mem_alloc(count * sizeof *entries), .count = count};
    w->begin = mem_alloc(count * sizeof *w->begin);
    if (count) memcpy(w->order, entries, count * sizeof *entries);
    if (count) qsort(w->order, count, sizeof *entries, by_type_and_name);
    if (lay_out(w, &t, path, e) == ST_OK && file_out_open(&w->out, path, e) == ST_OK)
        file_out_write(&w->out, t.data, t.len, e);
    w->position = t.len;
    text_free(&t);
    if (e->code != ST_OK) st_writer_abandon(w);
    return e->code;
}

static enum status begin(struct st_writer *w, size_t i, struct err *e) {
    if (w->missing > 0) return err_set(e, ST_FAIL, "%s: a tensor was not written to its end", w->out.path);
    if (w->position != w->begin[i] && fseeko(w->out.stream, (off_t)w->begin[i], SEEK_SET) != 0)
        return err_set(e, ST_FAIL, "%s: cannot write (%s)", w->out.path, strerror(errno));
    w->position = w->begin[i];
    w->missing = w->order[i].bytes;
    w->next++;
    return ST_OK;
}

enum status st_writer_add(struct st_writer *w, const void *data, size_t n, struct err *e) {
    if (n > w->missing) return err_set(e, ST_FAIL, "%s: more bytes than the tensor has", w->out.path);
    w->position += n, w->missing -= n;
    return file_out_write(&w->out, data, n, e);
}

enum status st_writer_put(struct st_writer *w, const void *data, struct err *e) {
    return begin(w, w->next, e) == ST_OK ? st_writer_add(w, data, w->missing, e) : e->code;
}

enum status st_writer_begin(struct st_writer *w, const struct st_entry *entry, struct err *e) {
    const struct st_entry *found = bsearch(entry, w->order, w->count, sizeof *entry, by_type_and_name);
    if (!found) return err_set(e, ST_FAIL, "%s: tensor %.200s was not announced", w->out.path, entry->name);
    return begin(w, (size_t)(found - w->order), e);
}

enum status st_writer_put_named(struct st_writer *w, const struct st_entry *entry, struct err *e) {
    return st_writer_begin(w, entry, e) == ST_OK ? st_writer_add(w, entry->data, w->missing, e) : e->code;
}

enum status st_writer_commit(struct st_writer *w, struct err *e) {
    if (w->next != w->count || w->missing > 0)
        err_set(e, ST_FAIL, "%s: %zu of %zu tensors were written", w->out.path, w->next - (w->missing > 0), w->count);
    else
        file_out_commit(&w->out, e);
    st_writer_abandon(w);
    return e->code;
}

void st_writer_abandon(struct st_writer *w) {
    file_out_abandon(&w->out);
    free(w->order), free(w->begin);
    *w = (struct st_writer){0};
}

enum status st_write(const char *path, const struct st_entry *entries, size_t count, struct err *e) {
    struct st_writer w;
    if (st_writer_open(&w, path, entries, count, e) != ST_OK) return e->code;
    while (w.next < w.count)
        if (st_writer_put(&w, w.order[w.next].data, e) != ST_OK) break;
    if (e->code == ST_OK) st_writer_commit(&w, e);
    st_writer_abandon(&w);
    return e->code;
}

#include "model/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/text.h"

struct owned_weight {
    struct q4_weight weight;
    struct owned_weight *next;
};

enum status weights_open(struct weights *w, const char *dir, struct backend *be, const struct quantize_on_load *q,
                         struct err *e) {
    *w = (struct weights){.dir = dir, .be = be, .quantize = *q, .err = e};
    if (st_open_dir(&w->files, dir, "model", e) != ST_OK) return e->code;
    w->used = mem_alloc(w->files.count * sizeof *w->used);
    if (q->skip) w->skip = regex_new(q->skip, "quant_skip_modules", e);
    return e->code;
}

void weights_close(struct weights *w) {
    while (w->owned) {
        struct owned_weight *next = w->owned->next;
        bnb_release(&w->owned->weight);
        free(w->owned);
        w->owned = next;
    }
    regex_free(w->skip);
    free(w->used);
    st_close(&w->files);
    *w = (struct weights){0};
}

uint64_t weights_fingerprint(uint64_t so_far, const struct st_set *files) {
    uint64_t h = so_far;
    for (size_t i = 0; i < files->count; i++) {
        const struct st_entry *t = &files->entries[i];
        h = hash_text(h, t->name);
        h = hash_bytes(h, t->dim, (size_t)t->rank * sizeof *t->dim);
        h = hash_bytes(h, t->data, t->bytes < 256 ? t->bytes : 256);
    }
    return h;
}

bool weights_has(const struct weights *w, const char *name) { return st_find(&w->files, name) != NULL; }

static const char *shape_text(const struct st_entry *t, char *buffer, size_t size) {
    size_t at = 0;
    buffer[0] = 0;
    for (int i = 0; i < t->rank && at < size; i++)
        at += (size_t)snprintf(buffer + at, size - at, "%s%lld", i ? "," : "", (long long)t->dim[i]);
    return buffer;
}

/* The entry of a dense tensor of (rows, cols), or (rows) with cols 0; NULL with the error set. */
static const struct st_entry *find(struct weights *w, const char *name, int64_t rows, int64_t cols) {
    if (w->err->code != ST_OK) return NULL;
    const struct st_entry *t = st_find(&w->files, name);
    if (!t) {
        err_set(w->err, ST_FAIL, "%s: tensor %s is missing; config.json asks for it", w->dir, name);
        return NULL;
    }
    int64_t rest = 1;
    for (int i = 1; i < t->rank; i++) rest *= t->dim[i];
    bool fits = t->rank >= 1 && t->dim[0] == rows && (cols ? t->rank > 1 && rest == cols : t->rank == 1);
    char shape[128];
    if (!fits && cols)
        err_set(w->err, ST_FAIL, "%s: tensor %s has shape (%s), config.json asks for (%lld,%lld)", t->file, name,
                shape_text(t, shape, sizeof shape), (long long)rows, (long long)cols);
    else if (!fits)
        err_set(w->err, ST_FAIL, "%s: tensor %s has shape (%s), config.json asks for (%lld)", t->file, name,
                shape_text(t, shape, sizeof shape), (long long)rows);
    else if (t->type != ST_F32 && t->type != ST_BF16 && t->type != ST_F16)
        err_set(w->err, ST_FAIL, "%s: tensor %s has type %s, wanted F32, BF16 or F16", t->file, name,
                st_type_name(t->type));
    w->used[t - w->files.entries] = true;
    return w->err->code == ST_OK ? t : NULL;
}

static enum dtype dtype_of(enum st_type type) { return type == ST_F32 ? F32 : type == ST_BF16 ? BF16 : F16; }

static float element(const struct st_entry *t, int64_t i) {
    float f;
    uint16_t h;
    if (t->type == ST_F32) return memcpy(&f, (const char *)t->data + 4 * i, 4), f;
    memcpy(&h, (const char *)t->data + 2 * i, 2);
    return t->type == ST_BF16 ? bf16_to_float(h) : f16_to_float(h);
}

void weights_vector(struct weights *w, struct tensor *t, const char *name, int64_t n) {
    const struct st_entry *from = find(w, name, n, 0);
    if (!from) return;
    *t = arena_tensor1(w->arena, F32, n);
    if (!w->placing) return;
    float *values = mem_alloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = element(from, i);
    backend_upload(w->be, t, values);
    free(values);
}

/* A tensor over the mapped bytes, or a copy in the arena where the backend cannot read them there. */
static void place(struct weights *w, struct tensor *t, const struct st_entry *from, int64_t rows, int64_t cols) {
    enum dtype type = dtype_of(from->type);
    bool aligned = (uintptr_t)from->data % dtype_size(type) == 0;
    if (w->be->host_memory && aligned) {
        *t = tensor_over2((void *)from->data, type, rows, cols);
        return;
    }
    *t = arena_tensor2(w->arena, type, rows, cols);
    if (w->placing) backend_upload(w->be, t, from->data);
}

void weights_matrix(struct weights *w, struct tensor *t, const char *name, int64_t rows, int64_t cols) {
    const struct st_entry *from = find(w, name, rows, cols);
    if (from) place(w, t, from, rows, cols);
}

static struct owned_weight *new_owned(struct weights *w) {
    struct owned_weight *o = mem_alloc(sizeof *o);
    o->next = w->owned;
    w->owned = o;
    return o;
}

/* Bytes of the host at a place of the arena. */
static const void *place_bytes(struct weights *w, const void *from, int64_t bytes) {
    struct tensor t = arena_tensor1(w->arena, U8, bytes);
    if (w->placing) backend_upload(w->be, &t, from);
    return t.data;
}

/* Where the backend cannot read the host's memory, codes and scales move to the arena; the struct with the pointers
 * stays on the host. While counting, the pointers of o may be NULL. */
static void place_4bit(struct weights *w, struct q4_weight *o, int64_t n, bool nested) {
    struct q4 *q = &o->q;
    int64_t blocks = block_count(n, q->blocksize);
    o->t.data = (void *)place_bytes(w, o->t.data, (n + 1) / 2);
    q->code = place_bytes(w, q->code, 16 * sizeof *q->code);
    if (nested) {
        q->absmax8 = place_bytes(w, q->absmax8, blocks);
        q->nested_absmax =
            place_bytes(w, q->nested_absmax, block_count(blocks, q->nested_blocksize) * (int64_t)sizeof(float));
        q->nested_code = place_bytes(w, q->nested_code, 256 * sizeof *q->nested_code);
    } else {
        q->absmax = place_bytes(w, q->absmax, blocks * (int64_t)sizeof *q->absmax);
    }
    for (size_t i = 0; i < sizeof o->owned / sizeof *o->owned; i++) free(o->owned[i]), o->owned[i] = NULL;
}

/* A weight that the files hold in 4 bits. */
static void read_4bit(struct weights *w, struct tensor *t, const char *name, int64_t O, int64_t I) {
    for (size_t i = 0; i < w->files.count; i++) {
        size_t stem = 0;
        const char *other = w->files.entries[i].name;
        if (strcmp(other, name) == 0 ||
            (bnb_is_side(other, &stem) && strlen(name) == stem && !memcmp(other, name, stem)))
            w->used[i] = true;
    }
    struct owned_weight *o = new_owned(w);
    if (bnb_read(&o->weight, &w->files, name, w->err) != ST_OK) return;
    *t = o->weight.t;
    if (t->dim[0] != O || t->dim[1] != I)
        err_set(w->err, ST_FAIL, "%s: tensor %s has shape (%lld,%lld), config.json asks for (%lld,%lld)", w->dir, name,
                (long long)t->dim[0], (long long)t->dim[1], (long long)O, (long long)I);
    if (w->be->host_memory) return;
    place_4bit(w, &o->weight, tensor_count(t), !o->weight.q.absmax);
    t->data = o->weight.t.data;
}

/* Whether transformers' rules, or the user's, leave a module in its own type. */
static bool is_kept(const struct weights *w, const char *path) {
    for (size_t i = 0; i < w->quantize.keep_count; i++) {
        const char *entry = w->quantize.keep[i];
        size_t n = strlen(entry);
        const char *leaf = strrchr(path, '.');
        if (strcmp(leaf ? leaf + 1 : path, entry) == 0 ||
            (strncmp(path, entry, n) == 0 && (path[n] == 0 || path[n] == '.')))
            return true;
    }
    return w->skip && regex_full(w->skip, path);
}

/* The blocks of a dense weight, with scales in 8 bits when asked for. */
static void make_4bit(struct weights *w, struct q4_weight *out, const struct tensor *dense, const char *name) {
    int64_t n = tensor_count(dense), blocks = block_count(n, w->quantize.blocksize);
    struct threads *threads = w->be->threads;
    uint8_t *packed = out->owned[0] = mem_alloc((size_t)(n + 1) / 2);
    float *absmax = out->owned[1] = mem_alloc((size_t)blocks * sizeof *absmax);
    block_quantize(packed, absmax, dense->data, dense->type, n, w->quantize.type, w->quantize.blocksize, threads);
    for (int64_t i = 0; i < blocks; i++)
        if (!isfinite(absmax[i])) {
            err_set(w->err, ST_FAIL, "%s: tensor %s holds NaN or infinity; it cannot be quantised", w->dir, name);
            break;
        }
    out->q = (struct q4){.blocksize = w->quantize.blocksize,
                         .source = dense->type,
                         .code = block_code(w->quantize.type),
                         .absmax = absmax};
    if (w->quantize.double_quant) {
        int64_t nested = block_count(blocks, NESTED_BLOCKSIZE);
        uint8_t *absmax8 = mem_alloc((size_t)blocks);
        float *nested_absmax = out->owned[2] = mem_alloc((size_t)nested * sizeof *nested_absmax);
        float *map = out->owned[3] = mem_alloc(256 * sizeof *map);
        block_map8(map);
        out->q.nested_offset = block_nest(absmax8, nested_absmax, absmax, blocks, map, threads);
        out->q.absmax = NULL;
        out->q.absmax8 = absmax8;
        out->q.nested_absmax = nested_absmax;
        out->q.nested_code = map;
        out->q.nested_blocksize = NESTED_BLOCKSIZE;
        free(absmax);
        out->owned[1] = absmax8;
    }
    out->t = tensor_over2(packed, w->quantize.type, dense->dim[0], dense->dim[1]);
    out->t.q4 = &out->q;
}

/* A dense weight that becomes 4-bit now, on the host. */
static void quantise(struct weights *w, struct tensor *t, const char *name, int64_t O, int64_t I) {
    const struct st_entry *from = find(w, name, O, I);
    if (!from) return;
    struct tensor dense = tensor_over2((void *)from->data, dtype_of(from->type), O, I);
    struct owned_weight *o = new_owned(w);
    o->weight.q.blocksize = w->quantize.blocksize, o->weight.q.nested_blocksize = NESTED_BLOCKSIZE;
    if (w->placing) {
        make_4bit(w, &o->weight, &dense, name);
        st_forget(from); // the dense bytes are not needed again
    }
    if (!w->be->host_memory) place_4bit(w, &o->weight, O * I, w->quantize.double_quant);
    *t = w->placing ? o->weight.t : dense;
}

void weights_linear(struct weights *w, struct linear *l, const char *path, int64_t O, int64_t I, bool bias) {
    if (w->err->code != ST_OK) return;
    if (!l->path) l->path = mem_text(path);
    char *name = mem_format("%s.weight", path);
    if (bnb_is_4bit(&w->files, name))
        read_4bit(w, &l->W, name, O, I);
    else if (w->quantize.type != F32 && !is_kept(w, path))
        quantise(w, &l->W, name, O, I);
    else
        weights_matrix(w, &l->W, name, O, I);
    free(name);
    if (!bias) return;
    name = mem_format("%s.bias", path);
    weights_vector(w, &l->b, name, O);
    free(name);
}

void weights_norm(struct weights *w, struct tensor *g, struct tensor *b, const char *prefix, int64_t n) {
    char *name = mem_format("%s.weight", prefix);
    weights_vector(w, g, name, n);
    free(name);
    if (!b) return;
    name = mem_format("%s.bias", prefix);
    weights_vector(w, b, name, n);
    free(name);
}

void weights_ignore_prefix(struct weights *w, const char *prefix) {
    for (size_t i = 0; i < w->files.count; i++)
        if (text_starts(w->files.entries[i].name, prefix)) w->used[i] = true;
}

void weights_ignore_suffix(struct weights *w, const char *suffix) {
    for (size_t i = 0; i < w->files.count; i++)
        if (text_ends(w->files.entries[i].name, suffix)) w->used[i] = true;
}

enum status weights_check_all_used(struct weights *w) {
    for (size_t i = 0; i < w->files.count && w->err->code == ST_OK; i++)
        if (!w->used[i])
            err_set(w->err, ST_FAIL, "%s: tensor %s is not part of the model that config.json describes",
                    w->files.entries[i].file, w->files.entries[i].name);
    return w->err->code;
}

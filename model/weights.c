#include "model/weights.h"

#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "quant/modules.h"

enum { PIECE = 1 << 22 }; // elements of a dense weight that are quantised at a time: whole blocks of every size

struct owned_weight {
    struct q4_weight weight;
    const char *name;   // of a weight that was made here
    struct tensor made; // (2) of the backend: how many of its scales are not finite, and their mean; data NULL: read
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

/* t with a copy of the host's bytes in the arena. */
static struct tensor copied(struct weights *w, struct tensor t, const void *from) {
    t.data = arena_bytes(w->arena, tensor_bytes(&t));
    if (w->placing) backend_upload(w->be, &t, from);
    return t;
}

/* t over bytes that stay where they are, or a copy in the arena where the backend cannot read them there. */
static struct tensor seen(struct weights *w, struct tensor t, const void *from) {
    if (!w->be->host_memory || (uintptr_t)from % dtype_size(t.type) != 0) return copied(w, t, from);
    t.data = (void *)from;
    return t;
}

void weights_vector(struct weights *w, struct tensor *t, const char *name, int64_t n) {
    const struct st_entry *from = find(w, name, n, 0);
    if (!from) return;
    float *values = mem_alloc((size_t)n * sizeof *values);
    floats_read(values, from->data, floats_type(from), 0, n);
    *t = copied(w, tensor_over1(NULL, F32, n), values);
    free(values);
}

void weights_matrix(struct weights *w, struct tensor *t, const char *name, int64_t rows, int64_t cols) {
    const struct st_entry *from = find(w, name, rows, cols);
    if (from) *t = seen(w, tensor_over2(NULL, floats_type(from), rows, cols), from->data);
}

void weights_table(struct weights *w, struct tensor *t, const char *name, int64_t rows, int64_t cols) {
    if (w->be->host_memory) {
        weights_matrix(w, t, name, rows, cols);
        return;
    }
    const struct st_entry *from = find(w, name, rows, cols);
    if (!from) return;
    *t = arena_tensor2(w->host, floats_type(from), rows, cols);
    if (!w->placing) return;
    memcpy(t->data, from->data, tensor_bytes(t));
    st_forget(from); // the host has it twice otherwise
}

static struct owned_weight *new_owned(struct weights *w) {
    struct owned_weight *o = mem_alloc(sizeof *o);
    o->next = w->owned;
    w->owned = o;
    return o;
}

/* Bytes of the host at a place of the arena. */
static const void *place_bytes(struct weights *w, const void *from, int64_t bytes) {
    return copied(w, tensor_over1(NULL, U8, bytes), from).data;
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
    return w->skip && modules_match(w->skip, path);
}

/* The places of a weight that is made here. The struct with the pointers stays on the host. */
static void place_made(struct weights *w, struct owned_weight *o, const struct st_entry *from, int64_t O, int64_t I) {
    const struct quantize_on_load *how = &w->quantize;
    struct q4 *q = &o->weight.q;
    int64_t blocks = block_count(O * I, how->blocksize);
    float map[256];
    *q = (struct q4){.blocksize = how->blocksize, .source = floats_type(from)};
    o->name = from->name;
    o->made = arena_tensor1(w->arena, F32, 2);
    o->weight.t = arena_tensor2(w->arena, how->type, O, I);
    o->weight.t.q4 = q;
    q->code = seen(w, tensor_over1(NULL, F32, 16), block_code(how->type)).data;
    if (how->double_quant) {
        block_map8(map);
        q->absmax8 = arena_tensor1(w->arena, U8, blocks).data;
        q->nested_absmax = arena_tensor1(w->arena, F32, block_count(blocks, NESTED_BLOCKSIZE)).data;
        q->nested_code = copied(w, tensor_over1(NULL, F32, 256), map).data;
        q->nested_blocksize = NESTED_BLOCKSIZE;
    } else {
        q->absmax = arena_tensor1(w->arena, F32, blocks).data;
    }
}

/* Codes and scales. The dense numbers come to the backend piece by piece, all to the same place. */
static void make_blocks(struct weights *w, const struct tensor *W, const struct tensor *absmax,
                        const struct st_entry *from) {
    int64_t n = tensor_count(W), blocksize = w->quantize.blocksize;
    size_t mark = w->arena->used, size = st_type_size(from->type);
    for (int64_t at = 0; at < n; at += PIECE, w->arena->used = mark) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        struct tensor x = tensor_over1(NULL, floats_type(from), count);
        x = seen(w, x, (const char *)from->data + (size_t)at * size);
        if (!w->placing) continue;
        struct tensor codes = tensor_over1((char *)W->data + at / 2, W->type, count);
        struct tensor scales = tensor_rows(absmax, at / blocksize, block_count(count, blocksize));
        op_quantize(w->be, &codes, &scales, &x, w->quantize.blocksize);
    }
}

/* Scales in 8 bits. */
static void make_nested(struct weights *w, const struct q4 *q, const struct tensor *mean, const struct tensor *absmax) {
    int64_t blocks = absmax->dim[0];
    struct tensor absmax8 = tensor_over1((void *)q->absmax8, U8, blocks);
    struct tensor nested = tensor_over1((void *)q->nested_absmax, F32, block_count(blocks, NESTED_BLOCKSIZE));
    struct tensor map = tensor_over1((void *)q->nested_code, F32, 256);
    op_nest(w->be, &absmax8, &nested, mean, absmax, &map);
}

/* A dense weight that becomes 4-bit now. Nothing waits here: what the host has to know of it, weights_finish reads. */
static void quantise(struct weights *w, struct tensor *t, const char *name, int64_t O, int64_t I) {
    const struct st_entry *from = find(w, name, O, I);
    if (!from) return;
    struct owned_weight *o = new_owned(w);
    place_made(w, o, from, O, I);
    *t = o->weight.t;
    bool nested = w->quantize.double_quant;
    size_t mark = w->arena->used;
    int64_t blocks = block_count(O * I, w->quantize.blocksize);
    struct tensor absmax = tensor_over1((void *)o->weight.q.absmax, F32, blocks);
    if (nested) absmax = arena_tensor1(w->arena, F32, blocks);
    make_blocks(w, t, &absmax, from);
    w->arena->used = mark;
    if (!w->placing) return;
    struct tensor bad = tensor_rows(&o->made, 0, 1), mean = tensor_rows(&o->made, 1, 1);
    op_zero(w->be, &o->made);
    op_count_nonfinite_add(w->be, &bad, &absmax);
    if (nested) make_nested(w, &o->weight.q, &mean, &absmax);
    st_forget(from); // the dense bytes are not needed again
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

/* What the host has to know of the weights that were made. The list runs from the last to the first. */
static void finish_made(struct weights *w) {
    const char *bad = NULL;
    for (struct owned_weight *o = w->owned; o; o = o->next) {
        float made[2] = {0};
        if (!o->made.data) continue;
        backend_download(w->be, made, &o->made);
        if (made[0] != 0) bad = o->name;
        if (o->weight.q.absmax8) o->weight.q.nested_offset = made[1];
    }
    if (backend_sync(w->be, w->err) != ST_OK || !bad) return;
    err_set(w->err, ST_FAIL, "%s: tensor %s holds NaN or infinity; it cannot be quantised", w->dir, bad);
}

enum status weights_finish(struct weights *w) {
    if (w->err->code == ST_OK) finish_made(w);
    for (size_t i = 0; i < w->files.count && w->err->code == ST_OK; i++)
        if (!w->used[i])
            err_set(w->err, ST_FAIL, "%s: tensor %s is not part of the model that config.json describes",
                    w->files.entries[i].file, w->files.entries[i].name);
    return w->err->code;
}

#include "quant/gguf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "quant/ggml.h"

enum { LONGEST_NAME = 65535, VERSION = 3 };

/* Bytes of a scalar; 0: of its own length. */
static size_t kind_bytes(enum gguf_kind kind) {
    static const size_t bytes[GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return bytes[kind];
}

const char *gguf_kind_name(enum gguf_kind kind) {
    static const char *const names[GGUF_KINDS] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                  "bool", "string", "array", "u64", "i64", "f64"};
    return kind < GGUF_KINDS ? names[kind] : "?";
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

/* Where in the head we are; `left` is what the file has from there. */
struct cursor {
    const char *at;
    size_t left;
    const char *path;
    struct err *e;
};

static bool wrong(struct cursor *c, const char *what) {
    err_set(c->e, ST_FAIL, "%s: not a whole GGUF file (%s)", c->path, what);
    return false;
}

static bool skip(struct cursor *c, size_t n, const char **data) {
    if (n > c->left) return wrong(c, "it ends within its head");
    if (data) *data = c->at;
    c->at += n, c->left -= n;
    return true;
}

static bool get_u32(struct cursor *c, uint32_t *out) {
    const char *data;
    return skip(c, sizeof *out, &data) && memcpy(out, data, sizeof *out);
}

static bool get_u64(struct cursor *c, uint64_t *out) {
    const char *data;
    return skip(c, sizeof *out, &data) && memcpy(out, data, sizeof *out);
}

static bool skip_string(struct cursor *c, const char **data, uint64_t *n) {
    if (!get_u64(c, n)) return false;
    return *n <= c->left ? skip(c, *n, data) : wrong(c, "a string is longer than the file");
}

/* A name as a C string, which must be what a name may be. */
static bool get_name(struct cursor *c, char **name) {
    const char *data;
    uint64_t n;
    if (!skip_string(c, &data, &n)) return false;
    if (n == 0 || n > LONGEST_NAME || memchr(data, 0, n) || utf8_valid_prefix(data, n) < n)
        return wrong(c, "a name is empty, too long or no text");
    *name = mem_text_n(data, n);
    return true;
}

static bool get_kind(struct cursor *c, enum gguf_kind *kind) {
    uint32_t word;
    if (!get_u32(c, &word)) return false;
    if (word >= GGUF_KINDS) return wrong(c, "a value of an unknown kind");
    *kind = (enum gguf_kind)word;
    return true;
}

static bool skip_array(struct cursor *c, struct gguf_value *v) {
    const char *data;
    uint64_t n;
    if (!get_kind(c, &v->item) || !get_u64(c, &v->count)) return false;
    v->data = c->at;
    if (v->item == GGUF_ARRAY) return wrong(c, "an array of arrays");
    size_t size = kind_bytes(v->item);
    if (v->count > c->left / (size ? size : sizeof n)) return wrong(c, "an array is longer than the file");
    if (size) return skip(c, v->count * size, NULL);
    for (uint64_t i = 0; i < v->count; i++)
        if (!skip_string(c, &data, &n)) return false;
    return true;
}

static bool get_value(struct cursor *c, struct gguf_value *v) {
    uint64_t n;
    const char *data;
    if (!get_name(c, &v->key) || !get_kind(c, &v->kind)) return false;
    v->data = c->at, v->count = 1;
    bool good = v->kind == GGUF_ARRAY    ? skip_array(c, v)
                : v->kind == GGUF_STRING ? skip_string(c, &data, &n)
                                         : skip(c, kind_bytes(v->kind), NULL);
    v->bytes = (size_t)(c->at - v->data);
    return good;
}

size_t gguf_tensor_bytes(uint32_t type, const int64_t *dim, int rank) {
    int64_t block = ggml_block(type), n = 1;
    if (block == 0 || rank < 1 || dim[0] % block != 0) return 0;
    for (int i = 0; i < rank; i++)
        if (dim[i] < 1 || __builtin_mul_overflow(n, dim[i], &n)) return 0;
    size_t bytes;
    return __builtin_mul_overflow((size_t)(n / block), ggml_block_bytes(type), &bytes) ? 0 : bytes;
}

/* The offset goes to data, until the place of the first tensor is known. */
static bool get_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *offset) {
    uint32_t rank;
    char *name;
    if (!get_name(c, &name)) return false;
    t->name = name;
    if (!get_u32(c, &rank)) return false;
    if (rank < 1 || rank > GGUF_MAX_RANK) return wrong(c, "a tensor has no dimension, or more than four");
    t->rank = (int)rank;
    for (int i = 0; i < GGUF_MAX_RANK; i++) t->dim[i] = 1;
    for (int i = 0; i < t->rank; i++) {
        uint64_t n;
        if (!get_u64(c, &n)) return false;
        t->dim[i] = n <= INT64_MAX ? (int64_t)n : -1;
    }
    if (!get_u32(c, &t->type) || !get_u64(c, offset)) return false;
    if (!ggml_name(t->type)) return wrong(c, "a tensor of an unknown type");
    t->bytes = gguf_tensor_bytes(t->type, t->dim, t->rank);
    return t->bytes ? true : wrong(c, "a tensor with a shape that its type cannot have");
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct gguf_value *)a)->key, ((const struct gguf_value *)b)->key);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static enum status check_unique(const struct gguf *g, struct err *e) {
    for (size_t i = 1; i < g->value_count; i++)
        if (by_key(&g->values[i - 1], &g->values[i]) == 0)
            return err_set(e, ST_FAIL, "%s: holds the value %s twice", g->path, g->values[i].key);
    for (size_t i = 1; i < g->tensor_count; i++)
        if (by_name(&g->tensors[i - 1], &g->tensors[i]) == 0)
            return err_set(e, ST_FAIL, "%s: holds the tensor %s twice", g->path, g->tensors[i].name);
    return ST_OK;
}

static bool get_values(struct cursor *c, struct gguf *g, uint64_t count) {
    enum { LEAST = 8 + 1 + 4 + 1 }; // bytes of a value
    if (count > c->left / LEAST) return wrong(c, "more values than the file has room for");
    g->values = mem_alloc(count * sizeof *g->values);
    while (g->value_count < count)
        if (!get_value(c, &g->values[g->value_count++])) return false;
    if (count) qsort(g->values, count, sizeof *g->values, by_key);
    return true;
}

static bool get_tensors(struct cursor *c, struct gguf *g, uint64_t count) {
    enum { LEAST = 8 + 1 + 4 + 8 + 4 + 8 }; // bytes of a tensor's line in the head
    if (count > c->left / LEAST) return wrong(c, "more tensors than the file has room for");
    uint64_t *offsets = mem_alloc(count * sizeof *offsets);
    int64_t align = GGUF_ALIGN;
    g->tensors = mem_alloc(count * sizeof *g->tensors);
    bool good = true;
    while (good && g->tensor_count < count) {
        good = get_tensor(c, &g->tensors[g->tensor_count], &offsets[g->tensor_count]);
        g->tensor_count++;
    }
    gguf_int(g, "general.alignment", &align);
    if (good && (align < 1 || align > 1 << 16 || (align & (align - 1)))) good = wrong(c, "an impossible alignment");
    size_t head = (size_t)(c->at - g->map.data), over = good ? head % (size_t)align : 0;
    g->head_bytes = over ? head + (size_t)align - over : head;
    for (size_t i = 0; good && i < count; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        size_t room = g->map.size > g->head_bytes ? g->map.size - g->head_bytes : 0;
        if (offsets[i] % (size_t)align || offsets[i] > room || t->bytes > room - offsets[i])
            good = wrong(c, "a tensor lies outside of it");
        else
            t->data = g->map.data + g->head_bytes + offsets[i];
    }
    free(offsets);
    if (good && count) qsort(g->tensors, count, sizeof *g->tensors, by_name);
    return good;
}

bool gguf_is_file(const char *path) {
    char magic[4] = "";
    FILE *f = fopen(path, "rb");
    bool is = f && fread(magic, 1, sizeof magic, f) == sizeof magic && memcmp(magic, "GGUF", 4) == 0;
    if (f) fclose(f);
    return is;
}

enum status gguf_open(struct gguf *g, const char *path, struct err *e) {
    uint32_t version;
    uint64_t tensors, values;
    const char *magic;
    *g = (struct gguf){.path = mem_text(path)};
    if (file_map_open(&g->map, path, e) != ST_OK) goto failed;
    struct cursor c = {.at = g->map.data, .left = g->map.size, .path = path, .e = e};
    if (!skip(&c, 4, &magic)) goto failed;
    if (memcmp(magic, "GGUF", 4) != 0) {
        err_set(e, ST_FAIL, "%s: not a GGUF file", path);
        goto failed;
    }
    if (!get_u32(&c, &version)) goto failed;
    if (version != 2 && version != VERSION) {
        err_set(e, ST_FAIL, "%s: GGUF version %u%s, wanted 2 or 3", path, version & 0xFFFF ? version : version >> 24,
                version & 0xFFFF ? "" : " in big-endian order");
        goto failed;
    }
    if (!get_u64(&c, &tensors) || !get_u64(&c, &values)) goto failed;
    if (get_values(&c, g, values) && get_tensors(&c, g, tensors) && check_unique(g, e) == ST_OK) return ST_OK;
failed:
    gguf_close(g);
    return e->code;
}

void gguf_close(struct gguf *g) {
    for (size_t i = 0; i < g->value_count; i++) free(g->values[i].key);
    for (size_t i = 0; i < g->tensor_count; i++) free((char *)g->tensors[i].name);
    free(g->values), free(g->tensors), free(g->path);
    if (g->map.data) file_map_close(&g->map);
    *g = (struct gguf){0};
}

const struct gguf_value *gguf_find(const struct gguf *g, const char *key) {
    const struct gguf_value wanted = {.key = (char *)key};
    return g->value_count ? bsearch(&wanted, g->values, g->value_count, sizeof wanted, by_key) : NULL;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name) {
    const struct gguf_tensor wanted = {.name = name};
    return g->tensor_count ? bsearch(&wanted, g->tensors, g->tensor_count, sizeof wanted, by_name) : NULL;
}

/* A scalar's bytes, with its sign in the upper ones. */
static uint64_t bits_of(const struct gguf_value *v) {
    uint64_t bits = 0;
    size_t n = kind_bytes(v->kind);
    memcpy(&bits, v->data, n);
    bool sign = v->kind == GGUF_I8 || v->kind == GGUF_I16 || v->kind == GGUF_I32;
    if (sign && bits >> (8 * n - 1)) bits |= ~UINT64_C(0) << (8 * n);
    return bits;
}

bool gguf_number(const struct gguf_value *v, double *out) {
    float f;
    if (!v || v->kind == GGUF_STRING || v->kind == GGUF_ARRAY) return false;
    if (v->kind == GGUF_F32)
        memcpy(&f, v->data, sizeof f), *out = (double)f;
    else if (v->kind == GGUF_F64)
        memcpy(out, v->data, sizeof *out);
    else
        *out = v->kind == GGUF_U64 ? (double)bits_of(v) : (double)(int64_t)bits_of(v);
    return true;
}

bool gguf_int(const struct gguf *g, const char *key, int64_t *out) {
    const struct gguf_value *v = gguf_find(g, key);
    if (!v || v->kind == GGUF_STRING || v->kind == GGUF_ARRAY || v->kind == GGUF_F32 || v->kind == GGUF_F64)
        return false;
    *out = (int64_t)bits_of(v);
    return true;
}

bool gguf_text(const struct gguf *g, const char *key, struct text *out) {
    const struct gguf_value *v = gguf_find(g, key);
    if (!v || v->kind != GGUF_STRING) return false;
    text_add_n(out, v->data + 8, v->bytes - 8);
    return true;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static void add_u32(struct text *t, uint32_t x) { text_add_n(t, (const char *)&x, sizeof x); }
static void add_u64(struct text *t, uint64_t x) { text_add_n(t, (const char *)&x, sizeof x); }

static void add_string(struct text *t, const char *s, size_t n) {
    add_u64(t, n);
    text_add_n(t, s, n);
}

static void begin(struct gguf_head *h, const char *key, enum gguf_kind kind) {
    add_string(&h->bytes, key, strlen(key));
    add_u32(&h->bytes, kind);
    h->count++;
}

void gguf_add_u32(struct gguf_head *h, const char *key, int64_t value) {
    begin(h, key, GGUF_U32);
    add_u32(&h->bytes, (uint32_t)value);
}

void gguf_add_f32(struct gguf_head *h, const char *key, double value) {
    float x = (float)value;
    begin(h, key, GGUF_F32);
    text_add_n(&h->bytes, (const char *)&x, sizeof x);
}

void gguf_add_bool(struct gguf_head *h, const char *key, bool value) {
    begin(h, key, GGUF_BOOL);
    text_add_char(&h->bytes, (char)value);
}

void gguf_add_string(struct gguf_head *h, const char *key, const char *value) {
    begin(h, key, GGUF_STRING);
    add_string(&h->bytes, value, strlen(value));
}

static void begin_array(struct gguf_head *h, const char *key, enum gguf_kind item, uint64_t n) {
    begin(h, key, GGUF_ARRAY);
    add_u32(&h->bytes, item);
    add_u64(&h->bytes, n);
}

void gguf_add_array(struct gguf_head *h, const char *key, enum gguf_kind item, const void *data, uint64_t n) {
    begin_array(h, key, item, n);
    text_add_n(&h->bytes, data, n * kind_bytes(item));
}

void gguf_add_strings(struct gguf_head *h, const char *key, uint64_t n) { begin_array(h, key, GGUF_STRING, n); }
void gguf_item(struct gguf_head *h, const char *s, size_t n) { add_string(&h->bytes, s, n); }
void gguf_head_free(struct gguf_head *h) { text_free(&h->bytes); }

static size_t padding(size_t n) { return (GGUF_ALIGN - n % GGUF_ALIGN) % GGUF_ALIGN; }

static enum status write_padding(struct gguf_writer *w, size_t n, struct err *e) {
    static const char zeros[GGUF_ALIGN];
    return file_out_write(&w->out, zeros, padding(n), e);
}

enum status gguf_writer_open(struct gguf_writer *w, const char *path, const struct gguf_head *h,
                             const struct gguf_tensor *tensors, size_t count, struct err *e) {
    struct text t = {0};
    uint64_t offset = 0;
    *w = (struct gguf_writer){.tensors = tensors, .count = count};
    text_add(&t, "GGUF");
    add_u32(&t, VERSION);
    add_u64(&t, count), add_u64(&t, h->count);
    text_add_n(&t, text_str(&h->bytes), h->bytes.len);
    for (size_t i = 0; i < count; i++) {
        add_string(&t, tensors[i].name, strlen(tensors[i].name));
        add_u32(&t, (uint32_t)tensors[i].rank);
        for (int k = 0; k < tensors[i].rank; k++) add_u64(&t, (uint64_t)tensors[i].dim[k]);
        add_u32(&t, tensors[i].type);
        add_u64(&t, offset);
        offset += tensors[i].bytes + padding(tensors[i].bytes);
    }
    if (file_out_open(&w->out, path, e) == ST_OK && file_out_write(&w->out, t.data, t.len, e) == ST_OK)
        write_padding(w, t.len, e);
    text_free(&t);
    return e->code;
}

enum status gguf_writer_put(struct gguf_writer *w, const void *data, size_t n, struct err *e) {
    const struct gguf_tensor *t = &w->tensors[w->next];
    if (w->next >= w->count || n > t->bytes - w->put)
        return err_set(e, ST_FAIL, "%s: more bytes than its tensors have", w->out.path);
    if (file_out_write(&w->out, data, n, e) != ST_OK) return e->code;
    w->put += n;
    if (w->put < t->bytes) return ST_OK;
    w->put = 0, w->next++;
    return write_padding(w, t->bytes, e);
}

enum status gguf_writer_flush(struct gguf_writer *w, struct err *e) {
    if (w->next < w->count) return err_set(e, ST_FAIL, "%s: tensors are missing", w->out.path);
    if (fflush(w->out.stream) != 0) return err_set(e, ST_FAIL, "%s: cannot write (%s)", w->out.path, strerror(errno));
    return ST_OK;
}

enum status gguf_writer_commit(struct gguf_writer *w, struct err *e) {
    return gguf_writer_flush(w, e) == ST_OK ? file_out_commit(&w->out, e) : e->code;
}

void gguf_writer_abandon(struct gguf_writer *w) {
    if (w->out.path) file_out_abandon(&w->out);
}

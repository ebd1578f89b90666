#include "quant/bnb.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

enum { STATE_LIMIT = 65536 };

static const struct {
    enum dtype type;
    const char *name, *suffix;
} kinds[] = {
    {NF4, "nf4", "bitsandbytes__nf4"},
    {FP4, "fp4", "bitsandbytes__fp4"},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static const struct {
    enum dtype type;
    const char *name;
} sources[] = {{F32, "float32"}, {BF16, "bfloat16"}, {F16, "float16"}};
enum { SOURCES = sizeof sources / sizeof sources[0] };

const char *bnb_state_suffix(enum dtype type) { return kinds[type == FP4].suffix; }

bool bnb_is_side(const char *name, size_t *stem) {
    static const char *const ends[] = {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"};
    const char *state = strstr(name, ".quant_state.");
    if (state) return *stem = (size_t)(state - name), true;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (text_ends(name, ends[i])) return *stem = strlen(name) - strlen(ends[i]), true;
    return false;
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static const struct st_entry *find_part(const struct st_set *s, const char *name, const char *part) {
    char *full = mem_format("%s.%s", name, part);
    const struct st_entry *entry = st_find(s, full);
    free(full);
    return entry;
}

static const struct st_entry *find_state(const struct st_set *s, const char *name, int kind) {
    char *part = mem_format("quant_state.%s", kinds[kind].suffix);
    const struct st_entry *entry = find_part(s, name, part);
    free(part);
    return entry;
}

bool bnb_is_4bit(const struct st_set *s, const char *name) {
    for (int i = 0; i < KINDS; i++)
        if (find_state(s, name, i)) return true;
    return false;
}

/* A part that must be there with that type and count, whatever its shape. */
static const struct st_entry *want_part(const struct st_set *s, const char *name, const char *part, enum st_type type,
                                        int64_t count, const char *file, struct err *e) {
    const struct st_entry *entry = find_part(s, name, part);
    if (!entry)
        err_set(e, ST_FAIL, "%s: %.200s.%s is missing, which a 4-bit weight needs", file, name, part);
    else if (entry->type != type || entry->bytes != (uint64_t)count * st_type_size(type))
        err_set(e, ST_FAIL, "%s: %.200s.%s has dtype %s and %zu bytes, wanted %s and %lld values", entry->file, name,
                part, st_type_name(entry->type), entry->bytes, st_type_name(type), (long long)count);
    return e->code == ST_OK ? entry : NULL;
}

/* The floats of an entry, copied when they lie unaligned. */
static const float *floats_of(struct q4_weight *w, const struct st_entry *entry) {
    if ((uintptr_t)entry->data % sizeof(float) == 0) return entry->data;
    void **slot = w->owned;
    while (*slot) slot++;
    *slot = mem_alloc(entry->bytes);
    memcpy(*slot, entry->data, entry->bytes);
    return *slot;
}

static enum status check_finite(const float *v, int n, const struct st_entry *entry, struct err *e) {
    for (int i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return err_set(e, ST_FAIL, "%s: %.200s holds %g, wanted finite numbers", entry->file, entry->name,
                           (double)v[i]);
    return ST_OK;
}

static bool power_of_two(int64_t n, int64_t least, int64_t most) {
    return n >= least && n <= most && (n & (n - 1)) == 0;
}

/* The shape of the quant_state, whose elements `bytes` packed bytes hold. */
static enum status read_shape(struct q4_weight *w, const cJSON *tree, const char *where, size_t bytes, struct err *e) {
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(tree, "shape");
    if (!cJSON_IsArray(shape) || cJSON_GetArraySize(shape) != 2)
        return err_set(e, ST_FAIL, "%s: shape is not a list of two numbers", where);
    const cJSON *rows = shape->child, *cols = rows->next;
    if (!json_is_integer(rows) || !json_is_integer(cols) || rows->valuedouble < 1 || cols->valuedouble < 1)
        return err_set(e, ST_FAIL, "%s: shape is not a list of two whole numbers of 1 or more", where);
    int64_t O = (int64_t)rows->valuedouble, I = (int64_t)cols->valuedouble, n = 0;
    if (__builtin_mul_overflow(O, I, &n) || (uint64_t)n / 2 + (uint64_t)n % 2 != bytes)
        return err_set(e, ST_FAIL, "%s: shape %lld x %lld does not agree with %zu packed bytes", where, (long long)O,
                       (long long)I, bytes);
    w->t = tensor_over2(NULL, w->t.type, O, I);
    return ST_OK;
}

static enum status read_source(struct q4 *q, const cJSON *tree, const char *where, struct err *e) {
    const char *dtype = NULL;
    if (json_str(tree, where, "dtype", "", &dtype, e) != ST_OK) return e->code;
    for (int i = 0; i < SOURCES; i++)
        if (strcmp(dtype, sources[i].name) == 0) return q->source = sources[i].type, ST_OK;
    return err_set(e, ST_FAIL, "%s: dtype is \"%.40s\", wanted float32, bfloat16 or float16", where, dtype);
}

/* Leaves q->nested_blocksize 0 when the weight is not double-quantised. */
static enum status read_nested(struct q4 *q, const cJSON *tree, const char *where, struct err *e) {
    int64_t size = 0;
    double offset = NAN;
    const char *dtype = NULL;
    if (json_int(tree, where, "nested_blocksize", 0, &size, e) != ST_OK ||
        json_num(tree, where, "nested_offset", NAN, &offset, e) != ST_OK ||
        json_str(tree, where, "nested_dtype", "float32", &dtype, e) != ST_OK)
        return e->code;
    if (!json_get(tree, "nested_blocksize") && !json_get(tree, "nested_offset")) return ST_OK;
    if (!power_of_two(size, 1, 4096))
        return err_set(e, ST_FAIL, "%s: nested_blocksize is %lld, wanted a power of two up to 4096", where,
                       (long long)size);
    if (!isfinite((float)offset) || strcmp(dtype, "float32") != 0)
        return err_set(e, ST_FAIL, "%s: nested_offset or nested_dtype is not a finite float32", where);
    q->nested_blocksize = (int)size;
    q->nested_offset = (float)offset;
    return ST_OK;
}

static enum status read_state(struct q4_weight *w, const struct st_entry *state, int kind, size_t bytes,
                              struct err *e) {
    char *where = mem_format("%s: %.200s", state->file, state->name), *text = NULL;
    cJSON *tree = NULL;
    const char *type = NULL;
    int64_t blocksize = 0;
    if (state->type != ST_U8 || state->bytes > STATE_LIMIT) {
        err_set(e, ST_FAIL, "%s: has dtype %s and %zu bytes, wanted U8 and at most %d", where,
                st_type_name(state->type), state->bytes, STATE_LIMIT);
        goto done;
    }
    text = mem_text_n(state->data, state->bytes);
    tree = json_parse(text, state->bytes, where, e);
    if (!tree || json_str(tree, where, "quant_type", "", &type, e) != ST_OK ||
        json_int(tree, where, "blocksize", 0, &blocksize, e) != ST_OK)
        goto done;
    if (strcmp(type, kinds[kind].name) != 0)
        err_set(e, ST_FAIL, "%s: quant_type is \"%.40s\", wanted %s", where, type, kinds[kind].name);
    else if (!power_of_two(blocksize, 32, 4096))
        err_set(e, ST_FAIL, "%s: blocksize is %lld, wanted a power of two from 32 to 4096", where,
                (long long)blocksize);
    w->t.type = kinds[kind].type;
    w->q.blocksize = (int)blocksize;
    if (e->code == ST_OK && read_source(&w->q, tree, where, e) == ST_OK && read_nested(&w->q, tree, where, e) == ST_OK)
        read_shape(w, tree, where, bytes, e);
done:
    cJSON_Delete(tree);
    free(text), free(where);
    return e->code;
}

static enum status read_scales(struct q4_weight *w, const struct st_set *s, const char *name, const char *file,
                               struct err *e) {
    int64_t n = tensor_count(&w->t), blocks = (n - 1) / w->q.blocksize + 1;
    const struct st_entry *entry = want_part(s, name, "quant_map", ST_F32, 16, file, e);
    if (!entry) return e->code;
    w->q.code = floats_of(w, entry);
    if (check_finite(w->q.code, 16, entry, e) != ST_OK) return e->code;
    bool nested = w->q.nested_blocksize > 0;
    entry = want_part(s, name, "absmax", nested ? ST_U8 : ST_F32, blocks, file, e);
    if (!entry) return e->code;
    if (!nested) return w->q.absmax = floats_of(w, entry), ST_OK;
    w->q.absmax8 = entry->data;
    entry = want_part(s, name, "nested_quant_map", ST_F32, 256, file, e);
    if (!entry) return e->code;
    w->q.nested_code = floats_of(w, entry);
    if (check_finite(w->q.nested_code, 256, entry, e) != ST_OK) return e->code;
    entry = want_part(s, name, "nested_absmax", ST_F32, (blocks - 1) / w->q.nested_blocksize + 1, file, e);
    if (entry) w->q.nested_absmax = floats_of(w, entry);
    return e->code;
}

enum status bnb_read(struct q4_weight *w, const struct st_set *s, const char *name, struct err *e) {
    *w = (struct q4_weight){0};
    const struct st_entry *packed = st_find(s, name), *state = NULL;
    int kind = 0;
    for (int i = 0; i < KINDS; i++) {
        const struct st_entry *found = find_state(s, name, i);
        if (found && state)
            return err_set(e, ST_FAIL, "%s: %.200s has two quant_states, wanted one", found->file, name);
        if (found) state = found, kind = i;
    }
    if (!packed || !state)
        return err_set(e, ST_FAIL, "%s: %.200s has a quant_state or packed codes, but not both",
                       packed  ? packed->file
                       : state ? state->file
                               : "the weights",
                       name);
    if (read_state(w, state, kind, packed->bytes, e) != ST_OK || read_scales(w, s, name, packed->file, e) != ST_OK) {
        bnb_release(w);
        return e->code;
    }
    w->t.data = (void *)packed->data;
    w->t.q4 = &w->q;
    return ST_OK;
}

void bnb_release(struct q4_weight *w) {
    for (size_t i = 0; i < sizeof w->owned / sizeof w->owned[0]; i++) free(w->owned[i]);
    *w = (struct q4_weight){0};
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static const char *source_name(enum dtype type) {
    for (int i = 0; i < SOURCES; i++)
        if (sources[i].type == type) return sources[i].name;
    return "float32";
}

char *bnb_state_text(enum dtype type, const struct q4 *q, int64_t out, int64_t in) {
    struct text t = {0};
    text_addf(&t, "{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%lld, %lld]",
              kinds[type == FP4].name, q->blocksize, source_name(q->source), (long long)out, (long long)in);
    if (q->nested_blocksize)
        text_addf(&t, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.16e",
                  q->nested_blocksize, (double)q->nested_offset);
    text_add_char(&t, '}');
    return t.data;
}

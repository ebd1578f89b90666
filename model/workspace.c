/* The memory of passes. The largest pass that can come is run once with a backend that has failed already, so that
 * every op checks its shapes and computes nothing, in an arena whose pointers are not memory: what the arena's peak
 * shows is what such a pass needs, to the byte, whatever the code above does. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/model.h"

static void tables_layout(struct workspace *w) {
    const struct text_config *c = &w->m->config.text;
    w->rope = arena_tensor3(&w->arena, F32, 2, w->limits.longest, c->rotary / 2);
    for (int i = 0; i < 3 && c->persimmon; i++) w->parts[i] = arena_tensor1(&w->arena, I32, w->limits.N * c->heads);
    w->tables_end = w->arena.used;
}

/* The largest pass: as many positions, rows, scored targets and pictures as any batch may have, all in one. */
static void dry_pass(struct workspace *w) {
    struct backend *be = w->m->be;
    struct err kept = be->err;
    struct batch largest = {
        .rows = w->limits.rows, .N = w->limits.N, .scored = w->limits.scored, .images = w->limits.images};
    struct tensor total = tensor_over1((void *)ARENA_ALIGN, F32, 1);
    be->err = (struct err){.code = ST_FAIL};
    w->dry = true;
    if (w->train) {
        model_step(w, &largest, 0, 0, 1, &total);
    } else {
        struct pass p = pass_new(w, 0, 0);
        model_forward(&p, w, &largest);
        head_loss(&p, w, NULL, 1);
        if (w->m->config.problem == PROBLEM_GENERATION) head_logits(&p, w, NULL);
    }
    w->dry = false;
    if (w->cache) w->cache->length = 0;
    be->err = kept;
}

static void workspace_init(struct workspace *w, struct model *m, const struct workspace_options *o) {
    int64_t layers = m->config.text.layers;
    *w = (struct workspace){.m = m,
                            .limits = o->limits,
                            .train = o->train,
                            .forget = o->forget,
                            .act = o->act,
                            .keep = o->keep,
                            .neftune_alpha = o->neftune_alpha};
    w->acts.x = mem_alloc((size_t)(layers + 1) * sizeof *w->acts.x);
    w->acts.host_x = mem_alloc((size_t)layers * sizeof *w->acts.host_x);
    w->acts.blocks = mem_alloc((size_t)layers * sizeof *w->acts.blocks);
    if (o->cache_room) {
        w->cache = mem_alloc(sizeof *w->cache);
        w->cache->room = o->cache_room;
        w->cache->keys = mem_alloc((size_t)layers * sizeof *w->cache->keys);
        w->cache->values = mem_alloc((size_t)layers * sizeof *w->cache->values);
    }
}

static void cache_layout(struct workspace *w) {
    const struct text_config *c = &w->m->config.text;
    for (int64_t i = 0; w->cache && i < c->layers; i++) {
        w->cache->keys[i] = arena_tensor3(&w->arena, w->act, w->cache->room, c->kv_heads, c->head_dim);
        w->cache->values[i] = arena_tensor3(&w->arena, w->act, w->cache->room, c->kv_heads, c->head_dim);
    }
}

/* Lays tables out and runs dry over pointers that must not be followed. */
static size_t measure(struct workspace *w) {
    w->arena = w->host = arena_over((void *)ARENA_ALIGN, SIZE_MAX / 2);
    cache_layout(w);
    tables_layout(w);
    dry_pass(w);
    return w->arena.peak;
}

static void workspace_clear(struct workspace *w) {
    pictures_free(&w->acts.pictures);
    free(w->acts.x), free(w->acts.host_x), free(w->acts.blocks);
    if (w->cache) free(w->cache->keys), free(w->cache->values);
    free(w->cache);
    free(w->host_index), free(w->host_offsets), free(w->host_noise);
}

size_t workspace_measure(struct model *m, const struct workspace_options *o, size_t *host) {
    struct workspace w;
    workspace_init(&w, m, o);
    size_t bytes = measure(&w);
    if (host) *host = w.host.peak;
    workspace_clear(&w);
    return bytes;
}

/* One frequency per pair of the D numbers that are rotated; linear and llama3 scaling as in transformers'
 * modeling_rope_utils. */
static double frequency(const struct rope_config *r, int64_t pair, int64_t D) {
    float f = (float)(1.0 / (float)pow(r->theta, (double)(2 * pair) / (double)D));
    if (r->kind == ROPE_LINEAR) return (float)(f / r->factor);
    if (r->kind == ROPE_PLAIN) return f;
    double wavelength = 6.283185307179586 / f, old = (double)r->original_positions;
    if (wavelength > old / r->low_freq_factor) return (float)(f / r->factor);
    if (wavelength < old / r->high_freq_factor) return f;
    double smooth = (old / wavelength - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (float)((1 - smooth) * f / r->factor + smooth * f);
}

static void fill_rope(struct workspace *w) {
    const struct text_config *c = &w->m->config.text;
    int64_t P = w->limits.longest, half = c->rotary / 2;
    float *table = mem_alloc((size_t)(2 * P * half) * sizeof *table);
    for (int64_t i = 0; i < half; i++) {
        float f = (float)frequency(&c->rope, i, c->rotary);
        for (int64_t p = 0; p < P; p++) {
            float angle = (float)p * f;
            table[p * half + i] = (float)cos((double)angle);
            table[(P + p) * half + i] = (float)sin((double)angle);
        }
    }
    backend_upload(w->m->be, &w->rope, table);
    free(table);
}

/* Queries, keys and values of a head lie one behind the other. */
static void fill_parts(struct workspace *w) {
    int64_t n = w->m->config.text.persimmon ? w->parts[0].dim[0] : 0;
    int32_t *rows = mem_alloc((size_t)n * sizeof *rows);
    for (int part = 0; part < 3 && n; part++) {
        for (int64_t i = 0; i < n; i++) rows[i] = (int32_t)(3 * i + part);
        backend_upload(w->m->be, &w->parts[part], rows);
    }
    free(rows);
}

/* Rows of heads are counted in 32 bits. */
static enum status check_parts(const struct model *m, const struct batch_limits *l, struct err *e) {
    const struct text_config *c = &m->config.text;
    if (!c->persimmon || l->N <= INT32_MAX / (3 * c->heads)) return ST_OK;
    return err_set(e, ST_FAIL, "%lld positions at once are more than %lld heads allow, at most %lld are possible",
                   (long long)l->N, (long long)c->heads, (long long)(INT32_MAX / (3 * c->heads)));
}

enum status workspace_new(struct workspace **out, struct model *m, const struct workspace_options *o, struct err *e) {
    *out = NULL;
    if (check_parts(m, &o->limits, e) != ST_OK) return e->code;
    struct workspace *w = *out = mem_alloc(sizeof *w);
    workspace_init(w, m, o);
    size_t bytes = measure(w), host = w->host.peak;
    w->memory = backend_alloc(m->be, bytes);
    if (host && w->memory) w->host_memory = backend_host_alloc(m->be, host);
    if (!w->memory || (host && !w->host_memory)) {
        err_set(e, m->be->err.code, "%s", m->be->err.text);
        workspace_free(w);
        *out = NULL;
        return e->code;
    }
    w->arena = arena_over(w->memory, bytes);
    w->host = arena_over(w->host_memory, host);
    cache_layout(w);
    tables_layout(w);
    int64_t pictures = pictures_staged32(m, &o->limits), offsets = pictures_staged64(&o->limits);
    int64_t staged = o->limits.N > pictures ? o->limits.N : pictures;
    if (offsets < o->limits.rows + 1) offsets = o->limits.rows + 1;
    w->host_index = mem_alloc((size_t)staged * sizeof *w->host_index);
    w->host_offsets = mem_alloc((size_t)offsets * sizeof *w->host_offsets);
    w->host_noise = mem_alloc((size_t)(o->neftune_alpha > 0 ? o->limits.N : 0) * sizeof *w->host_noise);
    fill_rope(w);
    fill_parts(w);
    return ST_OK;
}

void workspace_free(struct workspace *w) {
    if (!w) return;
    backend_release(w->m->be, w->memory);
    backend_host_release(w->m->be, w->host_memory);
    workspace_clear(w);
    free(w);
}

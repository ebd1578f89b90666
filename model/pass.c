#include <math.h>

#include "base/memory.h"
#include "kernels/ops.h"
#include "model/model.h"

struct pass pass_new(struct workspace *w, uint64_t seed, uint64_t draw) {
    return (struct pass){
        .be = w->m->be, .scratch = &w->arena, .act = w->act, .train = w->train, .seed = seed, .draw = draw};
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static bool input_only(const struct workspace *w, int64_t layer) {
    return w->keep[layer] == KEEP_INPUT || w->keep[layer] == KEEP_HOST;
}

/* Which layers share their acts: all of them without a backward; those that keep their input only, among themselves. */
static void blocks_layout(struct workspace *w, int64_t N) {
    struct model *m = w->m;
    struct acts *a = &w->acts;
    const struct text_config *c = &m->config.text;
    struct block_shared shared;
    bool any_smart = false, any_input = !w->train;
    for (int64_t i = 0; w->train && i < c->layers; i++) {
        any_smart |= w->keep[i] == KEEP_SMART;
        any_input |= input_only(w, i);
    }
    if (any_smart) block_shared_layout(&shared, &w->arena, c, N, w->act);
    size_t common = w->arena.used, after = common;
    for (int64_t i = 0; any_input && i < c->layers; i++) { // one place for all, as large as the largest needs
        if (w->train && !input_only(w, i)) continue;
        w->arena.used = common;
        block_acts_layout(&a->blocks[i], &w->arena, &m->blocks[i], c, N, w->act, NULL);
        if (w->arena.used > after) after = w->arena.used;
    }
    w->arena.used = after;
    for (int64_t i = 0; w->train && i < c->layers; i++)
        if (!input_only(w, i))
            block_acts_layout(&a->blocks[i], &w->arena, &m->blocks[i], c, N, w->act,
                              w->keep[i] == KEEP_SMART ? &shared : NULL);
}

/* x, which is one place without a backward; the inputs that wait on the host have a few to take turns in. */
static void inputs_layout(struct workspace *w, int64_t N) {
    struct acts *a = &w->acts;
    const struct text_config *c = &w->m->config.text;
    struct tensor turns[HOST_TURNS];
    int64_t hosted = 0;
    w->host.used = 0;
    for (int64_t i = 0; i <= c->layers; i++) {
        bool host = w->train && i < c->layers && w->keep[i] == KEEP_HOST;
        if (!w->train && i > 0)
            a->x[i] = a->x[0];
        else if (host && hosted >= HOST_TURNS)
            a->x[i] = turns[hosted % HOST_TURNS];
        else
            a->x[i] = arena_tensor2(&w->arena, w->act, N, c->dim);
        if (!host) continue;
        turns[hosted++ % HOST_TURNS] = a->x[i];
        a->host_x[i] = arena_bytes(&w->host, tensor_bytes(&a->x[i]));
    }
}

static void cache_views(struct workspace *w, int64_t N) {
    struct kv_cache *cache = w->cache;
    for (int64_t i = 0; i < w->m->config.text.layers; i++) {
        struct block_acts *b = &w->acts.blocks[i];
        b->k = tensor_rows(&cache->keys[i], cache->length, N);
        b->v = tensor_rows(&cache->values[i], cache->length, N);
        b->keys = tensor_rows(&cache->keys[i], 0, cache->length + N);
        b->values = tensor_rows(&cache->values[i], 0, cache->length + N);
    }
}

/* Numbers that a row's labels take: none of a class, which is a target. */
static int64_t score_width(const struct model *m) {
    return m->config.problem == PROBLEM_SINGLE_LABEL ? 0 : m->config.num_labels;
}

static void acts_layout(struct workspace *w, const struct batch *b) {
    struct acts *a = &w->acts;
    struct arena *m = &w->arena;
    int64_t S = b->scored;
    m->used = w->tables_end;
    a->N = b->N, a->scored = S, a->images = b->images;
    a->ids = arena_tensor1(m, I32, b->N);
    a->positions = arena_tensor1(m, I32, b->N);
    a->offsets = arena_tensor1(m, I64, b->rows + 1);
    a->kv_offsets = w->cache ? arena_tensor1(m, I64, b->rows + 1) : a->offsets;
    a->scored_rows = arena_tensor1(m, I32, S);
    a->targets = arena_tensor1(m, I32, S);
    a->loss = arena_tensor1(m, F32, S);
    if (w->m->config.problem != PROBLEM_GENERATION) {
        a->labels = arena_tensor2(m, F32, S, score_width(w->m));
        a->outputs = arena_tensor2(m, F32, S, w->m->config.num_labels);
    }
    final_norm_layout(&a->norm, m, S);
    if (w->neftune_alpha > 0 && w->train) a->noise = arena_tensor1(m, F32, b->N);
    blocks_layout(w, b->N);
    inputs_layout(w, b->N);
    if (w->cache) cache_views(w, b->N);
    if (b->images) pictures_layout(w, b);
}

/* --- what the batch holds, to where the backend reads it --------------------------------------------------------- */

static void upload_scored(struct workspace *w, const struct batch *b) {
    int64_t at = 0;
    for (int64_t i = 0; i < b->N; i++)
        if (b->targets[i] != IGNORED) w->host_index[at++] = (int32_t)i;
    backend_upload(w->m->be, &w->acts.scored_rows, w->host_index);
    for (int64_t i = 0; i < at; i++) w->host_index[i] = b->targets[w->host_index[i]];
    backend_upload(w->m->be, &w->acts.targets, w->host_index);
}

/* One position of every row; a class is a target, other labels are numbers. */
static void upload_labels(struct workspace *w, const struct batch *b) {
    bool class = w->m->config.problem == PROBLEM_SINGLE_LABEL;
    if (b->label_count == 0) return; // only the layers run, for what they give at every position
    for (int64_t r = 0; r < b->rows; r++) w->host_index[r] = (int32_t)(b->offsets[r] + b->pooled[r]);
    backend_upload(w->m->be, &w->acts.scored_rows, w->host_index);
    for (int64_t r = 0; r < b->rows && class; r++) w->host_index[r] = (int32_t)b->labels[r];
    if (class)
        backend_upload(w->m->be, &w->acts.targets, w->host_index);
    else
        backend_upload(w->m->be, &w->acts.labels, b->labels);
}

/* NEFTune (Jain et al., 2023): alpha / sqrt(L C) for a row of L positions. */
static void upload_noise(struct workspace *w, const struct batch *b) {
    for (int64_t r = 0; r < b->rows; r++) {
        double cells = (double)(b->offsets[r + 1] - b->offsets[r]) * (double)w->m->config.text.dim;
        for (int64_t i = b->offsets[r]; i < b->offsets[r + 1]; i++)
            w->host_noise[i] = (float)(w->neftune_alpha / sqrt(cells));
    }
    backend_upload(w->m->be, &w->acts.noise, w->host_noise);
}

static void upload_batch(struct workspace *w, const struct batch *b) {
    struct acts *a = &w->acts;
    struct backend *be = w->m->be;
    const struct text_config *c = &w->m->config.text;
    int64_t past = w->cache ? w->cache->length : 0;
    if (!w->dry) {
        backend_upload(be, &a->ids, b->ids);
        backend_upload(be, &a->positions, b->positions);
        backend_upload(be, &a->offsets, b->offsets);
        for (int64_t i = 0; i <= b->rows; i++) w->host_offsets[i] = b->offsets[i] + (i ? past : 0);
        if (w->cache) backend_upload(be, &a->kv_offsets, w->host_offsets);
        if (w->m->config.problem == PROBLEM_GENERATION)
            upload_scored(w, b);
        else
            upload_labels(w, b);
        if (b->images) pictures_upload(w, b);
        if (a->noise.data && w->train) upload_noise(w, b);
    }
    int64_t longest = w->dry ? w->limits.longest : 0;
    for (int64_t i = 0; !w->dry && i < b->rows; i++)
        if (b->offsets[i + 1] - b->offsets[i] > longest) longest = b->offsets[i + 1] - b->offsets[i];
    a->sequence = (struct sequence){
        .positions = a->positions,
        .rope = &w->rope,
        .parts = w->parts,
        .attention = {.q_offsets = &a->offsets,
                      .kv_offsets = &a->kv_offsets,
                      .sequences = b->rows,
                      .max_q = longest,
                      .max_kv = longest + past,
                      .causal = true,
                      .scale = 1.0f / sqrtf((float)c->head_dim)},
    };
}

/* --- the pass ---------------------------------------------------------------------------------------------------- */

/* KEEP_HOST: x goes to the host while its layer runs. The layer's output may take the place of the x stored before. */
static void store_input(struct workspace *w, int64_t layer) {
    if (!w->train || w->keep[layer] != KEEP_HOST) return;
    backend_await(w->m->be);
    backend_store(w->m->be, w->acts.host_x[layer], &w->acts.x[layer]);
}

/* KEEP_HOST: x comes back, for what follows a backend_await. */
static void fetch_input(struct workspace *w, int64_t layer) {
    if (w->keep[layer] == KEEP_HOST) backend_fetch(w->m->be, &w->acts.x[layer], w->acts.host_x[layer]);
}

static uint64_t noise_stream(const struct pass *p) { return p->draw ^ UINT64_C(0x4e45467475656e65); }

void model_forward(const struct pass *p, struct workspace *w, const struct batch *b) {
    struct model *m = w->m;
    struct acts *a = &w->acts;
    const struct text_config *c = &m->config.text;
    acts_layout(w, b);
    upload_batch(w, b);
    op_embed_forward(p->be, &a->x[0], &m->embed, &a->ids);
    if (a->noise.data && p->train) op_noise_add(p->be, &a->x[0], &a->noise, p->seed, noise_stream(p));
    if (b->images) pictures_forward(p, w, &a->x[0], b);
    for (int64_t i = 0; i < c->layers; i++) {
        if (w->forget && !w->dry) st_forget_all(&m->weights.files);
        store_input(w, i);
        block_forward(p, &a->blocks[i], &a->x[i + 1], &a->x[i], &m->blocks[i], c, &a->sequence);
    }
    if (w->host.used) backend_await(p->be); // the next pass writes to all places
    if (w->cache) w->cache->length += b->N;
}

/* The lowest layer that the backward has to run through; layers: none. */
static int64_t lowest_layer(const struct model *m) {
    if (m->gembed.data || pictures_are_trained(m)) return 0;
    for (int64_t i = 0; i < m->config.text.layers; i++)
        if (block_is_trained(&m->blocks[i])) return i;
    return m->config.text.layers;
}

/* A layer that kept its input only runs forward again, into memory that it has to itself until its backward is done. */
static void run_again(const struct pass *p, struct workspace *w, int64_t layer) {
    struct acts *a = &w->acts;
    const struct text_config *c = &w->m->config.text;
    block_forward(p, &a->blocks[layer], NULL, &a->x[layer], &w->m->blocks[layer], c, &a->sequence);
}

void model_backward(const struct pass *p, struct workspace *w, const struct batch *b, const struct tensor *dx) {
    struct model *m = w->m;
    struct acts *a = &w->acts;
    const struct text_config *c = &m->config.text;
    int64_t lowest = lowest_layer(m);
    bool below = m->gembed.data || (b->images && pictures_are_trained(m));
    if (lowest < c->layers) fetch_input(w, c->layers - 1);
    for (int64_t i = c->layers - 1; i >= lowest; i--) {
        if (w->keep[i] == KEEP_HOST) backend_await(p->be);
        if (i > lowest) fetch_input(w, i - 1); // comes while layer i runs
        if (input_only(w, i)) run_again(p, w, i);
        block_backward(p, dx, i > lowest || below, &a->blocks[i], &a->x[i], &m->blocks[i], c, &a->sequence);
    }
    if (m->gembed.data) op_embed_backward(p->be, &m->gembed, dx, &a->ids);
    if (b->images && pictures_are_trained(m)) pictures_backward(p, w, dx, b);
}

void model_step(struct workspace *w, const struct batch *b, uint64_t seed, uint64_t draw, float scale,
                const struct tensor *total) {
    struct pass p = pass_new(w, seed, draw);
    model_forward(&p, w, b);
    struct tensor dx = {0};
    if (w->train) dx = arena_tensor2(&w->arena, w->act, b->N, w->m->config.text.dim);
    head_loss(&p, w, w->train ? &dx : NULL, scale);
    if (b->scored) op_sum_add(p.be, total, &w->acts.loss);
    if (w->train && b->scored) model_backward(&p, w, b, &dx);
}

int64_t model_find_nonfinite(struct workspace *w) {
    struct backend *be = w->m->be;
    int64_t layers = w->m->config.text.layers;
    size_t mark = w->arena.used;
    struct tensor count = arena_tensor1(&w->arena, F32, 1);
    int64_t found = -1;
    for (int64_t i = 0; i <= layers && found < 0; i++) {
        float n = 0;
        if (i < layers) fetch_input(w, i);
        backend_await(be);
        op_zero(be, &count);
        op_count_nonfinite_add(be, &count, &w->acts.x[i]);
        backend_download(be, &n, &count);
        if (n > 0) found = i;
    }
    if (found < 0 && w->acts.scored) {
        float n = 0;
        op_zero(be, &count);
        op_count_nonfinite_add(be, &count, &w->acts.loss);
        backend_download(be, &n, &count);
        if (n > 0) found = layers + 1;
    }
    w->arena.used = mark;
    return found;
}

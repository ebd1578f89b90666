#include "model/connector.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "kernels/ops.h"

/* --- loading ----------------------------------------------------------------------------------------------------- */

static void load_linear(struct weights *w, struct linear *l, const char *prefix, const char *name, int64_t O,
                        int64_t I) {
    char *path = mem_format("%s.%s", prefix, name);
    weights_linear(w, l, path, O, I, false);
    free(path);
}

static void load_norm(struct weights *w, struct tensor *g, const char *prefix, const char *name, int64_t C) {
    char *path = mem_format("%s.%s", prefix, name);
    weights_norm(w, g, NULL, path, C);
    free(path);
}

static void load_layer(struct perceiver_layer *l, struct weights *w, const struct model_config *config,
                       const char *prefix) {
    const struct perceiver_config *c = &config->perceiver;
    int64_t C = config->text.dim, Q = c->heads * c->head_dim, KV = c->kv_heads * c->head_dim;
    load_norm(w, &l->latents_norm, prefix, "input_latents_norm", C);
    load_norm(w, &l->context_norm, prefix, "input_context_norm", C);
    load_linear(w, &l->q, prefix, "self_attn.q_proj", Q, C);
    load_linear(w, &l->k, prefix, "self_attn.k_proj", KV, C);
    load_linear(w, &l->v, prefix, "self_attn.v_proj", KV, C);
    load_linear(w, &l->o, prefix, "self_attn.o_proj", C, Q);
    load_norm(w, &l->norm, prefix, "post_attention_layernorm", C);
    load_linear(w, &l->gate, prefix, "mlp.gate_proj", c->ffn, C);
    load_linear(w, &l->up, prefix, "mlp.up_proj", c->ffn, C);
    load_linear(w, &l->down, prefix, "mlp.down_proj", C, c->ffn);
}

void connector_load(struct connector *c, struct weights *w, const struct model_config *config, const char *prefix) {
    int64_t C = config->text.dim, Cv = config->vision.dim, G = config->text.ffn;
    char *project = mem_format("%s.modality_projection", prefix);
    char *perceiver = mem_format("%s.perceiver_resampler", prefix), *latents = mem_format("%s.latents", perceiver);
    if (!c->layers) c->layers = mem_alloc((size_t)config->perceiver.depth * sizeof *c->layers);
    c->depth = config->perceiver.depth;
    load_linear(w, &c->gate, project, "gate_proj", G, Cv);
    load_linear(w, &c->up, project, "up_proj", G, Cv);
    load_linear(w, &c->down, project, "down_proj", C, G);
    weights_matrix(w, &c->latents, latents, config->perceiver.latents, C);
    for (int64_t i = 0; i < c->depth; i++) {
        char *layer = mem_format("%s.layers.%lld", perceiver, (long long)i);
        load_layer(&c->layers[i], w, config, layer);
        free(layer);
    }
    load_norm(w, &c->norm, perceiver, "norm", C);
    free(project), free(perceiver), free(latents);
}

static void free_path(struct linear *l, void *arg) {
    (void)arg;
    free((char *)l->path);
}

void connector_free(struct connector *c) {
    connector_linears(c, free_path, NULL);
    free(c->layers);
}

void connector_linears(struct connector *c, void (*f)(struct linear *l, void *arg), void *arg) {
    struct linear *all[] = {&c->gate, &c->up, &c->down};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) f(all[k], arg);
    for (int64_t i = 0; c->layers && i < c->depth; i++) {
        struct perceiver_layer *l = &c->layers[i];
        struct linear *inner[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t k = 0; k < sizeof inner / sizeof *inner; k++) f(inner[k], arg);
    }
}

/* --- what is trained --------------------------------------------------------------------------------------------- */

static void note_trained(struct linear *l, void *arg) { *(bool *)arg |= linear_is_trained(l); }

static bool projection_is_trained(const struct connector *c) {
    return linear_is_trained(&c->gate) || linear_is_trained(&c->up) || linear_is_trained(&c->down);
}

bool connector_is_trained(const struct connector *c) {
    bool trained = c->glatents.data || c->gnorm.data;
    connector_linears((struct connector *)c, note_trained, &trained);
    for (int64_t i = 0; i < c->depth; i++) {
        const struct perceiver_layer *l = &c->layers[i];
        trained |= l->glatents_norm.data || l->gcontext_norm.data || l->gnorm.data;
    }
    return trained;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static void layer_layout(struct perceiver_acts *a, struct arena *m, const struct perceiver_layer *l,
                         const struct perceiver_config *c, int64_t N, int64_t M, enum dtype act) {
    int64_t C = l->norm.dim[0], H = c->heads, K = c->kv_heads, D = c->head_dim, F = c->ffn;
    a->input = arena_tensor2(m, act, M, C);
    a->context_rstd = arena_tensor1(m, F32, N);
    a->norm1 = arena_tensor2(m, act, M, C);
    a->rstd1 = arena_tensor1(m, F32, M);
    a->q = arena_tensor3(m, act, M, H, D);
    a->k = arena_tensor3(m, act, N + M, K, D);
    a->v = arena_tensor3(m, act, N + M, K, D);
    a->attended = arena_tensor3(m, act, M, H, D);
    a->lse = arena_tensor2(m, F32, M, H);
    a->middle = arena_tensor2(m, act, M, C);
    a->norm2 = arena_tensor2(m, act, M, C);
    a->rstd2 = arena_tensor1(m, F32, M);
    a->gate = arena_tensor2(m, act, M, F);
    a->up = arena_tensor2(m, act, M, F);
    a->gated = arena_tensor2(m, act, M, F);
    linear_acts_layout(&a->lq, m, &l->q, M, act);
    linear_acts_layout(&a->lk, m, &l->k, N + M, act);
    linear_acts_layout(&a->lv, m, &l->v, N + M, act);
    linear_acts_layout(&a->lo, m, &l->o, M, act);
    linear_acts_layout(&a->lgate, m, &l->gate, M, act);
    linear_acts_layout(&a->lup, m, &l->up, M, act);
    linear_acts_layout(&a->ldown, m, &l->down, M, act);
}

void connector_acts_layout(struct connector_acts *a, struct arena *m, const struct connector *c,
                           const struct model_config *config, int64_t images, int64_t rows, int64_t longest,
                           enum dtype act, bool keep) {
    int64_t N = rows, M = images * config->perceiver.latents, C = config->text.dim, G = config->text.ffn;
    struct perceiver_places *places = &a->places;
    if (!a->layers) a->layers = mem_alloc((size_t)c->depth * sizeof *a->layers);
    places->patches = arena_tensor1(m, I32, N);
    places->latents = arena_tensor1(m, I32, M);
    places->which = arena_tensor1(m, I32, M);
    places->offsets = arena_tensor1(m, I64, images + 1);
    places->mixed = arena_tensor1(m, I64, images + 1);
    places->images = images, places->longest = longest;
    a->gate = arena_tensor2(m, act, N, G);
    a->up = arena_tensor2(m, act, N, G);
    a->context = arena_tensor2(m, act, N, C);
    a->last = arena_tensor2(m, act, M, C);
    a->rstd = arena_tensor1(m, F32, M);
    linear_acts_layout(&a->lgate, m, &c->gate, N, act);
    linear_acts_layout(&a->lup, m, &c->up, N, act);
    linear_acts_layout(&a->ldown, m, &c->down, N, act);
    size_t mark = m->used, after = mark;
    for (int64_t i = 0; i < c->depth; i++) {
        if (!keep) m->used = mark;
        layer_layout(&a->layers[i], m, &c->layers[i], &config->perceiver, N, M, act);
        if (m->used > after) after = m->used;
    }
    m->used = after;
}

void connector_acts_free(struct connector_acts *a) {
    free(a->layers);
    a->layers = NULL;
}

void connector_upload(struct connector_acts *a, struct backend *be, int64_t latents, const int64_t *offsets,
                      int32_t *host32, int64_t *host64) {
    struct perceiver_places *places = &a->places;
    int64_t n = places->images, L = latents;
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = offsets[i]; r < offsets[i + 1]; r++) host32[r] = (int32_t)(r + i * L);
    backend_upload(be, &places->patches, host32);
    for (int64_t r = 0; r < n * L; r++) host32[r] = (int32_t)(offsets[r / L + 1] + r);
    backend_upload(be, &places->latents, host32);
    for (int64_t r = 0; r < n * L; r++) host32[r] = (int32_t)(r % L);
    backend_upload(be, &places->which, host32);
    for (int64_t i = 0; i <= n; i++) host64[i] = i * L;
    backend_upload(be, &places->offsets, host64);
    for (int64_t i = 0; i <= n; i++) host64[i] = offsets[i] + i * L;
    backend_upload(be, &places->mixed, host64);
}

/* --- a layer of the perceiver ------------------------------------------------------------------------------------ */

/* A (N,heads,D) tensor as the (N,heads*D) that a linear layer sees. */
static struct tensor flat(const struct tensor *t) { return tensor_as2(t, t->dim[0], t->dim[1] * t->dim[2]); }

static const struct tensor *or_null(const struct tensor *g) { return g->data ? g : NULL; }

static struct attention attention_of(const struct perceiver_places *places, const struct perceiver_config *c) {
    return (struct attention){.q_offsets = &places->offsets,
                              .kv_offsets = &places->mixed,
                              .sequences = places->images,
                              .max_q = c->latents,
                              .max_kv = places->longest + c->latents,
                              .scale = 1.0f / sqrtf((float)c->head_dim)};
}

/* Lines 1 to 3. mixed (N+M,C): patches and latents of each picture, both normalised. */
static void mix(const struct pass *p, const struct tensor *mixed, struct perceiver_acts *a,
                const struct tensor *context, const struct perceiver_layer *l, const struct perceiver_places *places,
                float eps) {
    struct backend *be = p->be;
    size_t mark = p->scratch->used;
    struct tensor normed = arena_tensor2(p->scratch, context->type, context->dim[0], context->dim[1]);
    op_rmsnorm_forward(be, &a->norm1, &a->rstd1, &a->input, &l->latents_norm, eps);    // 1
    op_rmsnorm_forward(be, &normed, &a->context_rstd, context, &l->context_norm, eps); // 2
    op_scatter_rows(be, mixed, &normed, &places->patches);                             // 3
    op_scatter_rows(be, mixed, &a->norm1, &places->latents);                           // 3
    p->scratch->used = mark;
}

/* y (M,C) from a->input (M,C) and context (N,C). y may lie in a->input: it is written last. */
static void layer_forward(const struct pass *p, struct perceiver_acts *a, const struct tensor *y,
                          const struct tensor *context, const struct perceiver_layer *l,
                          const struct perceiver_config *c, const struct perceiver_places *places) {
    struct backend *be = p->be;
    struct tensor q = flat(&a->q), k = flat(&a->k), v = flat(&a->v), attended = flat(&a->attended);
    struct attention attention = attention_of(places, c);
    size_t mark = p->scratch->used;
    struct tensor mixed = arena_tensor2(p->scratch, context->type, a->k.dim[0], context->dim[1]);
    mix(p, &mixed, a, context, l, places, c->eps);                                    // 1 2 3
    linear_forward(p, &a->lq, &q, &a->norm1, &l->q);                                  // 4
    linear_forward(p, &a->lk, &k, &mixed, &l->k);                                     // 5
    linear_forward(p, &a->lv, &v, &mixed, &l->v);                                     // 6
    op_attention_forward(be, &a->attended, &a->lse, &a->q, &a->k, &a->v, &attention); // 7
    linear_forward(p, &a->lo, &a->middle, &attended, &l->o);                          // 8
    op_add(be, &a->middle, &a->middle, &a->input);                                    // 9
    op_rmsnorm_forward(be, &a->norm2, &a->rstd2, &a->middle, &l->norm, c->eps);       // 10
    linear_forward(p, &a->lgate, &a->gate, &a->norm2, &l->gate);                      // 11
    linear_forward(p, &a->lup, &a->up, &a->norm2, &l->up);                            // 12
    op_glu_forward(be, &a->gated, &a->gate, &a->up, c->act);                          // 13
    linear_forward(p, &a->ldown, y, &a->gated, &l->down);                             // 14
    op_add(be, y, y, &a->middle);                                                     // 15
    p->scratch->used = mark;
}

/* Lines 15 to 10, backwards. dx: gradient of y -> gradient of middle. gate, up and gated become their own gradients. */
static void ffn_backward(const struct pass *p, const struct tensor *dx, struct perceiver_acts *a,
                         const struct perceiver_layer *l, const struct perceiver_config *c) {
    struct backend *be = p->be;
    size_t mark = p->scratch->used;
    const struct tensor *dgated = &a->gated;
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
    linear_backward(p, dgated, 0, dx, &a->gated, &a->ldown, &l->down);                            // 14'
    op_glu_backward(be, &a->gate, &a->up, dgated, &a->gate, &a->up, c->act);                      // 13'
    linear_backward(p, &dnorm, 0, &a->up, &a->norm2, &a->lup, &l->up);                            // 12'
    linear_backward(p, &dnorm, 1, &a->gate, &a->norm2, &a->lgate, &l->gate);                      // 11'
    op_rmsnorm_backward_add(be, dx, or_null(&l->gnorm), &dnorm, &a->middle, &a->rstd2, &l->norm); // 10'
    p->scratch->used = mark;
}

/* Lines 9 to 1, backwards. dx: gradient of middle -> gradient of the layer's input. dcontext += ... unless NULL. */
static void attention_backward(const struct pass *p, const struct tensor *dx, const struct tensor *dcontext,
                               struct perceiver_acts *a, const struct tensor *context, const struct perceiver_layer *l,
                               const struct perceiver_config *c, const struct perceiver_places *places) {
    struct backend *be = p->be;
    int64_t N = context->dim[0], M = dx->dim[0], C = dx->dim[1], H = c->heads, K = c->kv_heads, D = c->head_dim;
    size_t mark = p->scratch->used;
    struct tensor da = arena_tensor3(p->scratch, dx->type, M, H, D), dq = arena_tensor3(p->scratch, dx->type, M, H, D);
    struct tensor dk = arena_tensor3(p->scratch, dx->type, N + M, K, D);
    struct tensor dv = arena_tensor3(p->scratch, dx->type, N + M, K, D);
    struct tensor delta = arena_tensor2(p->scratch, F32, M, H);
    struct tensor mixed = arena_tensor2(p->scratch, dx->type, N + M, C);
    struct tensor dmixed = arena_tensor2(p->scratch, dx->type, N + M, C);
    struct tensor dpatches = arena_tensor2(p->scratch, dx->type, N, C);
    struct tensor dlatents = arena_tensor2(p->scratch, dx->type, M, C),
                  more = arena_tensor2(p->scratch, dx->type, M, C);
    struct tensor attended = flat(&a->attended), flat_da = flat(&da);
    struct tensor flat_dq = flat(&dq), flat_dk = flat(&dk), flat_dv = flat(&dv);
    struct attention attention = attention_of(places, c);

    linear_backward(p, &flat_da, 0, dx, &attended, &a->lo, &l->o); // 8'
    op_attention_backward(be, &dq, &dk, &dv, &delta, &da, &a->attended, &a->lse, &a->q, &a->k, &a->v,
                          &attention);                                    // 7'
    mix(p, &mixed, a, context, l, places, c->eps);                        // made again: it is wide
    linear_backward(p, &dmixed, 0, &flat_dv, &mixed, &a->lv, &l->v);      // 6'
    linear_backward(p, &dmixed, 1, &flat_dk, &mixed, &a->lk, &l->k);      // 5'
    linear_backward(p, &dlatents, 0, &flat_dq, &a->norm1, &a->lq, &l->q); // 4'
    op_gather_rows(be, &more, &dmixed, &places->latents);                 // 3'
    op_add(be, &dlatents, &dlatents, &more);                              // 3'
    if (dcontext) {
        op_gather_rows(be, &dpatches, &dmixed, &places->patches); // 3'
        op_rmsnorm_backward_add(be, dcontext, or_null(&l->gcontext_norm), &dpatches, context, &a->context_rstd,
                                &l->context_norm); // 2'
    }
    op_rmsnorm_backward_add(be, dx, or_null(&l->glatents_norm), &dlatents, &a->input, &a->rstd1,
                            &l->latents_norm); // 1'
    p->scratch->used = mark;
}

/* --- the connector ----------------------------------------------------------------------------------------------- */

/* The gated product is wide and cheap: it is made where it is wanted. */
static void projection_forward(const struct pass *p, struct connector_acts *a, const struct tensor *x,
                               const struct connector *c, enum activation act) {
    size_t mark = p->scratch->used;
    struct tensor gated = arena_tensor2(p->scratch, a->gate.type, a->gate.dim[0], a->gate.dim[1]);
    linear_forward(p, &a->lgate, &a->gate, x, &c->gate);         // 1
    linear_forward(p, &a->lup, &a->up, x, &c->up);               // 2
    op_glu_forward(p->be, &gated, &a->gate, &a->up, act);        // 3
    linear_forward(p, &a->ldown, &a->context, &gated, &c->down); // 4
    p->scratch->used = mark;
}

/* gate and up become their own gradients. */
static void projection_backward(const struct pass *p, const struct tensor *dx, const struct tensor *dcontext,
                                struct connector_acts *a, const struct tensor *x, const struct connector *c,
                                enum activation act) {
    size_t mark = p->scratch->used;
    struct tensor gated = arena_tensor2(p->scratch, a->gate.type, a->gate.dim[0], a->gate.dim[1]);
    op_glu_forward(p->be, &gated, &a->gate, &a->up, act);                    // 3, again
    linear_backward(p, &gated, 0, dcontext, &gated, &a->ldown, &c->down);    // 4', in its place
    op_glu_backward(p->be, &a->gate, &a->up, &gated, &a->gate, &a->up, act); // 3'
    linear_backward(p, dx, 0, &a->up, x, &a->lup, &c->up);                   // 2'
    linear_backward(p, dx, 1, &a->gate, x, &a->lgate, &c->gate);             // 1'
    p->scratch->used = mark;
}

void connector_forward(const struct pass *p, struct connector_acts *a, const struct tensor *y, const struct tensor *x,
                       const struct connector *c, const struct model_config *config) {
    struct backend *be = p->be;
    projection_forward(p, a, x, c, config->text.act);                         // 1 2 3 4
    op_embed_forward(be, &a->layers[0].input, &c->latents, &a->places.which); // 5
    for (int64_t i = 0; i < c->depth; i++) {                                  // 6
        const struct tensor *out = i + 1 < c->depth ? &a->layers[i + 1].input : &a->last;
        layer_forward(p, &a->layers[i], out, &a->context, &c->layers[i], &config->perceiver, &a->places);
    }
    op_rmsnorm_forward(be, y, &a->rstd, &a->last, &c->norm, config->perceiver.eps); // 7
}

static bool context_norms_are_trained(const struct connector *c) {
    for (int64_t i = 0; i < c->depth; i++)
        if (c->layers[i].gcontext_norm.data) return true;
    return false;
}

void connector_backward(const struct pass *p, const struct tensor *dx, const struct tensor *dy,
                        struct connector_acts *a, const struct tensor *x, const struct connector *c,
                        const struct model_config *config) {
    struct backend *be = p->be;
    size_t mark = p->scratch->used;
    bool below = dx || projection_is_trained(c), needs_context = below || context_norms_are_trained(c);
    struct tensor dlast = arena_tensor2(p->scratch, dy->type, dy->dim[0], dy->dim[1]), dcontext = {0};
    if (needs_context) dcontext = arena_tensor2(p->scratch, dy->type, a->context.dim[0], a->context.dim[1]);
    if (needs_context) op_zero(be, &dcontext);
    op_zero(be, &dlast);
    op_rmsnorm_backward_add(be, &dlast, or_null(&c->gnorm), dy, &a->last, &a->rstd, &c->norm); // 7'
    for (int64_t i = c->depth - 1; i >= 0; i--) {                                              // 6'
        ffn_backward(p, &dlast, &a->layers[i], &c->layers[i], &config->perceiver);
        attention_backward(p, &dlast, or_null(&dcontext), &a->layers[i], &a->context, &c->layers[i], &config->perceiver,
                           &a->places);
    }
    if (c->glatents.data) op_embed_backward(be, &c->glatents, &dlast, &a->places.which); // 5'
    if (below) projection_backward(p, dx, &dcontext, a, x, c, config->text.act);         // 4' 3' 2' 1'
    p->scratch->used = mark;
}

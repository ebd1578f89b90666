#include "model/vit.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "kernels/ops.h"

static void load_linear(struct weights *w, struct linear *l, const char *prefix, int64_t layer, const char *name,
                        int64_t O, int64_t I) {
    char *path = mem_format("%s.encoder.layers.%lld.%s", prefix, (long long)layer, name);
    weights_linear(w, l, path, O, I, true);
    free(path);
}

static void load_norm(struct weights *w, struct tensor *g, struct tensor *b, const char *prefix, int64_t layer,
                      const char *name, int64_t C) {
    char *path = mem_format("%s.encoder.layers.%lld.%s", prefix, (long long)layer, name);
    weights_norm(w, g, b, path, C);
    free(path);
}

static void load_block(struct vit_block *b, struct weights *w, const struct vision_config *c, const char *prefix,
                       int64_t layer) {
    int64_t C = c->dim, F = c->ffn;
    load_norm(w, &b->norm1, &b->bias1, prefix, layer, "layer_norm1", C);
    load_linear(w, &b->q, prefix, layer, "self_attn.q_proj", C, C);
    load_linear(w, &b->k, prefix, layer, "self_attn.k_proj", C, C);
    load_linear(w, &b->v, prefix, layer, "self_attn.v_proj", C, C);
    load_linear(w, &b->o, prefix, layer, "self_attn.out_proj", C, C);
    load_norm(w, &b->norm2, &b->bias2, prefix, layer, "layer_norm2", C);
    load_linear(w, &b->fc1, prefix, layer, "mlp.fc1", F, C);
    load_linear(w, &b->fc2, prefix, layer, "mlp.fc2", C, F);
}

void vit_tables_layout(struct vit_tables *t, struct arena *m, const struct vision_config *c, int64_t images) {
    t->index = arena_tensor1(m, I32, images * vision_rows(c));
    t->offsets = arena_tensor1(m, I64, images + 1);
}

void vit_tables_fill(struct vit_tables *t, struct backend *be, const struct vision_config *c) {
    int64_t R = vision_rows(c), N = t->index.dim[0], images = t->offsets.dim[0];
    int32_t *index = mem_alloc((size_t)N * sizeof *index);
    int64_t *offsets = mem_alloc((size_t)images * sizeof *offsets);
    for (int64_t i = 0; i < N; i++) index[i] = (int32_t)(i % R);
    for (int64_t i = 0; i < images; i++) offsets[i] = i * R;
    backend_upload(be, &t->index, index);
    backend_upload(be, &t->offsets, offsets);
    free(index), free(offsets);
}

void vit_load(struct vit *v, struct weights *w, const struct vision_config *c, const char *prefix) {
    char *patch = mem_format("%s.embeddings.patch_embedding", prefix);
    char *class_token = mem_format("%s.embeddings.class_embedding", prefix);
    char *positions = mem_format("%s.embeddings.position_embedding.weight", prefix);
    char *norm = mem_format("%s.pre_layrnorm", prefix); // spelled so in every checkpoint
    if (!v->blocks) v->blocks = mem_alloc((size_t)c->layers * sizeof *v->blocks);
    v->layers = c->layers;
    struct quantize_on_load kept = w->quantize;
    w->quantize.type = F32; // a convolution is never quantised
    weights_linear(w, &v->patch, patch, c->dim, 3 * c->patch * c->patch, c->patch_bias);
    w->quantize = kept;
    if (c->class_token) weights_vector(w, &v->class_token, class_token, c->dim);
    weights_matrix(w, &v->positions, positions, vision_rows(c), c->dim);
    if (c->pre_norm) weights_norm(w, &v->norm, &v->bias, norm, c->dim);
    for (int64_t i = 0; i < c->layers; i++) load_block(&v->blocks[i], w, c, prefix, i);
    free(patch), free(class_token), free(positions), free(norm);
}

static void free_path(struct linear *l, void *arg) {
    (void)arg;
    free((char *)l->path);
}

void vit_free(struct vit *v) {
    vit_linears(v, free_path, NULL);
    free((char *)v->patch.path);
    free(v->blocks);
}

void vit_linears(struct vit *v, void (*f)(struct linear *l, void *arg), void *arg) {
    for (int64_t i = 0; v->blocks && i < v->layers; i++) {
        struct vit_block *b = &v->blocks[i];
        struct linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->fc1, &b->fc2};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) f(all[j], arg);
    }
}

bool vit_block_is_trained(const struct vit_block *b) {
    const struct linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->fc1, &b->fc2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (linear_is_trained(all[i])) return true;
    return b->gnorm1.data || b->gbias1.data || b->gnorm2.data || b->gbias2.data;
}

static void block_layout(struct vit_block_acts *a, struct arena *m, const struct vit_block *b,
                         const struct vision_config *c, int64_t N, enum dtype act) {
    int64_t C = c->dim, F = c->ffn, H = c->heads, D = C / H;
    a->input = arena_tensor2(m, act, N, C);
    a->norm1 = arena_tensor2(m, act, N, C);
    a->mean1 = arena_tensor1(m, F32, N);
    a->rstd1 = arena_tensor1(m, F32, N);
    a->q = arena_tensor3(m, act, N, H, D);
    a->k = arena_tensor3(m, act, N, H, D);
    a->v = arena_tensor3(m, act, N, H, D);
    a->attended = arena_tensor3(m, act, N, H, D);
    a->lse = arena_tensor2(m, F32, N, H);
    a->middle = arena_tensor2(m, act, N, C);
    a->norm2 = arena_tensor2(m, act, N, C);
    a->mean2 = arena_tensor1(m, F32, N);
    a->rstd2 = arena_tensor1(m, F32, N);
    a->hidden = arena_tensor2(m, act, N, F);
    a->active = arena_tensor2(m, act, N, F);
    linear_acts_layout(&a->lq, m, &b->q, N, act);
    linear_acts_layout(&a->lk, m, &b->k, N, act);
    linear_acts_layout(&a->lv, m, &b->v, N, act);
    linear_acts_layout(&a->lo, m, &b->o, N, act);
    linear_acts_layout(&a->lfc1, m, &b->fc1, N, act);
    linear_acts_layout(&a->lfc2, m, &b->fc2, N, act);
}

static int64_t first_trained(const struct vit *v, const struct vision_config *c) {
    for (int64_t i = 0; i < c->used_layers; i++)
        if (vit_block_is_trained(&v->blocks[i])) return i;
    return c->used_layers;
}

void vit_acts_layout(struct vit_acts *a, struct arena *m, const struct vit *v, const struct vision_config *c,
                     const struct vit_tables *t, int64_t images, enum dtype act, bool keep) {
    int64_t N = images * vision_rows(c);
    if (!a->blocks) a->blocks = mem_alloc((size_t)c->used_layers * sizeof *a->blocks);
    a->first_trained = keep ? first_trained(v, c) : c->used_layers;
    a->out = arena_tensor2(m, act, N, c->dim);
    a->index = tensor_rows(&t->index, 0, N);
    a->offsets = tensor_rows(&t->offsets, 0, images + 1);
    size_t mark = m->used;
    for (int64_t i = 0; i < c->used_layers; i++) {
        if (i <= a->first_trained) m->used = mark; // nobody looks back at the layers below: they share
        block_layout(&a->blocks[i], m, &v->blocks[i], c, N, act);
    }
}

void vit_acts_free(struct vit_acts *a) {
    free(a->blocks);
    a->blocks = NULL;
}

static struct tensor flat(const struct tensor *t) { return tensor_as2(t, t->dim[0], t->dim[1] * t->dim[2]); }

static struct attention attention_of(const struct vit_acts *a, const struct vision_config *c) {
    return (struct attention){.q_offsets = &a->offsets,
                              .kv_offsets = &a->offsets,
                              .sequences = a->offsets.dim[0] - 1,
                              .max_q = vision_rows(c),
                              .max_kv = vision_rows(c),
                              .scale = 1.0f / sqrtf((float)(c->dim / c->heads))};
}

/* y may lie in a->input: it is written last. */
static void block_forward(const struct pass *p, struct vit_block_acts *a, const struct tensor *y,
                          const struct vit_block *b, const struct vision_config *c, const struct attention *attention) {
    struct backend *be = p->be;
    struct tensor q = flat(&a->q), k = flat(&a->k), v = flat(&a->v), attended = flat(&a->attended);
    op_layernorm_forward(be, &a->norm1, &a->mean1, &a->rstd1, &a->input, &b->norm1, &b->bias1, c->eps);  // 1
    linear_forward(p, &a->lq, &q, &a->norm1, &b->q);                                                     // 2
    linear_forward(p, &a->lk, &k, &a->norm1, &b->k);                                                     // 3
    linear_forward(p, &a->lv, &v, &a->norm1, &b->v);                                                     // 4
    op_attention_forward(be, &a->attended, &a->lse, &a->q, &a->k, &a->v, attention);                     // 5
    linear_forward(p, &a->lo, &a->middle, &attended, &b->o);                                             // 6
    op_add(be, &a->middle, &a->middle, &a->input);                                                       // 7
    op_layernorm_forward(be, &a->norm2, &a->mean2, &a->rstd2, &a->middle, &b->norm2, &b->bias2, c->eps); // 8
    linear_forward(p, &a->lfc1, &a->hidden, &a->norm2, &b->fc1);                                         // 9
    op_act_forward(be, &a->active, &a->hidden, c->act);                                                  // 10
    linear_forward(p, &a->lfc2, y, &a->active, &b->fc2);                                                 // 11
    op_add(be, y, y, &a->middle);                                                                        // 12
}

static const struct tensor *or_null(const struct tensor *g) { return g->data ? g : NULL; }

/* dx: gradient of y -> gradient of the block's input (unless needs_dx is false). */
static void block_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct vit_block_acts *a,
                           const struct vit_block *b, const struct vision_config *c,
                           const struct attention *attention) {
    struct backend *be = p->be;
    int64_t N = dx->dim[0], H = c->heads, D = c->dim / H;
    size_t mark = p->scratch->used;
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, N, c->dim);
    struct tensor dhidden = arena_tensor2(p->scratch, dx->type, N, c->ffn);
    struct tensor da = arena_tensor3(p->scratch, dx->type, N, H, D), dq = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dk = arena_tensor3(p->scratch, dx->type, N, H, D), dv = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor delta = arena_tensor2(p->scratch, F32, N, H), attended = flat(&a->attended);
    struct tensor flat_da = flat(&da), flat_dq = flat(&dq), flat_dk = flat(&dk), flat_dv = flat(&dv);
    bool norm = needs_dx || b->gnorm1.data || b->gbias1.data;

    linear_backward(p, &dhidden, 0, dx, &a->active, &a->lfc2, &b->fc2);    // 11'
    op_act_backward(be, &dhidden, &dhidden, &a->hidden, c->act);           // 10'
    linear_backward(p, &dnorm, 0, &dhidden, &a->norm2, &a->lfc1, &b->fc1); // 9'
    op_layernorm_backward_add(be, dx, or_null(&b->gnorm2), or_null(&b->gbias2), &dnorm, &a->middle, &a->mean2,
                              &a->rstd2, &b->norm2);               // 8'
    linear_backward(p, &flat_da, 0, dx, &attended, &a->lo, &b->o); // 6'
    op_attention_backward(be, &dq, &dk, &dv, &delta, &da, &a->attended, &a->lse, &a->q, &a->k, &a->v,
                          attention);                                                // 5'
    linear_backward(p, norm ? &dnorm : NULL, 0, &flat_dv, &a->norm1, &a->lv, &b->v); // 4'
    linear_backward(p, norm ? &dnorm : NULL, 1, &flat_dk, &a->norm1, &a->lk, &b->k); // 3'
    linear_backward(p, norm ? &dnorm : NULL, 1, &flat_dq, &a->norm1, &a->lq, &b->q); // 2'
    if (norm)
        op_layernorm_backward_add(be, dx, or_null(&b->gnorm1), or_null(&b->gbias1), &dnorm, &a->input, &a->mean1,
                                  &a->rstd1, &b->norm1); // 1'
    p->scratch->used = mark;
}

/* The patches of a picture: a convolution whose stride is its width, as a product. y (P,C). */
static void embed_patches(const struct pass *p, const struct tensor *y, const struct vit *v,
                          const struct vision_config *c, const struct batch_image *image) {
    int64_t S = c->image_size;
    size_t mark = p->scratch->used;
    struct tensor pixels = arena_tensor3(p->scratch, F32, 1, 3, S * S);
    struct tensor patches = arena_tensor2(p->scratch, p->act, y->dim[0], 3 * c->patch * c->patch);
    struct linear_acts none;
    backend_upload(p->be, &pixels, image ? image->pixels : NULL);
    op_patchify(p->be, &patches, &pixels, S, S, c->patch);
    linear_forward(p, &none, y, &patches, &v->patch);
    p->scratch->used = mark;
}

/* y (1,C): the learned row; its index in a table of one is 0, as is its position. */
static void embed_class_token(const struct pass *p, const struct tensor *y, const struct vit *v,
                              const struct vit_acts *a) {
    struct tensor table = tensor_as2(&v->class_token, 1, y->dim[1]), zero = tensor_rows(&a->index, 0, 1);
    op_embed_forward(p->be, y, &table, &zero);
}

/* Pictures to the first block's input: the class token, if there is one, then the patches; positions; the norm. */
static void embed(const struct pass *p, struct vit_acts *a, const struct vit *v, const struct vision_config *c,
                  const struct batch_image *images, int64_t n) {
    int64_t R = vision_rows(c), P = vision_patches(c), C = c->dim;
    size_t mark = p->scratch->used;
    struct tensor *input = &a->blocks[0].input;
    struct tensor x = c->pre_norm ? arena_tensor2(p->scratch, p->act, n * R, C) : *input;
    for (int64_t i = 0; i < n; i++) {
        struct tensor first = tensor_rows(&x, i * R, 1), patches = tensor_rows(&x, i * R + R - P, P);
        if (c->class_token) embed_class_token(p, &first, v, a);
        embed_patches(p, &patches, v, c, images ? &images[i] : NULL);
    }
    op_add_rows(p->be, &x, &v->positions, &a->index);
    if (c->pre_norm) {
        struct tensor mean = arena_tensor1(p->scratch, F32, n * R), rstd = arena_tensor1(p->scratch, F32, n * R);
        op_layernorm_forward(p->be, input, &mean, &rstd, &x, &v->norm, &v->bias, c->eps);
    }
    p->scratch->used = mark;
}

void vit_forward(const struct pass *p, struct vit_acts *a, const struct vit *v, const struct vision_config *c,
                 const struct batch_image *images, int64_t n) {
    struct attention attention = attention_of(a, c);
    embed(p, a, v, c, images, n);
    for (int64_t i = 0; i < c->used_layers; i++) {
        const struct tensor *y = i + 1 < c->used_layers ? &a->blocks[i + 1].input : &a->out;
        block_forward(p, &a->blocks[i], y, &v->blocks[i], c, &attention);
    }
}

void vit_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                  const struct vision_config *c) {
    struct attention attention = attention_of(a, c);
    for (int64_t i = c->used_layers - 1; i >= a->first_trained; i--)
        block_backward(p, dx, i > a->first_trained, &a->blocks[i], &v->blocks[i], c, &attention);
}

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

static int32_t *numbers_in_order(int64_t n) {
    int32_t *numbers = mem_alloc((size_t)n * sizeof *numbers);
    for (int64_t i = 0; i < n; i++) numbers[i] = (int32_t)i;
    return numbers;
}

void vit_load(struct vit *v, struct weights *w, const struct vision_config *c, const char *prefix) {
    char *patch = mem_format("%s.embeddings.patch_embedding", prefix);
    char *class_token = mem_format("%s.embeddings.class_embedding", prefix);
    char *positions = mem_format("%s.embeddings.position_embedding.weight", prefix);
    char *norm = mem_format("%s.pre_layrnorm", prefix); // spelled so in every checkpoint
    char *post = mem_format("%s.post_layernorm", prefix);
    if (!v->blocks) v->blocks = mem_alloc((size_t)c->layers * sizeof *v->blocks);
    if (!v->in_order) v->in_order = numbers_in_order(vision_rows(c));
    v->layers = c->layers;
    struct quantize_on_load kept = w->quantize;
    w->quantize.type = F32; // a convolution is never quantised
    weights_linear(w, &v->patch, patch, c->dim, 3 * c->patch * c->patch, c->patch_bias);
    w->quantize = kept;
    if (c->class_token) weights_vector(w, &v->class_token, class_token, c->dim);
    weights_matrix(w, &v->positions, positions, vision_rows(c), c->dim);
    if (c->pre_norm) weights_norm(w, &v->norm, &v->bias, norm, c->dim);
    for (int64_t i = 0; i < c->layers; i++) load_block(&v->blocks[i], w, c, prefix, i);
    if (c->post_norm) weights_norm(w, &v->post_norm, &v->post_bias, post, c->dim);
    free(patch), free(class_token), free(positions), free(norm), free(post);
}

static void free_path(struct linear *l, void *arg) {
    (void)arg;
    free((char *)l->path);
}

void vit_free(struct vit *v) {
    vit_linears(v, free_path, NULL);
    free((char *)v->patch.path);
    free(v->blocks), free(v->in_order);
}

void vit_linears(struct vit *v, void (*f)(struct linear *l, void *arg), void *arg) {
    for (int64_t i = 0; v->blocks && i < v->layers; i++) {
        struct vit_block *b = &v->blocks[i];
        struct linear *all[] = {&b->q, &b->k, &b->v, &b->o, &b->fc1, &b->fc2};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) f(all[j], arg);
    }
}

static bool block_is_trained(const struct vit_block *b) {
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

static bool embedding_is_trained(const struct vit *v) {
    return linear_is_trained(&v->patch) || v->gpositions.data || v->gclass_token.data || v->gnorm.data || v->gbias.data;
}

static int64_t first_trained(const struct vit *v, const struct vision_config *c) {
    if (embedding_is_trained(v)) return 0;
    for (int64_t i = 0; i < c->used_layers; i++)
        if (block_is_trained(&v->blocks[i])) return i;
    return c->used_layers;
}

bool vit_is_trained(const struct vit *v, const struct vision_config *c) {
    return first_trained(v, c) < c->used_layers || v->gpost_norm.data || v->gpost_bias.data;
}

int64_t vit_rows(const struct vision_config *c, const struct batch_image *image) {
    return (image->height / c->patch) * (image->width / c->patch) + (c->class_token ? 1 : 0);
}

void vit_acts_layout(struct vit_acts *a, struct arena *m, const struct vit *v, const struct vision_config *c,
                     const struct vit_size *size, enum dtype act, bool keep) {
    int64_t N = size->rows;
    if (!a->blocks) a->blocks = mem_alloc((size_t)c->used_layers * sizeof *a->blocks);
    a->size = *size;
    a->first_trained = keep ? first_trained(v, c) : c->used_layers;
    a->embedding_trained = keep && embedding_is_trained(v);
    a->index = arena_tensor1(m, I32, N);
    a->offsets = arena_tensor1(m, I64, size->images + 1);
    if (c->pre_norm) {
        a->embedded = arena_tensor2(m, act, N, c->dim);
        a->mean = arena_tensor1(m, F32, N);
        a->rstd = arena_tensor1(m, F32, N);
    }
    if (c->post_norm) {
        a->last = arena_tensor2(m, act, N, c->dim);
        a->post_mean = arena_tensor1(m, F32, N);
        a->post_rstd = arena_tensor1(m, F32, N);
    }
    size_t mark = m->used, after = mark;
    for (int64_t i = 0; i < c->used_layers; i++) {
        if (i <= a->first_trained) m->used = mark; // nobody looks back at the layers below: they share
        block_layout(&a->blocks[i], m, &v->blocks[i], c, N, act);
        if (m->used > after) after = m->used;
    }
    m->used = after;
}

void vit_acts_free(struct vit_acts *a) {
    free(a->blocks);
    a->blocks = NULL;
}

static struct tensor flat(const struct tensor *t) { return tensor_as2(t, t->dim[0], t->dim[1] * t->dim[2]); }

static struct attention attention_of(const struct vit_acts *a, const struct vision_config *c) {
    return (struct attention){.q_offsets = &a->offsets,
                              .kv_offsets = &a->offsets,
                              .sequences = a->size.images,
                              .max_q = a->size.longest,
                              .max_kv = a->size.longest,
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

/* dx: gradient of y -> gradient of the block's input (unless needs_dx is false). active becomes its own gradient, then
 * that of hidden. */
static void block_backward(const struct pass *p, const struct tensor *dx, bool needs_dx, struct vit_block_acts *a,
                           const struct vit_block *b, const struct vision_config *c,
                           const struct attention *attention) {
    struct backend *be = p->be;
    int64_t N = dx->dim[0], H = c->heads, D = c->dim / H;
    size_t mark = p->scratch->used;
    struct tensor dnorm = arena_tensor2(p->scratch, dx->type, N, c->dim);
    const struct tensor *dhidden = &a->active;
    struct tensor da = arena_tensor3(p->scratch, dx->type, N, H, D), dq = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor dk = arena_tensor3(p->scratch, dx->type, N, H, D), dv = arena_tensor3(p->scratch, dx->type, N, H, D);
    struct tensor delta = arena_tensor2(p->scratch, F32, N, H), attended = flat(&a->attended);
    struct tensor flat_da = flat(&da), flat_dq = flat(&dq), flat_dk = flat(&dk), flat_dv = flat(&dv);
    bool norm = needs_dx || b->gnorm1.data || b->gbias1.data;

    linear_backward(p, dhidden, 0, dx, &a->active, &a->lfc2, &b->fc2);    // 11'
    op_act_backward(be, dhidden, dhidden, &a->hidden, c->act);            // 10'
    linear_backward(p, &dnorm, 0, dhidden, &a->norm2, &a->lfc1, &b->fc1); // 9'
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

/* patches (P,3*p*p) of a picture; NULL in a dry pass. */
static void cut_patches(const struct pass *p, const struct tensor *patches, const struct vision_config *c,
                        const struct batch_image *image) {
    int64_t P = patches->dim[0], height = image ? image->height : c->patch, width = image ? image->width : P * c->patch;
    if (!image && !c->any_size) height = width = c->image_size;
    size_t mark = p->scratch->used;
    struct tensor pixels = arena_tensor3(p->scratch, F32, 1, 3, height * width);
    backend_upload(p->be, &pixels, image ? image->pixels : NULL);
    op_patchify(p->be, patches, &pixels, height, width, c->patch);
    p->scratch->used = mark;
}

/* A convolution whose stride is its width, as a product. y (P,C). */
static void embed_patches(const struct pass *p, const struct tensor *y, const struct vit *v,
                          const struct vision_config *c, const struct batch_image *image) {
    size_t mark = p->scratch->used;
    struct tensor patches = arena_tensor2(p->scratch, p->act, y->dim[0], 3 * c->patch * c->patch);
    struct linear_acts none;
    cut_patches(p, &patches, c, image);
    linear_forward(p, &none, y, &patches, &v->patch);
    p->scratch->used = mark;
}

/* y (1,C): the learned row; its index in a table of one is 0, as is its position. */
static void embed_class_token(const struct pass *p, const struct tensor *y, const struct vit *v,
                              const struct vit_acts *a) {
    struct tensor table = tensor_as2(&v->class_token, 1, y->dim[1]), zero = tensor_rows(&a->index, 0, 1);
    op_embed_forward(p->be, y, &table, &zero);
}

static void upload_tables(const struct pass *p, struct vit_acts *a, const struct vit *v,
                          const struct batch_image *images, const int64_t *offsets) {
    for (int64_t i = 0; i < a->size.images; i++) {
        struct tensor index = tensor_rows(&a->index, offsets[i], offsets[i + 1] - offsets[i]);
        backend_upload(p->be, &index, images[i].patch_positions ? images[i].patch_positions : v->in_order);
    }
    backend_upload(p->be, &a->offsets, offsets);
}

/* The rows of x that picture i takes; in a dry pass each is as large as the largest, as far as there are rows. */
static struct tensor rows_of(const struct tensor *x, const struct vit_acts *a, const int64_t *offsets, int64_t i) {
    if (offsets) return tensor_rows(x, offsets[i], offsets[i + 1] - offsets[i]);
    return tensor_rows(x, 0, a->size.longest);
}

/* Pictures to the first block's input: the class token, if there is one, then the patches; positions; the norm. */
static void embed(const struct pass *p, struct vit_acts *a, const struct vit *v, const struct vision_config *c,
                  const struct batch_image *images, const int64_t *offsets) {
    int64_t before = c->class_token ? 1 : 0;
    const struct tensor *input = &a->blocks[0].input, x = c->pre_norm ? a->embedded : *input;
    for (int64_t i = 0; i < a->size.images; i++) {
        struct tensor rows = rows_of(&x, a, offsets, i), first = tensor_rows(&rows, 0, 1);
        struct tensor patches = tensor_rows(&rows, before, rows.dim[0] - before);
        if (c->class_token) embed_class_token(p, &first, v, a);
        embed_patches(p, &patches, v, c, images ? &images[i] : NULL);
    }
    op_add_rows(p->be, &x, &v->positions, &a->index);
    if (c->pre_norm) op_layernorm_forward(p->be, input, &a->mean, &a->rstd, &x, &v->norm, &v->bias, c->eps);
}

void vit_forward(const struct pass *p, struct vit_acts *a, const struct tensor *out, const struct vit *v,
                 const struct vision_config *c, const struct batch_image *images, const int64_t *offsets) {
    struct attention attention = attention_of(a, c);
    const struct tensor *last = c->post_norm ? &a->last : out;
    if (images) upload_tables(p, a, v, images, offsets);
    embed(p, a, v, c, images, offsets);
    for (int64_t i = 0; i < c->used_layers; i++) {
        const struct tensor *y = i + 1 < c->used_layers ? &a->blocks[i + 1].input : last;
        block_forward(p, &a->blocks[i], y, &v->blocks[i], c, &attention);
    }
    if (c->post_norm)
        op_layernorm_forward(p->be, out, &a->post_mean, &a->post_rstd, last, &v->post_norm, &v->post_bias, c->eps);
}

/* One picture of it: gradients of the class token and the convolution. dx (R,C). */
static void embed_one_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                               const struct vision_config *c, const struct batch_image *image) {
    int64_t before = c->class_token ? 1 : 0;
    size_t mark = p->scratch->used;
    struct tensor first = tensor_rows(dx, 0, 1), rows = tensor_rows(dx, before, dx->dim[0] - before);
    if (v->gclass_token.data) {
        struct tensor table = tensor_as2(&v->gclass_token, 1, c->dim), zero = tensor_rows(&a->index, 0, 1);
        op_embed_backward(p->be, &table, &first, &zero);
    }
    if (linear_is_trained(&v->patch)) {
        struct tensor patches = arena_tensor2(p->scratch, p->act, rows.dim[0], 3 * c->patch * c->patch);
        struct linear_acts none = {0};
        cut_patches(p, &patches, c, image);
        linear_backward(p, NULL, 0, &rows, &patches, &none, &v->patch);
    }
    p->scratch->used = mark;
}

/* dx (N,C): gradient of the first block's input. */
static void embed_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                           const struct vision_config *c, const struct batch_image *images, const int64_t *offsets) {
    size_t mark = p->scratch->used;
    struct tensor dembedded = *dx;
    if (c->pre_norm) {
        dembedded = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
        op_zero(p->be, &dembedded);
        op_layernorm_backward_add(p->be, &dembedded, or_null(&v->gnorm), or_null(&v->gbias), dx, &a->embedded, &a->mean,
                                  &a->rstd, &v->norm);
    }
    if (v->gpositions.data) op_embed_backward(p->be, &v->gpositions, &dembedded, &a->index);
    for (int64_t i = 0; i < a->size.images; i++) {
        struct tensor one = rows_of(&dembedded, a, offsets, i);
        embed_one_backward(p, &one, a, v, c, images ? &images[i] : NULL);
    }
    p->scratch->used = mark;
}

void vit_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                  const struct vision_config *c, const struct batch_image *images, const int64_t *offsets) {
    struct attention attention = attention_of(a, c);
    size_t mark = p->scratch->used;
    struct tensor dlast = *dx;
    if (c->post_norm) {
        dlast = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
        op_zero(p->be, &dlast);
        op_layernorm_backward_add(p->be, &dlast, or_null(&v->gpost_norm), or_null(&v->gpost_bias), dx, &a->last,
                                  &a->post_mean, &a->post_rstd, &v->post_norm);
    }
    for (int64_t i = c->used_layers - 1; i >= a->first_trained; i--)
        block_backward(p, &dlast, i > a->first_trained || a->embedding_trained, &a->blocks[i], &v->blocks[i], c,
                       &attention);
    if (a->embedding_trained) embed_backward(p, &dlast, a, v, c, images, offsets);
    p->scratch->used = mark;
}

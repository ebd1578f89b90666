/* The vision towers: SigLIP (Zhai et al., 2023) and CLIP (Radford et al., 2021) as mllava uses them, and Idefics2's
 * SigLIP for pictures of any size (NaViT, Dehghani et al., 2023). Patches of a picture, learned positions, layers of
 * LayerNorm, full attention within the picture and an ungated feed-forward, all with biases. CLIP has a class token
 * before the patches and a norm before the first layer. mllava's feature is the output of an inner layer without the
 * final norm, Idefics2's that of the last one with it.
 *
 * Pictures lie end to end as rows: P patches of a picture, R rows of it (P, and the class token where there is one), N
 * rows of all, n pictures, C channels, F ffn, H heads. */
#ifndef MODEL_VIT_H
#define MODEL_VIT_H

#include "model/config.h"
#include "model/linear.h"
#include "model/weights.h"

struct vit_block {
    struct tensor norm1, bias1, gnorm1, gbias1; // (C)
    struct linear q, k, v, o;                   // (C,C)
    struct tensor norm2, bias2, gnorm2, gbias2; // (C)
    struct linear fc1, fc2;                     // (F,C) (C,F)
};

struct vit {
    struct linear patch;                     // (C,3*p*p): the convolution as a product
    struct tensor class_token, gclass_token; // (C), CLIP
    struct tensor positions, gpositions;     // (R,C) of a picture of the one known size, or of the learned grid
    struct tensor norm, bias, gnorm, gbias;  // (C), CLIP: before the first block
    struct vit_block *blocks;                // (layers): all are loaded, the first used_layers run
    struct tensor post_norm, gpost_norm;     // (C), Idefics2: after the last block
    struct tensor post_bias, gpost_bias;     // (C)
    int64_t layers;
    int32_t *in_order; // (R) on the host: 0, 1, 2, ...
};

/* The pictures of one pass. */
struct vit_size {
    int64_t images, rows; // n, N
    int64_t longest;      // R of the largest picture
};

struct vit_block_acts {
    struct tensor input;               // (N,C)
    struct tensor norm1, mean1, rstd1; // (N,C) (N) (N)
    struct tensor q, k, v;             // (N,H,D)
    struct tensor attended, lse;       // (N,H,D) (N,H)
    struct tensor middle;              // (N,C)
    struct tensor norm2, mean2, rstd2; // (N,C) (N) (N)
    struct tensor hidden, active;      // (N,F)
    struct linear_acts lq, lk, lv, lo, lfc1, lfc2;
};

struct vit_acts {
    struct vit_size size;
    struct tensor embedded, mean, rstd; // (N,C) (N) (N), CLIP: what the first norm sees
    struct vit_block_acts *blocks;      // (used layers): the same one over and over when nothing is trained below
    struct tensor last;                 // (N,C), post_norm: output of the last block
    struct tensor post_mean, post_rstd; // (N)
    struct tensor index;                // (N) I32: where each row stands in the table of positions
    struct tensor offsets;              // (n+1) I64: where each picture begins
    bool embedding_trained;             // the backward goes down to the patches
    int64_t first_trained;              // layers below it need no backward; used_layers: none is trained
};

/* Rows that a picture takes. */
int64_t vit_rows(const struct vision_config *c, const struct batch_image *image);

void vit_load(struct vit *v, struct weights *w, const struct vision_config *c, const char *prefix);
void vit_free(struct vit *v);
void vit_linears(struct vit *v, void (*f)(struct linear *l, void *arg), void *arg);
bool vit_is_trained(const struct vit *v, const struct vision_config *c); // something of it takes a gradient

/* keep: acts of the trained layers are kept for vit_backward. */
void vit_acts_layout(struct vit_acts *a, struct arena *m, const struct vit *v, const struct vision_config *c,
                     const struct vit_size *size, enum dtype act, bool keep);
void vit_acts_free(struct vit_acts *a);

/* out (N,C): the feature of every row. images (n) lie on the host, and so do offsets (n+1), where each begins; both
 * NULL in a dry pass. */
void vit_forward(const struct pass *p, struct vit_acts *a, const struct tensor *out, const struct vit *v,
                 const struct vision_config *c, const struct batch_image *images, const int64_t *offsets);

/* dx (N,C): gradient of out on entry; what is left in it afterwards has no meaning. */
void vit_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                  const struct vision_config *c, const struct batch_image *images, const int64_t *offsets);

#endif

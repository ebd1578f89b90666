/* The vision towers of SigLIP (Zhai et al., 2023) and CLIP (Radford et al., 2021), as far as mllava uses them: patches
 * of one picture size, learned positions, layers of LayerNorm, full attention and an ungated feed-forward, all with
 * biases. CLIP has a class token before the patches and a norm before the first layer. The feature is the output of an
 * inner layer without the final norm.
 *
 * P patches of a picture, R rows of a picture (P, and the class token where there is one), n pictures, C channels, F
 * ffn, H heads. */
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
    struct linear patch;       // (C,3*p*p): the convolution as a product
    struct tensor class_token; // (C), CLIP
    struct tensor positions;   // (R,C)
    struct tensor norm, bias;  // (C), CLIP: before the first block
    struct vit_block *blocks;  // (layers): all are loaded, the first used_layers run
    int64_t layers;
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
    struct vit_block_acts *blocks; // (used layers): the same one over and over when nothing is trained below
    struct tensor out;             // (n*R,C)
    struct tensor index, offsets;  // of vit_tables, as many as there are pictures
    int64_t first_trained;         // layers below it need no backward; used_layers: none is trained
};

/* What every pass over at most `images` pictures reads: laid out and filled once. */
struct vit_tables {
    struct tensor index;   // (images*R) I32: position of each row in its picture
    struct tensor offsets; // (images+1) I64: where each picture begins
};
void vit_tables_layout(struct vit_tables *t, struct arena *m, const struct vision_config *c, int64_t images);
void vit_tables_fill(struct vit_tables *t, struct backend *be, const struct vision_config *c);

void vit_load(struct vit *v, struct weights *w, const struct vision_config *c, const char *prefix);
void vit_free(struct vit *v);
void vit_linears(struct vit *v, void (*f)(struct linear *l, void *arg), void *arg);
bool vit_block_is_trained(const struct vit_block *b);

/* keep: acts of the trained layers are kept for vit_backward. images: of one pass. */
void vit_acts_layout(struct vit_acts *a, struct arena *m, const struct vit *v, const struct vision_config *c,
                     const struct vit_tables *t, int64_t images, enum dtype act, bool keep);
void vit_acts_free(struct vit_acts *a);

/* pixels: (n) pictures of (3,S,S) on the host. The feature is a->out. */
void vit_forward(const struct pass *p, struct vit_acts *a, const struct vit *v, const struct vision_config *c,
                 const struct batch_image *images, int64_t n);

/* dx (n*R,C): gradient of a->out on entry; what is left in it afterwards has no meaning. */
void vit_backward(const struct pass *p, const struct tensor *dx, struct vit_acts *a, const struct vit *v,
                  const struct vision_config *c);

#endif

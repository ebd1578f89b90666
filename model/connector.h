/* Idefics2's way from patches to the language model: a gated feed-forward on every patch, then a perceiver resampler
 * (Jaegle et al., 2021; Alayrac et al., 2022): learned latents that look, layer after layer, at a picture's patches and
 * at themselves. Each picture gives L rows, whatever its size.
 *
 * n pictures, N patches of all end to end, L latents, M = n*L rows of latents, C channels, Cv those of the tower, H
 * heads and K key-value heads of size D, F ffn of the perceiver, G that of the feed-forward on patches. */
#ifndef MODEL_CONNECTOR_H
#define MODEL_CONNECTOR_H

#include "model/config.h"
#include "model/linear.h"
#include "model/weights.h"

struct perceiver_layer {
    struct tensor latents_norm, glatents_norm; // (C)
    struct tensor context_norm, gcontext_norm; // (C)
    struct linear q, k, v, o;                  // (H*D,C) (K*D,C) (K*D,C) (C,H*D)
    struct tensor norm, gnorm;                 // (C)
    struct linear gate, up, down;              // (F,C) (F,C) (C,F)
};

struct connector {
    struct linear gate, up, down;    // (G,Cv) (G,Cv) (C,G)
    struct tensor latents, glatents; // (L,C)
    struct perceiver_layer *layers;  // (depth)
    struct tensor norm, gnorm;       // (C)
    int64_t depth;
};

struct perceiver_acts {
    struct tensor input;           // (M,C)
    struct tensor context_rstd;    // (N)
    struct tensor norm1, rstd1;    // (M,C) (M)
    struct tensor q;               // (M,H,D)
    struct tensor k, v;            // (N+M,K,D)
    struct tensor attended, lse;   // (M,H,D) (M,H)
    struct tensor middle;          // (M,C)
    struct tensor norm2, rstd2;    // (M,C) (M)
    struct tensor gate, up, gated; // (M,F)
    struct linear_acts lq, lk, lv, lo, lgate, lup, ldown;
};

/* Where rows stand. Attention takes its keys from patches and latents of a picture side by side: the mixed rows. */
struct perceiver_places {
    struct tensor patches;        // (N) I32: mixed row of each patch
    struct tensor latents;        // (M) I32: mixed row of each latent
    struct tensor which;          // (M) I32: which of the learned latents each one is
    struct tensor offsets, mixed; // (n+1) I64: where each picture begins, of latents and of mixed rows
    int64_t images, longest;      // longest: patches of the largest picture
};

struct connector_acts {
    struct perceiver_places places;
    struct tensor gate, up;        // (N,G)
    struct tensor context;         // (N,C)
    struct perceiver_acts *layers; // (depth)
    struct tensor last, rstd;      // (M,C) (M): of the last layer
    struct linear_acts lgate, lup, ldown;
};

void connector_load(struct connector *c, struct weights *w, const struct model_config *config, const char *prefix);
void connector_free(struct connector *c);
void connector_linears(struct connector *c, void (*f)(struct linear *l, void *arg), void *arg);
bool connector_is_trained(const struct connector *c);

/* rows N of so many pictures; keep: acts are kept for connector_backward, else the layers share theirs. */
void connector_acts_layout(struct connector_acts *a, struct arena *m, const struct connector *c,
                           const struct model_config *config, int64_t images, int64_t rows, int64_t longest,
                           enum dtype act, bool keep);
void connector_acts_free(struct connector_acts *a);

/* Fills the places. offsets (n+1): where each picture's patches begin. host32 (N or M, the larger) and host64 (n+1) are
 * staging. */
void connector_upload(struct connector_acts *a, struct backend *be, int64_t latents, const int64_t *offsets,
                      int32_t *host32, int64_t *host64);

/* y (M,C) from x (N,Cv). */
void connector_forward(const struct pass *p, struct connector_acts *a, const struct tensor *y, const struct tensor *x,
                       const struct connector *c, const struct model_config *config);

/* dx (N,Cv) is written, or NULL when nobody needs it. dy (M,C) has no meaning afterwards. */
void connector_backward(const struct pass *p, const struct tensor *dx, const struct tensor *dy,
                        struct connector_acts *a, const struct tensor *x, const struct connector *c,
                        const struct model_config *config);

#endif

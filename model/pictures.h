/* From the pictures of a batch to their rows of the language model's input, and the gradients back: the tower, then
 * what a family has between it and the language model (mllava: a projector of two linear layers; idefics2: the
 * connector). mfuyu has no tower: its patches as they are go through one linear layer, and each is a feature.
 *
 * Where something of it is trained, all pictures of a batch go through that part at once and what the backward wants is
 * kept; a frozen tower below it, and everything in a pass without a backward, takes a few pictures after the others
 * through the same memory.
 *
 * n pictures, N rows of them in the tower, T features of a picture, Cv channels of the tower (mfuyu: the numbers of a
 * patch), C of the text. n*T below stands for N with mfuyu, where T is a picture's own. */
#ifndef MODEL_PICTURES_H
#define MODEL_PICTURES_H

#include "model/connector.h"
#include "model/vit.h"

struct model;
struct workspace;

/* mllava: linear_1, activation, linear_2 on the rows that are features. */
struct projector_acts {
    struct tensor rows;                   // (n*T) I32: which rows of the tower those are
    struct tensor picked, hidden, active; // (n*T,Cv) (n*T,C) (n*T,C)
    struct linear_acts l1, l2;
};

struct picture_acts {
    struct tensor places; // (n*T) I32: rows of the language model's input, of all pictures of the batch
    struct tensor tower;  // (N,Cv)
    struct vit_acts vit;
    struct projector_acts projector;
    struct connector_acts connector;
    struct linear_acts patches; // mfuyu
};

bool pictures_are_trained(const struct model *m);

/* Numbers that are staged on the host for one pass: I32, and I64. */
int64_t pictures_staged32(const struct model *m, const struct batch_limits *l);
int64_t pictures_staged64(const struct batch_limits *l);

/* Tables of a batch, and acts where they are kept. */
void pictures_layout(struct workspace *w, const struct batch *b);
void pictures_upload(struct workspace *w, const struct batch *b);
void pictures_free(struct picture_acts *a);

/* The features of all pictures of the batch overwrite their rows of x. */
void pictures_forward(const struct pass *p, struct workspace *w, const struct tensor *x, const struct batch *b);

/* dx: gradient of x. */
void pictures_backward(const struct pass *p, struct workspace *w, const struct tensor *dx, const struct batch *b);

#endif

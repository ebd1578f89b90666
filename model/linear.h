/* The linear layer: y = x W^T + b with a frozen weight of any type, and an optional low-rank adapter beside it.
 *
 * LoRA (Hu et al., 2021): y += s B A x. DoRA (Liu et al., 2024): y = g * (W x + s B A x) + b with g = m / ||W + s B
 * A||, rows taken one by one and the norm held constant in the backward. Dropout, D, acts on the adapter's input only;
 * with DoRA the scaled part of W x sees it too, as PEFT does: y = W x + (g - 1) W D(x) + g s B A D(x) + b. D(x) is made
 * within the products that read it, forward and backward, and is never in memory, but for DoRA.
 *
 * The adapter's product comes first and the weight's adds to it, forward and backward: a large product takes up what it
 * adds to while it computes, where a small one behind it would wait for memory twice.
 *
 * A gradient tensor whose data is NULL belongs to a parameter that is not trained. */
#ifndef MODEL_LINEAR_H
#define MODEL_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/tensor.h"
#include "kernels/backend.h"

struct lora {
    int64_t rank;
    float scale;   // alpha / r, or alpha / sqrt(r) with rsLoRA
    float dropout; // 0: none
    bool dora;
    uint64_t stream;           // of its dropout masks
    struct tensor A, gA;       // (r,I)
    struct tensor B, gB;       // (O,r)
    struct tensor rounded_A;   // (r,I) BF16: A as products in BF16 round it; data NULL: they read A
    struct tensor rounded_B;   // (O,r) BF16
    struct tensor b, gb;       // (O), lora_bias; data NULL without
    struct tensor m, gm;       // (O), DoRA
    struct tensor norms;       // (O), DoRA: of the rows of W + s B A
    struct tensor g, g_less_1; // (O), DoRA: m / norms, and that minus 1
};

struct linear {
    const char *path;    // of the module in the Hugging Face model, "model.layers.0.self_attn.q_proj"
    struct tensor W, gW; // (O,I)
    struct tensor b, gb; // (O); b.data NULL without bias
    struct lora *lora;   // NULL: no adapter
    bool unused;         // nothing reads its output
};

/* What one pass through the model needs besides the tensors. */
struct pass {
    struct backend *be;
    struct arena *scratch; // released by whoever takes from it
    enum dtype act;        // of activations
    bool train;            // dropout is active, activations are kept
    uint64_t seed;
    uint64_t draw; // number of this micro-batch since the run began: no two draw the same masks
};

/* What forward leaves for backward. */
struct linear_acts {
    struct tensor u; // (N,r) = D(x) A^T
    struct tensor t; // (N,O), DoRA: s B A D(x) + W D(x)
};

void linear_acts_layout(struct linear_acts *a, struct arena *m, const struct linear *l, int64_t N, enum dtype act);
/* The same for a layer whose output is F32 whatever its input is: a head. */
void linear_acts_layout_head(struct linear_acts *a, struct arena *m, const struct linear *l, int64_t N, enum dtype act);

void linear_forward(const struct pass *p, struct linear_acts *a, const struct tensor *y, const struct tensor *x,
                    const struct linear *l);

/* Of forward what backward wants in a, without y. */
void linear_forward_acts(const struct pass *p, struct linear_acts *a, const struct tensor *x, const struct linear *l);

/* dx (N,I) = beta * dx + ..., or NULL when nobody needs it. Wants x and a as forward left them. With beta 0, dx may lie
 * where x does. */
void linear_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dy,
                     const struct tensor *x, const struct linear_acts *a, const struct linear *l);

/* DoRA's norms and factors follow from m, A and B: to be called when those have changed. */
void linear_refresh(struct backend *be, const struct linear *l);

bool linear_is_trained(const struct linear *l); // something of it takes a gradient

#endif

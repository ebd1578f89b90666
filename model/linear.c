#include "model/linear.h"

#include "base/hash.h"
#include "kernels/ops.h"

static void acts_layout(struct linear_acts *a, struct arena *m, const struct linear *l, int64_t N, enum dtype act,
                        enum dtype out) {
    *a = (struct linear_acts){0};
    if (!l->lora) return;
    a->u = arena_tensor2(m, act, N, l->lora->rank);
    if (l->lora->dora) a->t = arena_tensor2(m, out, N, l->W.dim[0]);
}

void linear_acts_layout(struct linear_acts *a, struct arena *m, const struct linear *l, int64_t N, enum dtype act) {
    acts_layout(a, m, l, N, act, act);
}

void linear_acts_layout_head(struct linear_acts *a, struct arena *m, const struct linear *l, int64_t N,
                             enum dtype act) {
    acts_layout(a, m, l, N, act, F32);
}

/* A and B as products read them. */
static const struct tensor *read_A(const struct lora *r) { return r->rounded_A.data ? &r->rounded_A : &r->A; }
static const struct tensor *read_B(const struct lora *r) { return r->rounded_B.data ? &r->rounded_B : &r->B; }

static bool drops(const struct pass *p, const struct lora *r) { return p->train && r->dropout > 0; }

static struct dropout dropout_of(const struct pass *p, const struct lora *r) {
    return (struct dropout){
        .p = r->dropout, .seed = p->seed, .stream = hash_bytes(r->stream, &p->draw, sizeof p->draw)};
}

/* u = A D(x) */
static void down_forward(const struct pass *p, const struct tensor *u, const struct tensor *x, const struct lora *r) {
    const struct dropout d = dropout_of(p, r);
    if (drops(p, r))
        op_matmul_dropout(p->be, u, x, false, read_A(r), true, 1, 0, &d, DROP_A);
    else
        op_matmul(p->be, u, x, false, read_A(r), true, 1, 0);
}

/* gA += du^T D(x), if it is trained; dx = beta * dx + D(du A), unless NULL. */
static void down_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *du,
                          const struct tensor *x, const struct lora *r) {
    const struct dropout d = dropout_of(p, r);
    if (drops(p, r)) {
        if (r->gA.data) op_matmul_dropout(p->be, &r->gA, du, true, x, false, 1, 1, &d, DROP_B);
        if (dx) op_matmul_dropout(p->be, dx, du, false, read_A(r), false, 1, beta, &d, DROP_C);
    } else {
        if (r->gA.data) op_matmul(p->be, &r->gA, du, true, x, false, 1, 1);
        if (dx) op_matmul(p->be, dx, du, false, read_A(r), false, 1, beta);
    }
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* y = W x + b with the magnitude's share; t = s B A D(x) + W D(x). */
static void dora_forward(const struct pass *p, struct linear_acts *a, const struct tensor *y, const struct tensor *x,
                         const struct linear *l) {
    const struct lora *r = l->lora;
    const struct tensor *bias = l->b.data ? &l->b : NULL;
    down_forward(p, &a->u, x, r);
    if (!drops(p, r)) {
        op_matmul(p->be, &a->t, &a->u, false, read_B(r), true, r->scale, 0);
        op_linear_forward(p->be, &a->t, x, &l->W, NULL, 1);
        op_scale_cols(p->be, y, &a->t, &r->g, bias);
        return;
    }
    const struct dropout d = dropout_of(p, r);
    struct tensor xd = arena_tensor2(p->scratch, x->type, x->dim[0], x->dim[1]);
    struct tensor low = arena_tensor2(p->scratch, y->type, y->dim[0], y->dim[1]);
    op_dropout(p->be, &xd, x, &d);
    op_linear_forward(p->be, &a->t, &xd, &l->W, NULL, 0);
    op_linear_forward(p->be, y, x, &l->W, bias, 0);
    op_scale_cols_add(p->be, y, &a->t, &r->g_less_1);
    op_matmul(p->be, &low, &a->u, false, read_B(r), true, r->scale, 0);
    op_scale_cols_add(p->be, y, &low, &r->g);
    op_add(p->be, &a->t, &a->t, &low);
}

void linear_forward(const struct pass *p, struct linear_acts *a, const struct tensor *y, const struct tensor *x,
                    const struct linear *l) {
    const struct lora *r = l->lora;
    const struct tensor *bias = l->b.data ? &l->b : NULL;
    size_t mark = p->scratch->used;
    if (!r) {
        op_linear_forward(p->be, y, x, &l->W, bias, 0);
    } else if (r->dora) {
        dora_forward(p, a, y, x, l);
    } else {
        down_forward(p, &a->u, x, r);                                    // 1  u  = A D(x)
        op_matmul(p->be, y, &a->u, false, read_B(r), true, r->scale, 0); // 2  y  = s B u
        op_linear_forward(p->be, y, x, &l->W, bias, 1);                  // 3  y += W x + b
    }
    if (r && r->b.data) op_bias_add(p->be, y, &r->b, r->scale); // 4  y += s b
    p->scratch->used = mark;
}

void linear_forward_acts(const struct pass *p, struct linear_acts *a, const struct tensor *x, const struct linear *l) {
    const struct lora *r = l->lora;
    size_t mark = p->scratch->used;
    if (r && r->dora) {
        struct tensor y = arena_tensor2(p->scratch, a->t.type, a->t.dim[0], a->t.dim[1]);
        dora_forward(p, a, &y, x, l);
    } else if (r) {
        down_forward(p, &a->u, x, r);
    }
    p->scratch->used = mark;
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* Gradients of A and B from dt, the gradient of s B A D(x); dx, or NULL, = beta * dx + the adapter's share. */
static void adapter_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dt,
                             const struct tensor *x, const struct linear_acts *a, const struct lora *r) {
    struct tensor du = arena_tensor2(p->scratch, a->u.type, a->u.dim[0], a->u.dim[1]);
    if (r->gB.data) op_matmul(p->be, &r->gB, dt, true, &a->u, false, r->scale, 1); // 2'  gB += s dt^T u
    op_matmul(p->be, &du, dt, false, read_B(r), false, r->scale, 0);               // 2'  du  = s dt B
    down_backward(p, dx, beta, &du, x, r);                                         // 1'  gA, dx
}

/* dt: the gradient of W x + s B A D(x). */
static void lora_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dt,
                          const struct tensor *x, const struct linear_acts *a, const struct linear *l) {
    adapter_backward(p, dx, beta, dt, x, a, l->lora);
    if (dx) op_linear_backward(p->be, dx, dt, &l->W, 1); // 3'  dx += dt W
}

/* The magnitude scales the gradient of t; under dropout W x and W D(x) are two products. */
static void dora_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dy,
                          const struct tensor *x, const struct linear_acts *a, const struct linear *l) {
    const struct lora *r = l->lora;
    struct tensor dt = arena_tensor2(p->scratch, dy->type, dy->dim[0], dy->dim[1]);
    if (r->gm.data) op_magnitude_backward(p->be, &r->gm, dy, &a->t, &r->norms);
    op_scale_cols(p->be, &dt, dy, &r->g, NULL);
    if (!dx || !drops(p, r)) {
        lora_backward(p, dx, beta, &dt, x, a, l);
        return;
    }
    const struct dropout d = dropout_of(p, r);
    struct tensor dz = arena_tensor2(p->scratch, dy->type, dy->dim[0], dy->dim[1]);
    struct tensor dxd = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
    adapter_backward(p, dx, beta, &dt, x, a, r);
    op_linear_backward(p->be, dx, dy, &l->W, 1);
    op_scale_cols(p->be, &dz, dy, &r->g_less_1, NULL);
    op_linear_backward(p->be, &dxd, &dz, &l->W, 0);
    op_dropout_add(p->be, dx, &dxd, &d);
}

void linear_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dy,
                     const struct tensor *x, const struct linear_acts *a, const struct linear *l) {
    const struct lora *r = l->lora;
    size_t mark = p->scratch->used;
    if (l->gW.data) op_matmul(p->be, &l->gW, dy, true, x, false, 1, 1);
    if (l->gb.data) op_bias_backward(p->be, &l->gb, dy, 1);
    if (r && r->gb.data) op_bias_backward(p->be, &r->gb, dy, r->scale);
    if (!r && dx)
        op_linear_backward(p->be, dx, dy, &l->W, beta);
    else if (r && r->dora)
        dora_backward(p, dx, beta, dy, x, a, l);
    else if (r)
        lora_backward(p, dx, beta, dy, x, a, l);
    p->scratch->used = mark;
}

void linear_refresh(struct backend *be, const struct linear *l) {
    const struct lora *r = l->lora;
    if (!r || !r->dora) return;
    op_row_norms(be, &r->norms, &l->W, &r->A, &r->B, r->scale);
    op_divide(be, &r->g, &r->m, &r->norms, 0);
    op_divide(be, &r->g_less_1, &r->m, &r->norms, 1);
}

bool linear_is_trained(const struct linear *l) { return l->lora || l->gW.data || l->gb.data; }

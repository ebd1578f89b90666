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

static uint64_t mask_stream(const struct pass *p, const struct lora *r) {
    return hash_bytes(r->stream, &p->draw, sizeof p->draw);
}

/* The adapter's input: x itself, or a dropped-out copy of it in scratch. */
static struct tensor adapter_input(const struct pass *p, const struct tensor *x, const struct lora *r) {
    if (!drops(p, r)) return *x;
    struct tensor xd = arena_tensor2(p->scratch, x->type, x->dim[0], x->dim[1]);
    op_dropout(p->be, &xd, x, r->dropout, p->seed, mask_stream(p, r));
    return xd;
}

/* y = W x + b with the magnitude's share; t = s B A xd + W xd. */
static void dora_forward(const struct pass *p, struct linear_acts *a, const struct tensor *y, const struct tensor *x,
                         const struct tensor *xd, const struct linear *l) {
    const struct lora *r = l->lora;
    const struct tensor *bias = l->b.data ? &l->b : NULL;
    if (!drops(p, r)) {
        op_matmul(p->be, &a->t, &a->u, false, read_B(r), true, r->scale, 0);
        op_linear_forward(p->be, &a->t, xd, &l->W, NULL, 1);
        op_scale_cols(p->be, y, &a->t, &r->g, bias);
        return;
    }
    struct tensor low = arena_tensor2(p->scratch, y->type, y->dim[0], y->dim[1]);
    op_linear_forward(p->be, &a->t, xd, &l->W, NULL, 0);
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
    if (!r) {
        op_linear_forward(p->be, y, x, &l->W, bias, 0);
        return;
    }
    size_t mark = p->scratch->used;
    struct tensor xd = adapter_input(p, x, r);
    op_matmul(p->be, &a->u, &xd, false, read_A(r), true, 1, 0); // 1  u  = A xd
    if (r->dora) {
        dora_forward(p, a, y, x, &xd, l);
    } else {
        op_matmul(p->be, y, &a->u, false, read_B(r), true, r->scale, 0); // 2  y  = s B u
        op_linear_forward(p->be, y, x, &l->W, bias, 1);                  // 3  y += W x + b
    }
    if (r->b.data) op_bias_add(p->be, y, &r->b, r->scale); // 4  y += s b
    p->scratch->used = mark;
}

/* Gradients of A and B from dt, the gradient of s B A xd + W xd; dxd, or NULL, = beta * dxd + the adapter's share. */
static void adapter_backward(const struct pass *p, const struct tensor *dxd, float beta, const struct tensor *dt,
                             const struct tensor *xd, const struct linear_acts *a, const struct lora *r) {
    struct tensor du = arena_tensor2(p->scratch, a->u.type, a->u.dim[0], a->u.dim[1]);
    if (r->gB.data) op_matmul(p->be, &r->gB, dt, true, &a->u, false, r->scale, 1); // 2'  gB += s dt^T u
    op_matmul(p->be, &du, dt, false, read_B(r), false, r->scale, 0);               // 2'  du  = s dt B
    if (r->gA.data) op_matmul(p->be, &r->gA, &du, true, xd, false, 1, 1);          // 1'  gA += du^T xd
    if (dxd) op_matmul(p->be, dxd, &du, false, read_A(r), false, 1, beta);         // 1'  dxd = du A
}

/* dx = beta * dx + dt W + adapter, with the dropout mask around the adapter's share. */
static void lora_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dt,
                          const struct tensor *xd, const struct linear_acts *a, const struct linear *l) {
    const struct lora *r = l->lora;
    if (!dx || !drops(p, r)) {
        adapter_backward(p, dx, beta, dt, xd, a, r);
        if (dx) op_linear_backward(p->be, dx, dt, &l->W, 1); // 3'  dx += dt W
        return;
    }
    struct tensor dxd = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
    adapter_backward(p, &dxd, 0, dt, xd, a, r);
    op_linear_backward(p->be, dx, dt, &l->W, beta);
    op_dropout_add(p->be, dx, &dxd, r->dropout, p->seed, mask_stream(p, r));
}

/* The magnitude scales the gradient of t; under dropout W x and W xd are two products. */
static void dora_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dy,
                          const struct tensor *xd, const struct linear_acts *a, const struct linear *l) {
    const struct lora *r = l->lora;
    struct tensor dt = arena_tensor2(p->scratch, dy->type, dy->dim[0], dy->dim[1]);
    if (r->gm.data) op_magnitude_backward(p->be, &r->gm, dy, &a->t, &r->norms);
    op_scale_cols(p->be, &dt, dy, &r->g, NULL);
    if (!drops(p, r)) {
        lora_backward(p, dx, beta, &dt, xd, a, l);
        return;
    }
    if (!dx) {
        adapter_backward(p, NULL, 0, &dt, xd, a, r);
        return;
    }
    struct tensor dz = arena_tensor2(p->scratch, dy->type, dy->dim[0], dy->dim[1]);
    struct tensor dxd = arena_tensor2(p->scratch, dx->type, dx->dim[0], dx->dim[1]);
    op_linear_backward(p->be, dx, dy, &l->W, beta);
    op_scale_cols(p->be, &dz, dy, &r->g_less_1, NULL);
    adapter_backward(p, &dxd, 0, &dt, xd, a, r);
    op_linear_backward(p->be, &dxd, &dz, &l->W, 1);
    op_dropout_add(p->be, dx, &dxd, r->dropout, p->seed, mask_stream(p, r));
}

void linear_backward(const struct pass *p, const struct tensor *dx, float beta, const struct tensor *dy,
                     const struct tensor *x, const struct linear_acts *a, const struct linear *l) {
    const struct lora *r = l->lora;
    size_t mark = p->scratch->used;
    if (l->gW.data) op_matmul(p->be, &l->gW, dy, true, x, false, 1, 1);
    if (l->gb.data) op_bias_backward(p->be, &l->gb, dy, 1);
    if (r && r->gb.data) op_bias_backward(p->be, &r->gb, dy, r->scale);
    if (!r) {
        if (dx) op_linear_backward(p->be, dx, dy, &l->W, beta);
    } else {
        struct tensor xd = adapter_input(p, x, r);
        if (r->dora)
            dora_backward(p, dx, beta, dy, &xd, a, l);
        else
            lora_backward(p, dx, beta, dy, &xd, a, l);
    }
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

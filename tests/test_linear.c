/* The linear layer with its adapter: gradients against finite differences of its own forward, for LoRA and DoRA, with
 * and without dropout and biases. The layer is linear in x, A (at fixed B), B (at fixed A), m and the biases, so a
 * central difference is exact but for rounding: its error is that of two forwards in F32, divided by the step. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"
#include "kernels/ops.h"
#include "model/linear.h"

enum { N = 9, I = 13, O = 11, R = 3, ROOM = 1 << 16 };

struct layer {
    struct backend *be;
    struct arena arena;
    struct pass pass;
    struct linear linear;
    struct lora lora;
    struct linear_acts acts;
    struct tensor x, y, c; // c (N,O): the gradient of y; the loss is the sum of c * y
};

static struct tensor fill(struct tensor t, const char *stream) {
    float *values = t.data;
    for (int64_t i = 0; i < tensor_count(&t); i++)
        values[i] = (float)(rng_uniform(1, rng_stream(stream), (uint64_t)i) - 0.5);
    return t;
}

/* g and g_less_1 from m and the norms as they stand: the norms are constants of the backward. */
static void scale_by_magnitude(struct layer *l) {
    op_divide(l->be, &l->lora.g, &l->lora.m, &l->lora.norms, 0);
    op_divide(l->be, &l->lora.g_less_1, &l->lora.m, &l->lora.norms, 1);
}

/* All of the layer lies in memory that the host reads and writes too. NULL where there is no such device, unless
 * GRAFT_TEST_DEVICE demands it. */
static struct layer *layer_new(const char *device, bool dora, float dropout, bool biases) {
    struct layer *l = mem_alloc(sizeof *l);
    struct err e = {0};
    const char *only = getenv("GRAFT_TEST_DEVICE");
    l->be = backend_new(device, 1, &e);
    if (!l->be) {
        if (strcmp(device, "cpu") == 0 || (only && strcmp(device, only) == 0)) fail_msg("%s", e.text);
        free(l);
        return NULL;
    }
    l->arena = arena_over(backend_host_alloc(l->be, ROOM), ROOM);
    struct arena *a = &l->arena;
    l->linear.W = fill(arena_tensor2(a, F32, O, I), "W");
    if (biases) l->linear.b = fill(arena_tensor1(a, F32, O), "b"), l->linear.gb = arena_tensor1(a, F32, O);
    l->lora = (struct lora){.rank = R, .scale = 1.5f, .dropout = dropout, .dora = dora, .stream = 7};
    l->lora.A = fill(arena_tensor2(a, F32, R, I), "A"), l->lora.gA = arena_tensor2(a, F32, R, I);
    l->lora.B = fill(arena_tensor2(a, F32, O, R), "B"), l->lora.gB = arena_tensor2(a, F32, O, R);
    if (biases && !dora) l->lora.b = fill(arena_tensor1(a, F32, O), "lb"), l->lora.gb = arena_tensor1(a, F32, O);
    if (dora) {
        l->lora.m = fill(arena_tensor1(a, F32, O), "m"), l->lora.gm = arena_tensor1(a, F32, O);
        l->lora.norms = arena_tensor1(a, F32, O);
        l->lora.g = arena_tensor1(a, F32, O), l->lora.g_less_1 = arena_tensor1(a, F32, O);
        l->linear.lora = &l->lora;
        linear_refresh(l->be, &l->linear);
    }
    l->linear.lora = &l->lora;
    l->x = fill(arena_tensor2(a, F32, N, I), "x");
    l->c = fill(arena_tensor2(a, F32, N, O), "c");
    l->y = arena_tensor2(a, F32, N, O);
    linear_acts_layout(&l->acts, a, &l->linear, N, F32);
    l->pass = (struct pass){.be = l->be, .scratch = a, .act = F32, .train = true, .seed = 3, .draw = 5};
    return l;
}

static void layer_free(struct layer *l) {
    backend_host_release(l->be, l->arena.base);
    backend_free(l->be);
    free(l);
}

static void settle(struct layer *l) {
    struct err e = {0};
    if (backend_sync(l->be, &e) != ST_OK) fail_msg("%s", e.text);
}

static double loss(struct layer *l) {
    double sum = 0;
    linear_forward(&l->pass, &l->acts, &l->y, &l->x, &l->linear);
    settle(l);
    for (int64_t i = 0; i < N * O; i++) sum += (double)((float *)l->y.data)[i] * ((float *)l->c.data)[i];
    return sum;
}

/* Every element of a parameter against the difference of two losses. All numbers are below 8 in size, y has sums of at
 * most I + R + I terms, and the loss adds N O of them: the bound is that count of roundings of 8 over the step. */
static void check(struct layer *l, const char *name, struct tensor *value, const struct tensor *grad) {
    const double step = 0.25, bound = N * O * (2 * I + R) * 8 * 0x1p-24 / step;
    float *v = value->data;
    const float *g = grad->data;
    bool simulated = strstr(backend_describe(l->be), "simulator");
    for (int64_t i = 0; i < tensor_count(value); i += simulated ? 3 : 1) {
        float kept = v[i];
        v[i] = kept + (float)step;
        if (value == &l->lora.m) scale_by_magnitude(l);
        double up = loss(l);
        v[i] = kept - (float)step;
        if (value == &l->lora.m) scale_by_magnitude(l);
        double down = loss(l);
        v[i] = kept;
        if (value == &l->lora.m) scale_by_magnitude(l);
        double want = (up - down) / (2 * step);
        if (!(fabs(g[i] - want) <= bound))
            fail_msg("%s[%lld]: %g, wanted %g within %g", name, (long long)i, g[i], want, bound);
    }
}

static void check_layer(const char *device, bool dora, float dropout, bool biases) {
    struct layer *l = layer_new(device, dora, dropout, biases);
    if (!l) skip();
    struct tensor dx = arena_tensor2(&l->arena, F32, N, I);
    loss(l);
    linear_backward(&l->pass, &dx, 0, &l->c, &l->x, &l->acts, &l->linear);
    settle(l);
    check(l, "x", &l->x, &dx);
    check(l, "A", &l->lora.A, &l->lora.gA);
    check(l, "B", &l->lora.B, &l->lora.gB);
    if (dora) check(l, "m", &l->lora.m, &l->lora.gm);
    if (biases) check(l, "b", &l->linear.b, &l->linear.gb);
    if (biases && !dora) check(l, "lora b", &l->lora.b, &l->lora.gb);
    assert_int_equal(l->be->err.code, ST_OK);
    layer_free(l);
}

static void test_lora(void **state) {
    check_layer(*state, false, 0, false);
    check_layer(*state, false, 0, true);
}

static void test_lora_dropout(void **state) { check_layer(*state, false, 0.4f, true); }

static void test_dora(void **state) {
    check_layer(*state, true, 0, false);
    check_layer(*state, true, 0, true);
}

static void test_dora_dropout(void **state) { check_layer(*state, true, 0.4f, true); }

/* beta 1 adds to dx, no dx leaves the parameters' gradients the same. */
static void test_beta_and_no_dx(void **state) {
    for (int kind = 0; kind < 4; kind++) {
        struct layer *one = layer_new(*state, kind & 1, kind & 2 ? 0.4f : 0, false),
                     *two = layer_new(*state, kind & 1, kind & 2 ? 0.4f : 0, false);
        if (!one) skip();
        struct tensor dx = arena_tensor2(&one->arena, F32, N, I), more = arena_tensor2(&one->arena, F32, N, I);
        loss(one), loss(two);
        linear_backward(&one->pass, &dx, 0, &one->c, &one->x, &one->acts, &one->linear);
        fill(more, "more");
        struct tensor base = fill(arena_tensor2(&two->arena, F32, N, I), "more");
        linear_backward(&one->pass, &more, 1, &one->c, &one->x, &one->acts, &one->linear);
        linear_backward(&two->pass, NULL, 0, &two->c, &two->x, &two->acts, &two->linear);
        settle(one), settle(two);
        for (int i = 0; i < N * I; i++) {
            double want = (double)((float *)base.data)[i] + ((float *)dx.data)[i];
            assert_true(fabs(((float *)more.data)[i] - want) <= 64 * 0x1p-24 * 8);
        }
        for (int i = 0; i < O * R; i++) // `one` ran twice
            assert_true(fabs(((float *)one->lora.gB.data)[i] - 2 * ((float *)two->lora.gB.data)[i]) <=
                        64 * 0x1p-24 * 8);
        layer_free(one), layer_free(two);
    }
}

/* dx in the place of x: the same numbers, and the same gradients. */
static void test_dx_in_place(void **state) {
    for (int kind = 0; kind < 4; kind++) {
        struct layer *one = layer_new(*state, kind & 1, kind & 2 ? 0.4f : 0, true),
                     *two = layer_new(*state, kind & 1, kind & 2 ? 0.4f : 0, true);
        if (!one) skip();
        struct tensor dx = arena_tensor2(&one->arena, F32, N, I);
        loss(one), loss(two);
        linear_backward(&one->pass, &dx, 0, &one->c, &one->x, &one->acts, &one->linear);
        linear_backward(&two->pass, &two->x, 0, &two->c, &two->x, &two->acts, &two->linear);
        settle(one), settle(two);
        assert_memory_equal(two->x.data, dx.data, tensor_bytes(&dx));
        assert_memory_equal(two->lora.gA.data, one->lora.gA.data, tensor_bytes(&one->lora.gA));
        assert_memory_equal(two->lora.gB.data, one->lora.gB.data, tensor_bytes(&one->lora.gB));
        layer_free(one), layer_free(two);
    }
}

/* What forward leaves for backward is the same when y is not asked for. */
static void test_acts_alone(void **state) {
    for (int kind = 0; kind < 4; kind++) {
        struct layer *l = layer_new(*state, kind & 1, kind & 2 ? 0.4f : 0, false);
        if (!l) skip();
        struct linear_acts alone;
        linear_acts_layout(&alone, &l->arena, &l->linear, N, F32);
        loss(l);
        linear_forward_acts(&l->pass, &alone, &l->x, &l->linear);
        settle(l);
        assert_memory_equal(alone.u.data, l->acts.u.data, tensor_bytes(&alone.u));
        if (kind & 1) assert_memory_equal(alone.t.data, l->acts.t.data, tensor_bytes(&alone.t));
        layer_free(l);
    }
}

/* Copies of A and B that were rounded are what products read, forward and backward; here they hold zeros. */
static void test_reads_rounded(void **state) {
    struct layer *l = layer_new(*state, false, 0, false);
    if (!l) skip();
    l->lora.rounded_A = arena_tensor2(&l->arena, BF16, R, I), l->lora.rounded_B = arena_tensor2(&l->arena, BF16, O, R);
    struct tensor dx = arena_tensor2(&l->arena, F32, N, I), alone = arena_tensor2(&l->arena, F32, N, I);
    struct tensor y = arena_tensor2(&l->arena, F32, N, O);
    loss(l);
    linear_backward(&l->pass, &dx, 0, &l->c, &l->x, &l->acts, &l->linear);
    op_linear_forward(l->be, &y, &l->x, &l->linear.W, NULL, 0);
    op_linear_backward(l->be, &alone, &l->c, &l->linear.W, 0);
    settle(l);
    assert_memory_equal(l->y.data, y.data, tensor_bytes(&y));
    assert_memory_equal(dx.data, alone.data, tensor_bytes(&dx));
    for (int i = 0; i < N * R; i++) assert_true(((float *)l->acts.u.data)[i] == 0);
    layer_free(l);
}

/* -1, 0 and 1. */
static struct tensor fill_small(struct tensor t, uint64_t stream) {
    for (int64_t i = 0; i < tensor_count(&t); i++)
        ((float *)t.data)[i] = (float)(int)(rng_bits(1, stream, (uint64_t)i) % 3) - 1;
    return t;
}

/* Rows so wide that products are cut. All numbers are small and whole, and with half of them dropped so are those that
 * are kept, so every sum is exact in any order. */
static void test_dropout_of_wide_rows(void **state) {
    enum { ROWS = 9, WIDE = 530000, BYTES = 160 << 20 };
    struct err e = {0};
    struct backend *be = backend_new(*state, 1, &e);
    struct arena m = arena_over(backend_host_alloc(be, BYTES), BYTES);
    struct lora r = {.rank = 1, .scale = 1, .dropout = 0.5f, .stream = 7};
    struct linear l = {.lora = &r, .W = fill_small(arena_tensor2(&m, F32, 2, WIDE), 1)};
    struct pass p = {.be = be, .scratch = &m, .act = F32, .train = true, .seed = 3, .draw = 5};
    struct linear_acts acts;
    r.A = fill_small(arena_tensor2(&m, F32, 1, WIDE), 2), r.gA = arena_tensor2(&m, F32, 1, WIDE);
    r.B = fill_small(arena_tensor2(&m, F32, 2, 1), 3), r.gB = arena_tensor2(&m, F32, 2, 1);
    struct tensor x = fill_small(arena_tensor2(&m, F32, ROWS, WIDE), 4), dx = arena_tensor2(&m, F32, ROWS, WIDE);
    struct tensor y = arena_tensor2(&m, F32, ROWS, 2), dy = fill_small(arena_tensor2(&m, F32, ROWS, 2), 5);
    linear_acts_layout(&acts, &m, &l, ROWS, F32);
    linear_forward(&p, &acts, &y, &x, &l);
    linear_backward(&p, &dx, 0, &dy, &x, &acts, &l);
    assert_int_equal(backend_sync(be, &e), ST_OK);
    const float *A = r.A.data, *B = r.B.data, *W = l.W.data, *X = x.data, *DY = dy.data;
    uint64_t stream = hash_bytes(r.stream, &p.draw, sizeof p.draw);
    double *gA = mem_alloc(WIDE * sizeof *gA);
    for (int64_t n = 0; n < ROWS; n++) {
        double u = 0, du = (double)DY[2 * n] * B[0] + (double)DY[2 * n + 1] * B[1];
        for (int64_t i = 0; i < WIDE; i++) {
            double kept = rng_bits(p.seed, stream, (uint64_t)(n * WIDE + i)) >= 1u << 31 ? 2 : 0;
            u += kept * X[n * WIDE + i] * A[i];
            gA[i] += du * kept * X[n * WIDE + i];
            double want = (double)DY[2 * n] * W[i] + (double)DY[2 * n + 1] * W[WIDE + i] + kept * du * A[i];
            if (((float *)dx.data)[n * WIDE + i] != want) fail_msg("dx of row %lld", (long long)n);
        }
        if (((float *)acts.u.data)[n] != u) fail_msg("u of row %lld", (long long)n);
    }
    for (int64_t i = 0; i < WIDE; i++) assert_true(((float *)r.gA.data)[i] == gA[i]);
    free(gA);
    backend_host_release(be, m.base);
    backend_free(be);
}

#define ON(device, test)                                                                                               \
    { #test "_" device, test, NULL, NULL, (void *)device }

int main(void) {
    const struct CMUnitTest tests[] = {
        ON("cpu", test_lora),
        ON("cpu", test_lora_dropout),
        ON("cpu", test_dora),
        ON("cpu", test_dora_dropout),
        ON("cpu", test_beta_and_no_dx),
        ON("cpu", test_reads_rounded),
        ON("cpu", test_dropout_of_wide_rows),
        ON("cpu", test_dx_in_place),
        ON("cpu", test_acts_alone),
        ON("cuda", test_dx_in_place),
        ON("cuda", test_acts_alone),
        ON("cuda", test_lora),
        ON("cuda", test_lora_dropout),
        ON("cuda", test_dora),
        ON("cuda", test_dora_dropout),
        ON("cuda", test_beta_and_no_dx),
        ON("cuda", test_reads_rounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Every op except matrix products and attention against its formula in double, written here again. Gradients are
 * compared with central differences of the forward formula, so that no derivation is trusted. The head of op_check.h
 * says what each case is run for. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/rng.h"
#include "quant/block.h"
#include "tests/op_check.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

static const double STEP =
    0x1p-17; // of a central difference: error about STEP^2 f'''/6 and 2^-53 f / STEP, both < 1e-10

/* --- the harness itself ------------------------------------------------------------------------------------------- */

static void test_harness_refuses_nan_and_infinity(void **state) {
    (void)state;
    assert_true(check_is_near(1.0, 1.0, 1.0, 1, F32));
    assert_false(check_is_near(NAN, 1.0, 1.0, 1, F32));
    assert_false(check_is_near(1.0, NAN, 1.0, 1, F32));
    assert_false(check_is_near(1.0, 1.0 + 1e-6, 1.0, 1, F32));
    assert_false(check_is_near(NAN, NAN, NAN, 1, BF16));
    assert_false(check_is_near((double)INFINITY, 1.0, 1.0, 1, F32));
    assert_true(check_is_near(1.00390625, 1.0 + 0x1p-9, 1.0, 1, BF16)); // half a unit: rounded either way
    assert_false(check_is_near(1.0078125, 1.0 + 0x1p-12, 1.0, 1, BF16));
}

/* --- moving ------------------------------------------------------------------------------------------------------ */

static void case_copy(struct check *c, const int64_t *shape) {
    static const enum dtype types[] = {F32, BF16, F16};
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            struct tensor x = check_input1(c, types[from], shape[0], -3, 3);
            struct tensor y = check_output1(c, types[to], shape[0]), exact = y;
            exact.data = check_zeros(c, shape[0]);
            op_copy(c->be, &y, &x);
            for (int64_t i = 0; i < shape[0]; i++) check_set(&exact, i, check_get(&x, i));
            check_equal(c, "y", &y, check_values(c, &exact));
            op_zero(c->be, &y);
            check_equal(c, "zero", &y, check_zeros(c, shape[0]));
        }
}

static void test_copy_and_zero(void **state) {
    (void)state;
    RUN(case_copy, {1}, {31}, {33}, {1029}, {50001});
}

/* Equal, or both NaN: a device keeps no more of a NaN than that it is one. infinity: the bits of a float type's. */
static void check_bits(uint32_t got, uint32_t want, uint32_t infinity) {
    uint32_t size = infinity | ((infinity & -infinity) - 1); // all but the sign
    bool nan = (want & size) > infinity;
    if (nan ? (got & size) <= infinity : got != want) fail_msg("bits %#x, wanted %#x", got, want);
}

/* Every F16 becomes F32 and comes back; every upper half of an F32, with three lower halves, becomes the F16 and BF16
 * that base/half.h makes of it. Infinity, NaN and subnormal numbers are among them. */
static void case_convert(struct check *c, const int64_t *shape) {
    struct tensor h = check_input1(c, F16, 65536, 0, 0), f = check_input1(c, F32, 65536, 0, 0);
    for (uint32_t i = 0; i < 65536; i++) {
        ((f16 *)h.data)[i] = (f16)i;
        ((float *)f.data)[i] = float_of_bits(i << 16 | (uint32_t)shape[0]);
    }
    struct tensor wide = check_output1(c, F32, 65536), half = check_output(c, &h),
                  brain = check_output1(c, BF16, 65536);
    op_copy(c->be, &wide, &h);
    op_copy(c->be, &half, &f);
    op_copy(c->be, &brain, &f);
    check_sync(c);
    for (uint32_t i = 0; i < 65536; i++) {
        float x = ((float *)f.data)[i];
        check_bits(bits_of_float(((float *)wide.data)[i]), bits_of_float(f16_to_float((f16)i)), 0x7F800000u);
        check_bits(((f16 *)half.data)[i], f16_of_float(x), 0x7C00u);
        check_bits(((bf16 *)brain.data)[i], bf16_of_float(x), 0x7F80u);
    }
}

static void test_conversions_are_those_of_base(void **state) {
    (void)state;
    RUN(case_convert, {0}, {0x1001}, {0x8000});
}

static void case_add(struct check *c, const int64_t *shape) {
    struct tensor a = check_input1(c, c->act, shape[0], -3, 3), b = check_input1(c, c->act, shape[0], -3, 3);
    struct tensor y = check_output(c, &a), in_place = check_copy(c, &a);
    double *want = check_zeros(c, shape[0]);
    for (int64_t i = 0; i < shape[0]; i++) want[i] = check_get(&a, i) + check_get(&b, i);
    op_add(c->be, &y, &a, &b);
    check_near(c, "y", &y, want, NULL, 1);
    op_add(c->be, &in_place, &b, &in_place);
    check_near(c, "y in place", &in_place, want, NULL, 1);
}

static void test_add(void **state) {
    (void)state;
    RUN(case_add, {1}, {31}, {1025}, {33333});
}

/* shape: M, N, C */
static void case_rows(struct check *c, const int64_t *shape) {
    int64_t M = shape[0], N = shape[1], C = shape[2];
    struct tensor x = check_input2(c, c->act, N, C, -3, 3), index = check_indices(c, M, -1, N);
    struct tensor y = check_output2(c, c->act, M, C);
    double *want = check_zeros(c, M * C);
    int32_t *at = index.data;
    for (int64_t i = 0; i < M * C; i++) want[i] = at[i / C] < 0 ? 0 : check_get(&x, at[i / C] * C + i % C);
    op_gather_rows(c->be, &y, &x, &index);
    check_equal(c, "gather", &y, want);
}

/* The same letters; rows of x go to distinct rows of y. */
static void case_scatter(struct check *c, const int64_t *shape) {
    int64_t M = shape[1], N = shape[0] + M, C = shape[2], order[512];
    rng_shuffle(7, 0, order, N);
    struct tensor x = check_input2(c, c->act, M, C, -3, 3), index = check_indices(c, M, -1, 0);
    struct tensor before = check_input2(c, c->act, N, C, -3, 3);
    for (int64_t i = 0; i < M; i++) ((int32_t *)index.data)[i] = i % 5 == 3 ? -1 : (int32_t)order[i];
    struct tensor y = check_copy(c, &before);
    double *want = check_values(c, &before);
    for (int64_t i = 0; i < M * C; i++)
        if (i / C % 5 != 3) want[order[i / C] * C + i % C] = check_get(&x, i);
    op_scatter_rows(c->be, &y, &x, &index);
    check_equal(c, "scatter", &y, want);
}

/* N, rows of the table, C */
static void case_embed(struct check *c, const int64_t *shape) {
    int64_t N = shape[0], V = shape[1], C = shape[2];
    static const enum dtype types[] = {F32, BF16, F16};
    for (int k = 0; k < 3; k++) {
        struct tensor table = check_input2(c, types[k], V, C, -3, 3), ids = check_indices(c, N, -1, V);
        struct tensor index = check_indices(c, N, 0, V), old = check_input2(c, c->act, N, C, -3, 3);
        struct tensor y = check_output2(c, c->act, N, C), sum = check_copy(c, &old), exact = y;
        exact.data = check_zeros(c, N * C);
        double *want = check_zeros(c, N * C);
        for (int64_t i = 0; i < N * C; i++) {
            int32_t id = ((int32_t *)ids.data)[i / C];
            check_set(&exact, i, id < 0 ? 0 : check_get(&table, id * C + i % C));
            want[i] = check_get(&old, i) + check_get(&table, ((int32_t *)index.data)[i / C] * C + i % C);
        }
        op_embed_forward(c->be, &y, &table, &ids);
        check_equal(c, "embed", &y, check_values(c, &exact));
        op_add_rows(c->be, &sum, &table, &index);
        check_near(c, "add_rows", &sum, want, NULL, 1);
    }
}

/* Many ids occur often; gtable[id] += the sum of their dy. */
static void case_embed_backward(struct check *c, const int64_t *shape) {
    int64_t N = shape[0], V = shape[1], C = shape[2];
    struct tensor dy = check_input2(c, c->act, N, C, -3, 3), ids = check_indices(c, N, -1, V);
    struct tensor before = check_input2(c, F32, V, C, -3, 3), gtable = check_copy(c, &before);
    double *want = check_values(c, &before), *size = check_zeros(c, V * C);
    for (int64_t i = 0; i < V * C; i++) size[i] = fabs(want[i]);
    for (int64_t i = 0; i < N * C; i++) {
        int64_t id = ((int32_t *)ids.data)[i / C];
        if (id < 0) continue;
        want[id * C + i % C] += check_get(&dy, i);
        size[id * C + i % C] += fabs(check_get(&dy, i));
    }
    op_embed_backward(c->be, &gtable, &dy, &ids);
    check_near(c, "gtable", &gtable, want, size, (double)N);
}

static void test_rows_by_index(void **state) {
    (void)state;
    RUN(case_rows, {1, 1, 1}, {31, 33, 7}, {129, 3, 1100}, {0, 3, 5});
    RUN(case_scatter, {1, 1, 1}, {31, 33, 7}, {4, 129, 1100});
    RUN(case_embed, {1, 1, 1}, {31, 33, 7}, {129, 31, 1100}, {0, 3, 5});
    RUN(case_embed_backward, {1, 1, 1}, {31, 3, 7}, {129, 5, 333});
}

/* Of several bad ones the first is named; what is good is computed. */
static void bad_index(struct backend *be) {
    struct err e = {0};
    float *m = backend_host_alloc(be, 12 * sizeof *m);
    int32_t *ids = backend_host_alloc(be, 4 * sizeof *ids);
    ids[0] = 1, ids[1] = 0, ids[2] = 4, ids[3] = -2;
    m[8] = 1, m[9] = 2, m[10] = 3, m[11] = 4;
    struct tensor y = tensor_over2(m, F32, 4, 2), table = tensor_over2(m + 8, F32, 2, 2),
                  id = tensor_over1(ids, I32, 4);
    op_embed_forward(be, &y, &table, &id);
    op_embed_backward(be, &table, &y, &id);
    assert_int_equal(backend_sync(be, &e), ST_FAIL);
    assert_non_null(strstr(e.text, "embed_forward: index 4 at position 2, wanted -1 .. 1"));
    op_zero(be, &y); // does nothing any more
    backend_host_release(be, m);
    backend_host_release(be, ids);
    backend_free(be);
}

static void test_bad_index_is_reported(void **state) {
    (void)state;
    struct err e = {0};
    bad_index(backend_new("cpu", 1, &e));
    bad_index(backend_new("auto", 1, &e));
}

/* pictures, height, width, patch */
static void case_patchify(struct check *c, const int64_t *shape) {
    int64_t n = shape[0], h = shape[1], w = shape[2], p = shape[3], down = h / p, across = w / p;
    struct tensor pixels = check_input3(c, F32, n, 3, h * w, -2, 2);
    struct tensor y = check_output2(c, c->act, n * down * across, 3 * p * p), exact = y;
    exact.data = check_zeros(c, tensor_count(&y));
    for (int64_t i = 0; i < tensor_count(&y); i++) {
        int64_t patch = i / (3 * p * p), ch = i / (p * p) % 3, row = i / p % p, col = i % p;
        int64_t image = patch / (down * across), top = patch / across % down * p, left = patch % across * p;
        check_set(&exact, i, check_get(&pixels, ((image * 3 + ch) * h + top + row) * w + left + col));
    }
    op_patchify(c->be, &y, &pixels, h, w, p);
    check_equal(c, "y", &y, check_values(c, &exact));
}

static void test_patchify(void **state) {
    (void)state;
    RUN(case_patchify, {1, 1, 1, 1}, {2, 28, 42, 14}, {3, 33, 31, 5}, {1, 4, 9, 7});
}

static void case_noise(struct check *c, const int64_t *shape) {
    int64_t N = shape[0], C = shape[1];
    struct tensor before = check_input2(c, c->act, N, C, -1, 1), amplitude = check_input1(c, F32, N, 0, 2);
    struct tensor x = check_copy(c, &before);
    double *want = check_zeros(c, N * C), *size = check_zeros(c, N * C);
    for (int64_t i = 0; i < N * C; i++) {
        double noise = check_get(&amplitude, i / C) * (2 * rng_uniform(99, 3, (uint64_t)i) - 1);
        want[i] = check_get(&before, i) + noise;
        size[i] = fabs(check_get(&before, i)) + fabs(noise);
    }
    op_noise_add(c->be, &x, &amplitude, 99, 3);
    check_near(c, "x", &x, want, size, 3);
}

static void test_noise(void **state) {
    (void)state;
    RUN(case_noise, {1, 1}, {31, 33}, {129, 257}, {0, 4});
}

/* --- 4-bit weights ------------------------------------------------------------------------------------------------ */

/* Numbers of many sizes, with zeros, NaN, infinity, ties and the smallest among them. */
static struct tensor awkward_numbers(struct check *c, enum dtype type, int64_t n) {
    static const float odd[] = {0, -0.0f, INFINITY, NAN, 1, -1, 0x1p-149f, -0x1p-140f, 0x1p-24f, 0.5f, 1e-38f};
    struct tensor x = check_input1(c, type, n, -1, 1);
    for (int64_t i = 0; i < n; i++) {
        uint32_t kind = check_random(c) % 400;
        double v = ldexp(check_get(&x, i), (int)(i / 700 % 5) - 2);
        check_set(&x, i, i / 512 % 7 == 3 ? 0 : kind < COUNT(odd) && i / 256 % 3 == 0 ? (double)odd[kind] : v);
    }
    return x;
}

/* Memory of n bytes that lives as long as the case. */
static void *bytes_of(struct check *c, size_t n) { return check_zeros(c, (int64_t)(n / sizeof(double) + 1)); }

/* n, size of a block; the source is of the type of the run, and F16. What quant/block.c makes is tested beside it, in
 * tests/test_quant.c. */
static void case_quantize(struct check *c, const int64_t *shape) {
    int64_t n = shape[0];
    int blocksize = (int)shape[1];
    for (int i = 0; i < 4; i++) {
        struct tensor x = awkward_numbers(c, i & 1 ? F16 : c->act, n);
        struct tensor W = check_output1(c, i & 2 ? FP4 : NF4, n);
        struct tensor absmax = check_output1(c, F32, block_count(n, blocksize));
        uint8_t *packed = bytes_of(c, tensor_bytes(&W));
        float *scales = bytes_of(c, tensor_bytes(&absmax));
        block_quantize(packed, scales, x.data, x.type, n, W.type, blocksize, c->be->threads);
        op_quantize(c->be, &W, &absmax, &x, blocksize);
        check_bytes(c, "W", &W, packed);
        check_bytes(c, "absmax", &absmax, scales);
    }
}

/* n, what the scales lie between in thousandths */
static void case_nest(struct check *c, const int64_t *shape) {
    int64_t n = shape[0], groups = block_count(n, NESTED_BLOCKSIZE);
    struct tensor absmax = check_input1(c, F32, n, (double)shape[1] / 1000, (double)shape[2] / 1000);
    struct tensor map = check_input1(c, F32, 256, 0, 0);
    block_map8(map.data);
    struct tensor absmax8 = check_output1(c, U8, n), nested_absmax = check_output1(c, F32, groups);
    struct tensor offset = check_output1(c, F32, 1);
    uint8_t *in_8_bits = bytes_of(c, (size_t)n);
    float *nested = bytes_of(c, tensor_bytes(&nested_absmax));
    float mean = block_nest(in_8_bits, nested, absmax.data, n, map.data, c->be->threads);
    op_nest(c->be, &absmax8, &nested_absmax, &offset, &absmax, &map);
    check_bytes(c, "offset", &offset, &mean);
    check_bytes(c, "absmax8", &absmax8, in_8_bits);
    check_bytes(c, "nested_absmax", &nested_absmax, nested);
}

static void test_quantize(void **state) {
    (void)state;
    for (int64_t size = 32; size <= 4096; size *= 2) {
        const int64_t shapes[][8] = {{1, size}, {size - 1, size}, {size, size}, {3 * size + 31, size}, {5001, size}};
        check_case(case_quantize, shapes, (int)COUNT(shapes));
    }
    RUN(case_quantize, {0, 64}, {70000, 64}, {150001, 4096});
}

static void test_nest(void **state) {
    (void)state;
    RUN(case_nest, {0, 0, 1}, {1, 1, 1}, {2, 0, 1}, {7, 0, 100}, {8, 0, 100}, {31, 1, 2}, {33, 0, 1}, {256, 5, 5},
        {257, 0, 3}, {1100, 0, 1000}, {5001, 10, 20}, {33000, 0, 1}, {70007, 0, 1}, {150001, 0, 1000},
        {290031, 100, 300});
}

/* --- normalisation ------------------------------------------------------------------------------------------------ */

static const double EPS = (double)1e-5f;

/* y (C) of one row; b NULL: RMSNorm. */
static void norm_row(double *y, double *mean, double *rstd, const double *x, const double *w, const double *b,
                     int64_t C) {
    double m = 0, v = 0;
    for (int64_t i = 0; i < C && b; i++) m += x[i] / (double)C;
    for (int64_t i = 0; i < C; i++) v += (x[i] - m) * (x[i] - m) / (double)C;
    double r = 1 / sqrt(v + EPS);
    for (int64_t i = 0; i < C; i++) y[i] = (x[i] - m) * r * w[i] + (b ? b[i] : 0);
    *mean = m, *rstd = r;
}

/* dx (C) = gradient of sum(dy y) by central differences. */
static void norm_row_slope(double *dx, double *x, const double *w, const double *b, const double *dy, double *y,
                           int64_t C) {
    double unused, loss[2];
    for (int64_t i = 0; i < C; i++) {
        double kept = x[i];
        for (int side = 0; side < 2; side++) {
            x[i] = kept + (side ? STEP : -STEP);
            norm_row(y, &unused, &unused, x, w, b, C);
            loss[side] = 0;
            for (int64_t j = 0; j < C; j++) loss[side] += dy[j] * y[j];
        }
        x[i] = kept;
        dx[i] = (loss[1] - loss[0]) / (2 * STEP);
    }
}

struct norm_case {
    struct tensor x, w, b, dy, dx0, gw0, gb0; // inputs
    double *vx, *vw, *vb, *vdy;               // their values; vb NULL: RMSNorm
    int64_t N, C;
};

static struct norm_case norm_inputs(struct check *c, const int64_t *shape, bool layer) {
    struct norm_case n = {.N = shape[0], .C = shape[1]};
    n.x = check_input2(c, c->act, n.N, n.C, -2, 3);
    n.w = check_input1(c, F32, n.C, -2, 2), n.b = check_input1(c, F32, n.C, -2, 2);
    n.dy = check_input2(c, c->act, n.N, n.C, -1, 1);
    n.dx0 = check_input2(c, c->act, n.N, n.C, -1, 1);
    n.gw0 = check_input1(c, F32, n.C, -1, 1), n.gb0 = check_input1(c, F32, n.C, -1, 1);
    n.vx = check_values(c, &n.x), n.vw = check_values(c, &n.w), n.vdy = check_values(c, &n.dy);
    n.vb = layer ? check_values(c, &n.b) : NULL;
    return n;
}

/* A row's sum has an error of some 2^-24 relative to its terms; (x - mean) rstd w + b adds a few roundings. */
static void case_norm(struct check *c, const int64_t *shape) {
    bool layer = shape[2];
    struct norm_case n = norm_inputs(c, shape, layer);
    int64_t N = n.N, C = n.C;
    struct tensor y = check_output(c, &n.x), mean = check_output1(c, F32, N), rstd = check_output1(c, F32, N);
    struct tensor dx = check_copy(c, &n.dx0), gw = check_copy(c, &n.gw0), gb = check_copy(c, &n.gb0);
    double *want = check_zeros(c, N * C), *size = check_zeros(c, N * C), *m = check_zeros(c, N), *r = check_zeros(c, N);
    double *dx_want = check_zeros(c, N * C), *dx_size = check_zeros(c, N * C), *row = check_zeros(c, C);
    double *gw_want = check_values(c, &n.gw0), *gb_want = check_values(c, &n.gb0), *g_size = check_zeros(c, C);
    double *m_size = check_zeros(c, N);
    for (int64_t i = 0; i < N; i++) {
        double *x = n.vx + i * C, *dy = n.vdy + i * C, spread = 0;
        norm_row(want + i * C, m + i, r + i, x, n.vw, n.vb, C);
        norm_row_slope(dx_want + i * C, x, n.vw, n.vb, dy, row, C);
        m_size[i] = 3;
        for (int64_t j = 0; j < C; j++) spread += fabs(dy[j] * n.vw[j]) / (double)C;
        for (int64_t j = 0; j < C; j++) {
            double z = (x[j] - m[i]) * r[i], zs = (fabs(x[j]) + 3) * r[i];
            size[i * C + j] = zs * fabs(n.vw[j]) + (layer ? fabs(n.vb[j]) : 0);
            dx_size[i * C + j] = 1 + r[i] * (fabs(dy[j] * n.vw[j]) + spread * (1 + zs * 3 * r[i] * 3));
            dx_want[i * C + j] += check_get(&n.dx0, i * C + j);
            gw_want[j] += dy[j] * z, gb_want[j] += dy[j];
            g_size[j] += 1 + fabs(dy[j]) * zs;
        }
    }
    if (layer) {
        op_layernorm_forward(c->be, &y, &mean, &rstd, &n.x, &n.w, &n.b, (float)EPS);
        op_layernorm_backward_add(c->be, &dx, &gw, &gb, &n.dy, &n.x, &mean, &rstd, &n.w);
        check_near(c, "mean", &mean, m, m_size, 2);
        check_near(c, "gb", &gb, gb_want, g_size, 4);
    } else {
        op_rmsnorm_forward(c->be, &y, &rstd, &n.x, &n.w, (float)EPS);
        op_rmsnorm_backward_add(c->be, &dx, &gw, &n.dy, &n.x, &rstd, &n.w);
    }
    check_near(c, "y", &y, want, size, 8);
    if (C > 1) check_near(c, "rstd", &rstd, r, NULL, 16);
    check_near(c, "dx", &dx, dx_want, dx_size, 16);
    check_near(c, "gw", &gw, gw_want, g_size, 16);
}

/* Without gradients of parameters dx is the same. */
static void case_norm_frozen(struct check *c, const int64_t *shape) {
    struct norm_case n = norm_inputs(c, shape, true);
    struct tensor y = check_output(c, &n.x), mean = check_output1(c, F32, n.N), rstd = check_output1(c, F32, n.N);
    struct tensor dx = check_copy(c, &n.dx0), dx2 = check_copy(c, &n.dx0), gw = check_copy(c, &n.gw0);
    struct tensor gb = check_copy(c, &n.gb0);
    op_layernorm_forward(c->be, &y, &mean, &rstd, &n.x, &n.w, &n.b, (float)EPS);
    op_layernorm_backward_add(c->be, &dx, &gw, &gb, &n.dy, &n.x, &mean, &rstd, &n.w);
    op_layernorm_backward_add(c->be, &dx2, NULL, NULL, &n.dy, &n.x, &mean, &rstd, &n.w);
    check_equal(c, "dx", &dx2, check_values(c, &dx));
    op_rmsnorm_forward(c->be, &y, &rstd, &n.x, &n.w, (float)EPS);
    op_rmsnorm_backward_add(c->be, &dx, NULL, &n.dy, &n.x, &rstd, &n.w);
}

static void test_rmsnorm(void **state) {
    (void)state;
    RUN(case_norm, {1, 1, 0}, {3, 31, 0}, {33, 33, 0}, {129, 40, 0}, {2, 129, 0}, {1, 1100, 0}, {0, 4, 0});
}

static void test_layernorm(void **state) {
    (void)state;
    RUN(case_norm, {3, 31, 1}, {33, 33, 1}, {129, 40, 1}, {2, 129, 1}, {1, 1100, 1}, {0, 4, 1});
    RUN(case_norm_frozen, {3, 31}, {1, 129});
}

/* --- pointwise ---------------------------------------------------------------------------------------------------- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double act(double x, enum activation f) {
    switch (f) {
    case ACT_SILU:
        return x * sigmoid(x);
    case ACT_GELU:
        return 0.5 * x * (1 + erf(x / sqrt(2)));
    case ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case ACT_QUICK_GELU:
        return x * sigmoid(1.702 * x);
    default:
        return x < 0 ? 0 : x * x;
    }
}

static double act_slope(double x, enum activation f) { return (act(x + STEP, f) - act(x - STEP, f)) / (2 * STEP); }

/* n, activation, range. All errors are absolute errors of sigmoid, erf or exp, times 1 + |x|. */
static void case_act(struct check *c, const int64_t *shape) {
    int64_t n = shape[0];
    enum activation f = (enum activation)shape[1];
    double range = (double)shape[2];
    struct tensor x = check_input1(c, c->act, n, -range, range), up = check_input1(c, c->act, n, -2, 2);
    struct tensor dy = check_input1(c, c->act, n, -2, 2), y = check_output(c, &x), dx = check_output(c, &x);
    struct tensor glu = check_output(c, &x), dgate = check_output(c, &x), dup = check_output(c, &x);
    double *vx = check_values(c, &x), *vup = check_values(c, &up), *vdy = check_values(c, &dy);
    double *w[5], *s[5];
    for (int k = 0; k < 5; k++) w[k] = check_zeros(c, n), s[k] = check_zeros(c, n);
    for (int64_t i = 0; i < n; i++) {
        double value = act(vx[i], f), slope = act_slope(vx[i], f), size = 1 + fabs(vx[i]);
        if (f == ACT_RELU2) size = vx[i] * vx[i] + 1;
        w[0][i] = value, s[0][i] = size;
        w[1][i] = vdy[i] * slope, s[1][i] = size * fabs(vdy[i]);
        w[2][i] = value * vup[i], s[2][i] = size * fabs(vup[i]);
        w[3][i] = vdy[i] * vup[i] * slope, s[3][i] = size * fabs(vdy[i] * vup[i]);
        w[4][i] = vdy[i] * value, s[4][i] = size * fabs(vdy[i]);
    }
    op_act_forward(c->be, &y, &x, f);
    op_act_backward(c->be, &dx, &dy, &x, f);
    op_glu_forward(c->be, &glu, &x, &up, f);
    op_glu_backward(c->be, &dgate, &dup, &dy, &x, &up, f);
    check_near(c, "y", &y, w[0], s[0], 3);
    check_near(c, "dx", &dx, w[1], s[1], 6);
    check_near(c, "glu", &glu, w[2], s[2], 4);
    check_near(c, "dgate", &dgate, w[3], s[3], 6);
    check_near(c, "dup", &dup, w[4], s[4], 4);
    struct tensor in_place = check_copy(c, &dy), gate2 = check_copy(c, &x), up2 = check_copy(c, &up);
    op_act_backward(c->be, &in_place, &in_place, &x, f);
    op_glu_backward(c->be, &gate2, &up2, &dy, &gate2, &up2, f);
    check_equal(c, "dx in place", &in_place, check_values(c, &dx));
    check_equal(c, "dgate in place", &gate2, check_values(c, &dgate));
    check_equal(c, "dup in place", &up2, check_values(c, &dup));
}

static void test_activations(void **state) {
    (void)state;
    for (int64_t f = ACT_SILU; f <= ACT_RELU2; f++) {
        const int64_t shapes[][8] = {{1, f, 1}, {31, f, 3}, {1029, f, 8}, {20000, f, 30}, {129, f, 200}};
        check_case(case_act, shapes, (int)COUNT(shapes));
    }
}

/* n, p in thousandths, the first word */
static void case_dropout(struct check *c, const int64_t *shape) {
    int64_t n = shape[0];
    float p = (float)shape[1] / 1000;
    const struct dropout d = {p, 0x123456789ABCDEFu, 1ull << 40, shape[2]};
    struct tensor x = check_input1(c, c->act, n, -2, 2), old = check_input1(c, c->act, n, -2, 2);
    struct tensor y = check_output(c, &x), in_place = check_copy(c, &x), sum = check_copy(c, &old);
    double *want = check_zeros(c, n), *total = check_zeros(c, n), *size = check_zeros(c, n);
    for (int64_t i = 0; i < n; i++) {
        bool kept = (double)rng_bits(d.seed, d.stream, (uint64_t)(d.first + i)) >= (double)p * 0x1p32;
        want[i] = kept ? check_get(&x, i) / (1 - (double)p) : 0;
        total[i] = check_get(&old, i) + want[i];
        size[i] = fabs(check_get(&old, i)) + fabs(want[i]);
    }
    op_dropout(c->be, &y, &x, &d);
    op_dropout(c->be, &in_place, &in_place, &d);
    op_dropout_add(c->be, &sum, &x, &d);
    check_near(c, "y", &y, want, NULL, 2);
    check_equal(c, "y in place", &in_place, check_values(c, &y));
    check_near(c, "y added", &sum, total, size, 3);
}

static void test_dropout(void **state) {
    (void)state;
    RUN(case_dropout, {1, 500, 0}, {31, 100, 8}, {1029, 50, 1l << 35}, {50001, 900, 24}, {129, 0, 0});
}

/* Element i of a matrix as op_dropout gives it, in t's type. */
static double dropped_out(const struct tensor *t, int64_t i, const struct dropout *d) {
    bool kept = (double)rng_bits(d->seed, d->stream, (uint64_t)(d->first + i)) >= (double)d->p * 0x1p32;
    float x = kept ? (float)check_get(t, i) * (float)(1 / (1 - (double)d->p)) : 0;
    return (double)(t->type == BF16 ? bf16_to_float(bf16_of_float(x)) : x);
}

/* m, n, k, which matrix is dropped out, A transposed, B transposed, beta, the first word. Gradients of parameters are
 * those where B is dropped out. */
static void case_matmul_dropout(struct check *c, const int64_t *shape) {
    int64_t m = shape[0], n = shape[1], k = shape[2];
    enum dropped which = (enum dropped)shape[3];
    bool ta = shape[4], tb = shape[5];
    float beta = (float)shape[6];
    const struct dropout d = {0.3f, 77, 5, shape[7]};
    struct tensor A = ta ? check_input2(c, c->act, k, m, -1, 1) : check_input2(c, c->act, m, k, -1, 1);
    struct tensor B = tb ? check_input2(c, c->act, n, k, -1, 1) : check_input2(c, c->act, k, n, -1, 1);
    struct tensor old = check_input2(c, which == DROP_B ? F32 : c->act, m, n, -1, 1), C = check_copy(c, &old);
    double *want = check_zeros(c, m * n), *size = check_zeros(c, m * n);
    for (int64_t at = 0; at < m * n; at++) {
        for (int64_t l = 0; l < k; l++) {
            int64_t a = ta ? l * m + at / n : at / n * k + l, b = tb ? at % n * k + l : l * n + at % n;
            double x = which == DROP_A ? dropped_out(&A, a, &d) : check_get(&A, a);
            double y = which == DROP_B ? dropped_out(&B, b, &d) : check_get(&B, b);
            want[at] += 0.5 * x * y, size[at] += 0.5 * fabs(x * y);
        }
        bool kept = (double)rng_bits(d.seed, d.stream, (uint64_t)(d.first + at)) >= (double)d.p * 0x1p32;
        double scale = which != DROP_C ? 1 : kept ? 1 / (1 - (double)d.p) : 0;
        want[at] = scale * want[at] + (double)beta * check_get(&old, at);
        size[at] = scale * size[at] + fabs((double)beta * check_get(&old, at));
    }
    op_matmul_dropout(c->be, &C, &A, ta, &B, tb, 0.5f, beta, &d, which);
    check_near(c, "C", &C, want, size, (int)k + 4);
}

static void test_matmul_dropout(void **state) {
    (void)state;
    RUN(case_matmul_dropout, {70, 16, 100, DROP_A, 0, 1, 0, 0}, {65, 5, 33, DROP_A, 0, 1, 1, 8},
        {3, 4, 2050, DROP_A, 0, 1, 0, 1l << 34}, {33, 9, 40, DROP_A, 1, 0, 1, 0}, {16, 100, 70, DROP_B, 1, 0, 1, 0},
        {5, 33, 65, DROP_B, 1, 0, 1, 16}, {7, 130, 66, DROP_B, 0, 1, 0, 0}, {70, 100, 16, DROP_C, 0, 0, 0, 0},
        {65, 33, 5, DROP_C, 0, 0, 1, 8}, {9, 70, 600, DROP_C, 0, 0, 1, 0}, {2, 6, 3, DROP_C, 0, 1, 0, 0},
        {1, 1, 1, DROP_A, 0, 0, 0, 0}, {40, 8, 0, DROP_C, 0, 0, 1, 0}, {64, 16, 96, DROP_A, 0, 1, 0, 0},
        {200, 4, 64, DROP_A, 0, 1, 0, 0}, {16, 96, 64, DROP_B, 1, 0, 1, 0}, {96, 64, 16, DROP_C, 0, 0, 1, 0},
        {64, 32, 48, DROP_B, 0, 1, 0, 0}, {32, 64, 48, DROP_A, 1, 0, 0, 0});
}

/* --- DoRA, biases ------------------------------------------------------------------------------------------------- */

static void case_columns(struct check *c, const int64_t *shape) {
    int64_t N = shape[0], O = shape[1];
    struct tensor x = check_input2(c, c->act, N, O, -2, 2), t = check_input2(c, c->act, N, O, -2, 2);
    struct tensor g = check_input1(c, F32, O, 0.5, 2), b = check_input1(c, F32, O, -1, 1);
    struct tensor g0 = check_input1(c, F32, O, -1, 1), y = check_output(c, &x), plain = check_copy(c, &x);
    struct tensor ratio = check_output(c, &b), gm = check_copy(c, &g0), gb = check_copy(c, &g0);
    double *w_y = check_zeros(c, N * O), *s_y = check_zeros(c, N * O), *w_plain = check_zeros(c, N * O);
    double *w_gm = check_values(c, &g0), *w_gb = check_values(c, &g0), *s_g = check_zeros(c, O);
    struct tensor b_sum = check_copy(c, &t), g_sum = check_copy(c, &t);
    double *w_b = check_values(c, &t), *s_b = check_zeros(c, N * O), *w_g = check_values(c, &t),
           *s_gs = check_zeros(c, N * O);
    double *w_ratio = check_zeros(c, O), *s_ratio = check_zeros(c, O);
    for (int64_t i = 0; i < N * O; i++) {
        double xi = check_get(&x, i), gi = check_get(&g, i % O), bi = check_get(&b, i % O);
        w_y[i] = xi * gi + bi, s_y[i] = fabs(xi * gi) + fabs(bi), w_plain[i] = xi * gi;
        w_gm[i % O] += xi * check_get(&t, i) / gi, w_gb[i % O] -= 0.75 * xi;
        w_b[i] -= 0.75 * bi, s_b[i] = fabs(w_b[i]) + 1.5 * fabs(bi);
        w_g[i] += xi * gi, s_gs[i] = fabs(w_g[i]) + 2 * fabs(xi * gi);
        s_g[i % O] += 8; // |x t / g| is at most 8
    }
    for (int64_t o = 0; o < O; o++)
        w_ratio[o] = check_get(&b, o) / check_get(&g, o) - 0.5, s_ratio[o] = fabs(w_ratio[o]) + 1, s_g[o] += 1;
    op_scale_cols(c->be, &y, &x, &g, &b);
    op_scale_cols(c->be, &plain, &plain, &g, NULL);
    op_scale_cols_add(c->be, &g_sum, &x, &g);
    op_bias_add(c->be, &b_sum, &b, -0.75f);
    op_divide(c->be, &ratio, &b, &g, 0.5f);
    op_magnitude_backward(c->be, &gm, &x, &t, &g);
    op_bias_backward(c->be, &gb, &x, -0.75f);
    check_near(c, "y", &y, w_y, s_y, 2);
    check_near(c, "y in place", &plain, w_plain, NULL, 1);
    check_near(c, "y + x g", &g_sum, w_g, s_gs, 2);
    check_near(c, "y + scale b", &b_sum, w_b, s_b, 2);
    check_near(c, "ratio", &ratio, w_ratio, s_ratio, 1);
    check_near(c, "gm", &gm, w_gm, s_g, 4);
    check_near(c, "gb", &gb, w_gb, s_g, 4);
}

static void test_columns(void **state) {
    (void)state;
    RUN(case_columns, {1, 1}, {31, 33}, {129, 257}, {300, 31}, {3, 1100}, {0, 5});
}

/* --- loss, optimizer ---------------------------------------------------------------------------------------------- */

/* M, V, range of the logits. The gradient of the loss by differences. */
static void case_cross_entropy(struct check *c, const int64_t *shape) {
    int64_t M = shape[0], V = shape[1];
    double range = (double)shape[2], scale = 0.25;
    struct tensor x = check_input2(c, F32, M, V, -range, range), targets = check_indices(c, M, 0, V);
    struct tensor loss = check_output1(c, F32, M), loss2 = check_output1(c, F32, M), grad = check_copy(c, &x);
    double *want = check_zeros(c, M), *size = check_zeros(c, M), *vx = check_values(c, &x);
    double *g_want = check_zeros(c, M * V), *g_size = check_zeros(c, M * V);
    for (int64_t m = 0; m < M; m++) {
        double most = -INFINITY, sum = 0, *row = vx + m * V;
        int32_t target = ((int32_t *)targets.data)[m];
        for (int64_t i = 0; i < V; i++) most = fmax(most, row[i]);
        for (int64_t i = 0; i < V; i++) sum += exp(row[i] - most);
        want[m] = log(sum) + most - row[target];
        size[m] = 1 + fabs(most) + fabs(row[target]);
        for (int64_t i = 0; i < V; i++) { // loss at x[i] +- STEP, by what changes in the sum
            double e = exp(row[i] - most), up = log(sum + e * expm1(STEP)), down = log(sum + e * expm1(-STEP));
            g_want[m * V + i] = scale * ((up - down) / (2 * STEP) - (i == target));
            g_size[m * V + i] = scale * ((i == target) + e / sum * (1 + most - row[i]));
        }
    }
    op_cross_entropy_forward(c->be, &loss, &x, &targets);
    op_cross_entropy(c->be, &loss2, &grad, &targets, (float)scale);
    check_near(c, "loss", &loss, want, size, 8);
    check_equal(c, "loss again", &loss2, check_values(c, &loss));
    for (int64_t i = 0; i < M * V; i++) g_size[i] += scale * 1e-3; // the differences are good to about 1e-11
    check_near(c, "dlogits", &grad, g_want, g_size, 16);
}

/* M, V, how many logits, how much further on from row to row: one that is NaN makes the loss and the gradient of its
 * row so, wherever it stands; -INFINITY takes no part. */
static void case_cross_entropy_nan(struct check *c, const int64_t *shape) {
    int64_t M = shape[0], V = shape[1];
    struct tensor x = check_input2(c, F32, M, V, -3, 3), targets = check_indices(c, M, V - 1, V);
    for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < shape[2]; i++)
            check_set(&x, m * V + (shape[3] * m + i) % (V - 1), m % 3 ? NAN : -INFINITY);
    struct tensor loss = check_output1(c, F32, M), loss2 = check_output1(c, F32, M), grad = check_copy(c, &x);
    op_cross_entropy_forward(c->be, &loss, &x, &targets);
    op_cross_entropy(c->be, &loss2, &grad, &targets, 1);
    check_sync(c);
    for (int64_t i = 0; i < M * V; i++) {
        bool bad = i / V % 3 != 0;
        assert_int_equal(!isfinite(check_get(&loss, i / V)), bad);
        assert_int_equal(!isfinite(check_get(&loss2, i / V)), bad);
        assert_int_equal(!isfinite(check_get(&grad, i)), bad);
    }
}

static void test_cross_entropy(void **state) {
    (void)state;
    RUN(case_cross_entropy_nan, {7, 5, 1, 1}, {32, 24, 1, 1}, {2, 2100, 1, 1}, {5, 2100, 2048, 0});
    RUN(case_cross_entropy, {1, 1, 3}, {31, 33, 3}, {3, 1029, 30}, {2, 5000, 1}, {1, 100003, 10}, {129, 17, 90});
}

static void case_sums(struct check *c, const int64_t *shape) {
    int64_t n = shape[0];
    struct tensor x = check_input1(c, F32, n, -1, 2), a = check_input1(c, c->act, n, -1, 2);
    struct tensor start = check_input1(c, F32, 1, 5, 5), sum = check_copy(c, &start), squares = check_copy(c, &start);
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i += 7) check_set(&a, i, i % 2 ? NAN : i % 4 ? -INFINITY : INFINITY), bad++;
    struct tensor count = check_copy(c, &start);
    double w[3] = {5, 5, 5 + (double)bad}, size[2] = {5, 5};
    for (int64_t i = 0; i < n; i++) {
        double v = check_get(&x, i);
        w[0] += v, w[1] += v * v, size[0] += fabs(v), size[1] += v * v;
    }
    op_sum_add(c->be, &sum, &x);
    op_sum_squares_add(c->be, &squares, &x);
    op_count_nonfinite_add(c->be, &count, &a);
    check_near(c, "sum", &sum, w, size, 2);
    check_near(c, "squares", &squares, w + 1, size + 1, 2);
    check_equal(c, "count", &count, w + 2);
}

static void test_sums(void **state) {
    (void)state;
    RUN(case_sums, {1}, {31}, {1029}, {50001}, {2000003}, {0});
}

/* Three steps in a row, as torch.optim.AdamW takes them. */
static void case_adamw(struct check *c, const int64_t *shape) {
    int64_t n = shape[0];
    struct tensor p0 = check_input1(c, F32, n, -1, 1), g = check_input1(c, F32, n, -1, 1);
    struct tensor p = check_copy(c, &p0), m = check_copy(c, &p0), v = check_copy(c, &p0);
    op_zero(c->be, &m), op_zero(c->be, &v);
    struct adamw h = {1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5, 0};
    double *wp = check_values(c, &p), *wm = check_zeros(c, n), *wv = check_zeros(c, n), *one = check_zeros(c, n);
    for (h.step = 1; h.step <= 3; h.step++) {
        op_adamw(c->be, &p, &m, &v, &g, &h);
        for (int64_t i = 0; i < n; i++) {
            double gi = h.grad_scale * check_get(&g, i);
            wp[i] *= 1 - h.lr * h.weight_decay;
            wm[i] = h.beta1 * wm[i] + (1 - h.beta1) * gi;
            wv[i] = h.beta2 * wv[i] + (1 - h.beta2) * gi * gi;
            double root = sqrt(wv[i] / (1 - pow(h.beta2, (double)h.step)));
            wp[i] -= h.lr / (1 - pow(h.beta1, (double)h.step)) * wm[i] / (root + h.eps);
            one[i] = 1;
        }
    }
    check_near(c, "p", &p, wp, one, 6);
    check_near(c, "m", &m, wm, one, 6);
    check_near(c, "v", &v, wv, NULL, 12);
}

static void test_adamw(void **state) {
    (void)state;
    RUN(case_adamw, {1}, {31}, {1029}, {50001});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_harness_refuses_nan_and_infinity),
        cmocka_unit_test(test_copy_and_zero),
        cmocka_unit_test(test_conversions_are_those_of_base),
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_rows_by_index),
        cmocka_unit_test(test_bad_index_is_reported),
        cmocka_unit_test(test_patchify),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_nest),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_layernorm),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_matmul_dropout),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

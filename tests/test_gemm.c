/* Matrix products against a sum in double, for every instruction set that the machine runs, and on the GPU or its
 * simulator, as gemm_check.h says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "quant/block.h"
#include "tests/gemm_check.h"
#include "tests/op_check.h"

/* So few rows, with k along the lines of both factors, are multiplied without panels, in F32. */
enum { FEW = 4 };

/* --- backends ---------------------------------------------------------------------------------------------------- */

static const char *const isas[] = {"", "x86-64-v4-noamx", "x86-64-v3", "x86-64", "cuda"};

/* The backend of one instruction set or of the device; NULL where there is none. GRAFT_TEST_DEVICE leaves out one kind,
 * or demands the other. */
static struct backend *backend_of(const char *isa, int threads) {
    struct err e = {0};
    const char *only = getenv("GRAFT_TEST_DEVICE");
    bool device = strcmp(isa, "cuda") == 0;
    if (only && strcmp(only, device ? "cpu" : "cuda") == 0) return NULL;
    if (device) {
        struct backend *be = backend_new("cuda", threads, &e);
        if (!be && only) fail_msg("%s", e.text);
        return be;
    }
    setenv("GRAFT_CPU_ISA", isa, 1);
    struct backend *be = backend_new("cpu", threads, &e);
    if (!be && !*isa) fail_msg("%s", e.text);
    return be;
}

static bool has_amx(struct backend *be) { return strstr(backend_describe(be), "AMX") != NULL; }

/* Products with BF16 in them are in BF16 on a device, few rows or many. */
static bool is_device(const struct backend *be) { return strcmp(be->name, "cpu") != 0; }

static bool is_simulated(struct backend *be) { return is_device(be) && strstr(backend_describe(be), "simulator"); }

/* Whether a product is more than a test should ask of the simulator, which works through whole tiles. */
static bool too_large(struct backend *be, int64_t M, int64_t N, int64_t K) {
    double rows = M > 16 ? (double)M : 16, cols = N > 16 ? (double)N : 16;
    return is_simulated(be) && rows * cols * (double)K > 2e7;
}

static const int64_t sizes[] = {1, 2, 3, 5, 8, 16, 17, 31, 33, 48, 64, 65, 100, 129, 200};

enum { SIZES = sizeof sizes / sizeof *sizes, SMALL_SIZES = SIZES - 2 };

static int64_t random_size(struct backend *be, uint64_t *s) {
    return sizes[gemm_random(s) % (is_simulated(be) ? SMALL_SIZES : SIZES)];
}

/* --- matmul ------------------------------------------------------------------------------------------------------ */

struct matmul_case {
    int64_t M, N, K;
    enum dtype c, a, b;
    bool ta, tb;
    float alpha, beta;
};

static void check_matmul(struct backend *be, struct backend *three, const struct matmul_case *m, uint64_t *s) {
    struct tensor A = m->ta ? input_new(be, m->a, m->K, m->M, s) : input_new(be, m->a, m->M, m->K, s);
    struct tensor B = m->tb ? input_new(be, m->b, m->N, m->K, s) : input_new(be, m->b, m->K, m->N, s);
    struct tensor C = output_new(be, m->c, m->M, m->N, s), D = output_new(be, m->c, m->M, m->N, NULL);
    bool narrow = m->a == BF16 || m->b == BF16 || m->c == BF16;
    bool amx = narrow && (is_device(be) || (has_amx(be) && (m->M > FEW || m->ta || !m->tb)));
    struct gemm_reference p = gemm_reference_new(m->M, m->N, m->K);
    p.alpha = (double)m->alpha, p.beta = (double)m->beta;
    for (int64_t i = 0; i < m->M; i++)
        for (int64_t k = 0; k < m->K; k++)
            p.a[i * m->K + k] = check_rounded(check_get(&A, m->ta ? k * m->M + i : i * m->K + k), amx ? BF16 : F32);
    for (int64_t k = 0; k < m->K; k++)
        for (int64_t j = 0; j < m->N; j++)
            p.b[k * m->N + j] = check_rounded(check_get(&B, m->tb ? j * m->K + k : k * m->N + j), amx ? BF16 : F32);
    if (m->beta != 0.0f) {
        p.c = malloc((size_t)(m->M * m->N) * sizeof(double));
        for (int64_t i = 0; i < m->M * m->N; i++) p.c[i] = check_get(&C, i);
    } else {
        for (int64_t i = 0; i < m->M * m->N; i++) check_set(&C, i, NAN); // must not be read
    }
    memcpy(D.data, C.data, tensor_bytes(&C));
    char what[96];
    snprintf(what, sizeof what, "matmul %s = %s%s %s%s, alpha %g, beta %g", dtype_name(m->c), dtype_name(m->a),
             m->ta ? "^T" : "", dtype_name(m->b), m->tb ? "^T" : "", (double)m->alpha, (double)m->beta);
    op_matmul(be, &C, &A, m->ta, &B, m->tb, m->alpha, m->beta);
    gemm_settle(be);
    gemm_check(&p, &C, what);
    op_matmul(three, &D, &A, m->ta, &B, m->tb, m->alpha, m->beta);
    gemm_settle(three);
    if (memcmp(C.data, D.data, tensor_bytes(&C)) != 0) fail_msg("%s: one thread and three differ", what);
    gemm_reference_free(&p);
    output_free(be, &C), output_free(be, &D);
    backend_host_release(be, A.data), backend_host_release(be, B.data);
}

struct pair {
    struct backend *one, *three;
};

static struct pair pair_of(void **state) {
    struct pair p = {backend_of(*state, 1), NULL};
    if (!p.one) skip();
    p.three = backend_of(*state, 3);
    return p;
}

static void pair_done(struct pair *p) {
    backend_free(p->one);
    backend_free(p->three);
}

static void matmul_mixtures(void **state) {
    static const float alphas[] = {1, 0.5f, -2}, betas[] = {0, 1, 0.25f};
    struct pair p = pair_of(state);
    uint64_t s = 1;
    for (int i = 0; i < 32 * (is_simulated(p.one) ? 4 : 8); i++) {
        struct matmul_case m = {random_size(p.one, &s),
                                random_size(p.one, &s),
                                random_size(p.one, &s),
                                i & 1 ? BF16 : F32,
                                i & 2 ? BF16 : F32,
                                i & 4 ? BF16 : F32,
                                i >> 3 & 1,
                                i >> 4 & 1,
                                alphas[gemm_random(&s) % 3],
                                betas[gemm_random(&s) % 3]};
        check_matmul(p.one, p.three, &m, &s);
    }
    pair_done(&p);
}

static void matmul_blocks(void **state) {
    static const struct matmul_case cases[] = {
        {300, 700, 1100, F32, F32, F32, false, true, 1, 0},   {300, 700, 1100, BF16, BF16, BF16, false, true, 1, 1},
        {700, 300, 1100, BF16, BF16, F32, true, false, 1, 0}, {2100, 2300, 40, F32, F32, F32, false, false, 1, 1},
        {2100, 2300, 40, BF16, F32, BF16, true, true, 2, 0},  {16, 1000, 1030, F32, BF16, BF16, true, false, 1, 1},
        {1000, 16, 1030, F32, F32, F32, true, false, 1, 1},   {500, 900, 16, F32, F32, F32, false, true, 0.5f, 1},
        {3, 2, 360000, F32, F32, F32, true, false, 1, 1},     {2, 2, 1060000, BF16, F32, BF16, true, false, 1, 0},
        {0, 5, 7, F32, F32, F32, false, false, 1, 0},         {5, 7, 0, F32, F32, F32, false, false, 1, 0},
        {4, 7, 0, BF16, BF16, F32, true, false, 1, 0.5f},     {130, 300, 24001, BF16, F32, BF16, false, false, 1, 1},
        {130, 300, 24001, F32, F32, F32, false, true, 1, 0},  {30, 9, 3000, F32, BF16, BF16, true, false, 0.5f, 1},
        {9, 30, 3001, F32, F32, F32, false, true, 2, 0.5f},
    };
    struct pair p = pair_of(state);
    uint64_t s = 2;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!too_large(p.one, cases[i].M, cases[i].N, cases[i].K)) check_matmul(p.one, p.three, &cases[i], &s);
    pair_done(&p);
}

/* More shapes than a device remembers how to multiply. */
static void many_shapes(void **state) {
    struct pair p = pair_of(state);
    uint64_t s = 10;
    for (int i = 0; is_device(p.one) && i < 900; i++) {
        struct matmul_case m = {1 + i % 30, 4 + i / 30 * 4, 4, F32, F32, F32, false, false, 1, 0};
        check_matmul(p.one, p.three, &m, &s);
    }
    pair_done(&p);
}

/* --- linear ------------------------------------------------------------------------------------------------------ */

struct linear_case {
    int64_t N, O, I;
    enum dtype act, weight, source;
    int blocksize;
    bool nested, bias, back;
    float beta;
    bool wide; // y or dy in F32
};

/* The type to which this product rounds the elements of its weight, after that of the 4-bit rule. */
static double weight_seen(const struct linear_case *l, const struct weight *w, int64_t i, bool amx) {
    double x = weight_element(w, i, l->back ? l->source : l->act);
    if (w->t.q4) x = check_rounded(x, l->act);
    return check_rounded(x, amx ? BF16 : F32);
}

static bool few_rows(const struct linear_case *l) { return !l->back && l->N <= FEW; }

static void check_linear(struct backend *be, struct backend *three, const struct linear_case *l, uint64_t *s) {
    struct weight *w = weight_new(be, l->weight, l->O, l->I, l->blocksize, l->nested, l->source, s);
    int64_t in = l->back ? l->O : l->I, out = l->back ? l->I : l->O;
    enum dtype in_type = l->wide && l->back ? F32 : l->act, out_type = l->wide && !l->back ? F32 : l->act;
    struct tensor x = input_new(be, in_type, l->N, in, s), y = output_new(be, out_type, l->N, out, s);
    struct tensor z = output_new(be, out_type, l->N, out, NULL), b = output_new(be, F32, out, -1, s);
    bool amx = l->act == BF16 && (is_device(be) || (has_amx(be) && !few_rows(l)));
    struct gemm_reference p = gemm_reference_new(l->N, out, in);
    for (int64_t i = 0; i < l->N * in; i++) p.a[i] = check_rounded(check_get(&x, i), amx ? BF16 : F32);
    for (int64_t o = 0; o < l->O; o++)
        for (int64_t i = 0; i < l->I; i++)
            p.b[l->back ? o * l->I + i : i * l->O + o] = weight_seen(l, w, o * l->I + i, amx);
    if (l->beta != 0.0f) {
        p.beta = 1, p.c = malloc((size_t)(l->N * out) * sizeof(double));
        for (int64_t i = 0; i < l->N * out; i++) p.c[i] = check_get(&y, i);
    } else {
        for (int64_t i = 0; i < l->N * out; i++) check_set(&y, i, NAN);
    }
    memcpy(z.data, y.data, tensor_bytes(&y));
    p.bias = l->bias ? &b : NULL;
    p.bias_unit = is_device(be) && out_type == BF16 ? 0x1p-8 : 0;
    char what[128];
    snprintf(what, sizeof what, "%s, %s%s, weight %s of %s, blocks of %d%s%s, beta %g",
             l->back ? "backward" : "forward", dtype_name(l->act), l->wide ? " and f32" : "", dtype_name(l->weight),
             dtype_name(l->source), l->blocksize, l->nested ? ", nested" : "", l->bias ? ", bias" : "",
             (double)l->beta);
    if (l->back)
        op_linear_backward(be, &y, &x, &w->t, l->beta), op_linear_backward(three, &z, &x, &w->t, l->beta);
    else
        op_linear_forward(be, &y, &x, &w->t, p.bias, l->beta), op_linear_forward(three, &z, &x, &w->t, p.bias, l->beta);
    gemm_settle(be), gemm_settle(three);
    gemm_check(&p, &y, what);
    if (memcmp(y.data, z.data, tensor_bytes(&y)) != 0) fail_msg("%s: one thread and three differ", what);
    gemm_reference_free(&p);
    output_free(be, &y), output_free(be, &z), output_free(be, &b);
    backend_host_release(be, x.data);
    weight_free(w);
}

static void linear_mixtures(void **state, bool back) {
    static const enum dtype weights[] = {F32, BF16, F16, NF4, FP4}, sources[] = {F32, BF16, F16};
    struct pair p = pair_of(state);
    uint64_t s = 3;
    for (int i = 0; i < (is_simulated(p.one) ? 70 : 200); i++) {
        struct linear_case l = {random_size(p.one, &s),
                                random_size(p.one, &s),
                                random_size(p.one, &s),
                                i & 1 ? BF16 : F32,
                                weights[i / 2 % 5],
                                sources[gemm_random(&s) % 3],
                                32 << gemm_random(&s) % 4,
                                gemm_random(&s) & 1,
                                false,
                                back,
                                0,
                                false};
        l.bias = !back && gemm_random(&s) & 1, l.beta = gemm_random(&s) & 1 ? 1.0f : 0.0f;
        l.wide = gemm_random(&s) & 1;
        check_linear(p.one, p.three, &l, &s);
    }
    pair_done(&p);
}

static void forward_mixtures(void **state) { linear_mixtures(state, false); }
static void backward_mixtures(void **state) { linear_mixtures(state, true); }

static void linear_blocks(void **state) {
    static const struct linear_case cases[] = {
        {130, 576, 1536, F32, NF4, BF16, 64, true, true, false, 0, false},
        {130, 577, 1501, BF16, NF4, F16, 64, true, true, false, 1, false},
        {130, 577, 1501, BF16, NF4, F16, 64, true, false, true, 1, false},
        {2, 600, 2500, F32, FP4, BF16, 64, true, true, false, 1, false},
        {4, 600, 2501, BF16, NF4, BF16, 128, false, false, false, 0, false},
        {2, 2500, 600, F32, NF4, BF16, 4096, false, false, true, 0, false},
        {2, 70, 20000, F32, NF4, F32, 32, true, false, false, 0, false},
        {33, 4000, 200, BF16, F16, F16, 64, false, false, true, 1, false},
        {2200, 130, 70, BF16, BF16, BF16, 64, false, true, false, 0, false},
        {130, 2001, 300, BF16, BF16, BF16, 64, false, false, false, 0, true},
        {130, 2001, 300, BF16, BF16, BF16, 64, false, false, true, 1, true},
        {13, 300, 264, BF16, NF4, F16, 64, true, true, false, 1, false},
        {7, 130, 520, BF16, FP4, BF16, 32, false, true, false, 1, true},
    };
    struct pair p = pair_of(state);
    uint64_t s = 4;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!too_large(p.one, cases[i].N, cases[i].O, cases[i].I)) check_linear(p.one, p.three, &cases[i], &s);
    pair_done(&p);
}

/* More than the device expands at once, so that slices meet: a weight of ones and twos whose products are exact. Each
 * row of x has few elements that are not zero. */
static void check_slices(struct backend *be, enum dtype act, bool back, bool wide) {
    enum { O = 2100, I = 4104, N = 3, PICKS = 5 };
    uint64_t s = 8;
    struct weight *w = weight_new(be, NF4, O, I, 64, false, BF16, &s);
    for (int i = 0; i < 16; i++) w->code[i] = (float)(i % 3 - 1);
    for (int64_t i = 0; i < (int64_t)O * I / 64 + 1; i++) w->absmax[i] = (float)(1 + i % 2);
    int64_t in = back ? O : I, out = back ? I : O;
    struct tensor x = input_new(be, wide ? F32 : act, N, in, &s), y = output_new(be, act, N, out, &s);
    int64_t picks[N][PICKS];
    memset(x.data, 0, tensor_bytes(&x));
    for (int64_t i = 0; i < N * PICKS; i++) {
        picks[i / PICKS][i % PICKS] = in * (i % PICKS) / PICKS + (int64_t)gemm_random(&s) % (in / PICKS);
        check_set(&x, i / PICKS * in + picks[i / PICKS][i % PICKS], 1.0f);
    }
    for (int64_t i = 0; i < N * out; i++) check_set(&y, i, 1.0f);
    if (back)
        op_linear_backward(be, &y, &x, &w->t, 1);
    else
        op_linear_forward(be, &y, &x, &w->t, NULL, 1);
    gemm_settle(be);
    for (int64_t n = 0; n < N; n++)
        for (int64_t j = 0; j < out; j++) {
            double want = 1;
            for (int k = 0; k < PICKS; k++)
                want += weight_element(w, back ? picks[n][k] * I + j : j * I + picks[n][k], F32);
            if (check_get(&y, n * out + j) != want)
                fail_msg("%s%s, %s: y[%lld][%lld] is %g, wanted %g", back ? "backward" : "forward",
                         wide ? " of f32" : "", dtype_name(act), (long long)n, (long long)j, check_get(&y, n * out + j),
                         want);
        }
    output_free(be, &y);
    backend_host_release(be, x.data);
    weight_free(w);
}

/* A gradient in F32 that fills what the device has for its copy, but for the padding of its rows. */
static void check_padding(struct backend *be) {
    enum { N = 1000, O = 8388, I = 8 };
    uint64_t s = 13;
    struct weight *w = weight_new(be, NF4, O, I, 64, false, BF16, &s);
    for (int i = 0; i < 16; i++) w->code[i] = (float)(i % 3 - 1);
    for (int64_t i = 0; i < (int64_t)O * I / 64 + 1; i++) w->absmax[i] = 1;
    struct tensor dy = input_new(be, F32, N, O, &s), dx = output_new(be, BF16, N, I, NULL);
    memset(dy.data, 0, tensor_bytes(&dy));
    check_set(&dy, (int64_t)N * O - 1, 2);
    op_linear_backward(be, &dx, &dy, &w->t, 0);
    gemm_settle(be);
    for (int64_t i = 0; i < N * I; i++) {
        double want = i / I < N - 1 ? 0 : 2 * weight_element(w, (int64_t)(O - 1) * I + i % I, F32);
        assert_true(check_get(&dx, i) == want);
    }
    output_free(be, &dx);
    backend_host_release(be, dy.data);
    weight_free(w);
}

static void large_weights(void **state) {
    struct pair p = pair_of(state);
    check_slices(p.one, F32, false, false);
    check_slices(p.one, F32, true, false);
    check_slices(p.one, BF16, true, true);
    check_padding(p.one);
    pair_done(&p);
}

/* The same shape with a bias that is aligned, and then with ones that are less so. */
static void biases_at_any_address(void **state) {
    enum { N = 40, O = 64, I = 72, SHIFTS = 5 };
    struct pair p = pair_of(state);
    uint64_t s = 12;
    struct weight *w = weight_new(p.one, F32, O, I, 0, false, F32, &s);
    struct tensor x = input_new(p.one, F32, N, I, &s), y = output_new(p.one, F32, N, O, NULL);
    struct tensor all = output_new(p.one, F32, O + SHIFTS, -1, &s);
    memset(x.data, 0, tensor_bytes(&x));
    for (int shift = 0; shift < SHIFTS; shift++) {
        struct tensor b = tensor_rows(&all, shift, O);
        op_linear_forward(p.one, &y, &x, &w->t, &b, 0);
        gemm_settle(p.one);
        for (int64_t i = 0; i < N * O; i++) assert_true(check_get(&y, i) == check_get(&b, i % O));
    }
    output_free(p.one, &y), output_free(p.one, &all);
    backend_host_release(p.one, x.data);
    weight_free(w);
    pair_done(&p);
}

/* With rows of the identity for x a product is the weight itself, so each dequantised value shows to the last bit. */
static void check_exact(struct backend *be, int64_t rows, enum dtype act, enum dtype source, bool back, uint64_t *s) {
    enum { O = 150, I = 131 };
    struct weight *w = weight_new(be, NF4, O, I, 64, true, source, s);
    int64_t in = back ? O : I, out = back ? I : O;
    struct tensor x = input_new(be, act, rows, in, s), y = output_new(be, act, rows, out, s);
    for (int64_t i = 0; i < rows * in; i++) check_set(&x, i, i / in == i % in ? 1.0f : 0.0f);
    if (back)
        op_linear_backward(be, &y, &x, &w->t, 0.0f);
    else
        op_linear_forward(be, &y, &x, &w->t, NULL, 0);
    gemm_settle(be);
    for (int64_t n = 0; n < rows; n++)
        for (int64_t j = 0; j < out; j++) {
            double want = weight_element(w, back ? n * I + j : j * I + n, back ? source : act);
            assert_true(check_get(&y, n * out + j) == check_rounded(want, act));
        }
    output_free(be, &y);
    backend_host_release(be, x.data);
    weight_free(w);
}

static void values_exact(void **state) {
    static const enum dtype sources[] = {F32, BF16, F16};
    struct pair p = pair_of(state);
    uint64_t s = 6;
    for (int i = 0; i < 24; i++)
        check_exact(p.one, i & 1 ? 131 : 3, i & 2 ? BF16 : F32, sources[i / 4 % 3], i >= 12, &s);
    pair_done(&p);
}

/* --- lengths of rows --------------------------------------------------------------------------------------------- */

/* Each element is off by (r + 3) eps of the terms in it, and so, relatively to the row's length of those, is the
 * root. */
static void check_norms(struct pair *p, int64_t O, int64_t I, int64_t r, enum dtype type, enum dtype source,
                        bool nested, uint64_t *s) {
    struct backend *be = p->one;
    struct weight *w = weight_new(be, type, O, I, 64, nested, source, s);
    struct tensor A = input_new(be, F32, r, I, s), B = input_new(be, F32, O, r, s);
    struct tensor norms = output_new(be, F32, O, -1, s), again = output_new(be, F32, O, -1, s);
    float scale = 0.75f;
    op_row_norms(p->one, &norms, &w->t, r ? &A : NULL, r ? &B : NULL, scale);
    op_row_norms(p->three, &again, &w->t, r ? &A : NULL, r ? &B : NULL, scale);
    gemm_settle(p->one), gemm_settle(p->three);
    assert_memory_equal(norms.data, again.data, tensor_bytes(&norms));
    for (int64_t o = 0; o < O; o++) {
        double sum = 0, size = 0;
        for (int64_t i = 0; i < I; i++) {
            double v = weight_element(w, o * I + i, source), terms = fabs(v);
            for (int64_t k = 0; k < r; k++) {
                double x = 0.75 * check_get(&B, o * r + k) * check_get(&A, k * I + i);
                v += x, terms += fabs(x);
            }
            sum += v * v, size += terms * terms;
        }
        double tol = ((double)r + 4) * 0x1p-24 * sqrt(size), got = check_get(&norms, o);
        if (!close_enough(got, sqrt(sum), tol))
            fail_msg("norm of row %lld of %lldx%lld, rank %lld, %s: %.9g, wanted %.9g within %.3g", (long long)o,
                     (long long)O, (long long)I, (long long)r, dtype_name(type), got, sqrt(sum), tol);
    }
    output_free(be, &norms), output_free(be, &again);
    backend_host_release(be, A.data), backend_host_release(be, B.data);
    weight_free(w);
}

static void row_norms(void **state) {
    static const enum dtype types[] = {F32, BF16, F16, NF4, FP4}, sources[] = {F32, BF16, F16};
    static const int64_t ranks[] = {0, 1, 4, 16, 33};
    struct pair p = pair_of(state);
    uint64_t s = 5;
    for (int i = 0; i < 60; i++)
        check_norms(&p, random_size(p.one, &s), random_size(p.one, &s), ranks[gemm_random(&s) % 5], types[i % 5],
                    sources[gemm_random(&s) % 3], gemm_random(&s) & 1, &s);
    check_norms(&p, 100, 900, 16, NF4, BF16, true, &s);
    check_norms(&p, 60, 500, 400, BF16, BF16, false, &s);
    pair_done(&p);
}

/* --- whole weights in dense types ------------------------------------------------------------------------------- */

/* Absent where graft is built without the CUDA backend. */
#pragma weak cuda_dequantize

static void check_dequantize(struct backend *be, int64_t O, int64_t I, enum dtype to, int blocksize, bool nested,
                             uint64_t *s) {
    struct weight *w = weight_new(be, NF4, O, I, blocksize, nested, F32, s);
    struct tensor y = output_new(be, to, O, I, NULL);
    char *want = mem_alloc(tensor_bytes(&y) + 1);
    block_dequantize(want, to, &w->t, be->threads);
    cuda_dequantize(be, &y, &w->t);
    gemm_settle(be);
    if (memcmp(want, y.data, tensor_bytes(&y)) != 0)
        fail_msg("%lldx%lld, blocks of %d to %s: other values", (long long)O, (long long)I, blocksize, dtype_name(to));
    output_free(be, &y);
    weight_free(w);
    free(want);
}

static void dequantising(void **state) {
    static const enum dtype types[] = {F32, BF16, F16};
    struct pair p = pair_of(state);
    uint64_t s = 9;
    for (int i = 0; is_device(p.one) && i < 24; i++)
        check_dequantize(p.one, random_size(p.one, &s), random_size(p.one, &s), types[i % 3], 32 << i % 8, i & 1, &s);
    pair_done(&p);
}

/* --- the check itself -------------------------------------------------------------------------------------------- */

static void test_comparison_refuses_nan(void **state) {
    (void)state;
    assert_false(close_enough((double)NAN, 0, 1e30));
    assert_false(close_enough(0, (double)NAN, 1e30));
    assert_false(close_enough(1, 2, 0.5));
    assert_true(close_enough(1, 1.5, 0.5));
}

struct topic {
    const char *name;
    CMUnitTestFunction run;
};

static const struct topic topics[] = {
    {"matmul_mixtures", matmul_mixtures},
    {"matmul_blocks", matmul_blocks},
    {"forward_mixtures", forward_mixtures},
    {"backward_mixtures", backward_mixtures},
    {"linear_blocks", linear_blocks},
    {"row_norms", row_norms},
    {"values_exact", values_exact},
    {"large_weights", large_weights},
    {"dequantising", dequantising},
    {"many_shapes", many_shapes},
    {"biases_at_any_address", biases_at_any_address},
};

enum { TOPICS = sizeof topics / sizeof *topics, ISAS = sizeof isas / sizeof *isas };

int main(void) {
    struct CMUnitTest tests[TOPICS * ISAS + 1] = {cmocka_unit_test(test_comparison_refuses_nan)};
    for (int i = 0; i < TOPICS * ISAS; i++) {
        const char *isa = isas[i % ISAS];
        char *name = mem_format("test_%s_%s", topics[i / ISAS].name, *isa ? isa : "widest");
        tests[i + 1] = (struct CMUnitTest){name, topics[i / ISAS].run, NULL, NULL, (void *)isa};
    }
    cmocka_set_test_filter(getenv("GRAFT_TEST_ONLY"));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < TOPICS * ISAS; i++) free((void *)tests[i + 1].name);
    return failed != 0;
}

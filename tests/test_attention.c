/* Rotary embedding and attention against their formulas in double, as op_check.h says. The gradients of attention come
 * from a second formula in double, which on small shapes is itself compared with central differences of the forward
 * formula. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/op_check.h"

/* --- rope --------------------------------------------------------------------------------------------------------- */

/* N, H, D, half */
static void case_rope(struct check *c, const int64_t *shape) {
    int64_t N = shape[0], H = shape[1], D = shape[2], half = shape[3], P = 50;
    struct tensor before = check_input3(c, c->act, N, H, D, -2, 2), table = check_input3(c, F32, 2, P, half, -1, 1);
    struct tensor positions = check_indices(c, N, 0, P);
    for (int sign = -1; sign <= 1; sign += 2) {
        struct tensor x = check_copy(c, &before);
        double *want = check_values(c, &before), *size = check_zeros(c, N * H * D);
        for (int64_t i = 0; i < N * H; i++)
            for (int64_t j = 0; j < half; j++) {
                int64_t at = ((int32_t *)positions.data)[i / H] * half + j;
                double a = check_get(&before, i * D + j), b = check_get(&before, i * D + half + j);
                double co = check_get(&table, at), si = sign * check_get(&table, P * half + at);
                want[i * D + j] = a * co - b * si, size[i * D + j] = fabs(a * co) + fabs(b * si);
                want[i * D + half + j] = b * co + a * si, size[i * D + half + j] = fabs(b * co) + fabs(a * si);
            }
        op_rope(c->be, &x, &table, &positions, (float)sign);
        check_near(c, "x", &x, want, size, 2);
    }
}

static void test_rope(void **state) {
    (void)state;
    RUN(case_rope, {1, 1, 2, 1}, {31, 3, 8, 4}, {33, 2, 80, 20}, {129, 5, 128, 64}, {0, 2, 8, 4});
}

/* --- attention in double ------------------------------------------------------------------------------------------ */

enum { FEW = 3, MANY = 40 };

/* What a case is: three sequences, of `queries` positions and less, each with `extra` more keys; or more sequences, the
 * others of 0 to 4 positions, and then max_q and max_kv are bounds that no sequence reaches. */
struct problem {
    int64_t H, K, D, sequences, q_at[MANY + 1], k_at[MANY + 1], window, max_q, max_kv;
    bool causal;
    double scale;
};

/* shape: queries, extra, H, K, D, causal, window, sequences (0: three) */
static struct problem problem_of(const int64_t *s) {
    struct problem p = {.H = s[2], .K = s[3], .D = s[4], .causal = s[5], .window = s[6], .max_q = s[0]};
    p.sequences = s[7] ? s[7] : FEW;
    for (int64_t i = 0; i < p.sequences; i++) {
        int64_t queries = i == 0 ? s[0] : i == 1 ? s[0] / 2 : i == 2 ? 1 : i % 5, keys = queries + s[1];
        if (keys < 0) keys = 0;
        p.q_at[i + 1] = p.q_at[i] + queries, p.k_at[i + 1] = p.k_at[i] + keys;
        if (keys > p.max_kv) p.max_kv = keys;
    }
    if (s[7]) p.max_q += 100, p.max_kv += 300;
    p.scale = (double)(float)(1 / sqrt((double)p.D));
    return p;
}

static bool sees(const struct problem *p, int s, int64_t i, int64_t j) {
    int64_t queries = p->q_at[s + 1] - p->q_at[s], keys = p->k_at[s + 1] - p->k_at[s], at = i + keys - queries;
    return (!p->causal || j <= at) && (p->window <= 0 || j > at - p->window);
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* prob (keys) of query i of sequence s, head h; returns the log of the sum, -INFINITY when no key is seen. */
static double probabilities(const struct problem *p, int s, int64_t i, int64_t h, const double *q, const double *k,
                            double *prob) {
    int64_t keys = p->k_at[s + 1] - p->k_at[s], head = h / (p->H / p->K);
    const double *qi = q + ((p->q_at[s] + i) * p->H + h) * p->D;
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < keys; j++) {
        prob[j] = sees(p, s, i, j) ? p->scale * dot(qi, k + ((p->k_at[s] + j) * p->K + head) * p->D, p->D) : -INFINITY;
        most = fmax(most, prob[j]);
    }
    for (int64_t j = 0; j < keys; j++) sum += prob[j] > -INFINITY ? exp(prob[j] - most) : 0;
    for (int64_t j = 0; j < keys; j++) prob[j] = prob[j] > -INFINITY ? exp(prob[j] - most) / sum : 0;
    return sum > 0 ? most + log(sum) : -INFINITY;
}

/* size (Nq,H,D) or NULL: the sum of p |v|. */
static void forward(const struct problem *p, const double *q, const double *k, const double *v, double *o, double *lse,
                    double *size) {
    double *prob = mem_alloc((size_t)p->max_kv * sizeof *prob);
    for (int s = 0; s < p->sequences; s++)
        for (int64_t i = 0; i < p->q_at[s + 1] - p->q_at[s]; i++)
            for (int64_t h = 0; h < p->H; h++) {
                int64_t row = (p->q_at[s] + i) * p->H + h, head = h / (p->H / p->K);
                lse[row] = probabilities(p, s, i, h, q, k, prob);
                for (int64_t d = 0; d < p->D; d++) o[row * p->D + d] = 0;
                for (int64_t j = 0; j < p->k_at[s + 1] - p->k_at[s]; j++)
                    for (int64_t d = 0; d < p->D; d++) {
                        double term = prob[j] * v[((p->k_at[s] + j) * p->K + head) * p->D + d];
                        o[row * p->D + d] += term;
                        if (size) size[row * p->D + d] += fabs(term);
                    }
            }
    free(prob);
}

/* Gradients, in s* the sums of the magnitudes that their terms are computed from, and in r* those of the terms
 * themselves. o is what the op reads. */
struct gradients {
    double *dq, *dk, *dv, *sq, *sk, *sv, *rq, *rk, *rv;
};

static void backward_row(const struct problem *p, int s, int64_t i, int64_t h, const double *q, const double *k,
                         const double *v, const double *o, const double *dO, double *prob, struct gradients *g) {
    int64_t row = ((p->q_at[s] + i) * p->H + h) * p->D, D = p->D;
    probabilities(p, s, i, h, q, k, prob);
    double delta = dot(dO + row, o + row, D), delta_size = 0;
    for (int64_t d = 0; d < D; d++) delta_size += fabs(dO[row + d] * o[row + d]);
    for (int64_t j = 0; j < p->k_at[s + 1] - p->k_at[s]; j++) {
        int64_t key = ((p->k_at[s] + j) * p->K + h / (p->H / p->K)) * D;
        double dP = dot(dO + row, v + key, D), dP_size = delta_size, score_size = 1;
        for (int64_t d = 0; d < D; d++) dP_size += fabs(dO[row + d] * v[key + d]);
        for (int64_t d = 0; d < D; d++) score_size += p->scale * fabs(q[row + d] * k[key + d]);
        double ds = p->scale * prob[j] * (dP - delta), ds_size = p->scale * prob[j] * dP_size * score_size;
        for (int64_t d = 0; d < D; d++) {
            g->dq[row + d] += ds * k[key + d], g->sq[row + d] += ds_size * fabs(k[key + d]);
            g->dk[key + d] += ds * q[row + d], g->sk[key + d] += ds_size * fabs(q[row + d]);
            g->dv[key + d] += prob[j] * dO[row + d];
            g->sv[key + d] += prob[j] * score_size * fabs(dO[row + d]);
            g->rq[row + d] += fabs(ds * k[key + d]), g->rk[key + d] += fabs(ds * q[row + d]);
            g->rv[key + d] += prob[j] * fabs(dO[row + d]);
        }
    }
}

static void backward(const struct problem *p, const double *q, const double *k, const double *v, const double *o,
                     const double *dO, struct gradients *g) {
    double *prob = mem_alloc((size_t)p->max_kv * sizeof *prob);
    for (int s = 0; s < p->sequences; s++)
        for (int64_t i = 0; i < p->q_at[s + 1] - p->q_at[s]; i++)
            for (int64_t h = 0; h < p->H; h++) backward_row(p, s, i, h, q, k, v, o, dO, prob, g);
    free(prob);
}

static double *numbers(int64_t n) { return mem_alloc((size_t)n * sizeof(double)); }

/* The formula of the gradients against differences of the forward formula, every element of q, k and v. */
static void check_formula(const int64_t *shape) {
    struct problem p = problem_of(shape);
    int64_t nq = p.q_at[p.sequences] * p.H * p.D, nk = p.k_at[p.sequences] * p.K * p.D;
    double *x[3] = {numbers(nq), numbers(nk), numbers(nk)}, *dO = numbers(nq), *o = numbers(nq), *lse = numbers(nq);
    struct gradients g = {numbers(nq), numbers(nk), numbers(nk), numbers(nq), numbers(nk),
                          numbers(nk), numbers(nq), numbers(nk), numbers(nk)};
    double *slope[3] = {g.dq, g.dk, g.dv};
    for (int64_t i = 0; i < nq; i++) x[0][i] = sin(1.0 + (double)i), dO[i] = cos(2.0 * (double)i);
    for (int64_t i = 0; i < nk; i++) x[1][i] = sin(3.0 + 5.0 * (double)i), x[2][i] = cos(7.0 * (double)i);
    forward(&p, x[0], x[1], x[2], o, lse, NULL);
    backward(&p, x[0], x[1], x[2], o, dO, &g);
    for (int t = 0; t < 3; t++)
        for (int64_t i = 0; i < (t ? nk : nq); i++) {
            double kept = x[t][i], loss[2], step = 0x1p-17;
            for (int side = 0; side < 2; side++) {
                x[t][i] = kept + (side ? step : -step);
                forward(&p, x[0], x[1], x[2], o, lse, NULL);
                loss[side] = dot(dO, o, nq);
            }
            x[t][i] = kept;
            if (!(fabs((loss[1] - loss[0]) / (2 * step) - slope[t][i]) < 1e-8)) fail_msg("slope %d[%d]", t, (int)i);
        }
    double *all[] = {x[0], x[1], x[2], dO, o, lse, g.dq, g.dk, g.dv, g.sq, g.sk, g.sv, g.rq, g.rk, g.rv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void test_gradient_formula(void **state) {
    (void)state;
    static const int64_t shapes[][8] = {{5, 0, 1, 1, 3, 0, 0}, {5, 2, 4, 2, 3, 1, 0}, {6, 0, 2, 2, 2, 1, 3}};
    for (int i = 0; i < 3; i++) check_formula(shapes[i]);
}

/* --- the op ------------------------------------------------------------------------------------------------------- */

/* Where AMX or tensor cores multiply, p and ds are rounded to bf16 before they are factors, which changes a term by up
 * to 2^-8 of itself:
 *   o by 2^-8 sum_j p_j |v_j|,   dv by 2^-8 sum_i p_i |dO_i|,   dq by 2^-8 sum_j |ds_j k_j|,   dk by 2^-8 sum_i |ds_i
 * q_i|. The products themselves are exact in F32 and summed there, so this comes on top of the bounds of F32. It counts
 * twice, since rounding the output may go the other way: with e the error before the rounding r, |r(x + e) - x| is at
 * most |r(x) - x| + 2 |e|. lse has none of it: the sum of exponentials is taken before they are rounded. */
static bool rounds_probabilities(const struct check *c) {
    return c->act == BF16 && (strncmp(c->be->name, "cuda", 4) == 0 || strstr(backend_describe(c->be), "AMX"));
}

static const double unit_bf16 = 0x1p-7 / 0x1p-24; // in the units of check_near

/* size[i] for `units` units becomes one that allows unit_bf16 * rounded[i] more. */
static void allow_rounding(const struct check *c, double *size, const double *rounded, int64_t n, double units) {
    if (!rounds_probabilities(c)) return;
    for (int64_t i = 0; i < n; i++) size[i] += rounded[i] * unit_bf16 / units;
}

/* A score has an error of its own size (the sum of |q k|, near sqrt(D) here) times the unit; its exponential carries it
 * on. 4 D^(1/2) + 16 units cover that and the sums over keys, which run in lanes. */
static void case_attention(struct check *c, const int64_t *shape) {
    struct problem p = problem_of(shape);
    int64_t Nq = p.q_at[p.sequences], Nk = p.k_at[p.sequences], nq = Nq * p.H * p.D, nk = Nk * p.K * p.D;
    struct tensor q = check_input3(c, c->act, Nq, p.H, p.D, -2, 2), k = check_input3(c, c->act, Nk, p.K, p.D, -2, 2);
    struct tensor v = check_input3(c, c->act, Nk, p.K, p.D, -2, 2), dO = check_input3(c, c->act, Nq, p.H, p.D, -1, 1);
    struct tensor q_at = check_offsets(c, p.sequences + 1, p.q_at), k_at = check_offsets(c, p.sequences + 1, p.k_at);
    struct tensor o = check_output(c, &q), lse = check_output2(c, F32, Nq, p.H), o2 = check_output(c, &q);
    struct tensor dq = check_output(c, &q), dk = check_output(c, &k), dv = check_output(c, &k);
    struct tensor delta = check_output(c, &lse);
    struct attention a = {&q_at, &k_at, p.sequences, p.max_q, p.max_kv, p.causal, p.window, (float)p.scale};
    op_attention_forward(c->be, &o, &lse, &q, &k, &v, &a);
    op_attention_forward(c->be, &o2, NULL, &q, &k, &v, &a);
    op_attention_backward(c->be, &dq, &dk, &dv, &delta, &dO, &o, &lse, &q, &k, &v, &a);

    double *vq = check_values(c, &q), *vk = check_values(c, &k), *vv = check_values(c, &v), *vdO = check_values(c, &dO);
    double *w_o = check_zeros(c, nq), *w_lse = check_zeros(c, Nq * p.H), *s_o = check_zeros(c, nq);
    double *s_lse = check_zeros(c, Nq * p.H), *r_o = check_zeros(c, nq), units = 4 * sqrt((double)p.D) + 16;
    forward(&p, vq, vk, vv, w_o, w_lse, r_o);
    for (int64_t i = 0; i < nq; i++) s_o[i] = 2;
    allow_rounding(c, s_o, r_o, nq, units);
    for (int64_t i = 0; i < Nq * p.H; i++) {
        s_lse[i] = 4 + fabs(w_lse[i]);
        if (!isfinite(w_lse[i])) w_lse[i] = 0, s_lse[i] = 1; // sees no key
    }
    check_near(c, "o", &o, w_o, s_o, units);
    check_equal(c, "o without lse", &o2, check_values(c, &o));
    check_near(c, "lse", &lse, w_lse, s_lse, units);
    struct gradients g = {check_zeros(c, nq), check_zeros(c, nk), check_zeros(c, nk),
                          check_zeros(c, nq), check_zeros(c, nk), check_zeros(c, nk),
                          check_zeros(c, nq), check_zeros(c, nk), check_zeros(c, nk)};
    backward(&p, vq, vk, vv, check_values(c, &o), vdO, &g);
    allow_rounding(c, g.sq, g.rq, nq, 16);
    allow_rounding(c, g.sk, g.rk, nk, 16);
    allow_rounding(c, g.sv, g.rv, nk, 16);
    check_near(c, "dq", &dq, g.dq, g.sq, 16);
    check_near(c, "dk", &dk, g.dk, g.sk, 16);
    check_near(c, "dv", &dv, g.dv, g.sv, 16);
}

static void test_attention_plain(void **state) {
    (void)state;
    RUN(case_attention, {1, 0, 1, 1, 1, 0, 0}, {31, 0, 1, 1, 8, 0, 0}, {33, 0, 2, 2, 16, 0, 0},
        {129, 0, 1, 1, 72, 0, 0}, {64, 0, 1, 1, 80, 0, 0}, {65, 0, 1, 1, 96, 0, 0}, {33, 0, 2, 2, 128, 0, 0},
        {31, 0, 1, 1, 256, 0, 0}, {200, 0, 1, 1, 13, 0, 0});
}

static void test_attention_causal(void **state) {
    (void)state;
    RUN(case_attention, {1, 0, 1, 1, 4, 1, 0}, {31, 0, 1, 1, 8, 1, 0}, {129, 0, 1, 1, 64, 1, 0});
}

static void test_attention_window(void **state) {
    (void)state;
    RUN(case_attention, {31, 0, 1, 1, 8, 1, 1}, {129, 0, 1, 1, 8, 1, 3}, {200, 0, 1, 1, 16, 1, 64},
        {200, 0, 1, 1, 16, 1, 65}, {150, 7, 2, 1, 8, 1, 100}, {129, 0, 1, 1, 8, 0, 33});
}

static void test_attention_grouped_heads(void **state) {
    (void)state;
    RUN(case_attention, {33, 0, 4, 2, 16, 1, 0}, {31, 0, 6, 2, 8, 0, 0}, {5, 0, 71, 1, 8, 1, 0},
        {200, 0, 3, 1, 64, 1, 0}, {260, 0, 2, 1, 36, 1, 70});
}

static void test_attention_with_earlier_keys(void **state) {
    (void)state;
    RUN(case_attention, {1, 130, 4, 2, 32, 1, 0}, {31, 100, 2, 1, 8, 1, 0}, {33, 63, 1, 1, 8, 0, 0});
}

/* What a kernel may do in its own way: head sizes by 8 and not, wider than 128, tiles that end within a group of heads,
 * boundaries of a mask within a tile and on its edge. */
static void test_attention_shapes_of_heads(void **state) {
    (void)state;
    RUN(case_attention, {129, 0, 3, 1, 64, 1, 0}, {50, 5, 3, 1, 128, 1, 33}, {64, 64, 2, 1, 100, 1, 0},
        {66, 0, 1, 1, 48, 1, 20}, {40, 9, 3, 1, 256, 1, 17}, {35, 0, 1, 1, 200, 0, 0}, {128, 0, 1, 1, 128, 1, 0},
        {65, 0, 1, 1, 80, 1, 0}, {50, 3, 2, 1, 96, 0, 7});
}

static void test_attention_many_sequences(void **state) {
    (void)state;
    RUN(case_attention, {40, 0, 2, 1, 16, 1, 0, MANY}, {3, 0, 1, 1, 8, 0, 0, 33}, {20, 3, 3, 1, 64, 1, 5, 32},
        {0, 2, 1, 1, 8, 0, 0, 4});
}

/* More queries than keys: the first queries stand before the first key and see nothing. */
static void test_attention_of_queries_that_see_nothing(void **state) {
    (void)state;
    RUN(case_attention, {70, -66, 1, 1, 8, 1, 0}, {33, -3, 2, 1, 16, 1, 4}, {5, -5, 1, 1, 8, 0, 0});
}

static void check_bad_offsets(const char *device, const char *sentence) {
    struct err e = {0};
    struct backend *be = backend_new(device, 1, &e);
    if (!be) {
        print_message("skip: %s\n", e.text);
        return;
    }
    float *m = backend_host_alloc(be, 64 * sizeof *m);
    int64_t *at = backend_host_alloc(be, 2 * sizeof *at);
    at[0] = 0, at[1] = 9;
    struct tensor x = tensor_over3(m, F32, 8, 1, 8), offsets = tensor_over1(at, I64, 2);
    struct attention a = {&offsets, &offsets, 1, 16, 16, true, 0, 1};
    op_attention_forward(be, &x, NULL, &x, &x, &x, &a);
    assert_int_equal(backend_sync(be, &e), ST_FAIL);
    if (!strstr(e.text, sentence)) fail_msg("%s says: %s", device, e.text);
    backend_host_release(be, m), backend_host_release(be, at);
    backend_free(be);
}

static void test_bad_offsets_are_reported(void **state) {
    (void)state;
    check_bad_offsets("cpu", "query rows 0 .. 9 of 8");
    check_bad_offsets("cuda", "offsets of queries: index 9 at position 0, wanted 0 .. 8");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_gradient_formula),
        cmocka_unit_test(test_attention_plain),
        cmocka_unit_test(test_attention_causal),
        cmocka_unit_test(test_attention_window),
        cmocka_unit_test(test_attention_grouped_heads),
        cmocka_unit_test(test_attention_with_earlier_keys),
        cmocka_unit_test(test_attention_shapes_of_heads),
        cmocka_unit_test(test_attention_many_sequences),
        cmocka_unit_test(test_attention_of_queries_that_see_nothing),
        cmocka_unit_test(test_bad_offsets_are_reported),
    };
    cmocka_set_test_filter(getenv("GRAFT_TEST_ONLY"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}

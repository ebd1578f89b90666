#include "tests/gemm_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/op_check.h"

enum { GUARD = 64, SAMPLES = 3000 };

uint64_t gemm_random(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return *s >> 33;
}

static float random_float(uint64_t *s) { return (float)gemm_random(s) * 0x1p-30f - 1.0f; }

bool close_enough(double got, double want, double tol) { return fabs(got - want) <= tol; }

/* --- tensors ----------------------------------------------------------------------------------------------------- */

static void *memory(struct backend *be, size_t bytes) {
    void *p = backend_host_alloc(be, bytes);
    if (!p) fail_msg("%s", be->err.text);
    return p;
}

void gemm_settle(struct backend *be) {
    struct err e = {0};
    if (backend_sync(be, &e) != ST_OK) fail_msg("%s", e.text);
}

struct tensor output_new(struct backend *be, enum dtype type, int64_t a, int64_t b, uint64_t *s) {
    struct tensor t = b < 0 ? tensor_over1(NULL, type, a) : tensor_over2(NULL, type, a, b);
    char *p = memory(be, tensor_bytes(&t) + 2 * GUARD);
    memset(p, 0xA5, tensor_bytes(&t) + 2 * GUARD);
    t.data = p + GUARD;
    for (int64_t i = 0; s && i < tensor_count(&t); i++) check_set(&t, i, random_float(s));
    return t;
}

void output_free(struct backend *be, const struct tensor *t) {
    const unsigned char *p = (const unsigned char *)t->data - GUARD;
    size_t bytes = tensor_bytes(t);
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(p[i], 0xA5);
        assert_int_equal(p[GUARD + bytes + i], 0xA5);
    }
    backend_host_release(be, (char *)t->data - GUARD);
}

struct tensor input_new(struct backend *be, enum dtype type, int64_t a, int64_t b, uint64_t *s) {
    struct tensor t = tensor_over2(NULL, type, a, b);
    t.data = memory(be, tensor_bytes(&t));
    for (int64_t i = 0; i < tensor_count(&t); i++) check_set(&t, i, random_float(s));
    return t;
}

/* --- 4-bit ------------------------------------------------------------------------------------------------------- */

struct weight *weight_new(struct backend *be, enum dtype type, int64_t O, int64_t I, int blocksize, bool nested,
                          enum dtype source, uint64_t *s) {
    struct weight *w = mem_alloc(sizeof *w);
    w->be = be;
    if (type != NF4 && type != FP4) {
        w->t = input_new(be, type, O, I, s);
        return w;
    }
    int64_t blocks = (O * I + blocksize - 1) / blocksize, groups = (blocks + 255) / 256;
    w->t = tensor_over2(NULL, type, O, I);
    w->t.data = memory(be, tensor_bytes(&w->t));
    w->code = memory(be, 16 * sizeof(float));
    w->nested_code = memory(be, 256 * sizeof(float));
    for (size_t i = 0; i < tensor_bytes(&w->t); i++) ((uint8_t *)w->t.data)[i] = (uint8_t)gemm_random(s);
    for (int i = 0; i < 16; i++) w->code[i] = random_float(s);
    for (int i = 0; i < 256; i++) w->nested_code[i] = random_float(s);
    w->absmax = memory(be, (size_t)blocks * sizeof(float));
    w->absmax8 = memory(be, (size_t)blocks);
    w->nested_absmax = memory(be, (size_t)groups * sizeof(float));
    for (int64_t i = 0; i < blocks; i++) w->absmax[i] = 1.5f + random_float(s);
    for (int64_t i = 0; i < blocks; i++) w->absmax8[i] = (uint8_t)gemm_random(s);
    for (int64_t i = 0; i < groups; i++) w->nested_absmax[i] = 1.5f + random_float(s);
    w->q = (struct q4){.blocksize = blocksize, .source = source, .code = w->code};
    if (nested) {
        w->q.absmax8 = w->absmax8, w->q.nested_absmax = w->nested_absmax, w->q.nested_code = w->nested_code;
        w->q.nested_offset = 0.3f, w->q.nested_blocksize = 256;
    } else {
        w->q.absmax = w->absmax;
    }
    w->t.q4 = &w->q;
    return w;
}

void weight_free(struct weight *w) {
    void *const parts[] = {w->t.data, w->code, w->nested_code, w->absmax, w->absmax8, w->nested_absmax};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i]) backend_host_release(w->be, parts[i]);
    free(w);
}

/* The value by hand: the product and the sum of a nested scale are two roundings. */
double weight_element(const struct weight *w, int64_t i, enum dtype round) {
    if (!w->t.q4) return check_get(&w->t, i);
    int64_t block = i / w->q.blocksize;
    uint8_t byte = ((const uint8_t *)w->t.data)[i / 2];
    float scale = w->absmax[block];
    if (!w->q.absmax) {
        volatile float product = w->nested_code[w->absmax8[block]] * w->nested_absmax[block / 256];
        scale = product + 0.3f;
    }
    return check_rounded(w->code[i % 2 ? byte & 15 : byte >> 4] * scale, round);
}

/* --- reference --------------------------------------------------------------------------------------------------- */

struct gemm_reference gemm_reference_new(int64_t M, int64_t N, int64_t K) {
    struct gemm_reference p = {.M = M, .N = N, .K = K, .alpha = 1};
    p.a = malloc((size_t)(M * K + 1) * sizeof(double)), p.b = malloc((size_t)(K * N + 1) * sizeof(double));
    return p;
}

void gemm_reference_free(struct gemm_reference *p) {
    free(p->a);
    free(p->b);
    free(p->c);
}

static void check_element(const struct gemm_reference *p, const struct tensor *C, int64_t m, int64_t n,
                          const char *what) {
    double sum = 0, size = 0;
    for (int64_t k = 0; k < p->K; k++) {
        double x = p->a[m * p->K + k] * p->b[k * p->N + n];
        sum += x, size += fabs(x);
    }
    double old = p->c ? p->beta * p->c[m * p->N + n] : 0, bias = p->bias ? check_get(p->bias, n) : 0;
    double want = p->alpha * sum + old + bias, unit = C->type == BF16 ? 0x1p-8 : 0x1p-24;
    double tol = fabs(p->alpha) * size * (double)(p->K + 8) * 0x1p-24 + 0x1p-22 * (fabs(old) + fabs(bias)) +
                 p->bias_unit * fabs(bias);
    double got = check_get(C, m * p->N + n);
    if (close_enough(got, want, tol + unit * (fabs(want) + tol))) return;
    fail_msg("%s, %lldx%lldx%lld: C[%lld][%lld] is %.9g, wanted %.9g within %.3g", what, (long long)p->M,
             (long long)p->N, (long long)p->K, (long long)m, (long long)n, got, want, tol + unit * fabs(want));
}

void gemm_check(const struct gemm_reference *p, const struct tensor *C, const char *what) {
    uint64_t s = 7;
    double work = (double)p->M * (double)p->N * (double)p->K;
    if (work < 4e6)
        for (int64_t i = 0; i < p->M * p->N; i++) check_element(p, C, i / p->N, i % p->N, what);
    else
        for (int i = 0; i < SAMPLES && i < 4e8 / (double)p->K; i++)
            check_element(p, C, (int64_t)gemm_random(&s) % p->M, (int64_t)gemm_random(&s) % p->N, what);
}

#include "lora/svd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/memory.h"
#include "base/rng.h"
#include "kernels/ops.h"

/* LAPACK counts columns first: its (n,k) matrix is here k rows of n numbers. */
extern void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork,
                    int *info);
extern void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau,
                    double *work, const int *lwork, int *info);
extern void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u,
                    const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork, int *iwork, int *info,
                    size_t jobz_length);

enum { SMALL = 192, EXTRA = 16, ROUNDS = 16 };

static int failed(int info, struct err *e) {
    if (info != 0)
        err_set(e, ST_FAIL, "LAPACK could not decompose a matrix (%d); does it hold numbers that are not finite?",
                info);
    return info != 0;
}

/* rows (k,n), k <= n, become orthonormal and span what they spanned. */
static void orthonormalise(float *rows, int k, int n, struct err *e) {
    double *a = mem_alloc((size_t)k * (size_t)n * sizeof *a), *tau = mem_alloc((size_t)k * sizeof *tau), wanted;
    int info = 0, query = -1, room;
    for (int64_t i = 0; i < (int64_t)k * n; i++) a[i] = (double)rows[i];
    dgeqrf_(&n, &k, a, &n, tau, &wanted, &query, &info);
    room = (int)wanted > k ? (int)wanted : k;
    double *work = mem_alloc((size_t)room * sizeof *work);
    dgeqrf_(&n, &k, a, &n, tau, work, &room, &info);
    if (!failed(info, e)) dorgqr_(&n, &k, &k, a, &n, tau, work, &room, &info);
    failed(info, e);
    for (int64_t i = 0; i < (int64_t)k * n; i++) rows[i] = (float)a[i];
    free(a), free(tau), free(work);
}

/* Of M (m,n) with q = min(m,n): left (m,q), s (q) descending, right (q,n). */
struct parts {
    double *left, *s, *right;
};

static void decompose(struct parts *p, const float *M, int m, int n, struct err *e) {
    int q = m < n ? m : n, info = 0, query = -1, room;
    double *a = mem_alloc((size_t)m * (size_t)n * sizeof *a), wanted;
    int *whole = mem_alloc((size_t)(8 * q) * sizeof *whole);
    for (int64_t i = 0; i < (int64_t)m * n; i++) a[i] = (double)M[i];
    p->left = mem_alloc((size_t)m * (size_t)q * sizeof *a), p->right = mem_alloc((size_t)q * (size_t)n * sizeof *a);
    p->s = mem_alloc((size_t)q * sizeof *a);
    dgesdd_("S", &n, &m, a, &n, p->s, p->right, &n, p->left, &q, &wanted, &query, whole, &info, 1);
    room = (int)wanted;
    double *work = mem_alloc((size_t)(room > 0 ? room : 1) * sizeof *work);
    if (!failed(info, e)) dgesdd_("S", &n, &m, a, &n, p->s, p->right, &n, p->left, &q, work, &room, whole, &info, 1);
    failed(info, e);
    free(a), free(whole), free(work);
}

static void parts_free(struct parts *p) { free(p->left), free(p->s), free(p->right); }

/* The first r of the parts into B and A, both with half of S; left is turned by Q^T, Q (m,O), unless Q is NULL. */
static double compose(struct backend *be, float *B, float *A, const struct parts *p, int64_t m, int64_t I, int64_t O,
                      int64_t q, int64_t r, const float *Q) {
    double held = 0;
    int64_t kept = q < r ? q : r;
    float *left = mem_alloc((size_t)(m * r) * sizeof *left);
    memset(A, 0, (size_t)(r * I) * sizeof *A);
    for (int64_t k = 0; k < kept; k++) {
        double root = sqrt(p->s[k]);
        held += p->s[k] * p->s[k];
        for (int64_t i = 0; i < I; i++) A[k * I + i] = (float)(root * p->right[k * I + i]);
        for (int64_t i = 0; i < m; i++) left[i * r + k] = (float)(root * p->left[i * q + k]);
    }
    if (Q) {
        struct tensor tB = tensor_over2(B, F32, O, r), tQ = tensor_over2((void *)Q, F32, m, O);
        struct tensor tL = tensor_over2(left, F32, m, r);
        op_matmul(be, &tB, &tQ, true, &tL, false, 1, 0);
    } else {
        memcpy(B, left, (size_t)(O * r) * sizeof *B);
    }
    free(left);
    return held;
}

/* Q (k,O) orthonormal whose span holds nearly all of D that k vectors can, and M (k,I) = Q D. */
static void find_range(struct backend *be, float *Q, float *M, const float *D, int64_t k, int64_t O, int64_t I,
                       struct err *e) {
    struct tensor tQ = tensor_over2(Q, F32, k, O), tM = tensor_over2(M, F32, k, I);
    struct tensor tD = tensor_over2((void *)D, F32, O, I);
    double before = -1, held = 0;
    for (int64_t i = 0; i < k * I; i++) M[i] = (float)(2 * rng_uniform(7, 1, (uint64_t)i) - 1);
    for (int round = 0; round < ROUNDS && e->code == ST_OK && held > before * (1 + 1e-7); round++) {
        before = held;
        orthonormalise(M, (int)k, (int)I, e);
        op_matmul(be, &tQ, &tM, false, &tD, true, 1, 0);
        if (backend_sync(be, e) != ST_OK) return;
        orthonormalise(Q, (int)k, (int)O, e);
        op_matmul(be, &tM, &tQ, false, &tD, false, 1, 0);
        if (backend_sync(be, e) != ST_OK) return;
        held = floats_square_sum(M, k * I);
    }
}

double svd_low_rank(struct backend *be, float *B, float *A, const float *D, int64_t O, int64_t I, int64_t r,
                    struct err *e) {
    int64_t least = O < I ? O : I, k = r + EXTRA;
    struct parts p = {0};
    double held = 0;
    if (least <= SMALL || 2 * k >= least) {
        decompose(&p, D, (int)O, (int)I, e);
        if (e->code == ST_OK) held = compose(be, B, A, &p, O, I, O, least, r, NULL);
    } else {
        float *Q = mem_alloc((size_t)(k * O) * sizeof *Q), *M = mem_alloc((size_t)(k * I) * sizeof *M);
        find_range(be, Q, M, D, k, O, I, e);
        if (e->code == ST_OK) decompose(&p, M, (int)k, (int)I, e);
        if (e->code == ST_OK) held = compose(be, B, A, &p, k, I, O, k, r, Q);
        backend_sync(be, e);
        free(Q), free(M);
    }
    parts_free(&p);
    return held;
}

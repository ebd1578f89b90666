/* One product of cuBLASLt, and the memory of how each shape is multiplied.
 *
 * The library counts columns first. A row-major matrix is its transpose there, so C^T (n,m) = op(B)^T op(A)^T: B comes
 * first, and an operand is transposed exactly where it is here. */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/graphs.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum : size_t { WORKSPACE = 32u << 20 };
enum { WAYS = 512, TRIES = 8, ALIGNMENT = 16, CANDIDATES = 4 };

static_assert(sizeof(struct lt_algorithm) == 64 && sizeof(struct lt_candidate) == 96, "the layout of the library");

/* What a way depends on. Filled over zeros, so that it compares by bytes. */
struct shape {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t in, out, ta, tb;
    uint32_t a_align, b_align, c_align, bias_align; // bias_align 0: there is none
};

/* How products of one shape are multiplied. */
struct way {
    struct shape shape;
    bool known, possible;
    bool proved;               // it was multiplied so, and not refused
    void *product, *a, *b, *c; // a is our B, b our A
    struct lt_algorithm algorithm;
    size_t workspace;
};

struct cublaslt {
    struct cublaslt_calls calls;
    void *handle;
    char *workspace;       // of the device
    struct way ways[WAYS]; // within TRIES places from where the hash of the shape says
    unsigned replaced;     // so many had to make room
};

/* --- opening ----------------------------------------------------------------------------------------------------- */

static void way_forget(struct cublaslt *l, struct way *w) {
    if (w->product) l->calls.product_free(w->product);
    if (w->a) l->calls.layout_free(w->a);
    if (w->b) l->calls.layout_free(w->b);
    if (w->c) l->calls.layout_free(w->c);
    memset(w, 0, sizeof *w);
}

void cublaslt_close(struct cublaslt *l) {
    if (!l) return;
    for (struct way &w : l->ways)
        if (w.known) way_forget(l, &w);
    if (l->handle) l->calls.destroy(l->handle);
    if (l->workspace) cudaFree(l->workspace);
    free(l);
}

static const char *reason(const struct cublaslt *l, int status) {
    const char *text = l->calls.status_text(status);
    return text ? text : "an unknown failure";
}

struct cublaslt *cublaslt_open(int device, struct err *e) {
    struct cublaslt *l = static_cast<struct cublaslt *>(calloc(1, sizeof *l));
    if (!l) {
        err_set(e, ST_FAIL, "no memory for cuBLAS");
        return nullptr;
    }
    if (cublaslt_load(&l->calls, e) == ST_OK) {
        int status = l->calls.create(&l->handle);
        if (status != LT_SUCCESS)
            err_set(e, ST_FAIL, "cuBLAS does not start on cuda:%d: %s", device, reason(l, status));
        else if (cudaMalloc(reinterpret_cast<void **>(&l->workspace), WORKSPACE) != cudaSuccess)
            err_set(e, ST_FAIL, "cuda:%d has no %zu MiB free for the workspace of cuBLAS", device, WORKSPACE >> 20);
    }
    if (e->code == ST_OK) return l;
    cublaslt_close(l);
    return nullptr;
}

size_t cublaslt_describe(const struct cublaslt *l, char *text, size_t size) {
    size_t v = l->calls.version ? l->calls.version() : 0;
    if (v)
        snprintf(text, size, "cuBLAS %zu.%zu.%zu in %s", v / 10000, v / 100 % 100, v % 100, l->calls.file);
    else
        snprintf(text, size, "cuBLAS of the simulator");
    return WORKSPACE;
}

/* --- ways -------------------------------------------------------------------------------------------------------- */

static uint32_t alignment_of(const void *p) {
    uintptr_t a = reinterpret_cast<uintptr_t>(p) | ALIGNMENT;
    return static_cast<uint32_t>(a & (~a + 1));
}

static struct shape shape_of(const struct product *p) {
    struct shape s;
    memset(&s, 0, sizeof s);
    s.m = p->m, s.n = p->n, s.k = p->k;
    s.lda = p->lda, s.ldb = p->ldb, s.ldc = p->ldc;
    s.in = p->a_type == BF16 ? LT_BF16 : LT_F32, s.out = p->c_type == BF16 ? LT_BF16 : LT_F32;
    s.ta = p->ta ? LT_TRANSPOSED : LT_PLAIN, s.tb = p->tb ? LT_TRANSPOSED : LT_PLAIN;
    s.a_align = alignment_of(p->A), s.b_align = alignment_of(p->B), s.c_align = alignment_of(p->C);
    s.bias_align = p->bias ? alignment_of(p->bias) : 0;
    return s;
}

/* Where the library's status is a failure, remembers it and returns false. */
static bool fine(struct backend *be, int status) {
    if (status == LT_SUCCESS) return true;
    err_set(&be->err, ST_FAIL, "%s: a matrix product failed in cuBLAS: %s", be->name,
            reason(cuda_of(be)->blas, status));
    return false;
}

template <typename T>
static bool set(struct backend *be, int (*call)(void *, int, const void *, size_t), void *of, int attribute, T value) {
    return fine(be, call(of, attribute, &value, sizeof value));
}

/* The matrices and the product in the library's terms. */
static bool describe(struct backend *be, struct way *w, const struct product *p) {
    const struct cublaslt_calls *c = &cuda_of(be)->blas->calls;
    const struct shape *s = &w->shape;
    uint64_t m = static_cast<uint64_t>(s->m), n = static_cast<uint64_t>(s->n), k = static_cast<uint64_t>(s->k);
    if (!fine(be, c->product_new(&w->product, LT_COMPUTE_F32, LT_F32)) ||
        !fine(be, c->layout_new(&w->a, s->in, s->tb ? k : n, s->tb ? n : k, s->ldb)) ||
        !fine(be, c->layout_new(&w->b, s->in, s->ta ? m : k, s->ta ? k : m, s->lda)) ||
        !fine(be, c->layout_new(&w->c, s->out, n, m, s->ldc)) ||
        !set(be, c->product_set, w->product, LT_PRODUCT_TRANSA, s->tb) ||
        !set(be, c->product_set, w->product, LT_PRODUCT_TRANSB, s->ta))
        return false;
    return !p->bias || (set(be, c->product_set, w->product, LT_PRODUCT_EPILOGUE, uint32_t{LT_EPILOGUE_BIAS}) &&
                        set(be, c->product_set, w->product, LT_PRODUCT_BIAS_TYPE, s->out) &&
                        set(be, c->product_set, w->product, LT_PRODUCT_BIAS, p->bias));
}

/* The fastest way by the library's estimate; w->possible stays false where there is none. */
static void choose(struct backend *be, struct way *w) {
    const struct cublaslt *l = cuda_of(be)->blas;
    const struct cublaslt_calls *c = &l->calls;
    const struct shape *s = &w->shape;
    const uint32_t align[4] = {s->b_align, s->a_align, s->c_align, s->c_align};
    void *wish = nullptr;
    if (!fine(be, c->preference_new(&wish))) return;
    bool set_up = set(be, c->preference_set, wish, LT_WISH_WORKSPACE, uint64_t{WORKSPACE}) &&
                  set(be, c->preference_set, wish, LT_WISH_REDUCTION, uint32_t{LT_REDUCTION_COMPUTE_TYPE});
    for (int i = 0; i < 4; i++) set_up = set_up && set(be, c->preference_set, wish, LT_WISH_ALIGNMENT_A + i, align[i]);
    struct lt_candidate found[CANDIDATES];
    int count = 0;
    if (set_up)
        if (c->candidates(l->handle, w->product, w->a, w->b, w->c, w->c, wish, CANDIDATES, found, &count)) count = 0;
    for (int i = 0; i < count && !w->possible; i++) {
        if (found[i].status != LT_SUCCESS || found[i].workspace > WORKSPACE) continue;
        w->possible = true;
        w->algorithm = found[i].algorithm;
        w->workspace = found[i].workspace;
    }
    c->preference_free(wish);
}

/* The way of a shape; a new one takes a free place or, in turn, that of another. */
static struct way *way_find(struct backend *be, const struct product *p) {
    struct cublaslt *l = cuda_of(be)->blas;
    struct shape s = shape_of(p);
    uint64_t first = hash_bytes(HASH_START, &s, sizeof s);
    struct way *w = nullptr;
    for (int i = 0; i < TRIES; i++) {
        struct way *at = &l->ways[(first + i) % WAYS];
        if (at->known && memcmp(&at->shape, &s, sizeof s) == 0) return at;
        if (!at->known && !w) w = at;
    }
    if (!w) {
        w = &l->ways[(first + l->replaced++ % TRIES) % WAYS];
        graphs_flush(be); // a call that waits may have it
    }
    way_forget(l, w);
    w->known = true;
    w->shape = s;
    if (describe(be, w, p)) choose(be, w);
    return w;
}

struct multiplication {
    struct product product;
    struct way *way;
};

/* The library's status, or one that is no refusal where the bias was not taken. */
static int multiply(struct backend *be, const struct product *p, const struct way *w) {
    const struct cublaslt *l = cuda_of(be)->blas;
    if (p->bias && !set(be, l->calls.product_set, w->product, LT_PRODUCT_BIAS, p->bias)) return LT_SUCCESS;
    return l->calls.multiply(l->handle, w->product, &p->alpha, p->B, w->a, p->A, w->b, &p->beta, p->C, w->c, p->C, w->c,
                             &w->algorithm, l->workspace, w->workspace, cuda_of(be)->stream);
}

static void multiply_issue(struct backend *be, const void *of) {
    const struct multiplication *m = static_cast<const struct multiplication *>(of);
    fine(be, multiply(be, &m->product, m->way));
}

/* The first product of a way may be refused, and then others are to take it: it does not wait. */
static bool prove(struct backend *be, const struct product *p, struct way *w) {
    graphs_flush(be);
    int status = multiply(be, p, w);
    bool refused = status == LT_NOT_SUPPORTED || status == LT_ARCH_MISMATCH || status == LT_INVALID_VALUE;
    w->possible = !refused;
    w->proved = !refused && fine(be, status);
    return !refused;
}

bool cublaslt_multiply(struct backend *be, const struct product *p) {
    const struct cublaslt *l = cuda_of(be)->blas;
    if (!l || p->a_type != p->b_type || (p->c_type != F32 && p->c_type != p->a_type)) return false;
    if (p->m == 0 || p->n == 0 || p->k == 0) return false;
    struct way *w = way_find(be, p);
    if (be->err.code != ST_OK) return true;
    if (!w->possible) return false;
    if (!w->proved) return prove(be, p, w);
    struct multiplication m;
    memset(&m, 0, sizeof m); // compared by bytes
    m.product = *p;
    m.way = w;
    graphs_call(be, "product", multiply_issue, &m, sizeof m);
    return true;
}

/* cuBLASLt for the simulator: the calls that kernels/cuda/cublaslt.h declares, strict about what they are given, and a
 * kernel that multiplies with sums in double. Every misuse ends the program with a sentence.
 *
 * It refuses what the real library may refuse, addresses and rows that are not aligned to 16 bytes, and bf16 where the
 * device has no tensor cores for it, so that the backend's own kernels are tried too. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/cublaslt.h"

namespace {

enum { HANDLE = 1001, PRODUCT, LAYOUT, PREFERENCE, ALGORITHM };
enum { THREADS = 64, ALIGNED = 16 };
enum : size_t { WORKSPACE = 4096 };

struct handle {
    int kind;
};

struct layout {
    int kind, type;
    uint64_t rows, cols;
    int64_t ld;
};

struct operation {
    int kind;
    int32_t transa, transb, bias_type;
    uint32_t epilogue;
    const void *bias;
};

struct preference {
    int kind;
    uint64_t workspace;
    uint32_t reduction, alignment[4];
};

int live, handles; // objects that were made and not freed, handles among them

[[noreturn]] __attribute__((format(printf, 1, 2))) void misuse(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("cudasim: cuBLASLt: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    abort();
}

void want(bool holds, const char *what) {
    if (!holds) misuse("wanted %s", what);
}

template <typename T> T *as(void *p, int kind, const char *what) {
    want(p && static_cast<T *>(p)->kind == kind, what);
    return static_cast<T *>(p);
}

template <typename T> T *made(void **out, int kind) {
    want(out, "a place for what is made");
    T *t = static_cast<T *>(calloc(1, sizeof *t));
    want(t, "memory");
    t->kind = kind;
    live++;
    *out = t;
    return t;
}

template <typename T> int freed(void *p, int kind, const char *what) {
    T *t = as<T>(p, kind, what);
    t->kind = 0;
    live--;
    free(t);
    return LT_SUCCESS;
}

template <typename T> void take(T &field, const void *value, size_t bytes) {
    want(value && bytes == sizeof field, "an attribute of its own size");
    field = *static_cast<const T *>(value);
}

size_t size_of(int type) { return type == LT_F32 ? 4 : 2; }

/* --- making ------------------------------------------------------------------------------------------------------ */

int create(void **out) {
    made<handle>(out, HANDLE);
    handles++;
    return LT_SUCCESS;
}

int destroy(void *p) {
    as<handle>(p, HANDLE, "a handle");
    want(--handles > 0 || live == 1, "everything to be freed before the last handle");
    return freed<handle>(p, HANDLE, "a handle");
}

const char *status_text(int status) { return status == LT_SUCCESS ? "success" : "a failure of the simulator"; }

int product_new(void **out, int compute, int scale_type) {
    want(compute == LT_COMPUTE_F32 && scale_type == LT_F32, "sums and scales in F32");
    made<operation>(out, PRODUCT)->bias_type = -1;
    return LT_SUCCESS;
}

int product_free(void *p) { return freed<operation>(p, PRODUCT, "a product"); }

int product_set(void *p, int attribute, const void *value, size_t bytes) {
    operation *o = as<operation>(p, PRODUCT, "a product");
    if (attribute == LT_PRODUCT_TRANSA)
        take(o->transa, value, bytes);
    else if (attribute == LT_PRODUCT_TRANSB)
        take(o->transb, value, bytes);
    else if (attribute == LT_PRODUCT_EPILOGUE)
        take(o->epilogue, value, bytes);
    else if (attribute == LT_PRODUCT_BIAS)
        take(o->bias, value, bytes);
    else if (attribute == LT_PRODUCT_BIAS_TYPE)
        take(o->bias_type, value, bytes);
    else
        misuse("a product has no attribute %d here", attribute);
    return LT_SUCCESS;
}

int layout_new(void **out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    want(type == LT_F32 || type == LT_BF16, "a matrix in F32 or BF16");
    want(rows > 0 && cols > 0, "a matrix that is not empty");
    want(ld >= 0 && static_cast<uint64_t>(ld) >= rows, "columns at least as far apart as they are long");
    layout *l = made<layout>(out, LAYOUT);
    *l = {LAYOUT, type, rows, cols, ld};
    return LT_SUCCESS;
}

int layout_free(void *p) { return freed<layout>(p, LAYOUT, "a layout"); }

int preference_new(void **out) {
    preference *p = made<preference>(out, PREFERENCE);
    p->reduction = 7;
    for (uint32_t &a : p->alignment) a = 256;
    return LT_SUCCESS;
}

int preference_free(void *p) { return freed<preference>(p, PREFERENCE, "a preference"); }

int preference_set(void *p, int attribute, const void *value, size_t bytes) {
    preference *w = as<preference>(p, PREFERENCE, "a preference");
    int which = attribute - LT_WISH_ALIGNMENT_A;
    if (attribute == LT_WISH_WORKSPACE)
        take(w->workspace, value, bytes);
    else if (attribute == LT_WISH_REDUCTION)
        take(w->reduction, value, bytes);
    else if (which >= 0 && which < 4)
        take(w->alignment[which], value, bytes);
    else
        misuse("a preference has no attribute %d here", attribute);
    return LT_SUCCESS;
}

/* --- choosing ---------------------------------------------------------------------------------------------------- */

struct problem {
    operation *o;
    layout *a, *b, *c;
    uint64_t k;
};

problem checked(void *handle_, void *o, void *a, void *b, void *c, void *d) {
    as<handle>(handle_, HANDLE, "a handle");
    problem p = {as<operation>(o, PRODUCT, "a product"), as<layout>(a, LAYOUT, "a layout of A"),
                 as<layout>(b, LAYOUT, "a layout of B"), as<layout>(c, LAYOUT, "a layout of C"), 0};
    want(c == d, "C to be updated in place");
    uint64_t m = p.o->transa ? p.a->cols : p.a->rows, n = p.o->transb ? p.b->rows : p.b->cols;
    p.k = p.o->transa ? p.a->rows : p.a->cols;
    want(p.k == (p.o->transb ? p.b->cols : p.b->rows), "factors whose inner sides are equal");
    want(p.c->rows == m && p.c->cols == n, "a result as large as its factors say");
    want(p.a->type == p.b->type, "factors of one type");
    want(p.c->type == LT_F32 || p.c->type == p.a->type, "a result in F32 or the type of its factors");
    want(p.o->epilogue == 0 || p.o->epilogue == LT_EPILOGUE_BIAS, "no epilogue or a bias");
    want(!p.o->epilogue || p.o->bias_type == p.c->type, "a bias of the type of the result");
    want(!p.o->epilogue || p.o->bias, "a bias that is somewhere");
    return p;
}

/* The library chooses by how the bias is aligned that the product holds then; a later one may not be less so. */
uintptr_t bias_alignment(const operation *o) {
    uintptr_t a = reinterpret_cast<uintptr_t>(o->bias) | ALIGNED;
    return o->epilogue ? a & (~a + 1) : 0;
}

/* What an algorithm was made for. */
void describe(uint64_t (&data)[8], const problem &p) {
    const uint64_t own[8] = {ALGORITHM,
                             p.c->rows,
                             p.c->cols,
                             p.k,
                             static_cast<uint64_t>(p.a->type),
                             static_cast<uint64_t>(p.c->type),
                             static_cast<uint64_t>(p.a->ld ^ p.b->ld << 20),
                             p.o->epilogue | static_cast<uint64_t>(bias_alignment(p.o)) << 32};
    for (int i = 0; i < 8; i++) data[i] = own[i];
}

bool aligned(const layout *l) { return static_cast<size_t>(l->ld) * size_of(l->type) % ALIGNED == 0; }

int candidates(void *h, void *o, void *a, void *b, void *c, void *d, void *wish, int wanted, struct lt_candidate *found,
               int *count) {
    problem p = checked(h, o, a, b, c, d);
    preference *w = as<preference>(wish, PREFERENCE, "a preference");
    want(wanted > 0 && found && count, "room for candidates");
    want((w->reduction & ~uint32_t{LT_REDUCTION_COMPUTE_TYPE}) == 0, "sums in a fixed order");
    *count = 0;
    bool takes = !(sim::before_8 && p.a->type == LT_BF16) && aligned(p.a) && aligned(p.b) && aligned(p.c) &&
                 w->workspace >= WORKSPACE;
    for (uint32_t each : w->alignment) takes = takes && each >= ALIGNED;
    if (!takes) return LT_NOT_SUPPORTED;
    struct lt_candidate one = {};
    describe(one.algorithm.data, p);
    one.workspace = WORKSPACE;
    found[(*count)++] = one;
    return LT_SUCCESS;
}

/* --- multiplying ------------------------------------------------------------------------------------------------- */

struct work {
    const void *A, *B, *bias;
    void *C;
    int64_t m, n, k, a_row, a_col, b_row, b_col, ldc; // of the column-major problem: steps from a row or column on
    int in, out;
    float alpha, beta;
};

__device__ inline float element(const void *p, int type, int64_t i) {
    return type == LT_F32 ? static_cast<const float *>(p)[i] : to_float(static_cast<const bf16_t *>(p)[i]);
}

/* One thread for an element of C. */
__global__ void multiply_kernel(work w) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= w.m * w.n) return;
    int64_t row = i % w.m, col = i / w.m, at = col * w.ldc + row;
    double sum = 0;
    for (int64_t k = 0; k < w.k; k++)
        sum += static_cast<double>(element(w.A, w.in, row * w.a_row + k * w.a_col)) *
               static_cast<double>(element(w.B, w.in, k * w.b_row + col * w.b_col));
    float x = w.alpha * static_cast<float>(sum);
    if (w.beta != 0.0f) x += w.beta * element(w.C, w.out, at);
    if (w.bias) x += element(w.bias, w.out, row);
    if (w.out == LT_F32)
        static_cast<float *>(w.C)[at] = x;
    else
        static_cast<bf16_t *>(w.C)[at] = from_float<bf16_t>(x);
}

void want_aligned(const void *p, const char *what) { want(p && reinterpret_cast<uintptr_t>(p) % ALIGNED == 0, what); }

int multiply(void *h, void *o, const void *alpha, const void *A, void *a, const void *B, void *b, const void *beta,
             const void *C, void *c, void *D, void *d, const struct lt_algorithm *algorithm, void *workspace,
             size_t bytes, cudaStream_t stream) {
    problem p = checked(h, o, a, b, c, d);
    uint64_t data[8];
    describe(data, p);
    want(algorithm, "an algorithm");
    for (int i = 0; i < 8; i++) want(algorithm->data[i] == data[i], "an algorithm chosen for this product");
    want(alpha && beta && C == D, "scales, and C in place");
    want_aligned(A, "A as aligned as was promised");
    want_aligned(B, "B as aligned as was promised");
    want_aligned(D, "C as aligned as was promised");
    want(workspace && bytes >= WORKSPACE, "a workspace as large as the algorithm said");
    work w = {A,
              B,
              p.o->epilogue ? p.o->bias : nullptr,
              D,
              static_cast<int64_t>(p.c->rows),
              static_cast<int64_t>(p.c->cols),
              static_cast<int64_t>(p.k),
              p.o->transa ? p.a->ld : 1,
              p.o->transa ? 1 : p.a->ld,
              p.o->transb ? p.b->ld : 1,
              p.o->transb ? 1 : p.b->ld,
              p.c->ld,
              p.a->type,
              p.c->type,
              *static_cast<const float *>(alpha),
              *static_cast<const float *>(beta)};
    cudaError_t result = sim_launch(multiply_kernel, blocks_for(w.m * w.n, THREADS), THREADS, 0, stream, w);
    return result == cudaSuccess ? LT_SUCCESS : 13;
}

} // namespace

enum status cublaslt_load(struct cublaslt_calls *calls, struct err *) {
    *calls = {};
    calls->create = create, calls->destroy = destroy, calls->status_text = status_text;
    calls->product_new = product_new, calls->product_free = product_free, calls->product_set = product_set;
    calls->layout_new = layout_new, calls->layout_free = layout_free;
    calls->preference_new = preference_new, calls->preference_free = preference_free;
    calls->preference_set = preference_set;
    calls->candidates = candidates, calls->multiply = multiply;
    return ST_OK;
}

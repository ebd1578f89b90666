/* Speed of the matrix products in GFLOP/s, the best of several runs; beside oneDNN's where it is installed
 * (OMP_NUM_THREADS is its number of threads). Time is that of the wall: the processor time of a virtual machine may be
 * too short for what was done, and the best of several would pick just those runs.
 *   build/release/bench/gemm [threads [part of a row's name]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "quant/q4.h"

#ifdef HAVE_DNNL
#include <dnnl.h>
#endif

enum kind { FORWARD, BACKWARD, NN, NT, TN, NORMS };

static const char *const kind_names[] = {"forward", "backward", "nn", "nt", "tn", "norms"};

/* forward: x (M,K) W (N,K); backward: dy (M,K) W (K,N); nn, nt, tn: C (M,N), types of C, A, B; norms: W (M,N), rank
 * K. */
struct row {
    enum kind kind;
    int64_t M, N, K;
    enum dtype act, weight;
};

static const struct row rows[] = {
    {FORWARD, 512, 4096, 4096, F32, F32},
    {FORWARD, 512, 4096, 4096, F32, NF4},
    {BACKWARD, 512, 4096, 4096, F32, F32},
    {BACKWARD, 512, 4096, 4096, F32, NF4},
    {FORWARD, 512, 576, 576, F32, F32},
    {FORWARD, 512, 192, 576, F32, F32},
    {FORWARD, 512, 1536, 576, F32, F32},
    {FORWARD, 512, 576, 1536, F32, F32},
    {FORWARD, 512, 49152, 576, F32, F32},
    {BACKWARD, 512, 576, 49152, F32, F32},
    {BACKWARD, 512, 576, 1536, F32, F32},
    {FORWARD, 512, 896, 896, F32, BF16},
    {FORWARD, 512, 128, 896, F32, BF16},
    {FORWARD, 512, 4864, 896, F32, BF16},
    {FORWARD, 512, 896, 4864, F32, BF16},
    {FORWARD, 64, 151936, 896, F32, BF16},
    {FORWARD, 64, 4096, 4096, F32, F32},
    {NT, 512, 16, 4096, F32, F32},
    {NN, 512, 4096, 16, F32, F32},
    {NT, 512, 4096, 16, F32, F32},
    {TN, 4096, 16, 512, F32, F32},
    {TN, 16, 4096, 512, F32, F32},
    {NT, 512, 8, 576, F32, F32},
    {TN, 576, 8, 512, F32, F32},
    {FORWARD, 512, 4096, 4096, BF16, BF16},
    {FORWARD, 512, 4096, 4096, BF16, NF4},
    {BACKWARD, 512, 4096, 4096, BF16, BF16},
    {BACKWARD, 512, 4096, 4096, BF16, NF4},
    {FORWARD, 128, 4096, 4096, BF16, NF4},
    {FORWARD, 2048, 4096, 4096, BF16, NF4},
    {FORWARD, 512, 14336, 4096, BF16, NF4},
    {FORWARD, 512, 4096, 14336, BF16, NF4},
    {FORWARD, 512, 576, 576, BF16, BF16},
    {FORWARD, 512, 192, 576, BF16, BF16},
    {FORWARD, 512, 1536, 576, BF16, BF16},
    {FORWARD, 512, 576, 1536, BF16, BF16},
    {FORWARD, 512, 49152, 576, BF16, BF16},
    {BACKWARD, 512, 576, 576, BF16, BF16},
    {BACKWARD, 512, 576, 1536, BF16, BF16},
    {BACKWARD, 512, 1536, 576, BF16, BF16},
    {BACKWARD, 512, 576, 49152, BF16, BF16},
    {FORWARD, 512, 896, 896, BF16, BF16},
    {FORWARD, 512, 128, 896, BF16, BF16},
    {FORWARD, 512, 4864, 896, BF16, BF16},
    {FORWARD, 512, 896, 4864, BF16, BF16},
    {FORWARD, 512, 4864, 896, BF16, NF4},
    {BACKWARD, 512, 896, 4864, BF16, BF16},
    {BACKWARD, 512, 4864, 896, BF16, BF16},
    {NT, 512, 8, 576, BF16, F32},
    {NT, 512, 576, 8, BF16, F32},
    {NN, 512, 8, 576, BF16, F32},
    {NN, 512, 576, 8, BF16, F32},
    {TN, 576, 8, 512, BF16, BF16},
    {TN, 8, 576, 512, BF16, BF16},
    {NT, 512, 8, 1536, BF16, F32},
    {NT, 512, 1536, 8, BF16, F32},
    {NT, 512, 16, 4096, BF16, F32},
    {NT, 512, 4096, 16, BF16, F32},
    {TN, 4096, 16, 512, BF16, BF16},
    {TN, 16, 4096, 512, BF16, BF16},
    {FORWARD, 1, 4096, 4096, F32, F32},
    {FORWARD, 1, 4096, 4096, F32, BF16},
    {FORWARD, 1, 4096, 4096, F32, NF4},
    {FORWARD, 4, 4096, 4096, F32, NF4},
    {FORWARD, 8, 4096, 4096, F32, NF4},
    {FORWARD, 8, 4096, 4096, BF16, NF4},
    {NORMS, 4096, 4096, 16, F32, NF4},
    {NORMS, 4096, 4096, 16, F32, BF16},
};

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 32;
}

static void fill(const struct tensor *t, uint64_t *state) {
    if (tensor_is_4bit(t)) {
        for (size_t i = 0; i < tensor_bytes(t); i++) ((uint8_t *)t->data)[i] = (uint8_t)next_random(state);
        return;
    }
    for (int64_t i = 0; i < tensor_count(t); i++) {
        float x = (float)next_random(state) * 0x1p-31f - 1.0f;
        if (t->type == F32)
            ((float *)t->data)[i] = x;
        else
            ((bf16 *)t->data)[i] = bf16_of_float(x);
    }
}

static struct tensor matrix(struct backend *be, enum dtype type, int64_t a, int64_t b, const struct q4 *q4,
                            uint64_t *state) {
    struct tensor t = tensor_over2(NULL, type, a, b);
    if (type == NF4) t.q4 = q4;
    t.data = backend_alloc(be, tensor_bytes(&t));
    fill(&t, state);
    return t;
}

/* Scales for a weight of so many elements: double quantisation, blocks of 64. */
static struct q4 *scales(int64_t elements) {
    struct q4 *q = mem_alloc(sizeof *q);
    int64_t blocks = elements / 64 + 1, groups = blocks / 256 + 1;
    float *code = mem_alloc(16 * sizeof *code), *nested_code = mem_alloc(256 * sizeof *nested_code);
    float *nested = mem_alloc((size_t)groups * sizeof *nested);
    for (int i = 0; i < 16; i++) code[i] = ((float)i - 7.5f) / 7.5f;
    for (int i = 0; i < 256; i++) nested_code[i] = ((float)i - 127.5f) / 127.5f;
    for (int64_t i = 0; i < groups; i++) nested[i] = 0.01f;
    *q = (struct q4){.blocksize = 64, .source = BF16, .code = code, .absmax8 = mem_alloc((size_t)blocks)};
    q->nested_absmax = nested, q->nested_code = nested_code, q->nested_offset = 0.02f, q->nested_blocksize = 256;
    return q;
}

static void scales_free(struct q4 *q) {
    free((void *)q->code);
    free((void *)q->absmax8);
    free((void *)q->nested_absmax);
    free((void *)q->nested_code);
    free(q);
}

struct operands {
    struct tensor y, x, w, extra;
};

static struct operands operands_new(struct backend *be, const struct row *r, const struct q4 *q) {
    uint64_t s = 1;
    struct operands o = {0};
    enum dtype w = r->weight;
    switch (r->kind) {
    case FORWARD:
    case BACKWARD:
        o.y = matrix(be, r->act, r->M, r->N, q, &s), o.x = matrix(be, r->act, r->M, r->K, q, &s);
        o.w = r->kind == FORWARD ? matrix(be, w, r->N, r->K, q, &s) : matrix(be, w, r->K, r->N, q, &s);
        break;
    case NORMS:
        o.y = tensor_over1(backend_alloc(be, (size_t)r->M * sizeof(float)), F32, r->M);
        o.w = matrix(be, w, r->M, r->N, q, &s), o.x = matrix(be, F32, r->K, r->N, q, &s);
        o.extra = matrix(be, F32, r->M, r->K, q, &s);
        break;
    default:
        o.y = matrix(be, r->kind == TN ? F32 : r->act, r->M, r->N, q, &s);
        o.x = r->kind == TN ? matrix(be, r->act, r->K, r->M, q, &s) : matrix(be, r->act, r->M, r->K, q, &s);
        o.w = r->kind == NT ? matrix(be, w, r->N, r->K, q, &s) : matrix(be, w, r->K, r->N, q, &s);
    }
    return o;
}

static void compute(struct backend *be, const struct row *r, const struct operands *o) {
    switch (r->kind) {
    case FORWARD:
        op_linear_forward(be, &o->y, &o->x, &o->w, NULL, 0);
        break;
    case BACKWARD:
        op_linear_backward(be, &o->y, &o->x, &o->w, 0.0f);
        break;
    case NORMS:
        op_row_norms(be, &o->y, &o->w, &o->x, &o->extra, 0.5f);
        break;
    default:
        op_matmul(be, &o->y, &o->x, r->kind == TN, &o->w, r->kind == NT, 1.0f, r->kind == TN ? 1.0f : 0.0f);
    }
}

#ifdef HAVE_DNNL
/* Seconds of oneDNN's matmul on the same memory, all of one type; 0 where it does not apply. */
struct dnnl {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
};

static dnnl_memory_desc_t dnnl_matrix(enum dtype type, int64_t m, int64_t n, bool turned) {
    dnnl_memory_desc_t d;
    dnnl_dims_t dims = {m, n}, strides = {turned ? 1 : n, turned ? m : 1};
    dnnl_memory_desc_init_by_strides(&d, 2, dims, type == F32 ? dnnl_f32 : dnnl_bf16, strides);
    return d;
}

static bool dnnl_begin(struct dnnl *d, const struct row *r, const struct operands *o) {
    if (r->kind == NORMS || r->weight != r->act) return false;
    dnnl_memory_desc_t md[3] = {dnnl_matrix(r->act, r->M, r->K, r->kind == TN),
                                dnnl_matrix(r->act, r->K, r->N, r->kind == FORWARD || r->kind == NT),
                                dnnl_matrix(o->y.type, r->M, r->N, false)};
    void *data[3] = {o->x.data, o->w.data, o->y.data};
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags);
    if (dnnl_matmul_desc_init(&desc, &md[0], &md[1], NULL, &md[2]) != dnnl_success) return false;
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, d->engine, NULL) != dnnl_success) return false;
    dnnl_primitive_create(&d->primitive, pd);
    for (int i = 0; i < 3; i++) dnnl_memory_create(&d->memory[i], &md[i], d->engine, data[i]);
    return true;
}

static double dnnl_best(const struct row *r, const struct operands *o) {
    struct dnnl d;
    if (!dnnl_begin(&d, r, o)) return 0;
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, d.memory[0]}, {DNNL_ARG_WEIGHTS, d.memory[1]}, {DNNL_ARG_DST, d.memory[2]}};
    double best = 1e9, stop = clock_now() + 0.3;
    while (clock_now() < stop) {
        double t = clock_now();
        dnnl_primitive_execute(d.primitive, d.stream, 3, args);
        dnnl_stream_wait(d.stream);
        t = clock_now() - t;
        if (t < best) best = t;
    }
    return best;
}
#else
static double dnnl_best(const struct row *r, const struct operands *o) {
    (void)r, (void)o;
    return 0;
}
#endif

static void measure(struct backend *be, const struct row *r, const char *name) {
    struct q4 *q = scales(r->N * (r->kind == NORMS ? r->M : r->K));
    struct operands o = operands_new(be, r, q);
    double best = 1e9, stop = clock_now() + 0.5, flops = 2.0 * (double)r->M * (double)r->N * (double)r->K;
    for (int i = 0; i < 3 || clock_now() < stop; i++) {
        double t = clock_now();
        compute(be, r, &o);
        t = clock_now() - t;
        if (t < best) best = t;
    }
    printf("%-40s %10.3f ms %8.1f GFLOP/s", name, best * 1e3, flops / best * 1e-9);
    if (r->M < 16) printf(" %6.1f GB/s", (double)tensor_bytes(&o.w) / best * 1e-9);
    double other = dnnl_best(r, &o);
    if (other > 0) printf("   oneDNN %8.1f", flops / other * 1e-9);
    printf("\n");
    fflush(stdout);
    struct tensor *all[] = {&o.y, &o.x, &o.w, &o.extra};
    for (int i = 0; i < 4; i++)
        if (all[i]->data) backend_release(be, all[i]->data);
    scales_free(q);
}

int main(int argc, char **argv) {
    struct err e = {0};
    struct backend *be = backend_new("cpu", argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1, &e);
    if (!be) return fprintf(stderr, "%s\n", e.text), 1;
    printf("%s\n", backend_describe(be));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        char name[96];
        snprintf(name, sizeof name, "%s %lldx%lldx%lld %s %s", kind_names[r->kind], (long long)r->M, (long long)r->N,
                 (long long)r->K, dtype_name(r->act), dtype_name(r->weight));
        if (argc <= 2 || strstr(name, argv[2])) measure(be, r, name);
    }
    backend_free(be);
    return 0;
}

/* Speed of the operations that a training is made of, on a device, each beside what the device itself was measured to
 * do in the same run: the time that its bytes take at the rate of a copy, or its operations at that of a product of
 * 8192 x 8192 matrices, whichever is longer. "of the limit" is that time over the one measured.
 *   build/release/bench/gpu [--device cuda] [--tiny] [part of a row's name]
 * Inputs are random numbers, in as many copies as L2 does not hold; a time is the median of batches of calls.
 * --tiny: small shapes and single calls, to see that all of it runs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/memory.h"
#include "kernels/cuda/cuda.h"
#include "kernels/ops.h"
#include "quant/block.h"
#include "quant/q4.h"

/* Absent where graft is built without the CUDA backend. */
#pragma weak cuda_dequantize

enum { NOISE = 16 << 20, MOST_SETS = 16, BATCHES = 11, TENSORS = 11 };
static const double PAST_L2 = 512e6, BATCH_SECONDS = 0.02; // bytes of all copies; length of a batch

/* What an op of a row is called with, and what it must do at least. */
struct set {
    struct tensor t[TENSORS];
    struct q4 q4;
    struct attention attention;
    double bytes, operations;
};

/* Memory of one row; inputs are filled when there is memory to fill. */
struct maker {
    struct backend *be;
    struct arena arena;
    const uint8_t *bits;  // (NOISE) random
    const bf16 *numbers;  // (NOISE / 2) in -1 .. 1
    const float *pattern; // (NOISE / 4) in 0 .. 0.02
};

struct row {
    const char *name;
    void (*make)(struct maker *m, struct set *s, const int64_t *n);
    void (*call)(struct backend *be, const struct set *s);
    int64_t n[5]; // meant by make
};

/* --- inputs ------------------------------------------------------------------------------------------------------ */

static void upload(struct maker *m, const struct tensor *t, const void *from) {
    if (!m->arena.base) return;
    size_t bytes = tensor_bytes(t);
    for (size_t at = 0; at < bytes; at += NOISE) {
        size_t n = bytes - at < NOISE ? bytes - at : NOISE;
        struct tensor part = tensor_over1((char *)t->data + at, U8, (int64_t)n);
        backend_upload(m->be, &part, from);
    }
}

static struct tensor output(struct maker *m, enum dtype type, int64_t d0, int64_t d1) {
    return arena_tensor2(&m->arena, type, d0, d1);
}

/* An F32 input is made of pairs of bf16 numbers, which is a number in -1 .. 1 too. */
static struct tensor input(struct maker *m, enum dtype type, int64_t d0, int64_t d1) {
    struct tensor t = output(m, type, d0, d1);
    upload(m, &t, m->numbers);
    return t;
}

static struct tensor vector(struct maker *m, int64_t n) {
    struct tensor t = arena_tensor1(&m->arena, F32, n);
    upload(m, &t, m->numbers);
    return t;
}

/* Numbers 0 .. limit - 1, spread out. */
static struct tensor indices(struct maker *m, int64_t n, int64_t limit) {
    struct tensor t = arena_tensor1(&m->arena, I32, n);
    int32_t *values = mem_alloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = (int32_t)(i * 7919 % limit);
    if (m->arena.base) backend_upload(m->be, &t, values);
    free(values);
    return t;
}

static const void *place(struct maker *m, enum dtype type, int64_t n, const void *from) {
    struct tensor t = arena_tensor1(&m->arena, type, n);
    upload(m, &t, from);
    return t.data;
}

/* W (O,I), in NF4 with double quantisation or BF16. */
static struct tensor weight(struct maker *m, struct q4 *q, bool nf4, int64_t O, int64_t I) {
    if (!nf4) return input(m, BF16, O, I);
    float map[256];
    int64_t blocks = block_count(O * I, 64);
    struct tensor t = output(m, U8, 1, (O * I + 1) / 2);
    upload(m, &t, m->bits);
    block_map8(map);
    *q = (struct q4){.blocksize = 64, .source = BF16, .nested_offset = 0.02f, .nested_blocksize = NESTED_BLOCKSIZE};
    struct tensor code = arena_tensor1(&m->arena, F32, 16), nested = arena_tensor1(&m->arena, F32, 256);
    if (m->arena.base) backend_upload(m->be, &code, block_code(NF4)), backend_upload(m->be, &nested, map);
    q->code = code.data, q->nested_code = nested.data;
    q->absmax8 = place(m, U8, blocks, m->bits);
    q->nested_absmax = place(m, F32, block_count(blocks, NESTED_BLOCKSIZE), m->pattern);
    struct tensor w = tensor_over2(t.data, NF4, O, I);
    w.q4 = q;
    return w;
}

/* Of a 4-bit tensor with its scales; of another its own. */
static double size_of(const struct tensor *t) {
    double n = (double)tensor_count(t);
    return tensor_is_4bit(t) ? n / 2 + n / 64 + n / 64 / 256 * 4 : (double)tensor_bytes(t);
}

/* The tensors [0, count) pass once. */
static void count_bytes(struct set *s, int count) {
    for (int i = 0; i < count; i++) s->bytes += size_of(&s->t[i]);
}

/* --- products ---------------------------------------------------------------------------------------------------- */

/* n: N, O, I, whether W is NF4, whether y is F32. The product adds to what its adapter gave (model/linear.c). */
static void make_linear(struct maker *m, struct set *s, const int64_t *n, bool backward) {
    enum dtype out = n[4] ? F32 : BF16;
    s->t[0] = backward ? input(m, BF16, n[0], n[2]) : input(m, out, n[0], n[1]);
    s->t[1] = backward ? input(m, out, n[0], n[1]) : input(m, BF16, n[0], n[2]);
    s->t[2] = weight(m, &s->q4, n[3], n[1], n[2]);
    s->operations = 2.0 * (double)n[0] * (double)n[1] * (double)n[2];
    count_bytes(s, 3);
    count_bytes(s, 1); // y is read and written
}

static void make_forward(struct maker *m, struct set *s, const int64_t *n) { make_linear(m, s, n, false); }
static void make_backward(struct maker *m, struct set *s, const int64_t *n) { make_linear(m, s, n, true); }

static void call_forward(struct backend *be, const struct set *s) {
    op_linear_forward(be, &s->t[0], &s->t[1], &s->t[2], NULL, 1);
}

static void call_backward(struct backend *be, const struct set *s) {
    op_linear_backward(be, &s->t[0], &s->t[1], &s->t[2], 1);
}

/* n: rows, inputs, outputs, rank; the products of an adapter, as model/linear.c calls them. */
static void make_lora(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = input(m, BF16, n[0], n[1]); // x
    s->t[1] = input(m, BF16, n[0], n[2]); // y
    s->t[2] = input(m, BF16, n[0], n[3]); // u
    s->t[3] = input(m, BF16, n[3], n[1]); // A
    s->t[4] = input(m, BF16, n[2], n[3]); // B
    s->t[5] = input(m, BF16, n[0], n[3]); // du
    s->t[6] = input(m, F32, n[3], n[1]);  // gA
    s->t[7] = input(m, F32, n[2], n[3]);  // gB
}

/* matrix: bytes that pass for an element of A, B or a gradient of theirs. */
static void lora_limits(struct set *s, const int64_t *n, size_t matrix, int64_t wide) {
    s->operations = 2.0 * (double)n[0] * (double)n[3] * (double)wide;
    s->bytes = (double)n[0] * (double)(wide + n[3]) * 2 + (double)n[3] * (double)wide * (double)matrix;
}

/* u = x A^T and dx = du A pass one side of the layer, y = u B^T and du = dy B the other. */
static void make_lora_A(struct maker *m, struct set *s, const int64_t *n) {
    make_lora(m, s, n);
    lora_limits(s, n, sizeof(bf16), n[1]);
}

static void make_lora_B(struct maker *m, struct set *s, const int64_t *n) {
    make_lora(m, s, n);
    lora_limits(s, n, sizeof(bf16), n[2]);
}

/* Gradients are read and written. */
static void make_lora_gA(struct maker *m, struct set *s, const int64_t *n) {
    make_lora(m, s, n);
    lora_limits(s, n, 2 * sizeof(float), n[1]);
}

static void make_lora_gB(struct maker *m, struct set *s, const int64_t *n) {
    make_lora(m, s, n);
    lora_limits(s, n, 2 * sizeof(float), n[2]);
}

static void call_lora_u(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[2], &s->t[0], false, &s->t[3], true, 1, 0);
}

static void call_lora_dropout(struct backend *be, const struct set *s) {
    const struct dropout d = {.p = 0.05f, .seed = 1, .stream = 2};
    op_matmul_dropout(be, &s->t[2], &s->t[0], false, &s->t[3], true, 1, 0, &d, DROP_A);
}

static void call_lora_y(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[1], &s->t[2], false, &s->t[4], true, 0.5f, 0);
}

static void call_lora_gB(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[7], &s->t[1], true, &s->t[2], false, 0.5f, 1);
}

static void call_lora_du(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[5], &s->t[1], false, &s->t[4], false, 0.5f, 0);
}

static void call_lora_gA(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[6], &s->t[5], true, &s->t[0], false, 1, 1);
}

static void call_lora_dx(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[0], &s->t[5], false, &s->t[3], false, 1, 0);
}

/* n: m, n, k */
static void make_product(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, n[0], n[1]);
    s->t[1] = input(m, BF16, n[0], n[2]), s->t[2] = input(m, BF16, n[1], n[2]);
    s->operations = 2.0 * (double)n[0] * (double)n[1] * (double)n[2];
    count_bytes(s, 3);
}

static void call_product(struct backend *be, const struct set *s) {
    op_matmul(be, &s->t[0], &s->t[1], false, &s->t[2], true, 1, 0);
}

/* --- rows and elements ------------------------------------------------------------------------------------------- */

/* n: N, C */
static void make_norm(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, n[0], n[1]), s->t[1] = input(m, BF16, n[0], n[1]);
    s->t[2] = vector(m, n[0]), s->t[3] = vector(m, n[1]);
    count_bytes(s, 4);
    s->t[4] = input(m, BF16, n[0], n[1]); // of the backward
}

static void make_norm_backward(struct maker *m, struct set *s, const int64_t *n) {
    make_norm(m, s, n);
    s->bytes += 2 * size_of(&s->t[0]); // dx is read and written
}

static void call_norm(struct backend *be, const struct set *s) {
    op_rmsnorm_forward(be, &s->t[0], &s->t[2], &s->t[1], &s->t[3], 1e-5f);
}

static void call_norm_backward(struct backend *be, const struct set *s) {
    op_rmsnorm_backward_add(be, &s->t[0], NULL, &s->t[4], &s->t[1], &s->t[2], &s->t[3]);
}

/* n: N, H, D, positions */
static void make_rope(struct maker *m, struct set *s, const int64_t *n) {
    struct tensor x = input(m, BF16, n[0] * n[1], n[2]), table = input(m, F32, 2 * n[3], n[2] / 2);
    s->t[0] = tensor_as3(&x, n[0], n[1], n[2]), s->t[1] = tensor_as3(&table, 2, n[3], n[2] / 2);
    s->t[2] = indices(m, n[0], n[3]);
    s->bytes = 2 * size_of(&x);
}

static void call_rope(struct backend *be, const struct set *s) { op_rope(be, &s->t[0], &s->t[1], &s->t[2], 1); }

/* n: N, F */
static void make_glu(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, n[0], n[1]);
    s->t[1] = input(m, BF16, n[0], n[1]), s->t[2] = input(m, BF16, n[0], n[1]);
    count_bytes(s, 3);
}

static void make_glu_backward(struct maker *m, struct set *s, const int64_t *n) {
    make_glu(m, s, n);
    upload(m, &s->t[0], m->numbers);
    s->bytes += 2 * size_of(&s->t[0]);
}

static void call_glu(struct backend *be, const struct set *s) {
    op_glu_forward(be, &s->t[0], &s->t[1], &s->t[2], ACT_SILU);
}

static void call_glu_backward(struct backend *be, const struct set *s) {
    op_glu_backward(be, &s->t[1], &s->t[2], &s->t[0], &s->t[1], &s->t[2], ACT_SILU);
}

static void call_add(struct backend *be, const struct set *s) { op_add(be, &s->t[0], &s->t[1], &s->t[2]); }

/* n: M, V */
static void make_loss(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = input(m, F32, n[0], n[1]);
    s->t[1] = vector(m, n[0]), s->t[2] = indices(m, n[0], n[1]);
    s->bytes = 2 * size_of(&s->t[0]);
}

static void call_loss(struct backend *be, const struct set *s) {
    op_cross_entropy(be, &s->t[1], &s->t[0], &s->t[2], 1e-3f);
}

/* n: N, V, C */
static void make_embed(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, n[0], n[2]), s->t[1] = input(m, BF16, n[1], n[2]);
    s->t[2] = indices(m, n[0], n[1]);
    s->bytes = 2 * size_of(&s->t[0]);
}

static void call_embed(struct backend *be, const struct set *s) { op_embed_forward(be, &s->t[0], &s->t[1], &s->t[2]); }

/* n: parameters */
static void make_adamw(struct maker *m, struct set *s, const int64_t *n) {
    for (int i = 0; i < 4; i++) s->t[i] = vector(m, n[0]);
    if (m->arena.base) op_zero(m->be, &s->t[2]); // the second moment is not negative
    s->bytes = 7 * size_of(&s->t[0]);
}

static void call_adamw(struct backend *be, const struct set *s) {
    struct adamw h = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .grad_scale = 1, .step = 10};
    op_adamw(be, &s->t[0], &s->t[1], &s->t[2], &s->t[3], &h);
}

/* n: elements */
static void make_copy(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, 1, n[0]), s->t[1] = input(m, BF16, 1, n[0]);
    count_bytes(s, 2);
}

static void call_copy(struct backend *be, const struct set *s) { op_copy(be, &s->t[0], &s->t[1]); }

/* --- attention --------------------------------------------------------------------------------------------------- */

static struct tensor heads(struct maker *m, int64_t T, int64_t H, int64_t D) {
    struct tensor t = input(m, BF16, T * H, D);
    return tensor_as3(&t, T, H, D);
}

/* n: T, H, K, D, causal. 4 operations for each head, head dimension and pair of query and key; backward 10. */
static void make_attention(struct maker *m, struct set *s, const int64_t *n) {
    int64_t offsets[2] = {0, n[0]};
    for (int i = 0; i < 4; i++) s->t[i] = heads(m, n[0], i < 2 ? n[1] : n[2], n[3]); // o, q, k, v
    count_bytes(s, 4);
    s->t[4] = output(m, F32, n[0], n[1]); // lse
    s->t[5] = arena_tensor1(&m->arena, I64, 2);
    if (m->arena.base) backend_upload(m->be, &s->t[5], offsets);
    s->attention = (struct attention){.q_offsets = &s->t[5], .kv_offsets = &s->t[5], .sequences = 1};
    s->attention.max_q = s->attention.max_kv = n[0];
    s->attention.causal = n[4] != 0, s->attention.scale = 1 / sqrtf((float)n[3]);
    double pairs = (double)n[0] * (double)(n[4] ? n[0] + 1 : 2 * n[0]) / 2;
    s->operations = 4 * pairs * (double)(n[1] * n[3]);
}

static void call_attention(struct backend *be, const struct set *s) {
    op_attention_forward(be, &s->t[0], &s->t[4], &s->t[1], &s->t[2], &s->t[3], &s->attention);
}

/* lse and o are those of the forward, which runs once. */
static void make_attention_backward(struct maker *m, struct set *s, const int64_t *n) {
    make_attention(m, s, n);
    s->t[6] = output(m, F32, n[0], n[1]);  // delta
    s->t[7] = heads(m, n[0], n[1], n[3]);  // dO
    s->t[8] = heads(m, n[0], n[1], n[3]);  // dq
    s->t[9] = heads(m, n[0], n[2], n[3]);  // dk
    s->t[10] = heads(m, n[0], n[2], n[3]); // dv
    if (m->arena.base) call_attention(m->be, s);
    s->bytes = s->bytes * 2 + size_of(&s->t[7]);
    s->operations *= 2.5;
}

static void call_attention_backward(struct backend *be, const struct set *s) {
    op_attention_backward(be, &s->t[8], &s->t[9], &s->t[10], &s->t[6], &s->t[7], &s->t[0], &s->t[4], &s->t[1], &s->t[2],
                          &s->t[3], &s->attention);
}

/* --- 4-bit numbers ----------------------------------------------------------------------------------------------- */

/* n: O, I */
static void make_dequantize(struct maker *m, struct set *s, const int64_t *n) {
    s->t[0] = output(m, BF16, n[0], n[1]), s->t[1] = weight(m, &s->q4, true, n[0], n[1]);
    count_bytes(s, 2);
}

static void call_dequantize(struct backend *be, const struct set *s) { cuda_dequantize(be, &s->t[0], &s->t[1]); }

static void make_quantize(struct maker *m, struct set *s, const int64_t *n) {
    float map[256];
    int64_t count = n[0] * n[1], blocks = block_count(count, 64);
    s->t[0] = input(m, BF16, n[0], n[1]);
    s->t[0] = tensor_over1(s->t[0].data, BF16, count);
    s->t[1] = arena_tensor1(&m->arena, NF4, count), s->t[2] = arena_tensor1(&m->arena, F32, blocks);
    s->t[3] = arena_tensor1(&m->arena, U8, blocks);
    s->t[4] = arena_tensor1(&m->arena, F32, block_count(blocks, NESTED_BLOCKSIZE));
    count_bytes(s, 5);
    s->t[5] = arena_tensor1(&m->arena, F32, 1), s->t[6] = arena_tensor1(&m->arena, F32, 256);
    block_map8(map);
    if (m->arena.base) backend_upload(m->be, &s->t[6], map);
}

static void call_quantize(struct backend *be, const struct set *s) {
    op_quantize(be, &s->t[1], &s->t[2], &s->t[0], 64);
    op_nest(be, &s->t[3], &s->t[4], &s->t[5], &s->t[2], &s->t[6]);
}

/* --- the rows ---------------------------------------------------------------------------------------------------- */

enum { COPY_ROW, PRODUCT_ROW, LIMIT_ROWS };

#define LINEAR(N, O, I)                                                                                                \
    {"linear forward, NF4", make_forward, call_forward, {N, O, I, true, false}}, {                                     \
        "linear backward, NF4", make_backward, call_backward, { N, O, I, true, false }                                 \
    }
#define LORA(N, I, O, R)                                                                                               \
    {"lora u = x A^T", make_lora_A, call_lora_u, {N, I, O, R}},                                                        \
        {"lora u = D(x) A^T", make_lora_A, call_lora_dropout, {N, I, O, R}},                                           \
        {"lora y = u B^T", make_lora_B, call_lora_y, {N, I, O, R}},                                                    \
        {"lora gB += dy^T u", make_lora_gB, call_lora_gB, {N, I, O, R}},                                               \
        {"lora du = dy B", make_lora_B, call_lora_du, {N, I, O, R}},                                                   \
        {"lora gA += du^T x", make_lora_gA, call_lora_gA, {N, I, O, R}}, {                                             \
        "lora dx = du A", make_lora_A, call_lora_dx, { N, I, O, R }                                                    \
    }
#define ATTENTION(T, H, K, D, CAUSAL)                                                                                  \
    {CAUSAL ? "attention forward, causal" : "attention forward",                                                       \
     make_attention,                                                                                                   \
     call_attention,                                                                                                   \
     {T, H, K, D, CAUSAL}},                                                                                            \
    {                                                                                                                  \
        CAUSAL ? "attention backward, causal" : "attention backward", make_attention_backward,                         \
            call_attention_backward, {                                                                                 \
            T, H, K, D, CAUSAL                                                                                         \
        }                                                                                                              \
    }

static const struct row rows[] = {
    {"copy", make_copy, call_copy, {512 << 20}},
    {"product", make_product, call_product, {8192, 8192, 8192}},
    LINEAR(2048, 4096, 4096),
    LINEAR(2048, 1024, 4096),
    LINEAR(2048, 14336, 4096),
    LINEAR(2048, 4096, 14336),
    LINEAR(8192, 4096, 4096),
    LINEAR(8192, 1024, 4096),
    LINEAR(8192, 14336, 4096),
    LINEAR(8192, 4096, 14336),
    {"linear forward, bf16", make_forward, call_forward, {2048, 14336, 4096, false, false}},
    {"linear backward, bf16", make_backward, call_backward, {2048, 14336, 4096, false, false}},
    {"linear forward, bf16", make_forward, call_forward, {8192, 14336, 4096, false, false}},
    {"linear backward, bf16", make_backward, call_backward, {8192, 14336, 4096, false, false}},
    {"head forward, bf16 to f32", make_forward, call_forward, {1024, 128256, 4096, false, true}},
    {"head backward, f32", make_backward, call_backward, {1024, 128256, 4096, false, true}},
    {"linear forward, NF4", make_forward, call_forward, {1, 14336, 4096, true, false}},
    {"linear forward, NF4", make_forward, call_forward, {8, 14336, 4096, true, false}},
    {"linear forward, bf16", make_forward, call_forward, {1, 14336, 4096, false, false}},
    LORA(2048, 4096, 14336, 16),
    LORA(8192, 4096, 14336, 16),
    {"dequantise", make_dequantize, call_dequantize, {14336, 4096}},
    {"quantise", make_quantize, call_quantize, {14336, 4096}},
    {"rmsnorm forward", make_norm, call_norm, {8192, 4096}},
    {"rmsnorm backward", make_norm_backward, call_norm_backward, {8192, 4096}},
    {"rope", make_rope, call_rope, {8192, 32, 128, 8192}},
    {"glu forward", make_glu, call_glu, {8192, 14336}},
    {"glu backward", make_glu_backward, call_glu_backward, {8192, 14336}},
    {"add", make_glu, call_add, {8192, 4096}},
    {"embedding", make_embed, call_embed, {8192, 128256, 4096}},
    {"cross entropy", make_loss, call_loss, {1024, 128256}},
    {"adamw", make_adamw, call_adamw, {41943040}},
    ATTENTION(2048, 32, 8, 128, true),
    ATTENTION(8192, 32, 8, 128, true),
    ATTENTION(32768, 32, 8, 128, true),
    ATTENTION(4096, 16, 16, 64, false),
    ATTENTION(4096, 16, 16, 72, false),
    ATTENTION(4096, 16, 16, 96, false),
};

/* The same row with a tile of each size. */
static struct row made_tiny(struct row r) {
    for (int i = 0; i < 5; i++)
        if (r.n[i] > 128) r.n[i] = 64;
    if (r.make == make_attention || r.make == make_attention_backward) r.n[1] /= 4, r.n[2] = (r.n[2] + 3) / 4;
    return r;
}

/* --- measuring --------------------------------------------------------------------------------------------------- */

struct bench {
    struct maker maker;
    bool tiny;
    double copy, product; // bytes and operations in a second
    struct err err;
};

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of a batch of calls that go through the sets by turns. */
static double time_calls(struct bench *b, const struct row *r, const struct set *sets, int count, int64_t calls) {
    backend_sync(b->maker.be, &b->err);
    double began = clock_now();
    for (int64_t i = 0; i < calls; i++) r->call(b->maker.be, &sets[i % count]);
    backend_sync(b->maker.be, &b->err);
    return clock_now() - began;
}

/* The median time of a call. The first calls, in which a library may choose its way, do not count. */
static double measure(struct bench *b, const struct row *r, const struct set *sets, int count) {
    double times[BATCHES];
    time_calls(b, r, sets, count, count);
    if (b->tiny) return time_calls(b, r, sets, count, 1);
    double once = time_calls(b, r, sets, count, count) / count;
    int64_t calls = (int64_t)(BATCH_SECONDS / (once > 1e-7 ? once : 1e-7));
    if (calls < 1) calls = 1;
    for (int i = 0; i < BATCHES; i++) times[i] = time_calls(b, r, sets, count, calls) / (double)calls;
    qsort(times, BATCHES, sizeof *times, ascending);
    return times[BATCHES / 2];
}

/* "8192 x 4096"; what is said in the name, as 1 or 0, is left out. */
static void shape_text(char *to, size_t size, const int64_t *n) {
    size_t used = 0;
    for (int i = 0; i < 5 && n[i] > 0 && (i < 3 || n[i] > 1); i++)
        used += (size_t)snprintf(to + used, size - used, "%s%lld", i ? " x " : "", (long long)n[i]);
}

static void print_row(const struct bench *b, const struct row *r, const struct set *s, double seconds) {
    char shape[120] = "", operations[24] = "", share[24] = "";
    double least = fmax(b->copy > 0 ? s->bytes / b->copy : 0, b->product > 0 ? s->operations / b->product : 0);
    shape_text(shape, sizeof shape, r->n);
    if (s->operations > 0) snprintf(operations, sizeof operations, "%.1f", s->operations / seconds * 1e-12);
    if (b->copy > 0 && b->product > 0) snprintf(share, sizeof share, "%.0f%%", 100 * least / seconds);
    printf("%-27s %-22s %10.4f %9s %8.3f %8s\n", r->name, shape, seconds * 1e3, operations, s->bytes / seconds * 1e-12,
           share);
    fflush(stdout);
}

/* Runs a row with as many sets as L2 does not hold; returns the time of a call. */
static double run_row(struct bench *b, const struct row *r, struct set *first) {
    struct maker *m = &b->maker;
    struct set *sets = mem_alloc(MOST_SETS * sizeof *sets);
    m->arena = (struct arena){0};
    r->make(m, &sets[0], r->n);
    double room = (double)m->arena.peak;
    int count = b->tiny ? 2 : room * MOST_SETS < PAST_L2 ? MOST_SETS : (int)ceil(PAST_L2 / room);
    size_t bytes = (m->arena.peak + ARENA_ALIGN) * (size_t)count;
    void *memory = backend_alloc(m->be, bytes);
    double seconds = 0;
    if (memory) {
        m->arena = arena_over(memory, bytes);
        memset(sets, 0, MOST_SETS * sizeof *sets);
        for (int i = 0; i < count; i++) r->make(m, &sets[i], r->n);
        seconds = measure(b, r, sets, count);
        *first = sets[0];
    }
    backend_sync(m->be, &b->err);
    backend_release(m->be, memory);
    free(sets);
    return seconds;
}

/* --- the program ------------------------------------------------------------------------------------------------- */

/* What the driver says of the first device that it shows, where nvidia-smi is. */
static void print_driver(const char *when) {
    char line[256] = "";
    FILE *f = popen("nvidia-smi --format=csv,noheader --query-gpu=driver_version,clocks.sm,clocks.mem,power.draw,"
                    "temperature.gpu 2>/dev/null",
                    "r");
    if (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        printf("%s: driver, clocks of cores and memory, power, degrees C: %s\n", when, line);
    }
    if (f) pclose(f);
}

/* Whether the row runs on this backend and was asked for; the limits always are. */
static bool is_wanted(const struct bench *b, int i, const char *part) {
    bool device = strncmp(b->maker.be->name, "cuda", 4) == 0;
    if (!device && rows[i].call == call_dequantize) return false;
    return i < LIMIT_ROWS || !part || strstr(rows[i].name, part);
}

static void run_all(struct bench *b, const char *part) {
    printf("%-27s %-22s %10s %9s %8s %8s\n", "", "shape", "ms", "TFLOP/s", "TB/s", "of limit");
    for (int i = 0; i < (int)(sizeof rows / sizeof *rows) && b->err.code == ST_OK; i++) {
        struct row r = b->tiny ? made_tiny(rows[i]) : rows[i];
        struct set s = {0};
        if (!is_wanted(b, i, part)) continue;
        double seconds = run_row(b, &r, &s);
        if (b->err.code != ST_OK) break;
        print_row(b, &r, &s, seconds);
        if (i == COPY_ROW) b->copy = s.bytes / seconds;
        if (i == PRODUCT_ROW) b->product = s.operations / seconds;
    }
}

static void make_noise(struct maker *m, uint8_t *bits, bf16 *numbers, float *pattern) {
    uint64_t state = 1;
    for (int i = 0; i < NOISE; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t word = (uint32_t)(state >> 32);
        bits[i] = (uint8_t)(word >> 24);
        if (i < NOISE / 2) numbers[i] = bf16_of_float((float)word * 0x1p-31f - 1);
        if (i < NOISE / 4) pattern[i] = (float)word * 0x1p-32f * 0.02f;
    }
    m->bits = bits, m->numbers = numbers, m->pattern = pattern;
}

int main(int argc, char **argv) {
    struct bench b = {0};
    const char *device = "cuda", *part = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tiny") == 0)
            b.tiny = true;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            device = argv[++i];
        else
            part = argv[i];
    }
    b.maker.be = backend_new(device, 0, &b.err);
    if (!b.maker.be) return fprintf(stderr, "bench/gpu: %s\n", b.err.text), 1;
    uint8_t *bits = mem_alloc(NOISE);
    bf16 *numbers = mem_alloc(NOISE);
    float *pattern = mem_alloc(NOISE);
    make_noise(&b.maker, bits, numbers, pattern);
    printf("%s\n", backend_describe(b.maker.be));
    print_driver("before");
    run_all(&b, part);
    print_driver("after");
    free(bits), free(numbers), free(pattern);
    backend_free(b.maker.be);
    if (b.err.code != ST_OK) fprintf(stderr, "bench/gpu: %s\n", b.err.text);
    return b.err.code != ST_OK;
}

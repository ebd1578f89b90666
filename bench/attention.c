/* Speed of attention in GFLOP/s, the best of several runs: 4 operations for each head, head dimension and pair of a
 * query and a key that it sees, forward; 10 backward. Time is that of the wall.
 *   build/release/bench/attention [threads [type [row]]] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/half.h"
#include "kernels/backend.h"
#include "kernels/ops.h"

struct row {
    int64_t queries, keys, H, K, D, window;
    bool causal;
    enum dtype act;
};

static const struct row rows[] = {
    {512, 512, 9, 3, 64, 0, true, BF16},    {512, 512, 14, 2, 64, 0, true, BF16},
    {2048, 2048, 9, 3, 64, 0, true, BF16},  {512, 512, 8, 8, 128, 0, true, BF16},
    {512, 512, 8, 8, 80, 0, true, BF16},    {512, 512, 8, 8, 96, 0, true, BF16},
    {729, 729, 16, 16, 72, 0, false, BF16}, {512, 512, 4, 4, 256, 0, true, BF16},
    {512, 512, 8, 8, 16, 0, true, BF16},    {512, 512, 4, 4, 36, 0, true, BF16},
    {512, 512, 4, 4, 8, 0, true, BF16},     {2048, 2048, 9, 3, 64, 256, true, BF16},
    {1, 512, 9, 3, 64, 0, true, BF16},      {1, 4096, 32, 8, 128, 0, true, BF16},
    {16, 512, 9, 3, 64, 0, true, BF16},     {512, 512, 9, 3, 64, 0, true, F32},
    {512, 512, 8, 8, 128, 0, true, F32},    {729, 729, 16, 16, 72, 0, false, F32},
};

static double pairs(const struct row *r) {
    double n = 0;
    for (int64_t i = 0; i < r->queries; i++) {
        int64_t p = i + r->keys - r->queries, high = r->causal ? p + 1 : r->keys;
        int64_t low = r->window > 0 && p - r->window + 1 > 0 ? p - r->window + 1 : 0;
        n += (double)(high - low);
    }
    return n * (double)(r->H * r->D);
}

static struct tensor tensor_new(struct backend *be, enum dtype type, int64_t n, int64_t h, int64_t d, unsigned seed) {
    struct tensor t = tensor_over3(NULL, type, n, h, d);
    t.data = backend_alloc(be, tensor_bytes(&t));
    for (int64_t i = 0; i < n * h * d; i++) {
        float x = (float)((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
        if (type == F32)
            ((float *)t.data)[i] = x;
        else
            ((bf16 *)t.data)[i] = bf16_of_float(x);
    }
    return t;
}

static void measure(struct backend *be, const struct row *r) {
    int64_t at[2][2] = {{0, r->queries}, {0, r->keys}};
    struct tensor q = tensor_new(be, r->act, r->queries, r->H, r->D, 1),
                  k = tensor_new(be, r->act, r->keys, r->K, r->D, 2);
    struct tensor v = tensor_new(be, r->act, r->keys, r->K, r->D, 3),
                  dO = tensor_new(be, r->act, r->queries, r->H, r->D, 4);
    struct tensor o = tensor_new(be, r->act, r->queries, r->H, r->D, 5),
                  dq = tensor_new(be, r->act, r->queries, r->H, r->D, 6);
    struct tensor dk = tensor_new(be, r->act, r->keys, r->K, r->D, 7),
                  dv = tensor_new(be, r->act, r->keys, r->K, r->D, 8);
    struct tensor lse = tensor_over2(backend_alloc(be, (size_t)(r->queries * r->H) * 4), F32, r->queries, r->H);
    struct tensor delta = tensor_over2(backend_alloc(be, (size_t)(r->queries * r->H) * 4), F32, r->queries, r->H);
    struct tensor q_at = tensor_over1(at[0], I64, 2), k_at = tensor_over1(at[1], I64, 2);
    struct attention a = {.q_offsets = &q_at, .kv_offsets = &k_at, .sequences = 1, .max_q = r->queries};
    a.max_kv = r->keys, a.causal = r->causal, a.window = r->window, a.scale = 1.0f / sqrtf((float)r->D);
    double best[2] = {1e9, 1e9}, start = clock_now();
    for (int i = 0; i < 5 || clock_now() - start < 0.5; i++) {
        double t0 = clock_now();
        op_attention_forward(be, &o, &lse, &q, &k, &v, &a);
        double t1 = clock_now();
        op_attention_backward(be, &dq, &dk, &dv, &delta, &dO, &o, &lse, &q, &k, &v, &a);
        double t2 = clock_now();
        best[0] = fmin(best[0], t1 - t0), best[1] = fmin(best[1], t2 - t1);
    }
    printf("%-5s %5lld x %5lld  H %2lld K %2lld D %3lld %-6s window %4lld  forward %8.1f us %6.1f  backward %8.1f us "
           "%6.1f\n",
           dtype_name(r->act), (long long)r->queries, (long long)r->keys, (long long)r->H, (long long)r->K,
           (long long)r->D, r->causal ? "causal" : "", (long long)r->window, 1e6 * best[0], 4e-9 * pairs(r) / best[0],
           1e6 * best[1], 10e-9 * pairs(r) / best[1]);
    struct tensor *all[] = {&q, &k, &v, &dO, &o, &dq, &dk, &dv, &lse, &delta};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) backend_release(be, all[i]->data);
}

int main(int argc, char **argv) {
    struct err e = {0};
    struct backend *be = backend_new("cpu", argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1, &e);
    if (!be) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("%s\n", backend_describe(be));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if ((argc < 3 || strcmp(argv[2], dtype_name(rows[i].act)) == 0) &&
            (argc < 4 || strtoul(argv[3], NULL, 10) == i))
            measure(be, &rows[i]);
    backend_free(be);
    return 0;
}

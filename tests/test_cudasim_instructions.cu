/* Each instruction that the simulator emulates, alone, against what the manuals say of it: fragments are built here
 * element by element from the formulas of the PTX manual, which the simulator states in another way. */
#include <device.cuh>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include <cmocka.h>

#include "base/half.h"
}

enum { LANES = 32, M = 16, MMA_N = 8, K = 16 };
enum : unsigned { ALL = 0xffffffffu };

/* Memory of the device that the host sees too. */
template <typename T> T *shared_with_host(int n) {
    T *p;
    assert_int_equal(cudaHostAlloc(&p, n * sizeof(T), cudaHostAllocMapped), cudaSuccess);
    memset(p, 0, n * sizeof(T));
    return p;
}

template <typename... P> void start(void (*kernel)(P...), typename same_type<P>::type... arguments) {
    assert_int_equal(sim_launch(kernel, 1, LANES, 0, nullptr, arguments...), cudaSuccess);
}

/* --- mma --------------------------------------------------------------------------------------------------------- */

/* Element i of a lane's fragment: where it stands in its matrix. */
static int row_of_a(int lane, int i) { return lane / 4 + (i % 4 < 2 ? 0 : 8); }
static int col_of_a(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8); }
static int row_of_b(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8); }
static int col_of_b(int lane, int) { return lane / 4; }
static int row_of_c(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
static int col_of_c(int lane, int i) { return lane % 4 * 2 + (i & 1); }

/* a (M,K), b (K,MMA_N) bf16; c (M,MMA_N) in place. */
__global__ void multiply(float *c, const uint16_t *a, const uint16_t *b) {
    int lane = static_cast<int>(threadIdx.x);
    uint32_t ra[4], rb[2];
    float rc[4];
    for (int r = 0; r < 4; r++)
        ra[r] = a[row_of_a(lane, 2 * r) * K + col_of_a(lane, 2 * r)] |
                uint32_t{a[row_of_a(lane, 2 * r + 1) * K + col_of_a(lane, 2 * r + 1)]} << 16;
    for (int r = 0; r < 2; r++)
        rb[r] = b[row_of_b(lane, 2 * r) * MMA_N + col_of_b(lane, 2 * r)] |
                uint32_t{b[row_of_b(lane, 2 * r + 1) * MMA_N + col_of_b(lane, 2 * r + 1)]} << 16;
    for (int i = 0; i < 4; i++) rc[i] = c[row_of_c(lane, i) * MMA_N + col_of_c(lane, i)];
    mma_16x8x16(rc, ra, rb);
    for (int i = 0; i < 4; i++) c[row_of_c(lane, i) * MMA_N + col_of_c(lane, i)] = rc[i];
}

struct product {
    uint16_t *a, *b;
    float *c;
};

static struct product product_new() {
    struct product p = {shared_with_host<uint16_t>(M * K), shared_with_host<uint16_t>(K * MMA_N),
                        shared_with_host<float>(M * MMA_N)};
    for (int i = 0; i < M * K; i++) p.a[i] = bf16_of_float(static_cast<float>(i % 251 - 125));
    for (int i = 0; i < K * MMA_N; i++) p.b[i] = bf16_of_float(static_cast<float>(i % 127 - 60));
    return p;
}

static void product_free(struct product *p) { cudaFreeHost(p->a), cudaFreeHost(p->b), cudaFreeHost(p->c); }

/* Sums of these whole numbers are exact in float. */
static void check_product(const struct product *p, float before) {
    for (int m = 0; m < M; m++)
        for (int n = 0; n < MMA_N; n++) {
            float want = before;
            for (int k = 0; k < K; k++) want += bf16_to_float(p->a[m * K + k]) * bf16_to_float(p->b[k * MMA_N + n]);
            if (p->c[m * MMA_N + n] != want) fail_msg("c[%d][%d] is %g, wanted %g", m, n, p->c[m * MMA_N + n], want);
        }
}

static void test_mma(void **) {
    struct product p = product_new();
    for (int i = 0; i < M * MMA_N; i++) p.c[i] = 3.0f;
    start(multiply, p.c, p.a, p.b);
    check_product(&p, 3.0f);
    product_free(&p);
}

static void test_mma_with_one_element_of_a(void **) {
    struct product p = product_new();
    memset(p.a, 0, M * K * sizeof *p.a);
    for (int i = 0; i < M * K; i++) {
        p.a[i] = bf16_of_float(1.0f);
        memset(p.c, 0, M * MMA_N * sizeof *p.c);
        start(multiply, p.c, p.a, p.b);
        check_product(&p, 0.0f);
        p.a[i] = 0;
    }
    product_free(&p);
}

static void test_mma_with_one_element_of_b(void **) {
    struct product p = product_new();
    memset(p.b, 0, K * MMA_N * sizeof *p.b);
    for (int i = 0; i < K * MMA_N; i++) {
        p.b[i] = bf16_of_float(1.0f);
        memset(p.c, 0, M * MMA_N * sizeof *p.c);
        start(multiply, p.c, p.a, p.b);
        check_product(&p, 0.0f);
        p.b[i] = 0;
    }
    product_free(&p);
}

/* What devices have that know no such instruction: the same layouts, and sums of 16 products that are rounded where the
 * tensor cores cut. One rounding for each product, and for each group of eight two cuts of nine numbers. */
static void test_mma_by_lanes(void **state) {
    struct product p = product_new(), q = product_new();
    sim::before_8 = true;
    test_mma(state);
    test_mma_with_one_element_of_a(state);
    test_mma_with_one_element_of_b(state);
    for (int i = 0; i < M * K; i++) p.a[i] = q.a[i] = bf16_of_float(1.0f / (static_cast<float>(i * 37 % 101) - 50.5f));
    for (int i = 0; i < K * MMA_N; i++)
        p.b[i] = q.b[i] = bf16_of_float(1.0f / (static_cast<float>(i * 53 % 89) - 40.5f));
    for (int i = 0; i < M * MMA_N; i++) p.c[i] = q.c[i] = static_cast<float>(i) / 99;
    start(multiply, p.c, p.a, p.b);
    sim::before_8 = false;
    start(multiply, q.c, q.a, q.b);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < MMA_N; n++) {
            int at = m * MMA_N + n;
            float size = static_cast<float>(at) / 99;
            for (int k = 0; k < K; k++)
                size += fabsf(bf16_to_float(p.a[m * K + k]) * bf16_to_float(p.b[k * MMA_N + n]));
            assert_true(fabsf(p.c[at] - q.c[at]) <= (K + 2 * 9) * 0x1p-24f * size);
        }
    product_free(&p), product_free(&q);
}

/* What is small beside c is cut, not rounded, one bit below the last of c. */
static void test_mma_cuts(void **) {
    static const float factors[] = {0x1p-12f, 0x1p-11f}, wants[] = {1.0f, 1.0f + 0x1p-20f};
    struct product p = product_new();
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < M * K; k++) p.a[k] = bf16_of_float(factors[i]);
        for (int k = 0; k < K * MMA_N; k++) p.b[k] = bf16_of_float(0x1p-13f);
        for (int k = 0; k < M * MMA_N; k++) p.c[k] = 1.0f;
        start(multiply, p.c, p.a, p.b);
        for (int k = 0; k < M * MMA_N; k++) assert_true(p.c[k] == wants[i]);
    }
    product_free(&p);
}

/* --- ldmatrix ---------------------------------------------------------------------------------------------------- */

enum { STRIDE = 24 }; // of the rows in shared memory: not 8, so that a row is not found where none was named

/* Element (r, c) of matrix m is 1000 m + 10 r + c. Matrix m's rows lie backwards. */
template <bool trans> __global__ void load(uint32_t *out) {
    SHARED(uint16_t, s, 32 * STRIDE);
    int lane = static_cast<int>(threadIdx.x), line = 31 - lane;
    for (int c = 0; c < STRIDE; c++)
        s[line * STRIDE + c] = static_cast<uint16_t>(c < 8 ? lane / 8 * 1000 + lane % 8 * 10 + c : 9999);
    __syncwarp();
    uint32_t r[4];
    if (trans)
        ldmatrix_x4_trans(r, s + line * STRIDE);
    else
        ldmatrix_x4(r, s + line * STRIDE);
    for (int m = 0; m < 4; m++) out[lane * 4 + m] = r[m];
}

static void check_loaded(const uint32_t *out, bool trans) {
    for (int lane = 0; lane < LANES; lane++)
        for (int m = 0; m < 4; m++)
            for (int i = 0; i < 2; i++) {
                int row = lane / 4, col = lane % 4 * 2 + i;
                unsigned want = static_cast<unsigned>(1000 * m + (trans ? 10 * col + row : 10 * row + col));
                assert_int_equal(out[lane * 4 + m] >> 16 * i & 0xffff, want);
            }
}

static void test_ldmatrix(void **) {
    uint32_t *out = shared_with_host<uint32_t>(LANES * 4);
    start(load<false>, out);
    check_loaded(out, false);
    start(load<true>, out);
    check_loaded(out, true);
    cudaFreeHost(out);
}

/* --- cp.async ---------------------------------------------------------------------------------------------------- */

/* Four groups, the second empty; copy i goes to 4 i. A wait for all but the newest two leaves group 2 and 3 under way,
 * so the first copy alone may be read. */
__global__ void copy(float *out, const float *x) {
    SHARED(float, s, 4 * 4);
    if (threadIdx.x == 0) {
        cp_async_16(s, x, true);
        cp_async_commit();
        cp_async_commit();
        cp_async_16(s + 4, x + 4, true);
        cp_async_commit();
        cp_async_16(s + 8, nullptr, false);
        cp_async_16(s + 12, x + 12, true);
        cp_async_commit();
        cp_async_wait<2>();
        for (int i = 0; i < 4; i++) out[i] = s[i];
        cp_async_wait<1>();
        for (int i = 4; i < 8; i++) out[i] = s[i];
        cp_async_wait<0>();
        for (int i = 8; i < 16; i++) out[i] = s[i];
        cp_async_wait<0>();
    }
}

static void test_cp_async(void **) {
    float *out = shared_with_host<float>(16), *x = shared_with_host<float>(16);
    for (int i = 0; i < 16; i++) x[i] = static_cast<float>(i + 1);
    start(copy, out, x);
    for (int i = 0; i < 16; i++) assert_true(out[i] == (i / 4 == 2 ? 0.0f : static_cast<float>(i + 1)));
    cudaFreeHost(out), cudaFreeHost(x);
}

static void test_cp_async_at_once(void **state) {
    sim::before_8 = true;
    test_cp_async(state);
    sim::before_8 = false;
}

/* --- shuffles and votes ------------------------------------------------------------------------------------------ */

struct shuffled {
    int any, up, down, with;
    double wide;
};

__global__ void shuffle(struct shuffled *out, int by, int width) {
    int lane = static_cast<int>(threadIdx.x);
    struct shuffled s;
    s.any = __shfl_sync(ALL, lane, by, width);
    s.up = __shfl_up_sync(ALL, lane, static_cast<unsigned>(by), width);
    s.down = __shfl_down_sync(ALL, lane, static_cast<unsigned>(by), width);
    s.with = __shfl_xor_sync(ALL, lane, by, width);
    s.wide = __shfl_sync(ALL, lane + 0.25, by, width);
    out[lane] = s;
}

static void check_shuffled(const struct shuffled *out, int by, int width) {
    for (int lane = 0; lane < LANES; lane++) {
        int first = lane / width * width, last = first + width - 1;
        int any = first + by % width;
        assert_int_equal(out[lane].any, any);
        assert_true(out[lane].wide == any + 0.25);
        assert_int_equal(out[lane].up, lane - by < first ? lane : lane - by);
        assert_int_equal(out[lane].down, lane + by > last ? lane : lane + by);
        assert_int_equal(out[lane].with, (lane ^ by) > last ? lane : lane ^ by);
    }
}

static void test_shuffles(void **) {
    struct shuffled *out = shared_with_host<struct shuffled>(LANES);
    for (int width = 1; width <= 32; width *= 2)
        for (int by = 0; by < 32; by++) {
            start(shuffle, out, by, width);
            check_shuffled(out, by, width);
        }
    cudaFreeHost(out);
}

__global__ void vote(unsigned *out, unsigned mask, unsigned votes) {
    int lane = static_cast<int>(threadIdx.x);
    if (!(mask >> lane & 1)) return;
    int mine = static_cast<int>(votes >> lane & 1);
    unsigned *o = out + lane * 8;
    o[0] = __ballot_sync(mask, mine);
    o[1] = static_cast<unsigned>(__any_sync(mask, mine));
    o[2] = static_cast<unsigned>(__all_sync(mask, mine));
    o[3] = __reduce_add_sync(mask, threadIdx.x);
    o[4] = __reduce_max_sync(mask, threadIdx.x ^ 5u);
    o[5] = static_cast<unsigned>(__reduce_min_sync(mask, 3 - lane));
    o[6] = static_cast<unsigned>(__reduce_max_sync(mask, -lane));
    o[7] = static_cast<unsigned>(__reduce_add_sync(mask, -lane));
}

static void test_votes(void **) {
    static const unsigned masks[] = {ALL, 1u, 0x80000000u, 0x0000ffffu, 0x5a5a1234u};
    static const unsigned votes[] = {0, ALL, 0x0000ffffu, 0x00010000u};
    unsigned *out = shared_with_host<unsigned>(LANES * 8);
    for (unsigned m : masks)
        for (unsigned v : votes) {
            int sum = 0, most = 0, last = 0, first = 32;
            for (int i = 0; i < LANES; i++) {
                if (!(m >> i & 1)) continue;
                sum += i;
                most = max(most, i ^ 5);
                last = i;
                first = min(first, i);
            }
            start(vote, out, m, v);
            for (int i = 0; i < LANES; i++) {
                if (!(m >> i & 1)) continue;
                const unsigned want[] = {v & m,
                                         (v & m) != 0,
                                         (v & m) == m,
                                         static_cast<unsigned>(sum),
                                         static_cast<unsigned>(most),
                                         static_cast<unsigned>(3 - last),
                                         static_cast<unsigned>(-first),
                                         static_cast<unsigned>(-sum)};
                assert_memory_equal(out + i * 8, want, sizeof want);
            }
        }
    cudaFreeHost(out);
}

/* --- 16-bit numbers ---------------------------------------------------------------------------------------------- */

/* Every number of the format, and what lies between it and the next: the middle goes to the even one of the two, a
 * little less and a little more to the nearer. */
template <typename T> static void check_rounding(float (*value)(uint16_t), uint16_t infinity) {
    for (unsigned h = 0; h < infinity; h++) {
        float low = value(static_cast<uint16_t>(h)), step = value(static_cast<uint16_t>(h + 1)) - low;
        if (h + 1u == infinity) step = low - value(static_cast<uint16_t>(h - 1)); // as if the format went on
        float middle = low + 0.5f * step;
        unsigned even = h & 1 ? h + 1 : h;
        for (int sign = 0; sign < 2; sign++) {
            float s = sign ? -1.0f : 1.0f;
            unsigned bit = sign ? 0x8000u : 0;
            assert_int_equal(T(s * low).__x, h | bit);
            assert_int_equal(T(s * middle).__x, even | bit);
            assert_int_equal(T(s * nextafterf(middle, 0.0f)).__x, h | bit);
            assert_int_equal(T(s * nextafterf(middle, INFINITY)).__x, (h + 1) | bit);
            T back;
            back.__x = static_cast<unsigned short>(h | bit);
            assert_true(static_cast<float>(back) == s * low);
        }
    }
    assert_int_equal(T(INFINITY).__x, infinity);
    assert_int_equal(T(-INFINITY).__x, infinity | 0x8000u);
    assert_true(T(NAN).__x > infinity);
    assert_true(isnan(static_cast<float>(T(NAN))));
    assert_true(isnan(static_cast<float>(T(-NAN))));
    assert_int_equal(T(-0.0f).__x, 0x8000u);
}

static float value_of_bf16(uint16_t h) { return bf16_to_float(h); }
static float value_of_half(uint16_t h) { return f16_to_float(h); }

static void test_bf16_rounds_to_nearest_even(void **) { check_rounding<__nv_bfloat16>(value_of_bf16, 0x7f80); }
static void test_half_rounds_to_nearest_even(void **) { check_rounding<__half>(value_of_half, 0x7c00); }

/* Off, but by no more than the device is. */
static void test_functions_are_inexact(void **) {
    int off = 0, fast_off = 0;
    for (float x = -20; x < 20; x += 0.37f) {
        double want = exp(static_cast<double>(x)), fast = exp2(static_cast<double>(x));
        assert_true(fabs(static_cast<double>(expf(x)) - want) <= 2.51 * 0x1p-23 * want);
        assert_true(fabs(static_cast<double>(exp2_fast(x)) - fast) <= 2.51 * 0x1p-23 * fast);
        off += fabs(static_cast<double>(expf(x)) - want) > 0x1p-24 * want;
        fast_off += fabs(static_cast<double>(exp2_fast(x)) - fast) > 0x1p-24 * fast;
    }
    assert_true(off > 50 && fast_off > 50);
    assert_true(expf(0) == 1 && exp2_fast(0) == 1 && exp2_fast(-INFINITY) == 0 && isnan(expf(NAN)));
}

static void test_bits(void **) {
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7531u), 0x77553311u);
    assert_int_equal(__byte_perm(0x33221180u, 0u, 0x1018u), 0x118011ffu);
    assert_int_equal(__brev(1u), 0x80000000u);
    assert_int_equal(__ffs(0), 0);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__clz(0), 32);
    assert_int_equal(__umulhi(0x80000000u, 6), 3);
    assert_int_equal(__funnelshift_l(0x80000001u, 1u, 4), 0x18u);
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rn(-3.5f), -4);
    assert_int_equal(__float2int_rn(NAN), 0);
    assert_int_equal(__float2int_rn(1e20f), INT32_MAX);
    assert_int_equal(__float2int_rn(-1e20f), INT32_MIN);
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_mma_with_one_element_of_a),
        cmocka_unit_test(test_mma_with_one_element_of_b),
        cmocka_unit_test(test_mma_by_lanes),
        cmocka_unit_test(test_mma_cuts),
        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_cp_async),
        cmocka_unit_test(test_cp_async_at_once),
        cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_votes),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_half_rounds_to_nearest_even),
        cmocka_unit_test(test_functions_are_inexact),
        cmocka_unit_test(test_bits),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

/* Matrix products: cuBLASLt where it takes them, and kernels of our own for what it refuses, any types and any shape,
 * and for those with dropout.
 *
 * A product of our own is cut into tiles of C. Where they are few and k is long, k is cut as well, in a way that
 * depends on the shape alone; the parts of the sums lie in scratch, and a second kernel adds them up in order. */
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/ops_cuda.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/q4.cuh"

enum { TILE = 64, ENOUGH = 256, LEAST_K = 256 }; // tiles that keep a device busy; the shortest part of k

/* A factor: elements of a line lie side by side, lines ld apart. A line has one i (row of A, column of B) and runs
 * along k, or it has one k and runs along i. */
struct factor {
    const void *data;
    enum dtype type;
    int64_t ld;
    bool along_k;
    bool aligned; // runs of 8 from the start of a line on may be loaded at once
};

/* What the kernels work on. */
struct task {
    struct factor a, b;
    void *C;
    float *parts; // (parts of k, m, n), or NULL where C is written at once
    const void *bias;
    enum dtype c_type;
    int64_t m, n, k, ldc;
    int64_t part; // so much of k to a block
    float alpha, beta;
    struct mask mask; // of the matrix that a kernel drops out
};

enum { DROP_NOTHING = -1 }; // beside enum dropped, as what kernels are made for

/* --- C ----------------------------------------------------------------------------------------------------------- */

/* C (m,n) = alpha * sum + beta * C + bias, one rounding. */
__device__ inline void store_sum(const struct task &t, int64_t m, int64_t n, float sum) {
    int64_t at = m * t.ldc + n;
    float x = t.alpha * sum;
    if (t.beta != 0.0f) x += t.beta * value_at(t.C, t.c_type, at);
    if (t.bias) x += value_at(t.bias, t.c_type, n);
    value_put(t.C, t.c_type, at, x);
}

/* A sum over this block's part of k. */
__device__ inline void store_part(const struct task &t, int64_t m, int64_t n, float sum) {
    if (m >= t.m || n >= t.n) return;
    if (t.parts)
        t.parts[(blockIdx.z * t.m + m) * t.n + n] = sum;
    else
        store_sum(t, m, n, sum);
}

/* One thread for an element of C. */
__global__ void add_parts_kernel(struct task t, int count) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= t.m * t.n) return;
    float sum = 0;
    for (int p = 0; p < count; p++) sum += t.parts[p * t.m * t.n + i];
    store_sum(t, i / t.n, i % t.n, sum);
}

/* Eight elements of a line of width ld that are dropped out, `at` a multiple of eight. */
__device__ inline void drop_run(float (&v)[RUN], const struct mask &mask, int64_t line, int64_t ld, int64_t at) {
    if (ld % 4 == 0) {
        mask.kept(v, v, line * ld + at);
        return;
    }
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        float one[1] = {v[i]};
        mask.kept(one, one, line * ld + at + i);
        v[i] = one[0];
    }
}

/* Eight elements of a factor's line from `at` on; zeros beyond count. */
__device__ inline void factor_run(float (&v)[RUN], const struct factor &f, int64_t line, int64_t at, int64_t rest) {
    const int64_t first = line * f.ld + at;
    if (f.aligned && rest >= RUN && f.type == BF16) {
        vec16<bf16_t> x = load16(static_cast<const bf16_t *>(f.data) + first);
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = to_float(x.at[i]);
    } else if (f.aligned && rest >= RUN) {
        vec16<float> x = load16(static_cast<const float *>(f.data) + first);
        vec16<float> y = load16(static_cast<const float *>(f.data) + first + 4);
#pragma unroll
        for (int i = 0; i < RUN / 2; i++) v[i] = x.at[i], v[i + 4] = y.at[i];
    } else {
#pragma unroll
        for (int i = 0; i < RUN; i++) v[i] = i < rest ? value_at(f.data, f.type, first + i) : 0.0f;
    }
}

/* --- bf16 -------------------------------------------------------------------------------------------------------- */

enum { STEP = 32, THREADS = 128, RUNS = TILE * STEP / RUN / THREADS }; // of k; of a block; of a factor for a thread
enum { LINE_K = STEP + 8, LINE_I = TILE + 8, ROOM = TILE * LINE_K };   // 16-byte rows that lie in different banks

static_assert(STEP * LINE_I <= ROOM, "either way of a tile fits");

/* Run r of this thread in a tile whose first element is (i, k): which line of the tile, and where in it. */
__device__ inline void run_place(const struct factor &f, int r, int &line, int &at) {
    int x = r * THREADS + static_cast<int>(threadIdx.x), runs = f.along_k ? STEP / RUN : TILE / RUN;
    line = x / runs, at = x % runs * RUN;
}

template <bool DROPPED>
__device__ inline void tile_fetch(vec16<bf16_t> (&held)[RUNS], const struct factor &f, const struct mask &mask,
                                  int64_t i, int64_t k, int64_t i_end, int64_t k_end) {
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        int line, at;
        run_place(f, r, line, at);
        int64_t l = (f.along_k ? i : k) + line, lines = f.along_k ? i_end : k_end;
        int64_t first = (f.along_k ? k : i) + at, end = f.along_k ? k_end : i_end;
        float v[RUN];
        factor_run(v, f, l, first, l < lines ? end - first : 0);
        if (DROPPED) drop_run(v, mask, l, f.ld, first);
#pragma unroll
        for (int j = 0; j < RUN; j++) held[r].at[j] = from_float<bf16_t>(v[j]);
    }
}

__device__ inline void tile_put(bf16_t *tile, const vec16<bf16_t> (&held)[RUNS], const struct factor &f) {
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        int line, at;
        run_place(f, r, line, at);
        store16(tile + line * (f.along_k ? LINE_K : LINE_I) + at, held[r]);
    }
}

/* Rows i .. i + 15 and columns k .. k + 15 of a tile, as four 8x8 matrices: with rows_first in the order (i,k),
 * (i+8,k), (i,k+8), (i+8,k+8), which is an A operand; else (i,k), (i,k+8), (i+8,k), (i+8,k+8): two B operands. */
__device__ inline void fragment(uint32_t (&r)[4], const bf16_t *tile, const struct factor &f, int i, int k,
                                bool rows_first) {
    int lane = static_cast<int>(threadIdx.x) % WARP, in = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    int di = rows_first ? low : high, dk = rows_first ? high : low;
    if (f.along_k)
        ldmatrix_x4(r, tile + (i + di + in) * LINE_K + k + dk);
    else
        ldmatrix_x4_trans(r, tile + (k + dk + in) * LINE_I + i + di);
}

/* c[2][4] (32,32) of this warp += its part of two tiles. */
__device__ inline void tile_multiply(float (&c)[2][4][4], const bf16_t *ta, const bf16_t *tb, const struct task &t) {
    int warp = static_cast<int>(threadIdx.x) / WARP, m = warp / 2 * 32, n = warp % 2 * 32;
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            fragment(a[i], ta, t.a, m + 16 * i, k, true);
            fragment(b[i], tb, t.b, n + 16 * i, k, false);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma_16x8x16(c[i][j], a[i], pair);
            }
    }
}

/* The sums of a fragment, whose first is element (m,n) of C, with columns n and n + 1 of rows m and m + 8. A block of
 * random words is four columns, which two lanes hold: each makes one of the two rows' and gives half of it away. */
__device__ inline void drop_fragment(float (&c)[4], const struct task &t, int64_t m, int64_t n) {
    if (t.ldc % 4 != 0) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float one[1] = {c[r]};
            t.mask.kept(one, one, (m + r / 2 * 8) * t.ldc + n + r % 2);
            c[r] = one[0];
        }
        return;
    }
    const bool right = n % 4 != 0; // this lane has the last two columns of the four
    uint32_t own[4];
    philox_words(own, t.mask.random, t.mask.first + (m + (right ? 8 : 0)) * t.ldc + n / 4 * 4);
    uint32_t x = __shfl_xor_sync(0xffffffffu, right ? own[0] : own[2], 1);
    uint32_t y = __shfl_xor_sync(0xffffffffu, right ? own[1] : own[3], 1);
    c[0] = t.mask.kept(c[0], right ? x : own[0]), c[1] = t.mask.kept(c[1], right ? y : own[1]);
    c[2] = t.mask.kept(c[2], right ? own[2] : x), c[3] = t.mask.kept(c[3], right ? own[3] : y);
}

/* Block (x,y,z): tile (x,y) of C and part z of k; four warps, each a quarter of the tile. The next tiles of the factors
 * are under way while those in shared memory are multiplied. */
template <int DROP> __global__ void __launch_bounds__(THREADS) product_bf16_kernel(struct task t) {
    SHARED(vec16<bf16_t>, ta_room, ROOM / 8);
    SHARED(vec16<bf16_t>, tb_room, ROOM / 8);
    bf16_t *ta = ta_room[0].at, *tb = tb_room[0].at;
    const int64_t m0 = static_cast<int64_t>(blockIdx.x) * TILE, n0 = static_cast<int64_t>(blockIdx.y) * TILE;
    const int64_t k0 = blockIdx.z * t.part, k1 = min(t.k, k0 + t.part);
    float c[2][4][4] = {};
    vec16<bf16_t> a[RUNS], b[RUNS];
    tile_fetch<DROP == DROP_A>(a, t.a, t.mask, m0, k0, t.m, k1);
    tile_fetch<DROP == DROP_B>(b, t.b, t.mask, n0, k0, t.n, k1);
    for (int64_t k = k0; k < k1; k += STEP) {
        __syncthreads();
        tile_put(ta, a, t.a);
        tile_put(tb, b, t.b);
        __syncthreads();
        tile_fetch<DROP == DROP_A>(a, t.a, t.mask, m0, k + STEP, t.m, k1);
        tile_fetch<DROP == DROP_B>(b, t.b, t.mask, n0, k + STEP, t.n, k1);
        tile_multiply(c, ta, tb, t);
    }
    int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    const int64_t m = m0 + warp / 2 * 32 + lane / 4, n = n0 + warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (DROP == DROP_C) drop_fragment(c[i][j], t, m + 16 * i, n + 8 * j);
#pragma unroll
            for (int r = 0; r < 4; r++) store_part(t, m + 16 * i + r / 2 * 8, n + 8 * j + r % 2, c[i][j][r]);
        }
}

/* --- F32 --------------------------------------------------------------------------------------------------------- */

enum { STEP_F32 = 16, THREADS_F32 = 256, LINE_F32 = TILE + 4 };

/* tile (k,i) of F32. */
template <bool DROPPED>
__device__ inline void tile_f32(float *tile, const struct factor &f, const struct mask &mask, int64_t i0, int64_t k0,
                                int64_t i_end, int64_t k_end) {
#pragma unroll
    for (int x = static_cast<int>(threadIdx.x); x < TILE * STEP_F32; x += THREADS_F32) {
        int i = f.along_k ? x / STEP_F32 : x % TILE, k = f.along_k ? x % STEP_F32 : x / TILE;
        bool there = i0 + i < i_end && k0 + k < k_end;
        int64_t at = f.along_k ? (i0 + i) * f.ld + k0 + k : (k0 + k) * f.ld + i0 + i;
        float v[1] = {there ? static_cast<const float *>(f.data)[at] : 0.0f};
        if (DROPPED) mask.kept(v, v, at);
        tile[k * LINE_F32 + i] = v[0];
    }
}

/* The same with 4 x 4 sums to a thread, rows and columns 16 apart, added up in the order of k. */
template <int DROP> __global__ void __launch_bounds__(THREADS_F32) product_f32_kernel(struct task t) {
    SHARED(float, ta, STEP_F32 *LINE_F32);
    SHARED(float, tb, STEP_F32 *LINE_F32);
    const int64_t m0 = static_cast<int64_t>(blockIdx.x) * TILE, n0 = static_cast<int64_t>(blockIdx.y) * TILE;
    const int64_t k0 = blockIdx.z * t.part, k1 = min(t.k, k0 + t.part);
    const int row = static_cast<int>(threadIdx.x) / 16, col = static_cast<int>(threadIdx.x) % 16;
    const bool inside = m0 + row < t.m && n0 + col < t.n; // else none of this thread's elements is
    float c[4][4] = {};
    for (int64_t k = k0; k < k1; k += STEP_F32) {
        const int steps = inside ? static_cast<int>(min(int64_t{STEP_F32}, k1 - k)) : 0;
        __syncthreads();
        tile_f32<DROP == DROP_A>(ta, t.a, t.mask, m0, k, t.m, k1);
        tile_f32<DROP == DROP_B>(tb, t.b, t.mask, n0, k, t.n, k1);
        __syncthreads();
#pragma unroll 4
        for (int s = 0; s < steps; s++) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = ta[s * LINE_F32 + row + 16 * i];
                b[i] = tb[s * LINE_F32 + col + 16 * i];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) c[i][j] = fmaf(a[i], b[j], c[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t m = m0 + row + 16 * i, n = n0 + col + 16 * j;
            float sum[1] = {c[i][j]};
            if (DROP == DROP_C) t.mask.kept(sum, sum, m * t.ldc + n);
            store_part(t, m, n, sum[0]);
        }
}

/* --- launching --------------------------------------------------------------------------------------------------- */

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static struct factor factor_of(const void *data, enum dtype type, int64_t ld, bool along_k) {
    bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && ld % RUN == 0;
    return {data, type, ld, along_k, aligned};
}

/* How many parts k is cut into: enough to keep the device busy, none of them short, and all within their memory. */
static int64_t parts_of(const struct product *p) {
    int64_t tiles = divide_up(p->m, TILE) * divide_up(p->n, TILE);
    int64_t room = static_cast<int64_t>(PLACE_BYTES / sizeof(float)) / (p->m * p->n);
    int64_t parts = ENOUGH / tiles;
    if (parts > p->k / LEAST_K) parts = p->k / LEAST_K;
    if (parts > room) parts = room;
    return parts < 1 ? 1 : parts;
}

template <int DROP> static void multiply_here(struct backend *be, const struct product *p, const char *what) {
    int64_t parts = DROP == DROP_C ? 1 : parts_of(p); // a sum is dropped out when it is whole
    struct task t = {};
    t.a = factor_of(p->A, p->a_type, p->lda, !p->ta);
    t.b = factor_of(p->B, p->b_type, p->ldb, p->tb);
    t.C = p->C, t.bias = p->bias, t.c_type = p->c_type;
    t.m = p->m, t.n = p->n, t.k = p->k, t.ldc = p->ldc;
    t.part = divide_up(divide_up(p->k, parts), STEP) * STEP;
    t.alpha = p->alpha, t.beta = p->beta;
    if (p->dropout) t.mask = mask_of(p->dropout);
    parts = t.part ? divide_up(p->k, t.part) : 1;
    if (parts > 1) t.parts = reinterpret_cast<float *>(cuda_of(be)->scratch + PARTS_PLACE);
    bool f32 = p->a_type == F32 && p->b_type == F32 && p->c_type == F32;
    dim3 grid(blocks_for(p->m, TILE), blocks_for(p->n, TILE), static_cast<unsigned>(parts));
    launch(be, what, f32 ? product_f32_kernel<DROP> : product_bf16_kernel<DROP>, grid,
           f32 ? int{THREADS_F32} : int{THREADS}, 0, t);
    if (parts > 1)
        launch(be, what, add_parts_kernel, blocks_for(p->m * p->n, THREADS_F32), THREADS_F32, 0, t,
               static_cast<int>(parts));
}

void cuda_product(struct backend *be, const struct product *p, const char *what) {
    if (p->m == 0 || p->n == 0 || be->err.code != ST_OK) return;
    if (p->dropout && p->dropped == DROP_A)
        multiply_here<DROP_A>(be, p, what);
    else if (p->dropout && p->dropped == DROP_B)
        multiply_here<DROP_B>(be, p, what);
    else if (p->dropout)
        multiply_here<DROP_C>(be, p, what);
    else if (!cublaslt_multiply(be, p))
        multiply_here<DROP_NOTHING>(be, p, what);
}

/* --- the op ------------------------------------------------------------------------------------------------------ */

/* An F32 factor of a bf16 product: a copy in BF16 where there is room for it, so that cuBLASLt takes the product. */
static void narrow(struct backend *be, const void **data, enum dtype *type, int64_t *ld, const struct tensor *t,
                   size_t place) {
    int64_t wide = divide_up(t->dim[1], RUN) * RUN;
    if (t->type != F32 || static_cast<size_t>(t->dim[0] * wide) * sizeof(bf16_t) > PLACE_BYTES) return;
    void *copy = cuda_of(be)->scratch + place;
    cuda_weight_slice(be, copy, BF16, wide, t, F32, 0, t->dim[0], 0, t->dim[1], "matmul");
    *data = copy, *type = BF16, *ld = wide;
}

static struct product product_of(const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                                 bool tb, float alpha, float beta) {
    struct product p = {};
    p.A = A->data, p.a_type = A->type, p.lda = A->dim[1], p.ta = ta;
    p.B = B->data, p.b_type = B->type, p.ldb = B->dim[1], p.tb = tb;
    p.C = C->data, p.c_type = C->type, p.ldc = C->dim[1];
    p.m = C->dim[0], p.n = C->dim[1], p.k = ta ? A->dim[0] : A->dim[1];
    p.alpha = alpha, p.beta = beta;
    return p;
}

void cuda_matmul(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta, const struct tensor *B,
                 bool tb, float alpha, float beta) {
    struct product p = product_of(C, A, ta, B, tb, alpha, beta);
    if (A->type == BF16 || B->type == BF16 || C->type == BF16) {
        narrow(be, &p.A, &p.a_type, &p.lda, A, FIRST_PLACE);
        narrow(be, &p.B, &p.b_type, &p.ldb, B, SECOND_PLACE);
    }
    cuda_product(be, &p, "matmul");
}

void cuda_matmul_dropout(struct backend *be, const struct tensor *C, const struct tensor *A, bool ta,
                         const struct tensor *B, bool tb, float alpha, float beta, const struct dropout *d,
                         enum dropped which) {
    struct product p = product_of(C, A, ta, B, tb, alpha, beta);
    p.dropout = d, p.dropped = which;
    cuda_product(be, &p, "matmul_dropout");
}

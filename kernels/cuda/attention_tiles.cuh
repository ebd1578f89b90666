/* The pieces that the kernels of attention are told in: tiles in shared memory, and parts of products in registers.
 *
 * A tile is some rows of W elements of T, W being the head size padded with zeros. From row to row it is W elements and
 * 16 bytes: an odd number of 16-byte pieces, so that eight rows read side by side touch every bank once.
 *
 * A warp computes M rows of a product, in float, and each lane holds a `part` of it: at(i, j) is the element of row
 * row(i) and column col(j). Lanes that share a row are neighbours. With T = bf16 the products run on tensor cores, and
 * a part is made of the fragments of mma_16x8x16 (device.cuh), where the result of one product, rounded to bf16,
 * already lies as the first factor of the next. With T = float they are fused multiply-adds, and lanes hand each other
 * what they hold. The kernels do not see the difference. */
#ifndef KERNELS_CUDA_ATTENTION_TILES_CUH
#define KERNELS_CUDA_ATTENTION_TILES_CUH

#include "kernels/cuda/attention.cuh"

/* Elements from row to row of a tile. */
template <typename T, int W> constexpr int tile_stride = W + 16 / static_cast<int>(sizeof(T));

__device__ inline int tile_lane() { return threadIdx.x % WARP; }

/* --- between tensors and tiles ------------------------------------------------------------------------------------ */

enum tile_of { TILE_OF_ROWS, TILE_OF_KEYS };

template <tile_of KIND>
__device__ inline int64_t tile_line(const struct attention_job &job, const struct attention_place &h, int i) {
    return KIND == TILE_OF_KEYS ? attention_key(job, h, i) : attention_row(job, h, i);
}

/* tile (N,W) = rows or keys first .. first + N of t; zeros beyond the sequence and beyond D. Begins the copies; they
 * are there after cp_async_wait and a barrier. */
template <tile_of KIND, int N, int W, typename T>
__device__ void tile_load(T *tile, const T *t, const struct attention_job &job, const struct attention_place &h,
                          int first) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = W / PIECE, STRIDE = tile_stride<T, W>;
    const int end = KIND == TILE_OF_KEYS ? h.keys : h.rows;
    if (job.wide) {
#pragma unroll
        for (int c = threadIdx.x; c < N * PIECES; c += ATTENTION_THREADS) {
            int i = c / PIECES, d = c % PIECES * PIECE;
            bool there = first + i < end && d < job.D;
            cp_async_16(tile + i * STRIDE + d, there ? t + tile_line<KIND>(job, h, first + i) + d : t, there);
        }
    } else {
#pragma unroll 1
        for (int c = threadIdx.x; c < N * W; c += ATTENTION_THREADS) {
            int i = c / W, d = c % W;
            bool there = first + i < end && d < job.D;
            tile[i * STRIDE + d] = there ? t[tile_line<KIND>(job, h, first + i) + d] : from_float<T>(0);
        }
    }
}

/* Rows or keys first .. first + N of t, as far as there are, = tile (N,W). */
template <tile_of KIND, int N, int W, typename T>
__device__ void tile_store(T *t, const T *tile, const struct attention_job &job, const struct attention_place &h,
                           int first) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = W / PIECE;
    const int end = KIND == TILE_OF_KEYS ? h.keys : h.rows;
    for (int c = threadIdx.x; c < N * PIECES; c += ATTENTION_THREADS) {
        int i = c / PIECES, d = c % PIECES * PIECE;
        if (first + i >= end || d >= job.D) continue;
        const T *from = tile + i * tile_stride<T, W> + d;
        T *to = t + tile_line<KIND>(job, h, first + i) + d;
        if (job.wide)
            store16(to, load16(from));
        else
            for (int e = 0; e < PIECE && d + e < job.D; e++) to[e] = from[e];
    }
}

/* --- parts -------------------------------------------------------------------------------------------------------- */

template <typename T, int M, int N> struct part;

template <int M, int N> struct part<bf16_t, M, N> {
    static constexpr int rows = M / 8, cols = N / 4, sharing = 4; // lanes that share a row
    float c[M / 16][N / 8][4];                                    // fragments C

    __device__ float &at(int i, int j) { return c[i / 2][j / 2][2 * (i % 2) + j % 2]; }
    static __device__ int row(int i) { return 8 * i + tile_lane() / 4; }
    static __device__ int col(int j) { return 8 * (j / 2) + 2 * (tile_lane() % 4) + j % 2; }
};

template <int M, int N> struct part<float, M, N> {
    static constexpr int rows = M / 4, cols = N / 8, sharing = 8;
    float c[M / 4][N / 8];

    __device__ float &at(int i, int j) { return c[i][j]; }
    static __device__ int row(int i) { return 4 * i + tile_lane() / 8; }
    static __device__ int col(int j) { return 8 * j + tile_lane() % 8; }
};

template <typename P> __device__ void part_clear(P &p) {
#pragma unroll
    for (int i = 0; i < P::rows; i++)
#pragma unroll
        for (int j = 0; j < P::cols; j++) p.at(i, j) = 0;
}

template <typename P> __device__ void part_scale(P &p, float factor) {
#pragma unroll
    for (int i = 0; i < P::rows; i++)
#pragma unroll
        for (int j = 0; j < P::cols; j++) p.at(i, j) *= factor;
}

/* The rows of a tile from `tile` on, (M,N), = p, rounded. */
template <int W, typename T, int M, int N> __device__ void part_store(T *tile, part<T, M, N> &p) {
    using P = part<T, M, N>;
#pragma unroll
    for (int i = 0; i < P::rows; i++)
#pragma unroll
        for (int j = 0; j < P::cols; j++) tile[P::row(i) * tile_stride<T, W> + P::col(j)] = from_float<T>(p.at(i, j));
}

/* The largest, or the sum, over the lanes that share a row. */
template <typename P> __device__ float part_row_max(float x) {
#pragma unroll
    for (int d = P::sharing / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}
template <typename P> __device__ float part_row_sum(float x) {
#pragma unroll
    for (int d = P::sharing / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/* --- products on tensor cores ------------------------------------------------------------------------------------- */

/* c (M,N) = A B^T: A the M rows of a tile from `a` on, B the N rows from `b` on, over W. A register of B holds two
 * neighbours of one column of B^T, which is a row of the tile: ldmatrix as it lies. */
template <int W, int M, int N> __device__ void product_nt(part<bf16_t, M, N> &c, const bf16_t *a, const bf16_t *b) {
    constexpr int STRIDE = tile_stride<bf16_t, W>;
    int lane = tile_lane();
    a += lane % 16 * STRIDE + lane / 16 * 8;                     // matrices: rows 0-7, 8-15 of k 0-7, then of k 8-15
    b += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8; // k 0-7, 8-15 of rows 0-7, then of rows 8-15
    part_clear(c);
#pragma unroll
    for (int k = 0; k < W; k += 16) {
        uint32_t x[M / 16][4];
#pragma unroll
        for (int i = 0; i < M / 16; i++) ldmatrix_x4(x[i], a + 16 * i * STRIDE + k);
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t y[4];
            ldmatrix_x4(y, b + 16 * j * STRIDE + k);
            uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
#pragma unroll
            for (int i = 0; i < M / 16; i++) {
                mma_16x8x16(c.c[i][2 * j], x[i], left);
                mma_16x8x16(c.c[i][2 * j + 1], x[i], right);
            }
        }
    }
}

/* c (M,N) += P B: P (M,R) a part, rounded to bf16; B N columns of the R rows of a tile from `b` on. Registers of B hold
 * neighbours of a column of the tile: ldmatrix transposes. */
template <int W, int M, int R, int N>
__device__ void product_nn(part<bf16_t, M, N> &c, part<bf16_t, M, R> &p, const bf16_t *b) {
    constexpr int STRIDE = tile_stride<bf16_t, W>;
    int lane = tile_lane();
    b += lane % 16 * STRIDE + lane / 16 * 8; // matrices: k 0-7, 8-15 of columns 0-7, then of columns 8-15
#pragma unroll
    for (int k = 0; k < R / 16; k++) {
        uint32_t x[M / 16][4];
#pragma unroll
        for (int i = 0; i < M / 16; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float *pair = p.c[i][2 * k + r / 2] + 2 * (r % 2);
                x[i][r] = pack_bf16(pair[0], pair[1]);
            }
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t y[4];
            ldmatrix_x4_trans(y, b + 16 * k * STRIDE + 16 * j);
            uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
#pragma unroll
            for (int i = 0; i < M / 16; i++) {
                mma_16x8x16(c.c[i][2 * j], x[i], left);
                mma_16x8x16(c.c[i][2 * j + 1], x[i], right);
            }
        }
    }
}

/* --- products in float -------------------------------------------------------------------------------------------- */

template <int W, int M, int N> __device__ void product_nt(part<float, M, N> &c, const float *a, const float *b) {
    using P = part<float, M, N>;
    constexpr int STRIDE = tile_stride<float, W>;
    part_clear(c);
#pragma unroll 4
    for (int k = 0; k < W; k += 4) {
        vec16<float> x[P::rows], y[P::cols];
#pragma unroll
        for (int i = 0; i < P::rows; i++) x[i] = load16(a + P::row(i) * STRIDE + k);
#pragma unroll
        for (int j = 0; j < P::cols; j++) y[j] = load16(b + P::col(j) * STRIDE + k);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int i = 0; i < P::rows; i++)
#pragma unroll
                for (int j = 0; j < P::cols; j++) c.c[i][j] = fmaf(x[i].at[e], y[j].at[e], c.c[i][j]);
    }
}

/* Column k of P is held by lane k % 8 of those that share the row. */
template <int W, int M, int R, int N>
__device__ void product_nn(part<float, M, N> &c, part<float, M, R> &p, const float *b) {
    using P = part<float, M, N>;
    constexpr int STRIDE = tile_stride<float, W>;
    int first = tile_lane() / P::sharing * P::sharing;
#pragma unroll
    for (int k = 0; k < R; k++) {
        float x[P::rows];
#pragma unroll
        for (int i = 0; i < P::rows; i++) x[i] = __shfl_sync(0xffffffffu, p.c[i][k / 8], first + k % 8);
#pragma unroll
        for (int j = 0; j < P::cols; j++) {
            float y = b[k * STRIDE + P::col(j)];
#pragma unroll
            for (int i = 0; i < P::rows; i++) c.c[i][j] = fmaf(x[i], y, c.c[i][j]);
        }
    }
}

/* --- scores ------------------------------------------------------------------------------------------------------- */

constexpr float LOG2_E = 1.44269504f, LOG_2 = 0.693147181f;

/* seen[i] = the keys that row first + i sees, for i < N; a barrier must follow. */
template <int N>
__device__ void seen_by_rows(struct attention_range *seen, const struct attention_job &job,
                             const struct attention_place &h, int first) {
    for (int i = threadIdx.x; i < N; i += ATTENTION_THREADS) seen[i] = attention_keys_of(job, h, first + i);
}

/* seen[i] = the rows that see key first + i. */
template <int N>
__device__ void seen_by_keys(struct attention_range *seen, const struct attention_job &job,
                             const struct attention_place &h, int first) {
    for (int i = threadIdx.x; i < N; i += ATTENTION_THREADS) seen[i] = attention_rows_of(job, h, first + i);
}

/* Scores in columns from `first` on become -INFINITY where they are not seen; seen[0] is that of the warp's first row.
 * The ranges wait in shared memory because only the boundary tiles need them, and registers are what is scarce. */
template <typename P> __device__ void scores_mask(P &s, const struct attention_range *seen, int first) {
#pragma unroll
    for (int i = 0; i < P::rows; i++) {
        const struct attention_range range = seen[P::row(i)];
#pragma unroll
        for (int j = 0; j < P::cols; j++) {
            int at = first + P::col(j);
            if (at < range.low || at >= range.high) s.at(i, j) = -INFINITY;
        }
    }
}

#endif

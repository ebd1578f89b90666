/* Attention, backward, with P = exp(scores - lse) computed again, tile by tile:
 *   dP = dO v^T,   dS = P (dP - delta),   delta = sum(dO o),   dq = scale dS k,   dk = scale dS^T q,   dv = P^T dO.
 * Two kernels, so that no sum crosses blocks: one owns rows (dq), one owns keys (dk, dv), and each goes through what
 * its tile sees, or is seen by, in the same order always. The scores are computed in both: seven products where five
 * would do with atomics.
 *
 * Both keep their own two tiles, and the others come in pairs, the next pair being copied while one is worked on. With
 * bf16, P and dS are rounded before they are factors. */
#include "kernels/cuda/attention_tiles.cuh"

/* A block owns OWN rows (keys), M for each group of SLICES warps, against OTHER keys (rows) at a time. The warps of a
 * group compute the same scores and each a slice of the columns of the result: so the sums of wide heads fit in
 * registers, and there are fewer rows for shared memory. */
template <typename T, int W, bool SMALL> struct backward_size;

template <int W, bool SMALL> struct backward_size<bf16_t, W, SMALL> {
    static constexpr int M = W <= 64 ? 32 : 16, OTHER = W <= 128 && !SMALL ? 32 : 16;
    static constexpr int SLICES = W <= 128 ? 1 : 2 * (SMALL + 1), OWN = ATTENTION_WARPS / SLICES * M;
};
template <int W, bool SMALL> struct backward_size<float, W, SMALL> {
    static constexpr int M = 8, OTHER = W <= 64 ? 32 : W <= 128 && !SMALL ? 16 : 8;
    static constexpr int SLICES = W <= 128 || !SMALL ? 1 : 4, OWN = ATTENTION_WARPS / SLICES * M;
};

/* Of a row; lse times log2(e). */
struct row_sums {
    float lse, delta;
};

/* Bytes of shared memory: what a launch asks for, and that with the kernels' own. */
template <typename T, int W, bool SMALL, typename S = backward_size<T, W, SMALL>>
constexpr size_t backward_shared = (2 * S::OWN + 4 * S::OTHER) * tile_stride<T, W> * sizeof(T);
template <typename T, int W, bool SMALL, typename S = backward_size<T, W, SMALL>>
constexpr size_t backward_bytes = backward_shared<T, W, SMALL> + S::OWN * sizeof(struct attention_range) +
                                  2 * S::OTHER * sizeof(struct row_sums);

/* Zeros beyond the sequence, where q and dO are zeros as well. */
__device__ inline struct row_sums sums_of_row(const float *lse, const float *delta, const struct attention_job &job,
                                              const struct attention_place &h, int r) {
    struct row_sums sums = {0, 0};
    if (r >= h.rows) return sums;
    int64_t at = attention_sum(job, h, r);
    sums.lse = lse[at] * LOG2_E, sums.delta = delta[at];
    return sums;
}

/* --- delta -------------------------------------------------------------------------------------------------------- */

/* delta (n) = sum(dO o) over rows of D. Eight lanes share a row, 16 bytes at a time. Bound by memory: reads dO, o. */
template <typename T> __global__ void delta_kernel(float *delta, const T *dO, const T *o, int64_t n, int D, bool wide) {
    constexpr int LANES = 8, PIECE = 16 / sizeof(T);
    int64_t row = static_cast<int64_t>(blockIdx.x) * (ATTENTION_THREADS / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    float sum = 0;
    if (row < n && wide) {
        for (int d = lane * PIECE; d < D; d += LANES * PIECE) {
            vec16<T> x = load16(dO + row * D + d), y = load16(o + row * D + d);
#pragma unroll
            for (int e = 0; e < PIECE; e++) sum = fmaf(to_float(x.at[e]), to_float(y.at[e]), sum);
        }
    } else if (row < n) {
        for (int d = lane; d < D; d += LANES) sum = fmaf(to_float(dO[row * D + d]), to_float(o[row * D + d]), sum);
    }
    for (int d = LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (row < n && lane == 0) delta[row] = sum;
}

/* --- dq ----------------------------------------------------------------------------------------------------------- */

/* Scores p and dp = dO v^T of a part become p = dS. */
template <typename P> __device__ void gradient_of_rows(P &p, P &dp, const struct row_sums (&sums)[P::rows]) {
#pragma unroll
    for (int i = 0; i < P::rows; i++)
#pragma unroll
        for (int j = 0; j < P::cols; j++)
            p.at(i, j) = exp2_fast(p.at(i, j) - sums[i].lse) * (dp.at(i, j) - sums[i].delta);
}

/* A block owns a tile of rows. Bound by the tensor cores: 6 D operations for each row and key. */
template <typename T, int W, bool SMALL>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    rows_kernel(T *dq, const float *lse, const float *delta, const T *dO, const T *q, const T *k, const T *v,
                struct attention_job job) {
    if constexpr (!attention_runs_here<SMALL, backward_bytes<T, W, false>>) {
        left_out_here();
        return;
    }
    using size = backward_size<T, W, SMALL>;
    constexpr int M = size::M, ROWS = size::OWN, KEYS = size::OTHER, STRIDE = tile_stride<T, W>;
    constexpr int COLUMNS = W / size::SLICES, PAIR = 2 * KEYS * STRIDE;
    SHARED(struct attention_range, seen, ROWS);
    DYN_SHARED(T, q_tile);                                                 // (ROWS,W), at the end dq
    T *dO_tile = q_tile + ROWS * STRIDE, *pairs = dO_tile + ROWS * STRIDE; // (ROWS,W); twice k and v (KEYS,W)
    struct attention_place h = attention_find(job, job.q_offsets, job.group, ROWS, attention_tile_from_end(job));
    if (h.tile < 0) return;
    int first = h.tile * ROWS, last = min(first + ROWS, h.rows) - 1, warp = threadIdx.x / WARP;
    int own = warp / size::SLICES * M, column = warp % size::SLICES * COLUMNS;
    struct attention_span span = attention_span_of(attention_keys_of(job, h, first), attention_keys_of(job, h, last));
    int begin = span.any.low / KEYS * KEYS, end = span.any.high;

    part<T, M, COLUMNS> result;
    part<T, M, KEYS> p, dp;
    struct row_sums sums[part<T, M, KEYS>::rows];
    part_clear(result);
#pragma unroll
    for (int i = 0; i < p.rows; i++) sums[i] = sums_of_row(lse, delta, job, h, first + own + p.row(i));
    if (begin < end) {
        seen_by_rows<ROWS>(seen, job, h, first);
        tile_load<TILE_OF_ROWS, ROWS, W>(q_tile, q, job, h, first);
        tile_load<TILE_OF_ROWS, ROWS, W>(dO_tile, dO, job, h, first);
        tile_load<TILE_OF_KEYS, KEYS, W>(pairs, k, job, h, begin);
        tile_load<TILE_OF_KEYS, KEYS, W>(pairs + PAIR / 2, v, job, h, begin);
        cp_async_commit();
    }
    for (int key = begin, now = 0; key < end; key += KEYS, now ^= 1) {
        T *k_tile = pairs + now * PAIR, *v_tile = k_tile + PAIR / 2, *next = pairs + (now ^ 1) * PAIR;
        cp_async_wait<0>();
        __syncthreads(); // this pair is there, the next is free
        if (key + KEYS < end) {
            tile_load<TILE_OF_KEYS, KEYS, W>(next, k, job, h, key + KEYS);
            tile_load<TILE_OF_KEYS, KEYS, W>(next + PAIR / 2, v, job, h, key + KEYS);
        }
        cp_async_commit();
        product_nt<W>(p, q_tile + own * STRIDE, k_tile);
        product_nt<W>(dp, dO_tile + own * STRIDE, v_tile);
        part_scale(p, job.scale * LOG2_E);
        if (key < span.all.low || key + KEYS > span.all.high) scores_mask(p, seen + own, key);
        gradient_of_rows(p, dp, sums);
        product_nn<W>(result, p, k_tile + column);
    }
    part_scale(result, job.scale);
    __syncthreads(); // q is read by all warps of a group
    part_store<W>(q_tile + own * STRIDE + column, result);
    __syncthreads();
    tile_store<TILE_OF_ROWS, ROWS, W>(dq, q_tile, job, h, first);
}

/* --- dk, dv ------------------------------------------------------------------------------------------------------- */

/* Scores p and dp = v dO^T of a part, keys by rows, become p = P and dp = dS, transposed. */
template <typename P> __device__ void gradient_of_keys(P &p, P &dp, const struct row_sums *sums) {
#pragma unroll
    for (int j = 0; j < P::cols; j++) {
        const struct row_sums row = sums[P::col(j)];
#pragma unroll
        for (int i = 0; i < P::rows; i++) {
            p.at(i, j) = exp2_fast(p.at(i, j) - row.lse);
            dp.at(i, j) = p.at(i, j) * (dp.at(i, j) - row.delta);
        }
    }
}

/* A block owns a tile of keys. Products are taken transposed, keys by rows, so that P^T and dS^T come out as the first
 * factors of dv and dk. Bound by the tensor cores: 8 D operations for each row and key. */
template <typename T, int W, bool SMALL>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    keys_kernel(T *dk, T *dv, const float *lse, const float *delta, const T *dO, const T *q, const T *k, const T *v,
                struct attention_job job) {
    if constexpr (!attention_runs_here<SMALL, backward_bytes<T, W, false>>) {
        left_out_here();
        return;
    }
    using size = backward_size<T, W, SMALL>;
    constexpr int M = size::M, KEYS = size::OWN, ROWS = size::OTHER, STRIDE = tile_stride<T, W>;
    constexpr int COLUMNS = W / size::SLICES, PAIR = 2 * ROWS * STRIDE;
    SHARED(struct attention_range, seen, KEYS);
    SHARED(struct row_sums, sums, 2 * ROWS);
    DYN_SHARED(T, k_tile);                                               // (KEYS,W), at the end dk
    T *v_tile = k_tile + KEYS * STRIDE, *pairs = v_tile + KEYS * STRIDE; // (KEYS,W); twice q and dO (ROWS,W)
    struct attention_place h = attention_find(job, job.kv_offsets, 1, KEYS, attention_tile_from_start(job));
    if (h.tile < 0) return;
    int first = h.tile * KEYS, last = min(first + KEYS, h.keys) - 1, warp = threadIdx.x / WARP;
    int own = warp / size::SLICES * M, column = warp % size::SLICES * COLUMNS;
    struct attention_span span = attention_span_of(attention_rows_of(job, h, first), attention_rows_of(job, h, last));
    int begin = span.any.low / ROWS * ROWS, end = span.any.high;

    part<T, M, COLUMNS> k_result, v_result;
    part_clear(k_result);
    part_clear(v_result);
    if (begin < end) {
        seen_by_keys<KEYS>(seen, job, h, first);
        tile_load<TILE_OF_KEYS, KEYS, W>(k_tile, k, job, h, first);
        tile_load<TILE_OF_KEYS, KEYS, W>(v_tile, v, job, h, first);
        tile_load<TILE_OF_ROWS, ROWS, W>(pairs, q, job, h, begin);
        tile_load<TILE_OF_ROWS, ROWS, W>(pairs + PAIR / 2, dO, job, h, begin);
        if (threadIdx.x < ROWS) sums[threadIdx.x] = sums_of_row(lse, delta, job, h, begin + threadIdx.x);
        cp_async_commit();
    }
    for (int row = begin, now = 0; row < end; row += ROWS, now ^= 1) {
        T *q_tile = pairs + now * PAIR, *dO_tile = q_tile + PAIR / 2, *next = pairs + (now ^ 1) * PAIR;
        part<T, M, ROWS> p, dp;
        struct row_sums ahead = {0, 0};
        cp_async_wait<0>();
        __syncthreads(); // this pair is there, the next is free
        if (row + ROWS < end) {
            tile_load<TILE_OF_ROWS, ROWS, W>(next, q, job, h, row + ROWS);
            tile_load<TILE_OF_ROWS, ROWS, W>(next + PAIR / 2, dO, job, h, row + ROWS);
            if (threadIdx.x < ROWS) ahead = sums_of_row(lse, delta, job, h, row + ROWS + threadIdx.x);
        }
        cp_async_commit();
        product_nt<W>(p, k_tile + own * STRIDE, q_tile);
        product_nt<W>(dp, v_tile + own * STRIDE, dO_tile);
        part_scale(p, job.scale * LOG2_E);
        if (row < span.all.low || row + ROWS > span.all.high) scores_mask(p, seen + own, row);
        gradient_of_keys(p, dp, sums + now * ROWS);
        product_nn<W>(v_result, p, dO_tile + column);
        product_nn<W>(k_result, dp, q_tile + column);
        if (threadIdx.x < ROWS) sums[(now ^ 1) * ROWS + threadIdx.x] = ahead; // loaded above, so as not to wait there
    }
    part_scale(k_result, job.scale);
    __syncthreads(); // k and v are read by all warps of a group
    part_store<W>(k_tile + own * STRIDE + column, k_result);
    part_store<W>(v_tile + own * STRIDE + column, v_result);
    __syncthreads();
    tile_store<TILE_OF_KEYS, KEYS, W>(dk, k_tile, job, h, first);
    tile_store<TILE_OF_KEYS, KEYS, W>(dv, v_tile, job, h, first);
}

/* --- the op ------------------------------------------------------------------------------------------------------- */

struct backward_tensors {
    const struct tensor *dq, *dk, *dv, *delta, *dO, *o, *lse, *q, *k, *v;
};

static bool all_wide(const struct backward_tensors *t) {
    const struct tensor *all[] = {t->dq, t->dk, t->dv, t->dO, t->o, t->q, t->k, t->v};
    for (const struct tensor *x : all)
        if (!attention_is_wide(x)) return false;
    return true;
}

template <typename T, int W, bool SMALL>
static void backward_launch_of(struct backend *be, const struct backward_tensors *t, const struct attention *a) {
    constexpr int OWN = backward_size<T, W, SMALL>::OWN;
    constexpr size_t shared = backward_shared<T, W, SMALL>;
    static_assert(backward_bytes<T, W, SMALL> <= (SMALL ? SHARED_BEFORE_8 : SHARED_SINCE_8), "what every device has");
    constexpr int ROWS_A_BLOCK = ATTENTION_THREADS / 8; // of delta
    struct attention_job job = attention_job_of(be, t->q, t->k, a);
    job.wide = all_wide(t);
    int64_t rows = t->q->dim[0] * job.group, sums = t->q->dim[0] * job.H;
    float *delta = static_cast<float *>(t->delta->data);
    const float *lse = static_cast<const float *>(t->lse->data);
    const T *q = static_cast<const T *>(t->q->data), *k = static_cast<const T *>(t->k->data);
    const T *v = static_cast<const T *>(t->v->data), *dO = static_cast<const T *>(t->dO->data);
    launch(be, "attention_backward", delta_kernel<T>, dim3(blocks_for(sums, ROWS_A_BLOCK)), dim3(ATTENTION_THREADS), 0,
           delta, dO, static_cast<const T *>(t->o->data), sums, job.D, job.wide);
    launch(be, "attention_backward", rows_kernel<T, W, SMALL>, attention_blocks(&job, rows, a->max_q * job.group, OWN),
           dim3(ATTENTION_THREADS), shared, static_cast<T *>(t->dq->data), lse, delta, dO, q, k, v, job);
    launch(be, "attention_backward", keys_kernel<T, W, SMALL>, attention_blocks(&job, t->k->dim[0], a->max_kv, OWN),
           dim3(ATTENTION_THREADS), shared, static_cast<T *>(t->dk->data), static_cast<T *>(t->dv->data), lse, delta,
           dO, q, k, v, job);
}

template <typename T, int W>
static void backward_launch(struct backend *be, const struct backward_tensors *t, const struct attention *a) {
    constexpr size_t bytes = backward_bytes<T, W, false>;
    bool small = bytes > cuda_of(be)->block_shared;
    if constexpr (bytes > SHARED_BEFORE_8)
        if (small) return backward_launch_of<T, W, true>(be, t, a);
    backward_launch_of<T, W, false>(be, t, a);
}

void cuda_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                             const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                             const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                             const struct tensor *k, const struct tensor *v, const struct attention *a) {
    const struct backward_tensors t = {dq, dk, dv, delta, dO, o, lse, q, k, v};
    int64_t D = q->dim[2];
    if (q->type == BF16)
        (D <= 64    ? backward_launch<bf16_t, 64>
         : D <= 80  ? backward_launch<bf16_t, 80>
         : D <= 96  ? backward_launch<bf16_t, 96>
         : D <= 128 ? backward_launch<bf16_t, 128>
                    : backward_launch<bf16_t, 256>)(be, &t, a);
    else
        (D <= 64    ? backward_launch<float, 64>
         : D <= 128 ? backward_launch<float, 128>
                    : backward_launch<float, 256>)(be, &t, a);
}

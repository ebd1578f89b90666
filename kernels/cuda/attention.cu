/* Attention, forward: softmax(scale q k^T) v with the sum of exponentials kept relative to the largest score so far, so
 * that scores exist for one tile of keys at a time, in registers. Scores are taken times log2(e), and exponentials are
 * powers of two.
 *
 * With bf16 the exponentials are rounded before they are factors of v; their sum is taken before that. */
#include "kernels/cuda/attention_tiles.cuh"

/* --- sizes of the tiles ------------------------------------------------------------------------------------------- */

/* A block has ROWS rows, M for each warp, against KEYS keys at a time. */
template <typename T, int W, bool SMALL> struct forward_size;

template <int W, bool SMALL> struct forward_size<bf16_t, W, SMALL> {
    static constexpr int M = W <= 128 ? 32 : 16, ROWS = ATTENTION_WARPS * M, KEYS = (W <= 128 ? 64 : 32) / (SMALL + 1);
};
template <int W, bool SMALL> struct forward_size<float, W, SMALL> {
    static constexpr int M = 8, ROWS = ATTENTION_WARPS * M, KEYS = (W <= 128 ? 32 : 16) / (SMALL + 1);
};

/* Bytes of shared memory: what a launch asks for, and that with the kernel's own. */
template <typename T, int W, bool SMALL, typename S = forward_size<T, W, SMALL>>
constexpr size_t forward_shared = (S::ROWS + 2 * S::KEYS) * tile_stride<T, W> * sizeof(T);
template <typename T, int W, bool SMALL, typename S = forward_size<T, W, SMALL>>
constexpr size_t forward_bytes = forward_shared<T, W, SMALL> + S::ROWS * sizeof(struct attention_range);

/* --- the softmax of a part, tile by tile -------------------------------------------------------------------------- */

/* Of the rows of a part: the largest score so far, and this lane's share of the sum of 2^(score - most). */
template <int ROWS> struct softmax_state { float most[ROWS], sum[ROWS]; };

template <int ROWS> __device__ void softmax_begin(struct softmax_state<ROWS> &t) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) t.most[i] = -INFINITY, t.sum[i] = 0;
}

/* Scores s become 2^(s - most); what was summed before, in o too, is scaled to the new most. */
template <typename S, typename O> __device__ void softmax_step(struct softmax_state<S::rows> &t, S &s, O &o) {
#pragma unroll
    for (int i = 0; i < S::rows; i++) {
        float most = t.most[i];
#pragma unroll
        for (int j = 0; j < S::cols; j++) most = fmaxf(most, s.at(i, j));
        most = part_row_max<S>(most);
        float base = most > -INFINITY ? most : 0.0f; // a row that has seen no key yet
        float keep = exp2_fast(t.most[i] - base), sum = 0;
#pragma unroll
        for (int j = 0; j < S::cols; j++) {
            s.at(i, j) = exp2_fast(s.at(i, j) - base);
            sum += s.at(i, j);
        }
        t.sum[i] = fmaf(t.sum[i], keep, sum);
        t.most[i] = most;
#pragma unroll
        for (int j = 0; j < O::cols; j++) o.at(i, j) *= keep;
    }
}

/* o becomes the mean, and lse, where wanted, the log of the sum; both 0 for rows that saw no key. The part begins
 * at row `first`. */
template <typename O>
__device__ void softmax_end(const struct softmax_state<O::rows> &t, O &o, float *lse, const struct attention_job &job,
                            const struct attention_place &h, int first) {
#pragma unroll
    for (int i = 0; i < O::rows; i++) {
        float sum = part_row_sum<O>(t.sum[i]);
        bool seen = t.most[i] > -INFINITY || sum != 0;
        float factor = seen ? 1.0f / sum : 0.0f;
#pragma unroll
        for (int j = 0; j < O::cols; j++) o.at(i, j) *= factor;
        int r = first + O::row(i);
        if (lse && r < h.rows && tile_lane() % O::sharing == 0)
            lse[attention_sum(job, h, r)] = seen ? t.most[i] * LOG_2 + logf(sum) : 0.0f;
    }
}

/* --- the kernel --------------------------------------------------------------------------------------------------- */

/* A block owns a tile of rows of q and o; each warp M of them. Tiles of k and v come by turns into one buffer each: v
 * while scores are computed, the next k while v is multiplied. Bound by the tensor cores for long sequences (4 D
 * operations for each row and key), by reading k and v when there are few queries. */
template <typename T, int W, bool SMALL>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    forward_kernel(T *o, float *lse, const T *q, const T *k, const T *v, struct attention_job job) {
    if constexpr (!attention_runs_here<SMALL, forward_bytes<T, W, false>>) {
        left_out_here();
        return;
    }
    using size = forward_size<T, W, SMALL>;
    constexpr int M = size::M, ROWS = size::ROWS, KEYS = size::KEYS, STRIDE = tile_stride<T, W>;
    SHARED(struct attention_range, seen, ROWS);
    DYN_SHARED(T, q_tile);                                                // (ROWS,W), at the end o
    T *k_tile = q_tile + ROWS * STRIDE, *v_tile = k_tile + KEYS * STRIDE; // (KEYS,W)
    struct attention_place h = attention_find(job, job.q_offsets, job.group, ROWS, attention_tile_from_end(job));
    if (h.tile < 0) return;
    int first = h.tile * ROWS, own = threadIdx.x / WARP * M, last = min(first + ROWS, h.rows) - 1;
    struct attention_span span = attention_span_of(attention_keys_of(job, h, first), attention_keys_of(job, h, last));
    int begin = span.any.low / KEYS * KEYS, end = span.any.high;

    part<T, M, W> sums;
    struct softmax_state<part<T, M, W>::rows> state;
    part_clear(sums);
    softmax_begin(state);
    if (begin < end) {
        seen_by_rows<ROWS>(seen, job, h, first);
        tile_load<TILE_OF_ROWS, ROWS, W>(q_tile, q, job, h, first);
        tile_load<TILE_OF_KEYS, KEYS, W>(k_tile, k, job, h, begin);
        cp_async_commit();
    }
    for (int key = begin; key < end; key += KEYS) {
        part<T, M, KEYS> scores;
        cp_async_wait<0>();
        __syncthreads(); // k is there, v is free
        tile_load<TILE_OF_KEYS, KEYS, W>(v_tile, v, job, h, key);
        cp_async_commit();
        product_nt<W>(scores, q_tile + own * STRIDE, k_tile);
        cp_async_wait<0>();
        __syncthreads(); // v is there, k is free
        if (key + KEYS < end) tile_load<TILE_OF_KEYS, KEYS, W>(k_tile, k, job, h, key + KEYS);
        cp_async_commit();
        part_scale(scores, job.scale * LOG2_E);
        if (key < span.all.low || key + KEYS > span.all.high) scores_mask(scores, seen + own, key);
        softmax_step(state, scores, sums);
        product_nn<W>(sums, scores, v_tile);
    }
    softmax_end(state, sums, lse, job, h, first + own);
    part_store<W>(q_tile + own * STRIDE, sums);
    __syncthreads();
    tile_store<TILE_OF_ROWS, ROWS, W>(o, q_tile, job, h, first);
}

/* --- the op ------------------------------------------------------------------------------------------------------- */

struct attention_job attention_job_of(struct backend *be, const struct tensor *q, const struct tensor *k,
                                      const struct attention *a) {
    struct attention_job job = {};
    job.q_offsets = static_cast<const int64_t *>(a->q_offsets->data);
    job.kv_offsets = static_cast<const int64_t *>(a->kv_offsets->data);
    job.sequences = a->sequences, job.max_q = a->max_q, job.max_kv = a->max_kv;
    job.q_check = cuda_index_check(be, "attention, offsets of queries", 0, q->dim[0] + 1);
    job.kv_check = cuda_index_check(be, "attention, offsets of keys", 0, k->dim[0] + 1);
    job.H = static_cast<int>(q->dim[1]), job.K = static_cast<int>(k->dim[1]), job.D = static_cast<int>(q->dim[2]);
    job.group = job.H / job.K, job.row_step = job.H * job.D, job.key_step = job.K * job.D;
    job.window = a->window < a->max_kv ? static_cast<int>(a->window) : 0; // one that holds all keys is none
    job.causal = a->causal;
    job.scale = a->scale;
    return job;
}

struct forward_tensors {
    const struct tensor *o, *lse, *q, *k, *v;
};

template <typename T, int W, bool SMALL>
static void forward_launch_of(struct backend *be, const struct forward_tensors *t, const struct attention *a) {
    constexpr int ROWS = forward_size<T, W, SMALL>::ROWS;
    static_assert(forward_bytes<T, W, SMALL> <= (SMALL ? SHARED_BEFORE_8 : SHARED_SINCE_8), "what every device has");
    struct attention_job job = attention_job_of(be, t->q, t->k, a);
    job.wide = attention_is_wide(t->q) && attention_is_wide(t->k) && attention_is_wide(t->v) && attention_is_wide(t->o);
    dim3 grid = attention_blocks(&job, t->q->dim[0] * job.group, a->max_q * job.group, ROWS);
    launch(be, "attention_forward", forward_kernel<T, W, SMALL>, grid, dim3(ATTENTION_THREADS),
           forward_shared<T, W, SMALL>, static_cast<T *>(t->o->data),
           t->lse ? static_cast<float *>(t->lse->data) : nullptr, static_cast<const T *>(t->q->data),
           static_cast<const T *>(t->k->data), static_cast<const T *>(t->v->data), job);
}

template <typename T, int W>
static void forward_launch(struct backend *be, const struct forward_tensors *t, const struct attention *a) {
    constexpr size_t bytes = forward_bytes<T, W, false>;
    bool small = bytes > cuda_of(be)->block_shared;
    if constexpr (bytes > SHARED_BEFORE_8)
        if (small) return forward_launch_of<T, W, true>(be, t, a);
    forward_launch_of<T, W, false>(be, t, a);
}

void cuda_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse,
                            const struct tensor *q, const struct tensor *k, const struct tensor *v,
                            const struct attention *a) {
    const struct forward_tensors t = {o, lse, q, k, v};
    int64_t D = q->dim[2];
    if (q->type == BF16)
        (D <= 64    ? forward_launch<bf16_t, 64>
         : D <= 80  ? forward_launch<bf16_t, 80>
         : D <= 96  ? forward_launch<bf16_t, 96>
         : D <= 128 ? forward_launch<bf16_t, 128>
                    : forward_launch<bf16_t, 256>)(be, &t, a);
    else
        (D <= 64    ? forward_launch<float, 64>
         : D <= 128 ? forward_launch<float, 128>
                    : forward_launch<float, 256>)(be, &t, a);
}

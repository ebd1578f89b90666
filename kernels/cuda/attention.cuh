/* What forward and backward of attention share on the device: how the work is cut and which keys a query sees.
 *
 * Query heads that read the same key head are treated as more queries: a sequence of `queries` positions has
 * queries * group rows for one key head, row r being position r / group of head r % group. So a key is loaded once for
 * the whole group, also when a single position is decoded, and dk and dv of a key head are sums inside one block.
 *
 * A block owns one tile of one sequence and key head: rows (o, dq) or keys (dk, dv). The host knows only how many tiles
 * there may be at most; blocks find theirs in the offsets, and those beyond the last return at once. A sequence whose
 * offsets do not fit the tensors is reported and has no tiles. Positions and rows of one sequence are ints; rows of
 * tensors are int64_t.
 *
 * Read attention_tiles.cuh next, then attention.cu, then attention_backward.cu. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/common.cuh"

enum { ATTENTION_WARPS = 4, ATTENTION_THREADS = ATTENTION_WARPS * WARP };

/* Tiles are as large as suits devices of compute capability 8.0 and later. Where a block of 7.5 has no room for them, a
 * kernel exists twice, with smaller tiles too (SMALL), and each has code for the devices that run it only: BYTES is all
 * the shared memory of the one that is not SMALL. */
template <bool SMALL, size_t BYTES>
constexpr bool attention_runs_here = SMALL ? shared_lacks_here<BYTES> : shared_fits_here<BYTES>;

struct attention_job {
    const int64_t *q_offsets, *kv_offsets; // (sequences + 1)
    int64_t sequences, max_q, max_kv;
    struct index_check q_check, kv_check; // offsets go up to the rows of the tensors
    int H, K, D, group;                   // group: H / K
    int row_step, key_step;               // elements from position to position: H * D, K * D
    int window;                           // 0: none
    bool causal;
    bool wide; // rows of all tensors may be read and written 16 bytes at a time
    float scale;
};

/* One tile of one sequence and key head. */
struct attention_place {
    int64_t rows_at, keys_at; // the first element of row 0, of key 0
    int64_t sums_at;          // row 0 in lse and delta
    int rows, keys;           // of the sequence; rows: queries * group
    int shift;                // query i stands at key position i + shift
    int tile;                 // -1: there is none
};

struct attention_job attention_job_of(struct backend *be, const struct tensor *q, const struct tensor *k,
                                      const struct attention *a);

/* Whether rows of D elements of t begin at multiples of 16 bytes. */
static inline bool attention_is_wide(const struct tensor *t) {
    return reinterpret_cast<uintptr_t>(t->data) % 16 == 0 && t->dim[2] * dtype_size(t->type) % 16 == 0;
}

/* At least as many blocks as there are tiles of `side` items of n, no sequence having more than `longest`. */
static inline dim3 attention_blocks(const struct attention_job *job, int64_t n, int64_t longest, int64_t side) {
    int64_t by_length = job->sequences * ((longest + side - 1) / side), by_total = n / side + job->sequences;
    return dim3(static_cast<unsigned>((by_length < by_total ? by_length : by_total) * job->K));
}

/* --- where a block works ------------------------------------------------------------------------------------------ */

/* Whether sequence s lies within the tensor and is no longer than was said. */
__device__ inline bool attention_fits(const int64_t *offsets, int64_t s, int64_t longest,
                                      const struct index_check &check) {
    int64_t begin = offsets[s], end = offsets[s + 1];
    if (begin >= check.low && begin <= end && end < check.limit && end - begin <= longest) return true;
    index_refuse(check, s, static_cast<int>(end));
    return false;
}

/* A tile of one sequence: which one, and its number there. */
struct attention_found {
    int64_t sequence; // -1: none
    int tile;
};

/* Where a tile is that is counted over all sequences, which have length * factor items, `side` to a tile. A warp looks
 * at 32 sequences at a time; all lanes come and get the same answer. */
__device__ inline struct attention_found attention_search(const struct attention_job &job, const int64_t *offsets,
                                                          int factor, int side, int64_t tile) {
    const unsigned all = 0xffffffffu;
    int lane = threadIdx.x % WARP;
    struct attention_found found = {-1, 0};
    for (int64_t first = 0; first < job.sequences; first += WARP) {
        int64_t mine = first + lane, length = 0;
        if (mine < job.sequences && attention_fits(job.q_offsets, mine, job.max_q, job.q_check) &&
            attention_fits(job.kv_offsets, mine, job.max_kv, job.kv_check))
            length = offsets[mine + 1] - offsets[mine];
        int64_t own = (length * factor + side - 1) / side, end = own; // tiles of my sequence, and of all up to it
        for (int d = 1; d < WARP; d *= 2) {
            int64_t before = __shfl_up_sync(all, end, d);
            if (lane >= d) end += before;
        }
        unsigned later = __ballot_sync(all, tile < end);
        if (later) {
            int which = __ffs(static_cast<int>(later)) - 1;
            found.sequence = first + which;
            found.tile = static_cast<int>(tile - __shfl_sync(all, end - own, which));
            return found;
        }
        tile -= __shfl_sync(all, end, WARP - 1);
    }
    return found;
}

/* The place of tile number `tile` over offsets (q_offsets with factor `group`, or kv_offsets with factor 1). */
__device__ inline struct attention_place attention_find(const struct attention_job &job, const int64_t *offsets,
                                                        int factor, int side, int64_t tile) {
    struct attention_found found = attention_search(job, offsets, factor, side, tile);
    struct attention_place h = {};
    int64_t s = found.sequence;
    h.tile = s < 0 ? -1 : found.tile;
    if (s < 0) return h;
    int head = blockIdx.x % job.K, queries = static_cast<int>(job.q_offsets[s + 1] - job.q_offsets[s]);
    h.sums_at = job.q_offsets[s] * job.H + head * job.group;
    h.rows_at = h.sums_at * job.D;
    h.keys_at = (job.kv_offsets[s] * job.K + head) * job.D;
    h.keys = static_cast<int>(job.kv_offsets[s + 1] - job.kv_offsets[s]);
    h.rows = queries * job.group;
    h.shift = h.keys - queries;
    return h;
}

/* Blocks of one tile of all key heads come one after the other. In self-attention that is causal the last rows see the
 * most keys and the first keys are seen by the most rows: such tiles begin first. */
__device__ inline int64_t attention_tile_from_start(const struct attention_job &job) { return blockIdx.x / job.K; }
__device__ inline int64_t attention_tile_from_end(const struct attention_job &job) {
    return (gridDim.x - 1 - blockIdx.x) / job.K;
}

/* Where row r begins in q, o and their gradients, key j in k, v and theirs, and what row r has in lse and delta. */
__device__ inline int64_t attention_row(const struct attention_job &job, const struct attention_place &h, int r) {
    return h.rows_at + static_cast<int64_t>(r / job.group) * job.row_step + r % job.group * job.D;
}
__device__ inline int64_t attention_key(const struct attention_job &job, const struct attention_place &h, int j) {
    return h.keys_at + static_cast<int64_t>(j) * job.key_step;
}
__device__ inline int64_t attention_sum(const struct attention_job &job, const struct attention_place &h, int r) {
    return h.sums_at + static_cast<int64_t>(r / job.group) * job.H + r % job.group;
}

/* --- which keys a row sees ---------------------------------------------------------------------------------------- */

struct attention_range {
    int low, high; // [low, high)
};

/* The keys that row r sees. */
__device__ inline struct attention_range attention_keys_of(const struct attention_job &job,
                                                           const struct attention_place &h, int r) {
    int p = r / job.group + h.shift, low = job.window > 0 ? p - job.window + 1 : 0;
    struct attention_range seen = {max(low, 0), job.causal ? min(p + 1, h.keys) : h.keys};
    return seen;
}

/* The rows that see key j. */
__device__ inline struct attention_range attention_rows_of(const struct attention_job &job,
                                                           const struct attention_place &h, int j) {
    int low = job.causal ? (j - h.shift) * job.group : 0;
    int high = job.window > 0 ? (j + job.window - h.shift) * job.group : h.rows;
    struct attention_range seen = {max(low, 0), min(high, h.rows)};
    return seen;
}

/* What some, and what all of a tile's rows (keys) first .. last see (are seen by). */
struct attention_span {
    struct attention_range any, all;
};

__device__ inline struct attention_span attention_span_of(struct attention_range first, struct attention_range last) {
    struct attention_span span = {{first.low, last.high}, {last.low, first.high}};
    return span;
}

#endif

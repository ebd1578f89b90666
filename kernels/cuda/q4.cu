/* From the weights of a model to dense slices: each 4-bit element, or dense one of another type, becomes a number that
 * a matrix product takes. And the way there: blocks of 4-bit numbers with the bits of quant/block.c, every rounding the
 * same one. */
#include "kernels/cuda/ops_cuda.cuh"
#include "kernels/cuda/q4.cuh"

enum { THREADS = 256, EACH = 4 }; // runs of a thread

static int log2_of(int64_t x) {
    int n = 0;
    while (x > 1) x >>= 1, n++;
    return n;
}

struct weight weight_of(const struct tensor *W, enum dtype round) {
    struct weight w = {};
    w.data = W->data;
    w.stride = W->dim[1];
    w.round = round;
    const struct q4 *q = W->q4;
    if (!q) return w;
    w.shift = log2_of(q->blocksize);
    w.nested_shift = log2_of(q->nested_blocksize);
    w.offset = q->nested_offset;
    w.code = q->code, w.absmax = q->absmax;
    w.nested_absmax = q->nested_absmax, w.nested_code = q->nested_code;
    w.absmax8 = q->absmax8;
    return w;
}

bool weight_aligned(const struct tensor *W) {
    return W->dim[1] % RUN == 0 && reinterpret_cast<uintptr_t>(W->data) % (W->q4 ? 4 : 16) == 0;
}

/* --- slices ------------------------------------------------------------------------------------------------------ */

template <typename T> __device__ inline void store_run(T *dst, const float (&v)[RUN], int count, bool whole) {
    if (!whole) {
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (i < count) dst[i] = from_float<T>(v[i]);
        return;
    }
    for (int part = 0; part < static_cast<int>(sizeof(T) / 2); part++) {
        vec16<T> out;
#pragma unroll
        for (int i = 0; i < vec16<T>::count; i++) out.at[i] = from_float<T>(v[part * vec16<T>::count + i]);
        store16(dst + part * vec16<T>::count, out);
    }
}

/* Where a slice lies in its weight, and in memory. */
struct slice {
    int64_t first; // element of the weight
    int64_t ld;
    unsigned cols, runs, count; // runs: of a row; count: of all
};

/* A block takes THREADS * EACH runs, a thread every THREADS-th of them: a warp reads 32 neighbouring runs and writes
 * them. Where they are aligned, all loads of a thread come before what is made of them; beyond the end it loads the
 * last run again, so that no branch is between. Bound by memory: the bytes of W and those of dst. */
template <typename T, typename W, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) slice_kernel(T *dst, struct weight w, struct slice s) {
    SHARED(float, codes, CODES);
    codes_load<W>(codes, w);
    const unsigned first = blockIdx.x * EACH * THREADS + threadIdx.x;
    if constexpr (ALIGNED) {
        struct run<W> runs[EACH];
        unsigned row[EACH], col[EACH];
        int64_t at[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            unsigned i = min(first + j * THREADS, s.count - 1);
            row[j] = i / s.runs, col[j] = i % s.runs * RUN;
            at[j] = s.first + row[j] * w.stride + col[j];
        }
        runs_load(runs, w, at);
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            float v[RUN];
            run_values(v, runs[j], codes, w.round);
            if (first + j * THREADS < s.count) store_run(dst + row[j] * s.ld + col[j], v, RUN, true);
        }
    } else {
        for (unsigned j = 0, i = first; j < EACH && i < s.count; j++, i += THREADS) {
            unsigned row = i / s.runs, col = i % s.runs * RUN;
            int count = static_cast<int>(min(s.cols - col, static_cast<unsigned>(RUN)));
            float v[RUN];
            run_read<W, false>(v, w, codes, s.first + row * w.stride + col, count);
            store_run(dst + row * s.ld + col, v, count, false);
        }
    }
}

template <typename T, typename W>
static void launch_slice(struct backend *be, void *dst, const struct weight &w, const struct slice &s, bool aligned,
                         const char *what) {
    launch(be, what, aligned ? slice_kernel<T, W, true> : slice_kernel<T, W, false>,
           blocks_for(s.count, THREADS * EACH), THREADS, 0, static_cast<T *>(dst), w, s);
}

template <typename T>
static void launch_from(struct backend *be, void *dst, enum dtype from, const struct weight &w, const struct slice &s,
                        bool aligned, const char *what) {
    if (from == F32)
        launch_slice<T, float>(be, dst, w, s, aligned, what);
    else if (from == BF16)
        launch_slice<T, bf16_t>(be, dst, w, s, aligned, what);
    else if (from == F16)
        launch_slice<T, __half>(be, dst, w, s, aligned, what);
    else
        launch_slice<T, nibbles>(be, dst, w, s, aligned, what);
}

/* Rows in pieces of so many that runs are counted in 32 bits. */
void cuda_weight_slice(struct backend *be, void *dst, enum dtype to, int64_t ld, const struct tensor *W,
                       enum dtype round, int64_t row, int64_t rows, int64_t col, int64_t cols, const char *what) {
    struct weight w = weight_of(W, round);
    size_t size = dtype_size(to);
    bool aligned = weight_aligned(W) && col % RUN == 0 && cols % RUN == 0 && ld % RUN == 0 &&
                   reinterpret_cast<uintptr_t>(dst) % 16 == 0;
    const int64_t runs = (cols + RUN - 1) / RUN, most = runs ? (int64_t{1} << 30) / runs : 1;
    for (int64_t r = 0; r < rows && runs > 0; r += most) {
        int64_t n = most < rows - r ? most : rows - r;
        struct slice s = {(row + r) * w.stride + col, ld, static_cast<unsigned>(cols), static_cast<unsigned>(runs),
                          static_cast<unsigned>(n * runs)};
        void *at = static_cast<char *>(dst) + static_cast<size_t>(r * ld) * size;
        if (to == F32)
            launch_from<float>(be, at, W->type, w, s, aligned, what);
        else if (to == BF16)
            launch_from<bf16_t>(be, at, W->type, w, s, aligned, what);
        else
            launch_from<__half>(be, at, W->type, w, s, aligned, what);
    }
}

void cuda_dequantize(struct backend *be, const struct tensor *y, const struct tensor *W) {
    cuda_weight_slice(be, y->data, y->type, W->dim[1], W, F32, 0, W->dim[0], 0, W->dim[1], "dequantize");
}

/* --- quantising -------------------------------------------------------------------------------------------------- */

enum { WARPS = THREADS / WARP, NESTED = NESTED_BLOCKSIZE };

static_assert(int{NESTED} == int{THREADS}, "a thread for each absmax of a group");

/* As block_cuts gives it. */
struct cut_table {
    float cuts[CODES];
    uint8_t order[CODES];
};

__device__ inline unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ inline unsigned warp_max_bits(unsigned x) {
    for (int d = WARP / 2; d > 0; d /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* order[how many cuts lie below x]; NaN has none below. */
__device__ inline unsigned code_of(const float *cuts, const uint8_t *order, float x) {
    int at = 0;
#pragma unroll
    for (int step = CODES / 2; step > 0; step /= 2) at += x > cuts[at + step - 1] ? step : 0;
    return order[at];
}

/* A warp for each block of the numbers: its largest magnitude, NaN before all, then two codes to a byte. The last
 * block, where it is short, divides; the half byte left over is that of zero. Bound by memory. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    quantize_kernel(uint8_t *packed, float *absmax, const T *x, int64_t n, int blocksize, struct cut_table table) {
    SHARED(float, cuts, CODES);
    SHARED(uint8_t, order, CODES);
    if (threadIdx.x < CODES) cuts[threadIdx.x] = table.cuts[threadIdx.x], order[threadIdx.x] = table.order[threadIdx.x];
    __syncthreads();
    const int64_t block = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP, first = block * blocksize;
    const int count = static_cast<int>(max(int64_t{0}, min(int64_t{blocksize}, n - first)));
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const float least = 1e-38f;
    unsigned most = 0;
    for (int i = lane; i < count; i += WARP) most = max(most, magnitude_bits(to_float(x[first + i])));
    float largest = __uint_as_float(warp_max_bits(most));
    const bool whole = count == blocksize;
    if (!whole && largest < least) largest = least;
    if (lane == 0 && count > 0) absmax[block] = largest;
    const float factor = 1.0f / fmaxf(largest, least);
    for (int i = 2 * lane; i < count; i += 2 * WARP) {
        float high = to_float(x[first + i]), low = i + 1 < count ? to_float(x[first + i + 1]) : 0.0f;
        high = whole ? high * factor : high / largest;
        low = whole ? low * factor : i + 1 < count ? low / largest : 0.0f;
        packed[(first + i) / 2] = static_cast<uint8_t>(code_of(cuts, order, high) << 4 | code_of(cuts, order, low));
    }
}

template <typename T>
static void launch_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax,
                            const struct tensor *x, int blocksize) {
    struct cut_table t;
    block_cuts(t.cuts, t.order, W->type);
    launch(be, "quantize", quantize_kernel<T>, blocks_for(absmax->dim[0], WARPS), THREADS, 0,
           static_cast<uint8_t *>(W->data), static_cast<float *>(absmax->data), static_cast<const T *>(x->data),
           x->dim[0], blocksize, t);
}

void cuda_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                   int blocksize) {
    if (x->type == F32)
        launch_quantize<float>(be, W, absmax, x, blocksize);
    else if (x->type == BF16)
        launch_quantize<bf16_t>(be, W, absmax, x, blocksize);
    else
        launch_quantize<__half>(be, W, absmax, x, blocksize);
}

/* --- the second level -------------------------------------------------------------------------------------------- */

enum { LEVELS = 4, AHEAD = 16 }; // AHEAD: rows that are loaded before they are summed; a factor of all 2^power

/* How n numbers are summed, as on the host: rows of 32 (4 where n is below 8), each lane for itself. What 2^power rows
 * add up to is one number of the next level, so that all stay small, and begins at zero: groups of 2^(2 power) rows can
 * be summed beside each other. There are less than 2^19 of them as long as n is below 2^39. */
struct lane_sums {
    int64_t n, rows, groups;
    int lanes, power; // lanes: of the numbers after the rows
};

static struct lane_sums lane_sums_of(int64_t n) {
    struct lane_sums s = {};
    s.n = n;
    s.lanes = n < 8 ? 1 : 8;
    s.rows = n / (4 * s.lanes);
    while (int64_t{1} << s.power < s.rows) s.power++;
    s.power = s.power / 4 > 4 ? s.power / 4 : 4;
    s.groups = s.rows >> (2 * s.power);
    return s;
}

/* Adds rows to a level of a lane, the first of them the first of their sum. */
template <int FROM>
__device__ inline void add_rows(float (&level)[LEVELS], const float *x, int64_t rows, int width, int power) {
    for (int64_t done = 0; done < rows; done += AHEAD) {
        float v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) v[j] = done + j < rows ? x[(done + j) * width] : 0.0f;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) level[FROM] += v[j];
        bool full = done + AHEAD <= rows;
#pragma unroll
        for (int up = FROM + 1; up < LEVELS; up++) {
            full = full && ((done + AHEAD) & ((int64_t{1} << ((up - FROM) * power)) - 1)) == 0;
            if (full) level[up] += level[up - 1], level[up - 1] = 0;
        }
    }
}

/* A warp for each group: sums (groups, 32). */
__global__ void __launch_bounds__(THREADS) group_kernel(float *sums, const float *x, struct lane_sums s) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int64_t group = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int64_t rows = int64_t{1} << (2 * s.power);
    if (group >= s.groups) return;
    float level[LEVELS] = {};
    add_rows<0>(level, x + group * rows * WARP + lane, rows, WARP, s.power);
    sums[group * WARP + lane] = level[2];
}

/* One warp: the groups, the rows and numbers after them, then across the lanes. */
__global__ void mean_kernel(float *mean, const float *sums, const float *x, struct lane_sums s) {
    SHARED(float, across, WARP);
    const int lane = static_cast<int>(threadIdx.x), lanes = s.lanes, width = 4 * lanes;
    const int64_t grouped = s.groups << (2 * s.power);
    float level[LEVELS] = {};
    add_rows<2>(level, sums + lane, s.groups, WARP, s.power);
    add_rows<0>(level, x + grouped * width + lane, lane < width ? s.rows - grouped : 0, width, s.power);
    for (int up = 1; up < LEVELS; up++) level[0] += level[up];
    int64_t at = s.rows * width;
    for (; at + lanes <= s.n; at += lanes)
        if (lane < lanes) level[0] += x[at + lane];
    across[lane] = level[0];
    __syncthreads();
    if (lane != 0) return;
    for (int k = lanes; k < width; k++) across[k % lanes] += across[k];
    float sum = 0;
    for (; at < s.n; at++) sum += x[at];
    for (int k = 0; k < lanes; k++) sum += across[k];
    *mean = s.n ? sum / static_cast<float>(s.n) : 0.0f;
}

/* The entry nearest to x: the search halves the map from its middle and ends on an even entry, which wins a tie. */
__device__ inline int nearest(const float *code, float x) {
    int at = 127;
    for (int step = 64; step > 0; step /= 2) at += x > code[at] ? step : -step;
    int below = at > 0 ? at - 1 : 0;
    bool up = x > (code[at + 1] + code[at]) * 0.5f, down = x < (code[below] + code[at]) * 0.5f;
    return at + up - (at > 0 && down);
}

/* A block for each group of 256 scales. */
__global__ void __launch_bounds__(THREADS) nest_kernel(uint8_t *absmax8, float *nested_absmax, const float *offset,
                                                       const float *absmax, int64_t n, const float *code) {
    SHARED(float, map, NESTED);
    SHARED(unsigned, parts, WARPS);
    const int64_t i = static_cast<int64_t>(blockIdx.x) * NESTED + threadIdx.x;
    const float v = i < n ? absmax[i] - *offset : 0.0f;
    unsigned most = warp_max_bits(magnitude_bits(v));
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = most;
    map[threadIdx.x] = code[threadIdx.x];
    __syncthreads();
    for (int w = 0; w < WARPS; w++) most = max(most, parts[w]);
    const float largest = __uint_as_float(most), factor = 1.0f / largest;
    if (threadIdx.x == 0) nested_absmax[blockIdx.x] = largest;
    if (i < n) absmax8[i] = static_cast<uint8_t>(nearest(map, largest == 0.0f ? -1.0f : v * factor));
}

void cuda_nest(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
               const struct tensor *offset, const struct tensor *absmax, const struct tensor *map) {
    float *mean = static_cast<float *>(offset->data);
    const float *x = static_cast<const float *>(absmax->data);
    const int64_t n = absmax->dim[0];
    struct lane_sums s = lane_sums_of(n);
    float *sums = reinterpret_cast<float *>(cuda_of(be)->scratch);
    launch(be, "nest", group_kernel, blocks_for(s.groups, WARPS), THREADS, 0, sums, x, s);
    launch(be, "nest", mean_kernel, 1, WARP, 0, mean, sums, x, s);
    launch(be, "nest", nest_kernel, blocks_for(n, NESTED), THREADS, 0, static_cast<uint8_t *>(absmax8->data),
           static_cast<float *>(nested_absmax->data), mean, x, n, static_cast<const float *>(map->data));
}

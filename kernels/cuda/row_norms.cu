/* The lengths of the rows of W + s B A, from W as it is stored and without ever making the sum whole.
 *
 * A block takes 64 rows and a segment of the columns, 64 columns at a time: it makes that tile of B A from pieces of A
 * and B in shared memory, reads the tile of W, and adds squares up. Rounding errors of the sums are carried along, so
 * that a length is as good as if it were summed in double; the sums of threads, then of segments, are added in double,
 * in order. Bound by the multiplications, 2 r of them for an element of W. */
#include "kernels/cuda/ops_cuda.cuh"
#include "kernels/cuda/q4.cuh"

enum { THREADS = 256, TILE = 64, STEP = 16, SIDE = 16, EACH = TILE / SIDE }; // a thread: EACH x EACH of a tile
enum { LINE = TILE + 4, SEGMENT = 1024 };                                    // the shortest segment, in columns

struct norms_task {
    double *sums; // (segments, O)
    struct weight w;
    const float *A, *B; // (r,I), (O,r)
    int64_t O, I, r, segment;
    float scale;
};

/* total + lost = the sum so far; total alone is what fp32 holds of it. */
struct exact_sum {
    float total, lost;
};

__device__ inline void add_square(struct exact_sum &s, float x) {
    float y = fmaf(x, x, s.lost), sum = __fadd_rn(s.total, y);
    s.lost = __fsub_rn(y, __fsub_rn(sum, s.total));
    s.total = sum;
}

/* a (STEP,TILE) and b (STEP,TILE): A's rows k on at columns i on, B's columns k on at rows o on, transposed. */
__device__ inline void load_factors(float *a, float *b, const struct norms_task &t, int64_t o, int64_t i, int64_t k) {
#pragma unroll
    for (int x = static_cast<int>(threadIdx.x); x < TILE * STEP; x += THREADS) {
        int ka = x / TILE, col = x % TILE, row = x / STEP, kb = x % STEP;
        a[ka * LINE + col] = k + ka < t.r && i + col < t.I ? t.A[(k + ka) * t.I + i + col] : 0.0f;
        b[kb * LINE + row] = k + kb < t.r && o + row < t.O ? t.B[(o + row) * t.r + k + kb] : 0.0f;
    }
}

/* w (TILE,LINE): rows o on, columns i on of W, zeros beyond. */
template <typename W, bool ALIGNED>
__device__ inline void load_weight(float *w, const float *codes, const struct norms_task &t, int64_t o, int64_t i) {
#pragma unroll
    for (int x = static_cast<int>(threadIdx.x); x < TILE * TILE / RUN; x += THREADS) {
        int row = x / (TILE / RUN), col = x % (TILE / RUN) * RUN;
        int64_t rest = o + row < t.O ? t.I - i - col : 0;
        float v[RUN];
        run_read<W, ALIGNED>(v, t.w, codes, (o + row) * t.w.stride + i + col,
                             static_cast<int>(min(rest, int64_t{RUN})));
#pragma unroll
        for (int e = 0; e < RUN; e++) w[row * LINE + col + e] = v[e];
    }
}

template <typename W, bool ALIGNED> __global__ void __launch_bounds__(THREADS) squares_kernel(struct norms_task t) {
    SHARED(float, codes, CODES);
    SHARED(float, w, TILE *LINE);
    SHARED(float, a, STEP *LINE);
    SHARED(float, b, STEP *LINE);
    SHARED(double, parts, TILE *SIDE);
    codes_load<W>(codes, t.w);
    const int64_t o = static_cast<int64_t>(blockIdx.x) * TILE, first = blockIdx.y * t.segment;
    const int64_t end = min(t.I, first + t.segment);
    const int row = static_cast<int>(threadIdx.x) / SIDE, col = static_cast<int>(threadIdx.x) % SIDE;
    struct exact_sum sums[EACH] = {};
    for (int64_t i = first; i < end; i += TILE) {
        float delta[EACH][EACH] = {};
        __syncthreads();
        load_weight<W, ALIGNED>(w, codes, t, o, i);
        for (int64_t k = 0; k < t.r; k += STEP) {
            load_factors(a, b, t, o, i, k);
            __syncthreads();
#pragma unroll
            for (int s = 0; s < STEP; s++) {
                float x[EACH], y[EACH];
#pragma unroll
                for (int e = 0; e < EACH; e++) {
                    x[e] = a[s * LINE + col + SIDE * e];
                    y[e] = b[s * LINE + row + SIDE * e];
                }
#pragma unroll
                for (int p = 0; p < EACH; p++)
#pragma unroll
                    for (int q = 0; q < EACH; q++) delta[p][q] = fmaf(y[p], x[q], delta[p][q]);
            }
            __syncthreads();
        }
        if (t.r == 0) __syncthreads();
#pragma unroll
        for (int y = 0; y < EACH; y++)
#pragma unroll
            for (int x = 0; x < EACH; x++)
                add_square(sums[y], fmaf(t.scale, delta[y][x], w[(row + SIDE * y) * LINE + col + SIDE * x]));
    }
    for (int y = 0; y < EACH; y++)
        parts[(row + SIDE * y) * SIDE + col] = static_cast<double>(sums[y].total) + static_cast<double>(sums[y].lost);
    __syncthreads();
    const int mine = static_cast<int>(threadIdx.x);
    if (mine >= TILE || o + mine >= t.O) return;
    double sum = 0;
    for (int x = 0; x < SIDE; x++) sum += parts[mine * SIDE + x];
    t.sums[blockIdx.y * t.O + o + mine] = sum;
}

__global__ void roots_kernel(float *norms, const double *sums, int64_t O, int segments) {
    int64_t o = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (o >= O) return;
    double sum = 0;
    for (int s = 0; s < segments; s++) sum += sums[s * O + o];
    norms[o] = static_cast<float>(sqrt(sum));
}

template <typename W> static void launch_squares(struct backend *be, const struct norms_task &t, bool aligned) {
    dim3 grid(blocks_for(t.O, TILE), blocks_for(t.I, t.segment));
    launch(be, "row_norms", aligned ? squares_kernel<W, true> : squares_kernel<W, false>, grid, THREADS, 0, t);
}

/* The shortest segments whose sums fit in scratch. */
static int64_t segment_of(int64_t O, int64_t I) {
    int64_t segment = SEGMENT;
    while (O * ((I + segment - 1) / segment) > static_cast<int64_t>(CUDA_SCRATCH / sizeof(double)) && segment < I)
        segment *= 2;
    return segment;
}

void cuda_row_norms(struct backend *be, const struct tensor *norms, const struct tensor *W, const struct tensor *A,
                    const struct tensor *B, float scale) {
    struct norms_task t = {};
    t.sums = reinterpret_cast<double *>(cuda_of(be)->scratch);
    t.w = weight_of(W, weight_source(W));
    t.O = W->dim[0], t.I = W->dim[1];
    t.segment = segment_of(t.O, t.I);
    if (A) t.A = static_cast<const float *>(A->data), t.B = static_cast<const float *>(B->data), t.r = A->dim[0];
    t.scale = A ? scale : 0.0f;
    bool aligned = weight_aligned(W);
    if (W->type == F32)
        launch_squares<float>(be, t, aligned);
    else if (W->type == BF16)
        launch_squares<bf16_t>(be, t, aligned);
    else if (W->type == F16)
        launch_squares<__half>(be, t, aligned);
    else
        launch_squares<nibbles>(be, t, aligned);
    launch(be, "row_norms", roots_kernel, blocks_for(t.O, THREADS), THREADS, 0, static_cast<float *>(norms->data),
           t.sums, t.O, static_cast<int>(blocks_for(t.I, t.segment)));
}

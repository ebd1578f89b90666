/* Each block makes OUTPUTS elements of every row of y: its threads share out the columns of W in runs of 8, so W is
 * read once and never expanded; x comes from cache. The sums of a thread are added up over the warp, then over the
 * warps, in a fixed order. Bound by reading W; with 8 rows, about twice that by the multiplications. */
#include "kernels/cuda/gemv.cuh"

enum { THREADS = 128, WARPS = THREADS / WARP, OUTPUTS = 4, MOST_ROWS = 8, TAKEN_ROWS = 16 };

struct gemv_task {
    void *y;
    enum dtype y_type;
    const bf16_t *x;
    struct weight w;
    const float *bias; // (O) or NULL
    float beta;
    int64_t O;
    int I, rows;
};

/* sums[o][n] += the run of W times that of row n of x. */
template <typename W, int N>
__device__ inline void add_run(float (&sums)[OUTPUTS][N], const struct gemv_task &t, const float *codes, int64_t o,
                               int i) {
    struct run<W> runs[OUTPUTS];
    int64_t at[OUTPUTS];
#pragma unroll
    for (int j = 0; j < OUTPUTS; j++) at[j] = min(o + j, t.O - 1) * t.w.stride + i;
    runs_load(runs, t.w, at);
    vec16<bf16_t> x[N];
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = load16(t.x + static_cast<int64_t>(min(n, t.rows - 1)) * t.I + i);
#pragma unroll
    for (int j = 0; j < OUTPUTS; j++) {
        float v[RUN];
        run_values(v, runs[j], codes, BF16);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < RUN; e++) sums[j][n] = fmaf(v[e], to_float(x[n].at[e]), sums[j][n]);
    }
}

template <typename W, int N>
__global__ void __launch_bounds__(THREADS, N == 1   ? 8
                                           : N <= 4 ? 4
                                                    : 3) gemv_kernel(struct gemv_task t) {
    SHARED(float, codes, CODES);
    SHARED(float, parts, OUTPUTS *N *WARPS);
    codes_load<W>(codes, t.w);
    const int64_t o = static_cast<int64_t>(blockIdx.x) * OUTPUTS;
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    float sums[OUTPUTS][N] = {};
    for (int i = static_cast<int>(threadIdx.x) * RUN; i < t.I; i += THREADS * RUN) add_run<W, N>(sums, t, codes, o, i);
#pragma unroll
    for (int j = 0; j < OUTPUTS; j++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            float sum = warp_sum(sums[j][n]);
            if (lane == 0) parts[(j * N + n) * WARPS + warp] = sum;
        }
    __syncthreads();
    const int mine = static_cast<int>(threadIdx.x), n = mine % N;
    const int64_t out = o + mine / N;
    if (mine >= OUTPUTS * N || out >= t.O || n >= t.rows) return;
    float y = 0;
    for (int p = 0; p < WARPS; p++) y += parts[mine * WARPS + p];
    if (t.bias) y += t.bias[out];
    const int64_t at = n * t.O + out;
    if (t.beta != 0.0f) y += t.beta * value_at(t.y, t.y_type, at);
    value_put(t.y, t.y_type, at, y);
}

template <typename W> static void launch_rows(struct backend *be, const struct gemv_task &t, const char *what) {
    launch(be, what,
           t.rows == 1   ? gemv_kernel<W, 1>
           : t.rows <= 4 ? gemv_kernel<W, 4>
                         : gemv_kernel<W, MOST_ROWS>,
           blocks_for(t.O, OUTPUTS), THREADS, 0, t);
}

bool gemv_takes(const struct tensor *x, const struct tensor *W) {
    return x->type == BF16 && x->dim[0] <= TAKEN_ROWS && weight_aligned(W) && W->dim[1] < (1 << 30) &&
           reinterpret_cast<uintptr_t>(x->data) % 16 == 0;
}

void gemv(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
          const struct tensor *b, float beta, const char *what) {
    for (int64_t first = 0; first < x->dim[0]; first += MOST_ROWS) {
        int64_t rest = x->dim[0] - first, rows = rest < MOST_ROWS ? rest : static_cast<int64_t>(MOST_ROWS);
        struct tensor to = tensor_rows(y, first, rows), from = tensor_rows(x, first, rows);
        struct gemv_task t = {to.data,
                              y->type,
                              static_cast<const bf16_t *>(from.data),
                              weight_of(W, BF16),
                              b ? static_cast<const float *>(b->data) : nullptr,
                              beta,
                              W->dim[0],
                              static_cast<int>(W->dim[1]),
                              static_cast<int>(rows)};
        if (W->type == F32)
            launch_rows<float>(be, t, what);
        else if (W->type == BF16)
            launch_rows<bf16_t>(be, t, what);
        else if (W->type == F16)
            launch_rows<__half>(be, t, what);
        else
            launch_rows<nibbles>(be, t, what);
    }
}

/* Sums over the rows of (N,C), column by column: rows are cut into spans by shape alone, a thread adds the rows of a
 * span in their order, and a second kernel adds the spans in theirs, in double. */
#ifndef KERNELS_CUDA_COLUMN_SUMS_CUH
#define KERNELS_CUDA_COLUMN_SUMS_CUH

#include "kernels/cuda/span.cuh"

enum { COLUMN_THREADS = 128, COLUMN_ROWS = 64, COLUMN_SPANS = 256 };

/* part (SUMS,spans,C). f.add(sum, n, c) adds what row n has for columns c .. c + V to sum (SUMS,V). */
template <int V, int SUMS, typename F>
__global__ void __launch_bounds__(COLUMN_THREADS)
    column_parts_kernel(float *part, F f, int64_t N, int64_t C, int64_t each) {
    int64_t c = (static_cast<int64_t>(blockIdx.x) * COLUMN_THREADS + threadIdx.x) * V, first = blockIdx.y * each;
    if (c >= C) return;
    float sum[SUMS][V] = {};
    for (int64_t n = first; n < first + each && n < N; n++) f.add(sum, n, c);
    for (int k = 0; k < SUMS; k++)
        for (int i = 0; i < V; i++) part[(static_cast<int64_t>(k) * gridDim.y + blockIdx.y) * C + c + i] = sum[k][i];
}

/* g (C) += scale * the sum over spans of part (spans,C), over divisor (C) if there is one. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    column_finish_kernel(float *g, const float *part, const float *divisor, double scale, int spans, int64_t C) {
    int64_t c = static_cast<int64_t>(blockIdx.x) * COLUMN_THREADS + threadIdx.x;
    if (c >= C) return;
    double sum = 0;
    for (int i = 0; i < spans; i++) sum += static_cast<double>(part[i * C + c]);
    g[c] += static_cast<float>(divisor ? sum / static_cast<double>(divisor[c]) : sum * scale);
}

/* g[k] (C) += sum k of f, for k < SUMS where g[k] is not NULL. vectors: f may be asked for V columns at once. */
template <int V, int SUMS, typename F>
void column_sums(struct backend *be, const char *what, const struct tensor *const (&g)[SUMS], const F &f, int64_t N,
                 int64_t C, bool vectors, const float *divisor, float scale) {
    if (N == 0 || C == 0) return;
    int64_t room = static_cast<int64_t>(CUDA_SCRATCH / sizeof(float)) / (SUMS * C), spans = (N - 1) / COLUMN_ROWS + 1;
    if (spans > COLUMN_SPANS) spans = COLUMN_SPANS;
    if (spans > room) spans = room;
    int64_t each = (N + spans - 1) / spans;
    spans = (N + each - 1) / each;
    float *part = reinterpret_cast<float *>(cuda_of(be)->scratch);
    dim3 grid(blocks_for(C / (vectors ? V : 1), COLUMN_THREADS), static_cast<unsigned>(spans));
    launch(be, what, vectors ? column_parts_kernel<V, SUMS, F> : column_parts_kernel<1, SUMS, F>, grid, COLUMN_THREADS,
           0, part, f, N, C, each);
    for (int k = 0; k < SUMS; k++)
        if (g[k])
            launch(be, what, column_finish_kernel, blocks_for(C, COLUMN_THREADS), COLUMN_THREADS, 0,
                   static_cast<float *>(g[k]->data), part + k * spans * C, divisor, static_cast<double>(scale),
                   int(spans), C);
}

#endif

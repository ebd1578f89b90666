/* Losses row by row. Cross entropy over logits in F32: one pass for the largest logit and the sum of exponentials
 * relative to it, one for the gradient. */
#include <math.h>

#include "kernels/cuda/span.cuh"

/* --- cross entropy ----------------------------------------------------------------------------------------------- */

struct cross_entropy {
    float *loss, *logits; // (M), (M,V)
    const int32_t *targets;
    index_check check;
    int64_t count; // V
    bool gradient;
    float scale;
};

/* Takes x into sum, the sum of exp relative to most, the largest so far. NaN stays in the sum. */
__device__ inline void take(float &most, float &sum, float x) {
    if (x > most) {
        sum = sum * expf(most - x) + 1.0f;
        most = x;
    } else if (x != -INFINITY) {
        sum += expf(x - most);
    }
}

/* One block per row. Bound by memory: reads the logits, and with the gradient reads and writes them again. */
template <int THREADS, int V> __global__ void __launch_bounds__(THREADS) cross_entropy_kernel(cross_entropy p) {
    int64_t row = blockIdx.x;
    int target = p.targets[row];
    float *x = p.logits + row * p.count; // (count)
    if (target < p.check.low || target >= p.check.limit) {
        if (threadIdx.x == 0) index_fits(p.check, row, target);
        return;
    }
    float most = -INFINITY, sum = 0, v[V];
    for (int64_t c = threadIdx.x * V; c < p.count; c += THREADS * V) {
        load_floats<V>(v, x + c);
        for (int k = 0; k < V; k++) take(most, sum, v[k]);
    }
    float mine = most, wanted = x[target];
    most = block_max<THREADS>(most);
    sum = block_sum<THREADS>(mine > -INFINITY ? sum * expf(mine - most) : sum);
    if (threadIdx.x == 0) p.loss[row] = logf(sum) + (most - wanted);
    if (!p.gradient) return;
    float factor = p.scale / sum;
    for (int64_t c = threadIdx.x * V; c < p.count; c += THREADS * V) {
        load_floats<V>(v, x + c);
        for (int k = 0; k < V; k++) v[k] = factor * expf(v[k] - most) - (c + k == target ? p.scale : 0.0f);
        store_floats<V>(x + c, v);
    }
}

static void cross_entropy_run(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                              const struct tensor *targets, bool gradient, float scale) {
    enum { FEW = 64, MANY = 512, SHORT = 2048 };
    int64_t M = logits->dim[0], count = logits->dim[1];
    cross_entropy p = {static_cast<float *>(loss->data),
                       static_cast<float *>(logits->data),
                       static_cast<const int32_t *>(targets->data),
                       cuda_index_check(be, "cross_entropy", 0, count),
                       count,
                       gradient,
                       scale};
    bool vectors = count % 4 == 0 && fits16(p.logits);
    if (count <= SHORT)
        launch(be, "cross_entropy", vectors ? cross_entropy_kernel<FEW, 4> : cross_entropy_kernel<FEW, 1>,
               blocks_for(M, 1), FEW, 0, p);
    else
        launch(be, "cross_entropy", vectors ? cross_entropy_kernel<MANY, 4> : cross_entropy_kernel<MANY, 1>,
               blocks_for(M, 1), MANY, 0, p);
}

void cuda_cross_entropy_forward(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                                const struct tensor *targets) {
    cross_entropy_run(be, loss, logits, targets, false, 0);
}

void cuda_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *logits,
                        const struct tensor *targets, float scale) {
    cross_entropy_run(be, loss, logits, targets, true, scale);
}

/* --- heads: a few numbers a row, in double ----------------------------------------------------------------------- */

struct head_loss {
    float *loss, *dx; // (M), (M,n) or NULL
    const float *x, *y;
    int64_t M, n;
    float scale;
};

struct squared_error {
    __device__ static double loss(double x, double y) { return (x - y) * (x - y); }
    __device__ static double slope(double x, double y) { return 2 * (x - y); }
};

/* log(1 + exp(x)) - x y without overflow. */
struct binary_entropy {
    __device__ static double loss(double x, double y) { return fmax(x, 0.0) - x * y + log1p(exp(-fabs(x))); }
    __device__ static double slope(double x, double y) { return 1 / (1 + exp(-x)) - y; }
};

enum { HEAD_THREADS = 64 };

/* One thread per row. */
template <typename F> __global__ void __launch_bounds__(HEAD_THREADS) head_kernel(head_loss p) {
    int64_t row = static_cast<int64_t>(blockIdx.x) * HEAD_THREADS + threadIdx.x;
    if (row >= p.M) return;
    double sum = 0, mean = 1.0 / static_cast<double>(p.n);
    for (int64_t i = row * p.n; i < (row + 1) * p.n; i++) {
        double x = static_cast<double>(p.x[i]), y = static_cast<double>(p.y[i]);
        sum += F::loss(x, y);
        if (p.dx) p.dx[i] = static_cast<float>(static_cast<double>(p.scale) * mean * F::slope(x, y));
    }
    p.loss[row] = static_cast<float>(sum * mean);
}

template <typename F>
static void head_run(struct backend *be, const char *what, const struct tensor *loss, const struct tensor *dx,
                     const struct tensor *x, const struct tensor *y, float scale) {
    head_loss p = {static_cast<float *>(loss->data),
                   dx ? static_cast<float *>(dx->data) : NULL,
                   static_cast<const float *>(x->data),
                   static_cast<const float *>(y->data),
                   x->dim[0],
                   x->dim[1],
                   scale};
    launch(be, what, head_kernel<F>, blocks_for(p.M, HEAD_THREADS), HEAD_THREADS, 0, p);
}

void cuda_squared_error(struct backend *be, const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
                        const struct tensor *y, float scale) {
    head_run<squared_error>(be, "squared_error", loss, dx, x, y, scale);
}

void cuda_binary_cross_entropy(struct backend *be, const struct tensor *loss, const struct tensor *dx,
                               const struct tensor *x, const struct tensor *y, float scale) {
    head_run<binary_entropy>(be, "binary_cross_entropy", loss, dx, x, y, scale);
}

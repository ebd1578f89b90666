/* RMSNorm and LayerNorm. Forward and the gradient of x: one block per row, which is read again from the cache.
 * Gradients of parameters are sums of columns. */
#include "kernels/cuda/column_sums.cuh"

template <typename T> struct norm_rows {
    T *y, *dx;          // (N,C)
    const T *x, *dy;    // (N,C)
    float *mean, *rstd; // (N); mean NULL for RMSNorm
    const float *w, *b; // (C); b NULL for RMSNorm
    int64_t N, C;
    float eps;
};

static const float *floats(const struct tensor *t) { return t ? static_cast<const float *>(t->data) : NULL; }

/* Rows that are short take few threads. */
enum { FEW = 64, MANY = 256, SHORT = 1024 };

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* y = (x - mean) rstd w + b. Bound by memory: reads x, writes y. */
template <int THREADS, int V, typename T>
__global__ void __launch_bounds__(THREADS) norm_forward_kernel(norm_rows<T> p) {
    int64_t row = blockIdx.x;
    const T *x = p.x + row * p.C; // (C)
    T *y = p.y + row * p.C;       // (C)
    float mean = 0, sum = 0, v[V], w[V], b[V] = {};
    if (p.mean) {
        for (int64_t c = threadIdx.x * V; c < p.C; c += THREADS * V) {
            load_floats<V>(v, x + c);
            for (int k = 0; k < V; k++) sum += v[k];
        }
        mean = block_sum<THREADS>(sum) / static_cast<float>(p.C);
    }
    sum = 0;
    for (int64_t c = threadIdx.x * V; c < p.C; c += THREADS * V) {
        load_floats<V>(v, x + c);
        for (int k = 0; k < V; k++) sum += (v[k] - mean) * (v[k] - mean);
    }
    float rstd = 1.0f / sqrtf(block_sum<THREADS>(sum) / static_cast<float>(p.C) + p.eps);
    if (threadIdx.x == 0) {
        if (p.mean) p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
    for (int64_t c = threadIdx.x * V; c < p.C; c += THREADS * V) {
        load_floats<V>(v, x + c), load_floats<V>(w, p.w + c);
        if (p.b) load_floats<V>(b, p.b + c);
        for (int k = 0; k < V; k++) v[k] = (v[k] - mean) * rstd * w[k] + b[k];
        store_floats<V>(y + c, v);
    }
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* With z = (x - mean) rstd and d = dy w: dx += rstd (d - mean(d) - z mean(d z)); RMSNorm has no mean(d). Bound by
 * memory: reads x, dy and dx, writes dx. */
template <int THREADS, int V, typename T>
__global__ void __launch_bounds__(THREADS) norm_backward_kernel(norm_rows<T> p) {
    int64_t row = blockIdx.x;
    const T *x = p.x + row * p.C, *dy = p.dy + row * p.C; // (C)
    T *dx = p.dx + row * p.C;                             // (C)
    float mean = p.mean ? p.mean[row] : 0, rstd = p.rstd[row], count = static_cast<float>(p.C);
    float sum_d = 0, sum_dz = 0, v[V], d[V], w[V], old[V];
    for (int64_t c = threadIdx.x * V; c < p.C; c += THREADS * V) {
        load_floats<V>(v, x + c), load_floats<V>(d, dy + c), load_floats<V>(w, p.w + c);
        for (int k = 0; k < V; k++) {
            sum_d += d[k] * w[k];
            sum_dz += d[k] * w[k] * ((v[k] - mean) * rstd);
        }
    }
    float mean_d = p.mean ? block_sum<THREADS>(sum_d) / count : 0, mean_dz = block_sum<THREADS>(sum_dz) / count;
    for (int64_t c = threadIdx.x * V; c < p.C; c += THREADS * V) {
        load_floats<V>(v, x + c), load_floats<V>(d, dy + c), load_floats<V>(w, p.w + c), load_floats<V>(old, dx + c);
        for (int k = 0; k < V; k++) old[k] += rstd * (d[k] * w[k] - mean_d - (v[k] - mean) * rstd * mean_dz);
        store_floats<V>(dx + c, old);
    }
}

/* What gw and gb are added up from: dy z, and dy. */
template <typename T> struct norm_sums {
    const T *x, *dy;
    const float *mean, *rstd;
    int64_t C;

    template <int V> __device__ void add(float (&sum)[2][V], int64_t n, int64_t c) const {
        float v[V], d[V], m = mean ? mean[n] : 0, r = rstd[n];
        load_floats<V>(v, x + n * C + c), load_floats<V>(d, dy + n * C + c);
        for (int k = 0; k < V; k++) {
            sum[0][k] += d[k] * ((v[k] - m) * r);
            sum[1][k] += d[k];
        }
    }
};

/* --- which kernel ------------------------------------------------------------------------------------------------ */

template <int V, typename T> static void run_rows(struct backend *be, const char *what, const norm_rows<T> &p) {
    bool few = p.C <= SHORT, forward = p.y != NULL;
    void (*kernel)(norm_rows<T>) = forward ? few ? norm_forward_kernel<FEW, V, T> : norm_forward_kernel<MANY, V, T>
                                   : few ? norm_backward_kernel<FEW, V, T>
                                           : norm_backward_kernel<MANY, V, T>;
    launch(be, what, kernel, blocks_for(p.N, 1), few ? FEW : MANY, 0, p);
}

template <typename T>
static void run_typed(struct backend *be, const char *what, const struct tensor *y, const struct tensor *dx,
                      const struct tensor *dy, const struct tensor *x, const struct tensor *mean,
                      const struct tensor *rstd, const struct tensor *w, const struct tensor *b, float eps,
                      const struct tensor *gw, const struct tensor *gb) {
    constexpr int V = vector_of<T>();
    norm_rows<T> p;
    p.y = y ? static_cast<T *>(y->data) : NULL;
    p.dx = dx ? static_cast<T *>(dx->data) : NULL;
    p.dy = dy ? static_cast<const T *>(dy->data) : NULL;
    p.x = static_cast<const T *>(x->data);
    p.mean = mean ? static_cast<float *>(mean->data) : NULL;
    p.rstd = static_cast<float *>(rstd->data);
    p.w = floats(w), p.b = floats(b);
    p.N = x->dim[0], p.C = x->dim[1], p.eps = eps;
    bool vectors =
        p.C % V == 0 && fits16(p.y) && fits16(p.dx) && fits16(p.dy) && fits16(p.x) && fits16(p.w) && fits16(p.b);
    if (p.C == 0) return;
    if (vectors)
        run_rows<V>(be, what, p);
    else
        run_rows<1>(be, what, p);
    norm_sums<T> sums = {p.x, p.dy, p.mean, p.rstd, p.C};
    if (gw || gb) column_sums<V, 2>(be, what, {gw, gb}, sums, p.N, p.C, vectors, NULL, 1);
}

static void run(struct backend *be, const char *what, const struct tensor *y, const struct tensor *dx,
                const struct tensor *dy, const struct tensor *x, const struct tensor *mean, const struct tensor *rstd,
                const struct tensor *w, const struct tensor *b, float eps, const struct tensor *gw,
                const struct tensor *gb) {
    if (x->type == BF16)
        run_typed<bf16_t>(be, what, y, dx, dy, x, mean, rstd, w, b, eps, gw, gb);
    else
        run_typed<float>(be, what, y, dx, dy, x, mean, rstd, w, b, eps, gw, gb);
}

void cuda_rmsnorm_forward(struct backend *be, const struct tensor *y, const struct tensor *rstd, const struct tensor *x,
                          const struct tensor *w, float eps) {
    run(be, "rmsnorm_forward", y, NULL, NULL, x, NULL, rstd, w, NULL, eps, NULL, NULL);
}

void cuda_layernorm_forward(struct backend *be, const struct tensor *y, const struct tensor *mean,
                            const struct tensor *rstd, const struct tensor *x, const struct tensor *w,
                            const struct tensor *b, float eps) {
    run(be, "layernorm_forward", y, NULL, NULL, x, mean, rstd, w, b, eps, NULL, NULL);
}

void cuda_rmsnorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                               const struct tensor *dy, const struct tensor *x, const struct tensor *rstd,
                               const struct tensor *w) {
    run(be, "rmsnorm_backward_add", NULL, dx, dy, x, NULL, rstd, w, NULL, 0, gw, NULL);
}

void cuda_layernorm_backward_add(struct backend *be, const struct tensor *dx, const struct tensor *gw,
                                 const struct tensor *gb, const struct tensor *dy, const struct tensor *x,
                                 const struct tensor *mean, const struct tensor *rstd, const struct tensor *w) {
    run(be, "layernorm_backward_add", NULL, dx, dy, x, mean, rstd, w, NULL, 0, gw, gb);
}

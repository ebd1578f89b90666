/* The ops of DoRA that are not matrix products, and biases: scales and sums of columns. */
#include "kernels/cuda/column_sums.cuh"

/* --- scales ------------------------------------------------------------------------------------------------------- */

struct scaling {
    const float *g, *b; // (C) or NULL
    float scale;        // of b
    bool add;           // to what y holds
};

/* y = x * g + scale * b, or y += that; x NULL: no product. A thread keeps V columns and goes through rows. Bound by
 * memory. */
template <int V, typename T>
__global__ void __launch_bounds__(SPAN_THREADS) scale_kernel(T *y, const T *x, scaling s, int64_t N, int64_t C) {
    int64_t c = first_column<V>();
    if (c >= C) return;
    float g[V] = {}, b[V] = {};
    if (x) load_floats<V>(g, s.g + c);
    if (s.b) load_floats<V>(b, s.b + c);
    for (int64_t n = first_row(); n < N; n += row_step()) {
        float v[V] = {}, old[V] = {};
        if (x) load_floats<V>(v, x + n * C + c);
        if (s.add) load_floats<V>(old, y + n * C + c);
        for (int k = 0; k < V; k++) v[k] = old[k] + (v[k] * g[k] + s.scale * b[k]);
        store_floats<V>(y + n * C + c, v);
    }
}

template <typename T>
static void scale_typed(struct backend *be, const char *what, const struct tensor *y, const struct tensor *x,
                        const scaling &s) {
    constexpr int V = vector_of<T>();
    T *to = static_cast<T *>(y->data);
    const T *from = x ? static_cast<const T *>(x->data) : NULL;
    int64_t N = y->dim[0], C = y->dim[1];
    bool vectors = C % V == 0 && fits16(to) && fits16(from) && fits16(s.g) && fits16(s.b);
    rows_grid r = rows_grid_of(be, N, C, vectors ? V : 1);
    launch(be, what, vectors ? scale_kernel<V, T> : scale_kernel<1, T>, r.grid, r.block, 0, to, from, s, N, C);
}

static void scale_run(struct backend *be, const char *what, const struct tensor *y, const struct tensor *x,
                      const scaling &s) {
    if (y->type == BF16)
        scale_typed<bf16_t>(be, what, y, x, s);
    else
        scale_typed<float>(be, what, y, x, s);
}

static const float *floats(const struct tensor *t) { return t ? static_cast<const float *>(t->data) : NULL; }

void cuda_scale_cols(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g,
                     const struct tensor *b) {
    scale_run(be, "scale_cols", y, x, {floats(g), floats(b), 1, false});
}

void cuda_scale_cols_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *g) {
    scale_run(be, "scale_cols_add", y, x, {floats(g), NULL, 0, true});
}

void cuda_bias_add(struct backend *be, const struct tensor *y, const struct tensor *b, float scale) {
    scale_run(be, "bias_add", y, NULL, {NULL, floats(b), scale, true});
}

struct divide_element { // a, b -> y
    float minus;
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[2][V], int64_t) const {
        for (int i = 0; i < V; i++) out[0][i] = in[0][i] / in[1][i] - minus;
    }
};

void cuda_divide(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b,
                 float minus) {
    span_run<divide_element, 1, 2>(be, "divide", {minus}, {y}, {a, b});
}

/* --- sums of columns --------------------------------------------------------------------------------------------- */

/* The sum of x, or of x * t where there is a t; x, t (N,C). */
template <typename T> struct product_sums {
    const T *x, *t;
    int64_t C;

    template <int V> __device__ void add(float (&sum)[1][V], int64_t n, int64_t c) const {
        float v[V], w[V];
        load_floats<V>(v, x + n * C + c);
        if (t) load_floats<V>(w, t + n * C + c);
        for (int k = 0; k < V; k++) sum[0][k] += t ? v[k] * w[k] : v[k];
    }
};

template <typename T>
static void sums_typed(struct backend *be, const char *what, const struct tensor *g, const struct tensor *x,
                       const struct tensor *t, const float *divisor, float scale) {
    constexpr int V = vector_of<T>();
    int64_t N = x->dim[0], C = x->dim[1];
    product_sums<T> f = {static_cast<const T *>(x->data), t ? static_cast<const T *>(t->data) : NULL, C};
    column_sums<V, 1>(be, what, {g}, f, N, C, C % V == 0 && fits16(f.x) && fits16(f.t), divisor, scale);
}

static void sums_run(struct backend *be, const char *what, const struct tensor *g, const struct tensor *x,
                     const struct tensor *t, const float *divisor, float scale) {
    if (x->type == BF16)
        sums_typed<bf16_t>(be, what, g, x, t, divisor, scale);
    else
        sums_typed<float>(be, what, g, x, t, divisor, scale);
}

void cuda_bias_backward(struct backend *be, const struct tensor *gb, const struct tensor *dy, float scale) {
    sums_run(be, "bias_backward", gb, dy, NULL, NULL, scale);
}

void cuda_magnitude_backward(struct backend *be, const struct tensor *gm, const struct tensor *dy,
                             const struct tensor *t, const struct tensor *norms) {
    sums_run(be, "magnitude_backward", gm, dy, t, floats(norms), 1);
}

/* Rotary position embedding, in place: halves of a head are rotated by the angles of its position. */
#include "kernels/cuda/span.cuh"

struct rope {
    const float *cosines, *sines; // (P,half)
    const int32_t *positions;     // (N)
    index_check check;
    int64_t N, H, D, half;
    float sign;
};

/* A thread keeps V pairs of one head and goes through tokens. Bound by memory: reads and writes x. */
template <int V, typename T> __global__ void __launch_bounds__(SPAN_THREADS) rope_kernel(T *x, rope r) {
    int64_t column = first_column<V>(), head = column / r.half, i = column % r.half;
    if (head >= r.H) return;
    for (int64_t n = first_row(); n < r.N; n += row_step()) {
        int64_t position = r.positions[n];
        if (position < r.check.low || position >= r.check.limit) {
            if (column == 0) index_fits(r.check, n, r.positions[n]);
            continue;
        }
        T *at = x + (n * r.H + head) * r.D + i;
        float a[V], b[V], c[V], s[V], turned[V];
        load_floats<V>(a, at), load_floats<V>(b, at + r.half);
        load_floats<V>(c, r.cosines + position * r.half + i), load_floats<V>(s, r.sines + position * r.half + i);
        for (int k = 0; k < V; k++) {
            turned[k] = a[k] * c[k] - r.sign * b[k] * s[k];
            b[k] = b[k] * c[k] + r.sign * a[k] * s[k];
        }
        store_floats<V>(at, turned), store_floats<V>(at + r.half, b);
    }
}

template <typename T> static void run(struct backend *be, const struct tensor *x, const rope &r) {
    constexpr int V = vector_of<T>();
    T *values = static_cast<T *>(x->data);
    bool vectors = r.half % V == 0 && r.D % V == 0 && fits16(values) && fits16(r.cosines) && fits16(r.sines);
    rows_grid g = rows_grid_of(be, r.N, r.H * r.half, vectors ? V : 1);
    launch(be, "rope", vectors ? rope_kernel<V, T> : rope_kernel<1, T>, g.grid, g.block, 0, values, r);
}

void cuda_rope(struct backend *be, const struct tensor *x, const struct tensor *table, const struct tensor *positions,
               float sign) {
    int64_t P = table->dim[1], half = table->dim[2];
    const float *cosines = static_cast<const float *>(table->data);
    rope r = {cosines,
              cosines + P * half,
              static_cast<const int32_t *>(positions->data),
              cuda_index_check(be, "rope", 0, P),
              x->dim[0],
              x->dim[1],
              x->dim[2],
              half,
              sign};
    if (x->type == BF16)
        run<bf16_t>(be, x, r);
    else
        run<float>(be, x, r);
}

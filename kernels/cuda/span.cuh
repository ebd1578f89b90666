/* Pointwise work: the same position of every input and output, 16 bytes at a time where addresses allow, in fp32 with
 * one rounding at the store. */
#ifndef KERNELS_CUDA_SPAN_CUH
#define KERNELS_CUDA_SPAN_CUH

#include "kernels/cuda/ops_cuda.cuh"

template <typename T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };

/* V numbers at p, in pieces of at most 16 bytes, to which p is aligned. */
template <int V, typename T> __device__ inline void load_floats(float (&f)[V], const T *p) {
    constexpr int PART = V * sizeof(T) > 16 ? 16 / sizeof(T) : V;
#pragma unroll
    for (int k = 0; k < V; k += PART) {
        pack<T, PART> v = *reinterpret_cast<const pack<T, PART> *>(p + k);
#pragma unroll
        for (int j = 0; j < PART; j++) f[k + j] = to_float(v.at[j]);
    }
}

template <int V, typename T> __device__ inline void store_floats(T *p, const float (&f)[V]) {
    constexpr int PART = V * sizeof(T) > 16 ? 16 / sizeof(T) : V;
#pragma unroll
    for (int k = 0; k < V; k += PART) {
        pack<T, PART> v;
#pragma unroll
        for (int j = 0; j < PART; j++) v.at[j] = from_float<T>(f[k + j]);
        *reinterpret_cast<pack<T, PART> *>(p + k) = v;
    }
}

/* Whether V numbers of each row of C may be moved at once; NULL is fine. */
static inline bool fits16(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/* The numbers of T that 16 bytes hold: what a thread takes at once of activations. */
template <typename T> constexpr int vector_of() { return 16 / sizeof(T); }

/* --- whole tensors ----------------------------------------------------------------------------------------------- */

enum { SPAN_THREADS = 256 };

template <typename T, int OUT, int IN> struct span_pointers {
    T *out[OUT];
    const T *in[IN];
};

/* f.apply(out, in, at) computes V elements from `at` on, a multiple of V. Outputs may be inputs. */
template <int V, typename T, int OUT, int IN, typename F>
__device__ inline void span_piece(const F &f, const span_pointers<T, OUT, IN> &p, int64_t at) {
    float in[IN][V], out[OUT][V];
#pragma unroll
    for (int k = 0; k < IN; k++) load_floats<V>(in[k], p.in[k] + at);
    f.apply(out, in, at);
#pragma unroll
    for (int k = 0; k < OUT; k++) store_floats<V>(p.out[k] + at, out[k]);
}

/* Threads take pieces in turn; the elements behind the last piece are the first block's. Bound by memory. */
template <int V, typename T, int OUT, int IN, typename F>
__global__ void __launch_bounds__(SPAN_THREADS) span_kernel(F f, span_pointers<T, OUT, IN> p, int64_t n) {
    int64_t first = static_cast<int64_t>(blockIdx.x) * SPAN_THREADS + threadIdx.x, pieces = n / V;
    for (int64_t i = first; i < pieces; i += static_cast<int64_t>(gridDim.x) * SPAN_THREADS) span_piece<V>(f, p, i * V);
    if (first < n - pieces * V) span_piece<1>(f, p, pieces * V + first);
}

/* As many blocks as keep the device busy, and no more than there is work for. */
static inline unsigned span_blocks(struct backend *be, int64_t pieces) {
    int64_t most = 16 * static_cast<int64_t>(cuda_of(be)->processors), all = (pieces + SPAN_THREADS - 1) / SPAN_THREADS;
    return static_cast<unsigned>(all < most ? all : most);
}

template <typename T, typename F, int OUT, int IN>
void span_typed(struct backend *be, const char *what, const F &f, const struct tensor *const (&out)[OUT],
                const struct tensor *const (&in)[IN]) {
    constexpr int V = vector_of<T>();
    span_pointers<T, OUT, IN> p;
    int64_t n = tensor_count(out[0]);
    bool vectors = true;
    for (int k = 0; k < OUT; k++) p.out[k] = static_cast<T *>(out[k]->data), vectors = vectors && fits16(p.out[k]);
    for (int k = 0; k < IN; k++) p.in[k] = static_cast<const T *>(in[k]->data), vectors = vectors && fits16(p.in[k]);
    if (vectors)
        launch(be, what, span_kernel<V, T, OUT, IN, F>, span_blocks(be, (n + V - 1) / V), SPAN_THREADS, 0, f, p, n);
    else
        launch(be, what, span_kernel<1, T, OUT, IN, F>, span_blocks(be, n), SPAN_THREADS, 0, f, p, n);
}

/* All tensors have one type, F32 or BF16, and one count. */
template <typename F, int OUT, int IN>
void span_run(struct backend *be, const char *what, const F &f, const struct tensor *const (&out)[OUT],
              const struct tensor *const (&in)[IN]) {
    if (out[0]->type == BF16)
        span_typed<bf16_t>(be, what, f, out, in);
    else
        span_typed<float>(be, what, f, out, in);
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

/* Work on (N,C) of which a thread keeps V columns and goes through rows: threads (x,y) of a block stand for columns
 * and rows. */
struct rows_grid {
    dim3 grid, block;
};

static inline struct rows_grid rows_grid_of(struct backend *be, int64_t N, int64_t C, int V) {
    int64_t pieces = C / V, most = 16 * static_cast<int64_t>(cuda_of(be)->processors);
    unsigned across = pieces >= SPAN_THREADS ? unsigned(SPAN_THREADS) : unsigned((pieces + WARP - 1) / WARP * WARP);
    unsigned down = across ? SPAN_THREADS / across : 1;
    if (down > N) down = N ? unsigned(N) : 1;
    int64_t x = across ? (pieces + across - 1) / across : 0, y = (N + down - 1) / down;
    if (x && y > (most + x - 1) / x) y = (most + x - 1) / x;
    return {dim3(unsigned(x), unsigned(y)), dim3(across, down)};
}

template <int V> __device__ inline int64_t first_column() {
    return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
}
__device__ inline int64_t first_row() { return static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; }
__device__ inline int64_t row_step() { return static_cast<int64_t>(gridDim.y) * blockDim.y; }

#endif

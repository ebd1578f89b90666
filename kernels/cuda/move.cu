/* Ops that move numbers: copies, rows by index, patches, noise. */
#include "kernels/cuda/graphs.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/span.cuh"

/* --- whole tensors ----------------------------------------------------------------------------------------------- */

template <int V, typename TO, typename FROM>
__global__ void __launch_bounds__(SPAN_THREADS) convert_kernel(TO *y, const FROM *x, int64_t n) {
    int64_t first = static_cast<int64_t>(blockIdx.x) * SPAN_THREADS + threadIdx.x, pieces = n / V;
    for (int64_t i = first; i < pieces; i += static_cast<int64_t>(gridDim.x) * SPAN_THREADS) {
        float v[V];
        load_floats<V>(v, x + i * V);
        store_floats<V>(y + i * V, v);
    }
    if (first < n - pieces * V) y[pieces * V + first] = from_float<TO>(to_float(x[pieces * V + first]));
}

template <typename TO, typename FROM>
static void convert(struct backend *be, const struct tensor *y, const struct tensor *x) {
    TO *to = static_cast<TO *>(y->data);
    const FROM *from = static_cast<const FROM *>(x->data);
    int64_t n = tensor_count(x);
    if (fits16(to) && fits16(from))
        launch(be, "copy", convert_kernel<8, TO, FROM>, span_blocks(be, (n + 7) / 8), SPAN_THREADS, 0, to, from, n);
    else
        launch(be, "copy", convert_kernel<1, TO, FROM>, span_blocks(be, n), SPAN_THREADS, 0, to, from, n);
}

template <typename TO> static void convert_to(struct backend *be, const struct tensor *y, const struct tensor *x) {
    if (x->type == F32)
        convert<TO, float>(be, y, x);
    else if (x->type == BF16)
        convert<TO, bf16_t>(be, y, x);
    else
        convert<TO, __half>(be, y, x);
}

struct bytes_copy { // from NULL: zeros
    void *to;
    const void *from;
    size_t bytes;
};

static void copy_issue(struct backend *be, const void *of) {
    const struct bytes_copy *c = static_cast<const struct bytes_copy *>(of);
    cudaStream_t stream = cuda_of(be)->stream;
    if (c->from)
        cuda_check(be, cudaMemcpyAsync(c->to, c->from, c->bytes, cudaMemcpyDefault, stream), "copy");
    else
        cuda_check(be, cudaMemsetAsync(c->to, 0, c->bytes, stream), "zero");
}

void cuda_copy(struct backend *be, const struct tensor *y, const struct tensor *x) {
    struct bytes_copy c = {y->data, x->data, tensor_bytes(x)};
    if (y->type == x->type) {
        if (c.bytes) graphs_call(be, "copy", copy_issue, &c, sizeof c);
    } else if (y->type == F32) {
        convert_to<float>(be, y, x);
    } else if (y->type == BF16) {
        convert_to<bf16_t>(be, y, x);
    } else {
        convert_to<__half>(be, y, x);
    }
}

void cuda_zero(struct backend *be, const struct tensor *y) {
    struct bytes_copy c = {y->data, nullptr, tensor_bytes(y)};
    if (c.bytes) graphs_call(be, "zero", copy_issue, &c, sizeof c);
}

struct add_element {
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[2][V], int64_t) const {
        for (int i = 0; i < V; i++) out[0][i] = in[0][i] + in[1][i];
    }
};

void cuda_add(struct backend *be, const struct tensor *y, const struct tensor *a, const struct tensor *b) {
    span_run<add_element, 1, 2>(be, "add", {}, {y}, {a, b});
}

/* --- rows by index ----------------------------------------------------------------------------------------------- */

enum by_index {
    GATHER,  // y[i] = x[index[i]], zeros where the index is -1
    SCATTER, // y[index[i]] = x[i], but where it is -1
    ADD,     // y[i] += x[index[i]]
};

template <by_index HOW, int V, typename TO, typename FROM>
__global__ void __launch_bounds__(SPAN_THREADS)
    by_index_kernel(TO *y, const FROM *x, const int32_t *index, index_check check, int64_t N, int64_t C) {
    int64_t c = first_column<V>();
    if (c >= C) return;
    for (int64_t i = first_row(); i < N; i += row_step()) {
        int64_t at = index[i];
        bool there = at >= 0 && at < check.limit;
        if (c == 0) index_fits(check, i, index[i]);
        if (HOW != GATHER && !there) continue;
        float v[V] = {}, old[V];
        TO *to = y + (HOW == SCATTER ? at : i) * C + c;
        if (there) load_floats<V>(v, x + (HOW == SCATTER ? i : at) * C + c);
        if (HOW == ADD) {
            load_floats<V>(old, to);
            for (int k = 0; k < V; k++) v[k] += old[k];
        }
        store_floats<V>(to, v);
    }
}

template <by_index HOW, typename TO, typename FROM>
static void by_index_typed(struct backend *be, const char *op, const struct tensor *y, const struct tensor *x,
                           const struct tensor *index, index_check check) {
    constexpr int V = vector_of<TO>();
    TO *to = static_cast<TO *>(y->data);
    const FROM *from = static_cast<const FROM *>(x->data);
    const int32_t *at = static_cast<const int32_t *>(index->data);
    int64_t N = index->dim[0], C = y->dim[1];
    if (C % V == 0 && fits16(to) && fits16(from)) {
        rows_grid g = rows_grid_of(be, N, C, V);
        launch(be, op, by_index_kernel<HOW, V, TO, FROM>, g.grid, g.block, 0, to, from, at, check, N, C);
    } else {
        rows_grid g = rows_grid_of(be, N, C, 1);
        launch(be, op, by_index_kernel<HOW, 1, TO, FROM>, g.grid, g.block, 0, to, from, at, check, N, C);
    }
}

template <by_index HOW, typename TO>
static void by_index_to(struct backend *be, const char *op, const struct tensor *y, const struct tensor *x,
                        const struct tensor *index, index_check check) {
    if (x->type == F32)
        by_index_typed<HOW, TO, float>(be, op, y, x, index, check);
    else if (x->type == BF16)
        by_index_typed<HOW, TO, bf16_t>(be, op, y, x, index, check);
    else
        by_index_typed<HOW, TO, __half>(be, op, y, x, index, check);
}

template <by_index HOW>
static void by_index_run(struct backend *be, const char *op, const struct tensor *y, const struct tensor *x,
                         const struct tensor *index, int64_t low, int64_t limit) {
    index_check check = cuda_index_check(be, op, low, limit);
    if (y->type == BF16)
        by_index_to<HOW, bf16_t>(be, op, y, x, index, check);
    else
        by_index_to<HOW, float>(be, op, y, x, index, check);
}

void cuda_gather_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    by_index_run<GATHER>(be, "gather_rows", y, x, index, -1, x->dim[0]);
}

void cuda_embed_forward(struct backend *be, const struct tensor *y, const struct tensor *table,
                        const struct tensor *ids) {
    by_index_run<GATHER>(be, "embed_forward", y, table, ids, -1, table->dim[0]);
}

void cuda_scatter_rows(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *index) {
    by_index_run<SCATTER>(be, "scatter_rows", y, x, index, -1, y->dim[0]);
}

void cuda_add_rows(struct backend *be, const struct tensor *y, const struct tensor *table, const struct tensor *index) {
    by_index_run<ADD>(be, "add_rows", y, table, index, 0, table->dim[0]);
}

/* --- the gradient of an embedding --------------------------------------------------------------------------------- */

enum { EMBED_THREADS = 256 };

/* gtable (V,C) += rows of dy (N,C). Block i is of position i: where its id stands for the first time, it adds the rows
 * of all positions with that id, in their order; else it does nothing. All threads look through the ids together, a
 * bit for each. */
template <typename T>
__global__ void __launch_bounds__(EMBED_THREADS)
    embed_backward_kernel(float *gtable, const T *dy, const int32_t *ids, index_check check, int64_t N, int64_t C) {
    SHARED(unsigned, found, EMBED_THREADS / WARP);
    int64_t position = blockIdx.x;
    int id = ids[position];
    if (id < 0 || id >= check.limit) {
        if (threadIdx.x == 0) index_fits(check, position, id);
        return;
    }
    for (int64_t first = 0; first < N; first += EMBED_THREADS) {
        int64_t mine = first + threadIdx.x;
        unsigned bits = __ballot_sync(0xffffffffu, mine < N && ids[mine] == id);
        if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = bits;
        __syncthreads();
        for (int w = 0; w < EMBED_THREADS / WARP; w++)
            for (unsigned rest = found[w]; rest; rest &= rest - 1) {
                int64_t n = first + w * WARP + __ffs(rest) - 1;
                if (n < position) return; // the same for all threads: an earlier block does it
                for (int64_t c = threadIdx.x; c < C; c += EMBED_THREADS) gtable[id * C + c] += to_float(dy[n * C + c]);
            }
        __syncthreads();
    }
}

template <typename T>
static void embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                           const struct tensor *ids) {
    launch(be, "embed_backward", embed_backward_kernel<T>, blocks_for(ids->dim[0], 1), EMBED_THREADS, 0,
           static_cast<float *>(gtable->data), static_cast<const T *>(dy->data),
           static_cast<const int32_t *>(ids->data), cuda_index_check(be, "embed_backward", -1, gtable->dim[0]),
           ids->dim[0], dy->dim[1]);
}

void cuda_embed_backward(struct backend *be, const struct tensor *gtable, const struct tensor *dy,
                         const struct tensor *ids) {
    if (dy->type == BF16)
        embed_backward<bf16_t>(be, gtable, dy, ids);
    else
        embed_backward<float>(be, gtable, dy, ids);
}

/* --- pictures, noise --------------------------------------------------------------------------------------------- */

/* One thread per number of y (n*down*across, 3*p*p). */
template <typename T>
__global__ void __launch_bounds__(SPAN_THREADS)
    patchify_kernel(T *y, const float *pixels, int64_t count, int height, int width, int p) {
    int down = height / p, across = width / p, each = 3 * p * p;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * SPAN_THREADS + threadIdx.x; i < count;
         i += static_cast<int64_t>(gridDim.x) * SPAN_THREADS) {
        int64_t patch = i / each, image = patch / (down * across);
        int value = int(i % each), place = int(patch % (down * across));
        int channel = value / (p * p), row = value / p % p + place / across * p, col = value % p + place % across * p;
        y[i] = from_float<T>(pixels[((image * 3 + channel) * height + row) * width + col]);
    }
}

void cuda_patchify(struct backend *be, const struct tensor *y, const struct tensor *pixels, int64_t height,
                   int64_t width, int64_t patch) {
    int64_t count = tensor_count(y);
    const float *from = static_cast<const float *>(pixels->data);
    if (y->type == BF16)
        launch(be, "patchify", patchify_kernel<bf16_t>, span_blocks(be, count), SPAN_THREADS, 0,
               static_cast<bf16_t *>(y->data), from, count, int(height), int(width), int(patch));
    else
        launch(be, "patchify", patchify_kernel<float>, span_blocks(be, count), SPAN_THREADS, 0,
               static_cast<float *>(y->data), from, count, int(height), int(width), int(patch));
}

/* 2 u - 1 for u = word * 2^-32 is the word less 2^31, read as a signed number, times 2^-31. */
template <typename T>
__global__ void __launch_bounds__(SPAN_THREADS)
    noise_kernel(T *x, const float *amplitude, random_stream random, int64_t N, int64_t C) {
    int64_t c = first_column<1>();
    if (c >= C) return;
    for (int64_t n = first_row(); n < N; n += row_step()) {
        uint32_t word[1];
        philox_words(word, random, n * C + c);
        float u = static_cast<float>(static_cast<int32_t>(word[0] ^ 0x80000000u)) * 0x1p-31f;
        x[n * C + c] = from_float<T>(to_float(x[n * C + c]) + amplitude[n] * u);
    }
}

void cuda_noise_add(struct backend *be, const struct tensor *x, const struct tensor *amplitude, uint64_t seed,
                    uint64_t stream) {
    int64_t N = x->dim[0], C = x->dim[1];
    rows_grid g = rows_grid_of(be, N, C, 1);
    const float *a = static_cast<const float *>(amplitude->data);
    random_stream random = {seed, stream};
    if (x->type == BF16)
        launch(be, "noise_add", noise_kernel<bf16_t>, g.grid, g.block, 0, static_cast<bf16_t *>(x->data), a, random, N,
               C);
    else
        launch(be, "noise_add", noise_kernel<float>, g.grid, g.block, 0, static_cast<float *>(x->data), a, random, N,
               C);
}

/* Sums over whole tensors: blocks sum parts that depend on the length alone, a second kernel adds the parts in their
 * order. */
#include "kernels/cuda/span.cuh"

enum { SUM_THREADS = 256, SUM_PARTS = 1024, SUM_LEAST = 8192 }; // elements of a part, at least

struct sum_plain {
    __device__ static float of(float x) { return x; }
};
struct sum_square {
    __device__ static float of(float x) { return x * x; }
};
struct sum_nonfinite {
    __device__ static float of(float x) { return isfinite(x) ? 0.0f : 1.0f; }
};

/* part (gridDim.x): block b sums elements b * each and on. */
template <typename F, int V, typename T>
__global__ void __launch_bounds__(SUM_THREADS) sum_parts_kernel(float *part, const T *x, int64_t n, int64_t each) {
    int64_t first = blockIdx.x * each, end = first + each < n ? first + each : n;
    float sum = 0;
    for (int64_t i = first + threadIdx.x * V; i < end; i += SUM_THREADS * V) {
        float v[V];
        if (i + V <= end) {
            load_floats<V>(v, x + i);
            for (int k = 0; k < V; k++) sum += F::of(v[k]);
        } else {
            for (int64_t k = i; k < end; k++) sum += F::of(to_float(x[k]));
        }
    }
    sum = block_sum<SUM_THREADS>(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

/* One block: *total += the sum of part (parts), by halves. */
__global__ void __launch_bounds__(SUM_THREADS) sum_add_kernel(float *total, const float *part, int parts) {
    SHARED(double, sums, SUM_THREADS);
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += SUM_THREADS) sum += static_cast<double>(part[i]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned d = SUM_THREADS / 2; d > 0; d /= 2) {
        if (threadIdx.x < d) sums[threadIdx.x] += sums[threadIdx.x + d];
        __syncthreads();
    }
    if (threadIdx.x == 0) *total += static_cast<float>(sums[0]);
}

template <typename F, typename T>
static void sum_typed(struct backend *be, const char *what, const struct tensor *total, const struct tensor *x) {
    constexpr int V = vector_of<T>();
    int64_t n = tensor_count(x), each = (n + SUM_PARTS - 1) / SUM_PARTS;
    each = each < SUM_LEAST ? int64_t(SUM_LEAST) : (each + V - 1) / V * V;
    unsigned parts = blocks_for(n, each);
    float *part = reinterpret_cast<float *>(cuda_of(be)->scratch), *sum = static_cast<float *>(total->data);
    const T *values = static_cast<const T *>(x->data);
    if (parts == 0) return;
    if (fits16(values))
        launch(be, what, sum_parts_kernel<F, V, T>, parts, SUM_THREADS, 0, part, values, n, each);
    else
        launch(be, what, sum_parts_kernel<F, 1, T>, parts, SUM_THREADS, 0, part, values, n, each);
    launch(be, what, sum_add_kernel, 1, SUM_THREADS, 0, sum, part, int(parts));
}

void cuda_sum_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    sum_typed<sum_plain, float>(be, "sum_add", total, x);
}

void cuda_sum_squares_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    sum_typed<sum_square, float>(be, "sum_squares_add", total, x);
}

void cuda_count_nonfinite_add(struct backend *be, const struct tensor *total, const struct tensor *x) {
    if (x->type == BF16)
        sum_typed<sum_nonfinite, bf16_t>(be, "count_nonfinite_add", total, x);
    else
        sum_typed<sum_nonfinite, float>(be, "count_nonfinite_add", total, x);
}

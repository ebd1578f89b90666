/* From the weights of a model to dense slices: each 4-bit element, or dense one of another type, becomes a number that
 * a matrix product takes. */
#include "kernels/cuda/q4.cuh"

enum { THREADS = 256, EACH = 4 }; // runs of a thread

static int log2_of(int64_t x) {
    int n = 0;
    while (x > 1) x >>= 1, n++;
    return n;
}

struct weight weight_of(const struct tensor *W, enum dtype round) {
    struct weight w = {};
    w.data = W->data;
    w.stride = W->dim[1];
    w.round = round;
    const struct q4 *q = W->q4;
    if (!q) return w;
    w.shift = log2_of(q->blocksize);
    w.nested_shift = log2_of(q->nested_blocksize);
    w.offset = q->nested_offset;
    w.code = q->code, w.absmax = q->absmax;
    w.nested_absmax = q->nested_absmax, w.nested_code = q->nested_code;
    w.absmax8 = q->absmax8;
    return w;
}

bool weight_aligned(const struct tensor *W) {
    return W->dim[1] % RUN == 0 && reinterpret_cast<uintptr_t>(W->data) % (W->q4 ? 4 : 16) == 0;
}

/* --- slices ------------------------------------------------------------------------------------------------------ */

template <typename T> __device__ inline void store_run(T *dst, const float (&v)[RUN], int count, bool whole) {
    if (!whole) {
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (i < count) dst[i] = from_float<T>(v[i]);
        return;
    }
    for (int part = 0; part < static_cast<int>(sizeof(T) / 2); part++) {
        vec16<T> out;
#pragma unroll
        for (int i = 0; i < vec16<T>::count; i++) out.at[i] = from_float<T>(v[part * vec16<T>::count + i]);
        store16(dst + part * vec16<T>::count, out);
    }
}

/* Where a slice lies in its weight, and in memory. */
struct slice {
    int64_t first; // element of the weight
    int64_t ld;
    unsigned cols, runs, count; // runs: of a row; count: of all
};

/* A block takes THREADS * EACH runs, a thread every THREADS-th of them: a warp reads 32 neighbouring runs and writes
 * them. All loads of a thread come before the first store. Bound by memory: the bytes of W and those of dst. */
template <typename T, typename W, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) slice_kernel(T *dst, struct weight w, struct slice s) {
    SHARED(float, codes, CODES);
    codes_load<W>(codes, w);
    float v[EACH][RUN];
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        unsigned i = (blockIdx.x * EACH + j) * THREADS + threadIdx.x, row = i / s.runs, col = i % s.runs * RUN;
        int count = i < s.count ? static_cast<int>(min(s.cols - col, static_cast<unsigned>(RUN))) : 0;
        run_read<W, ALIGNED>(v[j], w, codes, s.first + row * w.stride + col, count);
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        unsigned i = (blockIdx.x * EACH + j) * THREADS + threadIdx.x, row = i / s.runs, col = i % s.runs * RUN;
        int count = i < s.count ? static_cast<int>(min(s.cols - col, static_cast<unsigned>(RUN))) : 0;
        if (count > 0) store_run(dst + row * s.ld + col, v[j], count, ALIGNED);
    }
}

template <typename T, typename W>
static void launch_slice(struct backend *be, void *dst, const struct weight &w, const struct slice &s, bool aligned,
                         const char *what) {
    launch(be, what, aligned ? slice_kernel<T, W, true> : slice_kernel<T, W, false>,
           blocks_for(s.count, THREADS * EACH), THREADS, 0, static_cast<T *>(dst), w, s);
}

template <typename T>
static void launch_from(struct backend *be, void *dst, enum dtype from, const struct weight &w, const struct slice &s,
                        bool aligned, const char *what) {
    if (from == F32)
        launch_slice<T, float>(be, dst, w, s, aligned, what);
    else if (from == BF16)
        launch_slice<T, bf16_t>(be, dst, w, s, aligned, what);
    else if (from == F16)
        launch_slice<T, __half>(be, dst, w, s, aligned, what);
    else
        launch_slice<T, nibbles>(be, dst, w, s, aligned, what);
}

/* Rows in pieces of so many that runs are counted in 32 bits. */
void cuda_weight_slice(struct backend *be, void *dst, enum dtype to, int64_t ld, const struct tensor *W,
                       enum dtype round, int64_t row, int64_t rows, int64_t col, int64_t cols, const char *what) {
    struct weight w = weight_of(W, round);
    size_t size = dtype_size(to);
    bool aligned = weight_aligned(W) && col % RUN == 0 && cols % RUN == 0 && ld % RUN == 0 &&
                   reinterpret_cast<uintptr_t>(dst) % 16 == 0;
    const int64_t runs = (cols + RUN - 1) / RUN, most = runs ? (int64_t{1} << 30) / runs : 1;
    for (int64_t r = 0; r < rows && runs > 0; r += most) {
        int64_t n = most < rows - r ? most : rows - r;
        struct slice s = {(row + r) * w.stride + col, ld, static_cast<unsigned>(cols), static_cast<unsigned>(runs),
                          static_cast<unsigned>(n * runs)};
        void *at = static_cast<char *>(dst) + static_cast<size_t>(r * ld) * size;
        if (to == F32)
            launch_from<float>(be, at, W->type, w, s, aligned, what);
        else if (to == BF16)
            launch_from<bf16_t>(be, at, W->type, w, s, aligned, what);
        else
            launch_from<__half>(be, at, W->type, w, s, aligned, what);
    }
}

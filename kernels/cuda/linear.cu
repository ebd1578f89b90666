/* The linear layer on frozen weights. Where W is not of the type of the product, a slice of it at a time is expanded
 * into scratch, small enough to be still in cache when it is multiplied.
 *
 * Forward, a slice is a set of rows of W and makes columns of y; backward, a set of columns of W makes columns of dx:
 * so an element of the result is one product, and rounded once. Only gradients in F32 of BF16 activations are cut along
 * the sum, with dx in F32 until it is complete. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/ops_cuda.cuh"
#include "kernels/cuda/product.cuh"

enum { ROUND_TO = 64 }; // slices are multiples of so many lines, so that they begin and end aligned

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t padded(int64_t cols) { return divide_up(cols, RUN) * RUN; }

/* So many of `count` lines at a time, of one width as nearly as may be, that they take no more than `room` bytes, and
 * that many lines padded do not either. */
static int64_t slice_width(int64_t count, int64_t line_bytes, size_t room) {
    int64_t most = static_cast<int64_t>(room) / (line_bytes > 0 ? line_bytes : 1);
    if (most >= padded(count)) return count > 0 ? count : 1;
    if (most < ROUND_TO) return most >= RUN ? most / RUN * RUN : most > 0 ? most : 1;
    int64_t pieces = divide_up(count, most / ROUND_TO * ROUND_TO);
    return divide_up(divide_up(count, pieces), ROUND_TO) * ROUND_TO;
}

static char *place(struct backend *be, size_t at) { return cuda_of(be)->scratch + at; }

/* Rows and columns of W in type `to`: where they lie, or expanded at `at` in scratch. */
static const void *slice_of(struct backend *be, const struct tensor *W, enum dtype to, enum dtype round, size_t at,
                            int64_t row, int64_t rows, int64_t col, int64_t cols, int64_t *ld, const char *what) {
    if (W->type == to) {
        *ld = W->dim[1];
        return static_cast<const char *>(W->data) + static_cast<size_t>(row * W->dim[1] + col) * dtype_size(to);
    }
    *ld = padded(cols);
    cuda_note(be, "expanding of weights");
    cuda_weight_slice(be, place(be, at), to, *ld, W, round, row, rows, col, cols, what);
    cuda_note(be, what);
    return place(be, at);
}

/* The bias of columns [col,..) as cuBLASLt takes it, in the type of y. */
static const void *bias_of(struct backend *be, const struct tensor *b, enum dtype type, int64_t col, int64_t cols,
                           const char *what) {
    const float *from = static_cast<const float *>(b->data) + col;
    if (type == F32) return from;
    struct tensor row = tensor_over2(const_cast<float *>(from), F32, 1, cols);
    cuda_weight_slice(be, place(be, THIRD_PLACE), type, padded(cols), &row, F32, 0, 1, 0, cols, what);
    return place(be, THIRD_PLACE);
}

void cuda_linear_forward(struct backend *be, const struct tensor *y, const struct tensor *x, const struct tensor *W,
                         const struct tensor *b, float beta) {
    const char *what = "linear_forward";
    if (gemv_takes(x, W)) {
        gemv(be, y, x, W, b, beta, what);
        return;
    }
    int64_t N = x->dim[0], O = W->dim[0], I = W->dim[1], size = static_cast<int64_t>(dtype_size(x->type));
    int64_t width = W->type == x->type ? O : slice_width(O, padded(I) * size, 2 * PLACE_BYTES);
    if (b && y->type == BF16) width = least(width, PLACE_BYTES / sizeof(bf16_t));
    for (int64_t o = 0; o < O && N > 0; o += width) {
        struct product p = {};
        p.m = N, p.n = least(width, O - o), p.k = I;
        p.A = x->data, p.a_type = x->type, p.lda = I;
        p.B = slice_of(be, W, x->type, F32, FIRST_PLACE, o, p.n, 0, I, &p.ldb, what);
        p.b_type = x->type, p.tb = true;
        p.C = static_cast<char *>(y->data) + static_cast<size_t>(o) * dtype_size(y->type);
        p.c_type = y->type, p.ldc = O;
        p.bias = b ? bias_of(be, b, y->type, o, p.n, what) : nullptr;
        p.alpha = 1, p.beta = beta;
        cuda_product(be, &p, what);
    }
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

static void backward_by_columns(struct backend *be, const struct tensor *dx, const struct tensor *dy,
                                const struct tensor *W, float beta, const char *what) {
    int64_t N = dy->dim[0], O = W->dim[0], I = W->dim[1], size = static_cast<int64_t>(dtype_size(dx->type));
    int64_t width = W->type == dx->type ? I : slice_width(I, O * size, 2 * PLACE_BYTES);
    for (int64_t i = 0; i < I && N > 0; i += width) {
        struct product p = {};
        p.m = N, p.n = least(width, I - i), p.k = O;
        p.A = dy->data, p.a_type = dy->type, p.lda = O;
        p.B = slice_of(be, W, dx->type, weight_source(W), FIRST_PLACE, 0, O, i, p.n, &p.ldb, what);
        p.b_type = dx->type;
        p.C = static_cast<char *>(dx->data) + static_cast<size_t>(i * size);
        p.c_type = dx->type, p.ldc = I;
        p.alpha = 1, p.beta = beta;
        cuda_product(be, &p, what);
    }
}

/* dx = sum + beta * dx. */
__global__ void finish_kernel(bf16_t *dx, const float *sum, float beta, int64_t count) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) dx[i] = from_float<bf16_t>(beta != 0.0f ? sum[i] + to_float(dx[i]) : sum[i]);
}

/* Rows [row, row + rows) of dx, of which there are so few that they fit in scratch in F32: a slice of dy at a time is
 * rounded to BF16, and its product added. */
static void backward_rows(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                          float beta, int64_t row, int64_t rows, const char *what) {
    enum { THREADS = 256 };
    int64_t O = W->dim[0], I = W->dim[1], line = rows > padded(I) || W->type == BF16 ? rows : padded(I);
    int64_t width = slice_width(O, line * static_cast<int64_t>(sizeof(bf16_t)), PLACE_BYTES);
    bf16_t *to = static_cast<bf16_t *>(dx->data) + row * I;
    float *sum = reinterpret_cast<float *>(place(be, THIRD_PLACE));
    for (int64_t o = 0; o == 0 || o < O; o += width) {
        struct product p = {};
        p.m = rows, p.n = I, p.k = least(width, O - o);
        p.A = place(be, FIRST_PLACE), p.a_type = BF16, p.lda = padded(p.k);
        cuda_weight_slice(be, place(be, FIRST_PLACE), BF16, p.lda, dy, F32, row, rows, o, p.k, what);
        p.B = slice_of(be, W, BF16, weight_source(W), SECOND_PLACE, o, p.k, 0, I, &p.ldb, what), p.b_type = BF16;
        p.C = width < O ? static_cast<void *>(sum) : to;
        p.c_type = width < O ? F32 : BF16, p.ldc = I;
        p.alpha = 1, p.beta = width < O ? (o > 0 ? 1.0f : 0.0f) : beta;
        cuda_product(be, &p, what);
    }
    if (width < O) launch(be, what, finish_kernel, blocks_for(rows * I, THREADS), THREADS, 0, to, sum, beta, rows * I);
}

void cuda_linear_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *W,
                          float beta) {
    const char *what = "linear_backward";
    if (dy->type == dx->type) {
        backward_by_columns(be, dx, dy, W, beta, what);
        return;
    }
    int64_t N = dy->dim[0], rows = slice_width(N, padded(W->dim[1]) * static_cast<int64_t>(sizeof(float)), PLACE_BYTES);
    for (int64_t n = 0; n < N; n += rows) backward_rows(be, dx, dy, W, beta, n, least(rows, N - n), what);
}

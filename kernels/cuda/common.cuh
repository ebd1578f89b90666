/* What every file of the CUDA backend includes, and its only way to graft's C headers.
 *
 * Activations are float or bf16, parameters float, sums float: a kernel is a template over the type of its activations,
 * and the op chooses by tensor type. Ops are asynchronous on the backend's one stream. Blocks never wait for each
 * other, and a result is never added to by atomics: same inputs, same bits. */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include <device.cuh>

extern "C" {
#include "base/arena.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/tensor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/ops.h"
#include "kernels/ops_table.h"
#include "quant/block.h"
#include "quant/q4.h"
}

using bf16_t = __nv_bfloat16;

struct cublaslt; // kernels/cuda/cublaslt.h
struct graphs;   // kernels/cuda/graphs.cuh

enum : size_t { CUDA_SCRATCH = 64u << 20 };

/* Indices (token ids, targets, positions) come from files. A kernel that meets one outside its range remembers the
 * first of the tensor here and goes on without it; backend_sync makes a sentence of it. */
enum { INDEX_CHECKS = 64 };

struct index_check {
    unsigned long long *first; // of the device: position << 32 | index, the least that any thread saw
    int64_t low, limit;        // low .. limit - 1 are good
};

struct checked_op { // the host's side of an index_check
    const char *name;
    int64_t low, limit;
};

/* Uploads pass through a ring of page-locked pieces: the copy of one is under way while the next is filled. */
enum : size_t { STAGING_BYTES = 4u << 20 };
enum { STAGING_PIECES = 4 };

struct staging {
    char *bytes; // (STAGING_PIECES, STAGING_BYTES)
    cudaEvent_t sent[STAGING_PIECES];
    int piece;   // being filled
    size_t used; // of it
};

/* With a profile, moments on the stream: what is between one and the next was for ops[i], or for none. */
enum { MARKS = 512 };

struct marks {
    cudaEvent_t at[MARKS];
    const char *ops[MARKS];
    int count;
};

struct cuda_backend {
    struct backend base; // first, so that a struct backend * of this kind may be cast
    int device;
    int processors;      // streaming multiprocessors
    size_t block_shared; // bytes of shared memory that a block may have
    cudaStream_t stream, copies;
    cudaEvent_t issued, copied; // ops that the next copy follows; copies that the next op follows
    struct cublaslt *blas;
    struct graphs *graphs;
    char *scratch;               // CUDA_SCRATCH bytes of the device: what one op hands from kernel to kernel
    unsigned long long *indices; // (INDEX_CHECKS) of the device, behind scratch
    struct checked_op checked[INDEX_CHECKS];
    int checks; // in use since the last sync
    struct staging staging;
    struct marks *marks; // NULL without a profile
    char name[16], about[512];
};

enum { WARP = 32 };

static inline struct cuda_backend *cuda_of(struct backend *be) { return reinterpret_cast<struct cuda_backend *>(be); }

/* Remembers the first failure in be->err. */
void cuda_check(struct backend *be, cudaError_t result, const char *what);

/* Part of an op, by another name, takes the time from here on. */
void cuda_note(struct backend *be, const char *what);

/* Where kernels of the op named are to leave an index that is not in low .. limit - 1. */
struct index_check cuda_index_check(struct backend *be, const char *op, int64_t low, int64_t limit);

/* Remembers the index at a position as one that is not good. */
__device__ inline void index_refuse(const struct index_check &check, int64_t position, int index) {
    atomicMin(check.first, static_cast<unsigned long long>(position) << 32 | static_cast<unsigned>(index));
}

/* Whether the index at a position is good; if not, that is remembered. */
__device__ inline bool index_fits(const struct index_check &check, int64_t position, int index) {
    if (index >= check.low && index < check.limit) return true;
    index_refuse(check, position, index);
    return false;
}

enum { LAUNCH_ARGUMENTS = 16 };

/* A launch of the kernel, whose `count` arguments have these sizes; they are copied. In graphs.cu. */
void graphs_kernel(struct backend *be, const char *what, const void *kernel, dim3 grid, dim3 block, size_t shared,
                   int count, const size_t *sizes, const void *const *arguments);

/* One launch on the backend's stream, now or with those that follow; nothing when the grid is empty. `what` names the
 * op in an error. */
template <typename... P>
void launch(struct backend *be, const char *what, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            typename same_type<P>::type... args) {
    static_assert((__is_trivially_copyable(P) && ...), "arguments of a kernel are copied as bytes");
    static_assert(sizeof...(P) <= LAUNCH_ARGUMENTS, "a call has room for so many");
    const size_t sizes[] = {sizeof(P)...};
    const void *const addresses[] = {&args...};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    graphs_kernel(be, what, device_kernel(kernel), grid, block, shared, sizeof...(P), sizes, addresses);
}

/* --- numbers ----------------------------------------------------------------------------------------------------- */

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }

/* Element i of a tensor whose type, F32 or BF16, is known at run time only. */
__device__ inline float value_at(const void *p, enum dtype type, int64_t i) {
    return type == F32 ? static_cast<const float *>(p)[i] : to_float(static_cast<const __nv_bfloat16 *>(p)[i]);
}

__device__ inline void value_put(void *p, enum dtype type, int64_t i, float x) {
    if (type == F32)
        static_cast<float *>(p)[i] = x;
    else
        static_cast<__nv_bfloat16 *>(p)[i] = from_float<__nv_bfloat16>(x);
}

/* 16 bytes of T, loaded and stored at once. */
template <typename T> struct alignas(16) vec16 {
    static constexpr int count = 16 / sizeof(T);
    T at[count];
};

template <typename T> __device__ inline vec16<T> load16(const T *p) { return *reinterpret_cast<const vec16<T> *>(p); }
template <typename T> __device__ inline void store16(T *p, const vec16<T> &v) { *reinterpret_cast<vec16<T> *>(p) = v; }

/* --- sums in a fixed order --------------------------------------------------------------------------------------- */

__device__ inline float warp_sum(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* The sum over the block, for every thread; THREADS is a multiple of WARP. All threads must come. */
template <int THREADS> __device__ inline float block_sum(float x) {
    SHARED(float, parts, THREADS / WARP);
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < THREADS / WARP; i++) sum += parts[i];
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ inline float block_max(float x) {
    SHARED(float, parts, THREADS / WARP);
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = parts[0];
    for (int i = 1; i < THREADS / WARP; i++) most = fmaxf(most, parts[i]);
    __syncthreads();
    return most;
}

static inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

#endif

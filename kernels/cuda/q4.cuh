/* Weights as kernels read them: dense or 4-bit, in runs of 8 elements of a row. A run that is aligned is loaded at once
 * and lies in one block of a 4-bit weight; the plain way takes any.
 *
 * The value of a 4-bit element is code * absmax in one fp32 rounding, with absmax as quant/q4.h says, then rounded to
 * the 16-bit type that the use of the weight asks for. The bits are those of quant/block.c. */
#ifndef KERNELS_CUDA_Q4_CUH
#define KERNELS_CUDA_Q4_CUH

#include "kernels/cuda/common.cuh"

enum { RUN = 8, CODES = 16 };

/* Stands for the type of a 4-bit weight in templates. */
struct nibbles {
    uint8_t pair;
};

template <typename A, typename B> struct same_as { static constexpr bool yes = false; };
template <typename A> struct same_as<A, A> { static constexpr bool yes = true; };

/* A weight whose pointers are the device's; made from a tensor by weight_of. */
struct weight {
    const void *data;
    int64_t stride;          // elements from a row to the next
    enum dtype round;        // type that values are rounded to; F32: none
    int shift, nested_shift; // log2 of the block sizes
    float offset;
    const float *code, *absmax, *nested_absmax, *nested_code;
    const uint8_t *absmax8;
};

struct weight weight_of(const struct tensor *W, enum dtype round);

/* The type that values of a 4-bit weight are rounded to where they are those of the weight that was quantised. */
static inline enum dtype weight_source(const struct tensor *W) { return W->q4 ? W->q4->source : F32; }

/* Whether runs of this matrix that start at multiples of 8 in a row are aligned. */
bool weight_aligned(const struct tensor *W);

/* dst (rows,cols), ld apart, F32, BF16 or F16 = rows [row,..) and columns [col,..) of W, rounded first to `round`. */
void cuda_weight_slice(struct backend *be, void *dst, enum dtype to, int64_t ld, const struct tensor *W,
                       enum dtype round, int64_t row, int64_t rows, int64_t col, int64_t cols, const char *what);

/* --- 4-bit ------------------------------------------------------------------------------------------------------- */

/* absmax of a block: product and sum are two roundings. */
__device__ inline float weight_scale(const struct weight &w, int64_t block) {
    if (w.absmax) return w.absmax[block];
    float scaled = __fmul_rn(w.nested_code[w.absmax8[block]], w.nested_absmax[block >> w.nested_shift]);
    return __fadd_rn(scaled, w.offset);
}

__device__ inline float rounded(float x, enum dtype type) {
    if (type == BF16) return __bfloat162float(__float2bfloat16_rn(x));
    return type == F16 ? __half2float(__float2half_rn(x)) : x;
}

/* The codes in shared memory, where sixteen of them do not get in each other's way. Ends with a barrier. */
template <typename W> __device__ inline void codes_load(float *codes, const struct weight &w) {
    if (same_as<W, nibbles>::yes && threadIdx.x < CODES) codes[threadIdx.x] = w.code[threadIdx.x];
    __syncthreads();
}

/* --- aligned runs ------------------------------------------------------------------------------------------------ */

template <typename W> struct run { vec16<W> part[sizeof(W) / 2]; };

template <> struct run<nibbles> {
    uint32_t codes;
    float scale;
};

/* Elements at .. at + 7 of the flat weight. */
template <typename W> __device__ inline void run_load(struct run<W> &r, const struct weight &w, int64_t at) {
    const W *p = static_cast<const W *>(w.data) + at;
    for (int i = 0; i < static_cast<int>(sizeof(W) / 2); i++) r.part[i] = load16(p + i * vec16<W>::count);
}

template <> __device__ inline void run_load<nibbles>(struct run<nibbles> &r, const struct weight &w, int64_t at) {
    r.codes = *reinterpret_cast<const uint32_t *>(static_cast<const uint8_t *>(w.data) + at / 2);
    r.scale = weight_scale(w, at >> w.shift);
}

/* N runs that begin at these elements. All codes are asked for before the first scale, whose load waits. */
template <typename W, int N>
__device__ inline void runs_load(struct run<W> (&r)[N], const struct weight &w, const int64_t (&at)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) run_load(r[i], w, at[i]);
}

template <int N>
__device__ inline void runs_load(struct run<nibbles> (&r)[N], const struct weight &w, const int64_t (&at)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        r[i].codes = *reinterpret_cast<const uint32_t *>(static_cast<const uint8_t *>(w.data) + at[i] / 2);
#pragma unroll
    for (int i = 0; i < N; i++) r[i].scale = weight_scale(w, at[i] >> w.shift);
}

template <typename W>
__device__ inline void run_values(float (&v)[RUN], const struct run<W> &r, const float *, enum dtype round) {
#pragma unroll
    for (int i = 0; i < RUN; i++) v[i] = rounded(to_float(r.part[i / vec16<W>::count].at[i % vec16<W>::count]), round);
}

/* Byte j has element 2j in its high half. */
template <>
__device__ inline void run_values<nibbles>(float (&v)[RUN], const struct run<nibbles> &r, const float *codes,
                                           enum dtype round) {
#pragma unroll
    for (int i = 0; i < RUN; i++)
        v[i] = rounded(__fmul_rn(codes[r.codes >> (8 * (i / 2) + (i % 2 ? 0 : 4)) & 15], r.scale), round);
}

/* --- any run ----------------------------------------------------------------------------------------------------- */

template <typename W> __device__ inline float weight_value(const struct weight &w, const float *, int64_t at) {
    return to_float(static_cast<const W *>(w.data)[at]);
}

template <> __device__ inline float weight_value<nibbles>(const struct weight &w, const float *codes, int64_t at) {
    unsigned pair = static_cast<const uint8_t *>(w.data)[at / 2];
    return __fmul_rn(codes[at % 2 ? pair & 15 : pair >> 4], weight_scale(w, at >> w.shift));
}

/* The first `count` of the elements at .. at + 7, zeros after them. */
template <typename W, bool ALIGNED>
__device__ inline void run_read(float (&v)[RUN], const struct weight &w, const float *codes, int64_t at, int count) {
    if (ALIGNED && count > 0) {
        struct run<W> r;
        run_load(r, w, at);
        run_values(v, r, codes, w.round);
        return;
    }
#pragma unroll
    for (int i = 0; i < RUN; i++)
        v[i] = !ALIGNED && i < count ? rounded(weight_value<W>(w, codes, at + i), w.round) : 0.0f;
}

#endif

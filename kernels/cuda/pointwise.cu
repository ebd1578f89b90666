/* Activations, gated activations, dropout: y = f(x) element by element, forward beside backward. */
#include <math.h>

#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/span.cuh"

/* --- f and f', side by side --------------------------------------------------------------------------------------- */

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <enum activation> __device__ float value_of(float x);
template <enum activation> __device__ float slope_of(float x);

template <> __device__ inline float value_of<ACT_SILU>(float x) { return x * sigmoid(x); }
template <> __device__ inline float slope_of<ACT_SILU>(float x) {
    float s = sigmoid(x);
    return s + x * s * (1.0f - s);
}

template <> __device__ inline float value_of<ACT_GELU>(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
template <> __device__ inline float slope_of<ACT_GELU>(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
}

/* (1 + tanh u) / 2 is sigmoid(2u), without the loss of bits in the sum. */
template <> __device__ inline float value_of<ACT_GELU_TANH>(float x) {
    return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}
/* e = exp(-2u), bounded so that e s, which is 1 - s, stays finite. */
template <> __device__ inline float slope_of<ACT_GELU_TANH>(float x) {
    float e = expf(fminf(-1.59576912f * (x + 0.044715f * x * x * x), 80.0f)), s = 1.0f / (1.0f + e);
    return s + x * (e * s) * s * 1.59576912f * (1.0f + 0.134145f * x * x);
}

template <> __device__ inline float value_of<ACT_QUICK_GELU>(float x) { return x * sigmoid(1.702f * x); }
template <> __device__ inline float slope_of<ACT_QUICK_GELU>(float x) {
    float s = sigmoid(1.702f * x);
    return s + 1.702f * x * s * (1.0f - s);
}

template <> __device__ inline float value_of<ACT_RELU2>(float x) { return x < 0.0f ? 0.0f : x * x; }
template <> __device__ inline float slope_of<ACT_RELU2>(float x) { return x < 0.0f ? 0.0f : 2.0f * x; }

/* --- the four uses ------------------------------------------------------------------------------------------------ */

/* x -> y */
template <enum activation A> struct act_forward {
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[1][V], int64_t) const {
        for (int i = 0; i < V; i++) out[0][i] = value_of<A>(in[0][i]);
    }
};

/* dy, x -> dx */
template <enum activation A> struct act_backward {
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[2][V], int64_t) const {
        for (int i = 0; i < V; i++) out[0][i] = in[0][i] * slope_of<A>(in[1][i]);
    }
};

/* gate, up -> y */
template <enum activation A> struct glu_forward {
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[2][V], int64_t) const {
        for (int i = 0; i < V; i++) out[0][i] = value_of<A>(in[0][i]) * in[1][i];
    }
};

/* dy, gate, up -> dgate, dup */
template <enum activation A> struct glu_backward {
    template <int V> __device__ void apply(float (&out)[2][V], const float (&in)[3][V], int64_t) const {
        for (int i = 0; i < V; i++) {
            out[0][i] = in[0][i] * in[2][i] * slope_of<A>(in[1][i]);
            out[1][i] = in[0][i] * value_of<A>(in[1][i]);
        }
    }
};

/* One of the four uses, of the activation that is asked for. */
template <template <enum activation> class USE, int OUT, int IN>
static void run(struct backend *be, const char *what, enum activation f, const struct tensor *const (&out)[OUT],
                const struct tensor *const (&in)[IN]) {
    switch (f) {
    case ACT_SILU:
        return span_run(be, what, USE<ACT_SILU>(), out, in);
    case ACT_GELU:
        return span_run(be, what, USE<ACT_GELU>(), out, in);
    case ACT_GELU_TANH:
        return span_run(be, what, USE<ACT_GELU_TANH>(), out, in);
    case ACT_QUICK_GELU:
        return span_run(be, what, USE<ACT_QUICK_GELU>(), out, in);
    case ACT_RELU2:
        return span_run(be, what, USE<ACT_RELU2>(), out, in);
    }
}

void cuda_act_forward(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f) {
    run<act_forward, 1, 1>(be, "act_forward", f, {y}, {x});
}

void cuda_act_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                       enum activation f) {
    run<act_backward, 1, 2>(be, "act_backward", f, {dx}, {dy, x});
}

void cuda_glu_forward(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                      enum activation f) {
    run<glu_forward, 1, 2>(be, "glu_forward", f, {y}, {gate, up});
}

void cuda_glu_backward(struct backend *be, const struct tensor *dgate, const struct tensor *dup,
                       const struct tensor *dy, const struct tensor *gate, const struct tensor *up, enum activation f) {
    run<glu_backward, 2, 3>(be, "glu_backward", f, {dgate, dup}, {dy, gate, up});
}

/* --- dropout ------------------------------------------------------------------------------------------------------ */

struct mask_write {
    mask m;
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[1][V], int64_t at) const {
        m.kept(out[0], in[0], at);
    }
};

struct mask_add { // x, old -> y
    mask m;
    template <int V> __device__ void apply(float (&out)[1][V], const float (&in)[2][V], int64_t at) const {
        m.kept(out[0], in[0], at);
        for (int i = 0; i < V; i++) out[0][i] += in[1][i];
    }
};

void cuda_dropout(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    span_run<mask_write, 1, 1>(be, "dropout", {mask_of(d)}, {y}, {x});
}

void cuda_dropout_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    span_run<mask_add, 1, 2>(be, "dropout_add", {mask_of(d)}, {y}, {x, y});
}

/* Activations, gated activations, dropout: y = f(x) element by element, forward beside backward. */
#include <math.h>

#include "kernels/cpu/dropout.h"
#include "kernels/cpu/span.h"
#include "kernels/cpu/vecmath.h"

/* --- f and f', side by side --------------------------------------------------------------------------------------- */

static inline float silu(float x) { return x * vm_sigmoid(x); }

static inline float silu_slope(float x) {
    float s = vm_sigmoid(x);
    return s + x * s * (1.0f - s);
}

static inline float gelu(float x) { return 0.5f * x * (1.0f + vm_erf(x * 0.70710678f)); }

static inline float gelu_slope(float x) {
    return 0.5f * (1.0f + vm_erf(x * 0.70710678f)) + x * 0.39894228f * vm_exp(-0.5f * x * x);
}

/* (1 + tanh u) / 2 is sigmoid(2u), without the loss of bits in the sum. */
static inline float gelu_tanh(float x) { return x * vm_sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

/* e = exp(-2u), bounded so that e s, which is 1 - s, stays finite. */
static inline float gelu_tanh_slope(float x) {
    float t = -1.59576912f * (x + 0.044715f * x * x * x);
    float e = vm_exp(t > 80.0f ? 80.0f : t), s = 1.0f / (1.0f + e);
    return s + x * (e * s) * s * 1.59576912f * (1.0f + 0.134145f * x * x);
}

static inline float quick_gelu(float x) { return x * vm_sigmoid(1.702f * x); }

static inline float quick_gelu_slope(float x) {
    float s = vm_sigmoid(1.702f * x);
    return s + 1.702f * x * s * (1.0f - s);
}

static inline float relu2(float x) { return x < 0.0f ? 0.0f : x * x; }

static inline float relu2_slope(float x) { return x < 0.0f ? 0.0f : 2.0f * x; }

/* --- loops: one for each f, so that each becomes vector code ------------------------------------------------------ */

typedef void values_fn(float *y, const float *x, int n);

static void silu_values(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = silu(x[i]);
}

static void silu_slopes(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = silu_slope(x[i]);
}

static void gelu_values(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = gelu(x[i]);
}

static void gelu_slopes(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = gelu_slope(x[i]);
}

static void gelu_tanh_values(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = gelu_tanh(x[i]);
}

static void gelu_tanh_slopes(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = gelu_tanh_slope(x[i]);
}

static void quick_gelu_values(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = quick_gelu(x[i]);
}

static void quick_gelu_slopes(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = quick_gelu_slope(x[i]);
}

static void relu2_values(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = relu2(x[i]);
}

static void relu2_slopes(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = relu2_slope(x[i]);
}

static const struct {
    values_fn *values, *slopes;
} functions[] = {
    [ACT_SILU] = {silu_values, silu_slopes},
    [ACT_GELU] = {gelu_values, gelu_slopes},
    [ACT_GELU_TANH] = {gelu_tanh_values, gelu_tanh_slopes},
    [ACT_QUICK_GELU] = {quick_gelu_values, quick_gelu_slopes},
    [ACT_RELU2] = {relu2_values, relu2_slopes},
};

/* --- activations -------------------------------------------------------------------------------------------------- */

static void act_forward_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    functions[*(const enum activation *)settings].values(out[0], in[0], n);
}

void cpu_act_forward(struct backend *be, const struct tensor *y, const struct tensor *x, enum activation f) {
    span_run(be, &(struct span_op){act_forward_span, &f, {y}, {x}});
}

static void act_backward_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    float *dx = out[0], slope[CHUNK];
    const float *dy = in[0], *x = in[1];
    functions[*(const enum activation *)settings].slopes(slope, x, n);
#pragma omp simd
    for (int i = 0; i < n; i++) dx[i] = dy[i] * slope[i];
}

void cpu_act_backward(struct backend *be, const struct tensor *dx, const struct tensor *dy, const struct tensor *x,
                      enum activation f) {
    span_run(be, &(struct span_op){act_backward_span, &f, {dx}, {dy, x}});
}

static void glu_forward_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    float *y = out[0], value[CHUNK];
    const float *gate = in[0], *up = in[1];
    functions[*(const enum activation *)settings].values(value, gate, n);
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = value[i] * up[i];
}

void cpu_glu_forward(struct backend *be, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                     enum activation f) {
    span_run(be, &(struct span_op){glu_forward_span, &f, {y}, {gate, up}});
}

static void glu_backward_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    (void)at;
    float *dgate = out[0], *dup = out[1], value[CHUNK], slope[CHUNK];
    const float *dy = in[0], *gate = in[1], *up = in[2];
    functions[*(const enum activation *)settings].values(value, gate, n);
    functions[*(const enum activation *)settings].slopes(slope, gate, n);
#pragma omp simd
    for (int i = 0; i < n; i++) {
        float d = dy[i];
        dgate[i] = d * up[i] * slope[i];
        dup[i] = d * value[i];
    }
}

void cpu_glu_backward(struct backend *be, const struct tensor *dgate, const struct tensor *dup, const struct tensor *dy,
                      const struct tensor *gate, const struct tensor *up, enum activation f) {
    span_run(be, &(struct span_op){glu_backward_span, &f, {dgate, dup}, {dy, gate, up}});
}

/* --- dropout ------------------------------------------------------------------------------------------------------ */

static void dropout_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    dropout_line(out[0], in[0], settings, at, n);
}

void cpu_dropout(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    span_run(be, &(struct span_op){dropout_span, d, {y}, {x}});
}

static void dropout_add_span(const void *settings, float *const *out, const float *const *in, int64_t at, int n) {
    float kept[CHUNK], *y = out[0];
    const float *old = in[1];
    dropout_line(kept, in[0], settings, at, n);
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = old[i] + kept[i];
}

void cpu_dropout_add(struct backend *be, const struct tensor *y, const struct tensor *x, const struct dropout *d) {
    span_run(be, &(struct span_op){dropout_add_span, d, {y}, {x, y}});
}

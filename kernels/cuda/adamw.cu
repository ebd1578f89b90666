/* The optimizer: constants in double, elements in F32. */
#include <math.h>

#include "kernels/cuda/span.cuh"

/* p, m, v, g -> p, m, v */
struct adamw_element {
    float grad_scale, keep; // keep: 1 - lr * weight_decay
    float beta1, rest1, beta2, rest2;
    float root;      // 1 / sqrt(1 - beta2^step)
    float step, eps; // step: lr / (1 - beta1^step)

    template <int V> __device__ void apply(float (&out)[3][V], const float (&in)[4][V], int64_t) const {
        for (int i = 0; i < V; i++) {
            float g = grad_scale * in[3][i], m = beta1 * in[1][i] + rest1 * g, v = beta2 * in[2][i] + rest2 * g * g;
            out[0][i] = keep * in[0][i] - step * m / (sqrtf(v) * root + eps);
            out[1][i] = m;
            out[2][i] = v;
        }
    }
};

void cuda_adamw(struct backend *be, const struct tensor *p, const struct tensor *m, const struct tensor *v,
                const struct tensor *g, const struct adamw *h) {
    double bias1 = 1 - pow(h->beta1, static_cast<double>(h->step));
    double bias2 = 1 - pow(h->beta2, static_cast<double>(h->step));
    struct adamw_element f;
    f.grad_scale = static_cast<float>(h->grad_scale);
    f.keep = static_cast<float>(1 - h->lr * h->weight_decay);
    f.beta1 = static_cast<float>(h->beta1);
    f.rest1 = static_cast<float>(1 - h->beta1);
    f.beta2 = static_cast<float>(h->beta2);
    f.rest2 = static_cast<float>(1 - h->beta2);
    f.root = static_cast<float>(1 / sqrt(bias2));
    f.step = static_cast<float>(h->lr / bias1);
    f.eps = static_cast<float>(h->eps);
    span_run<adamw_element, 3, 4>(be, "adamw", f, {p, m, v}, {p, m, v, g});
}

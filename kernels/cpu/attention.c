#include "kernels/cpu/ops_cpu.h"
void cpu_attention_forward(struct backend *be, const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                           const struct tensor *k, const struct tensor *v, const struct attention *a) {
    (void)o, (void)lse, (void)q, (void)k, (void)v, (void)a;
    err_set(&be->err, ST_FAIL, "attention is not built");
}
void cpu_attention_backward(struct backend *be, const struct tensor *dq, const struct tensor *dk,
                            const struct tensor *dv, const struct tensor *delta, const struct tensor *dO,
                            const struct tensor *o, const struct tensor *lse, const struct tensor *q,
                            const struct tensor *k, const struct tensor *v, const struct attention *a) {
    (void)dq, (void)dk, (void)dv, (void)delta, (void)dO;
    cpu_attention_forward(be, o, lse, q, k, v, a);
}

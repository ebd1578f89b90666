/* Pointwise ops: the same position of every input and output. Work is cut into spans, spans into chunks that stay in
 * the first cache; types are converted at the edges, so an op is one loop over F32. */
#ifndef KERNELS_CPU_SPAN_H
#define KERNELS_CPU_SPAN_H

#include "kernels/cpu/ops_cpu.h"

enum { CHUNK = 1024, SPAN = 16 * CHUNK, SPAN_TENSORS = 5 };

/* Computes out[.][0..n) from in[.][0..n); they are elements at .. at + n of the tensors, `at` a multiple of CHUNK. An
 * output may be an input: each element is read before it is written, and loops say `omp simd` to promise just that. */
typedef void span_fn(const void *settings, float *const *out, const float *const *in, int64_t at, int n);

struct span_op {
    span_fn *fn;
    const void *settings;
    const struct tensor *out[SPAN_TENSORS]; // up to the first NULL
    const struct tensor *in[SPAN_TENSORS];
};

void span_run(struct backend *be, const struct span_op *op);

#endif

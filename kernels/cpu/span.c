#include "kernels/cpu/span.h"

#include "kernels/cpu/convert.h"

static void run_chunk(const struct span_op *op, int64_t at, int n) {
    float out_buffer[SPAN_TENSORS][CHUNK], in_buffer[SPAN_TENSORS][CHUNK];
    float *out[SPAN_TENSORS];
    const float *in[SPAN_TENSORS];
    for (int i = 0; i < SPAN_TENSORS && op->in[i]; i++) in[i] = floats_of(op->in[i], at, n, in_buffer[i]);
    for (int i = 0; i < SPAN_TENSORS && op->out[i]; i++) out[i] = floats_place(op->out[i], at, out_buffer[i]);
    op->fn(op->settings, out, in, at, n);
    for (int i = 0; i < SPAN_TENSORS && op->out[i]; i++) floats_store(op->out[i], at, n, out[i]);
}

static void span_task(void *arg, int64_t task, int thread) {
    (void)thread;
    const struct span_op *op = arg;
    int64_t count = tensor_count(op->out[0]), end = (task + 1) * SPAN < count ? (task + 1) * SPAN : count;
    for (int64_t at = task * SPAN; at < end; at += CHUNK) run_chunk(op, at, (int)(end - at < CHUNK ? end - at : CHUNK));
}

void span_run(struct backend *be, const struct span_op *op) {
    threads_for(be->threads, (tensor_count(op->out[0]) + SPAN - 1) / SPAN, span_task, (void *)op);
}

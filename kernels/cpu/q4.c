/* 4-bit weights made from dense ones: quant/block.h on the backend's threads. */
#include "kernels/cpu/ops_cpu.h"
#include "quant/block.h"

void cpu_quantize(struct backend *be, const struct tensor *W, const struct tensor *absmax, const struct tensor *x,
                  int blocksize) {
    block_quantize(W->data, absmax->data, x->data, x->type, x->dim[0], W->type, blocksize, be->threads);
}

void cpu_nest(struct backend *be, const struct tensor *absmax8, const struct tensor *nested_absmax,
              const struct tensor *offset, const struct tensor *absmax, const struct tensor *map) {
    *(float *)offset->data =
        block_nest(absmax8->data, nested_absmax->data, absmax->data, absmax->dim[0], map->data, be->threads);
}

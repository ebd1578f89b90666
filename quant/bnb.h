/* 4-bit weights as bitsandbytes stores them in safetensors files. Beside the packed NAME (U8, (ceil(n/2),1)) lie
 *     NAME.absmax                              F32 (blocks), or U8 (blocks) when double-quantised
 *     NAME.quant_map                           F32 (16)
 *     NAME.nested_absmax, NAME.nested_quant_map  F32 (ceil(blocks/256)), F32 (256); double-quantised only
 *     NAME.quant_state.bitsandbytes__nf4       U8: JSON with quant_type, blocksize, dtype, shape and, double-quantised,
 *                                              nested_blocksize, nested_dtype, nested_offset; or ...__fp4
 * NAME is that of the weight, e.g. "model.layers.0.mlp.up_proj.weight". */
#ifndef QUANT_BNB_H
#define QUANT_BNB_H

#include <stdbool.h>

#include "base/safetensors.h"
#include "base/status.h"
#include "base/tensor.h"
#include "quant/q4.h"

/* A weight that was read. Its numbers lie in the set's files, which must stay open; what lies there unaligned is a copy
 * that belongs to the struct. t.q4 points into the struct: it must not be moved or copied. */
struct q4_weight {
    struct tensor t; // (O,I) NF4 or FP4
    struct q4 q;
    void *owned[4];
};

bool bnb_is_4bit(const struct st_set *s, const char *name);
enum status bnb_read(struct q4_weight *w, const struct st_set *s, const char *name, struct err *e);
void bnb_release(struct q4_weight *w); // the copies; fine on a struct of zeros

/* Whether a tensor of a file belongs to another one, e.g. NAME.absmax. *stem: length of NAME. */
bool bnb_is_side(const char *name, size_t *stem);

/* The last part of the name of the quant_state: "bitsandbytes__nf4". */
const char *bnb_state_suffix(enum dtype type);

/* The JSON of the quant_state; with nested_offset, whose value does not change the length, when nested_blocksize is not
 * 0. The caller frees it. */
char *bnb_state_text(enum dtype type, const struct q4 *q, int64_t out, int64_t in);

#endif

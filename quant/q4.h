/* Blockwise 4-bit numbers as bitsandbytes stores them (Dettmers et al., "QLoRA", 2023; bitsandbytes 0.4x
 * functional.py).
 *
 * The weight (O,I) is flat, row-major; blocks of `blocksize` consecutive elements cross row boundaries. Byte j holds
 * element 2j in its high half and element 2j+1 in its low half. value = code[half byte] * absmax(block), one fp32
 * multiplication. With double quantisation absmax itself is stored in 8 bits:
 * absmax(b) = nested_code[absmax8[b]] * nested_absmax[b / nested_blocksize] + nested_offset, two fp32 roundings. */
#ifndef QUANT_Q4_H
#define QUANT_Q4_H

#include <stdint.h>

#include "base/tensor.h"

struct q4 {
    int blocksize;              // 32 .. 4096, a power of two
    enum dtype source;          // F32, BF16 or F16: the type that was quantised ("dtype" of the quant_state)
    const float *code;          // (16), in code order
    const float *absmax;        // (blocks), or NULL when double-quantised
    const uint8_t *absmax8;     // (blocks)
    const float *nested_absmax; // (ceil(blocks / nested_blocksize))
    const float *nested_code;   // (256)
    float nested_offset;
    int nested_blocksize; // 256
};

static inline float q4_absmax(const struct q4 *q, int64_t block) {
    if (q->absmax) return q->absmax[block];
    float scaled = q->nested_code[q->absmax8[block]] * q->nested_absmax[block / q->nested_blocksize];
    __asm__("" : "+m"(scaled)); // else a compiler may contract product and sum into one rounding
    return scaled + q->nested_offset;
}

#endif

/* The parameters of a checkpoint, counted by part from the headers of its files. */
#ifndef CLI_PARTS_H
#define CLI_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/safetensors.h"
#include "base/status.h"

enum part_kind {
    PART_EMBEDDING,
    PART_ATTENTION,
    PART_FFN,
    PART_NORM,
    PART_HEAD,
    PART_VISION,
    PART_PROJECTOR,
    PART_OTHER,
    PART_KINDS
};

enum { PART_TYPES = 24 };

struct part_count {
    int64_t tensors, parameters, bytes; // bytes with the scales of 4-bit weights
};

struct parts {
    struct part_count part[PART_KINDS], total;
    int64_t type_count[PART_KINDS][PART_TYPES]; // parameters by stored type: st_type, or those below
    int64_t quantised, kept;                    // weights in 4 bits, other tensors
    int blocksize;                              // of the 4-bit weights; 0: none
    bool double_quant;
};
enum { TYPE_NF4 = PART_TYPES - 2, TYPE_FP4 };

enum status parts_count(struct parts *p, const struct st_set *s, struct err *e);
const char *part_name(enum part_kind kind);
const char *part_type_name(int type);

#endif

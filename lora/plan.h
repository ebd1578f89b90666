/* What a run will hold in memory, by part, before it holds it; and how much of each layer is kept for the backward. */
#ifndef LORA_PLAN_H
#define LORA_PLAN_H

#include <stddef.h>

#include "data/dataset.h"
#include "lora/adapter.h"
#include "lora/settings.h"
#include "model/model.h"

struct memory_plan {
    size_t weights;    // frozen, as they are held (mapped files included)
    size_t adapter;    // values, gradients, moments
    size_t workspace;  // activations and scratch of the largest micro-batch
    size_t evaluation; // the same of the val split; 0 without
    size_t own;        // what the backend needs beside tensors; 0 on the host
    size_t total, limit;
    size_t table, host; // beside these, of the host's memory: the embedding; inputs of layers that wait there
    const char *device; // whose memory it is; NULL: the host's
    int64_t kept_all, kept_smart, kept_input, kept_host; // layers
    enum keep *keep;                                     // (layers), owned
    struct batch_limits limits;
};

/* Chooses by gradient_checkpointing: `none`, `smart` and `full` as they say; `auto` keeps all but what is cheap to make
 * again and, where memory_limit (by default nearly all that is free) asks for it, lets the lowest layers keep their
 * input only; where all inputs are too much for the memory of a device, those of the lowest wait on the host. What does
 * not fit is an error that says what would. */
enum status memory_plan_make(struct memory_plan *p, struct model *m, const struct adapter *a, const struct settings *s,
                             const struct batch_limits *limits, size_t evaluation, enum dtype act, struct err *e);
void memory_plan_free(struct memory_plan *p);

/* The table that is printed before step 1. */
struct text;
void memory_plan_text(const struct memory_plan *p, struct text *out);

#endif

/* The low-rank adapter that is nearest to the difference of two models of one shape: the singular value decomposition
 * of the difference of each linear layer, cut at a rank. What is no linear layer and differs (norms, embeddings) is
 * kept whole, as modules_to_save; biases as PEFT's bias "all". */
#ifndef LORA_DIFF_H
#define LORA_DIFF_H

#include <stdint.h>

#include "base/status.h"
#include "base/watch.h"
#include "kernels/backend.h"

struct diff_options {
    const char *base, *tuned; // Hugging Face folders
    const char *base_name;    // base_model_name_or_path
    int64_t rank;
    struct backend *be; // of the host
    struct watch watch; // told before each linear layer
};

struct diff_module {
    char *path;
    double size;  // |difference|, Frobenius
    double share; // of its square that the adapter holds; 1 where nothing differs
};

struct diff_report {
    struct diff_module *modules; // (count) linear layers that differ
    int64_t count, whole;        // whole: tensors that are kept as they are in the tuned model
    double size, share;          // of all linear layers together
};

/* A PEFT folder into dir, which exists. */
enum status diff_write(const struct diff_options *o, const char *dir, struct diff_report *r, struct err *e);
void diff_report_free(struct diff_report *r);

#endif

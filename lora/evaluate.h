/* The loss, and under a head the outputs, of every row of a data set under the model as it stands. */
#ifndef LORA_EVALUATE_H
#define LORA_EVALUATE_H

#include <stdint.h>

#include "base/status.h"
#include "data/dataset.h"
#include "lora/metrics.h"
#include "model/model.h"

struct row_loss {
    int64_t row; // of the data set's mixture
    int64_t tokens, scored;
    double loss_sum;
    const float *outputs, *labels; // of a head: what it gave, what was wanted
};

struct evaluation {
    int64_t rows, tokens, scored;
    double loss_sum;               // mean loss: loss_sum / scored
    const struct outcome *outcome; // of a head; lives as long as the evaluator. NULL: a language model
};

/* "loss", or a metric of the head; "eval_" before a name changes nothing. */
bool evaluation_has(enum problem p, const char *name, bool *less_is_better);
double evaluation_value(const struct evaluation *v, const char *name); // not defined: 0

struct evaluator {
    struct workspace *workspace;
    const struct dataset *data;
    int64_t rows_per_batch;
    int workers;
    float *losses;  // staging (limits.scored)
    float *outputs; // staging (limits.scored, outputs), of a head
    struct outcome outcome;
};

/* rows_per_batch rows go through the model together. */
enum status evaluator_new(struct evaluator **ev, struct model *m, const struct dataset *d, int64_t rows_per_batch,
                          int workers, enum dtype act, struct err *e);
void evaluator_free(struct evaluator *ev);

/* Bytes that evaluator_new will take for its workspace. */
size_t evaluator_measure(struct model *m, const struct dataset *d, int64_t rows_per_batch, enum dtype act);

/* Calls each(arg, row) for every row in order, unless each is NULL. A loss that is not finite is an error that names
 * the row. */
enum status evaluator_run(struct evaluator *ev, struct evaluation *out,
                          void (*each)(void *arg, const struct row_loss *r), void *arg, struct err *e);

#endif

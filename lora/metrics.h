/* What a head gave for rows, against what was wanted: how well it orders them, how far it is off, how often it is
 * right.
 *
 * regression: spearman (ties averaged), kendall (tau-b), pearson, mse, mae, and pair_accuracy: of all pairs of
 * rows whose labels differ, the share that the outputs order the same way, an equal pair of outputs counting half.
 * single label: accuracy, macro_f1; a column is a class, and one that is neither given nor predicted does not count.
 * multi label: the same by a threshold of probability 1/2; a column is a label.
 *
 * NaN: not defined, as a correlation with something constant. A mean over columns leaves such columns out. */
#ifndef LORA_METRICS_H
#define LORA_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/problem.h"

struct outcome {
    enum problem problem;
    int64_t rows, outputs, labels; // labels: outputs, or 1, the class
    float *predicted;              // (rows, outputs)
    float *given;                  // (rows, labels)
};

enum { ALL_COLUMNS = -1, RESAMPLES = 1000 };

int metric_count(enum problem p);
const char *metric_name(enum problem p, int metric);                      // metric 0 is the one to look at first
int metric_find(enum problem p, const char *name);                        // -1: the problem has none of that name
bool metric_is_error(enum problem p, int metric);                         // less is better
double metric_value(const struct outcome *o, int metric, int64_t column); // ALL_COLUMNS: of all, or the mean over them

/* Bootstrap (Efron, 1979): the 2.5th and 97.5th percentile of the metric over RESAMPLES draws of the rows. */
struct interval {
    double low, high;
};
struct interval metric_interval(const struct outcome *o, int metric, int64_t column, uint64_t seed);

#endif

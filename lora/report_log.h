/* log.jsonl as columns; and the pictures that report.c puts on its page. */
#ifndef LORA_REPORT_LOG_H
#define LORA_REPORT_LOG_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/text.h"

struct point {
    double step, value;
};

struct series {
    struct point *points;
    size_t count, room;
};

enum log_column {
    LOG_LOSS,
    LOG_EVAL_LOSS,
    LOG_GRAD_NORM,
    LOG_LEARNING_RATE,
    LOG_TOKENS_PER_SECOND,
    LOG_TOKENS,
    LOG_MEMORY,
    LOG_EPOCH,
    LOG_COLUMNS
};

struct run_log {
    struct series column[LOG_COLUMNS]; // only finite values; steps rise
};

enum status run_log_read(struct run_log *l, const char *path, struct err *e);
void run_log_free(struct run_log *l);

/* A curve over steps: values as they are, faint when a smoothed curve lies over them, and marks of a second series. */
struct chart {
    const char *title, *unit, *name; // unit may be ""; name: of the series, for the legend
    const struct series *values;
    const struct series *marks; // may be NULL
    const char *marks_name;
    bool smooth; // a mean over neighbours lies over the values
};
void chart_draw(struct text *out, const struct chart *c); // an <svg>, or nothing without values

/* Points of x and y on one scale, with the line on which they would lie if they were equal. x[i * step], y likewise. */
struct scatter {
    const char *title, *x_name, *y_name; // title is escaped here
    const float *x, *y;
    size_t count, step;
};
void chart_scatter(struct text *out, const struct scatter *s); // an <svg>, or nothing without finite points
void chart_number(struct text *out, double x);                 // for people: 12.3k, 1.5e-05

#endif

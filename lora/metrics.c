#include "lora/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"

/* Two numbers of every row, and room to work: x predicted, y given. Of a class: 1 where it is the one, else 0. */
struct column {
    int64_t n;
    double *x, *y, *rx, *ry; // (n); ranks
    struct ranked *order;    // (n)
};

struct ranked {
    double value;
    int64_t at;
};

static struct column column_new(int64_t n) {
    struct column c = {.n = n, .order = mem_alloc((size_t)n * sizeof *c.order)};
    double *all = mem_alloc((size_t)(4 * n) * sizeof *all);
    c.x = all, c.y = all + n, c.rx = all + 2 * n, c.ry = all + 3 * n;
    return c;
}

static void column_free(struct column *c) {
    free(c->x), free(c->order);
    *c = (struct column){0};
}

/* --- of one column ----------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
    double x = ((const struct ranked *)a)->value, y = ((const struct ranked *)b)->value;
    return (x > y) - (x < y);
}

/* Ranks from 1; equal values share the mean of theirs. */
static void rank(double *out, const double *v, struct column *c) {
    for (int64_t i = 0; i < c->n; i++) c->order[i] = (struct ranked){v[i], i};
    qsort(c->order, (size_t)c->n, sizeof *c->order, compare);
    for (int64_t i = 0, end; i < c->n; i = end) {
        for (end = i + 1; end < c->n && c->order[end].value == c->order[i].value;) end++;
        for (int64_t k = i; k < end; k++) out[c->order[k].at] = (double)(i + 1 + end) / 2;
    }
}

static double correlation(const double *x, const double *y, int64_t n) {
    double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
    for (int64_t i = 0; i < n; i++) mx += x[i], my += y[i];
    mx /= (double)n, my /= (double)n;
    for (int64_t i = 0; i < n; i++) {
        double a = x[i] - mx, b = y[i] - my;
        xx += a * a, yy += b * b, xy += a * b;
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

static double pearson(struct column *c) { return correlation(c->x, c->y, c->n); }

static double spearman(struct column *c) {
    rank(c->rx, c->x, c);
    rank(c->ry, c->y, c);
    return correlation(c->rx, c->ry, c->n);
}

/* Pairs of rows that both columns order the same way, or contrary; that only x, or only y, holds equal. */
struct pairs {
    double same, contrary, equal_x, equal_y;
};

static struct pairs count_pairs(const struct column *c) {
    struct pairs p = {0};
    for (int64_t i = 0; i < c->n; i++) {
        int64_t same = 0, contrary = 0, equal_x = 0, equal_y = 0;
        for (int64_t k = 0; k < i; k++) {
            int a = (c->x[i] > c->x[k]) - (c->x[i] < c->x[k]), b = (c->y[i] > c->y[k]) - (c->y[i] < c->y[k]);
            same += a * b > 0, contrary += a * b < 0, equal_x += !a && b, equal_y += a && !b;
        }
        p.same += (double)same, p.contrary += (double)contrary;
        p.equal_x += (double)equal_x, p.equal_y += (double)equal_y;
    }
    return p;
}

static double kendall(struct column *c) {
    struct pairs p = count_pairs(c);
    double ordered = p.same + p.contrary, root = sqrt((ordered + p.equal_x) * (ordered + p.equal_y));
    return root > 0 ? (p.same - p.contrary) / root : NAN;
}

static double pair_accuracy(struct column *c) {
    struct pairs p = count_pairs(c);
    double all = p.same + p.contrary + p.equal_x;
    return all > 0 ? (p.same + p.equal_x / 2) / all : NAN;
}

static double mse(struct column *c) {
    double sum = 0;
    for (int64_t i = 0; i < c->n; i++) sum += (c->x[i] - c->y[i]) * (c->x[i] - c->y[i]);
    return sum / (double)c->n;
}

static double mae(struct column *c) {
    double sum = 0;
    for (int64_t i = 0; i < c->n; i++) sum += fabs(c->x[i] - c->y[i]);
    return sum / (double)c->n;
}

static double accuracy(struct column *c) {
    int64_t right = 0;
    for (int64_t i = 0; i < c->n; i++) right += c->x[i] == c->y[i];
    return (double)right / (double)c->n;
}

static double f1(struct column *c) {
    int64_t hits = 0, all = 0;
    for (int64_t i = 0; i < c->n; i++) hits += c->x[i] > 0 && c->y[i] > 0, all += (c->x[i] > 0) + (c->y[i] > 0);
    return all ? 2.0 * (double)hits / (double)all : NAN;
}

/* --- the table --------------------------------------------------------------------------------------------------- */

struct metric {
    const char *name;
    double (*of)(struct column *c);
    bool error;
};

static const struct metric for_regression[] = {{"spearman", spearman, false},
                                               {"kendall", kendall, false},
                                               {"pearson", pearson, false},
                                               {"mse", mse, true},
                                               {"mae", mae, true},
                                               {"pair_accuracy", pair_accuracy, false}};
static const struct metric for_classes[] = {{"accuracy", accuracy, false}, {"macro_f1", f1, false}};

static const struct metric *metrics_of(enum problem p, int *count) {
    bool regression = p == PROBLEM_REGRESSION;
    *count = p == PROBLEM_GENERATION ? 0 : regression ? 6 : 2;
    return regression ? for_regression : for_classes;
}

int metric_count(enum problem p) {
    int n;
    metrics_of(p, &n);
    return n;
}

const char *metric_name(enum problem p, int metric) {
    int n;
    return metrics_of(p, &n)[metric].name;
}

bool metric_is_error(enum problem p, int metric) {
    int n;
    return metrics_of(p, &n)[metric].error;
}

int metric_find(enum problem p, const char *name) {
    int n;
    const struct metric *m = metrics_of(p, &n);
    for (int i = 0; i < n; i++)
        if (strcmp(m[i].name, name) == 0) return i;
    return -1;
}

/* --- of an outcome ----------------------------------------------------------------------------------------------- */

static int64_t predicted_class(const struct outcome *o, int64_t row) {
    const float *x = o->predicted + row * o->outputs;
    int64_t best = 0;
    for (int64_t i = 1; i < o->outputs; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Column j of the rows, or of those that pick names; ALL_COLUMNS of classes: the class itself. */
static void fill(struct column *c, const struct outcome *o, int64_t j, const int64_t *pick) {
    for (int64_t i = 0; i < c->n; i++) {
        int64_t row = pick ? pick[i] : i;
        if (o->problem == PROBLEM_SINGLE_LABEL) {
            int64_t x = predicted_class(o, row), y = (int64_t)o->given[row];
            c->x[i] = (double)(j == ALL_COLUMNS ? x : x == j), c->y[i] = (double)(j == ALL_COLUMNS ? y : y == j);
            continue;
        }
        c->x[i] = (double)o->predicted[row * o->outputs + j], c->y[i] = (double)o->given[row * o->labels + j];
        if (o->problem == PROBLEM_MULTI_LABEL) c->x[i] = c->x[i] > 0, c->y[i] = c->y[i] >= 0.5;
    }
}

static double value(const struct outcome *o, int metric, int64_t column, const int64_t *pick, struct column *c) {
    int n;
    const struct metric *m = &metrics_of(o->problem, &n)[metric];
    bool whole = o->problem == PROBLEM_SINGLE_LABEL && m->of == accuracy;
    if (column != ALL_COLUMNS || whole) {
        fill(c, o, column, pick);
        return m->of(c);
    }
    double sum = 0;
    int64_t defined = 0;
    for (int64_t j = 0; j < o->outputs; j++) {
        fill(c, o, j, pick);
        double v = m->of(c);
        if (!isnan(v)) sum += v, defined++;
    }
    return defined ? sum / (double)defined : NAN;
}

double metric_value(const struct outcome *o, int metric, int64_t column) {
    if (o->rows == 0) return NAN;
    struct column c = column_new(o->rows);
    double v = value(o, metric, column, NULL, &c);
    column_free(&c);
    return v;
}

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct interval metric_interval(const struct outcome *o, int metric, int64_t column, uint64_t seed) {
    struct interval out = {NAN, NAN};
    if (o->rows == 0) return out;
    struct column c = column_new(o->rows);
    int64_t *pick = mem_alloc((size_t)o->rows * sizeof *pick), count = 0;
    double *values = mem_alloc(RESAMPLES * sizeof *values);
    for (int64_t k = 0; k < RESAMPLES; k++) {
        for (int64_t i = 0; i < o->rows; i++)
            pick[i] =
                (int64_t)(rng_uniform(seed, rng_stream("bootstrap"), (uint64_t)(k * o->rows + i)) * (double)o->rows);
        double v = value(o, metric, column, pick, &c);
        if (!isnan(v)) values[count++] = v;
    }
    qsort(values, (size_t)count, sizeof *values, compare_double);
    if (count) out.low = values[(count - 1) * 25 / 1000], out.high = values[(count - 1) * 975 / 1000];
    free(pick), free(values);
    column_free(&c);
    return out;
}

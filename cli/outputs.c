#include "cli/outputs.h"

#include <math.h>
#include <string.h>

#include "cli/out.h"

cJSON *outputs_json(const char *const *names, const float *outputs, int64_t n) {
    cJSON *o = cJSON_CreateObject();
    for (int64_t i = 0; i < n; i++) cJSON_AddNumberToObject(o, names[i], (double)outputs[i]);
    return o;
}

static int widest(const char *const *names, int64_t n, int least) {
    int width = least;
    for (int64_t i = 0; i < n; i++)
        if ((int)strlen(names[i]) > width) width = (int)strlen(names[i]);
    return width < 40 ? width : 40;
}

void outputs_print(const char *const *names, const float *outputs, int64_t n) {
    int width = widest(names, n, 0);
    for (int64_t i = 0; i < n; i++) out_text("%-*s  %9.4f\n", width, names[i], (double)outputs[i]);
}

static void print_line(const struct outcome *o, const char *name, int width, int64_t column) {
    out_text("%-*s", width, name);
    for (int k = 0; k < metric_count(o->problem); k++) {
        double v = metric_value(o, k, column);
        bool whole = o->problem == PROBLEM_SINGLE_LABEL && k == 0 && column != ALL_COLUMNS;
        if (isnan(v) || whole)
            out_text("  %13s", "-");
        else
            out_text("  %13.4f", v);
    }
    out_text("\n");
}

void outcome_print(const struct outcome *o, const char *const *names, uint64_t seed) {
    int width = widest(names, o->outputs, 10);
    out_text("%-*s", width, "");
    for (int k = 0; k < metric_count(o->problem); k++) out_text("  %13s", metric_name(o->problem, k));
    out_text("\n");
    for (int64_t i = 0; i < o->outputs; i++) print_line(o, names[i], width, i);
    print_line(o, "all", width, ALL_COLUMNS);
    struct interval v = metric_interval(o, 0, ALL_COLUMNS, seed);
    if (!isnan(v.low))
        out_text("%s of all, 95%% interval (bootstrap over rows)  %.4f .. %.4f\n", metric_name(o->problem, 0), v.low,
                 v.high);
}

static void add_number(cJSON *o, const char *name, double v) {
    cJSON_AddItemToObject(o, name, isnan(v) ? cJSON_CreateNull() : cJSON_CreateNumber(v));
}

static cJSON *column_json(const struct outcome *o, int64_t column, uint64_t seed) {
    cJSON *c = cJSON_CreateObject();
    for (int k = 0; k < metric_count(o->problem); k++)
        if (k || column == ALL_COLUMNS || o->problem != PROBLEM_SINGLE_LABEL)
            add_number(c, metric_name(o->problem, k), metric_value(o, k, column));
    if (column != ALL_COLUMNS && o->problem == PROBLEM_SINGLE_LABEL) return c;
    struct interval v = metric_interval(o, 0, column, seed);
    cJSON *list = cJSON_AddArrayToObject(c, "interval95");
    cJSON_AddItemToArray(list, isnan(v.low) ? cJSON_CreateNull() : cJSON_CreateNumber(v.low));
    cJSON_AddItemToArray(list, isnan(v.low) ? cJSON_CreateNull() : cJSON_CreateNumber(v.high));
    return c;
}

void outcome_json(cJSON *to, const struct outcome *o, const char *const *names, uint64_t seed) {
    cJSON_AddStringToObject(to, "problem_type", problem_name(o->problem));
    cJSON_AddItemToObject(to, "metrics", column_json(o, ALL_COLUMNS, seed));
    cJSON *labels = cJSON_AddObjectToObject(to, "per_label");
    for (int64_t i = 0; i < o->outputs; i++) cJSON_AddItemToObject(labels, names[i], column_json(o, i, seed));
}

#include "lora/report_log.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"

static const char *const column_names[LOG_COLUMNS] = {
    [LOG_LOSS] = "loss",
    [LOG_EVAL_LOSS] = "eval_loss",
    [LOG_GRAD_NORM] = "grad_norm",
    [LOG_LEARNING_RATE] = "learning_rate",
    [LOG_TOKENS_PER_SECOND] = "tokens_per_second",
    [LOG_TOKENS] = "tokens",
    [LOG_MEMORY] = "memory",
    [LOG_EPOCH] = "epoch",
};

static void series_add(struct series *s, double step, double value) {
    while (s->count && s->points[s->count - 1].step >= step) s->count--; // the run went back to a checkpoint
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 256;
        s->points = mem_resize(s->points, s->room * sizeof *s->points);
    }
    s->points[s->count++] = (struct point){step, value};
}

/* Far enough from the largest double that the ends of an axis are numbers too. */
static bool usable(const cJSON *v) { return cJSON_IsNumber(v) && fabs(v->valuedouble) <= 1e300; }

static enum status read_line(struct run_log *l, const char *line, size_t n, const char *where, struct err *e) {
    cJSON *o = json_parse(line, n, where, e);
    if (!o) return e->code;
    const cJSON *step = json_get(o, "step");
    if (!cJSON_IsObject(o))
        err_set(e, ST_FAIL, "%s: wanted an object", where);
    else if (step && !usable(step))
        err_set(e, ST_FAIL, "%s: step is not a number", where);
    for (int i = 0; step && i < LOG_COLUMNS && e->code == ST_OK; i++) {
        const cJSON *v = json_get(o, column_names[i]);
        if (usable(v)) series_add(&l->column[i], step->valuedouble, v->valuedouble);
    }
    cJSON_Delete(o);
    return e->code;
}

enum status run_log_read(struct run_log *l, const char *path, struct err *e) {
    *l = (struct run_log){0};
    char *data;
    size_t size;
    if (file_read(path, &data, &size, e) != ST_OK) return e->code;
    int number = 0;
    for (char *at = data, *stop; (stop = memchr(at, '\n', (size_t)(data + size - at))) && e->code == ST_OK;
         at = stop + 1) {
        number++;
        if (stop == at + strspn(at, " \t\r")) continue;
        char *where = mem_format("%s line %d", path, number);
        read_line(l, at, (size_t)(stop - at), where, e);
        free(where);
    }
    free(data);
    if (e->code != ST_OK) run_log_free(l);
    return e->code;
}

void run_log_free(struct run_log *l) {
    for (int i = 0; i < LOG_COLUMNS; i++) free(l->column[i].points);
    *l = (struct run_log){0};
}

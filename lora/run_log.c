#include "lora/run_log.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/checkpoint.h"
#include "lora/tensorboard.h"

struct run_log {
    char *path;
    FILE *lines;
    struct tensorboard *events; // NULL: not asked for
};

/* Bytes that the process has held at its peak. */
static size_t peak_memory(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (size_t)u.ru_maxrss * 1024 : 0;
}

static char *log_path(const struct trainer *t) { return path_join(t->output_dir, "log.jsonl"); }

/* Calls f for each line of the log that is whole and of a step that is done. */
static void each_line(const char *path, int64_t last, void (*f)(const cJSON *line, const char *text, void *arg),
                      void *arg) {
    struct err quiet = {0};
    char *data = NULL;
    size_t size = 0;
    if (!file_exists(path) || file_read(path, &data, &size, &quiet) != ST_OK) return;
    for (char *at = data, *end; (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        struct err bad = {0};
        cJSON *line = json_parse(at, (size_t)(end - at), path, &bad);
        int64_t step = 0;
        if (line && json_int(line, path, "step", 0, &step, &bad) == ST_OK && step <= last) f(line, at, arg);
        cJSON_Delete(line);
    }
    free(data);
}

static void keep_line(const cJSON *line, const char *text, void *arg) {
    (void)line;
    text_addf(arg, "%s\n", text);
}

static bool reports_to(const struct settings *s, const char *what) {
    const cJSON *v = settings_get(s, "report_to");
    if (cJSON_IsString(v)) return strcmp(v->valuestring, what) == 0;
    for (const cJSON *item = cJSON_IsArray(v) ? v->child : NULL; item; item = item->next)
        if (cJSON_IsString(item) && strcmp(item->valuestring, what) == 0) return true;
    return false;
}

enum status run_log_open(struct run_log **out, const struct trainer *t, struct err *e) {
    struct run_log *log = *out = mem_alloc(sizeof *log);
    struct text kept = {0};
    log->path = log_path(t);
    if (t->step > 0) each_line(log->path, t->step, keep_line, &kept);
    if (file_write(log->path, text_str(&kept), kept.len, e) == ST_OK) {
        log->lines = fopen(log->path, "ab");
        if (!log->lines) err_set(e, ST_FAIL, "%s: cannot write (%s)", log->path, strerror(errno));
    }
    text_free(&kept);
    if (e->code == ST_OK && reports_to(t->settings, "tensorboard")) {
        char *dir = path_join(t->output_dir, "runs");
        log->events = tensorboard_open(dir, (double)time(NULL), e);
        free(dir);
    }
    if (e->code == ST_OK) return ST_OK;
    run_log_close(log);
    *out = NULL;
    return e->code;
}

void run_log_close(struct run_log *log) {
    if (!log) return;
    if (log->lines) fclose(log->lines);
    tensorboard_close(log->events);
    free(log->path);
    free(log);
}

/* One line, flushed; takes the object. */
static enum status put(struct run_log *log, cJSON *o, struct err *e) {
    char *text = json_text(o, true);
    if (fprintf(log->lines, "%s\n", text) < 0 || fflush(log->lines) != 0)
        err_set(e, ST_FAIL, "%s: cannot write (%s)", log->path, strerror(errno));
    free(text);
    cJSON_Delete(o);
    return e->code;
}

enum status run_log_step(struct run_log *log, const struct step_report *r, struct err *e) {
    double per_second = r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
    struct scalar scalars[] = {{"train/loss", r->loss},
                               {"train/grad_norm", r->grad_norm},
                               {"train/learning_rate", r->learning_rate},
                               {"train/tokens_per_second", per_second},
                               {"train/epoch", r->epoch}};
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "step", (double)r->step);
    cJSON_AddNumberToObject(o, "epoch", r->epoch);
    cJSON_AddNumberToObject(o, "loss", r->loss);
    cJSON_AddNumberToObject(o, "grad_norm", r->grad_norm);
    cJSON_AddNumberToObject(o, "learning_rate", r->learning_rate);
    cJSON_AddNumberToObject(o, "tokens", (double)r->tokens);
    cJSON_AddNumberToObject(o, "tokens_per_second", round(per_second * 10) / 10);
    cJSON_AddNumberToObject(o, "memory", (double)peak_memory());
    if (put(log, o, e) != ST_OK || !log->events) return e->code;
    return tensorboard_write(log->events, r->step, (double)time(NULL), scalars, sizeof scalars / sizeof *scalars, e);
}

enum status run_log_evaluation(struct run_log *log, const struct trainer *t, const struct evaluation *v,
                               struct err *e) {
    double loss = evaluation_value(v, "loss");
    struct scalar scalars[16] = {{"eval/loss", loss}};
    char *names[16];
    size_t n = 1;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "step", (double)t->step);
    cJSON_AddNumberToObject(o, "eval_loss", loss);
    cJSON_AddNumberToObject(o, "eval_rows", (double)v->rows);
    for (int i = 0; v->outcome && i < metric_count(v->outcome->problem); i++) {
        double x = metric_value(v->outcome, i, ALL_COLUMNS);
        if (isnan(x)) continue;
        names[n] = mem_format("eval/%s", metric_name(v->outcome->problem, i));
        scalars[n] = (struct scalar){names[n], x};
        n++;
        char *key = mem_format("eval_%s", metric_name(v->outcome->problem, i));
        cJSON_AddNumberToObject(o, key, x);
        free(key);
    }
    if (put(log, o, e) == ST_OK && log->events)
        tensorboard_write(log->events, t->step, (double)time(NULL), scalars, n, e);
    for (size_t i = 1; i < n; i++) free(names[i]);
    return e->code;
}

/* The keys that transformers' log_history has. */
static void add_history(const cJSON *line, const char *text, void *arg) {
    static const char *const keys[] = {"epoch", "eval_loss", "grad_norm", "learning_rate", "loss", "step"};
    cJSON *o = cJSON_CreateObject();
    (void)text;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *v = json_get(line, keys[i]);
        if (v) cJSON_AddItemToObject(o, keys[i], cJSON_Duplicate(v, true));
    }
    cJSON_AddItemToArray(arg, o);
}

enum status run_log_trainer_state(const struct trainer *t, const char *path, struct err *e) {
    const struct settings *s = t->settings;
    char *log = log_path(t), *best = t->best_step ? checkpoint_path(t, t->best_step) : NULL;
    cJSON *o = cJSON_CreateObject(), *history = cJSON_CreateArray();
    each_line(log, t->step, add_history, history);
    cJSON_AddItemToObject(o, "best_global_step", best ? cJSON_CreateNumber((double)t->best_step) : cJSON_CreateNull());
    cJSON_AddItemToObject(o, "best_metric", best ? cJSON_CreateNumber(t->best_metric) : cJSON_CreateNull());
    cJSON_AddItemToObject(o, "best_model_checkpoint", best ? cJSON_CreateString(best) : cJSON_CreateNull());
    cJSON_AddNumberToObject(o, "epoch", (double)(t->step * t->accum * t->rows) / (double)dataset_rows(t->data));
    cJSON_AddNumberToObject(o, "eval_steps", settings_number(s, "eval_steps"));
    cJSON_AddNumberToObject(o, "global_step", (double)t->step);
    cJSON_AddBoolToObject(o, "is_hyper_param_search", false);
    cJSON_AddBoolToObject(o, "is_local_process_zero", true);
    cJSON_AddBoolToObject(o, "is_world_process_zero", true);
    cJSON_AddItemToObject(o, "log_history", history);
    cJSON_AddNumberToObject(o, "logging_steps", settings_number(s, "logging_steps"));
    cJSON_AddNumberToObject(o, "max_steps", (double)t->steps);
    cJSON_AddNumberToObject(o, "num_train_epochs", ceil(settings_number(s, "num_train_epochs")));
    cJSON_AddNumberToObject(o, "save_steps", settings_number(s, "save_steps"));
    cJSON_AddNumberToObject(o, "total_flos", 0);
    cJSON_AddNumberToObject(o, "train_batch_size", (double)t->rows);
    cJSON_AddNullToObject(o, "trial_name");
    cJSON_AddNullToObject(o, "trial_params");
    json_write(path, o, e);
    cJSON_Delete(o);
    free(log), free(best);
    return e->code;
}

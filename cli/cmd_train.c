/* graft train: an adapter from a config. One line a step on stderr, or on a terminal one line that is drawn again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "cli/verbs.h"

struct view {
    const struct flags *flags;
    bool terminal, quiet;
    double began;
    int64_t first; // step that the run began after
};

static void show_step(void *arg, const struct trainer *t, const struct step_report *r) {
    struct view *v = arg;
    if (flag_bool(v->flags, "json")) {
        out_text("{\"step\": %lld, \"loss\": %.17g, \"grad_norm\": %.17g, \"learning_rate\": %.17g}\n",
                 (long long)r->step, r->loss, r->grad_norm, r->learning_rate);
    }
    if (v->quiet) return;
    double spent = clock_now() - v->began;
    char left[OUT_NUMBER];
    out_time_text(left, spent / (double)(r->step - v->first) * (double)(t->steps - r->step));
    fprintf(stderr, "%sstep %*lld/%lld  loss %8.4f  grad %8.4f  lr %.2e  %7.0f tok/s  %s left%s",
            v->terminal ? "\r\033[K" : "", t->steps > 9999 ? 6 : 4, (long long)r->step, (long long)t->steps, r->loss,
            r->grad_norm, r->learning_rate, r->seconds > 0 ? (double)r->tokens / r->seconds : 0, left,
            v->terminal && r->step < t->steps ? "" : "\n");
    fflush(stderr);
}

static void show_evaluation(void *arg, const struct trainer *t, const struct evaluation *e) {
    struct view *v = arg;
    char metric[64] = "";
    const struct outcome *o = e->outcome;
    if (v->quiet) return;
    if (o) snprintf(metric, sizeof metric, "%s %7.4f  ", metric_name(o->problem, 0), metric_value(o, 0, ALL_COLUMNS));
    fprintf(stderr, "%sval  %*lld/%lld  loss %8.4f  %s(%lld rows)%s\n", v->terminal ? "\r\033[K" : "",
            t->steps > 9999 ? 6 : 4, (long long)t->step, (long long)t->steps,
            e->loss_sum / (double)(e->scored ? e->scored : 1), metric, (long long)e->rows,
            t->best_step == t->step ? "  best so far" : "");
}

static void show_saved(void *arg, const struct trainer *t, const char *path) {
    struct view *v = arg;
    (void)t;
    if (!v->quiet) fprintf(stderr, "%ssaved %s\n", v->terminal ? "\r\033[K" : "", path);
}

/* Where the run begins, when it is not at the first step in a new folder. */
static void add_beginning(struct text *t, const struct trainer *r, const char *resumed) {
    char *log = path_join(r->output_dir, "log.jsonl");
    if (resumed && r->step == r->steps)
        text_addf(t, ", all done before (%s); another output_dir begins anew", resumed);
    else if (resumed)
        text_addf(t, ", going on from %s", resumed);
    else if (file_exists(log))
        text_addf(t, "; %s holds an earlier run, which is replaced", r->output_dir);
    free(log);
}

/* What is about to happen, before step 1: settings, data, what is trained, memory. */
static void show_start(const struct flags *f, const struct session *s, const char *resumed) {
    struct text t = {0};
    char *settings = settings_yaml(&s->settings);
    const struct trainer *r = s->trainer;
    char n[OUT_NUMBER], all[OUT_NUMBER];
    text_addf(&t, "settings\n");
    for (char *at = settings, *end; (end = strchr(at, '\n')); at = end + 1)
        text_addf(&t, "  %.*s\n", (int)(end - at), at);
    text_addf(&t, "data\n  %lld rows, %lld positions, %lld scored", (long long)dataset_rows(s->train),
              (long long)dataset_tokens(s->train), (long long)dataset_scored(s->train));
    if (s->val) text_addf(&t, "; val %lld rows", (long long)dataset_rows(s->val));
    if (s->bad_rows) text_addf(&t, "; %lld bad rows left out", (long long)s->bad_rows);
    text_addf(&t, "\nmodel\n  %s, %s parameters, trained %s in %lld tensors, computed in %s on %s\n",
              s->config.model_type, out_count_text(all, model_param_total(s->model)),
              out_count_text(n, adapter_param_total(s->adapter)), (long long)s->adapter->count, dtype_name(s->act),
              backend_describe(s->be));
    memory_plan_text(&r->plan, &t);
    text_addf(&t, "steps\n  %lld of %lld rows in %lld micro-batches", (long long)r->steps,
              (long long)(r->rows * r->accum), (long long)r->accum);
    add_beginning(&t, r, resumed);
    out_note(f, "%s", text_str(&t));
    text_free(&t);
    free(settings);
}

static enum status train(struct session *s, const struct flags *f, int *status, struct err *e) {
    char *resumed = NULL;
    bool finished = true;
    if (trainer_resume(s->trainer, &resumed, e) != ST_OK) return e->code;
    show_start(f, s, resumed);
    free(resumed);
    struct view v = {f, isatty(STDERR_FILENO) == 1, flag_bool(f, "quiet"), clock_now(), s->trainer->step};
    struct train_events events = {show_step, show_evaluation, show_saved, &v};
    if (trainer_run(s->trainer, &events, &finished, e) != ST_OK) return e->code;
    if (!finished) {
        *status = 128 + *stop_asked();
        out_note(f, "stopped after step %lld; the same command goes on from there", (long long)s->trainer->step);
    } else if (!flag_bool(f, "json")) {
        out_text("%s\n", s->trainer->output_dir);
    }
    return ST_OK;
}

static int run_train(const struct flags *f, struct err *e) {
    struct session s = {0};
    int status = ST_OK;
    stop_catch();
    if (session_open_training(&s, f, stop_asked(), e) == ST_OK) train(&s, f, &status, e);
    session_close(&s);
    return e->code != ST_OK ? (int)e->code : status;
}

const struct verb verb_train = {
    .name = "train",
    .arguments = "CONFIG.yaml [--key value ...]",
    .about = "trains an adapter as the config says; flags override its keys",
    .flags = training_keys,
    .flag_count = TRAINING_KEYS,
    .min_words = 1,
    .max_words = 1,
    .run = run_train,
};

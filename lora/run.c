/* The loop around train_step: set-up, resuming, logging, evaluating, saving, and what is left at the end. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/checkpoint.h"
#include "lora/model_card.h"
#include "lora/output.h"
#include "lora/report.h"
#include "lora/run_log.h"

/* --- set-up ------------------------------------------------------------------------------------------------------ */

static int64_t steps_asked(const struct settings *s, int64_t data_rows) {
    int64_t most = settings_int(s, "max_steps");
    if (most >= 0) return most;
    double rows =
        (double)(settings_int(s, "per_device_train_batch_size") * settings_int(s, "gradient_accumulation_steps"));
    double steps = ceil(settings_number(s, "num_train_epochs") * (double)data_rows / rows);
    return steps > 1 ? (int64_t)steps : 1;
}

static struct schedule schedule_of(const struct settings *s, int64_t steps) {
    int64_t warmup = settings_int(s, "warmup_steps");
    if (warmup == 0) warmup = (int64_t)ceil(settings_number(s, "warmup_ratio") * (double)steps);
    return (struct schedule){schedule_kind_of(settings_text(s, "lr_scheduler_type")), warmup, steps};
}

static struct loader *open_loader(const struct trainer *t) {
    struct loader_options o = {.rows_per_batch = t->rows,
                               .shuffle = settings_bool(t->settings, "shuffle"),
                               .seed = (uint64_t)settings_int(t->settings, "seed"),
                               .workers = (int)settings_int(t->settings, "dataloader_num_workers"),
                               .first_batch = t->step * t->accum,
                               .batches = (t->steps - t->step) * t->accum};
    return loader_new(t->data, &o);
}

/* Unpacked, one row at a time is in memory; pictures of the largest batch are bounded by its own count. */
static struct batch_limits pass_limits(const struct trainer *t) {
    struct batch_limits limits;
    struct loader *l = open_loader(t);
    loader_limits(l, &limits);
    loader_free(l);
    if (t->packing || t->rows == 1) return limits;
    limits.N = limits.longest, limits.rows = 1;
    if (limits.scored > limits.N) limits.scored = limits.N;
    return limits;
}

static enum status take_memory(struct trainer *t, struct err *e) {
    struct batch_limits limits = pass_limits(t);
    size_t evaluation = t->val ? evaluator_measure(t->model, t->val, t->rows, t->act) : 0;
    if (memory_plan_make(&t->plan, t->model, t->adapter, t->settings, &limits, evaluation, t->act, e) != ST_OK)
        return e->code;
    struct workspace_options o = {.limits = limits,
                                  .train = true,
                                  .act = t->act,
                                  .keep = t->plan.keep,
                                  .neftune_alpha = (float)settings_number(t->settings, "neftune_noise_alpha")};
    if (workspace_new(&t->workspace, t->model, &o, e) != ST_OK) return e->code;
    if (t->val && evaluator_new(&t->evaluator, t->model, t->val, t->rows, 1, t->act, e) != ST_OK) return e->code;
    size_t bytes = (size_t)(t->accum + 1) * sizeof(float) + 2 * (size_t)ARENA_ALIGN;
    t->memory = backend_alloc(t->model->be, bytes);
    if (!t->memory) return err_set(e, t->model->be->err.code, "%s", t->model->be->err.text);
    struct arena arena = arena_over(t->memory, bytes);
    t->totals = arena_tensor1(&arena, F32, t->accum);
    t->norm = arena_tensor1(&arena, F32, 1);
    return ST_OK;
}

static enum status check_metric(const struct trainer *t, struct err *e) {
    const char *name = settings_text(t->settings, "metric_for_best_model");
    enum problem p = t->model->config.problem;
    struct text known = {0};
    bool less;
    if (evaluation_has(p, name, &less)) return ST_OK;
    for (int i = 0; i < metric_count(p); i++) text_addf(&known, ", %s", metric_name(p, i));
    err_set(e, ST_USAGE, "%s: metric_for_best_model is %.80s; problem_type %s has loss%s", t->settings->path, name,
            problem_name(p), text_str(&known));
    text_free(&known);
    return e->code;
}

enum status trainer_new(struct trainer **out, const struct trainer_inputs *in, struct err *e) {
    struct trainer *t = *out = mem_alloc(sizeof *t);
    const struct settings *s = in->settings;
    *t = (struct trainer){.settings = s,
                          .model = in->model,
                          .adapter = in->adapter,
                          .data = in->data,
                          .val = in->val,
                          .tokenizer = in->tokenizer,
                          .family = in->family,
                          .act = in->act,
                          .stop = in->stop,
                          .output_dir = settings_text(s, "output_dir"),
                          .rows = settings_int(s, "per_device_train_batch_size"),
                          .accum = settings_int(s, "gradient_accumulation_steps"),
                          .packing = settings_bool(s, "packing"),
                          .micro_means = settings_is(s, "loss_normalization", "micro_batch"),
                          .steps = steps_asked(s, dataset_rows(in->data))};
    t->schedule = schedule_of(s, t->steps);
    if (check_metric(t, e) != ST_OK) goto failed;
    t->host_totals = mem_alloc((size_t)t->accum * sizeof *t->host_totals);
    t->scored = mem_alloc((size_t)t->accum * sizeof *t->scored);
    if (take_memory(t, e) == ST_OK) return ST_OK;
failed:
    trainer_free(t);
    *out = NULL;
    return e->code;
}

void trainer_free(struct trainer *t) {
    if (!t) return;
    loader_free(t->loader);
    evaluator_free(t->evaluator);
    workspace_free(t->workspace);
    memory_plan_free(&t->plan);
    backend_release(t->model->be, t->memory);
    free(t->host_totals), free(t->scored);
    free(t);
}

/* --- resuming ---------------------------------------------------------------------------------------------------- */

/* A run that goes on from another folder's checkpoint would look in vain for its best one at the end. */
static enum status check_best_is_there(const struct trainer *t, const char *from, struct err *e) {
    if (!settings_bool(t->settings, "load_best_model_at_end") || !t->best_step) return ST_OK;
    char *best = checkpoint_path(t, t->best_step);
    if (!dir_exists(best))
        err_set(e, ST_FAIL,
                "%s: the best checkpoint so far, %s, is not in output_dir; copy it there from beside this one", from,
                path_name(best));
    free(best);
    return e->code;
}

enum status trainer_resume(struct trainer *t, char **from, struct err *e) {
    const cJSON *asked = settings_get(t->settings, "resume_from_checkpoint");
    bool never = cJSON_IsFalse(asked);
    bool newest = !asked || cJSON_IsTrue(asked) || settings_is(t->settings, "resume_from_checkpoint", "auto");
    char *path = newest || never ? checkpoint_newest(t->output_dir)
                                 : mem_text(settings_text(t->settings, "resume_from_checkpoint"));
    *from = NULL;
    if (path && never)
        err_set(e, ST_FAIL, "%s: holds checkpoints of an earlier run (%s); remove them or choose another output_dir",
                t->output_dir, path_name(path));
    if (!path || never) {
        free(path);
        return e->code;
    }
    if (checkpoint_read(t, path, e) == ST_OK) check_best_is_there(t, path, e);
    if (e->code == ST_OK)
        *from = path;
    else
        free(path);
    return e->code;
}

/* --- the end ----------------------------------------------------------------------------------------------------- */

static const char *method_name(const struct trainer *t) {
    if (t->adapter->finetuning != FINETUNE_LORA) return t->adapter->finetuning == FINETUNE_FULL ? "full" : "projector";
    bool quantised = t->model->config.quantization_config || !settings_is(t->settings, "quantization", "none");
    bool dora = settings_bool(t->settings, "use_dora");
    return quantised ? dora ? "QDoRA" : "QLoRA" : dora ? "DoRA" : "LoRA";
}

static const char *pipeline_tag(const struct model_config *c) {
    if (c->problem != PROBLEM_GENERATION) return "text-classification";
    return c->family != FAMILY_TEXT ? "image-text-to-text" : "text-generation";
}

/* The class of transformers that loads the base; NULL: the card's default. */
static const char *auto_class(const struct model_config *c) {
    if (c->problem != PROBLEM_GENERATION) return "AutoModelForSequenceClassification";
    if (c->family == FAMILY_MLLAVA) return "LlavaForConditionalGeneration";
    if (c->family == FAMILY_IDEFICS2) return "Idefics2ForConditionalGeneration";
    return c->family == FAMILY_MFUYU ? "FuyuForCausalLM" : NULL;
}

static enum status write_card(const struct trainer *t, const struct step_report *last, struct err *e) {
    struct card_row rows[128];
    size_t n = 0;
    for (const cJSON *v = t->settings->values->child; v && n < sizeof rows / sizeof *rows; v = v->next)
        if (!cJSON_IsNull(v)) rows[n++] = (struct card_row){v->string, json_text(v, true)};
    char *loss = mem_format("%.4f", last->loss),
         *best = mem_format("%.4f (step %lld)", t->best_metric, (long long)t->best_step),
         *measure = mem_format("best %s on the val split", settings_text(t->settings, "metric_for_best_model"));
    char *path = path_join(t->output_dir, "README.md");
    struct card_row results[] = {{"training loss of the last step", loss}, {measure, best}};
    const char *name = settings_text(t->settings, "run_name");
    struct model_card card = {
        .name = name ? name : path_name(t->output_dir),
        .base_model = settings_text(t->settings, "model_name_or_path"),
        .method = method_name(t),
        .pipeline_tag = pipeline_tag(&t->model->config),
        .auto_class = auto_class(&t->model->config),
        .quant_type =
            settings_is(t->settings, "quantization", "none") ? NULL : settings_text(t->settings, "quantization"),
        .whole = t->adapter->finetuning != FINETUNE_LORA,
        .settings = rows,
        .setting_count = n,
        .results = results,
        .result_count = last->step ? t->best_step ? 2 : 1 : 0,
    };
    model_card_write(&card, path, e);
    for (size_t i = 0; i < n; i++) free((char *)rows[i].value);
    free(loss), free(best), free(measure), free(path);
    return e->code;
}

static enum status write_report(const struct trainer *t, struct err *e) {
    char *log = path_join(t->output_dir, "log.jsonl"), *config = path_join(t->output_dir, "config.yaml");
    char *path = path_join(t->output_dir, "report.html");
    bool head = t->evaluator && t->model->config.problem != PROBLEM_GENERATION;
    struct report_input in = {.title = settings_text(t->settings, "run_name"),
                              .log_path = log,
                              .config_path = config,
                              .outcome = head ? &t->evaluator->outcome : NULL,
                              .output_names = head && dataset_label_count(t->val) == t->evaluator->outcome.outputs
                                                  ? dataset_label_names(t->val)
                                                  : NULL};
    report_write(&in, path, e);
    free(log), free(config), free(path);
    return e->code;
}

static enum status write_config(const struct trainer *t, struct err *e) {
    char *text = settings_yaml(t->settings), *path = path_join(t->output_dir, "config.yaml");
    file_write(path, text, strlen(text), e);
    free(text), free(path);
    return e->code;
}

/* The best adapter by the val split takes the place of the last one, and its outputs that of the last one's. */
static enum status take_best(struct trainer *t, struct err *e) {
    if (!settings_bool(t->settings, "load_best_model_at_end") || !t->best_step || t->best_step == t->step) return ST_OK;
    char *path = checkpoint_path(t, t->best_step);
    trained_read(t->adapter, path, e);
    free(path);
    struct evaluation v;
    if (e->code == ST_OK && t->model->config.problem != PROBLEM_GENERATION)
        evaluator_run(t->evaluator, &v, NULL, NULL, e);
    return e->code;
}

/* --- the loop ---------------------------------------------------------------------------------------------------- */

static enum status save(struct trainer *t, const struct train_events *ev, struct err *e) {
    char *path;
    if (t->saved == t->step) return ST_OK; // by the evaluation of this step
    if (checkpoint_write(t, &path, e) != ST_OK) return e->code;
    if (ev->saved) ev->saved(ev->arg, t, path);
    free(path);
    t->saved = t->step;
    return checkpoint_prune(t, e);
}

/* The val split has not become better for too long. Asked of the trainer's state, because a run that was killed between
 * the checkpoint and its end resumes into this answer. */
static bool is_enough(const struct trainer *t) {
    int64_t patience = settings_int(t->settings, "early_stopping_patience");
    return patience > 0 && t->without_gain >= patience;
}

static enum status evaluate(struct trainer *t, struct run_log *log, const struct train_events *ev, struct err *e) {
    struct evaluation v;
    if (evaluator_run(t->evaluator, &v, NULL, NULL, e) != ST_OK || run_log_evaluation(log, t, &v, e) != ST_OK)
        return e->code;
    bool less;
    const char *name = settings_text(t->settings, "metric_for_best_model");
    evaluation_has(t->model->config.problem, name, &less);
    double now = evaluation_value(&v, name);
    bool better = t->best_step == 0 || (less ? now < t->best_metric : now > t->best_metric);
    t->without_gain = better ? 0 : t->without_gain + 1;
    if (better) t->best_metric = now, t->best_step = t->step;
    if (ev->evaluated) ev->evaluated(ev->arg, t, &v);
    return better && settings_bool(t->settings, "load_best_model_at_end") ? save(t, ev, e) : ST_OK;
}

static bool evaluation_is_due(const struct trainer *t) {
    if (!t->val) return false;
    if (t->step == t->steps) return true;
    if (settings_is(t->settings, "eval_strategy", "steps"))
        return t->step % settings_int(t->settings, "eval_steps") == 0;
    int64_t rows = t->accum * t->rows, all = dataset_rows(t->data);
    return t->step * rows / all != (t->step - 1) * rows / all; // the step that ends an epoch
}

static enum status loop(struct trainer *t, struct run_log *log, const struct train_events *ev, struct step_report *last,
                        bool *finished, struct err *e) {
    while (t->step < t->steps && !is_enough(t)) {
        if (train_step(t, last, e) != ST_OK) return e->code;
        bool due = t->step % settings_int(t->settings, "logging_steps") == 0 || t->step == t->steps;
        if (due && run_log_step(log, last, e) != ST_OK) return e->code;
        if (ev->step) ev->step(ev->arg, t, last);
        if (evaluation_is_due(t) && evaluate(t, log, ev, e) != ST_OK) return e->code;
        bool stopped = t->stop && *t->stop && t->step < t->steps;
        if ((stopped || t->step % settings_int(t->settings, "save_steps") == 0) && save(t, ev, e) != ST_OK)
            return e->code;
        if (stopped) return *finished = false, ST_OK;
    }
    return ST_OK;
}

/* One training at a time writes into a folder. Closing the descriptor gives the lock back, and so does the end of the
 * process, whatever it is; a file system without locks has none. -1: the folder is taken, or cannot be opened. */
static int lock_folder(const char *dir, struct err *e) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        err_set(e, ST_FAIL, "%s: cannot open (%s)", dir, strerror(errno));
    } else if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        err_set(e, ST_FAIL, "%s: another training is writing there; wait for its end, or name another output_dir", dir);
        close(fd);
        return -1;
    }
    return fd;
}

static enum status run_locked(struct trainer *t, const struct train_events *ev, bool *finished, struct err *e) {
    struct run_log *log = NULL;
    struct step_report last = {0};
    if (checkpoint_sweep(t->output_dir, e) != ST_OK || write_config(t, e) != ST_OK || run_log_open(&log, t, e) != ST_OK)
        return e->code;
    t->loader = open_loader(t);
    if (loop(t, log, ev, &last, finished, e) == ST_OK && *finished && take_best(t, e) == ST_OK &&
        trained_write(t->adapter, t->output_dir, AS_STORED, e) == ST_OK && write_card(t, &last, e) == ST_OK)
        write_report(t, e);
    run_log_close(log);
    return e->code;
}

enum status trainer_run(struct trainer *t, const struct train_events *ev, bool *finished, struct err *e) {
    *finished = true;
    if (dir_make(t->output_dir, e) != ST_OK) return e->code;
    int lock = lock_folder(t->output_dir, e);
    if (lock < 0) return e->code;
    run_locked(t, ev, finished, e);
    close(lock);
    return e->code;
}

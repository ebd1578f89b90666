/* graft eval: the loss of every row of a data set under a model, with or without an adapter; under a classification
 * head also its outputs, and how well they agree with the labels. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/out.h"
#include "cli/outputs.h"
#include "cli/session.h"
#include "cli/verbs.h"
#include "lora/evaluate.h"

static const struct flag eval_flags[] = {
    {"data", FLAG_TEXT, NULL, NULL, "a Mantis data YAML"},
    {"adapter", FLAG_TEXT, NULL, NULL, "a PEFT folder"},
    {"split", FLAG_TEXT, "val", "train|val|test", "which part of the data"},
    {"per_row", FLAG_TEXT, NULL, NULL, "file for one JSON line a row"},
    {"problem_type", FLAG_TEXT, NULL, "regression|single_label_classification|multi_label_classification",
     "of a head; unset: as adapter, model or labels say"},
    {"batch_size", FLAG_INT, "1", NULL, "rows that go through together"},
    {"conv_template", FLAG_TEXT, NULL, NULL, "a Mantis template; unset: the model's own"},
    {"max_seq_len", FLAG_INT, "0", NULL, "longer rows are cut; 0: no limit"},
    {"max_num_frames", FLAG_INT, "0", NULL, "frames of a video, where the data say nothing; 0: all"},
    {"on_bad_row", FLAG_TEXT, "stop", "stop|skip", "a row that cannot be used"},
};

struct rows {
    const struct dataset *data;
    struct text lines;
    const char *const *names; // of a head's outputs
    int64_t outputs;
    enum problem problem;
    struct progress progress;
    struct err *e;
};

static void add_row(void *arg, const struct row_loss *r) {
    struct rows *rows = arg;
    struct row row;
    progress_show(&rows->progress, r->row + 1, NULL);
    if (dataset_row(rows->data, r->row, false, &row, rows->e) != ST_OK) return;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "id", row.id);
    cJSON_AddNumberToObject(o, "tokens", (double)r->tokens);
    cJSON_AddNumberToObject(o, "scored", (double)r->scored);
    cJSON_AddNumberToObject(o, "loss_sum", r->loss_sum);
    if (r->outputs) cJSON_AddItemToObject(o, "outputs", outputs_json(rows->names, r->outputs, rows->outputs));
    if (r->outputs)
        cJSON_AddItemToObject(o, "labels",
                              rows->problem == PROBLEM_SINGLE_LABEL
                                  ? cJSON_CreateNumber((double)r->labels[0])
                                  : outputs_json(rows->names, r->labels, rows->outputs));
    char *line = json_text(o, true);
    text_addf(&rows->lines, "%s\n", line);
    free(line);
    cJSON_Delete(o);
    row_free(&row);
}

static void print(const struct flags *f, const struct evaluation *v, const char *const *names, double seconds) {
    uint64_t seed = (uint64_t)flag_int(f, "seed");
    double loss = v->loss_sum / (double)(v->scored ? v->scored : 1);
    if (flag_bool(f, "json")) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "rows", (double)v->rows);
        cJSON_AddNumberToObject(o, "tokens", (double)v->tokens);
        cJSON_AddNumberToObject(o, "scored", (double)v->scored);
        cJSON_AddNumberToObject(o, "loss", loss);
        if (v->outcome)
            outcome_json(o, v->outcome, names, seed);
        else
            cJSON_AddNumberToObject(o, "perplexity", exp(loss));
        cJSON_AddNumberToObject(o, "seconds", seconds);
        out_json(o);
        cJSON_Delete(o);
        return;
    }
    if (v->outcome) {
        out_text("rows        %lld\nloss        %.6f\n\n", (long long)v->rows, loss);
        outcome_print(v->outcome, names, seed);
        return;
    }
    out_text("rows        %lld\ntokens      %lld (%lld scored)\nloss        %.6f\nperplexity  %.4f\n",
             (long long)v->rows, (long long)v->tokens, (long long)v->scored, loss, exp(loss));
}

static enum status evaluate(struct session *s, const struct flags *f, struct file_out *per_row, struct err *e) {
    struct evaluator *ev = NULL;
    struct evaluation v;
    char **names = session_output_names(s, s->val);
    struct rows rows = {.data = s->val,
                        .e = e,
                        .names = (const char *const *)names,
                        .outputs = s->model->config.num_labels,
                        .problem = s->model->config.problem,
                        .progress = progress_new(f, "evaluating", dataset_rows(s->val))};
    double began = clock_now();
    if (evaluator_new(&ev, s->model, s->val, flag_int(f, "batch_size"), 1, s->act, e) == ST_OK)
        evaluator_run(ev, &v, add_row, &rows, e);
    progress_end(&rows.progress);
    if (e->code == ST_OK && per_row->stream && file_out_write(per_row, rows.lines.data, rows.lines.len, e) == ST_OK)
        file_out_commit(per_row, e);
    if (e->code == ST_OK) print(f, &v, rows.names, clock_now() - began);
    names_free(names, (size_t)s->model->config.num_labels);
    evaluator_free(ev);
    text_free(&rows.lines);
    return e->code;
}

static int run_eval(const struct flags *f, struct err *e) {
    struct session s = {0};
    struct file_out per_row = {0}; // opened before the work whose results it is to hold
    struct data_options data = session_data_options(f, flag_text(f, "data"), flag_text(f, "split"));
    if (!data.file) return err_set(e, ST_USAGE, "--data is missing; wanted: graft eval MODEL --data DATA.yaml");
    if (flag_int(f, "batch_size") < 1)
        return err_set(e, ST_USAGE, "--batch_size is %lld, wanted 1 or more", (long long)flag_int(f, "batch_size"));
    if (flag_given(f, "per_row") && file_out_open(&per_row, flag_text(f, "per_row"), e) != ST_OK) return e->code;
    if (session_open(&s, f, f->words[0], e) == ST_OK &&
        session_choose_head(&s, flag_text(f, "adapter"), flag_text(f, "problem_type"), 0, e) == ST_OK &&
        session_open_val(&s, f, &data, e) == ST_OK && session_load(&s, f, e) == ST_OK)
        evaluate(&s, f, &per_row, e);
    file_out_abandon(&per_row);
    session_close(&s);
    return e->code;
}

const struct verb verb_eval = {
    .name = "eval",
    .arguments = "MODEL --data DATA.yaml [--adapter ADAPTER]",
    .about = "loss of a data set, agreement of a head with its labels; row by row if asked",
    .flags = eval_flags,
    .flag_count = sizeof eval_flags / sizeof *eval_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_eval,
};

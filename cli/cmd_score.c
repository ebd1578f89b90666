/* graft score: what a model's classification head gives, by name, for the rows of a data set, for clips or for one
 * prompt. Labels of the rows are not read and need not be there. A clip becomes a row of the same kind: its prompt,
 * then `<image> ` for each frame, without a template, as VideoScore is asked. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/clips.h"
#include "cli/out.h"
#include "cli/outputs.h"
#include "cli/session.h"
#include "cli/verbs.h"
#include "data/config.h"
#include "lora/evaluate.h"

static const struct flag score_flags[] = {
    {"data", FLAG_TEXT, NULL, NULL, "a Mantis data YAML with rows of format classification"},
    {"video", FLAG_LIST, NULL, NULL, "or clips: a file, a folder of files, a folder of frames"},
    {"prompt", FLAG_TEXT, NULL, NULL, "the text that goes with the clips; without clips: one text alone"},
    {"prompts", FLAG_TEXT, NULL, NULL, "CSV or JSON with columns video, prompt: a text for each clip"},
    {"prompt_file", FLAG_TEXT, NULL, NULL, "a text around the prompt, which stands at {text_prompt}"},
    {"num_frames", FLAG_INT, "16", NULL, "frames that are taken of a clip, evenly spread; 0: all"},
    {"labels", FLAG_TEXT, NULL, NULL, "names of the outputs, with commas; videoscore: those of VideoScore"},
    {"csv", FLAG_TEXT, NULL, NULL, "writes the outputs as a table, one row a line"},
    {"dataloader_num_workers", FLAG_INT, "2", NULL, "threads that prepare rows ahead"},
    {"adapter", FLAG_TEXT, NULL, NULL, "a PEFT folder"},
    {"split", FLAG_TEXT, NULL, "train|val|test", "which part of the data; unset: all"},
    {"problem_type", FLAG_TEXT, NULL, "regression|single_label_classification|multi_label_classification",
     "of the head; unset: as adapter or model say"},
    {"max_seq_len", FLAG_INT, "0", NULL, "longer rows are cut; 0: no limit"},
    {"on_bad_row", FLAG_TEXT, "stop", "stop|skip", "a row that cannot be used"},
};

struct scoring {
    const struct flags *f;
    const struct dataset *data;
    char **names; // (outputs)
    int64_t outputs;
    enum problem problem;
    struct progress progress;
    struct text *table; // of --csv
    struct err *e;
};

/* --- a table ----------------------------------------------------------------------------------------------------- */

static void add_head(struct scoring *s, const char *id) {
    csv_add(s->table, id, true);
    for (int64_t i = 0; i < s->outputs; i++) csv_add(s->table, s->names[i], false);
    if (s->problem == PROBLEM_SINGLE_LABEL) csv_add(s->table, "class", false);
    text_add(s->table, "\r\n");
}

static const char *class_of(const struct scoring *s, const float *outputs) {
    int64_t best = 0;
    for (int64_t i = 1; i < s->outputs; i++)
        if (outputs[i] > outputs[best]) best = i;
    return s->names[best];
}

static void add_line(struct scoring *s, const char *id, const float *outputs) {
    csv_add(s->table, id, true);
    for (int64_t i = 0; i < s->outputs; i++) text_addf(s->table, ",%.9g", (double)outputs[i]);
    if (s->problem == PROBLEM_SINGLE_LABEL) csv_add(s->table, class_of(s, outputs), false);
    text_add(s->table, "\r\n");
}

/* One answer; id NULL: of a prompt. */
static void show(const struct scoring *s, const char *id, const float *outputs) {
    const char *const *names = (const char *const *)s->names;
    bool single = s->problem == PROBLEM_SINGLE_LABEL;
    if (flag_bool(s->f, "json")) {
        cJSON *o = cJSON_CreateObject();
        if (id) cJSON_AddStringToObject(o, "id", id);
        cJSON_AddItemToObject(o, "outputs", outputs_json(names, outputs, s->outputs));
        if (single) cJSON_AddStringToObject(o, "class", class_of(s, outputs));
        out_json(o);
        cJSON_Delete(o);
        return;
    }
    if (id) out_text("%s\n", id);
    outputs_print(names, outputs, s->outputs);
    if (single) out_text("class %s\n", class_of(s, outputs));
    if (id) out_text("\n");
}

static void show_row(void *arg, const struct row_loss *r) {
    struct scoring *s = arg;
    struct row row;
    progress_show(&s->progress, r->row + 1, NULL);
    if (dataset_row(s->data, r->row, false, &row, s->e) != ST_OK) return;
    show(s, row.id, r->outputs);
    if (flag_given(s->f, "csv")) add_line(s, row.id, r->outputs);
    row_free(&row);
}

static const char videoscore[] =
    "visual quality,temporal consistency,dynamic degree,text-to-video alignment,factual consistency";

/* --labels in place of the names that model and data have. */
static enum status rename_outputs(struct scoring *s, struct err *e) {
    const char *given = flag_text(s->f, "labels"), *at = given;
    if (!given) return ST_OK;
    if (strcmp(given, "videoscore") == 0) at = videoscore;
    int64_t n = 1;
    for (const char *c = at; *c; c++) n += *c == ',';
    if (n != s->outputs)
        return err_set(e, ST_FAIL, "--labels has %lld names, the model has %lld outputs", (long long)n,
                       (long long)s->outputs);
    for (int64_t i = 0; i < n; i++) {
        size_t length = strcspn(at, ",");
        free(s->names[i]);
        s->names[i] = mem_text_n(at, length);
        at += length + 1;
    }
    return ST_OK;
}

static struct scoring scoring_of(struct session *s, const struct flags *f, struct err *e) {
    return (struct scoring){.f = f,
                            .data = s->val,
                            .names = session_output_names(s, s->val),
                            .outputs = s->model->config.num_labels,
                            .problem = s->model->config.problem,
                            .e = e};
}

/* --- a data set -------------------------------------------------------------------------------------------------- */

static enum status score_rows(struct session *s, const struct flags *f, struct text *table, struct err *e) {
    struct evaluator *ev = NULL;
    struct evaluation v;
    struct scoring all = scoring_of(s, f, e);
    if (rename_outputs(&all, e) != ST_OK) return names_free(all.names, (size_t)all.outputs), e->code;
    all.progress = progress_new(f, "scoring", dataset_rows(s->val));
    all.table = table;
    if (!table->len) add_head(&all, flag_given(f, "data") ? "id" : "video");
    int workers = (int)flag_int(f, "dataloader_num_workers");
    if (evaluator_new(&ev, s->model, s->val, 1, workers, s->act, e) == ST_OK) evaluator_run(ev, &v, show_row, &all, e);
    progress_end(&all.progress);
    names_free(all.names, (size_t)all.outputs);
    evaluator_free(ev);
    return e->code;
}

/* A split of --data, or the clips of rows_text. */
static enum status score_set(struct session *s, const struct flags *f, const char *split, const char *rows_text,
                             struct text *table, struct err *e) {
    bool skip = strcmp(flag_text(f, "on_bad_row"), "skip") == 0;
    struct data_options o = {.file = rows_text ? NULL : flag_text(f, "data"),
                             .inline_dir = "",
                             .rows_text = rows_text,
                             .split = split,
                             .max_seq_len = flag_int(f, "max_seq_len"),
                             .skip_bad_rows = skip,
                             .decode_images = skip,
                             .unlabelled = true};
    if (rows_text || flag_given(f, "num_frames")) o.max_num_frames = flag_int(f, "num_frames");
    if (session_open_val(s, f, &o, e) != ST_OK) return e->code;
    if (!s->model && session_load(s, f, e) != ST_OK) return e->code;
    return score_rows(s, f, table, e);
}

static enum status score_data(struct session *s, const struct flags *f, struct text *table, struct err *e) {
    bool found[DATA_SPLITS];
    if (flag_given(f, "split")) return score_set(s, f, flag_text(f, "split"), NULL, table, e);
    if (data_config_splits(found, flag_text(f, "data"), e) != ST_OK) return e->code;
    bool any = false;
    for (int i = 0; i < DATA_SPLITS; i++) any = any || found[i];
    for (int i = 0; i < DATA_SPLITS && e->code == ST_OK; i++)
        if (found[i] || !any) score_set(s, f, data_splits[any ? i : DATA_SPLITS - 1], NULL, table, e);
    return e->code;
}

static enum status score_clips(struct session *s, const struct flags *f, struct text *table, struct err *e) {
    char *rows = clips_rows(f, e);
    if (rows) score_set(s, f, data_splits[DATA_SPLITS - 1], rows, table, e);
    free(rows);
    return e->code;
}

/* --- a prompt ---------------------------------------------------------------------------------------------------- */

/* The prompt as the only row of a batch, with labels of zeros. */
static enum status build_prompt(struct session *s, const char *prompt, struct batch *b, struct err *e) {
    struct row row = {.value_count = s->head.problem == PROBLEM_SINGLE_LABEL ? 1 : s->family.num_labels};
    if (tokenizer_encode(s->tokenizer, prompt, strlen(prompt), true, &row.ids, e) != ST_OK) return e->code;
    for (size_t i = 0; i < row.ids.len && e->code == ST_OK; i++)
        if (row.ids.data[i] >= s->family.vocab_size)
            err_set(e, ST_FAIL, "token %d of the prompt is outside the model's vocabulary of %lld", row.ids.data[i],
                    (long long)s->family.vocab_size);
    if (row.ids.len == 0) err_set(e, ST_USAGE, "--prompt becomes no token at all");
    row.positions = (int64_t)row.ids.len;
    row.labels = mem_alloc(row.ids.len * sizeof *row.labels);
    for (size_t i = 0; i < row.ids.len; i++) row.labels[i] = IGNORED;
    row.values = mem_alloc((size_t)row.value_count * sizeof *row.values);
    if (e->code == ST_OK) batch_build(b, &row, 1, &s->family);
    row_free(&row);
    return e->code;
}

static enum status score_prompt(struct session *s, const struct flags *f, struct err *e) {
    struct batch b = {0};
    struct workspace *w = NULL;
    if (s->family.family != FAMILY_TEXT)
        return err_set(e, ST_USAGE,
                       "--prompt alone is for a text model; give clips by --video, or a data set by --data");
    if (s->head.problem == PROBLEM_UNSAID) s->head.problem = PROBLEM_REGRESSION; // the outputs are the same
    if (build_prompt(s, flag_text(f, "prompt"), &b, e) != ST_OK) return e->code;
    struct workspace_options o = {.limits = {.N = b.N, .rows = 1, .scored = 1, .longest = b.N}, .act = s->act};
    if (session_load(s, f, e) == ST_OK && workspace_new(&w, s->model, &o, e) == ST_OK) {
        struct scoring one = scoring_of(s, f, e);
        float *outputs = mem_alloc((size_t)one.outputs * sizeof *outputs);
        struct pass p = pass_new(w, 0, 0);
        model_forward(&p, w, &b);
        head_loss(&p, w, NULL, 1);
        backend_download(s->be, outputs, &w->acts.outputs);
        if (backend_sync(s->be, e) == ST_OK && rename_outputs(&one, e) == ST_OK) show(&one, NULL, outputs);
        names_free(one.names, (size_t)one.outputs);
        free(outputs);
    }
    workspace_free(w);
    batch_free(&b);
    return e->code;
}

static enum status check_flags(const struct flags *f, struct err *e) {
    bool data = flag_given(f, "data"), clips = flag_given(f, "video") || flag_given(f, "prompts");
    if (data == (clips || flag_given(f, "prompt")))
        return err_set(e, ST_USAGE,
                       "wanted --data DATA.yaml, or --prompt TEXT with or without --video, one of the two");
    if (!clips && flag_given(f, "prompt_file")) return err_set(e, ST_USAGE, "--prompt_file wants --video");
    if (!clips && !data && flag_given(f, "csv")) return err_set(e, ST_USAGE, "--csv wants --video or --data");
    if (flag_int(f, "num_frames") < 0)
        return err_set(e, ST_USAGE, "--num_frames is %lld, wanted 0 (all) or more",
                       (long long)flag_int(f, "num_frames"));
    if (flag_int(f, "dataloader_num_workers") < 1 || flag_int(f, "dataloader_num_workers") > 256)
        return err_set(e, ST_USAGE, "--dataloader_num_workers is %lld, wanted 1 to 256",
                       (long long)flag_int(f, "dataloader_num_workers"));
    return ST_OK;
}

static int run_score(const struct flags *f, struct err *e) {
    struct session s = {0};
    struct text table = {0};
    struct file_out csv = {0};
    if (check_flags(f, e) != ST_OK) return e->code;
    if (flag_given(f, "csv") && file_out_open(&csv, flag_text(f, "csv"), e) != ST_OK) return e->code;
    if (session_open(&s, f, f->words[0], e) == ST_OK &&
        session_choose_head(&s, flag_text(f, "adapter"), flag_text(f, "problem_type"), 0, e) == ST_OK) {
        if (s.family.problem == PROBLEM_GENERATION || !s.family.num_labels)
            err_set(e, ST_FAIL, "%s: the model has no classification head; give an adapter that has one, or graft eval",
                    s.model_dir);
        else if (flag_text(f, "data"))
            score_data(&s, f, &table, e);
        else if (flag_given(f, "video") || flag_given(f, "prompts"))
            score_clips(&s, f, &table, e);
        else
            score_prompt(&s, f, e);
    }
    if (e->code == ST_OK && csv.stream && file_out_write(&csv, table.data, table.len, e) == ST_OK)
        file_out_commit(&csv, e);
    file_out_abandon(&csv);
    session_close(&s);
    text_free(&table);
    return e->code;
}

const struct verb verb_score = {
    .name = "score",
    .arguments = "MODEL (--video F --prompt TEXT | --data DATA.yaml) [--adapter ADAPTER]",
    .about = "the outputs of a classification head by name",
    .flags = score_flags,
    .flag_count = sizeof score_flags / sizeof *score_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_score,
};

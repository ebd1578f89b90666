/* graft score: what a model's classification head gives, by name, for the rows of a data set or for one prompt.
 * Labels of the rows are not read and need not be there. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/out.h"
#include "cli/outputs.h"
#include "cli/session.h"
#include "cli/verbs.h"
#include "data/config.h"
#include "lora/evaluate.h"

static const struct flag score_flags[] = {
    {"data", FLAG_TEXT, NULL, NULL, "a Mantis data YAML with rows of format classification"},
    {"prompt", FLAG_TEXT, NULL, NULL, "or one text"},
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
    struct err *e;
};

static const char *class_of(const struct scoring *s, const float *outputs) {
    int64_t best = 0;
    for (int64_t i = 1; i < s->outputs; i++)
        if (outputs[i] > outputs[best]) best = i;
    return s->names[best];
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
    row_free(&row);
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

static enum status score_rows(struct session *s, const struct flags *f, struct err *e) {
    struct evaluator *ev = NULL;
    struct evaluation v;
    struct scoring all = scoring_of(s, f, e);
    all.progress = progress_new(f, "scoring", dataset_rows(s->val));
    if (evaluator_new(&ev, s->model, s->val, 1, 1, s->act, e) == ST_OK) evaluator_run(ev, &v, show_row, &all, e);
    progress_end(&all.progress);
    names_free(all.names, (size_t)all.outputs);
    evaluator_free(ev);
    return e->code;
}

static enum status score_split(struct session *s, const struct flags *f, const char *split, struct err *e) {
    struct data_options o = {.file = flag_text(f, "data"),
                             .split = split,
                             .max_seq_len = flag_int(f, "max_seq_len"),
                             .skip_bad_rows = strcmp(flag_text(f, "on_bad_row"), "skip") == 0,
                             .unlabelled = true};
    struct text notes = {0};
    dataset_free(s->val);
    s->val = dataset_open(&o, &s->family, s->tokenizer, s->be->threads, &notes, e);
    if (notes.len) out_note(f, "%s", text_str(&notes));
    text_free(&notes);
    if (e->code != ST_OK || session_settle_head(s, s->val, e) != ST_OK) return e->code;
    if (!s->model && session_load(s, flag_text(f, "adapter"), e) != ST_OK) return e->code;
    return score_rows(s, f, e);
}

static enum status score_data(struct session *s, const struct flags *f, struct err *e) {
    bool found[DATA_SPLITS];
    if (flag_given(f, "split")) return score_split(s, f, flag_text(f, "split"), e);
    if (data_config_splits(found, flag_text(f, "data"), e) != ST_OK) return e->code;
    bool any = false;
    for (int i = 0; i < DATA_SPLITS; i++) any = any || found[i];
    for (int i = 0; i < DATA_SPLITS && e->code == ST_OK; i++)
        if (found[i] || !any) score_split(s, f, data_splits[any ? i : DATA_SPLITS - 1], e);
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
        return err_set(e, ST_USAGE, "--prompt alone is for a text model; give pictures and prompts by --data");
    if (s->head.problem == PROBLEM_UNSAID) s->head.problem = PROBLEM_REGRESSION; // the outputs are the same
    if (build_prompt(s, flag_text(f, "prompt"), &b, e) != ST_OK) return e->code;
    struct workspace_options o = {.limits = {.N = b.N, .rows = 1, .scored = 1, .longest = b.N}, .act = s->act};
    if (session_load(s, flag_text(f, "adapter"), e) == ST_OK && workspace_new(&w, s->model, &o, e) == ST_OK) {
        struct scoring one = scoring_of(s, f, e);
        float *outputs = mem_alloc((size_t)one.outputs * sizeof *outputs);
        struct pass p = pass_new(w, 0, 0);
        model_forward(&p, w, &b);
        head_loss(&p, w, NULL, 1);
        backend_download(s->be, outputs, &w->acts.outputs);
        if (backend_sync(s->be, e) == ST_OK) show(&one, NULL, outputs);
        names_free(one.names, (size_t)one.outputs);
        free(outputs);
    }
    workspace_free(w);
    batch_free(&b);
    return e->code;
}

static int run_score(const struct flags *f, struct err *e) {
    struct session s = {0};
    if (!flag_text(f, "data") == !flag_text(f, "prompt"))
        return err_set(e, ST_USAGE, "wanted --data DATA.yaml or --prompt TEXT, one of the two");
    if (session_open(&s, f, f->words[0], e) == ST_OK &&
        session_choose_head(&s, flag_text(f, "adapter"), flag_text(f, "problem_type"), 0, e) == ST_OK) {
        if (s.family.problem == PROBLEM_GENERATION || !s.family.num_labels)
            err_set(e, ST_FAIL, "%s: the model has no classification head; give an adapter that has one, or graft eval",
                    s.model_dir);
        else if (flag_text(f, "data"))
            score_data(&s, f, e);
        else
            score_prompt(&s, f, e);
    }
    session_close(&s);
    return e->code;
}

const struct verb verb_score = {
    .name = "score",
    .arguments = "MODEL (--data DATA.yaml | --prompt TEXT) [--adapter ADAPTER]",
    .about = "the outputs of a classification head by name",
    .flags = score_flags,
    .flag_count = sizeof score_flags / sizeof *score_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_score,
};

/* graft data: checks every row of a data YAML, counts, names what is wrong; shows or writes a row as the model sees it.
 *
 * Without a model the rows' JSON, turns and pictures are checked; with one every row is tokenized as training would. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cli/family.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/verbs.h"
#include "data/check.h"
#include "data/config.h"
#include "data/dataset.h"
#include "data/dump.h"
#include "data/show.h"

static const struct flag data_flags[] = {
    {"model", FLAG_TEXT, NULL, NULL, "tokenizes every row as this model would see it"},
    {"split", FLAG_TEXT, NULL, "train|val|test", "without it: every split of the file"},
    {"row", FLAG_INT, NULL, NULL, "shows row N of the split"},
    {"dump", FLAG_TEXT, NULL, NULL, "with --row: writes it as FILE.safetensors"},
    {"conv_template", FLAG_TEXT, NULL, NULL, "without it: the model's own"},
    {"max_seq_len", FLAG_INT, "0", NULL, "tokens that are kept of a row; 0: all"},
    {"max_num_frames", FLAG_INT, "0", NULL, "frames that are kept of a video; 0: all"},
    {"dataset_balancing", FLAG_BOOL, "false", NULL, "repeats small data sets, cuts large ones"},
    {"on_bad_row", FLAG_TEXT, "stop", "stop|skip", "skip: a bad row is no failure"},
    {"decode_images", FLAG_BOOL, "true", NULL, "with --model: every picture, not its head only"},
};

/* What all the work of one command shares. */
struct session {
    const struct flags *f;
    struct threads *threads;
    struct model_config config;
    struct data_family family;
    struct tokenizer *tokenizer; // NULL: without a model
    cJSON *report;               // with --json: a list, one object a split
    int64_t bad;
};

static struct data_options options_of(const struct flags *f, const char *split) {
    return (struct data_options){
        .file = f->words[0],
        .split = split,
        .conv_template = flag_text(f, "conv_template"),
        .max_seq_len = flag_int(f, "max_seq_len"),
        .max_num_frames = flag_int(f, "max_num_frames"),
        .balancing = flag_bool(f, "dataset_balancing"),
        .skip_bad_rows = true, // all bad rows are to be named
        .decode_images = flag_bool(f, "decode_images"),
    };
}

/* ---------------------------------------------------------------- one split */

/* Numbers of the report by name, as text or as JSON. */
struct figure {
    const char *name;
    int64_t value;
};

static void report(struct session *s, const char *split, const struct figure *figures, int count,
                   const struct text *notes) {
    if (!s->report) {
        out_text("%s, split %s:", s->f->words[0], split);
        for (int i = 0; i < count; i++)
            out_text("%s %s %lld", i ? "," : "", figures[i].name, (long long)figures[i].value);
        out_text("\n%s", text_str(notes));
        return;
    }
    cJSON *o = cJSON_CreateObject(), *lines = cJSON_AddArrayToObject(o, "notes");
    cJSON_AddStringToObject(o, "split", split);
    for (int i = 0; i < count; i++) cJSON_AddNumberToObject(o, figures[i].name, (double)figures[i].value);
    for (const char *at = text_str(notes); *at;) {
        size_t n = strcspn(at, "\n");
        char *line = mem_text_n(at, n);
        cJSON_AddItemToArray(lines, cJSON_CreateString(line));
        free(line);
        at += n + (at[n] == '\n');
    }
    cJSON_AddItemToArray(s->report, o);
}

static enum status check_plain(struct session *s, const char *split, struct err *e) {
    struct data_options o = options_of(s->f, split);
    struct text notes = {0};
    struct rows_report r;
    if (rows_check(&r, &o, s->threads, &notes, e) == ST_OK) {
        const struct figure figures[] = {{"rows", r.rows}, {"bad", r.bad}, {"turns", r.turns}, {"pictures", r.images}};
        report(s, split, figures, 4, &notes);
        s->bad += r.bad;
    }
    text_free(&notes);
    return e->code;
}

static int compare_int(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void report_dataset(struct session *s, const struct dataset *d, const char *split, const struct text *notes) {
    int64_t n = dataset_rows(d), pictures = 0;
    int64_t *length = mem_alloc((size_t)n * sizeof *length);
    for (int64_t i = 0; i < n; i++) {
        struct row_size size = dataset_row_size(d, i);
        length[i] = size.positions;
        pictures += size.images;
    }
    qsort(length, (size_t)n, sizeof *length, compare_int);
    const struct figure figures[] = {
        {"rows", n},
        {"bad", dataset_bad(d)},
        {"positions", dataset_tokens(d)},
        {"scored", dataset_scored(d)},
        {"shortest", length[0]},
        {"median", length[n / 2]},
        {"longest", length[n - 1]},
        {"pictures", pictures},
    };
    report(s, split, figures, sizeof figures / sizeof *figures, notes);
    free(length);
}

static void report_row(struct session *s, const struct row *row) {
    cJSON *last = cJSON_GetArrayItem(s->report, cJSON_GetArraySize(s->report) - 1);
    cJSON *o = cJSON_AddObjectToObject(last, "row");
    cJSON_AddStringToObject(o, "id", row->id);
    cJSON_AddStringToObject(o, "file", row->file);
    cJSON_AddNumberToObject(o, "index", (double)row->index);
    cJSON_AddNumberToObject(o, "positions", (double)row->positions);
    cJSON_AddNumberToObject(o, "scored", (double)row->scored);
    cJSON_AddItemToObject(o, "input_ids", cJSON_CreateIntArray(row->ids.data, (int)row->ids.len));
    cJSON_AddItemToObject(o, "labels",
                          row->value_count ? cJSON_CreateFloatArray(row->values, (int)row->value_count)
                                           : cJSON_CreateIntArray(row->labels, (int)row->ids.len));
}

static enum status show(struct session *s, const struct dataset *d, struct err *e) {
    const char *dump = flag_text(s->f, "dump");
    struct row row = {0};
    if (dataset_row(d, flag_int(s->f, "row"), dump != NULL, &row, e) != ST_OK) return e->code;
    struct text out = {0};
    if (s->report)
        report_row(s, &row);
    else
        show_row(&out, &row, &s->family, s->tokenizer, isatty(STDOUT_FILENO));
    out_bytes(text_str(&out), out.len);
    if (dump) dump_write(dump, &row, &s->family, e);
    text_free(&out);
    row_free(&row);
    return e->code;
}

static enum status check_dataset(struct session *s, const char *split, struct err *e) {
    struct data_options o = options_of(s->f, split);
    struct text notes = {0};
    struct dataset *d = dataset_open(&o, &s->family, s->tokenizer, s->threads, &notes, e);
    if (d) {
        s->bad += dataset_bad(d);
        report_dataset(s, d, split, &notes);
        if (flag_given(s->f, "row")) show(s, d, e);
    } else {
        out_lines(s->f, &notes); // why no row is left
    }
    dataset_free(d);
    text_free(&notes);
    return e->code;
}

/* ---------------------------------------------------------------- the command */

static enum status check_split(struct session *s, const char *split, struct err *e) {
    return s->tokenizer ? check_dataset(s, split, e) : check_plain(s, split, e);
}

/* The split that --split names, else all that the file has. --row wants one. */
static enum status check_splits(struct session *s, struct err *e) {
    bool found[DATA_SPLITS];
    if (flag_given(s->f, "split")) return check_split(s, flag_text(s->f, "split"), e);
    if (data_config_splits(found, s->f->words[0], e) != ST_OK) return e->code;
    int count = 0;
    for (int i = 0; i < DATA_SPLITS; i++) count += found[i];
    if (count == 0) return check_split(s, data_splits[0], e); // says what is missing
    if (count > 1 && flag_given(s->f, "row"))
        return err_set(e, ST_USAGE, "%s has several splits; --split says of which one --row is", s->f->words[0]);
    for (int i = 0; i < DATA_SPLITS && e->code == ST_OK; i++)
        if (found[i]) check_split(s, data_splits[i], e);
    return e->code;
}

static enum status check_flags(const struct flags *f, struct err *e) {
    if (flag_given(f, "row") && !flag_given(f, "model"))
        return err_set(e, ST_USAGE, "--row wants --model, whose tokenizer makes the row");
    if (flag_given(f, "dump") && !flag_given(f, "row")) return err_set(e, ST_USAGE, "--dump wants --row N");
    if (flag_int(f, "max_seq_len") < 0 || flag_int(f, "max_num_frames") < 0)
        return err_set(e, ST_USAGE, "--max_seq_len and --max_num_frames are 0 (no limit) or more");
    return ST_OK;
}

static int run_data(const struct flags *f, struct err *e) {
    if (check_flags(f, e) != ST_OK) return e->code;
    struct session s = {.f = f, .threads = threads_new((int)flag_int(f, "threads"))};
    char *dir = flag_given(f, "model") ? model_dir(flag_text(f, "model"), e) : NULL;
    if (flag_bool(f, "json")) s.report = cJSON_CreateArray();
    if (dir) family_open(dir, &s.config, &s.family, &s.tokenizer, e);
    if (e->code == ST_OK) check_splits(&s, e);
    if (e->code == ST_OK && s.report) out_json(s.report);
    if (e->code == ST_OK && s.bad && strcmp(flag_text(f, "on_bad_row"), "stop") == 0)
        err_set(e, ST_FAIL, "%s: bad rows: %lld; correct them, or --on_bad_row skip leaves them out", f->words[0],
                (long long)s.bad);
    tokenizer_free(s.tokenizer);
    model_config_free(&s.config);
    cJSON_Delete(s.report);
    threads_free(s.threads);
    free(dir);
    return e->code;
}

const struct verb verb_data = {
    .name = "data",
    .arguments = "DATA.yaml [--model MODEL] [--row N] [--dump FILE.safetensors]",
    .about = "checks every row; shows one as the model will see it",
    .flags = data_flags,
    .flag_count = sizeof data_flags / sizeof *data_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_data,
};

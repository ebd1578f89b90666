/* Opening: the YAML, the files, the template; then every row is parsed, encoded and measured on all threads, and the
 * mixture is laid out over those that passed. A row's check depends on the row only, and results are gathered in
 * order. */
#include "data/dataset.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/hash.h"
#include "base/memory.h"
#include "data/dataset_parts.h"
#include "data/image.h"
#include "data/mixture.h"

enum verdict { VERDICT_SKIPPED, VERDICT_KEPT, VERDICT_LEFT_OUT, VERDICT_BAD };

struct checked {
    enum verdict verdict;
    struct entry entry;
    bool graded;    // a label of it is neither 0 nor 1
    char *sentence; // of a bad row, or a remark on a kept one
};

struct check {
    const struct dataset *d;
    const struct set *s;
    const struct data_options *o;
    const int64_t *order;   // rows of the file, in the order of the set
    struct checked *result; // of order[i]
    atomic_llong stop;      // nothing after this place is needed
};

static bool is_left_out(const struct set_config *c, const struct chat_row *r) {
    if (c->max_num_images && r->image_count > (size_t)c->max_num_images) return true;
    return c->vl_only && r->image_count == 0;
}

static enum status check_row(const struct check *c, int64_t index, struct chat_row *r, struct checked *out,
                             struct err *e) {
    if (set_row_read(c->s, r, index, 0, e) != ST_OK) return e->code;
    if (is_left_out(c->s->config, r)) {
        out->verdict = VERDICT_LEFT_OUT;
        return ST_OK;
    }
    struct row row = {0};
    if (row_encode(&row, c->d, c->s, r, index, e) == ST_OK && row_measure_images(&row, c->d, c->s, r, e) == ST_OK &&
        (!c->o->decode_images || row_read_images(&row, c->d, c->s, r, false, e) == ST_OK)) {
        struct patch_count count = image_set_count(row.image, row.images, &c->d->family);
        out->verdict = VERDICT_KEPT;
        out->entry = (struct entry){.row = (int32_t)index,
                                    .positions = (int32_t)row.positions,
                                    .scored = (int32_t)row.scored,
                                    .images = (int32_t)row.images,
                                    .patches = count.patches,
                                    .most_patches = count.most,
                                    .frames = r->video_frames};
        for (int64_t i = 0; i < row.value_count; i++) out->graded |= row.values[i] != 0 && row.values[i] != 1;
        if (row.scored == 0) out->sentence = mem_format("%s: no token of the row is trained", r->where);
    }
    row_free(&row);
    return e->code;
}

static void check_task(void *arg, int64_t task, int thread) {
    struct check *c = arg;
    (void)thread;
    if (task > atomic_load_explicit(&c->stop, memory_order_relaxed)) return;
    struct err e = {0};
    struct chat_row r = {0};
    struct checked *out = &c->result[task];
    if (check_row(c, c->order[task], &r, out, &e) != ST_OK) {
        out->verdict = VERDICT_BAD;
        out->sentence = mem_text(e.text);
        long long stop = atomic_load(&c->stop);
        while (!c->o->skip_bad_rows && task < stop && !atomic_compare_exchange_weak(&c->stop, &stop, task)) {}
    }
    chat_row_free(&r);
}

static enum status gather(struct dataset *d, struct set *s, const struct data_options *o, struct checked *result,
                          int64_t n, struct text *notes, struct err *e) {
    int64_t left_out = 0;
    s->entry = mem_alloc((size_t)n * sizeof *s->entry);
    for (int64_t i = 0; i < n; i++) {
        struct checked *r = &result[i];
        if (r->verdict == VERDICT_KEPT) s->entry[s->count++] = r->entry;
        d->graded = d->graded || r->graded;
        left_out += r->verdict == VERDICT_LEFT_OUT;
        d->bad += r->verdict == VERDICT_BAD;
        bool fatal = r->verdict == VERDICT_BAD && !o->skip_bad_rows;
        if (fatal) err_set(e, ST_FAIL, "%s", r->sentence);
        if (r->sentence && notes && !fatal) text_addf(notes, "%s\n", r->sentence);
        free(r->sentence);
    }
    if (left_out && notes)
        text_addf(notes, "%s: %lld rows left out by max_num_images or vl_only\n", s->config->path, (long long)left_out);
    return e->code;
}

/* Labels are ordered by the first row that can be read at all; what is wrong with others is found by their check. */
static enum status name_labels(struct dataset *d, const struct set *s, struct err *e) {
    struct err first = {0};
    for (int64_t i = 0; i < s->rows.count && d->labels.count == 0; i++) {
        struct chat_row r = {0};
        struct err bad = {0};
        if (class_row_read(&r, &s->rows, i, &bad) != ST_OK)
            err_set(&first, bad.code, "%s", bad.text);
        else if (!r.labels)
            err_set(&first, ST_FAIL, "%s: wanted \"labels\" with at least one name and its number", r.where);
        else if (label_names_init(&d->labels, &r, &d->family, d->unlabelled ? &bad : e) != ST_OK)
            i = s->rows.count;
        chat_row_free(&r);
    }
    if (e->code == ST_OK && d->labels.count == 0 && !d->unlabelled) err_set(e, first.code, "%s", first.text);
    if (d->problem == PROBLEM_UNSAID && d->labels.count == 1) d->problem = PROBLEM_SINGLE_LABEL;
    return e->code;
}

/* Shuffled, then cut to max_size, then checked: Mantis' order of things. */
static enum status open_set(struct dataset *d, struct set *s, const struct data_options *o, struct threads *threads,
                            struct text *notes, struct err *e) {
    const char *path = s->config->path;
    if (o->rows_text) rows_open_text(&s->rows, path, o->rows_text, e);
    if (!o->rows_text) rows_open(&s->rows, path, e);
    if (e->code != ST_OK) return e->code;
    if (s->rows.count > INT32_MAX)
        return err_set(e, ST_FAIL, "%s: %lld rows, at most %d are taken; split the file", s->config->path,
                       (long long)s->rows.count, INT32_MAX);
    bool named = s->config->format != ROWS_CLASSIFICATION || d->labels.count;
    if (!named && name_labels(d, s, e) != ST_OK) return e->code;
    int64_t n = s->rows.count;
    int64_t *order = mem_alloc((size_t)n * sizeof *order);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    if (s->config->shuffle) mixture_shuffle(order, n);
    if (s->config->max_size && n > s->config->max_size) n = s->config->max_size;
    struct check c = {.d = d, .s = s, .o = o, .order = order, .result = mem_alloc((size_t)n * sizeof *c.result)};
    atomic_init(&c.stop, n);
    threads_for(threads, n, check_task, &c);
    gather(d, s, o, c.result, n, notes, e);
    free(c.result);
    free(order);
    return e->code;
}

static enum status mix(struct dataset *d, bool balancing, struct err *e) {
    size_t count = d->config.count;
    int64_t *rows = mem_alloc(count * sizeof *rows), *shown = mem_alloc(count * sizeof *shown);
    for (size_t i = 0; i < count; i++) rows[i] = d->set[i].count;
    mixture_lengths(shown, rows, count, balancing);
    for (size_t i = 0; i < count; i++) {
        struct set *s = &d->set[i];
        s->first = d->rows, s->shown = shown[i];
        d->rows += s->shown;
        for (int64_t k = 0; k < s->shown; k++) {
            d->tokens += s->entry[k % s->count].positions;
            d->scored += s->entry[k % s->count].scored;
        }
    }
    free(rows), free(shown);
    if (d->rows) return ST_OK;
    return err_set(e, ST_FAIL, "%s: no row of %s can be used", d->config.where, d->config.sets[0].path);
}

static uint64_t hash_int(uint64_t h, int64_t x) { return hash_bytes(h, &x, sizeof x); }

/* The lengths stand for tokenizer and template: another one of either hardly gives the same for every row. */
static uint64_t fingerprint(const struct dataset *d) {
    uint64_t h = hash_text(HASH_START, d->chat.conv ? conversation_name(d->chat.conv) : "");
    h = hash_int(h, d->family.family);
    h = hash_int(h, d->family.tokens_per_image);
    for (size_t i = 0; i < d->config.count; i++) {
        const struct set *s = &d->set[i];
        h = hash_int(h, (int64_t)s->rows.size);
        h = hash_bytes(h, s->rows.data, s->rows.size);
        h = hash_bytes(h, s->entry, (size_t)s->count * sizeof *s->entry);
        h = hash_int(h, s->shown);
        h = hash_int(h, s->config->max_image_size);
        h = hash_int(h, s->config->max_seq_len);
        h = hash_int(h, s->config->frames.most);
        h = hash_bytes(h, &s->config->frames.fps, sizeof s->config->frames.fps);
    }
    for (int64_t i = 0; i < d->labels.count; i++) h = hash_text(h, d->labels.name[i]);
    return h;
}

/* Chat rows teach a language model, with or without videos; classification rows teach a head. */
static enum status check_formats(struct dataset *d, struct err *e) {
    bool class = d->config.sets[0].format == ROWS_CLASSIFICATION;
    for (size_t i = 1; i < d->config.count; i++)
        if ((d->config.sets[i].format == ROWS_CLASSIFICATION) != class)
            return err_set(e, ST_FAIL,
                           "%s: data sets %s and %s are of different formats; one run takes chat and chat_video, or "
                           "classification",
                           d->config.where, d->config.sets[0].name, d->config.sets[i].name);
    d->problem = class ? d->family.problem : PROBLEM_GENERATION;
    if (class && d->problem == PROBLEM_GENERATION) d->problem = PROBLEM_UNSAID;
    return ST_OK;
}

static enum status open_template(struct dataset *d, const struct data_options *o, struct err *e) {
    if (d->config.sets[0].format == ROWS_CLASSIFICATION) return ST_OK; // a prompt is written as it is
    const char *name = o->conv_template ? o->conv_template : d->family.default_template;
    if (name)
        d->chat.conv = conversation_find(name, e);
    else
        d->chat.own = d->own = chat_template_load(d->family.model_dir, e);
    return e->code;
}

static enum status open_pictures(struct dataset *d, const struct tokenizer *t, struct err *e) {
    if (d->family.family == FAMILY_TEXT) return ST_OK;
    if (image_set_open(&d->processor, &d->family, t, e) == ST_OK) d->chat.pieces = processor_pieces(&d->processor);
    return e->code;
}

struct dataset *dataset_open(const struct data_options *o, const struct data_family *f, const struct tokenizer *t,
                             struct threads *threads, struct text *notes, struct err *e) {
    struct dataset *d = mem_alloc(sizeof *d);
    d->family = *f;
    d->unlabelled = o->unlabelled;
    d->chat = (struct chat){.tokenizer = t, .family = &d->family};
    if (data_config_read(&d->config, o, e) == ST_OK && check_formats(d, e) == ST_OK &&
        open_template(d, o, e) == ST_OK && open_pictures(d, t, e) == ST_OK) {
        d->set = mem_alloc(d->config.count * sizeof *d->set);
        for (size_t i = 0; i < d->config.count && e->code == ST_OK; i++) {
            d->set[i].config = &d->config.sets[i];
            open_set(d, &d->set[i], o, threads, notes, e);
        }
    }
    if (e->code == ST_OK && mix(d, o->balancing, e) == ST_OK) {
        if (d->problem == PROBLEM_UNSAID && d->unlabelled) d->problem = PROBLEM_REGRESSION;
        if (d->problem == PROBLEM_UNSAID) d->problem = d->graded ? PROBLEM_REGRESSION : PROBLEM_MULTI_LABEL;
        d->fingerprint = fingerprint(d);
        return d;
    }
    dataset_free(d);
    return NULL;
}

void dataset_free(struct dataset *d) {
    if (!d) return;
    for (size_t i = 0; d->set && i < d->config.count; i++) {
        rows_close(&d->set[i].rows);
        free(d->set[i].entry);
    }
    free(d->set);
    label_names_free(&d->labels);
    data_config_free(&d->config);
    chat_template_free(d->own);
    free(d);
}

enum problem dataset_problem(const struct dataset *d) { return d->problem; }
int64_t dataset_label_count(const struct dataset *d) { return d->labels.count; }
const char *const *dataset_label_names(const struct dataset *d) { return (const char *const *)d->labels.name; }
int64_t dataset_rows(const struct dataset *d) { return d->rows; }
int64_t dataset_bad(const struct dataset *d) { return d->bad; }
int64_t dataset_tokens(const struct dataset *d) { return d->tokens; }
int64_t dataset_scored(const struct dataset *d) { return d->scored; }
uint64_t dataset_fingerprint(const struct dataset *d) { return d->fingerprint; }

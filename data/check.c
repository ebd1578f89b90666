#include "data/check.h"

#include <stdlib.h>

#include "base/memory.h"
#include "data/config.h"
#include "data/dataset_parts.h"
#include "data/image.h"

struct checked {
    int64_t turns, images;
    char *sentence; // NULL: a good row
};

struct check {
    const struct set *s;
    struct checked *result; // of row i of the file
    struct label_names labels;
};

static enum status check_images(const struct set *s, const struct chat_row *r, struct err *e) {
    if (r->video) return ST_OK; // its head was read with the row
    for (size_t i = 0; i < r->image_count && e->code == ST_OK; i++) {
        int64_t width, height;
        struct err inner = {0};
        char *path = row_image_path(s, r, (int64_t)i);
        if (image_size(path, &width, &height, &inner) != ST_OK) err_set(e, inner.code, "%s: %s", r->where, inner.text);
        free(path);
    }
    return e->code;
}

static enum status check_labels(const struct check *c, const struct chat_row *r, struct err *e) {
    if (c->s->config->format != ROWS_CLASSIFICATION || c->labels.count == 0) return ST_OK;
    float *values = mem_alloc((size_t)c->labels.count * sizeof *values);
    label_values(values, &c->labels, r, PROBLEM_UNSAID, 0, e);
    free(values);
    return e->code;
}

/* The labels of the first row that can be read. */
static void name_labels(struct check *c) {
    const struct data_family any = {.problem = PROBLEM_REGRESSION};
    for (int64_t i = 0; i < c->s->rows.count && c->labels.count == 0; i++) {
        struct chat_row r = {0};
        struct err quiet = {0};
        if (class_row_read(&r, &c->s->rows, i, &quiet) == ST_OK && r.labels)
            label_names_init(&c->labels, &r, &any, &quiet);
        chat_row_free(&r);
    }
}

static void check_task(void *arg, int64_t task, int thread) {
    const struct check *c = arg;
    struct checked *out = &c->result[task];
    struct chat_row r = {0};
    struct err e = {0};
    (void)thread;
    if (set_row_read(c->s, &r, task, 0, &e) == ST_OK && check_labels(c, &r, &e) == ST_OK) check_images(c->s, &r, &e);
    out->turns = (int64_t)r.count;
    out->images = (int64_t)r.image_count;
    if (e.code != ST_OK) out->sentence = mem_text(e.text);
    chat_row_free(&r);
}

static void check_set(struct rows_report *r, const struct set_config *config, struct threads *threads,
                      struct text *notes, struct err *e) {
    struct set s = {.config = config};
    if (rows_open(&s.rows, config->path, e) != ST_OK) return;
    struct check c = {.s = &s, .result = mem_alloc((size_t)s.rows.count * sizeof *c.result)};
    if (config->format == ROWS_CLASSIFICATION) name_labels(&c);
    threads_for(threads, s.rows.count, check_task, &c);
    r->rows += s.rows.count;
    for (int64_t i = 0; i < s.rows.count; i++) {
        struct checked *row = &c.result[i];
        if (row->sentence) {
            r->bad++;
            text_addf(notes, "%s\n", row->sentence);
        } else {
            r->turns += row->turns;
            r->images += row->images;
        }
        free(row->sentence);
    }
    free(c.result);
    label_names_free(&c.labels);
    rows_close(&s.rows);
}

enum status rows_check(struct rows_report *r, const struct data_options *o, struct threads *threads, struct text *notes,
                       struct err *e) {
    struct data_config config;
    *r = (struct rows_report){0};
    if (data_config_read(&config, o, e) == ST_OK)
        for (size_t i = 0; i < config.count && e->code == ST_OK; i++) check_set(r, &config.sets[i], threads, notes, e);
    data_config_free(&config);
    return e->code;
}

/* One row as the model will see it: ids, labels, counts, and the pictures' pixels when they are asked for. */
#include <stdlib.h>

#include "base/file.h"
#include "base/memory.h"
#include "data/dataset_parts.h"
#include "data/image.h"

/* Targets are the labels of the expanded row moved by one: the first position is no target, a picture's have no
 * label. */
static int64_t count_scored(const struct row *r, const struct data_family *f) {
    int64_t n = 0;
    for (size_t i = 1; i < r->ids.len; i++) {
        bool picture = f->family != FAMILY_TEXT && r->ids.data[i] == f->image_token;
        n += r->labels[i] != IGNORED && (!picture || family_labels_pictures(f));
    }
    return n;
}

enum status set_row_read(const struct set *s, struct chat_row *r, int64_t index, int64_t frames, struct err *e) {
    const struct set_config *c = s->config;
    if (c->format == ROWS_CHAT) return chat_row_read(r, &s->rows, index, e);
    bool video = c->format == ROWS_CHAT_VIDEO;
    enum status st = video ? video_row_read(r, &s->rows, index, e) : class_row_read(r, &s->rows, index, e);
    return st == ST_OK ? row_choose_frames(r, c->video_folder, &c->frames, video, frames, e) : st;
}

char *row_image_path(const struct set *s, const struct chat_row *chat_row, int64_t i) {
    if (chat_row->media) return mem_text(chat_row->images[i]); // of a folder of frames
    return path_join(s->config->folder, chat_row->images[i]);
}

/* Fuyu writes a picture as its patches, so their sides come before the text; all are kept, also those whose tokens are
 * cut. */
static enum status measure_first(struct row *out, const struct dataset *d, const struct set *s,
                                 const struct chat_row *chat_row, struct err *e) {
    out->images = (int64_t)chat_row->image_count;
    out->image = mem_alloc(chat_row->image_count * sizeof *out->image);
    return row_measure_images(out, d, s, chat_row, e);
}

/* The pictures of the text that was written, of one known size unless they were measured. */
static void place_images(struct row *out, const struct dataset *d, int64_t images) {
    if (d->family.family == FAMILY_MFUYU) {
        out->unseen = out->images - images;
        out->images = images;
        return;
    }
    out->images = images;
    out->image = mem_alloc((size_t)images * sizeof *out->image);
    for (int64_t i = 0; i < images; i++)
        out->image[i] = (struct batch_image){.height = d->processor.height, .width = d->processor.width};
}

enum status row_encode(struct row *out, const struct dataset *d, const struct set *s, const struct chat_row *chat_row,
                       int64_t index, struct err *e) {
    *out = (struct row){.file = s->config->path, .index = index};
    struct chat_ids c = {0};
    bool class = s->config->format == ROWS_CLASSIFICATION;
    if (d->family.family == FAMILY_MFUYU && measure_first(out, d, s, chat_row, e) != ST_OK) return e->code;
    enum status st = class ? chat_encode_prompt(&c, &d->chat, chat_row, out->image, s->config->max_seq_len, e)
                           : chat_encode(&c, &d->chat, chat_row, out->image, s->config->max_seq_len, e);
    if (st == ST_OK && c.ids.len == 0) err_set(e, ST_FAIL, "%s: the row becomes no token at all", chat_row->where);
    if (e->code != ST_OK) return chat_ids_free(&c), e->code;
    out->id = mem_text(chat_row->id);
    out->ids = c.ids, out->labels = c.labels;
    place_images(out, d, c.images);
    out->positions = (int64_t)c.ids.len + c.images * family_extra_positions(&d->family);
    out->scored = class ? 1 : count_scored(out, &d->family);
    if (class) {
        out->value_count = d->unlabelled ? d->family.num_labels : d->labels.count;
        if (d->problem == PROBLEM_SINGLE_LABEL) out->value_count = 1;
        out->values = mem_alloc((size_t)out->value_count * sizeof *out->values);
        if (!d->unlabelled &&
            label_values(out->values, &d->labels, chat_row, d->problem, d->family.num_labels, e) != ST_OK)
            return e->code;
    }
    if (out->positions <= INT32_MAX) return ST_OK;
    return err_set(e, ST_FAIL, "%s: the row takes %lld positions, at most %d are possible", chat_row->where,
                   (long long)out->positions, INT32_MAX);
}

/* Mantis leaves the frames of chat_video as they are. */
static bool enlarges(const struct set *s) { return s->config->format != ROWS_CHAT_VIDEO; }

/* These two take a picture by its number among those that the row names; `where` names it. */
static enum status measure_picture(struct row *out, const struct dataset *d, const struct set *s, int64_t picture,
                                   int64_t width, int64_t height, const char *where, struct err *e) {
    int64_t pieces = processor_pieces(&d->processor);
    if (picture * pieces >= out->images) return ST_OK; // its token was cut
    if (enlarges(s) && image_mantis_sides(&width, &height, s->config->max_image_size, where, e) != ST_OK)
        return e->code;
    return image_set_measure(out->image + picture * pieces, &d->processor, width, height, where, e);
}

static enum status process_picture(struct row *out, const struct dataset *d, const struct set *s, int64_t picture,
                                   struct image *im, const char *where, struct err *e) {
    if (enlarges(s) && image_mantis_size(im, s->config->max_image_size, where, e) != ST_OK) return e->code;
    return image_set_process(out->image + picture * processor_pieces(&d->processor), &d->processor, im, where, e);
}

/* What all pictures of a row must be to each other. */
static enum status check_together(struct row *out, const struct dataset *d, const struct chat_row *chat_row,
                                  struct err *e) {
    struct err inner = {0};
    if (image_set_check(out->image, out->images, &d->processor, &d->family, &inner) == ST_OK) return ST_OK;
    return err_set(e, inner.code, "%s: %s", chat_row->where, inner.text);
}

/* What an error calls picture i; the caller frees. */
static char *name_picture(const struct set *s, const struct chat_row *r, int64_t i) {
    if (!r->video) return row_image_path(s, r, i);
    return mem_format("%s, frame %lld", r->media, (long long)r->frame[i]);
}

static enum status measure(struct row *out, const struct dataset *d, const struct set *s, const struct chat_row *r,
                           int64_t picture, const char *name, struct err *e) {
    int64_t width = r->video_width, height = r->video_height;
    if (!r->video && image_size(name, &width, &height, e) != ST_OK) return e->code;
    return measure_picture(out, d, s, picture, width, height, name, e);
}

static enum status process(struct row *out, const struct dataset *d, const struct set *s, const struct chat_row *r,
                           int64_t picture, const char *name, struct err *e) {
    struct image im = {0};
    enum status st = r->video ? row_read_frame(&im, r, picture, e) : image_read(&im, name, e);
    if (st == ST_OK) process_picture(out, d, s, picture, &im, name, e);
    image_free(&im);
    return e->code;
}

enum status row_measure_images(struct row *out, const struct dataset *d, const struct set *s,
                               const struct chat_row *chat_row, struct err *e) {
    if (d->family.family == FAMILY_MFUYU && out->ids.len) return ST_OK; // before it was written
    for (size_t i = 0; i < chat_row->image_count; i++) {
        char *name = name_picture(s, chat_row, (int64_t)i);
        struct err inner = {0};
        if (measure(out, d, s, chat_row, (int64_t)i, name, &inner) != ST_OK)
            err_set(e, inner.code, "%s: %s", chat_row->where, inner.text);
        free(name);
        if (e->code != ST_OK) return e->code;
    }
    return check_together(out, d, chat_row, e);
}

static void drop_pixels(struct batch_image *image, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        free(image[i].pixels);
        image[i].pixels = NULL;
    }
}

enum status row_read_images(struct row *out, const struct dataset *d, const struct set *s,
                            const struct chat_row *chat_row, bool keep, struct err *e) {
    int64_t pieces = processor_pieces(&d->processor);
    for (int64_t i = 0; i < out->images + out->unseen; i += pieces) {
        int64_t picture = i / pieces;
        char *name = name_picture(s, chat_row, picture);
        struct err inner = {0};
        if (process(out, d, s, chat_row, picture, name, &inner) != ST_OK)
            err_set(e, inner.code, "%s: %s", chat_row->where, inner.text);
        if (!keep) drop_pixels(out->image + i, pieces);
        free(name);
        if (e->code != ST_OK) return e->code;
    }
    return check_together(out, d, chat_row, e);
}

static const struct set *set_of(const struct dataset *d, int64_t row) {
    const struct set *s = d->set;
    while (row >= s->first + s->shown) s++;
    return s;
}

static const struct entry *entry_of(const struct set *s, int64_t row) { return &s->entry[(row - s->first) % s->count]; }

const struct entry *dataset_entry(const struct dataset *d, int64_t row) { return entry_of(set_of(d, row), row); }

struct row_size dataset_row_size(const struct dataset *d, int64_t row) {
    const struct entry *e = dataset_entry(d, row);
    return (struct row_size){e->positions, e->scored, e->images, e->patches, e->most_patches};
}

enum status dataset_row(const struct dataset *d, int64_t row, bool pixels, struct row *out, struct err *e) {
    *out = (struct row){0};
    if (row < 0 || row >= d->rows)
        return err_set(e, ST_FAIL, "%s: there is no row %lld; the data set has rows 0 to %lld", d->config.where,
                       (long long)row, (long long)d->rows - 1);
    const struct set *s = set_of(d, row);
    const struct entry *entry = entry_of(s, row);
    int64_t index = entry->row;
    struct chat_row chat_row = {0};
    if (set_row_read(s, &chat_row, index, entry->frames, e) == ST_OK &&
        row_encode(out, d, s, &chat_row, index, e) == ST_OK) {
        if (pixels)
            row_read_images(out, d, s, &chat_row, true, e);
        else if (d->family.family == FAMILY_IDEFICS2)
            row_measure_images(out, d, s, &chat_row, e);
    }
    chat_row_free(&chat_row);
    if (e->code != ST_OK) row_free(out);
    return e->code;
}

void row_free(struct row *r) {
    for (int64_t i = 0; i < r->images + r->unseen; i++) batch_image_free(&r->image[i]);
    free(r->image), free(r->labels), free(r->values), free((void *)r->id);
    ids_free(&r->ids);
    *r = (struct row){0};
}

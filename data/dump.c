#include "data/dump.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/image_set.h"

static void add_ints(struct dump *d, const char *name, const int32_t *data, int64_t n) {
    d->entry[d->count++] = (struct st_entry){
        .name = name, .type = ST_I32, .rank = 1, .dim = {n}, .data = data, .bytes = (size_t)n * sizeof *data};
}

/* The pictures end to end, each in the upper left corner of the largest sides. */
static void add_pixels(struct dump *d, const struct row *r, struct sides largest) {
    int64_t H = largest.rows, W = largest.cols, each = 3 * H * W;
    d->pixels = mem_alloc((size_t)(r->images * each) * sizeof *d->pixels);
    for (int64_t i = 0; i < r->images; i++) {
        const struct batch_image *im = &r->image[i];
        for (int64_t c = 0; c < 3; c++)
            for (int64_t y = 0; y < im->height; y++)
                memcpy(d->pixels + i * each + (c * H + y) * W, im->pixels + (c * im->height + y) * im->width,
                       (size_t)im->width * sizeof *d->pixels);
    }
    d->entry[d->count++] = (struct st_entry){.name = "pixel_values",
                                             .type = ST_F32,
                                             .rank = 4,
                                             .dim = {r->images, 3, H, W},
                                             .data = d->pixels,
                                             .bytes = (size_t)(r->images * each) * sizeof *d->pixels};
}

static void add_mask(struct dump *d, const struct row *r, struct sides largest) {
    int64_t H = largest.rows, W = largest.cols, n = r->images * H * W;
    d->mask = mem_alloc((size_t)n * sizeof *d->mask);
    for (int64_t i = 0; i < r->images; i++)
        for (int64_t y = 0; y < r->image[i].height; y++)
            for (int64_t x = 0; x < r->image[i].width; x++) d->mask[(i * H + y) * W + x] = 1;
    d->entry[d->count++] = (struct st_entry){.name = "pixel_attention_mask",
                                             .type = ST_I32,
                                             .rank = 3,
                                             .dim = {r->images, H, W},
                                             .data = d->mask,
                                             .bytes = (size_t)n * sizeof *d->mask};
}

static void add_patches(struct dump *d, const struct row *r, struct sides largest, const struct data_family *f) {
    int64_t rows = largest.rows / f->patch_size, cols = largest.cols / f->patch_size, n = r->images * rows * cols;
    int32_t *own = mem_alloc((size_t)(rows * cols) * sizeof *own);
    d->patches = mem_alloc((size_t)n * sizeof *d->patches);
    for (int64_t i = 0; i < r->images; i++) {
        struct sides s = image_set_patches(&r->image[i], largest, f->patch_size);
        image_set_positions(own, s, f->grid_side);
        for (int64_t y = 0; y < s.rows; y++)
            memcpy(d->patches + (i * rows + y) * cols, own + y * s.cols, (size_t)s.cols * sizeof *own);
    }
    free(own);
    d->entry[d->count++] = (struct st_entry){.name = "patch_position_ids",
                                             .type = ST_I32,
                                             .rank = 2,
                                             .dim = {r->images, rows * cols},
                                             .data = d->patches,
                                             .bytes = (size_t)n * sizeof *d->patches};
}

/* Fuyu: the patches of all pictures end to end, those of cut ones too; of each position, which of them it is. */
static void add_patch_rows(struct dump *d, const struct row *r, const struct data_family *f) {
    int64_t each = 3 * f->patch_size * f->patch_size, n = 0, at = 0;
    for (int64_t i = 0; i < r->images + r->unseen; i++) n += 3 * r->image[i].height * r->image[i].width;
    d->pixels = mem_alloc((size_t)n * sizeof *d->pixels);
    for (int64_t i = 0; i < r->images + r->unseen; i++) {
        struct batch_image rows;
        image_set_patch_rows(&rows, &r->image[i], f->patch_size);
        int64_t count = 3 * rows.height * rows.width;
        memcpy(d->pixels + at, rows.pixels, (size_t)count * sizeof *d->pixels);
        at += count;
        batch_image_free(&rows);
    }
    d->entry[d->count++] = (struct st_entry){.name = "image_patches",
                                             .type = ST_F32,
                                             .rank = 2,
                                             .dim = {n / each, each},
                                             .data = d->pixels,
                                             .bytes = (size_t)n * sizeof *d->pixels};
    d->patches = mem_alloc(r->ids.len * sizeof *d->patches);
    int32_t next = 0;
    for (size_t i = 0; i < r->ids.len; i++) d->patches[i] = r->ids.data[i] == f->image_token ? next++ : -1;
    add_ints(d, "image_patches_indices", d->patches, (int64_t)r->ids.len);
}

void dump_init(struct dump *d, const struct row *r, const struct data_family *f) {
    *d = (struct dump){0};
    d->positions = mem_alloc((size_t)r->positions * sizeof *d->positions);
    for (int64_t i = 0; i < r->positions; i++) d->positions[i] = (int32_t)i;
    add_ints(d, "input_ids", r->ids.data, (int64_t)r->ids.len);
    if (r->value_count)
        d->entry[d->count++] = (struct st_entry){.name = "labels",
                                                 .type = ST_F32,
                                                 .rank = 1,
                                                 .dim = {r->value_count},
                                                 .data = r->values,
                                                 .bytes = (size_t)r->value_count * sizeof *r->values};
    else
        add_ints(d, "labels", r->labels, (int64_t)r->ids.len);
    add_ints(d, "position_ids", d->positions, r->positions);
    if (!r->images && !r->unseen) return;
    if (f->family == FAMILY_MFUYU) {
        add_patch_rows(d, r, f);
        return;
    }
    struct sides largest = image_set_largest(r->image, r->images);
    add_pixels(d, r, largest);
    if (f->family != FAMILY_IDEFICS2) return;
    add_mask(d, r, largest);
    add_patches(d, r, largest, f);
}

void dump_free(struct dump *d) {
    free(d->positions);
    free(d->pixels);
    free(d->mask);
    free(d->patches);
    *d = (struct dump){0};
}

enum status dump_write(const char *path, const struct row *r, const struct data_family *f, struct err *e) {
    struct dump d;
    dump_init(&d, r, f);
    enum status st = st_write(path, d.entry, d.count, e);
    dump_free(&d);
    return st;
}

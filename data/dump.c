#include "data/dump.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static void add_ints(struct dump *d, const char *name, const int32_t *data, int64_t n) {
    d->entry[d->count++] = (struct st_entry){
        .name = name, .type = ST_I32, .rank = 1, .dim = {n}, .data = data, .bytes = (size_t)n * sizeof *data};
}

/* The pictures end to end; all have the same size. */
static void add_pixels(struct dump *d, const struct row *r) {
    int64_t H = r->image[0].height, W = r->image[0].width, each = 3 * H * W;
    d->pixels = mem_alloc((size_t)(r->images * each) * sizeof *d->pixels);
    for (int64_t i = 0; i < r->images; i++)
        memcpy(d->pixels + i * each, r->image[i].pixels, (size_t)each * sizeof *d->pixels);
    d->entry[d->count++] = (struct st_entry){.name = "pixel_values",
                                             .type = ST_F32,
                                             .rank = 4,
                                             .dim = {r->images, 3, H, W},
                                             .data = d->pixels,
                                             .bytes = (size_t)(r->images * each) * sizeof *d->pixels};
}

void dump_init(struct dump *d, const struct row *r) {
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
    if (r->images) add_pixels(d, r);
}

void dump_free(struct dump *d) {
    free(d->positions);
    free(d->pixels);
    *d = (struct dump){0};
}

enum status dump_write(const char *path, const struct row *r, struct err *e) {
    struct dump d;
    dump_init(&d, r);
    enum status st = st_write(path, d.entry, d.count, e);
    dump_free(&d);
    return st;
}

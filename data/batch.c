/* Rows end to end. Where a picture stands, its one token becomes tokens_per_image positions with id -1 and no label;
 * then the labels of the expanded row move one to the left. So the position before a picture predicts nothing, and the
 * last position of a picture predicts the token after it. */
#include <stdlib.h>

#include "base/memory.h"
#include "data/dataset.h"

static bool is_picture(const struct data_family *f, int32_t id) {
    return f->family != FAMILY_TEXT && id == f->image_token;
}

static void place_row(struct batch *b, int64_t at, const struct row *r, const struct data_family *f) {
    int64_t start = at;
    for (size_t i = 0; i < r->ids.len; i++) {
        bool picture = is_picture(f, r->ids.data[i]);
        int64_t n = picture ? f->tokens_per_image : 1;
        int32_t label = picture ? IGNORED : r->labels[i];
        for (int64_t k = 0; k < n; k++, at++) {
            b->ids[at] = picture ? -1 : r->ids.data[i];
            b->positions[at] = (int32_t)(at - start);
            b->targets[at] = IGNORED;
            if (at == start || label == IGNORED) continue;
            b->targets[at - 1] = label;
            b->scored++;
        }
    }
}

static void take_images(struct batch *b, struct row *r) {
    for (int64_t i = 0; i < r->images; i++) {
        b->image[b->images++] = r->image[i];
        r->image[i].pixels = NULL;
    }
}

void batch_build(struct batch *b, struct row *rows, int64_t count, const struct data_family *f) {
    *b = (struct batch){.rows = count};
    int64_t images = 0;
    for (int64_t i = 0; i < count; i++) b->N += rows[i].positions, images += rows[i].images;
    b->offsets = mem_alloc((size_t)(count + 1) * sizeof *b->offsets);
    b->row_index = mem_alloc((size_t)count * sizeof *b->row_index);
    b->ids = mem_alloc((size_t)b->N * sizeof *b->ids);
    b->positions = mem_alloc((size_t)b->N * sizeof *b->positions);
    b->targets = mem_alloc((size_t)b->N * sizeof *b->targets);
    b->image = mem_alloc((size_t)images * sizeof *b->image);
    for (int64_t i = 0; i < count; i++) {
        place_row(b, b->offsets[i], &rows[i], f);
        b->offsets[i + 1] = b->offsets[i] + rows[i].positions;
        b->row_index[i] = rows[i].index;
        take_images(b, &rows[i]);
    }
}

void batch_free(struct batch *b) {
    for (int64_t i = 0; i < b->images; i++) free(b->image[i].pixels);
    free(b->image), free(b->targets), free(b->positions), free(b->ids), free(b->row_index), free(b->offsets);
    *b = (struct batch){0};
}

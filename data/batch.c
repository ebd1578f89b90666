/* Rows end to end. Where a picture stands, its token becomes its positions (one with Idefics2 and Fuyu) with id -1 and
 * no label (but with Fuyu, which learns to write a picture's tokens where an answer has one); then the labels of the
 * expanded row move one to the left. So the position before a picture predicts nothing, and the last position of a
 * picture predicts the token after it. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/dataset.h"
#include "data/image_set.h"

static bool is_picture(const struct data_family *f, int32_t id) {
    return f->family != FAMILY_TEXT && id == f->image_token;
}

static void place_row(struct batch *b, int64_t at, const struct row *r, const struct data_family *f) {
    int64_t start = at;
    for (size_t i = 0; i < r->ids.len; i++) {
        bool picture = is_picture(f, r->ids.data[i]);
        int64_t n = picture ? 1 + family_extra_positions(f) : 1;
        int32_t label = picture && !family_labels_pictures(f) ? IGNORED : r->labels[i];
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

/* The position that a head reads (base/problem.h), of those that the language model sees. */
static int64_t pool(const struct row *r, const struct data_family *f) {
    int64_t at = 0, last = 0, first_pad = -1;
    for (size_t i = 0; i < r->ids.len; i++) {
        bool picture = is_picture(f, r->ids.data[i]),
             pad = !picture && f->pad_token >= 0 && r->ids.data[i] == f->pad_token;
        if (pad && first_pad < 0) first_pad = at;
        at += picture ? 1 + family_extra_positions(f) : 1;
        if (!pad) last = at - 1;
    }
    if (f->pooling == POOL_LAST_NOT_PAD) return last;
    return first_pad > 0 ? first_pad - 1 : at - 1;
}

static void place_labels(struct batch *b, int64_t i, const struct row *r, const struct data_family *f) {
    if (r->value_count == 0) return;
    memcpy(b->labels + i * b->label_count, r->values, (size_t)b->label_count * sizeof *b->labels);
    b->pooled[i] = pool(r, f);
    b->scored++;
}

static void take_images(struct batch *b, struct row *r, const struct data_family *f) {
    struct sides largest = image_set_largest(r->image, r->images);
    for (int64_t i = 0; i < r->images; i++) {
        if (f->family == FAMILY_IDEFICS2) {
            image_set_cut(&b->image[b->images++], &r->image[i], largest, f);
            continue;
        }
        if (f->family == FAMILY_MFUYU) {
            image_set_patch_rows(&b->image[b->images++], &r->image[i], f->patch_size);
            continue;
        }
        b->image[b->images++] = r->image[i];
        r->image[i].pixels = NULL;
    }
}

void batch_build(struct batch *b, struct row *rows, int64_t count, const struct data_family *f) {
    *b = (struct batch){.rows = count, .label_count = count ? rows[0].value_count : 0};
    int64_t images = 0;
    for (int64_t i = 0; i < count; i++) b->N += rows[i].positions, images += rows[i].images;
    b->offsets = mem_alloc((size_t)(count + 1) * sizeof *b->offsets);
    b->row_index = mem_alloc((size_t)count * sizeof *b->row_index);
    b->ids = mem_alloc((size_t)b->N * sizeof *b->ids);
    b->positions = mem_alloc((size_t)b->N * sizeof *b->positions);
    b->targets = mem_alloc((size_t)b->N * sizeof *b->targets);
    b->labels = mem_alloc((size_t)(count * b->label_count) * sizeof *b->labels);
    b->pooled = mem_alloc((size_t)(b->label_count ? count : 0) * sizeof *b->pooled);
    b->first_image = mem_alloc((size_t)(count + 1) * sizeof *b->first_image);
    b->image = mem_alloc((size_t)images * sizeof *b->image);
    for (int64_t i = 0; i < count; i++) {
        place_row(b, b->offsets[i], &rows[i], f);
        place_labels(b, i, &rows[i], f);
        b->offsets[i + 1] = b->offsets[i] + rows[i].positions;
        b->row_index[i] = rows[i].index;
        take_images(b, &rows[i], f);
        b->first_image[i + 1] = b->images;
    }
}

void batch_free(struct batch *b) {
    for (int64_t i = 0; i < b->images; i++) batch_image_free(&b->image[i]);
    free(b->labels), free(b->pooled), free(b->first_image);
    free(b->image), free(b->targets), free(b->positions), free(b->ids), free(b->row_index), free(b->offsets);
    *b = (struct batch){0};
}

/* The pictures of a row, from the sizes in their heads to what a vision tower takes.
 *
 * A row holds pictures as the processor makes them. What the tower takes of them may depend on the others of the row:
 * Idefics2 pads each to the largest sides of the row and cuts that into patches, and a patch counts when any pixel of
 * it is the picture's. So the largest loses what is left behind its last whole patch, and another one may end with
 * patches that are partly zeros (guarded by tests/test_idefics2_data.c). */
#ifndef DATA_IMAGE_SET_H
#define DATA_IMAGE_SET_H

#include <stdint.h>

#include "base/batch.h"
#include "base/status.h"
#include "data/family.h"
#include "data/image.h"
#include "data/processor.h"
#include "data/tokenizer.h"

/* The processor of the family's folder; refused when it, the tokenizer and the model do not belong together. */
enum status image_set_open(struct processor *p, const struct data_family *f, const struct tokenizer *t, struct err *e);

/* The sides of the pieces, out (processor_pieces), that a picture of these sides becomes. */
enum status image_set_measure(struct batch_image *out, const struct processor *p, int64_t width, int64_t height,
                              const char *where, struct err *e);
/* Their sides and pixels; out's own pixels, if any, must have been freed. */
enum status image_set_process(struct batch_image *out, const struct processor *p, const struct image *im,
                              const char *where, struct err *e);

/* Whether the n pictures of a row, measured or processed, can go to the tower together. */
enum status image_set_check(const struct batch_image *image, int64_t n, const struct processor *p,
                            const struct data_family *f, struct err *e);

struct sides {
    int64_t rows, cols;
};
struct sides image_set_largest(const struct batch_image *image, int64_t n); // pixels that all of them lie within

/* The patches of a picture among those of its row. */
struct sides image_set_patches(const struct batch_image *image, struct sides largest, int64_t patch);

struct patch_count {
    int64_t patches, most; // of all, and of the picture that has the most
};
struct patch_count image_set_count(const struct batch_image *image, int64_t n, const struct data_family *f);

/* positions (patches.rows, patches.cols): the patch (i, j) stands at fractions (i / rows, j / cols) of the picture,
 * whose buckets are row and column of the tower's grid of `side` by `side` positions. */
void image_set_positions(int32_t *positions, struct sides patches, int64_t side);

/* The pixels of a picture as the tower takes them, with positions, both anew; `from` keeps its own. */
void image_set_cut(struct batch_image *out, const struct batch_image *from, struct sides largest,
                   const struct data_family *f);

/* Fuyu: the pixels of a picture patch by patch (patches, patch, patch, 3), anew; `from` keeps its own. */
void image_set_patch_rows(struct batch_image *out, const struct batch_image *from, int64_t patch);

void batch_image_free(struct batch_image *image);

#endif

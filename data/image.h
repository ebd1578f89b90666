/* Pictures as Pillow sees them: decode, convert to RGB, resize, bit for bit.
 *
 * JPEG through libjpeg-turbo (Pillow's own decoder), PNG through libpng, WebP through libwebp; GIF (first frame) and
 * BMP are read here. The format is told by the first bytes. Orientation tags are left alone, as
 * Image.open().convert("RGB") does. Alpha is dropped, not composited. A file that is cut short or damaged is refused
 * with a sentence, and so are more than 178956970 pixels, where Pillow sees a decompression bomb.
 *
 * Nothing here keeps state between calls, so threads may decode at once. */
#ifndef DATA_IMAGE_H
#define DATA_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct image {
    int64_t width, height;
    uint8_t *rgb; // (height, width, 3), owned
};

enum status image_read(struct image *im, const char *path, struct err *e);
/* `where` names the bytes in an error. */
enum status image_decode(struct image *im, const void *data, size_t n, const char *where, struct err *e);
/* Width and height from the file's head only; the pixels may still be corrupt. */
enum status image_size(const char *path, int64_t *width, int64_t *height, struct err *e);
void image_free(struct image *im);

/* Which file Mantis opens for a path: the path itself if anything is there, else the first of .jpg .png .jpeg .gif that
 * is there in place of its suffix. *found is the caller's to free. */
enum status image_find(const char *path, char **found, struct err *e);

enum resample {
    RESAMPLE_NEAREST = 0,
    RESAMPLE_LANCZOS = 1,
    RESAMPLE_BILINEAR = 2,
    RESAMPLE_BICUBIC = 3,
    RESAMPLE_BOX = 4,
    RESAMPLE_HAMMING = 5
};

/* out is made anew (width, height at least 1). Pillow's filters in fixed point, its passes in the order of Pillow
 * 13. */
void image_resize(struct image *out, const struct image *in, int64_t width, int64_t height, enum resample filter);

/* The part of `in` from (left, top); out is made anew. The rectangle must lie inside. */
void image_crop(struct image *out, const struct image *in, int64_t left, int64_t top, int64_t width, int64_t height);

/* What every Mantis data set does to a picture before the processor: when max_size > 0 and the longest side is longer,
 * shrink it to max_size; then, when a side is under 16 pixels, enlarge by max(16/w, 16/h). Both are bicubic with the
 * sides truncated, so a side may come out as 15. Fails when a side would come out as 0 or the picture larger
 * than one may be; `where` names it then. */
enum status image_mantis_size(struct image *im, int64_t max_size, const char *where, struct err *e);
/* The sides that it would have then. */
enum status image_mantis_sides(int64_t *width, int64_t *height, int64_t max_size, const char *where, struct err *e);

#endif

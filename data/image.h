/* Pictures as Pillow sees them: decode, convert to RGB, resize, bit for bit.
 *
 * JPEG through libjpeg-turbo (Pillow's own decoder), WebP through libwebp, PNG, GIF (first frame) and BMP through
 * stb_image. Orientation tags are left alone, as Image.open().convert("RGB") does. Alpha is dropped, not composited. */
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

enum resample {
    RESAMPLE_NEAREST = 0,
    RESAMPLE_LANCZOS = 1,
    RESAMPLE_BILINEAR = 2,
    RESAMPLE_BICUBIC = 3,
    RESAMPLE_BOX = 4,
    RESAMPLE_HAMMING = 5
};

/* out is made anew (width, height at least 1). Pillow's fixed-point filters, horizontal pass first. */
void image_resize(struct image *out, const struct image *in, int64_t width, int64_t height, enum resample filter);

/* The part of `in` from (left, top); out is made anew. The rectangle must lie inside. */
void image_crop(struct image *out, const struct image *in, int64_t left, int64_t top, int64_t width, int64_t height);

#endif

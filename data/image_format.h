/* The picture formats behind image_decode; private to data/image*.c. Each file gives one row of the table in
 * image.c. */
#ifndef DATA_IMAGE_FORMAT_H
#define DATA_IMAGE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/image.h"

/* An encoded picture: `where` names it in an error. */
struct image_bytes {
    const uint8_t *data;
    size_t size;
    const char *where;
};

struct image_format {
    const char *name;
    bool (*accepts)(const struct image_bytes *b); // by the first bytes
    enum status (*size)(const struct image_bytes *b, int64_t *width, int64_t *height, struct err *e);
    enum status (*decode)(struct image *im, const struct image_bytes *b, struct err *e); // im is empty before
};

extern const struct image_format image_bmp, image_gif, image_jpeg, image_png, image_webp;

/* Pillow's limit for "decompression bombs": twice 1/4 GB worth of RGB pixels. */
#define IMAGE_MOST_PIXELS (2 * INT64_C(89478485))

/* Refuses a side of zero and more pixels than Pillow opens, before anything of that size is allocated. */
enum status image_check_size(int64_t width, int64_t height, const char *where, struct err *e);

/* Checks the size, then allocates black pixels. */
enum status image_new(struct image *im, int64_t width, int64_t height, const char *where, struct err *e);

static inline unsigned image_le16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }
static inline uint32_t image_le32(const uint8_t *p) { return image_le16(p) | (uint32_t)image_le16(p + 2) << 16; }

#endif

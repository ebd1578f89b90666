/* PNG through libpng, left as raw as libpng allows, because Pillow's conversion has rules of its own: no gamma, alpha
 * and tRNS are dropped without compositing, colours of 16 bits keep their high byte, but grey of 16 bits is clipped at
 * 255 (a value of 256 or more becomes white). */
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "base/memory.h"
#include "data/image_format.h"

struct decoder {
    const struct image_bytes *bytes;
    size_t at; // what libpng has read
    char reason[160];
    png_structp png;
    png_infop info;
    png_bytepp rows; // (height) pointers into an interlaced picture
};

static void on_error(png_structp png, png_const_charp words) {
    struct decoder *d = png_get_error_ptr(png);
    strncpy(d->reason, words, sizeof d->reason - 1);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp words) { (void)png, (void)words; }

static void on_read(png_structp png, png_bytep out, size_t n) {
    struct decoder *d = png_get_io_ptr(png);
    if (n > d->bytes->size - d->at) png_error(png, "the file is cut short");
    memcpy(out, d->bytes->data + d->at, n);
    d->at += n;
}

static enum status decoder_open(struct decoder *d, const struct image_bytes *b, struct err *e) {
    d->bytes = b;
    d->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, d, on_error, on_warning);
    d->info = d->png ? png_create_info_struct(d->png) : NULL;
    return d->info ? ST_OK : err_set(e, ST_FAIL, "%s: libpng cannot be used (%s)", b->where, d->reason);
}

static void decoder_close(struct decoder *d) {
    png_destroy_read_struct(&d->png, &d->info, NULL);
    free(d->rows);
}

static enum status decoder_error(struct decoder *d, struct err *e) {
    return err_set(e, ST_FAIL, "%s: not a PNG that can be read: %s", d->bytes->where, d->reason);
}

/* The limit on pixels is ours, so libpng's own on each side is lifted. */
static void read_head(struct decoder *d) {
    png_set_read_fn(d->png, d, on_read);
    png_set_user_limits(d->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_read_info(d->png, d->info);
}

static bool is_wide_grey(struct decoder *d) {
    return png_get_color_type(d->png, d->info) == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(d->png, d->info) == 16;
}

/* Makes libpng hand out R, G, B bytes, or big-endian words of 16-bit grey. */
static void ask_for_rgb(struct decoder *d) {
    int color = png_get_color_type(d->png, d->info), depth = png_get_bit_depth(d->png, d->info);
    if (is_wide_grey(d)) return;
    if (depth == 16) png_set_strip_16(d->png);
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(d->png);
    if (color == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(d->png);
    if (!(color & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(d->png);
    png_set_strip_alpha(d->png);
}

/* In place, from the row's right end, because its words lie at its start. */
static void clip_wide_grey(uint8_t *rgb, int64_t width) {
    for (int64_t x = width; x-- > 0;) {
        uint8_t value = rgb[2 * x] ? 255 : rgb[2 * x + 1];
        rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = value;
    }
}

/* May longjmp; what it allocates belongs to d or im by then. */
static void read_rows(struct decoder *d, struct image *im) {
    ask_for_rgb(d);
    png_set_interlace_handling(d->png);
    png_read_update_info(d->png, d->info);
    if (png_get_rowbytes(d->png, d->info) > (size_t)(im->width * 3)) png_error(d->png, "an unknown layout of pixels");
    d->rows = mem_alloc((size_t)im->height * sizeof *d->rows);
    for (int64_t y = 0; y < im->height; y++) d->rows[y] = im->rgb + y * im->width * 3;
    png_read_image(d->png, d->rows);
    for (int64_t y = 0; y < im->height && is_wide_grey(d); y++) clip_wide_grey(d->rows[y], im->width);
}

/* Its sides, and unless im is NULL the picture. */
static enum status read_image(const struct image_bytes *b, int64_t *width, int64_t *height, struct image *im,
                              struct err *e) {
    struct decoder *d = mem_alloc(sizeof *d);
    enum status st = decoder_open(d, b, e);
    if (st != ST_OK) goto done;
    if (setjmp(png_jmpbuf(d->png))) {
        st = decoder_error(d, e);
        goto done;
    }
    read_head(d);
    *width = png_get_image_width(d->png, d->info), *height = png_get_image_height(d->png, d->info);
    if (im) st = image_new(im, *width, *height, b->where, e);
    if (im && st == ST_OK) read_rows(d, im);
done:
    decoder_close(d);
    free(d);
    return st;
}

static enum status size(const struct image_bytes *b, int64_t *width, int64_t *height, struct err *e) {
    return read_image(b, width, height, NULL, e);
}

static enum status decode(struct image *im, const struct image_bytes *b, struct err *e) {
    int64_t width, height;
    return read_image(b, &width, &height, im, e);
}

static bool accepts(const struct image_bytes *b) { return b->size >= 8 && png_sig_cmp(b->data, 0, 8) == 0; }

const struct image_format image_png = {"PNG", accepts, size, decode};

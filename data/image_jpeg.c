/* JPEG through libjpeg-turbo with its defaults (accurate DCT, smooth chroma), which are Pillow's. Four-component files
 * are taken as Adobe writes them, inverted CMYK. A file that ends before its last marker is refused. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "base/memory.h"
#include "data/image_format.h"

/* More scans than any encoder writes: a small progressive file could otherwise ask for hours of work. */
enum { MAX_SCANS = 500 };

struct decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf failed;
    const struct image_bytes *bytes;
    const char *reason; // instead of libjpeg's own words
    uint8_t *row;       // (width, 4) of a CMYK picture
};

static struct decoder *decoder_of(j_common_ptr jpeg) { return jpeg->client_data; }

static void fail(j_common_ptr jpeg, const char *reason) {
    decoder_of(jpeg)->reason = reason;
    longjmp(decoder_of(jpeg)->failed, 1);
}

static void on_error(j_common_ptr jpeg) { longjmp(decoder_of(jpeg)->failed, 1); }

static void on_message(j_common_ptr jpeg, int level) {
    if (level < 0) jpeg->err->num_warnings++;
}

static void on_output(j_common_ptr jpeg) { (void)jpeg; }

static void on_progress(j_common_ptr jpeg) {
    if (decoder_of(jpeg)->jpeg.input_scan_number > MAX_SCANS) fail(jpeg, "it has more scans than a picture can need");
}

static void source_init(j_decompress_ptr jpeg) { (void)jpeg; }

static boolean source_fill(j_decompress_ptr jpeg) {
    fail((j_common_ptr)jpeg, "the file is cut short");
    return FALSE;
}

static void source_skip(j_decompress_ptr jpeg, long count) {
    if (count <= 0) return;
    if ((size_t)count > jpeg->src->bytes_in_buffer) source_fill(jpeg);
    jpeg->src->next_input_byte += count;
    jpeg->src->bytes_in_buffer -= (size_t)count;
}

static void source_end(j_decompress_ptr jpeg) { (void)jpeg; }

/* d must stay where it is until decoder_close. */
static void decoder_open(struct decoder *d, const struct image_bytes *b) {
    d->bytes = b;
    d->jpeg.err = jpeg_std_error(&d->errors);
    d->errors.error_exit = on_error;
    d->errors.emit_message = on_message;
    d->errors.output_message = on_output;
    d->jpeg.client_data = d;
}

/* Reads up to the picture's first scan. May longjmp to d->failed. */
static void read_head(struct decoder *d) {
    jpeg_create_decompress(&d->jpeg);
    d->source = (struct jpeg_source_mgr){d->bytes->data, d->bytes->size,         source_init, source_fill,
                                         source_skip,    jpeg_resync_to_restart, source_end};
    d->jpeg.src = &d->source;
    d->progress.progress_monitor = on_progress;
    d->jpeg.progress = &d->progress;
    jpeg_read_header(&d->jpeg, TRUE);
    int parts = d->jpeg.num_components;
    if (parts != 1 && parts != 3 && parts != 4) fail((j_common_ptr)&d->jpeg, "it has 2 or more than 4 components");
    d->jpeg.out_color_space = parts == 1 ? JCS_GRAYSCALE : parts == 3 ? JCS_RGB : JCS_CMYK;
}

static enum status decoder_error(struct decoder *d, struct err *e) {
    char words[JMSG_LENGTH_MAX] = "";
    if (!d->reason) d->errors.format_message((j_common_ptr)&d->jpeg, words);
    return err_set(e, ST_FAIL, "%s: not a JPEG that can be read: %s", d->bytes->where, d->reason ? d->reason : words);
}

static void decoder_close(struct decoder *d) {
    jpeg_destroy_decompress(&d->jpeg);
    free(d->row);
}

/* In place, from the row's right end, because the grey values lie at its start. */
static void spread_grey(uint8_t *rgb, int64_t width) {
    for (int64_t x = width; x-- > 0;) rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = rgb[x];
}

/* a * b / 255, rounded */
static int multiply(int a, int b) {
    int t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

/* Inverted ink: c = 255 - stored; rgb = (255 - k) - c (255 - k) / 255. */
static void convert_cmyk(uint8_t *rgb, const uint8_t *inverted, int64_t width) {
    for (int64_t x = 0; x < width; x++)
        for (int c = 0; c < 3; c++) {
            int paper = inverted[4 * x + 3], value = paper - multiply(255 - inverted[4 * x + c], paper);
            rgb[3 * x + c] = (uint8_t)(value < 0 ? 0 : value);
        }
}

/* May longjmp to d->failed; what it allocates belongs to d or im by then. */
static void read_rows(struct decoder *d, struct image *im) {
    struct jpeg_decompress_struct *jpeg = &d->jpeg;
    jpeg_start_decompress(jpeg);
    if (jpeg->out_color_components == 4) d->row = mem_alloc((size_t)(im->width * 4));
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *rgb = im->rgb + (int64_t)jpeg->output_scanline * im->width * 3;
        JSAMPROW row = d->row ? d->row : rgb;
        jpeg_read_scanlines(jpeg, &row, 1);
        if (d->row)
            convert_cmyk(rgb, row, im->width);
        else if (jpeg->out_color_components == 1)
            spread_grey(rgb, im->width);
    }
    jpeg_finish_decompress(jpeg);
}

/* Its sides, and unless im is NULL the picture. */
static enum status read_image(const struct image_bytes *b, int64_t *width, int64_t *height, struct image *im,
                              struct err *e) {
    struct decoder *d = mem_alloc(sizeof *d);
    enum status st = ST_OK;
    decoder_open(d, b);
    if (setjmp(d->failed)) {
        st = decoder_error(d, e);
    } else {
        read_head(d);
        *width = d->jpeg.image_width, *height = d->jpeg.image_height;
        if (im) st = image_new(im, *width, *height, b->where, e);
        if (im && st == ST_OK) read_rows(d, im);
    }
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

static bool accepts(const struct image_bytes *b) { return b->size >= 3 && memcmp(b->data, "\xFF\xD8\xFF", 3) == 0; }

const struct image_format image_jpeg = {"JPEG", accepts, size, decode};

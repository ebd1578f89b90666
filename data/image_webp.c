/* WebP through libwebp's animation decoder, which gives the first frame on its canvas as Pillow does. */
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "data/image_format.h"

static enum status size(const struct image_bytes *b, int64_t *width, int64_t *height, struct err *e) {
    int w = 0, h = 0;
    if (!WebPGetInfo(b->data, b->size, &w, &h))
        return err_set(e, ST_FAIL, "%s: not a WebP that can be read: its header is damaged or cut short", b->where);
    *width = w;
    *height = h;
    return ST_OK;
}

static void copy_rgb(struct image *im, const uint8_t *rgba) {
    for (int64_t i = 0; i < im->width * im->height; i++) memcpy(im->rgb + 3 * i, rgba + 4 * i, 3);
}

static enum status decode_frame(struct image *im, const struct image_bytes *b, WebPAnimDecoder *d, struct err *e) {
    WebPAnimInfo info;
    uint8_t *rgba; // (height, width, 4), the decoder's
    int time;
    if (!d || !WebPAnimDecoderGetInfo(d, &info) || !WebPAnimDecoderGetNext(d, &rgba, &time))
        return err_set(e, ST_FAIL, "%s: not a WebP that can be read: its pixels are damaged or cut short", b->where);
    enum status st = image_new(im, info.canvas_width, info.canvas_height, b->where, e);
    if (st == ST_OK) copy_rgb(im, rgba);
    return st;
}

/* The decoder allocates its canvas when it is made, so the size is checked before. */
static enum status decode(struct image *im, const struct image_bytes *b, struct err *e) {
    int64_t width = 0, height = 0;
    enum status st = size(b, &width, &height, e);
    if (st == ST_OK) st = image_check_size(width, height, b->where, e);
    if (st != ST_OK) return st;
    WebPAnimDecoderOptions options;
    WebPAnimDecoderOptionsInit(&options);
    options.color_mode = MODE_RGBA;
    WebPAnimDecoder *d = WebPAnimDecoderNew(&(WebPData){b->data, b->size}, &options);
    st = decode_frame(im, b, d, e);
    WebPAnimDecoderDelete(d);
    return st;
}

static bool accepts(const struct image_bytes *b) {
    return b->size >= 16 && memcmp(b->data, "RIFF", 4) == 0 && memcmp(b->data + 8, "WEBPVP8", 7) == 0;
}

const struct image_format image_webp = {"WebP", accepts, size, decode};

/* BMP of Windows and OS/2: 1, 4, 8 bits with a palette (plain or run-length coded), 16, 24, 32 bits with the usual
 * masks. Alpha is dropped; 5- and 6-bit colours are value * 255 / most, rounded down, as Pillow does. */
#include <string.h>

#include "data/image_format.h"

enum compression { RAW, RLE8, RLE4, BITFIELDS };

struct header {
    int64_t width, height;
    bool top_down;
    unsigned bits, compression;
    uint32_t mask[4];        // of red, green, blue, alpha
    uint8_t palette[256][3]; // R, G, B
    size_t pixels;           // where they begin
};

static enum status refuse(const struct image_bytes *b, struct err *e, const char *what, unsigned long long found) {
    return err_set(e, ST_FAIL, "%s: this BMP has %s %llu, which is not read", b->where, what, found);
}

static enum status cut_short(const struct image_bytes *b, struct err *e) {
    return err_set(e, ST_FAIL, "%s: this BMP is cut short or its header is wrong", b->where);
}

/* The palette at `at`, with `colors` entries of `step` bytes, of which the file may hold fewer (`room` bytes). One that
 * counts 0, 1, 2 ... is grey, beyond its end too. */
static void read_palette(struct header *h, const uint8_t *at, size_t colors, size_t step, size_t room) {
    bool ramp = colors > 2 && colors <= room / step;
    for (size_t i = 0; i < colors && i < 256 && i < room / step; i++)
        for (size_t c = 0; c < 3; c++) {
            h->palette[i][c] = at[i * step + 2 - c];
            ramp = ramp && h->palette[i][c] == i;
        }
    for (int i = 0; i < 256 && ramp; i++) memset(h->palette[i], i, 3);
}

/* The fields of the header at byte 14, of 12 bytes (OS/2) or more. */
static void read_fields(struct header *h, const uint8_t *at, uint32_t size, uint32_t *colors) {
    if (size == 12) {
        h->width = image_le16(at + 4);
        h->height = image_le16(at + 6);
        h->bits = image_le16(at + 10);
        h->compression = RAW;
        return;
    }
    h->top_down = at[11] == 0xFF;
    h->width = image_le32(at + 4);
    h->height = h->top_down ? (INT64_C(1) << 32) - image_le32(at + 8) : image_le32(at + 8);
    h->bits = image_le16(at + 14);
    h->compression = image_le32(at + 16);
    *colors = image_le32(at + 32);
}

/* Masks lie at byte 40: within a header of 52 bytes or more, behind a shorter one. Alpha has one from 56 on. */
static void read_masks(struct header *h, const uint8_t *at, uint32_t size) {
    for (int i = 0; i < 3 + (size >= 56); i++) h->mask[i] = image_le32(at + 40 + 4 * i);
}

static enum status read_header(struct header *h, const struct image_bytes *b, struct err *e) {
    *h = (struct header){0};
    if (b->size < 18) return cut_short(b, e);
    uint32_t size = image_le32(b->data + 14), colors = 0;
    if (size != 12 && size != 40 && size != 52 && size != 56 && size != 64 && size != 108 && size != 124)
        return refuse(b, e, "a header of size", size);
    if (b->size < 14 + size) return cut_short(b, e);
    read_fields(h, b->data + 14, size, &colors);
    size_t after = 14 + size + (h->compression == BITFIELDS && size < 52 ? 12 : 0), step = size == 12 ? 3 : 4;
    if (b->size < after) return cut_short(b, e);
    if (h->compression == BITFIELDS) read_masks(h, b->data + 14, size);
    if (h->bits != 1 && h->bits != 4 && h->bits != 8 && h->bits != 16 && h->bits != 24 && h->bits != 32)
        return refuse(b, e, "a pixel depth of", h->bits);
    if (colors == 0 && h->bits <= 8) colors = 1u << h->bits;
    h->pixels = image_le32(b->data + 10);
    if (h->pixels == 14 + size && h->bits <= 8) h->pixels += step * colors;
    if (h->bits > 8) {
        if (h->pixels == 0) h->pixels = after;
        return ST_OK;
    }
    if (colors > 65536) return refuse(b, e, "a palette of size", colors);
    read_palette(h, b->data + after, colors, step, b->size - after);
    if (h->pixels == 0) h->pixels = after + step * colors;
    return ST_OK;
}

/* Where the byte of a mask is in a little-endian word, or -1 when the mask is not one whole byte. */
static int mask_byte(uint32_t mask) {
    for (int i = 0; i < 4; i++)
        if (mask == 0xFFu << 8 * i) return i;
    return -1;
}

/* Byte positions of red, green, blue in a pixel of 24 or 32 bits. False: a layout that is not read. */
static bool find_channels(const struct header *h, int at[3]) {
    at[0] = 2, at[1] = 1, at[2] = 0;
    if (h->bits <= 16 || h->compression != BITFIELDS) return true;
    if (h->bits == 32 && !(h->mask[0] | h->mask[1] | h->mask[2] | h->mask[3])) return true;
    for (int c = 0; c < 3; c++) {
        at[c] = mask_byte(h->mask[c]);
        if (at[c] < 0 || at[c] >= (int)h->bits / 8) return false;
    }
    return true;
}

static void copy_indices(uint8_t *rgb, const uint8_t *row, const struct header *h) {
    unsigned per_byte = 8 / h->bits, most = (1u << h->bits) - 1;
    for (int64_t x = 0; x < h->width; x++) {
        unsigned shift = (per_byte - 1 - (unsigned)(x % per_byte)) * h->bits;
        memcpy(rgb + 3 * x, h->palette[row[x / per_byte] >> shift & most], 3);
    }
}

/* 5, 5, 5 bits, or 5, 6, 5. */
static void copy_words(uint8_t *rgb, const uint8_t *row, const struct header *h) {
    bool wide = h->mask[1] == 0x7E0;
    for (int64_t x = 0; x < h->width; x++) {
        unsigned v = image_le16(row + 2 * x), green = wide ? 63 : 31;
        rgb[3 * x] = (uint8_t)((v >> (wide ? 11 : 10) & 31) * 255 / 31);
        rgb[3 * x + 1] = (uint8_t)((v >> 5 & green) * 255 / green);
        rgb[3 * x + 2] = (uint8_t)((v & 31) * 255 / 31);
    }
}

static void copy_bytes(uint8_t *rgb, const uint8_t *row, const struct header *h, const int at[3]) {
    for (int64_t x = 0, step = h->bits / 8; x < h->width; x++)
        for (int c = 0; c < 3; c++) rgb[3 * x + c] = row[x * step + at[c]];
}

/* Row y of the picture, where row i of the file is its i-th from the bottom, or from the top. */
static uint8_t *row_of(struct image *im, const struct header *h, int64_t i) {
    return im->rgb + 3 * im->width * (h->top_down ? i : im->height - 1 - i);
}

/* Whether 16-bit pixels have masks that are read; others are of no concern. */
static bool words_are_usual(const struct header *h) {
    if (h->bits != 16 || h->compression != BITFIELDS) return true;
    return (h->mask[0] == 0xF800 && h->mask[1] == 0x7E0 && h->mask[2] == 0x1F) ||
           (h->mask[0] == 0x7C00 && h->mask[1] == 0x3E0 && h->mask[2] == 0x1F);
}

static enum status decode_raw(struct image *im, const struct header *h, const struct image_bytes *b, struct err *e) {
    int at[3];
    if ((h->compression == BITFIELDS && h->bits <= 8) || !words_are_usual(h) || !find_channels(h, at))
        return refuse(b, e, "an unusual layout of colours in pixels of bits", h->bits);
    size_t line = ((size_t)h->width * h->bits + 7) / 8, stride = (line + 3) & ~(size_t)3;
    if (h->pixels > b->size || (b->size - h->pixels) < line ||
        (b->size - h->pixels - line) / stride < (size_t)h->height - 1)
        return cut_short(b, e);
    enum status st = image_new(im, h->width, h->height, b->where, e);
    for (int64_t i = 0; st == ST_OK && i < h->height; i++) {
        const uint8_t *row = b->data + h->pixels + (size_t)i * stride;
        if (h->bits <= 8) copy_indices(row_of(im, h, i), row, h);
        if (h->bits == 16) copy_words(row_of(im, h, i), row, h);
        if (h->bits > 16) copy_bytes(row_of(im, h, i), row, h, at);
    }
    return st;
}

/* Run-length codes being read into pixels that are numbered along the file's rows, from 0 to end. */
struct runs {
    struct image *im;
    const struct header *h;
    const uint8_t *data;
    size_t size, at;
    int64_t pixel, end;
    int64_t x; // where in its row a run begins, as the encoder sees it
};

static void put(struct runs *r, unsigned index) {
    if (r->pixel >= r->end) return;
    int64_t row = r->pixel / r->h->width, x = r->pixel % r->h->width;
    memcpy(row_of(r->im, r->h, row) + 3 * x, r->h->palette[index], 3);
    r->pixel++;
}

/* Pixel i of a stretch that begins at p: half a byte or a byte each. */
static unsigned index_at(const struct runs *r, const uint8_t *p, int64_t i) {
    return r->h->compression == RLE8 ? p[i] : i % 2 ? p[i / 2] & 15u : (unsigned)p[i / 2] >> 4;
}

static void put_run(struct runs *r, int64_t count, const uint8_t *value) {
    if (count > r->h->width - r->x) count = r->h->width > r->x ? r->h->width - r->x : 0;
    for (int64_t i = 0; i < count; i++) put(r, index_at(r, value, r->h->compression == RLE8 ? 0 : i % 2));
    r->x += count;
}

/* A stretch of pixels as they are, then aligned to two bytes of the file. Returns whether it was all there. */
static bool put_literals(struct runs *r, int64_t wanted) {
    int64_t count = wanted < r->end - r->pixel ? wanted : r->end - r->pixel;
    size_t bytes = (size_t)(r->h->compression == RLE8 ? count : (count + 1) / 2);
    if (bytes > r->size - r->at) return false;
    for (int64_t i = 0; i < count; i++) put(r, index_at(r, r->data + r->at, i));
    r->at += bytes;
    r->at += r->at % 2;
    r->x += wanted;
    return r->at <= r->size;
}

/* Skips to the right and up; the pixels between have index 0. */
static bool put_delta(struct runs *r) {
    if (r->size - r->at < 2) return false;
    int64_t count = r->data[r->at] + r->data[r->at + 1] * r->h->width;
    r->at += 2;
    for (; count > 0 && r->pixel < r->end; count--) put(r, 0);
    r->x = r->pixel % r->h->width;
    return true;
}

/* One step. False: at the end of the codes. */
static bool read_run(struct runs *r) {
    enum { END_OF_LINE, END_OF_PICTURE, DELTA };
    if (r->at > r->size || r->size - r->at < 2) return false;
    unsigned count = r->data[r->at];
    const uint8_t *value = r->data + r->at + 1;
    r->at += 2;
    if (count > 0) {
        put_run(r, count, value);
        return true;
    }
    if (*value == END_OF_PICTURE) return false;
    if (*value == DELTA) return put_delta(r);
    if (*value != END_OF_LINE) return put_literals(r, *value);
    while (r->pixel % r->h->width != 0) put(r, 0);
    r->x = 0;
    return true;
}

static enum status decode_runs(struct image *im, const struct header *h, const struct image_bytes *b, struct err *e) {
    if (h->bits != (h->compression == RLE8 ? 8 : 4))
        return refuse(b, e, "run-length codes for pixels of bits", h->bits);
    enum status st = image_new(im, h->width, h->height, b->where, e);
    if (st != ST_OK) return st;
    struct runs r = {.im = im, .h = h, .data = b->data, .size = b->size, .at = h->pixels, .end = h->width * h->height};
    while (r.pixel < r.end && read_run(&r)) continue;
    return r.pixel == r.end ? ST_OK : cut_short(b, e);
}

static enum status decode(struct image *im, const struct image_bytes *b, struct err *e) {
    struct header h;
    enum status st = read_header(&h, b, e);
    if (st == ST_OK) st = image_check_size(h.width, h.height, b->where, e);
    if (st != ST_OK) return st;
    if (h.compression == RLE8 || h.compression == RLE4) return decode_runs(im, &h, b, e);
    if (h.compression > BITFIELDS) return refuse(b, e, "a compression of kind", h.compression);
    return decode_raw(im, &h, b, e);
}

static enum status size(const struct image_bytes *b, int64_t *width, int64_t *height, struct err *e) {
    struct header h;
    enum status st = read_header(&h, b, e);
    *width = h.width;
    *height = h.height;
    return st;
}

static bool accepts(const struct image_bytes *b) { return b->size >= 2 && memcmp(b->data, "BM", 2) == 0; }

const struct image_format image_bmp = {"BMP", accepts, size, decode};

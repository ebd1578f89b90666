/* The first frame of a GIF as Pillow gives it: a canvas that holds both screen and frame, filled with the transparent
 * colour if the frame has one, else with colour 0; the frame is drawn over it, transparency is not. An index beyond the
 * palette is black, and without a palette it is the grey value itself. */
#include <string.h>

#include "data/image_format.h"

enum { CODE_BITS = 12, CODES = 1 << CODE_BITS };

/* Reads bytes in order; past the end it gives zeros and remembers. */
struct reader {
    const uint8_t *at, *end;
    bool ended;
};

struct frame {
    int64_t width, height;   // of the canvas
    int64_t left, top, w, h; // of the frame in it
    bool interlaced;
    int fill;                 // index that the canvas starts with
    int code_bits;            // of the first codes, less one
    uint8_t palette[256][3];  // R, G, B
    struct reader compressed; // from the first block of the frame's codes on
};

/* Codes, from blocks of at most 255 bytes. */
struct codes {
    struct reader *in;
    unsigned left_in_block;
    uint32_t bits; // not used up yet
    int count;     // of bits
};

/* What the codes from `clear + 2` on stand for: the text of `link` followed by `last`. */
struct dictionary {
    uint16_t link[CODES];
    uint8_t last[CODES];
    uint8_t text[CODES]; // scratch: a code's text, written from its end
    int clear, next, width;
    int previous, first; // the code before and the first byte of its text; previous -1 after a clear
};

static unsigned read_byte(struct reader *r) {
    if (r->at < r->end) return *r->at++;
    r->ended = true;
    return 0;
}

static unsigned read_word(struct reader *r) {
    unsigned low = read_byte(r);
    return low | read_byte(r) << 8;
}

static void read_palette(struct reader *r, struct frame *f, unsigned flags) {
    memset(f->palette, 0, sizeof f->palette);
    bool ramp = true;
    for (int i = 0; i < 2 << (flags & 7); i++)
        for (int c = 0; c < 3; c++) {
            f->palette[i][c] = (uint8_t)read_byte(r);
            ramp = ramp && f->palette[i][c] == i;
        }
    for (int i = 0; i < 256 && ramp; i++) memset(f->palette[i], i, 3); // a picture in grey, not in colours
}

/* A block's first four bytes go to head; returns its length. */
static unsigned read_block(struct reader *r, uint8_t head[4]) {
    unsigned n = read_byte(r);
    for (unsigned i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)read_byte(r);
        if (i < 4) head[i] = byte;
    }
    return n;
}

static void read_extension(struct reader *r, struct frame *f) {
    enum { GRAPHIC_CONTROL = 0xF9 };
    uint8_t head[4] = {0};
    unsigned kind = read_byte(r), n = read_block(r, head);
    if (kind == GRAPHIC_CONTROL && n >= 4 && head[0] & 1) f->fill = head[3];
    while (n && !r->ended) n = read_block(r, head);
}

static void read_frame_head(struct reader *r, struct frame *f) {
    f->left = read_word(r);
    f->top = read_word(r);
    f->w = read_word(r);
    f->h = read_word(r);
    unsigned flags = read_byte(r);
    f->interlaced = flags & 64;
    if (flags & 128) read_palette(r, f, flags);
    f->code_bits = (int)read_byte(r);
    f->compressed = *r;
    if (f->left + f->w > f->width) f->width = f->left + f->w;
    if (f->top + f->h > f->height) f->height = f->top + f->h;
}

/* Everything up to the first frame's codes. */
static enum status read_head(struct frame *f, const struct image_bytes *b, struct err *e) {
    struct reader r = {b->data + 6, b->data + b->size, false};
    *f = (struct frame){0};
    f->width = read_word(&r);
    f->height = read_word(&r);
    unsigned flags = read_byte(&r);
    read_word(&r); // background colour and aspect, which do not matter
    for (int i = 0; i < 256; i++) memset(f->palette[i], i, 3);
    if (flags & 128) read_palette(&r, f, flags);
    for (;;) {
        unsigned kind = read_byte(&r);
        if (r.ended || kind == ';') return err_set(e, ST_FAIL, "%s: this GIF holds no picture", b->where);
        if (kind == '!') read_extension(&r, f);
        if (kind == ',') break;
    }
    read_frame_head(&r, f);
    if (r.ended) return err_set(e, ST_FAIL, "%s: this GIF is cut short in its header", b->where);
    if (f->code_bits >= CODE_BITS)
        return err_set(e, ST_FAIL, "%s: this GIF begins with codes of %d bits, wanted at most %d", b->where,
                       f->code_bits + 1, CODE_BITS);
    return ST_OK;
}

/* The next code of `width` bits, or -1 when there is none. */
static int read_code(struct codes *c, int width) {
    while (c->count < width) {
        if (c->left_in_block == 0) c->left_in_block = read_byte(c->in);
        if (c->left_in_block == 0) return -1;
        c->bits |= (uint32_t)read_byte(c->in) << c->count;
        if (c->in->ended) return -1;
        c->count += 8;
        c->left_in_block--;
    }
    int code = (int)(c->bits & ((1u << width) - 1));
    c->bits >>= width;
    c->count -= width;
    return code;
}

static void dictionary_clear(struct dictionary *d, int code_bits) {
    d->clear = 1 << code_bits;
    d->next = d->clear + 2;
    d->width = code_bits + 1;
    d->previous = -1;
}

/* A code's text goes to the end of d->text; returns its length, or 0 for a code that cannot stand here. */
static int dictionary_take(struct dictionary *d, int code) {
    if (d->previous < 0 ? code >= d->clear : code > d->next) return 0;
    int at = CODES, walk = code;
    if (d->previous >= 0 && code == d->next) { // the text before, then its own first byte
        d->text[--at] = (uint8_t)d->first;
        walk = d->previous;
    }
    for (; walk >= d->clear; walk = d->link[walk]) {
        if (at < 2 || walk >= CODES) return 0;
        d->text[--at] = d->last[walk];
    }
    d->text[--at] = (uint8_t)walk;
    if (d->previous >= 0 && d->next < CODES) {
        d->link[d->next] = (uint16_t)d->previous;
        d->last[d->next++] = (uint8_t)walk;
        if (d->next == 1 << d->width && d->width < CODE_BITS) d->width++;
    }
    d->previous = code;
    d->first = walk;
    return CODES - at;
}

/* The frame's rows in the order in which they are stored: one pass, or four that begin at 0, 4, 2, 1. */
static int64_t next_row(const struct frame *f, int64_t row, int *pass) {
    static const int first[] = {0, 4, 2, 1, 0}, step[] = {8, 8, 4, 2, 1};
    if (!f->interlaced) return row + 1;
    row += step[*pass];
    while (row >= f->h && *pass < 3) row = first[++*pass];
    return row;
}

/* Returns whether every pixel of the frame was there. */
static bool draw_frame(struct image *im, struct frame *f) {
    struct codes codes = {.in = &f->compressed};
    struct dictionary d = {0};
    dictionary_clear(&d, f->code_bits);
    int64_t x = 0, y = 0;
    for (int pass = 0; y < f->h && f->w > 0;) {
        int code = read_code(&codes, d.width);
        if (code == d.clear) {
            dictionary_clear(&d, f->code_bits);
            continue;
        }
        int n = code < 0 || code == d.clear + 1 ? 0 : dictionary_take(&d, code);
        if (n == 0) return false;
        for (int i = CODES - n; i < CODES && y < f->h; i++) {
            memcpy(im->rgb + 3 * ((f->top + y) * im->width + f->left + x), f->palette[d.text[i]], 3);
            if (++x < f->w) continue;
            x = 0;
            y = next_row(f, y, &pass);
        }
    }
    return true;
}

static enum status decode(struct image *im, const struct image_bytes *b, struct err *e) {
    struct frame f;
    enum status st = read_head(&f, b, e);
    if (st == ST_OK) st = image_new(im, f.width, f.height, b->where, e);
    if (st != ST_OK) return st;
    for (int64_t i = 0; i < im->width * im->height; i++) memcpy(im->rgb + 3 * i, f.palette[f.fill], 3);
    if (draw_frame(im, &f)) return ST_OK;
    return err_set(e, ST_FAIL, "%s: this GIF's pixels are damaged or cut short", b->where);
}

static enum status size(const struct image_bytes *b, int64_t *width, int64_t *height, struct err *e) {
    struct frame f;
    enum status st = read_head(&f, b, e);
    *width = f.width;
    *height = f.height;
    return st;
}

static bool accepts(const struct image_bytes *b) {
    return b->size >= 6 && (memcmp(b->data, "GIF87a", 6) == 0 || memcmp(b->data, "GIF89a", 6) == 0);
}

const struct image_format image_gif = {"GIF", accepts, size, decode};

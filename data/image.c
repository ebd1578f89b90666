/* What all formats share: which format it is, the limit on pixels, finding the file, and Mantis' rules of size. */
#include "data/image.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "data/image_format.h"

static const struct image_format *const formats[] = {&image_jpeg, &image_png, &image_gif, &image_bmp, &image_webp};

enum status image_check_size(int64_t width, int64_t height, const char *where, struct err *e) {
    if (width < 1 || height < 1)
        return err_set(e, ST_FAIL, "%s: the picture is %lld x %lld pixels, wanted at least 1 x 1", where,
                       (long long)width, (long long)height);
    if (width > IMAGE_MOST_PIXELS / height)
        return err_set(e, ST_FAIL, "%s: the picture claims %lld x %lld pixels, wanted at most %lld in all", where,
                       (long long)width, (long long)height, (long long)IMAGE_MOST_PIXELS);
    return ST_OK;
}

enum status image_new(struct image *im, int64_t width, int64_t height, const char *where, struct err *e) {
    enum status st = image_check_size(width, height, where, e);
    if (st == ST_OK) *im = (struct image){width, height, mem_alloc((size_t)(width * height * 3))};
    return st;
}

void image_free(struct image *im) {
    free(im->rgb);
    *im = (struct image){0};
}

static const struct image_format *find_format(const struct image_bytes *b, struct err *e) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i]->accepts(b)) return formats[i];
    err_set(e, ST_FAIL, "%s: not a picture that can be read, wanted JPEG, PNG, GIF, BMP or WebP", b->where);
    return NULL;
}

enum status image_decode(struct image *im, const void *data, size_t n, const char *where, struct err *e) {
    struct image_bytes b = {data, n, where};
    *im = (struct image){0};
    const struct image_format *f = find_format(&b, e);
    if (!f) return e->code;
    enum status st = f->decode(im, &b, e);
    if (st != ST_OK) image_free(im);
    return st;
}

enum status image_read(struct image *im, const char *path, struct err *e) {
    struct file_map m;
    *im = (struct image){0};
    enum status st = file_map_open(&m, path, e);
    if (st != ST_OK) return st;
    st = image_decode(im, m.data, m.size, path, e);
    file_map_close(&m);
    return st;
}

enum status image_size(const char *path, int64_t *width, int64_t *height, struct err *e) {
    struct file_map m;
    *width = *height = 0;
    enum status st = file_map_open(&m, path, e);
    if (st != ST_OK) return st;
    struct image_bytes b = {(const uint8_t *)m.data, m.size, path};
    const struct image_format *f = find_format(&b, e);
    st = f ? f->size(&b, width, height, e) : e->code;
    if (st == ST_OK) st = image_check_size(*width, *height, path, e);
    file_map_close(&m);
    return st;
}

/* Bytes of path before its suffix, as pathlib sees one: from the last dot of the name, unless that dot is the name's
 * first or last character. */
static size_t stem_length(const char *path) {
    const char *name = path_name(path), *dot = strrchr(name, '.');
    return dot && dot > name && dot[1] ? (size_t)(dot - path) : strlen(path);
}

enum status image_find(const char *path, char **found, struct err *e) {
    static const char *const suffixes[] = {".jpg", ".png", ".jpeg", ".gif"};
    *found = NULL;
    if (access(path, F_OK) == 0) {
        *found = mem_text(path);
        return ST_OK;
    }
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        char *other = mem_format("%.*s%s", (int)stem_length(path), path, suffixes[i]);
        if (access(other, F_OK) == 0) {
            *found = other;
            return ST_OK;
        }
        free(other);
    }
    return err_set(e, ST_FAIL, "%s: no such picture, nor one that ends in .jpg, .png, .jpeg or .gif instead", path);
}

void image_crop(struct image *out, const struct image *in, int64_t left, int64_t top, int64_t width, int64_t height) {
    *out = (struct image){width, height, mem_alloc((size_t)(width * height * 3))};
    for (int64_t y = 0; y < height; y++)
        memcpy(out->rgb + y * width * 3, in->rgb + ((top + y) * in->width + left) * 3, (size_t)(width * 3));
}

/* Both sides times scale, truncated as Python's int() does. */
static enum status scale_by(int64_t *width, int64_t *height, double scale, const char *where, struct err *e) {
    *width = (int64_t)((double)*width * scale), *height = (int64_t)((double)*height * scale);
    return image_check_size(*width, *height, where, e);
}

static enum status shrink(int64_t *width, int64_t *height, int64_t max_size, const char *where, struct err *e) {
    int64_t longest = *width > *height ? *width : *height;
    if (max_size <= 0 || longest <= max_size) return ST_OK;
    return scale_by(width, height, (double)max_size / (double)longest, where, e);
}

static enum status enlarge(int64_t *width, int64_t *height, const char *where, struct err *e) {
    if (*width >= 16 && *height >= 16) return ST_OK;
    double across = 16.0 / (double)*width, down = 16.0 / (double)*height;
    return scale_by(width, height, across > down ? across : down, where, e);
}

static void resize_in_place(struct image *im, int64_t width, int64_t height) {
    struct image out;
    if (width == im->width && height == im->height) return; // as Pillow: a copy
    image_resize(&out, im, width, height, RESAMPLE_BICUBIC);
    image_free(im);
    *im = out;
}

/* Each scale is one division of doubles, so that the truncated sides are those of Python. */
enum status image_mantis_size(struct image *im, int64_t max_size, const char *where, struct err *e) {
    int64_t width = im->width, height = im->height;
    if (shrink(&width, &height, max_size, where, e) != ST_OK) return e->code;
    resize_in_place(im, width, height);
    if (enlarge(&width, &height, where, e) != ST_OK) return e->code;
    resize_in_place(im, width, height);
    return ST_OK;
}

enum status image_mantis_sides(int64_t *width, int64_t *height, int64_t max_size, const char *where, struct err *e) {
    if (shrink(width, height, max_size, where, e) != ST_OK) return e->code;
    return enlarge(width, height, where, e);
}

#include "data/image_set.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { MOST_SIDE = 32768, MOST_TOKENS = 65536 }; // a position of the grid fits int32_t

/* ---------------------------------------------------------------- opening */

/* The model that a processor belongs to. */
static const char *model_of(bool idefics2, bool fuyu) { return idefics2 ? "Idefics2" : fuyu ? "Fuyu" : "llava"; }

static enum status check_kind(const struct processor *p, const struct data_family *f, struct err *e) {
    const char *model = model_of(f->family == FAMILY_IDEFICS2, f->family == FAMILY_MFUYU);
    const char *processor = model_of(p->kind == PROCESSOR_IDEFICS2, p->kind == PROCESSOR_FUYU);
    if (strcmp(model, processor) != 0)
        return err_set(e, ST_FAIL, "%s: the model is of the kind %s, but preprocessor_config.json belongs to %s",
                       f->model_dir, model, processor);
    if (p->kind == PROCESSOR_FUYU && p->patch != f->patch_size)
        return err_set(e, ST_FAIL, "%s: preprocessor_config.json has patches of %lld, the model of %lld (patch_size)",
                       f->model_dir, (long long)p->patch, (long long)f->patch_size);
    return ST_OK;
}

/* What a Fuyu writes around patches. */
static enum status check_fuyu_tokens(const struct data_family *f, const struct tokenizer *t, struct err *e) {
    static const char *const wanted[] = {PATCH_TOKEN, ROW_END_TOKEN, PICTURE_TOKEN, PICTURE_END_TOKEN, TEXT_TOKEN};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (tokenizer_id(t, wanted[i]) < 0)
            return err_set(e, ST_FAIL, "%s: the tokenizer has no %s, by which pictures are written", f->model_dir,
                           wanted[i]);
    return ST_OK;
}

static enum status check_tokens(const struct data_family *f, const struct tokenizer *t, struct err *e) {
    if (f->family == FAMILY_MFUYU) return check_fuyu_tokens(f, t, e);
    int32_t id = tokenizer_id(t, "<image>");
    if (id != f->image_token)
        return err_set(e, ST_FAIL, "%s: the tokenizer's id of <image> is %d, the model's is %d (image_token_index)",
                       f->model_dir, id, f->image_token);
    if (f->family == FAMILY_IDEFICS2 && tokenizer_id(t, FAKE_TOKEN) < 0)
        return err_set(e, ST_FAIL, "%s: the tokenizer has no %s, which stands around pictures", f->model_dir,
                       FAKE_TOKEN);
    return ST_OK;
}

enum status image_set_open(struct processor *p, const struct data_family *f, const struct tokenizer *t, struct err *e) {
    if (check_tokens(f, t, e) != ST_OK || processor_load(p, f->model_dir, e) != ST_OK || check_kind(p, f, e) != ST_OK)
        return e->code;
    if (f->family == FAMILY_IDEFICS2 &&
        (f->patch_size < 1 || f->tokens_per_image < 1 || f->tokens_per_image > MOST_TOKENS || f->grid_side < 1 ||
         f->grid_side > MOST_SIDE))
        return err_set(
            e, ST_FAIL,
            "%s: a model with patches of %lld pixels, a grid of %lld x %lld positions and %lld tokens a picture is "
            "not possible",
            f->model_dir, (long long)f->patch_size, (long long)f->grid_side, (long long)f->grid_side,
            (long long)f->tokens_per_image);
    if (p->image_seq_len && f->family == FAMILY_IDEFICS2 && p->image_seq_len != f->tokens_per_image)
        return err_set(e, ST_FAIL,
                       "%s: processor_config.json writes %lld tokens for a picture (image_seq_len), the model makes "
                       "%lld (resampler_n_latents)",
                       f->model_dir, (long long)p->image_seq_len, (long long)f->tokens_per_image);
    return ST_OK;
}

/* ---------------------------------------------------------------- processing */

enum status image_set_measure(struct batch_image *out, const struct processor *p, int64_t width, int64_t height,
                              const char *where, struct err *e) {
    for (int64_t k = 0; k < processor_pieces(p); k++) {
        struct rect r = processor_piece(p, width, height, k);
        if (processor_size(p, &r.width, &r.height, where, e) != ST_OK) return e->code;
        out[k] = (struct batch_image){.height = r.height, .width = r.width};
    }
    return ST_OK;
}

static enum status process_piece(struct batch_image *out, const struct processor *p, const struct image *im,
                                 const char *where, struct err *e) {
    out->pixels = mem_alloc((size_t)(3 * out->height * out->width) * sizeof *out->pixels);
    return processor_run(p, im, where, out->pixels, e);
}

enum status image_set_process(struct batch_image *out, const struct processor *p, const struct image *im,
                              const char *where, struct err *e) {
    if (image_set_measure(out, p, im->width, im->height, where, e) != ST_OK) return e->code;
    int64_t last = processor_pieces(p) - 1; // the whole
    for (int64_t k = 0; k < last && e->code == ST_OK; k++) {
        struct rect r = processor_piece(p, im->width, im->height, k);
        struct image part;
        image_crop(&part, im, r.left, r.top, r.width, r.height);
        process_piece(&out[k], p, &part, where, e);
        image_free(&part);
    }
    return e->code == ST_OK ? process_piece(&out[last], p, im, where, e) : e->code;
}

/* ---------------------------------------------------------------- patches */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct sides image_set_largest(const struct batch_image *image, int64_t n) {
    struct sides s = {0};
    for (int64_t i = 0; i < n; i++) s.rows = larger(s.rows, image[i].height), s.cols = larger(s.cols, image[i].width);
    return s;
}

/* Patches that `length` pixels reach into, of the whole ones in `room`. */
static int64_t reached(int64_t length, int64_t room, int64_t patch) {
    return smaller((length + patch - 1) / patch, room / patch);
}

struct sides image_set_patches(const struct batch_image *image, struct sides largest, int64_t patch) {
    return (struct sides){reached(image->height, largest.rows, patch), reached(image->width, largest.cols, patch)};
}

struct patch_count image_set_count(const struct batch_image *image, int64_t n, const struct data_family *f) {
    struct patch_count c = {0};
    if (!family_any_size(f)) return c;
    struct sides largest = image_set_largest(image, n);
    for (int64_t i = 0; i < n; i++) {
        struct sides s = image_set_patches(&image[i], largest, f->patch_size);
        c.patches += s.rows * s.cols;
        c.most = larger(c.most, s.rows * s.cols);
    }
    return c;
}

enum status image_set_check(const struct batch_image *image, int64_t n, const struct processor *p,
                            const struct data_family *f, struct err *e) {
    struct sides s = image_set_largest(image, n);
    if (!family_any_size(f) || n == 0) return ST_OK;
    for (int64_t i = 0; i < n && !p->do_pad; i++)
        if (image[i].height != s.rows || image[i].width != s.cols)
            return err_set(e, ST_FAIL,
                           "the pictures become different sizes, %lld x %lld and %lld x %lld, which do_pad false of "
                           "preprocessor_config.json does not allow",
                           (long long)image[0].width, (long long)image[0].height, (long long)s.cols, (long long)s.rows);
    if (s.rows >= f->patch_size && s.cols >= f->patch_size) return ST_OK;
    return err_set(e, ST_FAIL, "the pictures become at most %lld x %lld pixels, wanted a patch of %lld x %lld or more",
                   (long long)s.cols, (long long)s.rows, (long long)f->patch_size, (long long)f->patch_size);
}

/* ---------------------------------------------------------------- positions */

/* torch.arange(start, .., step) in float32 as it comes out with vectors of 8: multiples in double, rounded once; but in
 * whole blocks of 16 each half starts from a value that is rounded already. Whether a fraction reaches the border of
 * its bucket hangs on these roundings, in a grid of 70 at 25, 49, 50, 55 and 58 patches. */
static void fill_range(float *out, int64_t n, double start, double step) {
    int64_t blocks = n / 16 * 16;
    for (int64_t i = 0; i < blocks; i++) {
        float base = (float)(start + step * (double)(i - i % 8));
        out[i] = (float)((double)base + (double)(i % 8) * step);
    }
    for (int64_t i = blocks; i < n; i++) out[i] = (float)(start + step * (double)i);
}

/* bucket (n): how many borders 1/side, 2/side, .. are at or below each fraction 0/n, 1/n, .. */
static void find_buckets(int32_t *bucket, int64_t n, int64_t side) {
    double wide = 1.0 / (double)side, step = (double)(1.0f / (float)n);
    int64_t borders = (int64_t)ceil((1.0 - wide) / wide);
    float *border = mem_alloc((size_t)borders * sizeof *border), *fraction = mem_alloc((size_t)n * sizeof *fraction);
    fill_range(border, borders, wide, wide);
    fill_range(fraction, n, 0, step);
    int32_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        while (at < borders && border[at] <= fraction[i]) at++;
        bucket[i] = at;
    }
    free(border), free(fraction);
}

void image_set_positions(int32_t *positions, struct sides patches, int64_t side) {
    int32_t *row = mem_alloc((size_t)(patches.rows + patches.cols) * sizeof *row), *col = row + patches.rows;
    find_buckets(row, patches.rows, side);
    find_buckets(col, patches.cols, side);
    for (int64_t i = 0; i < patches.rows; i++)
        for (int64_t j = 0; j < patches.cols; j++) positions[i * patches.cols + j] = row[i] * (int32_t)side + col[j];
    free(row);
}

void image_set_cut(struct batch_image *out, const struct batch_image *from, struct sides largest,
                   const struct data_family *f) {
    struct sides s = image_set_patches(from, largest, f->patch_size);
    int64_t H = s.rows * f->patch_size, W = s.cols * f->patch_size;
    int64_t rows = smaller(H, from->height), cols = smaller(W, from->width);
    *out = (struct batch_image){.height = H, .width = W};
    out->patch_positions = mem_alloc((size_t)(s.rows * s.cols) * sizeof *out->patch_positions);
    image_set_positions(out->patch_positions, s, f->grid_side);
    if (!from->pixels) return;
    out->pixels = mem_alloc((size_t)(3 * H * W) * sizeof *out->pixels);
    for (int64_t c = 0; c < 3; c++)
        for (int64_t y = 0; y < rows; y++)
            memcpy(out->pixels + (c * H + y) * W, from->pixels + (c * from->height + y) * from->width,
                   (size_t)cols * sizeof *out->pixels);
}

void image_set_patch_rows(struct batch_image *out, const struct batch_image *from, int64_t patch) {
    int64_t H = from->height, W = from->width;
    *out = (struct batch_image){.height = H, .width = W};
    if (!from->pixels) return;
    float *at = out->pixels = mem_alloc((size_t)(3 * H * W) * sizeof *at);
    for (int64_t row = 0; row < H; row += patch)
        for (int64_t col = 0; col < W; col += patch)
            for (int64_t y = row; y < row + patch; y++)
                for (int64_t x = col; x < col + patch; x++)
                    for (int64_t c = 0; c < 3; c++) *at++ = from->pixels[(c * H + y) * W + x];
}

void batch_image_free(struct batch_image *image) {
    free(image->pixels);
    free(image->patch_positions);
    *image = (struct batch_image){0};
}

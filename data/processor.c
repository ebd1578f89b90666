#include "data/processor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "data/image_format.h"

/* Keys that are read below. */
static const char *const known_keys[] = {
    "image_processor_type", "do_resize",      "size",         "resample",   "do_center_crop", "crop_size",
    "do_rescale",           "rescale_factor", "do_normalize", "image_mean", "image_std",
};

/* Keys that leave the pixels alone. Pictures are RGB before they come here, so do_convert_rgb may say either. */
static const char *const harmless_keys[] = {
    "do_convert_rgb",        "processor_class",  "feature_extractor_type", "auto_map",   "data_format",
    "return_tensors",        "device",           "disable_grouping",       "patch_size", "default_to_square",
    "_valid_processor_keys", "image_seq_length", "transformers_version",
};

/* Keys that are read below for Idefics2. */
static const char *const idefics2_keys[] = {"do_image_splitting", "do_pad"};

/* Keys that are read below for Fuyu. */
static const char *const fuyu_keys[] = {"do_pad", "padding_value", "padding_mode"};

/* Keys that leave the pixels alone when they are null or false. */
static const char *const idle_keys[] = {
    "size_divisor",          "do_pad",           "pad_size",           "input_data_format", "use_square_size",
    "do_flip_channel_order", "do_reduce_labels", "do_image_splitting",
};

static bool listed(const char *key, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(key, list[i]) == 0) return true;
    return false;
}

#define LISTED(key, list) listed(key, list, sizeof(list) / sizeof *(list))

static enum status check_keys(const struct processor *p, const cJSON *o, const char *where, struct err *e) {
    for (const cJSON *v = o->child; v; v = v->next) {
        if (LISTED(v->string, known_keys) || LISTED(v->string, harmless_keys)) continue;
        if (p->kind == PROCESSOR_IDEFICS2 && LISTED(v->string, idefics2_keys)) continue;
        if (p->kind == PROCESSOR_FUYU && LISTED(v->string, fuyu_keys)) continue;
        if (LISTED(v->string, idle_keys) && (cJSON_IsNull(v) || cJSON_IsFalse(v))) continue;
        return err_set(e, ST_FAIL,
                       "%s: the key \"%s\" may change the pixels and is not honoured; remove it if it does not", where,
                       v->string);
    }
    return ST_OK;
}

static enum status read_kind(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    const char *name;
    enum status st = json_str(o, where, "image_processor_type", NULL, &name, e);
    if (st != ST_OK) return st;
    if (!name) st = json_str(o, where, "feature_extractor_type", "", &name, e); // as folders of old releases say it
    if (st != ST_OK) return st;
    size_t n = strlen(name);
    if (n > 4 && strcmp(name + n - 4, "Fast") == 0) n -= 4;
    if ((n == 20 && memcmp(name, "SiglipImageProcessor", n) == 0))
        p->kind = PROCESSOR_SIGLIP;
    else if ((n == 18 && memcmp(name, "CLIPImageProcessor", n) == 0) || strcmp(name, "CLIPFeatureExtractor") == 0)
        p->kind = PROCESSOR_CLIP;
    else if (n == 22 && memcmp(name, "Idefics2ImageProcessor", n) == 0)
        p->kind = PROCESSOR_IDEFICS2;
    else if (n == 18 && memcmp(name, "FuyuImageProcessor", n) == 0)
        p->kind = PROCESSOR_FUYU;
    else
        return err_set(e, ST_FAIL,
                       "%s: image_processor_type is \"%s\", wanted SiglipImageProcessor, CLIPImageProcessor, "
                       "Idefics2ImageProcessor or FuyuImageProcessor",
                       where, name);
    return ST_OK;
}

/* A side in pixels; limits what a file can make us allocate. */
static enum status read_side(const cJSON *v, const char *where, const char *key, int64_t *side, struct err *e) {
    enum { MOST = 16384 };
    if (!cJSON_IsNumber(v) || !json_is_integer(v) || v->valuedouble < 1 || v->valuedouble > MOST)
        return err_set(e, ST_FAIL, "%s: %s holds a side that is not a whole number from 1 to %d", where, key, MOST);
    *side = (int64_t)v->valuedouble;
    return ST_OK;
}

/* {height, width}, or {shortest_edge} when that is not NULL; nothing else. */
static enum status read_sides(const cJSON *o, const char *where, const char *key, int64_t *height, int64_t *width,
                              int64_t *shortest, struct err *e) {
    const cJSON *h = json_get(o, "height"), *w = json_get(o, "width"), *s = json_get(o, "shortest_edge");
    int given = 0;
    for (const cJSON *v = o->child; v; v = v->next) given += !cJSON_IsNull(v);
    enum status st = ST_OK;
    *height = *width = 0;
    if (h && w && given == 2) {
        st = read_side(h, where, key, height, e);
        return st == ST_OK ? read_side(w, where, key, width, e) : st;
    }
    if (shortest && s && given == 1) return read_side(s, where, key, shortest, e);
    return err_set(e, ST_FAIL, "%s: %s must hold height and width%s, and nothing else", where, key,
                   shortest ? " or shortest_edge" : "");
}

/* A bare number is CLIP's shortest_edge. SigLIP has no use for one: transformers itself fails or stretches by it. */
static enum status read_size(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    const cJSON *v = json_get(o, "size");
    bool clip = p->kind == PROCESSOR_CLIP;
    if (!v && clip) p->shortest_edge = 224;
    if (!v && !clip) p->resize_height = p->resize_width = 224;
    if (!v) return ST_OK;
    if (cJSON_IsNumber(v) && clip) return read_side(v, where, "size", &p->shortest_edge, e);
    return read_sides(v, where, "size", &p->resize_height, &p->resize_width, clip ? &p->shortest_edge : NULL, e);
}

/* Idefics2's {shortest_edge, longest_edge}, or {height, width}. */
static enum status read_edges(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    const cJSON *v = json_get(o, "size"), *s = json_get(v, "shortest_edge"), *l = json_get(v, "longest_edge");
    p->shortest_edge = 378, p->longest_edge = 980;
    if (!v) return ST_OK;
    int given = 0;
    for (const cJSON *side = v->child; side; side = side->next) given += !cJSON_IsNull(side);
    if (s && l && given == 2) {
        enum status st = read_side(s, where, "size", &p->shortest_edge, e);
        return st == ST_OK ? read_side(l, where, "size", &p->longest_edge, e) : st;
    }
    p->shortest_edge = p->longest_edge = 0;
    if (json_get(v, "height")) return read_sides(v, where, "size", &p->resize_height, &p->resize_width, NULL, e);
    return err_set(e, ST_FAIL,
                   "%s: size must hold shortest_edge and longest_edge, or height and width, and nothing else", where);
}

/* A bare number is a square. */
static enum status read_crop(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    const cJSON *v = json_get(o, "crop_size");
    p->height = p->width = 224;
    if (!v) return ST_OK;
    if (!cJSON_IsNumber(v)) return read_sides(v, where, "crop_size", &p->height, &p->width, NULL, e);
    enum status st = read_side(v, where, "crop_size", &p->height, e);
    p->width = p->height;
    return st;
}

/* Fuyu's {height, width}, patch_size and padding. */
static enum status read_fuyu(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    const cJSON *size = json_get(o, "size"), *patch = json_get(o, "patch_size");
    const char *mode;
    double padding;
    int64_t patch_width = 30;
    p->resize_height = 1080, p->resize_width = 1920, p->patch = 30;
    if (size && read_sides(size, where, "size", &p->resize_height, &p->resize_width, NULL, e) != ST_OK) return e->code;
    if (patch && read_sides(patch, where, "patch_size", &p->patch, &patch_width, NULL, e) != ST_OK) return e->code;
    if (p->patch != patch_width)
        return err_set(e, ST_FAIL, "%s: patch_size is %lld x %lld, wanted a square", where, (long long)patch_width,
                       (long long)p->patch);
    if (json_str(o, where, "padding_mode", "constant", &mode, e) != ST_OK ||
        json_num(o, where, "padding_value", 1, &padding, e) != ST_OK)
        return e->code;
    if (strcmp(mode, "constant") != 0)
        return err_set(e, ST_FAIL, "%s: padding_mode \"%.40s\" is not supported, wanted constant", where, mode);
    if (!(padding >= 0 && padding < 256))
        return err_set(e, ST_FAIL, "%s: padding_value is %g, wanted a byte", where, padding);
    p->padding = (uint8_t)padding;
    return ST_OK;
}

/* The size of the result must not depend on the picture, but for Idefics2 and Fuyu. */
static enum status read_shape(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    if (p->kind == PROCESSOR_IDEFICS2) return read_edges(p, o, where, e);
    if (p->kind == PROCESSOR_FUYU) return read_fuyu(p, o, where, e);
    enum status st = read_size(p, o, where, e);
    if (st != ST_OK) return st;
    if (p->do_center_crop) return read_crop(p, o, where, e);
    if (!p->do_resize || p->shortest_edge)
        return err_set(e, ST_FAIL,
                       "%s: without do_center_crop, %s gives pictures of different sizes; wanted size with "
                       "height and width",
                       where, p->do_resize ? "shortest_edge" : "do_resize false");
    p->height = p->resize_height;
    p->width = p->resize_width;
    return ST_OK;
}

/* A number for all channels, or three. */
static enum status read_channels(float out[3], const float fallback[3], const cJSON *o, const char *where,
                                 const char *key, struct err *e) {
    const cJSON *v = json_get(o, key);
    memcpy(out, fallback, 3 * sizeof *out);
    if (!v) return ST_OK;
    if (!cJSON_IsNumber(v) && (!cJSON_IsArray(v) || cJSON_GetArraySize(v) != 3))
        return err_set(e, ST_FAIL, "%s: %s is not a number or a list of three", where, key);
    for (int c = 0; c < 3; c++) {
        const cJSON *n = cJSON_IsArray(v) ? cJSON_GetArrayItem(v, c) : v;
        if (!cJSON_IsNumber(n) || !isfinite((float)n->valuedouble))
            return err_set(e, ST_FAIL, "%s: %s holds something that is not a number", where, key);
        out[c] = (float)n->valuedouble;
    }
    return ST_OK;
}

static enum status read_numbers(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    static const float half[3] = {0.5f, 0.5f, 0.5f};
    static const float clip_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
    static const float clip_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    bool clip = p->kind == PROCESSOR_CLIP;
    enum status st = json_num(o, where, "rescale_factor", 1 / 255.0, &p->rescale_factor, e);
    if (st == ST_OK) st = read_channels(p->mean, clip ? clip_mean : half, o, where, "image_mean", e);
    if (st == ST_OK) st = read_channels(p->std, clip ? clip_std : half, o, where, "image_std", e);
    for (int c = 0; c < 3 && st == ST_OK; c++)
        if (p->std[c] == 0.0f) st = err_set(e, ST_FAIL, "%s: image_std is 0", where);
    return st;
}

static enum status read_steps(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    int64_t resample;
    bool bilinear = p->kind == PROCESSOR_IDEFICS2 || p->kind == PROCESSOR_FUYU;
    enum status st = json_bool(o, where, "do_resize", true, &p->do_resize, e);
    if (st == ST_OK) st = json_bool(o, where, "do_rescale", true, &p->do_rescale, e);
    if (st == ST_OK) st = json_bool(o, where, "do_normalize", true, &p->do_normalize, e);
    if (st == ST_OK) st = json_bool(o, where, "do_center_crop", p->kind == PROCESSOR_CLIP, &p->do_center_crop, e);
    if (st == ST_OK) st = json_bool(o, where, "do_image_splitting", false, &p->do_image_splitting, e);
    if (st == ST_OK) st = json_bool(o, where, "do_pad", true, &p->do_pad, e);
    if (st == ST_OK) st = json_int(o, where, "resample", bilinear ? RESAMPLE_BILINEAR : RESAMPLE_BICUBIC, &resample, e);
    if (st != ST_OK) return st;
    if (resample < RESAMPLE_NEAREST || resample > RESAMPLE_HAMMING)
        return err_set(e, ST_FAIL, "%s: resample is %lld, wanted 0 to 5", where, (long long)resample);
    if (p->kind != PROCESSOR_CLIP && p->do_center_crop)
        return err_set(e, ST_FAIL, "%s: do_center_crop is true, which %s does not do", where,
                       p->kind == PROCESSOR_FUYU       ? "FuyuImageProcessor"
                       : p->kind == PROCESSOR_IDEFICS2 ? "Idefics2ImageProcessor"
                                                       : "SiglipImageProcessor");
    p->resample = (enum resample)resample;
    if (p->kind == PROCESSOR_FUYU) p->resample = RESAMPLE_BILINEAR; // the slow one asks for it whatever resample says
    return ST_OK;
}

static enum status read_settings(struct processor *p, const cJSON *o, const char *where, struct err *e) {
    if (!cJSON_IsObject(o)) return err_set(e, ST_FAIL, "%s: not a JSON object", where);
    enum status st = read_kind(p, o, where, e);
    if (st == ST_OK) st = check_keys(p, o, where, e);
    if (st == ST_OK) st = read_steps(p, o, where, e);
    if (st == ST_OK) st = read_shape(p, o, where, e);
    return st == ST_OK ? read_numbers(p, o, where, e) : st;
}

/* processor_config.json tells the text side of a processor and, where transformers 5 wrote it, holds the image side. */
static enum status read_both(struct processor *p, const cJSON *both, const char *both_path, const char *path,
                             struct err *e) {
    const cJSON *nested = json_get(both, "image_processor");
    cJSON *alone = nested ? NULL : json_read(path, e);
    if (nested || alone) read_settings(p, nested ? nested : alone, nested ? both_path : path, e);
    if (e->code == ST_OK && p->kind == PROCESSOR_IDEFICS2 && both)
        json_int(both, both_path, "image_seq_len", 0, &p->image_seq_len, e);
    cJSON_Delete(alone);
    return e->code;
}

enum status processor_load(struct processor *p, const char *dir, struct err *e) {
    *p = (struct processor){0};
    char *path = path_join(dir, "preprocessor_config.json"), *both_path = path_join(dir, "processor_config.json");
    cJSON *both = file_exists(both_path) ? json_read(both_path, e) : NULL;
    if (e->code == ST_OK) read_both(p, both, both_path, path, e);
    cJSON_Delete(both);
    free(path), free(both_path);
    return e->code;
}

/* CLIP: the short side becomes the edge, the long one int(edge * long / short). */
static void sides_by_shortest(int64_t edge, int64_t *width, int64_t *height) {
    bool upright = *width <= *height;
    int64_t shorter = upright ? *width : *height, longer = upright ? *height : *width;
    longer = (int64_t)((double)(edge * longer) / (double)shorter);
    *width = upright ? edge : longer;
    *height = upright ? longer : edge;
}

/* Idefics2: a long side above longest_edge shrinks to it and takes the other with it, truncated as Python's int() does;
 * then a side below shortest_edge becomes it, whatever that does to the shape. */
static void sides_between(const struct processor *p, int64_t *width, int64_t *height) {
    double aspect = (double)*width / (double)*height;
    if (*width >= *height && *width > p->longest_edge) {
        *width = p->longest_edge;
        *height = (int64_t)((double)*width / aspect);
    } else if (*height > *width && *height > p->longest_edge) {
        *height = p->longest_edge;
        *width = (int64_t)((double)*height * aspect);
    }
    if (*height < p->shortest_edge) *height = p->shortest_edge;
    if (*width < p->shortest_edge) *width = p->shortest_edge;
}

/* Fuyu: a picture that does not fit shrinks until it does, truncated as Python's int() does. */
static void sides_within(const struct processor *p, int64_t *width, int64_t *height) {
    if (*width <= p->resize_width && *height <= p->resize_height) return;
    double down = (double)p->resize_height / (double)*height, across = (double)p->resize_width / (double)*width;
    double scale = down < across ? down : across;
    *height = (int64_t)((double)*height * scale);
    *width = (int64_t)((double)*width * scale);
}

/* The sides that the resize asks for. */
static void resized_sides(const struct processor *p, int64_t *width, int64_t *height) {
    if (!p->do_resize) return;
    if (p->kind == PROCESSOR_FUYU)
        sides_within(p, width, height);
    else if (p->longest_edge)
        sides_between(p, width, height);
    else if (p->shortest_edge)
        sides_by_shortest(p->shortest_edge, width, height);
    else
        *width = p->resize_width, *height = p->resize_height;
}

int64_t processor_pieces(const struct processor *p) { return p->do_image_splitting ? 5 : 1; }

struct rect processor_piece(const struct processor *p, int64_t width, int64_t height, int64_t piece) {
    if (piece + 1 == processor_pieces(p)) return (struct rect){0, 0, width, height};
    int64_t x = width / 2, y = height / 2;
    bool right = piece % 2, lower = piece / 2;
    return (struct rect){right ? x : 0, lower ? y : 0, right ? width - x : x, lower ? height - y : y};
}

static int64_t up_to(int64_t length, int64_t patch, int64_t most) {
    int64_t whole = (length + patch - 1) / patch * patch;
    return whole < most ? whole : most;
}

/* From the sides of a resized picture to those of the result. Fuyu pads to the size and keeps the patches that the
 * picture reaches into. */
static enum status result_sides(const struct processor *p, int64_t *width, int64_t *height, const char *where,
                                struct err *e) {
    if (p->height) *width = p->width, *height = p->height;
    if (p->kind != PROCESSOR_FUYU) return ST_OK;
    if (p->do_pad && (*width > p->resize_width || *height > p->resize_height))
        return err_set(e, ST_FAIL, "%s: the picture of %lld x %lld does not fit into size, %lld x %lld", where,
                       (long long)*width, (long long)*height, (long long)p->resize_width, (long long)p->resize_height);
    if (p->do_pad) *width = up_to(*width, p->patch, p->resize_width);
    if (p->do_pad) *height = up_to(*height, p->patch, p->resize_height);
    if (*width % p->patch == 0 && *height % p->patch == 0) return ST_OK;
    return err_set(
        e, ST_FAIL,
        "%s: the picture becomes %lld x %lld, which is not made of patches of %lld (preprocessor_config.json: "
        "size, do_pad)",
        where, (long long)*width, (long long)*height, (long long)p->patch);
}

enum status processor_size(const struct processor *p, int64_t *width, int64_t *height, const char *where,
                           struct err *e) {
    if (image_check_size(*width, *height, where, e) != ST_OK) return e->code;
    resized_sides(p, width, height);
    if (image_check_size(*width, *height, where, e) != ST_OK) return e->code;
    return result_sides(p, width, height, where, e);
}

static enum status resize(const struct processor *p, struct image *out, const struct image *in, const char *where,
                          struct err *e) {
    int64_t width = in->width, height = in->height;
    resized_sides(p, &width, &height);
    enum status st = image_check_size(width, height, where, e);
    if (st == ST_OK) image_resize(out, in, width, height, p->resample);
    return st;
}

/* What each byte of each channel becomes. */
static void fill_table(const struct processor *p, float table[3][256]) {
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++) {
            float value = p->do_rescale ? (float)(i * p->rescale_factor) : (float)i;
            table[c][i] = p->do_normalize ? (value - p->mean[c]) / p->std[c] : value;
        }
}

/* Where the result's first row lies in the picture: half of what is too much. Below 0: the larger half of what is
 * missing comes before the picture. */
static int64_t crop_start(int64_t have, int64_t want) {
    return have >= want ? (have - want) / 2 : -((want - have + 1) / 2);
}

/* The middle of the picture, with Fuyu all of it in the upper left corner; pixels beyond it are black before rescaling,
 * as the slow processors pad, with Fuyu of the padding's byte. */
static void fill_pixels(const struct processor *p, const struct image *im, int64_t width, int64_t height,
                        float *pixels) {
    float table[3][256];
    fill_table(p, table);
    bool corner = p->kind == PROCESSOR_FUYU;
    int64_t top = corner ? 0 : crop_start(im->height, height), left = corner ? 0 : crop_start(im->width, width);
    for (int c = 0; c < 3; c++)
        for (int64_t y = 0; y < height; y++) {
            float *out = pixels + (c * height + y) * width;
            bool inside = top + y >= 0 && top + y < im->height;
            const uint8_t *row = im->rgb + (inside ? (top + y) * im->width * 3 : 0) + c;
            for (int64_t x = 0, from = left; x < width; x++, from++)
                out[x] = table[c][inside && from >= 0 && from < im->width ? row[3 * from] : p->padding];
        }
}

enum status processor_run(const struct processor *p, const struct image *im, const char *where, float *pixels,
                          struct err *e) {
    struct image resized = {0};
    enum status st = p->do_resize ? resize(p, &resized, im, where, e) : ST_OK;
    const struct image *source = p->do_resize ? &resized : im;
    int64_t width = source->width, height = source->height;
    if (st == ST_OK) st = result_sides(p, &width, &height, where, e);
    if (st == ST_OK) fill_pixels(p, source, width, height, pixels);
    image_free(&resized);
    return st;
}

/* Pillow's resize of 8-bit pixels, bit for bit: each axis has a table of weights in fixed point (22 bits), a horizontal
 * pass rounds to bytes and a vertical pass does. A kernel widens when it shrinks, so every input pixel counts.
 *
 * Both passes are one loop over taps around one over neighbouring bytes, which the compiler turns into vectors: along a
 * row in the vertical pass, across a group of rows laid side by side in the horizontal one. Sums are of int32, exact in
 * any order. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/image.h"

/* The same C for the machine at hand and for its wider registers; the loader picks. It does so before
 * ThreadSanitizer is ready, which then crashes. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_THREAD__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

enum {
    FRACTION = 22,
    BLOCK = 128, // bytes that are summed up at once
    ROWS = 8,    // that the horizontal pass takes at once
};

/* What one axis needs: output i is the sum of weight[i * most + k] * input[first[i] + k], k < count[i]. */
struct axis {
    int64_t out, most;
    int64_t *first;  // (out)
    int64_t *count;  // (out), at least 1
    int32_t *weight; // (out, most), of 2^22
};

struct filter {
    double (*at)(double x);
    double support;
};

static double box_at(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double triangle_at(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming_at(double x) {
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= M_PI;
    return sin(x) / x * (0.54f + 0.46f * cos(x)); // float constants, as in Pillow
}

/* The cubic with a = -1/2. */
static double cubic_at(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos_at(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

static struct filter filter_of(enum resample r) {
    switch (r) {
    case RESAMPLE_BOX:
        return (struct filter){box_at, 0.5};
    case RESAMPLE_BILINEAR:
        return (struct filter){triangle_at, 1.0};
    case RESAMPLE_HAMMING:
        return (struct filter){hamming_at, 1.0};
    case RESAMPLE_LANCZOS:
        return (struct filter){lanczos_at, 3.0};
    default:
        return (struct filter){cubic_at, 2.0};
    }
}

/* The weights of one output pixel, for inputs lo to lo + count - 1 around center: w (count) in double, made to sum to
 * 1, then rounded to fixed point. */
static void axis_weigh(int32_t *weight, double *w, int64_t lo, int64_t count, double center, double scale,
                       struct filter f) {
    double sum = 0.0, per = 1.0 / scale;
    for (int64_t k = 0; k < count; k++) sum += w[k] = f.at(((double)(k + lo) - center + 0.5) * per);
    for (int64_t k = 0; k < count; k++) {
        double fixed = (sum != 0.0 ? w[k] / sum : w[k]) * (1 << FRACTION);
        weight[k] = (int32_t)(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
}

static struct axis axis_new(int64_t in, int64_t out, struct filter f) {
    double step = (double)in / (double)out, scale = step < 1.0 ? 1.0 : step, support = f.support * scale;
    struct axis a = {.out = out, .most = (int64_t)ceil(support) * 2 + 1};
    a.first = mem_alloc((size_t)out * sizeof *a.first);
    a.count = mem_alloc((size_t)out * sizeof *a.count);
    a.weight = mem_alloc((size_t)(out * a.most) * sizeof *a.weight);
    double *w = mem_alloc((size_t)a.most * sizeof *w);
    for (int64_t i = 0; i < out; i++) {
        double center = ((double)i + 0.5) * step;
        int64_t lo = (int64_t)(center - support + 0.5), hi = (int64_t)(center + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > in) hi = in;
        a.first[i] = lo;
        a.count[i] = hi - lo;
        axis_weigh(a.weight + i * a.most, w, lo, hi - lo, center, scale, f);
    }
    free(w);
    return a;
}

static void axis_free(struct axis *a) {
    free(a->first);
    free(a->count);
    free(a->weight);
}

static inline uint8_t to_byte(int32_t sum) {
    sum >>= FRACTION;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* n bytes of one output: from `count` inputs of n bytes, `stride` bytes apart. Inlined, so that n is a constant where
 * the caller's is, and compiled for the caller's registers. */
static inline __attribute__((always_inline)) void weigh(uint8_t *restrict out, const uint8_t *restrict in,
                                                        int64_t stride, int64_t n, const int32_t *restrict weight,
                                                        int64_t count) {
    int32_t sum[BLOCK];
    int64_t k = 0;
    for (int64_t x = 0; x < n; x++) sum[x] = 1 << (FRACTION - 1);
    for (; k + 1 < count; k += 2) {
        const uint8_t *p = in + k * stride, *q = p + stride;
        for (int64_t x = 0; x < n; x++) sum[x] += p[x] * weight[k] + q[x] * weight[k + 1];
    }
    for (; k < count; k++)
        for (int64_t x = 0; x < n; x++) sum[x] += in[k * stride + x] * weight[k];
    for (int64_t x = 0; x < n; x++) out[x] = to_byte(sum[x]);
}

/* The rows of a group side by side: group (width, ROWS, 4). A row that is not there leaves what was. The fourth byte is
 * the next pixel's first, since four are copied faster than three; the last pixel has none. */
static void group_rows(uint8_t *group, const uint8_t *rgb, int64_t width, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *row = rgb + r * width * 3;
        uint8_t *to = group + r * 4;
        for (int64_t x = 0; x + 1 < width; x++) memcpy(to + x * ROWS * 4, row + 3 * x, 4);
        memcpy(to + (width - 1) * ROWS * 4, row + 3 * (width - 1), 3);
    }
}

/* The horizontal pass for a group: rgb (rows, a->out, 3). */
WIDE static void squeeze_group(uint8_t *restrict rgb, const uint8_t *restrict group, const struct axis *a,
                               int64_t rows) {
    for (int64_t i = 0; i < a->out; i++) {
        uint8_t column[ROWS * 4];
        weigh(column, group + a->first[i] * ROWS * 4, ROWS * 4, ROWS * 4, a->weight + i * a->most, a->count[i]);
        for (int64_t r = 0; r < rows; r++) memcpy(rgb + (r * a->out + i) * 3, column + 4 * r, 3);
    }
}

static void squeeze_columns(struct image *out, const struct image *in, const struct axis *a) {
    uint8_t *group = mem_alloc((size_t)in->width * ROWS * 4);
    for (int64_t y = 0; y < in->height; y += ROWS) {
        int64_t rows = in->height - y < ROWS ? in->height - y : ROWS;
        group_rows(group, in->rgb + y * in->width * 3, in->width, rows);
        squeeze_group(out->rgb + y * out->width * 3, group, a, rows);
    }
    free(group);
}

/* One row of the vertical pass: n bytes from `count` rows of n bytes that follow each other from in on. */
WIDE static void squeeze_row(uint8_t *out, const uint8_t *in, int64_t n, const int32_t *weight, int64_t count) {
    int64_t x = 0;
    for (; x + BLOCK <= n; x += BLOCK) weigh(out + x, in + x, n, BLOCK, weight, count);
    weigh(out + x, in + x, n, n - x, weight, count);
}

static void squeeze_rows(struct image *out, const struct image *in, const struct axis *a) {
    int64_t n = in->width * 3;
    for (int64_t i = 0; i < a->out; i++)
        squeeze_row(out->rgb + i * n, in->rgb + a->first[i] * n, n, a->weight + i * a->most, a->count[i]);
}

static struct image picture(int64_t width, int64_t height) {
    return (struct image){width, height, mem_alloc((size_t)(width * height * 3))};
}

/* Pillow steps along an axis by adding, and the sum's rounding is part of the result. */
static int64_t *nearest_table(int64_t in, int64_t out) {
    int64_t *at = mem_alloc((size_t)out * sizeof *at);
    double step = (double)in / (double)out, x = step * 0.5;
    for (int64_t i = 0; i < out; i++, x += step) at[i] = x < (double)in ? (int64_t)x : in - 1;
    return at;
}

static void resize_nearest(struct image *out, const struct image *in, int64_t width, int64_t height) {
    int64_t *across = nearest_table(in->width, width), *down = nearest_table(in->height, height);
    *out = picture(width, height);
    for (int64_t y = 0; y < out->height; y++) {
        const uint8_t *from = in->rgb + down[y] * in->width * 3;
        uint8_t *to = out->rgb + y * out->width * 3;
        for (int64_t x = 0; x < out->width; x++) memcpy(to + 3 * x, from + 3 * across[x], 3);
    }
    free(across);
    free(down);
}

/* Which pass goes first shows in the bits, since the first one rounds. Pillow 13 shrinks rows first where that leaves
 * the other pass clearly less to do; its earlier releases never did. */
static bool rows_go_first(const struct image *in, int64_t width, int64_t height) {
    return height < in->height && in->height - height > 2 * (in->width - width);
}

static void resize_columns(struct image *out, const struct image *in, int64_t width, enum resample filter) {
    struct axis a = axis_new(in->width, width, filter_of(filter));
    *out = picture(width, in->height);
    squeeze_columns(out, in, &a);
    axis_free(&a);
}

static void resize_rows(struct image *out, const struct image *in, int64_t height, enum resample filter) {
    struct axis a = axis_new(in->height, height, filter_of(filter));
    *out = picture(in->width, height);
    squeeze_rows(out, in, &a);
    axis_free(&a);
}

void image_resize(struct image *out, const struct image *in, int64_t width, int64_t height, enum resample filter) {
    struct image between;
    if (width == in->width && height == in->height) {
        image_crop(out, in, 0, 0, width, height);
    } else if (filter == RESAMPLE_NEAREST) {
        resize_nearest(out, in, width, height);
    } else if (height == in->height) {
        resize_columns(out, in, width, filter);
    } else if (width == in->width) {
        resize_rows(out, in, height, filter);
    } else if (rows_go_first(in, width, height)) {
        resize_rows(&between, in, height, filter);
        resize_columns(out, &between, width, filter);
        image_free(&between);
    } else {
        resize_columns(&between, in, width, filter);
        resize_rows(out, &between, height, filter);
        image_free(&between);
    }
}

#include "quant/ggml.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

enum { SMALL = 32, LARGE = 256, SUBS = LARGE / SMALL, SCALE_BYTES = 12 };

/* Sizes of all types, by their numbers in files; the gaps are types that were given up. */
static const struct layout {
    uint32_t type;
    const char *name;
    int64_t block;
    size_t bytes;
} layouts[] = {
    {GGML_F32, "f32", 1, 4},
    {GGML_F16, "f16", 1, 2},
    {GGML_Q4_0, "q4_0", SMALL, 18},
    {3, "q4_1", 32, 20},
    {6, "q5_0", 32, 22},
    {7, "q5_1", 32, 24},
    {GGML_Q8_0, "q8_0", SMALL, 34},
    {9, "q8_1", 32, 36},
    {10, "q2_k", 256, 84},
    {11, "q3_k", 256, 110},
    {GGML_Q4_K, "q4_k", LARGE, 144},
    {13, "q5_k", 256, 176},
    {14, "q6_k", 256, 210},
    {15, "q8_k", 256, 292},
    {16, "iq2_xxs", 256, 66},
    {17, "iq2_xs", 256, 74},
    {18, "iq3_xxs", 256, 98},
    {19, "iq1_s", 256, 50},
    {20, "iq4_nl", 32, 18},
    {21, "iq3_s", 256, 110},
    {22, "iq2_s", 256, 82},
    {23, "iq4_xs", 256, 136},
    {24, "i8", 1, 1},
    {25, "i16", 1, 2},
    {26, "i32", 1, 4},
    {27, "i64", 1, 8},
    {28, "f64", 1, 8},
    {29, "iq1_m", 256, 56},
    {GGML_BF16, "bf16", 1, 2},
    {34, "tq1_0", 256, 54},
    {35, "tq2_0", 256, 66},
    {39, "mxfp4", 32, 17},
    {40, "nvfp4", 64, 36},
    {41, "q1_0", 128, 18},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static const struct layout *layout_of(uint32_t type) {
    for (int i = 0; i < LAYOUTS; i++)
        if (layouts[i].type == type) return &layouts[i];
    return NULL;
}

const char *ggml_name(uint32_t type) {
    const struct layout *l = layout_of(type);
    return l ? l->name : NULL;
}

int64_t ggml_block(uint32_t type) {
    const struct layout *l = layout_of(type);
    return l ? l->block : 0;
}

size_t ggml_block_bytes(uint32_t type) {
    const struct layout *l = layout_of(type);
    return l ? l->bytes : 0;
}

bool ggml_is_computed(uint32_t type) {
    return type == GGML_F32 || type == GGML_F16 || type == GGML_BF16 || type == GGML_Q4_0 || type == GGML_Q8_0 ||
           type == GGML_Q4_K;
}

bool ggml_find(enum ggml_type *type, const char *name) {
    for (int i = 0; i < LAYOUTS; i++) {
        if (strcmp(layouts[i].name, name) != 0 || !ggml_is_computed(layouts[i].type)) continue;
        *type = (enum ggml_type)layouts[i].type;
        return true;
    }
    return false;
}

/* --- two bytes at any address ------------------------------------------------------------------------------------ */

static void put_f16(uint8_t *to, float x) {
    f16 h = f16_of_float(x);
    memcpy(to, &h, sizeof h);
}

static float get_f16(const uint8_t *from) {
    f16 h;
    memcpy(&h, from, sizeof h);
    return f16_to_float(h);
}

/* --- 32 numbers with one scale ----------------------------------------------------------------------------------- */

/* The largest magnitude, by bits, whose order is that of the numbers: a compiler turns this into vectors. */
static float largest_of(const float *x) {
    int32_t most = 0;
    for (int i = 0; i < SMALL; i++) {
        int32_t size = (int32_t)(bits_of_float(x[i]) & 0x7FFFFFFFu);
        most = size > most ? size : most;
    }
    return float_of_bits((uint32_t)most);
}

/* roundf, a half away from zero, of a number that an int holds. */
static int round_away(float x) {
    int whole = (int)x;
    float rest = x - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

static void quantize_q8_0(uint8_t *to, const float *x) {
    const float d = largest_of(x) / 127, inverse = d != 0 ? 1 / d : 0;
    put_f16(to, d);
    for (int i = 0; i < SMALL; i++) to[2 + i] = (uint8_t)(int8_t)round_away(x[i] * inverse);
}

static void dequantize_q8_0(float *x, const uint8_t *from) {
    const float d = get_f16(from);
    for (int i = 0; i < SMALL; i++) x[i] = d * (int8_t)from[2 + i];
}

static uint8_t code_q4_0(float scaled) {
    int q = (int)(scaled + 8.5f);
    return (uint8_t)(q > 15 ? 15 : q);
}

static void quantize_q4_0(uint8_t *to, const float *x) {
    float largest = 0;
    for (int i = 0; i < SMALL; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    const float d = largest / -8, inverse = d != 0 ? 1 / d : 0;
    put_f16(to, d);
    for (int i = 0; i < SMALL / 2; i++)
        to[2 + i] = (uint8_t)(code_q4_0(x[i] * inverse) | code_q4_0(x[i + SMALL / 2] * inverse) << 4);
}

static void dequantize_q4_0(float *x, const uint8_t *from) {
    const float d = get_f16(from);
    for (int i = 0; i < SMALL / 2; i++) {
        x[i] = d * (float)((from[2 + i] & 15) - 8);
        x[i + SMALL / 2] = d * (float)((from[2 + i] >> 4) - 8);
    }
}

/* --- Q4_K -------------------------------------------------------------------------------------------------------- */

/* To the nearest whole number, a tie to the even one: adding 1.5 * 2^23 leaves no room for a fraction. */
static int nearest(float x) { return (int)(bits_of_float(x + 12582912.0f) & 0x7FFFFF) - 0x400000; }

static int clamp15(int q) { return q < 0 ? 0 : q > 15 ? 15 : q; }

/* 32 numbers as s q + low, q from 0 to 15, low at most 0. */
struct line {
    float s, low;
};

/* Sums over the 32 numbers, each with its weight. */
struct fit {
    const float *x, *w; // (32)
    float total, sum;   // of w, of w x
};

static float misfit(const struct fit *f, const uint8_t *q, struct line l) {
    float error = 0;
    for (int i = 0; i < SMALL; i++) {
        float d = l.s * q[i] + l.low - f->x[i];
        error += f->w[i] * (d * d);
    }
    return error;
}

/* The codes for a step of 1 / inverse, and the line through them by least squares. False: the codes are all equal. */
static bool refit(const struct fit *f, float inverse, float low, uint8_t *q, struct line *l) {
    float sq = 0, sqq = 0, sxq = 0;
    for (int i = 0; i < SMALL; i++) {
        int k = clamp15(nearest(inverse * (f->x[i] - low)));
        float w = f->w[i], kf = (float)k, wk = w * kf;
        q[i] = (uint8_t)k;
        sq += wk, sqq += wk * kf, sxq += wk * f->x[i];
    }
    const float D = f->total * sqq - sq * sq;
    if (!(D > 0)) return false;
    l->s = (f->total * sxq - f->sum * sq) / D;
    l->low = (sqq * f->sum - sq * sxq) / D;
    if (l->low > 0) l->low = 0, l->s = sxq / sqq;
    return true;
}

/* The best of a plain division of the range and 21 trials around it, and its codes (32). */
static struct line best_line(const float *x, uint8_t *codes) {
    enum { TRIALS = 21 };
    float w[SMALL], square = 0, low = x[0], high = x[0];
    uint8_t q[SMALL];
    for (int i = 0; i < SMALL; i++) square += x[i] * x[i];
    const float size = sqrtf(square / SMALL);
    for (int i = 0; i < SMALL; i++) w[i] = size + fabsf(x[i]);
    struct fit f = {.x = x, .w = w, .total = w[0], .sum = w[0] * x[0]};
    for (int i = 1; i < SMALL; i++) {
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        f.total += w[i], f.sum += w[i] * x[i];
    }
    if (low > 0) low = 0;
    memset(codes, 0, SMALL);
    if (high == low) return (struct line){0, low};
    const float range = high - low, inverse = 15 / range;
    struct line best = {1 / inverse, low}, trial;
    for (int i = 0; i < SMALL; i++) codes[i] = (uint8_t)clamp15(nearest(inverse * (x[i] - low)));
    float least = misfit(&f, codes, best);
    for (int k = 0; k < TRIALS; k++) {
        /* Each trial starts from the best low so far, as the reference does. */
        if (!refit(&f, (0.1f * (float)k + -1.0f + 15) / (high - best.low), best.low, q, &trial)) continue;
        float error = misfit(&f, q, trial);
        if (!(error < least)) continue;
        least = error, best = trial;
        memcpy(codes, q, SMALL);
    }
    return best;
}

/* The j-th pair of 6-bit numbers of 8: four bits of the later ones lie in bytes 8 to 11, their top bits above the
 * earlier ones. */
static void pack_pair(uint8_t *to, int j, int s, int m) {
    if (j < 4) {
        to[j] = (uint8_t)s, to[j + 4] = (uint8_t)m;
        return;
    }
    to[j + 4] = (uint8_t)((s & 15) | (m & 15) << 4);
    to[j - 4] = (uint8_t)(to[j - 4] | s >> 4 << 6);
    to[j] = (uint8_t)(to[j] | m >> 4 << 6);
}

static void unpack_pair(const uint8_t *from, int j, int *s, int *m) {
    if (j < 4)
        *s = from[j] & 63, *m = from[j + 4] & 63;
    else
        *s = (from[j + 4] & 15) | from[j - 4] >> 6 << 4, *m = from[j + 4] >> 4 | from[j] >> 6 << 4;
}

static int code63(float x) {
    int q = nearest(x) & 255;
    return q > 63 ? 63 : q;
}

static void quantize_q4_k(uint8_t *to, const float *x) {
    struct line lines[SUBS];
    float most_s = 0, most_m = 0;
    uint8_t *pairs = to + 4, *codes = pairs + SCALE_BYTES, q[LARGE] = {0};
    for (int j = 0; j < SUBS; j++) {
        lines[j] = best_line(x + j * SMALL, q + j * SMALL);
        most_s = lines[j].s > most_s ? lines[j].s : most_s;
        most_m = -lines[j].low > most_m ? -lines[j].low : most_m;
    }
    const float to_s = most_s > 0 ? 63 / most_s : 0, to_m = most_m > 0 ? 63 / most_m : 0;
    memset(pairs, 0, SCALE_BYTES);
    for (int j = 0; j < SUBS; j++) pack_pair(pairs, j, code63(to_s * lines[j].s), code63(to_m * -lines[j].low));
    put_f16(to, most_s / 63), put_f16(to + 2, most_m / 63);
    for (int j = 0; j < SUBS; j++) {
        int s, m;
        unpack_pair(pairs, j, &s, &m);
        const float step = get_f16(to) * (float)s, low = get_f16(to + 2) * (float)m;
        /* A step that f16 does not hold leaves the codes as they are. */
        for (int i = j * SMALL; step != 0 && i < (j + 1) * SMALL; i++)
            q[i] = (uint8_t)clamp15(nearest((x[i] + low) / step));
    }
    for (int j = 0; j < LARGE; j += 2 * SMALL)
        for (int i = 0; i < SMALL; i++) *codes++ = (uint8_t)(q[j + i] | q[j + SMALL + i] << 4);
}

static void dequantize_q4_k(float *x, const uint8_t *from) {
    const float d = get_f16(from), dmin = get_f16(from + 2);
    const uint8_t *pairs = from + 4, *codes = pairs + SCALE_BYTES;
    for (int j = 0; j < SUBS; j++) {
        int s, m;
        unpack_pair(pairs, j, &s, &m);
        const float step = d * (float)s, low = dmin * (float)m;
        for (int i = 0; i < SMALL; i++) {
            int byte = codes[j / 2 * SMALL + i];
            x[j * SMALL + i] = step * (float)(j % 2 ? byte >> 4 : byte & 15) - low;
        }
    }
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

void ggml_quantize(enum ggml_type type, void *to, const float *x, int64_t n) {
    const int64_t block = ggml_block(type);
    const size_t bytes = ggml_block_bytes(type);
    uint8_t *out = to;
    if (type == GGML_F32) memcpy(out, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; type == GGML_F16 && i < n; i++) put_f16(out + 2 * i, x[i]);
    for (int64_t i = 0; type == GGML_BF16 && i < n; i++) {
        bf16 h = bf16_of_float(x[i]);
        memcpy(out + 2 * i, &h, sizeof h);
    }
    for (int64_t i = 0; block > 1 && i < n; i += block, out += bytes) {
        if (type == GGML_Q8_0)
            quantize_q8_0(out, x + i);
        else if (type == GGML_Q4_0)
            quantize_q4_0(out, x + i);
        else
            quantize_q4_k(out, x + i);
    }
}

void ggml_dequantize(enum ggml_type type, float *x, const void *from, int64_t n) {
    const int64_t block = ggml_block(type);
    const size_t bytes = ggml_block_bytes(type);
    const uint8_t *in = from;
    if (type == GGML_F32) memcpy(x, in, (size_t)n * sizeof *x);
    for (int64_t i = 0; type == GGML_F16 && i < n; i++) x[i] = get_f16(in + 2 * i);
    for (int64_t i = 0; type == GGML_BF16 && i < n; i++) {
        bf16 h;
        memcpy(&h, in + 2 * i, sizeof h);
        x[i] = bf16_to_float(h);
    }
    for (int64_t i = 0; block > 1 && i < n; i += block, in += bytes) {
        if (type == GGML_Q8_0)
            dequantize_q8_0(x + i, in);
        else if (type == GGML_Q4_0)
            dequantize_q4_0(x + i, in);
        else
            dequantize_q4_k(x + i, in);
    }
}

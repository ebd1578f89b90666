#include "examples/clips/faults.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"

static unsigned char clamp(double v) { return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : lround(v)); }

/* One axis of a Gaussian of the given width; step: bytes from one pixel of the line to the next. */
static void blur_line(unsigned char *line, int step, double sigma) {
    double kernel[2 * SIDE + 1], from[SIDE], sum = 0;
    int reach = (int)ceil(3 * sigma);
    for (int k = -reach; k <= reach; k++) sum += kernel[k + reach] = exp(-k * k / (2 * sigma * sigma));
    for (int i = 0; i < SIDE; i++) from[i] = line[i * step];
    for (int i = 0; i < SIDE; i++) {
        double v = 0;
        for (int k = -reach; k <= reach; k++) {
            int at = i + k < 0 ? 0 : i + k >= SIDE ? SIDE - 1 : i + k;
            v += kernel[k + reach] * from[at];
        }
        line[i * step] = clamp(v / sum);
    }
}

void fault_blur(struct clip *c, double strength) {
    double sigma = 3 * strength;
    if (sigma < 0.05) return;
    for (int f = 0; f < FRAMES; f++)
        for (int i = 0; i < 3 * SIDE; i++) {
            blur_line(c->rgb[f] + i / 3 * SIDE * 3 + i % 3, 3, sigma);
            blur_line(c->rgb[f] + i, SIDE * 3, sigma);
        }
}

void fault_noise(struct clip *c, double strength, struct dice *d) {
    for (int f = 0; f < FRAMES; f++)
        for (int i = 0; i < FRAME_BYTES; i++) {
            double bell = throw_between(d, -1, 1) + throw_between(d, -1, 1) + throw_between(d, -1, 1);
            c->rgb[f][i] = clamp(c->rgb[f][i] + 60 * strength * bell);
        }
}

/* A square of one frame moves towards its mean colour. */
static void flatten(unsigned char *rgb, int left, int top, int side, double part) {
    for (int channel = 0; channel < 3; channel++) {
        double mean = 0;
        for (int i = 0; i < side * side; i++)
            mean += rgb[((top + i / side) * SIDE + left + i % side) * 3 + channel] / (double)(side * side);
        for (int i = 0; i < side * side; i++) {
            unsigned char *p = &rgb[((top + i / side) * SIDE + left + i % side) * 3 + channel];
            *p = clamp(*p + part * (mean - *p));
        }
    }
}

void fault_blocks(struct clip *c, double strength) {
    enum { BLOCK = 6 };
    for (int f = 0; f < FRAMES; f++)
        for (int top = 0; top < SIDE; top += BLOCK)
            for (int left = 0; left < SIDE; left += BLOCK) flatten(c->rgb[f], left, top, BLOCK, strength);
}

void fault_flicker(struct clip *c, double strength, struct dice *d) {
    for (int f = 0; f < FRAMES; f++) {
        double shift = 70 * strength * throw_between(d, 0.5, 1) * (f % 2 ? 1 : -1);
        for (int i = 0; i < FRAME_BYTES; i++) c->rgb[f][i] = clamp(c->rgb[f][i] + shift);
    }
}

void fault_drop(struct clip *c, int count, struct dice *d) {
    int64_t order[FRAMES - 1];
    bool lost[FRAMES] = {false};
    rng_shuffle(d->seed, d->stream + 1 + d->thrown++, order, FRAMES - 1);
    for (int i = 0; i < count; i++) lost[1 + order[i]] = true;
    for (int f = 1; f < FRAMES; f++)
        if (lost[f]) memcpy(c->rgb[f], c->rgb[f - 1], FRAME_BYTES);
}

void fault_shuffle(struct clip *c, int swaps, int order[FRAMES], struct dice *d) {
    struct clip shuffled;
    for (int f = 0; f < FRAMES; f++) order[f] = f;
    for (int i = 0; i < swaps; i++) {
        int a = throw_int(d, FRAMES), b = (a + 2 + throw_int(d, FRAMES - 3)) % FRAMES, kept = order[a];
        order[a] = order[b];
        order[b] = kept;
    }
    for (int f = 0; f < FRAMES; f++) memcpy(shuffled.rgb[f], c->rgb[order[f]], FRAME_BYTES);
    *c = shuffled;
}

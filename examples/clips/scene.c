#include "examples/clips/scene.h"

#include <math.h>

#include "base/rng.h"

enum { FINE = 3, MARGIN = 2 }; // samples of a pixel each way; pixels between the shape and the edge

enum shape { CIRCLE, SQUARE, TRIANGLE, CROSS };
const char *const shape_names[SHAPES] = {"circle", "square", "triangle", "cross"};

const char *const colour_names[COLOURS] = {"red", "green", "blue", "yellow", "white", "black"};
static const double inks[COLOURS][3] = {{210, 35, 40},  {30, 160, 60},   {40, 70, 215},
                                        {240, 210, 30}, {245, 245, 245}, {15, 15, 20}};

enum direction { LEFT, RIGHT, UP, DOWN };
const char *const direction_names[DIRECTIONS] = {"left", "right", "up", "down"};

int throw_int(struct dice *d, int below) { return (int)(rng_uniform(d->seed, d->stream, d->thrown++) * below); }

double throw_between(struct dice *d, double low, double high) {
    return low + (high - low) * rng_uniform(d->seed, d->stream, d->thrown++);
}

bool throw_chance(struct dice *d, double p) { return throw_between(d, 0, 1) < p; }

/* Where a path of the given length can begin; towards: it grows along the axis. */
static double throw_start(struct dice *d, double radius, double length, bool towards) {
    double low = radius + MARGIN, high = SIDE - radius - MARGIN - length;
    double start = throw_between(d, low, high > low ? high : low);
    return towards ? start : SIDE - start;
}

static int throw_other(struct dice *d, int count, int not_this) {
    return (not_this + 1 + throw_int(d, count - 1)) % count;
}

void scene_new(struct scene *s, struct dice *d, bool still) {
    *s = (struct scene){.shape = throw_int(d, SHAPES), .colour = throw_int(d, COLOURS), .changed_from = FRAMES};
    s->direction = throw_int(d, DIRECTIONS);
    s->speed = still ? 0 : throw_between(d, 1, MOST_SPEED);
    s->radius = throw_between(d, 6, 8.5);
    double length = s->speed * (FRAMES - 1);
    bool across = s->direction == LEFT || s->direction == RIGHT;
    s->x = throw_start(d, s->radius, across ? length : 0, s->direction != LEFT);
    s->y = throw_start(d, s->radius, across ? 0 : length, s->direction != UP);
    for (int c = 0; c < 3; c++) {
        s->ground[c] = throw_between(d, 105, 165);
        s->wave[c] = throw_between(d, 10, 25);
    }
    s->wave_x = throw_between(d, 0.6, 1.4);
    s->wave_y = throw_between(d, 0.6, 1.4);
    s->other_shape = throw_other(d, SHAPES, s->shape);
    s->other_colour = throw_other(d, COLOURS, s->colour);
}

void scene_place(const struct scene *s, int frame, double *x, double *y) {
    static const double dx[DIRECTIONS] = {-1, 1, 0, 0}, dy[DIRECTIONS] = {0, 0, -1, 1};
    *x = s->x + dx[s->direction] * s->speed * frame;
    *y = s->y + dy[s->direction] * s->speed * frame;
}

/* Whether the point (x, y), seen from the middle in radii, lies on the shape. */
static bool is_inside(int shape, double x, double y) {
    switch (shape) {
    case CIRCLE:
        return x * x + y * y < 1;
    case SQUARE:
        return fabs(x) < 0.85 && fabs(y) < 0.85;
    case TRIANGLE:
        return y < 0.8 && y > 2 * fabs(x) - 1;
    default:
        return (fabs(x) < 0.3 && fabs(y) < 1) || (fabs(y) < 0.3 && fabs(x) < 1);
    }
}

/* Part of the pixel that a shape around (x, y) covers. */
static double coverage(int shape, double x, double y, double radius, int column, int line) {
    int hits = 0;
    if (fabs(column + 0.5 - x) > radius + 1 || fabs(line + 0.5 - y) > radius + 1) return 0;
    for (int i = 0; i < FINE * FINE; i++)
        hits += is_inside(shape, (column + (i % FINE + 0.5) / FINE - x) / radius,
                          (line + (i / FINE + 0.5) / FINE - y) / radius);
    return (double)hits / (FINE * FINE);
}

void scene_draw_frame(const struct scene *s, int frame, unsigned char rgb[FRAME_BYTES]) {
    bool other = frame >= s->changed_from;
    const double *ink = inks[other ? s->other_colour : s->colour];
    double x, y;
    scene_place(s, frame, &x, &y);
    for (int i = 0; i < SIDE * SIDE; i++) {
        int column = i % SIDE, line = i / SIDE;
        double part = coverage(other ? s->other_shape : s->shape, x, y, s->radius, column, line);
        double texture = sin(s->wave_x * column) * sin(s->wave_y * line);
        for (int c = 0; c < 3; c++)
            *rgb++ = (unsigned char)lround(part * ink[c] + (1 - part) * (s->ground[c] + s->wave[c] * texture));
    }
}

void scene_draw(const struct scene *s, struct clip *c) {
    for (int f = 0; f < FRAMES; f++) scene_draw_frame(s, f, c->rgb[f]);
}

void scene_caption(const struct scene *s, struct text *out) {
    text_addf(out, "a %s %s ", colour_names[s->colour], shape_names[s->shape]);
    if (s->speed > 0)
        text_addf(out, "moves %s", direction_names[s->direction]);
    else
        text_add(out, "stands still");
}

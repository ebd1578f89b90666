/* A small moving scene: one coloured shape on a textured ground, for a few frames. What it shows is known, so captions,
 * questions and scores follow from it. */
#ifndef EXAMPLES_CLIPS_SCENE_H
#define EXAMPLES_CLIPS_SCENE_H

#include <stdint.h>

#include "base/text.h"

enum { FRAMES = 8, SIDE = 48, FRAME_BYTES = SIDE * SIDE * 3 };

struct clip {
    unsigned char rgb[FRAMES][FRAME_BYTES]; // (SIDE,SIDE,3) each
};

/* Random numbers in the order in which they are asked for. */
struct dice {
    uint64_t seed, stream, thrown;
};

int throw_int(struct dice *d, int below);                      // 0 .. below - 1
double throw_between(struct dice *d, double low, double high); // evenly
bool throw_chance(struct dice *d, double p);

enum { SHAPES = 4, COLOURS = 6, DIRECTIONS = 4 };
extern const char *const shape_names[SHAPES], *const colour_names[COLOURS], *const direction_names[DIRECTIONS];

struct scene {
    int shape, colour, direction;
    double speed;              // pixels a frame; 0: it stands still
    double x, y, radius;       // at the first frame, in pixels
    double ground[3], wave[3]; // colour of the ground, and how much its texture moves it
    double wave_x, wave_y;     // of the texture, in radians a pixel
    int changed_from;          // from this frame on it has the other shape and colour; FRAMES: it never changes
    int other_shape, other_colour;
};

enum { MOST_SPEED = 4 };

/* A scene that keeps its shape within the picture in every frame. still: without motion. */
void scene_new(struct scene *s, struct dice *d, bool still);

void scene_draw(const struct scene *s, struct clip *c);
void scene_draw_frame(const struct scene *s, int frame, unsigned char rgb[FRAME_BYTES]);

/* "a red circle moves left", "a red circle stands still". */
void scene_caption(const struct scene *s, struct text *out);

/* The middle of the shape in a frame. */
void scene_place(const struct scene *s, int frame, double *x, double *y);

#endif

/* Small clips of known pixels, written by FFmpeg's encoders. */
#ifndef TESTS_CLIP_H
#define TESTS_CLIP_H

#include <stdint.h>

struct clip_options {
    const char *codec, *format; // names of the encoder and of its pixel format
    int width, height, frames, rate;
    const char *option, *value; // of the encoder, or NULL
};

/* Writes path, whose suffix says the container. Returns 0 when FFmpeg here lacks the encoder; else fails the test. */
int clip_make(const char *path, const struct clip_options *o);
/* A container with a second of silence and no picture. */
void clip_make_sound(const char *path);

uint8_t clip_pixel(int frame, int x, int y, int channel); // frames differ from each other everywhere

#endif

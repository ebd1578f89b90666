/* A clip as a video file. */
#ifndef EXAMPLES_CLIPS_FILM_H
#define EXAMPLES_CLIPS_FILM_H

#include "base/status.h"
#include "examples/clips/scene.h"

/* Writes a Matroska file of FFV1, which keeps every pixel, at 8 frames a second. */
enum status film_write(const char *path, const struct clip *c, struct err *e);

#endif

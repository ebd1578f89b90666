/* A picture as a PNG file. */
#ifndef EXAMPLES_CLIPS_PICTURE_H
#define EXAMPLES_CLIPS_PICTURE_H

#include "base/status.h"

enum status picture_write(const char *path, const unsigned char *rgb, int width, int height, struct err *e);

#endif

/* A decoded frame as RGB, as close to PyAV's frame.to_image() as another version of FFmpeg comes; private to
 * data/video.c. */
#ifndef DATA_VIDEO_RGB_H
#define DATA_VIDEO_RGB_H

#include "base/status.h"
#include "data/ffmpeg.h"
#include "data/image.h"

/* Starts as zeros but for av. What was made for one kind of frame is kept for the next of its kind. */
struct video_rgb {
    const struct ffmpeg *av;
    struct SwsContext *chroma[2], *colour[2]; // of a frame, or of its two fields
    AVFrame *between, *rgb;
    int width, height, format, interlaced, location, matrix, range; // of the last frame
};

/* `where` names the video in an error. */
enum status video_rgb_convert(struct video_rgb *r, struct image *out, const AVFrame *frame, const char *where,
                              struct err *e);
void video_rgb_free(struct video_rgb *r);

#endif

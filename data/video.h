/* Frames of a video file as PyAV gives them: decoded by FFmpeg one after the other, converted to RGB with the matrix
 * and range that the stream names. A display rotation is left alone, as frame.to_image() does; alpha is dropped.
 *
 * mp4, mov, avi, webm, mkv, gif and what else FFmpeg's container formats hold. The file is read from memory: nothing
 * that it names (playlists, references to other files, addresses) is opened. The first video stream counts.
 *
 * A struct video is for one thread; several of them may work at once. */
#ifndef DATA_VIDEO_H
#define DATA_VIDEO_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/image.h"

struct video;

/* Fails when there is no video stream, or it holds no frame. */
struct video *video_open(const char *path, struct err *e);
/* The bytes stay the caller's and must outlive the video; `where` names them, and its suffix helps to tell the format.
 */
struct video *video_open_bytes(const void *data, size_t n, const char *where, struct err *e);
void video_free(struct video *v);

struct video_info {
    int64_t frames; // as the container says, which is what PyAV calls stream.frames; where it does not say: counted
    int64_t rate_num, rate_den;
    int64_t width, height;
};
/* counted: what an earlier call said of the same file, or 0; it saves counting, which decodes the whole file. */
enum status video_info(struct video *v, int64_t counted, struct video_info *out, struct err *e);

/* Frame number `index` from 0. Decodes from where the last call stopped, so indices have to grow; nothing behind the
 * frame is decoded. Fails when the file ends before it, or is damaged up to it. */
enum status video_frame(struct video *v, int64_t index, struct image *out, struct err *e);

#endif

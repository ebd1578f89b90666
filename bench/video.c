/* Clips a second on one thread: 16 frames spread evenly over each clip, decoded from its start to the last of them,
 * resized to 384 x 384 (bicubic). bench/video_peer.py runs it in turns with PyAV and Pillow:
 *     build/release/bench/video CLIP.mp4 ... */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "data/frames.h"
#include "data/image.h"
#include "data/video.h"

enum { SIDE = 384, FRAMES = 16 };

struct parts {
    double decode, resize;
    int64_t decoded; // frames, also those between
};

static enum status run_once(const char *path, struct parts *t, struct err *e) {
    const struct frame_rule rule = {.most = FRAMES};
    struct video_info info;
    struct frame_choice choice = {0};
    double start = clock_now();
    struct video *v = video_open(path, e);
    if (v && video_info(v, 0, &info, e) == ST_OK) {
        const struct frame_source s = {path, info.frames, info.rate_num, info.rate_den, true};
        frames_choose(&choice, &rule, &s, e);
    }
    for (int64_t k = 0; k < choice.count && e->code == ST_OK; k++) {
        struct image im, small;
        if (video_frame(v, frames_index(&choice, k), &im, e) != ST_OK) break;
        double decoded = clock_now();
        image_resize(&small, &im, SIDE, SIDE, RESAMPLE_BICUBIC);
        t->decode += decoded - start;
        start = clock_now();
        t->resize += start - decoded;
        image_free(&im), image_free(&small);
    }
    if (choice.count) t->decoded += frames_index(&choice, choice.count - 1) + 1;
    video_free(v);
    return e->code;
}

static int bench(const char *path) {
    struct parts t = {0};
    struct err e = {0};
    int n = 0;
    if (run_once(path, &t, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    t = (struct parts){0};
    for (double start = clock_now(); clock_now() - start < 2.0; n++) run_once(path, &t, &e);
    double ms = 1e3 / n, all = t.decode + t.resize;
    printf("video %8.2f clips/s   %8.1f decoded frames/s   decode %8.2f ms   resize %7.2f ms   %s\n", n / all,
           (double)t.decoded / t.decode, t.decode * ms, t.resize * ms, path);
    return 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) failed |= bench(argv[i]);
    if (argc < 2) printf("skip: name clips, or run bench/video_peer.py\n");
    return failed;
}

/* Any bytes as a video. For libFuzzer; the seeds are tests/golden/video. */
#include "data/video.h"
#include "tests/fuzz.h"

enum { MOST_FRAMES = 20, MOST_PIXELS = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    struct video_info info;
    struct video *v = video_open_bytes(data, size, "input", &e);
    if (v && video_info(v, MOST_FRAMES, &info, &e) == ST_OK && info.width * info.height <= MOST_PIXELS)
        for (int64_t k = 0; k < MOST_FRAMES && k < info.frames; k += 1 + k % 3) {
            struct image im;
            if (video_frame(v, k, &im, &e) != ST_OK) break;
            image_free(&im);
        }
    video_free(v);
    return 0;
}

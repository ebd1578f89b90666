/* Any bytes as a picture, then through every resize. For libFuzzer; the seeds are tests/golden/image. */
#include "data/image.h"
#include "tests/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct image im, out;
    struct err e = {0};
    if (image_decode(&im, data, size, "input", &e) != ST_OK) return 0;
    if (im.width <= 1000 && im.height <= 1000)
        for (int filter = RESAMPLE_NEAREST; filter <= RESAMPLE_HAMMING; filter++) {
            image_resize(&out, &im, 1 + im.height % 50, 1 + im.width % 50, (enum resample)filter);
            image_free(&out);
        }
    image_free(&im);
    return 0;
}

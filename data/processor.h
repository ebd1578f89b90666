/* From a picture to the numbers that a vision tower takes, as the "slow" image processors of transformers compute them
 * from preprocessor_config.json: uint8 resize as Pillow, then float32 (x * rescale_factor - mean) / std, channels first. */
#ifndef DATA_PROCESSOR_H
#define DATA_PROCESSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/image.h"

enum processor_kind { PROCESSOR_SIGLIP, PROCESSOR_CLIP };

struct processor {
    enum processor_kind kind;
    bool do_resize, do_rescale, do_normalize, do_center_crop;
    int64_t height, width; // of the result; CLIP: of the crop
    int64_t shortest_edge; // CLIP: of the resize
    enum resample resample;
    double rescale_factor;
    float mean[3], std[3];
};

/* Reads DIR/preprocessor_config.json; another image_processor_type, or a key that would change the pixels and is not
 * honoured, is refused by name. */
enum status processor_load(struct processor *p, const char *dir, struct err *e);

/* pixels (3, p->height, p->width) are the caller's. */
void processor_run(const struct processor *p, const struct image *im, float *pixels);

#endif

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

/* What every Mantis data set does to a picture before the processor: when max_size > 0 and the longest side is longer, shrink it
 * to max_size (bicubic, sides truncated); when a side is under 16 pixels, enlarge by max(16/w, 16/h), truncated. */
void image_mantis_size(struct image *im, int64_t max_size);

#endif

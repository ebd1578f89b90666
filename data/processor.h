/* From a picture to the numbers that a vision tower takes, as the "slow" image processors of transformers compute them
 * from preprocessor_config.json: uint8 resize as Pillow, then float32 (x * rescale_factor - mean) / std, channels
 * first. The "Fast" processors (of torchvision) differ from them by rounding; their names are taken to mean the slow
 * ones. */
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
    int64_t height, width;               // of the result
    int64_t resize_height, resize_width; // of the resize, 0 when it goes by shortest_edge
    int64_t shortest_edge;               // of the resize (CLIP only), 0 when it does not
    enum resample resample;
    double rescale_factor;
    float mean[3], std[3];
};

/* Reads DIR/preprocessor_config.json. Refused by name: another image_processor_type, a key that is not known to leave
 * the pixels alone, settings that would give pictures of different sizes. */
enum status processor_load(struct processor *p, const char *dir, struct err *e);

/* pixels (3, p->height, p->width) are the caller's. Fails when the picture is so thin that its resize would be larger
 * than a picture may be; `where` names it then. */
enum status processor_run(const struct processor *p, const struct image *im, const char *where, float *pixels,
                          struct err *e);

#endif

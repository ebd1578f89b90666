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

enum processor_kind { PROCESSOR_SIGLIP, PROCESSOR_CLIP, PROCESSOR_IDEFICS2, PROCESSOR_FUYU };

struct processor {
    enum processor_kind kind;
    bool do_resize, do_rescale, do_normalize, do_center_crop;
    bool do_image_splitting;             // Idefics2
    bool do_pad;                         // Idefics2, Fuyu
    int64_t height, width;               // of the result; 0: they depend on the picture (Idefics2, Fuyu)
    int64_t resize_height, resize_width; // of the resize, 0 when it goes by edges; Fuyu: what pictures must fit into
    int64_t shortest_edge;               // of the resize (CLIP, Idefics2), 0 when it does not
    int64_t longest_edge;                // of the resize (Idefics2), 0 when it does not
    enum resample resample;
    double rescale_factor;
    float mean[3], std[3];
    int64_t image_seq_len; // of processor_config.json; 0: not said
    int64_t patch;         // Fuyu: both sides of the result are multiples of it
    uint8_t padding;       // Fuyu: the byte beyond the picture
};

/* Reads DIR/preprocessor_config.json, or what processor_config.json holds of it. Refused by name: another
 * image_processor_type, a key that is not known to leave the pixels alone, settings that would give pictures of
 * different sizes (but for Idefics2 and Fuyu). */
enum status processor_load(struct processor *p, const char *dir, struct err *e);

/* How many pictures a vision tower sees of one: with do_image_splitting its four quarters and then the whole. */
int64_t processor_pieces(const struct processor *p);
struct rect {
    int64_t left, top, width, height;
};
struct rect processor_piece(const struct processor *p, int64_t width, int64_t height, int64_t piece);

/* From the sides of a piece to those of its result. */
enum status processor_size(const struct processor *p, int64_t *width, int64_t *height, const char *where,
                           struct err *e);

/* pixels (3, height, width) as processor_size says them are the caller's. Fails when the picture is so thin that its
 * resize would be larger than a picture may be; `where` names it then. */
enum status processor_run(const struct processor *p, const struct image *im, const char *where, float *pixels,
                          struct err *e);

#endif

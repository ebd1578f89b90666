/* A row as a safetensors file: what the model sees, for comparison with other programs. */
#ifndef DATA_DUMP_H
#define DATA_DUMP_H

#include "base/safetensors.h"
#include "base/status.h"
#include "data/dataset.h"

enum { DUMP_TENSORS = 6 };

/* input_ids (T), labels (T), of a classification row its label vector in F32; position_ids (positions), I32; with
 * pictures pixel_values (images,3,H,W), F32. mllava: pictures are one id each. Idefics2: H and W are the row's largest,
 * zeros pad the others to the right and below; pixel_attention_mask (images,H,W), I32, 1 where the picture is;
 * patch_position_ids (images,P), I32, for the whole patches of HxW, 0 where the tower has none. mfuyu: instead of these
 * image_patches (patches,3*p*p), F32, of all pictures of the row, and image_patches_indices (T), I32: which of them the
 * position is, or -1. The names are static; other memory is owned: dump_free. */
struct dump {
    struct st_entry entry[DUMP_TENSORS];
    size_t count;
    int32_t *positions;
    float *pixels;           // (images, 3, H, W), or the patches
    int32_t *mask, *patches; // (images, H, W), (images, P) or (T); NULL: the family has none
};
void dump_init(struct dump *d, const struct row *r,
               const struct data_family *f); // keeps pointers into r; r has pixels if it has pictures
void dump_free(struct dump *d);

enum status dump_write(const char *path, const struct row *r, const struct data_family *f, struct err *e);

#endif

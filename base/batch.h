/* What data hands to a model: one micro-batch as plain arrays. data/ fills it and never sees a model; model/ reads it
 * and never sees a tokenizer or a picture file. Rows (samples) lie end to end without padding; a row attends to itself
 * only. */
#ifndef BASE_BATCH_H
#define BASE_BATCH_H

#include <stdint.h>

/* The kinds of model that graft knows, by what they take in. */
enum family {
    FAMILY_TEXT,     // Llama, Mistral, Qwen2: tokens
    FAMILY_MLLAVA,   // tokens and pictures of one size through SigLIP and a projector
    FAMILY_IDEFICS2, // tokens and pictures of any size through SigLIP's NaViT and a perceiver
    FAMILY_MFUYU,    // tokens and pictures of any size, whose patches are positions by themselves
};

enum { IGNORED = -100 }; // a target that is not scored

/* One picture, resized and normalised as the family wants it. With Idefics2 both sides are whole patches: those that
 * the tower looks at, zeros where the picture ends within one. With Fuyu too, and pixels are (patches, patch, patch,
 * 3), row by row: one patch after the other. */
struct batch_image {
    int64_t height, width;
    float *pixels;            // (3, height, width)
    int32_t *patch_positions; // (patches, row by row): where each stands in the tower's learned grid; NULL: as it lies
};

struct batch {
    int64_t rows;       // samples
    int64_t N;          // positions that the language model sees, all rows end to end
    int64_t scored;     // targets that are not IGNORED; with labels: rows
    int64_t *offsets;   // (rows + 1), offsets[rows] == N
    int32_t *ids;       // (N), -1 where a picture's feature stands
    int32_t *positions; // (N), from 0 in each row
    int32_t *targets;   // (N), the id that the position has to predict (already shifted), or IGNORED
    int64_t *row_index; // (rows), which row of the data set each one is, for reports

    int64_t label_count; // of each row, for a head; 0: tokens are predicted
    float *labels;       // (rows, label_count)
    int64_t *pooled;     // (rows), which position of its row the head reads

    int64_t images;
    int64_t *first_image;      // (rows + 1), the first picture of each row; NULL: never taken apart into rows
    struct batch_image *image; // (images), in the order in which their features stand in ids; every picture takes the
                               // same number of -1 positions (tokens per image of the family), with Fuyu as many as
                               // it has patches, each row of them followed by an id
};

/* The largest of each over the batches of a run; `longest` is the longest single row. */
struct batch_limits {
    int64_t N, rows, images, scored, longest;
    int64_t patches, most_patches; // of all pictures of a batch, and of the largest picture; 0: of one known size
};

#endif

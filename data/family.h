/* What a model family wants of its data: the one thing that the cli carries from a model's configuration to data/. */
#ifndef DATA_FAMILY_H
#define DATA_FAMILY_H

#include <stdint.h>

#include <stdbool.h>

#include "base/batch.h"
#include "base/problem.h"

struct data_family {
    enum family family;
    const char *model_dir;        // where tokenizer and processor files are
    const char *default_template; // Mantis' conversation template of the family, or NULL: the tokenizer's chat_template
    int64_t vocab_size;           // ids at or above it are an error; 0: not known
    int32_t image_token;          // the id that stands for a picture (mllava) or for a part of one (idefics2, mfuyu)
    int64_t tokens_per_image;     // positions that a picture takes in the language model; 0: they depend on it (mfuyu)
    int64_t patch_size;           // idefics2, mfuyu: pixels of a patch's side
    int64_t grid_side;            // idefics2: learned positions of the tower are grid_side x grid_side

    enum problem problem; // of the model's head; generation: classification rows are taken as they are
    int64_t num_labels;   // outputs of the head; 0: not known
    const char *const
        *label_names;  // (num_labels) the order of labels if a row has just these; NULL: the first row's order
    bool names_bind;   // a row has just these
    int32_t pad_token; // -1: none
    enum pooling pooling;
};

#define FAKE_TOKEN "<fake_token_around_image>" // idefics2: before and after the image_tokens of a picture

/* mfuyu: a patch (the image_token), the end of a row of patches, what frames a picture, what begins a text. */
#define PATCH_TOKEN       "|SPEAKER|"
#define ROW_END_TOKEN     "|NEWLINE|"
#define PICTURE_TOKEN     "|IMAGE|"
#define PICTURE_END_TOKEN "|ENDOFIMAGE|"
#define TEXT_TOKEN        "<s>"

/* Pictures of a row come to different numbers of patches. */
static inline bool family_any_size(const struct data_family *f) {
    return f->family == FAMILY_IDEFICS2 || f->family == FAMILY_MFUYU;
}

/* Positions that a picture of the tower takes beyond its ids: Idefics2's text holds an image_token for each. */
static inline int64_t family_extra_positions(const struct data_family *f) {
    return f->family == FAMILY_MLLAVA ? f->tokens_per_image - 1 : 0;
}

/* Whether the tokens of a picture that stands in an answer are trained, as Mantis does with Fuyu. */
static inline bool family_labels_pictures(const struct data_family *f) { return f->family == FAMILY_MFUYU; }

#endif

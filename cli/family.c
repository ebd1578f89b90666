#include "cli/family.h"

#include <string.h>

/* The part of it that needs no files. */
static struct data_family family_of(const struct model_config *c, const char *dir) {
    struct data_family f = {.family = c->family,
                            .model_dir = dir,
                            .default_template = c->default_template,
                            .vocab_size = c->text.vocab,
                            .image_token = -1,
                            .problem = c->problem,
                            .num_labels = c->num_labels,
                            .label_names = c->label_names,
                            .pad_token = c->pad_token,
                            .pooling = c->pooling};
    if (c->family != FAMILY_TEXT) f.image_token = c->image_token, f.tokens_per_image = picture_tokens(c);
    if (c->family == FAMILY_MFUYU) f.patch_size = c->vision.patch;
    if (c->family == FAMILY_IDEFICS2) {
        f.patch_size = c->vision.patch;
        f.grid_side = c->vision.image_size / c->vision.patch;
    }
    return f;
}

enum status family_open(const char *dir, struct model_config *c, struct data_family *f, struct tokenizer **t,
                        struct err *e) {
    *t = NULL;
    if (model_config_read(c, dir, e) != ST_OK) return e->code;
    *f = family_of(c, dir);
    *t = tokenizer_load(dir, e);
    if (*t && c->family == FAMILY_MLLAVA) tokenizer_force_bos(*t); // MLlavaProcessor rebuilds the post-processor so
    if (*t && c->family == FAMILY_MFUYU) f->image_token = tokenizer_id(*t, PATCH_TOKEN);
    return e->code;
}

enum dtype family_dtype(const struct flags *f, const struct model_config *c) {
    const char *name = flag_text(f, "dtype");
    if (name) return strcmp(name, "bf16") == 0 ? BF16 : F32;
    return c->dtype == F32 ? F32 : BF16;
}

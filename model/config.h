/* config.json of a Hugging Face model folder, as published: key layouts of transformers 4.x (rope_theta, rope_scaling,
 * torch_dtype) and 5.x (rope_parameters, dtype). Strict: what would change the mathematics and is not supported is an
 * error that names it; a missing key has the default of its transformers class. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/batch.h"
#include "base/problem.h"
#include "base/status.h"
#include "base/tensor.h"
#include "kernels/ops.h"

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_config {
    enum rope_kind kind;
    double theta, factor, low_freq_factor, high_freq_factor;
    int64_t original_positions; // llama3: context length before scaling
};

struct text_config {
    int64_t vocab, dim, ffn, layers, heads, kv_heads, head_dim;
    int64_t max_positions;
    int64_t window;             // sliding window; 0: none
    int64_t first_window_layer; // layers below it see everything (qwen2's max_window_layers)
    float eps;
    struct rope_config rope;
    int64_t rotary; // numbers of a head, the first ones, that are rotated; head_dim but for Persimmon
    bool persimmon; // the layers are Persimmon's (model/persimmon.h), and the final norm has a bias
    bool qkv_bias, o_bias, mlp_bias;
    bool tied; // lm_head is the embedding
    enum activation act;
};

struct vision_config {
    int64_t dim, ffn, layers, heads, image_size, patch;
    float eps;
    enum activation act;
    bool class_token;    // CLIP: a learned row before the patches of each picture
    bool pre_norm;       // CLIP: a LayerNorm before the first block
    bool patch_bias;     // SigLIP: of the convolution
    bool any_size;       // Idefics2: pictures are of any size, and say where their patches stand in the learned grid
    bool post_norm;      // Idefics2: a LayerNorm after the last block
    int64_t used_layers; // blocks that run: the feature is the output of the last of them
    bool drop_first;     // feature_select_strategy "default": index 0 is left out
};

/* Idefics2's perceiver: every picture becomes so many latents, which look at its patches. */
struct perceiver_config {
    int64_t latents, depth, heads, kv_heads, head_dim, ffn;
    float eps;
    enum activation act;
};

struct model_config {
    enum family family;
    const char *model_type; // "llama", "mistral", "qwen2", "llava", "idefics2", "fuyu"
    struct text_config text;
    struct vision_config vision;       // mllava, idefics2; mfuyu: dim, the numbers of a patch, and patch only
    enum activation projector_act;     // mllava
    struct perceiver_config perceiver; // idefics2
    int32_t image_token;               // mllava, idefics2
    const char *default_template;      // Mantis' template for this model; NULL: the tokenizer's own
    const char *default_targets;       // regex of the layers that Mantis adapts in it; NULL: all linear ones
    enum problem problem;              // generation: the head is lm_head; else a Linear called score
    int64_t num_labels;                // outputs of score
    const char *const *label_names;    // (num_labels), by id2label; NULL: it has none but LABEL_0, LABEL_1, ...
    int32_t pad_token;                 // -1: none
    enum pooling pooling;              // of score
    int32_t eos[8];                    // end of generation, from generation_config.json and config.json
    int eos_count;
    enum dtype dtype;                 // of the published weights
    const cJSON *quantization_config; // NULL: not quantised
    cJSON *json;                      // owns all strings above
    char *path;                       // of config.json
};

enum status model_config_read(struct model_config *c, const char *dir, struct err *e);
void model_config_free(struct model_config *c);

int64_t vision_patches(const struct vision_config *v); // of one picture; any size: of the learned grid
int64_t vision_rows(const struct vision_config *v);    // that such a picture takes in the tower: the class token too
int64_t vision_tokens(const struct vision_config *v);  // rows of it that are features

/* Features of one picture, each a position of the language model; 0: the model takes none, or they depend on the
 * picture (mfuyu). */
int64_t picture_tokens(const struct model_config *c);
int64_t picture_features(const struct model_config *c, const struct batch_image *image); // of this one

#endif

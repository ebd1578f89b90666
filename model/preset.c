#include "model/preset.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"

/* ---------------------------------------------------------------- the shapes */

#define SIGLIP_PROCESSOR(side)                                                                                         \
    "{\"do_normalize\": true, \"do_rescale\": true, \"do_resize\": true, \"image_mean\": [0.5, 0.5, 0.5],"             \
    " \"image_processor_type\": \"SiglipImageProcessor\", \"image_std\": [0.5, 0.5, 0.5],"                             \
    " \"processor_class\": \"MLlavaProcessor\", \"resample\": 3, \"rescale_factor\": 0.00392156862745098,"             \
    " \"size\": {\"height\": " side ", \"width\": " side "}}"

#define CLIP_PROCESSOR(side)                                                                                           \
    "{\"crop_size\": {\"height\": " side ", \"width\": " side "}, \"do_center_crop\": true, \"do_convert_rgb\": true," \
    " \"do_normalize\": true, \"do_rescale\": true, \"do_resize\": true,"                                              \
    " \"image_mean\": [0.48145466, 0.4578275, 0.40821073], \"image_processor_type\": \"CLIPImageProcessor\","          \
    " \"image_std\": [0.26862954, 0.26130258, 0.27577711], \"processor_class\": \"MLlavaProcessor\", \"resample\": 3," \
    " \"rescale_factor\": 0.00392156862745098, \"size\": {\"shortest_edge\": " side "}}"

#define IDEFICS2_PROCESSOR(longest, shortest, deviation)                                                               \
    "{\"do_convert_rgb\": true, \"do_image_splitting\": false, \"do_normalize\": true, \"do_pad\": true,"              \
    " \"do_rescale\": true, \"do_resize\": true, \"image_mean\": [0.5, 0.5, 0.5],"                                     \
    " \"image_processor_type\": \"Idefics2ImageProcessor\", \"image_std\": [" deviation ", " deviation ", " deviation  \
    "],"                                                                                                               \
    " \"processor_class\": \"Idefics2Processor\", \"resample\": 2, \"rescale_factor\": 0.00392156862745098,"           \
    " \"size\": {\"longest_edge\": " longest ", \"shortest_edge\": " shortest "}}"

#define IDEFICS2_PROMPTS(latents) "{\"image_seq_len\": " latents ", \"processor_class\": \"Idefics2Processor\"}"

#define FUYU_PROCESSOR(high, wide, patch)                                                                              \
    "{\"do_normalize\": true, \"do_pad\": true, \"do_rescale\": true, \"do_resize\": true, \"image_mean\": 0.5,"       \
    " \"image_processor_type\": \"FuyuImageProcessor\", \"image_std\": 0.5, \"padding_mode\": \"constant\","           \
    " \"padding_value\": 1.0, \"patch_size\": {\"height\": " patch ", \"width\": " patch "},"                          \
    " \"processor_class\": \"MFuyuProcessor\", \"resample\": 2, \"rescale_factor\": 0.00392156862745098,"              \
    " \"size\": {\"height\": " high ", \"width\": " wide "}}"

/* transformers 4 reads it at the top, later ones in text_config. */
#define PERSIMMON_SHAPE(vocab, dim, ffn, layers, heads, positions)                                                     \
    "\"vocab_size\": " vocab ", \"hidden_size\": " dim ", \"intermediate_size\": " ffn ","                             \
    " \"num_hidden_layers\": " layers ", \"num_attention_heads\": " heads ","                                          \
    " \"max_position_embeddings\": " positions ", \"hidden_act\": \"relu2\", \"layer_norm_eps\": 1e-05,"               \
    " \"partial_rotary_factor\": 0.5, \"qk_layernorm\": true, \"rope_theta\": 25000.0, \"tie_word_embeddings\": false"

#define FUYU_CONFIG(patch, shape)                                                                                      \
    "{\"architectures\": [\"MFuyuForCausalLM\"], \"model_type\": \"fuyu\", \"num_channels\": 3,"                       \
    " \"patch_size\": " patch ", " shape ", \"text_config\": {\"model_type\": \"persimmon\", " shape "}}"

#define TINY_SHAPE                                                                                                     \
    "\"hidden_size\": 128, \"intermediate_size\": 352, \"num_hidden_layers\": 4, \"num_attention_heads\": 4,"          \
    " \"num_key_value_heads\": 2, \"max_position_embeddings\": 4096, \"hidden_act\": \"silu\", \"vocab_size\": 512"

#define LLAMA3_8B_SHAPE                                                                                                \
    "\"hidden_size\": 4096, \"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"     \
    " \"num_key_value_heads\": 8, \"max_position_embeddings\": 8192, \"hidden_act\": \"silu\","                        \
    " \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0"

static const struct preset presets[] = {
    {"llama-tiny", false, FAMILY_TEXT, 0,
     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", " TINY_SHAPE ","
     " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false}",
     NULL, NULL},
    {"mistral-tiny", false, FAMILY_TEXT, 0,
     "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", " TINY_SHAPE ","
     " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"sliding_window\": 256, \"tie_word_embeddings\": false}",
     NULL, NULL},
    {"qwen2-tiny", false, FAMILY_TEXT, 0,
     "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", " TINY_SHAPE ","
     " \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"use_sliding_window\": false,"
     " \"tie_word_embeddings\": true}",
     NULL, NULL},
    {"mllava-tiny", false, FAMILY_MLLAVA, 0,
     "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"model_type\": \"llava\", \"ignore_index\": -100,"
     " \"projector_hidden_act\": \"gelu\", \"vision_feature_layer\": -2,"
     " \"vision_feature_select_strategy\": \"default\", \"vocab_size\": 512,"
     " \"text_config\": {\"_name_or_path\": \"llama-3-tiny\", \"architectures\": [\"LlamaForCausalLM\"],"
     " \"model_type\": \"llama\", " TINY_SHAPE ", \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0},"
     " \"vision_config\": {\"model_type\": \"siglip_vision_model\", \"hidden_size\": 64, \"intermediate_size\": 128,"
     " \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"image_size\": 56, \"patch_size\": 14,"
     " \"layer_norm_eps\": 1e-06, \"hidden_act\": \"gelu_pytorch_tanh\", \"vision_use_head\": false}}",
     SIGLIP_PROCESSOR("56"), NULL},
    {"mllava-clip-tiny", false, FAMILY_MLLAVA, 0,
     "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"model_type\": \"llava\", \"ignore_index\": -100,"
     " \"projector_hidden_act\": \"gelu\", \"vision_feature_layer\": -2,"
     " \"vision_feature_select_strategy\": \"default\", \"vocab_size\": 512,"
     " \"text_config\": {\"_name_or_path\": \"llama-3-tiny\", \"architectures\": [\"LlamaForCausalLM\"],"
     " \"model_type\": \"llama\", " TINY_SHAPE ", \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0},"
     " \"vision_config\": {\"model_type\": \"clip_vision_model\", \"hidden_size\": 64, \"intermediate_size\": 128,"
     " \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"image_size\": 56, \"patch_size\": 14,"
     " \"layer_norm_eps\": 1e-05, \"hidden_act\": \"quick_gelu\"}}",
     CLIP_PROCESSOR("56"), NULL},
    {"idefics2-tiny", false, FAMILY_IDEFICS2, 0,
     "{\"architectures\": [\"Idefics2ForConditionalGeneration\"], \"model_type\": \"idefics2\","
     " \"tie_word_embeddings\": false,"
     " \"text_config\": {\"model_type\": \"mistral\", " TINY_SHAPE ", \"rms_norm_eps\": 1e-05,"
     " \"rope_theta\": 10000.0, \"sliding_window\": 4096, \"tie_word_embeddings\": false},"
     " \"vision_config\": {\"model_type\": \"idefics2\", \"hidden_size\": 64, \"intermediate_size\": 128,"
     " \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"image_size\": 112, \"patch_size\": 14,"
     " \"layer_norm_eps\": 1e-06, \"hidden_act\": \"gelu_pytorch_tanh\"},"
     " \"perceiver_config\": {\"model_type\": \"idefics2\", \"resampler_n_latents\": 8, \"resampler_depth\": 2,"
     " \"resampler_n_heads\": 4, \"resampler_head_dim\": 16, \"num_key_value_heads\": 2, \"hidden_act\": \"silu\","
     " \"hidden_size\": 128, \"rms_norm_eps\": 1e-05}}",
     IDEFICS2_PROCESSOR("112", "28", "0.5"), IDEFICS2_PROMPTS("8")},
    {"idefics2-clips", false, FAMILY_IDEFICS2, 0,
     "{\"architectures\": [\"Idefics2ForConditionalGeneration\"], \"model_type\": \"idefics2\","
     " \"tie_word_embeddings\": false,"
     " \"text_config\": {\"model_type\": \"mistral\", \"hidden_size\": 192, \"intermediate_size\": 512,"
     " \"num_hidden_layers\": 4, \"num_attention_heads\": 6, \"num_key_value_heads\": 3,"
     " \"max_position_embeddings\": 4096, \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05,"
     " \"rope_theta\": 10000.0, \"sliding_window\": 4096, \"tie_word_embeddings\": false, \"vocab_size\": 512},"
     " \"vision_config\": {\"model_type\": \"idefics2\", \"hidden_size\": 128, \"intermediate_size\": 256,"
     " \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"image_size\": 48, \"patch_size\": 8,"
     " \"layer_norm_eps\": 1e-06, \"hidden_act\": \"gelu_pytorch_tanh\"},"
     " \"perceiver_config\": {\"model_type\": \"idefics2\", \"resampler_n_latents\": 4, \"resampler_depth\": 2,"
     " \"resampler_n_heads\": 4, \"resampler_head_dim\": 32, \"num_key_value_heads\": 2, \"hidden_act\": \"silu\","
     " \"hidden_size\": 192, \"rms_norm_eps\": 1e-05}}",
     IDEFICS2_PROCESSOR("48", "48", "0.1"), IDEFICS2_PROMPTS("4")},
    {"mfuyu-tiny", false, FAMILY_MFUYU, 0, FUYU_CONFIG("8", PERSIMMON_SHAPE("512", "128", "512", "4", "4", "4096")),
     FUYU_PROCESSOR("48", "48", "8"), NULL},
    {"smollm2-135m", true, FAMILY_TEXT, 0.041666666666666664,
     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 576,"
     " \"intermediate_size\": 1536, \"num_hidden_layers\": 30, \"num_attention_heads\": 9,"
     " \"num_key_value_heads\": 3, \"max_position_embeddings\": 8192, \"hidden_act\": \"silu\","
     " \"rms_norm_eps\": 1e-05, \"rope_theta\": 100000, \"tie_word_embeddings\": true, \"vocab_size\": 49152}",
     NULL, NULL},
    {"qwen2.5-0.5b", true, FAMILY_TEXT, 0.02,
     "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", \"hidden_size\": 896,"
     " \"intermediate_size\": 4864, \"num_hidden_layers\": 24, \"num_attention_heads\": 14,"
     " \"num_key_value_heads\": 2, \"max_position_embeddings\": 32768, \"hidden_act\": \"silu\","
     " \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"sliding_window\": 32768, \"max_window_layers\": 24,"
     " \"use_sliding_window\": false, \"tie_word_embeddings\": true, \"vocab_size\": 151936}",
     NULL, NULL},
    {"llama-3-8b", true, FAMILY_TEXT, 0.02,
     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", " LLAMA3_8B_SHAPE ","
     " \"tie_word_embeddings\": false, \"vocab_size\": 128256}",
     NULL, NULL},
    {"mistral-7b", true, FAMILY_TEXT, 0.02,
     "{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", \"hidden_size\": 4096,"
     " \"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     " \"num_key_value_heads\": 8, \"max_position_embeddings\": 32768, \"hidden_act\": \"silu\","
     " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"sliding_window\": 4096, \"tie_word_embeddings\": false,"
     " \"vocab_size\": 32000}",
     NULL, NULL},
    {"mantis-8b-siglip-llama3", true, FAMILY_MLLAVA, 0.02,
     "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"model_type\": \"llava\", \"ignore_index\": -100,"
     " \"projector_hidden_act\": \"gelu\", \"vision_feature_layer\": -2,"
     " \"vision_feature_select_strategy\": \"default\", \"vocab_size\": 128258,"
     " \"text_config\": {\"_name_or_path\": \"meta-llama/Meta-Llama-3-8B-Instruct\","
     " \"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", " LLAMA3_8B_SHAPE ","
     " \"vocab_size\": 128258},"
     " \"vision_config\": {\"model_type\": \"siglip_vision_model\", \"hidden_size\": 1152,"
     " \"intermediate_size\": 4304, \"num_hidden_layers\": 27, \"num_attention_heads\": 16, \"image_size\": 384,"
     " \"patch_size\": 14, \"layer_norm_eps\": 1e-06, \"hidden_act\": \"gelu_pytorch_tanh\"}}",
     SIGLIP_PROCESSOR("384"), NULL},
    {"mantis-8b-clip-llama3", true, FAMILY_MLLAVA, 0.02,
     "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"model_type\": \"llava\", \"ignore_index\": -100,"
     " \"projector_hidden_act\": \"gelu\", \"vision_feature_layer\": -2,"
     " \"vision_feature_select_strategy\": \"default\", \"vocab_size\": 128258,"
     " \"text_config\": {\"_name_or_path\": \"meta-llama/Meta-Llama-3-8B-Instruct\","
     " \"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", " LLAMA3_8B_SHAPE ","
     " \"vocab_size\": 128258},"
     " \"vision_config\": {\"model_type\": \"clip_vision_model\", \"hidden_size\": 1024,"
     " \"intermediate_size\": 4096, \"num_hidden_layers\": 24, \"num_attention_heads\": 16, \"image_size\": 336,"
     " \"patch_size\": 14, \"layer_norm_eps\": 1e-05, \"hidden_act\": \"quick_gelu\", \"projection_dim\": 768}}",
     CLIP_PROCESSOR("336"), NULL},
    {"mantis-8b-idefics2", true, FAMILY_IDEFICS2, 0.02,
     "{\"architectures\": [\"Idefics2ForConditionalGeneration\"], \"model_type\": \"idefics2\","
     " \"tie_word_embeddings\": false,"
     " \"text_config\": {\"model_type\": \"mistral\", \"hidden_size\": 4096, \"intermediate_size\": 14336,"
     " \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"hidden_act\": \"silu\","
     " \"max_position_embeddings\": 32768, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
     " \"sliding_window\": 4096, \"tie_word_embeddings\": false, \"vocab_size\": 32003},"
     " \"vision_config\": {\"model_type\": \"idefics2\", \"hidden_size\": 1152, \"intermediate_size\": 4304,"
     " \"num_hidden_layers\": 27, \"num_attention_heads\": 16, \"image_size\": 980, \"patch_size\": 14,"
     " \"layer_norm_eps\": 1e-06, \"hidden_act\": \"gelu_pytorch_tanh\"},"
     " \"perceiver_config\": {\"model_type\": \"idefics2\", \"resampler_n_latents\": 64, \"resampler_depth\": 3,"
     " \"resampler_n_heads\": 16, \"resampler_head_dim\": 96, \"num_key_value_heads\": 4,"
     " \"hidden_act\": \"silu\"}}",
     IDEFICS2_PROCESSOR("980", "378", "0.5"), IDEFICS2_PROMPTS("64")},
    {"mantis-8b-fuyu", true, FAMILY_MFUYU, 0.02,
     FUYU_CONFIG("30", PERSIMMON_SHAPE("262146", "4096", "16384", "36", "64", "16384")),
     FUYU_PROCESSOR("1080", "1920", "30"), NULL},
};
enum { PRESETS = sizeof presets / sizeof *presets };

const struct preset *preset_at(int i) { return i < PRESETS ? &presets[i] : NULL; }

const struct preset *preset_find(const char *name, struct err *e) {
    const char *names[PRESETS];
    struct text all = {0};
    for (int i = 0; i < PRESETS; i++) {
        if (strcmp(presets[i].name, name) == 0) return text_free(&all), &presets[i];
        names[i] = presets[i].name;
        text_addf(&all, "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = text_nearest(name, names, PRESETS);
    if (near)
        err_set(e, ST_USAGE, "unknown preset %s; did you mean %s?", name, near);
    else
        err_set(e, ST_USAGE, "unknown preset %s; the known ones are %s", name, text_str(&all));
    text_free(&all);
    return NULL;
}

static void set_number(cJSON *o, const char *key, double value) {
    cJSON_DeleteItemFromObjectCaseSensitive(o, key);
    cJSON_AddNumberToObject(o, key, value);
}

cJSON *preset_config(const struct preset *p, const struct preset_tokens *t, const char *dtype) {
    cJSON *tree = cJSON_Parse(p->config), *nested = cJSON_GetObjectItemCaseSensitive(tree, "text_config");
    cJSON *text = nested ? nested : tree;
    if (t->vocab && p->family != FAMILY_IDEFICS2) set_number(tree, "vocab_size", (double)t->vocab);
    if (t->vocab) set_number(text, "vocab_size", (double)t->vocab);
    if (t->bos >= 0) set_number(text, "bos_token_id", t->bos);
    if (t->eos >= 0) set_number(text, "eos_token_id", t->eos);
    if (t->pad >= 0) set_number(tree, "pad_token_id", t->pad);
    if (p->family == FAMILY_MLLAVA) set_number(tree, "image_token_index", t->image);
    if (p->family == FAMILY_IDEFICS2) set_number(tree, "image_token_id", t->image);
    if (p->deviation > 0) set_number(text, "initializer_range", p->deviation);
    cJSON_AddStringToObject(tree, "torch_dtype", dtype);
    return tree;
}

/* ---------------------------------------------------------------- the tensors of a shape */

struct maker {
    struct new_tensors *t;
    size_t room;
    enum st_type type;
};

static void add(struct maker *m, char *name, enum fill fill, int64_t inputs, int rank, const int64_t *dim) {
    struct new_tensors *t = m->t;
    if (t->count == m->room) {
        m->room = m->room ? 2 * m->room : 64;
        t->list = mem_resize(t->list, m->room * sizeof *t->list);
    }
    struct st_entry entry = {.name = name, .type = m->type, .rank = rank, .bytes = st_type_size(m->type)};
    for (int i = 0; i < rank; i++) {
        entry.dim[i] = dim[i];
        entry.bytes *= (size_t)dim[i];
    }
    t->list[t->count++] = (struct new_tensor){entry, fill, inputs};
}

static void add_vector(struct maker *m, const char *prefix, const char *name, enum fill fill, int64_t n) {
    add(m, mem_format("%s.%s", prefix, name), fill, 1, 1, &n);
}

static void add_matrix(struct maker *m, const char *prefix, const char *name, int64_t rows, int64_t columns,
                       int64_t inputs) {
    add(m, mem_format("%s.%s", prefix, name), FILL_NORMAL, inputs, 2, (int64_t[]){rows, columns});
}

/* NAME.weight (out,in) and perhaps NAME.bias (out). */
static void add_linear(struct maker *m, const char *prefix, const char *name, int64_t out, int64_t in, bool bias) {
    char *path = mem_format("%s.%s", prefix, name);
    add_matrix(m, path, "weight", out, in, in);
    if (bias) add_vector(m, path, "bias", FILL_ZERO, out);
    free(path);
}

static void add_layer_norm(struct maker *m, const char *prefix, const char *name, int64_t n) {
    char *path = mem_format("%s.%s", prefix, name);
    add_vector(m, path, "weight", FILL_ONE, n);
    add_vector(m, path, "bias", FILL_ZERO, n);
    free(path);
}

static void add_persimmon_layer(struct maker *m, const struct text_config *c, const char *layer) {
    char *attention = mem_format("%s.self_attn", layer);
    add_layer_norm(m, layer, "input_layernorm", c->dim);
    add_linear(m, attention, "query_key_value", 3 * c->dim, c->dim, true);
    add_layer_norm(m, attention, "q_layernorm", c->head_dim);
    add_layer_norm(m, attention, "k_layernorm", c->head_dim);
    add_linear(m, attention, "dense", c->dim, c->dim, true);
    add_layer_norm(m, layer, "post_attention_layernorm", c->dim);
    add_linear(m, layer, "mlp.dense_h_to_4h", c->ffn, c->dim, true);
    add_linear(m, layer, "mlp.dense_4h_to_h", c->dim, c->ffn, true);
    free(attention);
}

static void add_persimmon(struct maker *m, const struct text_config *c, const char *prefix, const char *head) {
    add_matrix(m, prefix, "embed_tokens.weight", c->vocab, c->dim, 1);
    for (int64_t i = 0; i < c->layers; i++) {
        char *layer = mem_format("%s.layers.%lld", prefix, (long long)i);
        add_persimmon_layer(m, c, layer);
        free(layer);
    }
    add_layer_norm(m, prefix, "final_layernorm", c->dim);
    add(m, mem_format("%s.weight", head), FILL_NORMAL, c->dim, 2, (int64_t[]){c->vocab, c->dim});
}

static void add_text(struct maker *m, const struct text_config *c, const char *prefix, const char *head) {
    int64_t C = c->dim, Q = c->heads * c->head_dim, KV = c->kv_heads * c->head_dim;
    add_matrix(m, prefix, "embed_tokens.weight", c->vocab, C, c->tied ? C : 1);
    for (int64_t i = 0; i < c->layers; i++) {
        char *layer = mem_format("%s.layers.%lld", prefix, (long long)i);
        add_vector(m, layer, "input_layernorm.weight", FILL_ONE, C);
        add_linear(m, layer, "self_attn.q_proj", Q, C, c->qkv_bias);
        add_linear(m, layer, "self_attn.k_proj", KV, C, c->qkv_bias);
        add_linear(m, layer, "self_attn.v_proj", KV, C, c->qkv_bias);
        add_linear(m, layer, "self_attn.o_proj", C, Q, c->o_bias);
        add_vector(m, layer, "post_attention_layernorm.weight", FILL_ONE, C);
        add_linear(m, layer, "mlp.gate_proj", c->ffn, C, c->mlp_bias);
        add_linear(m, layer, "mlp.up_proj", c->ffn, C, c->mlp_bias);
        add_linear(m, layer, "mlp.down_proj", C, c->ffn, c->mlp_bias);
        free(layer);
    }
    add_vector(m, prefix, "norm.weight", FILL_ONE, C);
    if (!c->tied) add(m, mem_format("%s.weight", head), FILL_NORMAL, C, 2, (int64_t[]){c->vocab, C});
}

static void add_vision_head(struct maker *m, const struct vision_config *v, const char *prefix) {
    char *head = mem_format("%s.head", prefix);
    add(m, mem_format("%s.probe", head), FILL_NORMAL, v->dim, 3, (int64_t[]){1, 1, v->dim});
    add_matrix(m, head, "attention.in_proj_weight", 3 * v->dim, v->dim, v->dim);
    add_vector(m, head, "attention.in_proj_bias", FILL_ZERO, 3 * v->dim);
    add_linear(m, head, "attention.out_proj", v->dim, v->dim, true);
    add_layer_norm(m, head, "layernorm", v->dim);
    add_linear(m, head, "mlp.fc1", v->ffn, v->dim, true);
    add_linear(m, head, "mlp.fc2", v->dim, v->ffn, true);
    free(head);
}

static void add_vision(struct maker *m, const struct vision_config *v, const char *prefix) {
    int64_t D = v->dim, P = v->patch;
    add(m, mem_format("%s.embeddings.patch_embedding.weight", prefix), FILL_NORMAL, 3 * P * P, 4,
        (int64_t[]){D, 3, P, P});
    if (v->patch_bias) add_vector(m, prefix, "embeddings.patch_embedding.bias", FILL_ZERO, D);
    if (v->class_token) add(m, mem_format("%s.embeddings.class_embedding", prefix), FILL_NORMAL, D, 1, &D);
    add_matrix(m, prefix, "embeddings.position_embedding.weight", vision_rows(v), D, 1);
    if (v->pre_norm) add_layer_norm(m, prefix, "pre_layrnorm", D);
    static const char *const projections[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
    for (int64_t i = 0; i < v->layers; i++) {
        char *layer = mem_format("%s.encoder.layers.%lld", prefix, (long long)i);
        char *attention = mem_format("%s.self_attn", layer);
        add_layer_norm(m, layer, "layer_norm1", D);
        for (int k = 0; k < 4; k++) add_linear(m, attention, projections[k], D, D, true);
        add_layer_norm(m, layer, "layer_norm2", D);
        add_linear(m, layer, "mlp.fc1", v->ffn, D, true);
        add_linear(m, layer, "mlp.fc2", D, v->ffn, true);
        free(attention);
        free(layer);
    }
    add_layer_norm(m, prefix, "post_layernorm", D);
}

static int compare_names(const void *a, const void *b) {
    const struct new_tensor *x = a, *y = b;
    return strcmp(x->entry.name, y->entry.name);
}

static void add_gated(struct maker *m, const char *prefix, int64_t out, int64_t ffn, int64_t in) {
    add_linear(m, prefix, "gate_proj", ffn, in, false);
    add_linear(m, prefix, "up_proj", ffn, in, false);
    add_linear(m, prefix, "down_proj", out, ffn, false);
}

static void add_connector(struct maker *m, const struct model_config *c, const char *prefix) {
    const struct perceiver_config *p = &c->perceiver;
    int64_t C = c->text.dim, Q = p->heads * p->head_dim, KV = p->kv_heads * p->head_dim;
    char *project = mem_format("%s.modality_projection", prefix);
    char *perceiver = mem_format("%s.perceiver_resampler", prefix);
    add_gated(m, project, C, c->text.ffn, c->vision.dim);
    add_matrix(m, perceiver, "latents", p->latents, C, 1);
    for (int64_t i = 0; i < p->depth; i++) {
        char *layer = mem_format("%s.layers.%lld", perceiver, (long long)i), *mlp = mem_format("%s.mlp", layer);
        add_vector(m, layer, "input_latents_norm.weight", FILL_ONE, C);
        add_vector(m, layer, "input_context_norm.weight", FILL_ONE, C);
        add_linear(m, layer, "self_attn.q_proj", Q, C, false);
        add_linear(m, layer, "self_attn.k_proj", KV, C, false);
        add_linear(m, layer, "self_attn.v_proj", KV, C, false);
        add_linear(m, layer, "self_attn.o_proj", C, Q, false);
        add_vector(m, layer, "post_attention_layernorm.weight", FILL_ONE, C);
        add_gated(m, mlp, C, p->ffn, C);
        free(layer), free(mlp);
    }
    add_vector(m, perceiver, "norm.weight", FILL_ONE, C);
    free(project), free(perceiver);
}

void preset_tensors(struct new_tensors *t, const struct model_config *c, enum st_type type, bool head) {
    struct maker m = {.t = t, .type = type};
    static const char tower[] = "vision_tower.vision_model", projector[] = "multi_modal_projector";
    *t = (struct new_tensors){0};
    if (c->family == FAMILY_TEXT) {
        add_text(&m, &c->text, "model", "lm_head");
    } else if (c->family == FAMILY_IDEFICS2) {
        add_text(&m, &c->text, "model.text_model", "lm_head");
        add_vision(&m, &c->vision, "model.vision_model");
        add_connector(&m, c, "model.connector");
    } else if (c->family == FAMILY_MFUYU) {
        add_persimmon(&m, &c->text, "language_model.model", "language_model.lm_head");
        add_matrix(&m, "vision_embed_tokens", "weight", c->text.dim, c->vision.dim, c->vision.dim);
        add_vector(&m, "vision_embed_tokens", "bias", FILL_ZERO, c->text.dim);
    } else {
        add_text(&m, &c->text, "language_model.model", "language_model.lm_head");
        add_vision(&m, &c->vision, tower);
        if (head && !c->vision.class_token) add_vision_head(&m, &c->vision, tower);
        add_linear(&m, projector, "linear_1", c->text.dim, c->vision.dim, true);
        add_linear(&m, projector, "linear_2", c->text.dim, c->text.dim, true);
    }
    qsort(t->list, t->count, sizeof *t->list, compare_names);
}

void preset_tensors_free(struct new_tensors *t) {
    for (size_t i = 0; i < t->count; i++) free((char *)t->list[i].entry.name);
    free(t->list);
    *t = (struct new_tensors){0};
}

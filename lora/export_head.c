/* The values at the head of a GGUF file: what llama.cpp must know of a model beside its tensors. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/chat_template.h"
#include "data/conversation.h"
#include "data/processor.h"
#include "data/vocabulary.h"
#include "lora/export_parts.h"

/* "ARCH.key"; the caller frees it. */
static char *key_of(const struct export_plan *p, const char *key) { return mem_format("%s.%s", p->arch, key); }

static void add_count(const struct export_plan *p, struct gguf_head *h, const char *key, int64_t value) {
    char *full = key_of(p, key);
    gguf_add_u32(h, full, value);
    free(full);
}

static void add_number(const struct export_plan *p, struct gguf_head *h, const char *key, double value) {
    char *full = key_of(p, key);
    gguf_add_f32(h, full, value);
    free(full);
}

static void add_word(const struct export_plan *p, struct gguf_head *h, const char *key, const char *value) {
    char *full = key_of(p, key);
    gguf_add_string(h, full, value);
    free(full);
}

/* llama.cpp's number for what most matrices are. */
static int64_t file_type(enum ggml_type type) {
    switch (type) {
    case GGML_F32:
        return 0;
    case GGML_F16:
        return 1;
    case GGML_Q4_0:
        return 2;
    case GGML_Q8_0:
        return 7;
    case GGML_Q4_K:
        return 14;
    case GGML_BF16:
        return 32;
    }
    return 0;
}

static void add_general(const struct export_plan *p, struct gguf_head *h, const char *type) {
    char *dir = mem_text(p->o->model);
    for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/'; n--) dir[n - 1] = 0;
    const char *name = path_name(dir);
    gguf_add_string(h, "general.architecture", p->arch);
    gguf_add_string(h, "general.type", type);
    if (utf8_valid_prefix(name, strlen(name)) == strlen(name)) gguf_add_string(h, "general.name", name);
    gguf_add_u32(h, "general.file_type", file_type(p->o->type));
    gguf_add_u32(h, "general.quantization_version", 2);
    free(dir);
}

static void add_network(const struct export_plan *p, struct gguf_head *h) {
    const struct text_config *c = &p->m->model->config.text;
    add_count(p, h, "block_count", c->layers);
    add_count(p, h, "context_length", c->max_positions);
    add_count(p, h, "embedding_length", c->dim);
    add_count(p, h, "feed_forward_length", c->ffn);
    add_count(p, h, "attention.head_count", c->heads);
    add_count(p, h, "attention.head_count_kv", c->kv_heads);
    add_count(p, h, "attention.key_length", c->head_dim);
    add_count(p, h, "attention.value_length", c->head_dim);
    add_number(p, h, "attention.layer_norm_rms_epsilon", (double)c->eps);
    add_count(p, h, "vocab_size", c->vocab);
    add_count(p, h, "rope.dimension_count", c->head_dim);
    add_number(p, h, "rope.freq_base", c->rope.theta);
    if (c->rope.kind != ROPE_LINEAR) return; // llama3's stretching is the tensor rope_freqs.weight
    add_word(p, h, "rope.scaling.type", "linear");
    add_number(p, h, "rope.scaling.factor", c->rope.factor);
}

/* --- the tokenizer ----------------------------------------------------------------------------------------------- */

/* llama.cpp's name for the way to cut text; NULL: it has none. Its "llama-bpe" takes whole tokens before it merges,
 * "smaug-bpe" is the same without. */
static const char *cut_name(const struct vocabulary *v) {
    if (!v->cut) return NULL;
    if (strcmp(v->cut, "llama3") == 0) return v->ignore_merges ? "llama-bpe" : "smaug-bpe";
    if (v->ignore_merges) return NULL;
    return strcmp(v->cut, "gpt2") == 0 ? "gpt-2" : v->cut;
}

/* A token's text in the byte alphabet has no blank; one that a user added may. */
static void add_words(struct gguf_head *h, const struct vocabulary *v, int64_t vocab) {
    int32_t *kinds = mem_alloc((size_t)vocab * sizeof *kinds);
    float *scores = mem_alloc((size_t)vocab * sizeof *scores);
    gguf_add_strings(h, "tokenizer.ggml.tokens", (uint64_t)vocab);
    for (int64_t i = 0; i < vocab; i++) {
        const struct word *w = i < v->count ? &v->words[i] : NULL;
        char name[32];
        bool there = w && w->text;
        int n = there ? 0 : snprintf(name, sizeof name, "[PAD%lld]", (long long)i);
        gguf_item(h, there ? w->text : name, there ? w->len : (size_t)n);
        kinds[i] = there ? (int32_t)w->kind : WORD_UNUSED;
        scores[i] = there ? w->score : -1e9f;
    }
    gguf_add_array(h, "tokenizer.ggml.token_type", GGUF_I32, kinds, (uint64_t)vocab);
    if (!v->byte_level) gguf_add_array(h, "tokenizer.ggml.scores", GGUF_F32, scores, (uint64_t)vocab);
    free(kinds), free(scores);
}

static void add_merges(struct gguf_head *h, const struct vocabulary *v) {
    struct text t = {0};
    uint64_t count = 0;
    for (int64_t i = 0; i < v->merge_count; i++) count += v->left[i] >= 0;
    gguf_add_strings(h, "tokenizer.ggml.merges", count);
    for (int64_t i = 0; i < v->merge_count; i++) {
        if (v->left[i] < 0) continue;
        const struct word *l = &v->words[v->left[i]], *r = &v->words[v->right[i]];
        text_clear(&t);
        text_add_n(&t, l->text, l->len), text_add_char(&t, ' '), text_add_n(&t, r->text, r->len);
        gguf_item(h, t.data, t.len);
    }
    text_free(&t);
}

static void add_id(struct gguf_head *h, const char *key, int32_t id) {
    if (id >= 0) gguf_add_u32(h, key, id);
}

/* An answer ends at the tokenizer's end of text, and often at the end of a turn too. */
static void add_ends(const struct model_config *c, const struct tokenizer *t, struct gguf_head *h) {
    int32_t eos = tokenizer_eos(t) >= 0 ? tokenizer_eos(t) : c->eos_count ? c->eos[0] : -1, turn = -1;
    for (int i = 0; i < c->eos_count && turn < 0; i++)
        if (c->eos[i] != eos && c->eos[i] < c->text.vocab) turn = c->eos[i];
    add_id(h, "tokenizer.ggml.bos_token_id", tokenizer_bos(t));
    add_id(h, "tokenizer.ggml.eos_token_id", eos);
    add_id(h, "tokenizer.ggml.eot_token_id", turn);
    add_id(h, "tokenizer.ggml.padding_token_id", tokenizer_pad(t));
}

static enum status check_vocabulary(struct export_plan *p, const struct vocabulary *v, const char *dir, struct err *e) {
    const struct text_config *c = &p->m->model->config.text;
    if (v->count > c->vocab)
        return err_set(e, ST_FAIL, "%s: the tokenizer has %lld tokens, the model's embedding only %lld rows", dir,
                       (long long)v->count, (long long)c->vocab);
    if (v->byte_level && !cut_name(v))
        return err_set(e, ST_FAIL,
                       "%s: llama.cpp has no pre-tokenizer that cuts text as its tokenizer.json does, so it "
                       "would read texts otherwise; keep the Hugging Face folder",
                       dir);
    if (!v->byte_level && !v->scores_suffice)
        export_note(p,
                    "the tokenizer's merges are not those that scores give, and llama.cpp merges by scores: it may cut "
                    "some words otherwise");
    return ST_OK;
}

static enum status add_vocabulary(struct export_plan *p, const struct tokenizer *t, struct gguf_head *h,
                                  struct err *e) {
    const struct model_config *c = &p->m->model->config;
    struct vocabulary v;
    vocabulary_init(&v, t);
    if (check_vocabulary(p, &v, p->o->model, e) == ST_OK) {
        gguf_add_string(h, "tokenizer.ggml.model", v.byte_level ? "gpt2" : "llama");
        gguf_add_string(h, "tokenizer.ggml.pre", v.byte_level ? cut_name(&v) : "default");
        add_words(h, &v, c->text.vocab);
        if (v.byte_level) add_merges(h, &v);
        add_ends(c, t, h);
        if (v.unknown >= 0) add_id(h, "tokenizer.ggml.unknown_token_id", v.unknown);
        gguf_add_bool(h, "tokenizer.ggml.add_bos_token", v.bos || c->family == FAMILY_MLLAVA);
        gguf_add_bool(h, "tokenizer.ggml.add_eos_token", v.eos);
        if (!v.byte_level) gguf_add_bool(h, "tokenizer.ggml.add_space_prefix", v.space_prefix);
    }
    vocabulary_free(&v);
    return e->code;
}

/* How the model writes a conversation: one of Mantis as in its training, whatever its tokenizer brings. */
static char *chat_template_of(const struct export_plan *p) {
    const char *name = p->m->model->config.default_template;
    struct err quiet = {0};
    const struct conversation *conv = name ? conversation_find(name, &quiet) : NULL;
    struct text t = {0};
    if (!conv) return chat_template_source(p->o->model);
    conversation_jinja(conv, &t);
    return t.data;
}

/* Templates for other ends, such as tool_use; a key takes letters and digits of a name. */
static void add_named_templates(const struct export_plan *p, struct gguf_head *h) {
    cJSON *named = chat_template_named(p->o->model), *v;
    cJSON_ArrayForEach(v, named) {
        for (char *c = v->string; *c; c++)
            if (!isalnum((unsigned char)*c)) *c = '_';
        char *key = mem_format("tokenizer.chat_template.%s", v->string);
        gguf_add_string(h, key, v->valuestring);
        free(key);
    }
    if (named->child) gguf_add_strings(h, "tokenizer.chat_templates", (uint64_t)cJSON_GetArraySize(named));
    cJSON_ArrayForEach(v, named) gguf_item(h, v->string, strlen(v->string));
    cJSON_Delete(named);
}

static enum status add_tokenizer(struct export_plan *p, struct gguf_head *h, struct err *e) {
    char *path = path_join(p->o->model, "tokenizer.json"), *template = chat_template_of(p);
    if (!file_exists(path)) {
        gguf_add_string(h, "tokenizer.ggml.model", "none");
        export_note(p, "the model has no tokenizer.json; llama.cpp will take token ids only");
    } else {
        struct tokenizer *t = tokenizer_load(p->o->model, e);
        if (t) add_vocabulary(p, t, h, e);
        tokenizer_free(t);
        if (template) gguf_add_string(h, "tokenizer.chat_template", template);
        if (template && !p->m->model->config.default_template) add_named_templates(p, h);
    }
    free(path), free(template);
    return e->code;
}

/* --- the vision part and the adapter ----------------------------------------------------------------------------- */

static enum status add_vision(const struct export_plan *p, struct gguf_head *h, struct err *e) {
    const struct model_config *c = &p->m->model->config;
    const struct vision_config *v = &c->vision;
    const int32_t used = (int32_t)v->used_layers; // else llama.cpp would leave out the last of those that are there
    struct processor pictures;
    if (processor_load(&pictures, p->o->model, e) != ST_OK) return e->code;
    gguf_add_bool(h, "clip.has_vision_encoder", true);
    gguf_add_bool(h, "clip.has_llava_projector", true);
    gguf_add_string(h, "clip.projector_type", "mlp");
    gguf_add_bool(h, "clip.use_gelu", v->act == ACT_GELU || v->act == ACT_GELU_TANH);
    gguf_add_bool(h, "clip.use_silu", v->act == ACT_SILU);
    add_count(p, h, "vision.image_size", v->image_size);
    add_count(p, h, "vision.patch_size", v->patch);
    add_count(p, h, "vision.embedding_length", v->dim);
    add_count(p, h, "vision.feed_forward_length", v->ffn);
    add_count(p, h, "vision.block_count", v->used_layers);
    add_count(p, h, "vision.attention.head_count", v->heads);
    add_count(p, h, "vision.projection_dim", c->text.dim);
    add_number(p, h, "vision.attention.layer_norm_epsilon", (double)v->eps);
    gguf_add_array(h, "clip.vision.feature_layer", GGUF_I32, &used, 1);
    gguf_add_array(h, "clip.vision.image_mean", GGUF_F32, pictures.mean, 3);
    gguf_add_array(h, "clip.vision.image_std", GGUF_F32, pictures.std, 3);
    return ST_OK;
}

enum status export_head(struct export_plan *p, struct gguf_head *h, struct err *e) {
    static const char *const types[] = {
        [EXPORT_MODEL] = "model", [EXPORT_VISION] = "mmproj", [EXPORT_ADAPTER] = "adapter"};
    add_general(p, h, types[p->o->part]);
    if (p->o->part == EXPORT_VISION) return add_vision(p, h, e);
    if (p->o->part == EXPORT_MODEL) {
        add_network(p, h);
        return add_tokenizer(p, h, e);
    }
    gguf_add_string(h, "adapter.type", "lora");
    gguf_add_f32(h, "adapter.lora.alpha", export_adapter_alpha(p));
    return ST_OK;
}

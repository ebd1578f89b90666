#include "model/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

/* What a class of transformers assumes when config.json says nothing. */
struct defaults {
    const char *model_type;
    int64_t vocab, dim, ffn, layers, heads, kv_heads, max_positions, window;
    double eps;
    bool qkv_bias;
};

static const struct defaults text_defaults[] = {
    {"llama", 32000, 4096, 11008, 32, 32, 0, 2048, 0, 1e-6, false},
    {"mistral", 32000, 4096, 14336, 32, 32, 8, 131072, 4096, 1e-6, false},
    {"qwen2", 151936, 4096, 22016, 32, 32, 32, 32768, 4096, 1e-6, true},
};

static const struct defaults *find_defaults(const char *model_type) {
    for (size_t i = 0; i < sizeof text_defaults / sizeof *text_defaults; i++)
        if (strcmp(text_defaults[i].model_type, model_type) == 0) return &text_defaults[i];
    return NULL;
}

/* One object of config.json with the place to name in an error; the first failure is kept in e. */
struct section {
    const cJSON *o;
    const char *where;
    struct err *e;
};

static int64_t whole(const struct section *s, const char *key, int64_t fallback) {
    int64_t v;
    json_int(s->o, s->where, key, fallback, &v, s->e);
    return v;
}

static int64_t count(const struct section *s, const char *key, int64_t fallback) {
    int64_t v = whole(s, key, fallback);
    if (v < 1 || v > (1 << 28)) err_set(s->e, ST_FAIL, "%s: %s is %lld, wanted 1 or more", s->where, key, (long long)v);
    return v;
}

enum { MOST_LAYERS = 4096 }; // each takes memory before its weights are looked for

static int64_t layer_count(const struct section *s, const char *key, int64_t fallback) {
    int64_t v = count(s, key, fallback);
    if (v > MOST_LAYERS)
        err_set(s->e, ST_FAIL, "%s: %s is %lld, at most %d are possible", s->where, key, (long long)v, MOST_LAYERS);
    return v;
}

static double number(const struct section *s, const char *key, double fallback) {
    double v;
    json_num(s->o, s->where, key, fallback, &v, s->e);
    return v;
}

static bool flag(const struct section *s, const char *key, bool fallback) {
    bool v;
    json_bool(s->o, s->where, key, fallback, &v, s->e);
    return v;
}

static const char *word(const struct section *s, const char *key, const char *fallback) {
    const char *v;
    json_str(s->o, s->where, key, fallback, &v, s->e);
    return v;
}

static enum activation read_act(const struct section *s, const char *key, const char *fallback) {
    static const struct {
        const char *name;
        enum activation act;
    } known[] = {
        {"silu", ACT_SILU},          {"swish", ACT_SILU},
        {"gelu", ACT_GELU},          {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"gelu_new", ACT_GELU_TANH}, {"quick_gelu", ACT_QUICK_GELU},
        {"relu2", ACT_RELU2},
    };
    const char *name = word(s, key, fallback);
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) return known[i].act;
    err_set(s->e, ST_FAIL, "%s: %s is \"%s\", which graft does not compute", s->where, key, name ? name : "");
    return ACT_SILU;
}

/* Where both spellings are there, transformers takes the older one. */
static void read_rope(struct rope_config *r, const struct section *text, double theta, int64_t max_positions) {
    const cJSON *five = json_get(text->o, "rope_parameters"), *four = json_get(text->o, "rope_scaling");
    struct section s = {four && four->child ? four : five, text->where, text->e};
    r->theta = number(text, "rope_theta", theta);
    if (!s.o) return;
    r->theta = number(&s, "rope_theta", r->theta);
    const char *kind = word(&s, "rope_type", NULL);
    if (!kind) kind = word(&s, "type", "default");
    r->factor = number(&s, "factor", 1.0);
    if (strcmp(kind, "default") == 0) {
        r->kind = ROPE_PLAIN;
    } else if (strcmp(kind, "linear") == 0) {
        r->kind = ROPE_LINEAR;
    } else if (strcmp(kind, "llama3") == 0) {
        r->kind = ROPE_LLAMA3;
        r->low_freq_factor = number(&s, "low_freq_factor", 1.0);
        r->high_freq_factor = number(&s, "high_freq_factor", 4.0);
        r->original_positions = count(&s, "original_max_position_embeddings", max_positions);
        r->original_positions = count(text, "original_max_position_embeddings", r->original_positions);
    } else {
        err_set(s.e, ST_FAIL, "%s: rope type \"%s\" is not supported (default, linear and llama3 are)", s.where, kind);
    }
    if (!(r->factor > 0) || !(r->theta > 0))
        err_set(s.e, ST_FAIL, "%s: rope factor and theta must be positive", s.where);
}

/* 5.x lists the kind of every layer; graft takes a list that is full first and sliding after, as qwen2 means it. */
static void read_layer_types(struct text_config *t, const struct section *s) {
    const cJSON *types = json_get(s->o, "layer_types");
    if (!types) return;
    int64_t at = 0, first = t->layers;
    for (const cJSON *v = types->child; v; v = v->next, at++) {
        bool sliding = cJSON_IsString(v) && strcmp(v->valuestring, "sliding_attention") == 0;
        bool full = cJSON_IsString(v) && strcmp(v->valuestring, "full_attention") == 0;
        if (sliding && first == t->layers) first = at;
        if ((!sliding && !full) || (full && first < t->layers))
            err_set(s->e, ST_FAIL, "%s: layer_types[%lld] is not supported here", s->where, (long long)at);
    }
    if (at != t->layers)
        err_set(s->e, ST_FAIL, "%s: layer_types names %lld layers, num_hidden_layers is %lld", s->where, (long long)at,
                (long long)t->layers);
    t->first_window_layer = first;
}

static void read_text(struct text_config *t, const struct section *s, const struct defaults *d, bool tied_default) {
    bool qwen = strcmp(d->model_type, "qwen2") == 0;
    t->vocab = count(s, "vocab_size", d->vocab);
    t->dim = count(s, "hidden_size", d->dim);
    t->ffn = count(s, "intermediate_size", d->ffn);
    t->layers = layer_count(s, "num_hidden_layers", d->layers);
    t->heads = count(s, "num_attention_heads", d->heads);
    bool null_kv = cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(s->o, "num_key_value_heads")); // all of them
    t->kv_heads = count(s, "num_key_value_heads", d->kv_heads && !null_kv ? d->kv_heads : t->heads);
    t->max_positions = count(s, "max_position_embeddings", d->max_positions);
    t->eps = (float)number(s, "rms_norm_eps", d->eps);
    t->act = read_act(s, "hidden_act", "silu");
    t->tied = flag(s, "tie_word_embeddings", tied_default);
    bool attention_bias = flag(s, "attention_bias", d->qkv_bias);
    t->qkv_bias = qwen || attention_bias;
    t->o_bias = !qwen && attention_bias;
    t->mlp_bias = flag(s, "mlp_bias", false);
    if (s->e->code != ST_OK) return;

    if (!json_get(s->o, "head_dim") && t->dim % t->heads != 0)
        err_set(s->e, ST_FAIL, "%s: hidden_size %lld is no multiple of num_attention_heads %lld", s->where,
                (long long)t->dim, (long long)t->heads);
    t->head_dim = count(s, "head_dim", t->dim / t->heads);
    if (t->heads % t->kv_heads != 0 || t->head_dim % 2 != 0 || t->head_dim > 256)
        err_set(s->e, ST_FAIL, "%s: %lld heads, %lld key-value heads of size %lld do not fit together", s->where,
                (long long)t->heads, (long long)t->kv_heads, (long long)t->head_dim);

    const cJSON *said = cJSON_GetObjectItemCaseSensitive(s->o, "sliding_window");
    bool none = said && cJSON_IsNull(said);
    t->window = none || strcmp(d->model_type, "llama") == 0 ? 0 : whole(s, "sliding_window", d->window);
    if (qwen && !flag(s, "use_sliding_window", false)) t->window = 0;
    if (qwen) t->first_window_layer = whole(s, "max_window_layers", 28);
    t->rotary = t->head_dim;
    read_rope(&t->rope, s, 10000.0, t->max_positions);
    if (t->window) read_layer_types(t, s);
}

static const char *wanted_types = "llama, mistral, qwen2, llava (mllava), idefics2 and fuyu (mfuyu)";

/* A kind of tower: what its class of transformers assumes when vision_config says nothing, and how it begins. */
static const struct tower {
    const char *model_type;
    int64_t patch;
    double eps;
    const char *act;
    bool class_token, pre_norm, patch_bias, any_size;
} towers[] = {
    {"siglip_vision_model", 16, 1e-6, "gelu_pytorch_tanh", false, false, true, false},
    {"clip_vision_model", 32, 1e-5, "quick_gelu", true, true, false, false},
    {"idefics2", 32, 1e-6, "gelu_pytorch_tanh", false, false, true, true},
};

static const struct tower *find_tower(const char *model_type) {
    for (size_t i = 0; i < sizeof towers / sizeof *towers; i++)
        if (strcmp(towers[i].model_type, model_type) == 0) return &towers[i];
    return NULL;
}

/* What all towers have. */
static void read_tower(struct vision_config *o, const struct section *v, const struct tower *tower) {
    *o = (struct vision_config){.class_token = tower->class_token,
                                .pre_norm = tower->pre_norm,
                                .patch_bias = tower->patch_bias,
                                .any_size = tower->any_size,
                                .post_norm = tower->any_size};
    o->dim = count(v, "hidden_size", 768);
    o->ffn = count(v, "intermediate_size", 3072);
    o->layers = o->used_layers = layer_count(v, "num_hidden_layers", 12);
    o->heads = count(v, "num_attention_heads", 12);
    o->image_size = count(v, "image_size", 224);
    o->patch = count(v, "patch_size", tower->patch);
    o->eps = (float)number(v, "layer_norm_eps", tower->eps);
    o->act = read_act(v, "hidden_act", tower->act);
    int64_t channels = count(v, "num_channels", 3);
    if (v->e->code != ST_OK) return;
    if (channels != 3)
        err_set(v->e, ST_FAIL, "%s: vision_config: num_channels is %lld, wanted 3", v->where, (long long)channels);
    if (o->dim % o->heads || o->dim / o->heads > 256 || o->image_size < o->patch || o->image_size > 1 << 14)
        err_set(v->e, ST_FAIL, "%s: vision_config: hidden_size, heads, image_size and patch_size do not fit together",
                v->where);
}

static void read_vision(struct model_config *c, const struct section *s) {
    struct section v = {json_get(s->o, "vision_config"), s->where, s->e};
    const char *type = word(&v, "model_type", "clip_vision_model");
    const struct tower *tower = find_tower(type ? type : "");
    struct vision_config *o = &c->vision;
    if (!tower || tower->any_size) {
        err_set(s->e, ST_FAIL,
                "%s: vision tower \"%s\" is not supported; siglip_vision_model and clip_vision_model are", s->where,
                type ? type : "");
        return;
    }
    read_tower(o, &v, tower);
    if (s->e->code != ST_OK) return;

    int64_t layer = whole(s, "vision_feature_layer", -2);
    o->used_layers = layer < 0 ? o->layers + 1 + layer : layer;
    if (o->used_layers < 1 || o->used_layers > o->layers)
        err_set(s->e, ST_FAIL, "%s: vision_feature_layer %lld is outside the tower's %lld layers", s->where,
                (long long)layer, (long long)o->layers);
    const char *strategy = word(s, "vision_feature_select_strategy", "default");
    o->drop_first = strcmp(strategy, "default") == 0;
    if (!o->drop_first && strcmp(strategy, "full") != 0)
        err_set(s->e, ST_FAIL, "%s: vision_feature_select_strategy \"%s\" is unknown", s->where, strategy);
    if (vision_tokens(o) < 1)
        err_set(s->e, ST_FAIL, "%s: vision_feature_select_strategy \"%s\" leaves nothing of a picture of one patch",
                s->where, strategy);
}

int64_t vision_patches(const struct vision_config *v) {
    int64_t side = v->image_size / v->patch;
    return side * side;
}

int64_t vision_rows(const struct vision_config *v) { return vision_patches(v) + (v->class_token ? 1 : 0); }

int64_t vision_tokens(const struct vision_config *v) { return vision_rows(v) - (v->drop_first ? 1 : 0); }

int64_t picture_tokens(const struct model_config *c) {
    if (c->family == FAMILY_TEXT || c->family == FAMILY_MFUYU) return 0;
    return c->family == FAMILY_IDEFICS2 ? c->perceiver.latents : vision_tokens(&c->vision);
}

int64_t picture_features(const struct model_config *c, const struct batch_image *image) {
    if (c->family != FAMILY_MFUYU) return picture_tokens(c);
    return image->height / c->vision.patch * (image->width / c->vision.patch);
}

static void check_image_token(const struct model_config *c, const struct section *s, const char *key) {
    if (c->image_token < 0 || c->image_token >= c->text.vocab)
        err_set(s->e, ST_FAIL, "%s: %s %d is outside the vocabulary of %lld", s->where, key, c->image_token,
                (long long)c->text.vocab);
}

/* Mantis' rule: a language model whose name contains "llama-3" talks the llama_3 template, others mllava_v1. */
static const char *mllava_template(const struct section *text) {
    const char *name = word(text, "_name_or_path", "");
    return strcasestr(name, "llama-3") ? "llama_3" : "mllava_v1";
}

static void read_mllava(struct model_config *c, const struct section *s) {
    struct section text = {json_get(s->o, "text_config"), s->where, s->e};
    const char *type = word(&text, "model_type", "llama");
    const struct defaults *d = find_defaults(type);
    if (!json_get(s->o, "text_config") || !json_get(s->o, "vision_config") || !d) {
        err_set(s->e, ST_FAIL, "%s: a llava model wants text_config (%s) and vision_config", s->where,
                "llama, mistral or qwen2");
        return;
    }
    c->family = FAMILY_MLLAVA;
    read_text(&c->text, &text, d, false);
    read_vision(c, s);
    c->projector_act = read_act(s, "projector_hidden_act", "gelu");
    const char *key = json_get(s->o, "image_token_index") ? "image_token_index" : "image_token_id";
    c->image_token = (int32_t)whole(s, key, 32000);
    c->default_template = mllava_template(&text);
    check_image_token(c, s, key);
}

/* --- idefics2 ---------------------------------------------------------------------------------------------------- */

/* The perceiver's width is the language model's. Its epsilon was the language model's before it had a key of its own;
 * transformers takes that of the language model too where the two widths differ. */
static void read_perceiver(struct model_config *c, const struct section *s) {
    struct section v = {json_get(s->o, "perceiver_config"), s->where, s->e};
    struct perceiver_config *p = &c->perceiver;
    p->latents = count(&v, "resampler_n_latents", 64);
    p->depth = layer_count(&v, "resampler_depth", 3);
    p->heads = count(&v, "resampler_n_heads", 16);
    p->kv_heads = count(&v, "num_key_value_heads", 4);
    p->head_dim = count(&v, "resampler_head_dim", 96);
    p->act = read_act(&v, "hidden_act", "silu");
    p->ffn = 4 * c->text.dim;
    bool own = count(&v, "hidden_size", c->text.dim) == c->text.dim;
    p->eps = own ? (float)number(&v, "rms_norm_eps", (double)c->text.eps) : c->text.eps;
    if (s->e->code == ST_OK && (p->heads % p->kv_heads || p->head_dim > 256))
        err_set(s->e, ST_FAIL,
                "%s: perceiver_config: %lld heads, %lld key-value heads of size %lld do not fit together", s->where,
                (long long)p->heads, (long long)p->kv_heads, (long long)p->head_dim);
}

/* Mistral's class is asked for what text_config leaves out; without any, for what Idefics2's class wants of it. */
static void read_idefics2(struct model_config *c, const struct section *s) {
    static const struct defaults alone = {"mistral", 32000, 4096, 14336, 32, 32, 8, 32768, 4096, 1e-5, false};
    struct section text = {json_get(s->o, "text_config"), s->where, s->e};
    struct section vision = {json_get(s->o, "vision_config"), s->where, s->e};
    const char *type = word(&text, "model_type", "mistral");
    if (!type || strcmp(type, "mistral") != 0) {
        err_set(s->e, ST_FAIL, "%s: the language model of an idefics2 model is \"%s\", wanted mistral", s->where,
                type ? type : "");
        return;
    }
    c->family = FAMILY_IDEFICS2;
    c->pooling = POOL_BEFORE_FIRST_PAD;
    c->default_template = "idefics_2";
    c->default_targets = ".*(text_model|modality_projection|perceiver_resampler).*"
                         "(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$";
    read_text(&c->text, &text, text.o ? find_defaults("mistral") : &alone, false);
    c->text.tied = flag(s, "tie_word_embeddings", false); // the one of text_config is not looked at
    read_tower(&c->vision, &vision, find_tower("idefics2"));
    read_perceiver(c, s);
    c->image_token = (int32_t)whole(s, "image_token_id", 32001);
    check_image_token(c, s, "image_token_id");
}

/* --- mfuyu ------------------------------------------------------------------------------------------------------- */

/* transformers 5 keeps the part of a head that is rotated with the other settings of rope. */
static void read_rotary(struct text_config *t, const struct section *s) {
    struct section five = {json_get(s->o, "rope_parameters"), s->where, s->e};
    double part = number(s, "partial_rotary_factor", 0.5);
    if (five.o) part = number(&five, "partial_rotary_factor", part);
    read_rope(&t->rope, s, 25000.0, t->max_positions);
    t->rotary = part > 0 && part <= 1 ? (int64_t)((double)t->head_dim * part) : 0;
    if (s->e->code == ST_OK && (t->rotary < 2 || t->rotary % 2))
        err_set(s->e, ST_FAIL,
                "%s: partial_rotary_factor %g of heads of %lld is not possible; wanted an even number of at least 2",
                s->where, part, (long long)t->head_dim);
}

static void read_persimmon(struct text_config *t, const struct section *s) {
    t->persimmon = true;
    t->vocab = count(s, "vocab_size", 262144);
    t->dim = count(s, "hidden_size", 4096);
    t->ffn = count(s, "intermediate_size", 16384);
    t->layers = count(s, "num_hidden_layers", 36);
    t->heads = t->kv_heads = count(s, "num_attention_heads", 64);
    t->max_positions = count(s, "max_position_embeddings", 16384);
    t->eps = (float)number(s, "layer_norm_eps", 1e-5);
    t->act = read_act(s, "hidden_act", "relu2");
    t->qkv_bias = t->o_bias = t->mlp_bias = true;
    if (!flag(s, "qk_layernorm", true))
        err_set(s->e, ST_FAIL, "%s: qk_layernorm is false, which graft does not compute", s->where);
    if (s->e->code != ST_OK) return;
    t->head_dim = t->dim / t->heads;
    if (t->dim % t->heads || t->head_dim > 256)
        err_set(s->e, ST_FAIL, "%s: hidden_size %lld and %lld heads do not fit together", s->where, (long long)t->dim,
                (long long)t->heads);
    read_rotary(t, s);
}

/* Without text_config the keys of the language model stand at the top. */
static void read_mfuyu(struct model_config *c, const struct section *s) {
    const cJSON *nested = json_get(s->o, "text_config");
    struct section text = {nested ? nested : s->o, s->where, s->e};
    const char *type = nested ? word(&text, "model_type", "persimmon") : "persimmon";
    if (!type || strcmp(type, "persimmon") != 0) {
        err_set(s->e, ST_FAIL, "%s: the language model of a fuyu model is \"%s\", wanted persimmon", s->where,
                type ? type : "");
        return;
    }
    c->family = FAMILY_MFUYU;
    c->default_template = "mfuyu_v1";
    c->default_targets = "(.*\\.)?(query_key_value|dense|dense_h_to_4h|dense_4h_to_h|lm_head)";
    c->image_token = -1; // the tokenizer's
    read_persimmon(&c->text, &text);
    if (flag(s, "tie_word_embeddings", false))
        err_set(s->e, ST_FAIL, "%s: tie_word_embeddings is true, wanted a fuyu model with a head of its own", s->where);
    int64_t patch = count(s, "patch_size", 30), channels = count(s, "num_channels", 3);
    if (s->e->code == ST_OK && (channels != 3 || patch > 1 << 10))
        err_set(s->e, ST_FAIL, "%s: patches of %lld pixels and %lld channels are not possible; wanted 3 channels",
                s->where, (long long)patch, (long long)channels);
    enum { SIDE = 64 }; // patches of a large picture's side, where none is known
    c->vision =
        (struct vision_config){.dim = 3 * patch * patch, .patch = patch, .image_size = SIDE * patch, .any_size = true};
}

/* --- the head ---------------------------------------------------------------------------------------------------- */

static bool is_classifier(const struct section *s) {
    const cJSON *list = json_get(s->o, "architectures"), *first = cJSON_IsArray(list) ? list->child : NULL;
    return cJSON_IsString(first) && text_ends(first->valuestring, "ForSequenceClassification");
}

/* The name of output i, or NULL. */
static const char *id2label(const cJSON *map, int64_t i) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)i);
    const cJSON *v = json_get(map, key);
    return cJSON_IsString(v) && *v->valuestring ? v->valuestring : NULL;
}

/* Names that somebody gave: all of them there, and not all LABEL_i, which transformers writes where there are none. */
static void read_label_names(struct model_config *c, const cJSON *map) {
    const char **names = mem_alloc((size_t)c->num_labels * sizeof *names);
    bool all = true, given = false;
    for (int64_t i = 0; i < c->num_labels; i++) {
        names[i] = id2label(map, i);
        all = all && names[i];
        given = given || (names[i] && !text_starts(names[i], "LABEL_"));
    }
    if (all && given) c->label_names = names;
    if (!all || !given) free(names);
}

/* Mantis' Idefics2 looks for the pad token at the top only. */
static void read_head(struct model_config *c, const struct section *s) {
    const cJSON *map = json_get(s->o, "id2label"), *text = json_get(s->o, "text_config");
    bool top = json_get(s->o, "pad_token_id") || !text || c->family == FAMILY_IDEFICS2;
    struct section pad = {top ? s->o : text, s->where, s->e};
    c->pad_token = (int32_t)whole(&pad, "pad_token_id", -1);
    if (!is_classifier(s)) return;
    const char *name = word(s, "problem_type", NULL);
    int64_t named = cJSON_IsObject(map) ? cJSON_GetArraySize(map) : 2; // transformers' default
    c->num_labels = count(s, "num_labels", named > 0 ? named : 2);
    c->problem = c->num_labels == 1 ? PROBLEM_REGRESSION : PROBLEM_UNSAID;
    if (name && (!problem_find(&c->problem, name) || c->problem == PROBLEM_GENERATION))
        err_set(s->e, ST_FAIL,
                "%s: problem_type \"%s\" is unknown; wanted regression, single_label_classification or "
                "multi_label_classification",
                s->where, name);
    if (c->num_labels > MOST_LABELS)
        err_set(s->e, ST_FAIL, "%s: %lld labels, at most %d are possible", s->where, (long long)c->num_labels,
                MOST_LABELS);
    if (s->e->code != ST_OK) return;
    read_label_names(c, map);
    c->text.tied = false; // there is no output embedding
}

static void add_eos(struct model_config *c, const cJSON *v) {
    int room = (int)(sizeof c->eos / sizeof *c->eos);
    if (cJSON_IsArray(v))
        for (const cJSON *item = v->child; item; item = item->next) add_eos(c, item);
    else if (json_is_integer(v) && v->valuedouble >= 0 && v->valuedouble < 1 << 28 && c->eos_count < room)
        c->eos[c->eos_count++] = (int32_t)v->valuedouble;
}

/* generation_config.json says where answers end, when it is there; else config.json. */
static void read_eos(struct model_config *c, const char *dir) {
    char *path = path_join(dir, "generation_config.json");
    struct err quiet = {0};
    cJSON *generation = file_exists(path) ? json_read(path, &quiet) : NULL;
    const cJSON *text = json_get(c->json, "text_config");
    add_eos(c, json_get(generation, "eos_token_id"));
    if (c->eos_count == 0) add_eos(c, json_get(c->json, "eos_token_id"));
    if (c->eos_count == 0) add_eos(c, json_get(text, "eos_token_id"));
    cJSON_Delete(generation);
    free(path);
}

static enum dtype read_dtype(const struct section *s) {
    const char *name = word(s, json_get(s->o, "dtype") ? "dtype" : "torch_dtype", "float32");
    if (strcmp(name, "bfloat16") == 0) return BF16;
    return strcmp(name, "float16") == 0 ? F16 : F32;
}

enum status model_config_read(struct model_config *c, const char *dir, struct err *e) {
    *c = (struct model_config){0};
    if (!dir_exists(dir))
        return err_set(e, ST_FAIL, "%s: no such model folder; wanted a Hugging Face folder with config.json", dir);
    c->path = path_join(dir, "config.json");
    c->json = json_read(c->path, e);
    if (!c->json) return e->code;
    struct section s = {c->json, c->path, e};
    c->model_type = word(&s, "model_type", "");
    c->dtype = read_dtype(&s);
    c->quantization_config = json_get(c->json, "quantization_config");
    const struct defaults *d = find_defaults(c->model_type ? c->model_type : "");
    if (e->code != ST_OK) return e->code;
    if (d)
        read_text(&c->text, &s, d, false);
    else if (strcmp(c->model_type, "llava") == 0)
        read_mllava(c, &s);
    else if (strcmp(c->model_type, "idefics2") == 0)
        read_idefics2(c, &s);
    else if (strcmp(c->model_type, "fuyu") == 0)
        read_mfuyu(c, &s);
    else
        err_set(e, ST_FAIL, "%s: model_type \"%s\" is not supported; graft knows %s", c->path, c->model_type,
                wanted_types);
    if (e->code == ST_OK) read_head(c, &s);
    read_eos(c, dir);
    return e->code;
}

void model_config_free(struct model_config *c) {
    cJSON_Delete(c->json);
    free((void *)c->label_names);
    free(c->path);
    *c = (struct model_config){0};
}

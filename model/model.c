#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"

/* --- names ------------------------------------------------------------------------------------------------------- */

/* The prefix under which a tensor is found, of the layouts that transformers has written over time. */
static const char *prefix_of(const struct weights *w, const char *const *prefixes, const char *name) {
    for (; *prefixes; prefixes++) {
        char *full = mem_format("%s.%s", *prefixes, name);
        bool there = weights_has(w, full);
        free(full);
        if (there) return *prefixes;
    }
    return NULL;
}

static void find_prefixes(struct model *m) {
    static const char *const plain[] = {"model", NULL};
    static const char *const language[] = {"language_model.model", "model.language_model", NULL};
    static const char *const tower[] = {"vision_tower.vision_model", "model.vision_tower.vision_model", "vision_tower",
                                        "model.vision_tower", NULL};
    static const char *const projector[] = {"multi_modal_projector", "model.multi_modal_projector", NULL};
    static const char *const patches[] = {"vision_embed_tokens", "model.vision_embed_tokens", NULL};
    bool mfuyu = m->config.family == FAMILY_MFUYU;
    bool mllava = m->config.family == FAMILY_MLLAVA;
    if (m->config.family == FAMILY_IDEFICS2) {
        m->text_prefix = "model.text_model", m->vision_prefix = "model.vision_model";
        m->projector_prefix = "model.connector";
        return;
    }
    const char *const *prefixes = mllava || mfuyu ? language : plain;
    const char *text = prefix_of(&m->weights, prefixes, "embed_tokens.weight");
    m->text_prefix = text ? text : prefixes[0];
    if (mfuyu) {
        const char *patch = prefix_of(&m->weights, patches, "bias");
        m->vision_prefix = patch ? patch : patches[0];
    }
    if (!mllava) return;
    const char *vision = prefix_of(&m->weights, tower, "embeddings.position_embedding.weight");
    const char *project = prefix_of(&m->weights, projector, "linear_1.bias");
    m->vision_prefix = vision ? vision : tower[0];
    m->projector_prefix = project ? project : projector[0];
}

static const char *head_path(const struct model *m) {
    if (m->config.problem != PROBLEM_GENERATION) return "score";
    return strcmp(m->text_prefix, "language_model.model") == 0 ? "language_model.lm_head" : "lm_head";
}

/* --- loading ----------------------------------------------------------------------------------------------------- */

static void load_linear(struct model *m, struct linear *l, int64_t layer, const char *name, int64_t O, int64_t I,
                        bool bias) {
    char *path = mem_format("%s.layers.%lld.%s", m->text_prefix, (long long)layer, name);
    weights_linear(&m->weights, l, path, O, I, bias);
    free(path);
}

static void load_norm(struct model *m, struct tensor *g, struct tensor *b, int64_t layer, const char *name, int64_t n) {
    char *path = mem_format("%s.layers.%lld.%s", m->text_prefix, (long long)layer, name);
    weights_norm(&m->weights, g, b, path, n);
    free(path);
}

static void load_persimmon(struct model *m, int64_t i) {
    const struct text_config *c = &m->config.text;
    struct block *b = &m->blocks[i];
    int64_t C = c->dim, F = c->ffn, D = c->head_dim;
    load_norm(m, &b->norm1, &b->bias1, i, "input_layernorm", C);
    load_linear(m, &b->qkv, i, "self_attn.query_key_value", 3 * C, C, true);
    load_norm(m, &b->q_norm, &b->q_bias, i, "self_attn.q_layernorm", D);
    load_norm(m, &b->k_norm, &b->k_bias, i, "self_attn.k_layernorm", D);
    load_linear(m, &b->o, i, "self_attn.dense", C, C, true);
    load_norm(m, &b->norm2, &b->bias2, i, "post_attention_layernorm", C);
    load_linear(m, &b->up, i, "mlp.dense_h_to_4h", F, C, true);
    load_linear(m, &b->down, i, "mlp.dense_4h_to_h", C, F, true);
}

static void load_block(struct model *m, int64_t i) {
    const struct text_config *c = &m->config.text;
    struct block *b = &m->blocks[i];
    int64_t C = c->dim, F = c->ffn, Q = c->heads * c->head_dim, KV = c->kv_heads * c->head_dim;
    b->window = i >= c->first_window_layer ? c->window : 0;
    if (c->persimmon) {
        load_persimmon(m, i);
        return;
    }
    load_norm(m, &b->norm1, NULL, i, "input_layernorm", C);
    load_linear(m, &b->q, i, "self_attn.q_proj", Q, C, c->qkv_bias);
    load_linear(m, &b->k, i, "self_attn.k_proj", KV, C, c->qkv_bias);
    load_linear(m, &b->v, i, "self_attn.v_proj", KV, C, c->qkv_bias);
    load_linear(m, &b->o, i, "self_attn.o_proj", C, Q, c->o_bias);
    load_norm(m, &b->norm2, NULL, i, "post_attention_layernorm", C);
    load_linear(m, &b->gate, i, "mlp.gate_proj", F, C, c->mlp_bias);
    load_linear(m, &b->up, i, "mlp.up_proj", F, C, c->mlp_bias);
    load_linear(m, &b->down, i, "mlp.down_proj", C, F, c->mlp_bias);
}

/* A base without the head that is asked for gets a new one, as transformers makes it: normal with deviation 0.02,
 * bias 0. Text models have none, so that their class in transformers takes the head. */
static void load_score(struct model *m) {
    struct weights *w = &m->weights;
    int64_t n = m->config.num_labels, C = m->config.text.dim;
    if (!m->new_head) {
        weights_linear(w, &m->head, head_path(m), n, C, weights_has(w, "score.bias"));
        return;
    }
    weights_ignore_prefix(w, "lm_head.");
    weights_ignore_prefix(w, "language_model.lm_head.");
    if (!m->head.path) m->head.path = mem_text(head_path(m));
    m->head.W = arena_tensor2(w->arena, F32, n, C);
    if (m->head_bias) m->head.b = arena_tensor1(w->arena, F32, n);
    if (!w->placing) return;
    float *values = mem_alloc((size_t)(n * C) * sizeof *values);
    for (int64_t i = 0; i < n * C; i++)
        values[i] = (float)(0.02 * rng_normal(m->head_seed, rng_stream("score"), (uint64_t)i));
    backend_upload(m->be, &m->head.W, values);
    if (m->head_bias) op_zero(m->be, &m->head.b);
    free(values);
}

static void load_head(struct model *m) {
    const struct text_config *c = &m->config.text;
    if (m->config.problem != PROBLEM_GENERATION) {
        load_score(m);
        return;
    }
    if (!c->tied) {
        weights_linear(&m->weights, &m->head, head_path(m), c->vocab, c->dim, false);
        return;
    }
    if (!m->head.path) m->head.path = mem_text(head_path(m));
    m->head.W = m->embed;
    weights_ignore_prefix(&m->weights, "lm_head.weight"); // some files hold the tied copy too
}

static void load_projector(struct model *m) {
    struct weights *w = &m->weights;
    const struct text_config *c = &m->config.text;
    char *one = mem_format("%s.linear_1", m->projector_prefix), *two = mem_format("%s.linear_2", m->projector_prefix);
    char *head = mem_format("%s.head.", m->vision_prefix), *post = mem_format("%s.post_layernorm.", m->vision_prefix);
    weights_linear(w, &m->project1, one, c->dim, m->config.vision.dim, true);
    weights_linear(w, &m->project2, two, c->dim, c->dim, true);
    weights_ignore_prefix(w, head); // the pooling head and the final norm come after the layer whose output is used
    weights_ignore_prefix(w, post);
    free(one), free(two), free(head), free(post);
}

static void load_pictures(struct model *m) {
    const struct vision_config *v = &m->config.vision;
    if (m->config.family == FAMILY_MFUYU) {
        weights_linear(&m->weights, &m->patch_embed, m->vision_prefix, m->config.text.dim, v->dim, true);
        return;
    }
    vit_load(&m->vit, &m->weights, &m->config.vision, m->vision_prefix);
    if (m->config.family == FAMILY_IDEFICS2)
        connector_load(&m->connector, &m->weights, &m->config, m->projector_prefix);
    else
        load_projector(m);
    weights_ignore_suffix(&m->weights, ".embeddings.position_ids");
}

/* The caller frees it. */
static char *final_norm_path(const struct model *m) {
    return mem_format("%s.%s", m->text_prefix, m->config.text.persimmon ? "final_layernorm" : "norm");
}

static void load_all(struct model *m) {
    struct weights *w = &m->weights;
    const struct text_config *c = &m->config.text;
    char *embed = mem_format("%s.embed_tokens.weight", m->text_prefix), *norm = final_norm_path(m);
    if (c->tied)
        weights_matrix(w, &m->embed, embed, c->vocab, c->dim); // the head reads all of it
    else
        weights_table(w, &m->embed, embed, c->vocab, c->dim);
    for (int64_t i = 0; i < c->layers; i++) load_block(m, i);
    weights_norm(w, &m->norm, c->persimmon ? &m->norm_bias : NULL, norm, c->dim);
    load_head(m);
    free(embed), free(norm);
    weights_ignore_suffix(w, ".rotary_emb.inv_freq"); // computed, not learned
    if (m->config.family != FAMILY_TEXT) load_pictures(m);
}

/* --- registers of what is there ---------------------------------------------------------------------------------- */

static void add_param(struct model *m, char *name, struct tensor *value, struct tensor *grad) {
    if (!value->data) {
        free(name);
        return;
    }
    m->params = mem_resize(m->params, (size_t)(m->param_count + 1) * sizeof *m->params);
    m->params[m->param_count++] = (struct param){name, value, grad};
}

static void add_linear(struct linear *l, void *arg) {
    struct model *m = arg;
    m->linears = mem_resize(m->linears, (size_t)(m->linear_count + 1) * sizeof *m->linears);
    m->linears[m->linear_count++] = l;
    add_param(m, mem_format("%s.weight", l->path), &l->W, &l->gW);
    add_param(m, mem_format("%s.bias", l->path), &l->b, &l->gb);
}

/* A norm of a layer; what it does not have is left out. */
static void add_norm(struct model *m, int64_t layer, const char *name, struct tensor *g, struct tensor *gg,
                     struct tensor *b, struct tensor *gb) {
    add_param(m, mem_format("%s.layers.%lld.%s.weight", m->text_prefix, (long long)layer, name), g, gg);
    add_param(m, mem_format("%s.layers.%lld.%s.bias", m->text_prefix, (long long)layer, name), b, gb);
}

static void register_text(struct model *m) {
    char *norm = final_norm_path(m);
    add_param(m, mem_format("%s.embed_tokens.weight", m->text_prefix), &m->embed, &m->gembed);
    for (int64_t i = 0; i < m->config.text.layers; i++) {
        struct block *b = &m->blocks[i];
        add_norm(m, i, "input_layernorm", &b->norm1, &b->gnorm1, &b->bias1, &b->gbias1);
        block_linears(b, add_linear, m);
        add_norm(m, i, "self_attn.q_layernorm", &b->q_norm, &b->gq_norm, &b->q_bias, &b->gq_bias);
        add_norm(m, i, "self_attn.k_layernorm", &b->k_norm, &b->gk_norm, &b->k_bias, &b->gk_bias);
        add_norm(m, i, "post_attention_layernorm", &b->norm2, &b->gnorm2, &b->bias2, &b->gbias2);
    }
    add_param(m, mem_format("%s.weight", norm), &m->norm, &m->gnorm);
    add_param(m, mem_format("%s.bias", norm), &m->norm_bias, &m->gnorm_bias);
    free(norm);
    if (!m->config.text.tied) {
        add_linear(&m->head, m);
    } else { // a linear layer, but its weight is the embedding's
        m->linears = mem_resize(m->linears, (size_t)(m->linear_count + 1) * sizeof *m->linears);
        m->linears[m->linear_count++] = &m->head;
    }
}

static void register_vision(struct model *m) {
    const char *v = m->vision_prefix;
    struct vit *t = &m->vit;
    add_param(m, mem_format("%s.embeddings.patch_embedding.weight", v), &t->patch.W, &t->patch.gW);
    add_param(m, mem_format("%s.embeddings.patch_embedding.bias", v), &t->patch.b, &t->patch.gb);
    add_param(m, mem_format("%s.embeddings.class_embedding", v), &t->class_token, &t->gclass_token);
    add_param(m, mem_format("%s.embeddings.position_embedding.weight", v), &t->positions, &t->gpositions);
    add_param(m, mem_format("%s.pre_layrnorm.weight", v), &t->norm, &t->gnorm);
    add_param(m, mem_format("%s.pre_layrnorm.bias", v), &t->bias, &t->gbias);
    for (int64_t i = 0; i < t->layers; i++) {
        struct vit_block *b = &t->blocks[i];
        long long n = i;
        add_param(m, mem_format("%s.encoder.layers.%lld.layer_norm1.weight", v, n), &b->norm1, &b->gnorm1);
        add_param(m, mem_format("%s.encoder.layers.%lld.layer_norm1.bias", v, n), &b->bias1, &b->gbias1);
        add_param(m, mem_format("%s.encoder.layers.%lld.layer_norm2.weight", v, n), &b->norm2, &b->gnorm2);
        add_param(m, mem_format("%s.encoder.layers.%lld.layer_norm2.bias", v, n), &b->bias2, &b->gbias2);
    }
    add_param(m, mem_format("%s.post_layernorm.weight", v), &t->post_norm, &t->gpost_norm);
    add_param(m, mem_format("%s.post_layernorm.bias", v), &t->post_bias, &t->gpost_bias);
    vit_linears(t, add_linear, m);
}

/* Layers behind the one whose output is used take no gradient, so that nothing (weight decay) moves them either, nor
 * the adapters on them. */
static void leave_unused_layers(struct model *m) {
    for (int64_t i = m->config.vision.used_layers; i < m->vit.layers; i++) {
        char *layer = mem_format("%s.encoder.layers.%lld.", m->vision_prefix, (long long)i);
        for (int64_t k = 0; k < m->param_count; k++)
            if (text_starts(m->params[k].name, layer)) m->params[k].grad = NULL;
        for (int64_t k = 0; k < m->linear_count; k++)
            if (text_starts(m->linears[k]->path, layer)) m->linears[k]->unused = true;
        free(layer);
    }
}

static bool lies_in(const char *name, const char *module) {
    size_t n = module ? strlen(module) : 0;
    return n && strncmp(name, module, n) == 0 && (name[n] == 0 || name[n] == '.');
}

bool model_is_of_pictures(const struct model *m, const char *name) {
    return lies_in(name, m->vision_prefix) || lies_in(name, m->projector_prefix);
}

static void register_connector(struct model *m) {
    struct connector *c = &m->connector;
    char *perceiver = mem_format("%s.perceiver_resampler", m->projector_prefix);
    add_param(m, mem_format("%s.latents", perceiver), &c->latents, &c->glatents);
    for (int64_t i = 0; i < c->depth; i++) {
        struct perceiver_layer *l = &c->layers[i];
        long long n = i;
        add_param(m, mem_format("%s.layers.%lld.input_latents_norm.weight", perceiver, n), &l->latents_norm,
                  &l->glatents_norm);
        add_param(m, mem_format("%s.layers.%lld.input_context_norm.weight", perceiver, n), &l->context_norm,
                  &l->gcontext_norm);
        add_param(m, mem_format("%s.layers.%lld.post_attention_layernorm.weight", perceiver, n), &l->norm, &l->gnorm);
    }
    add_param(m, mem_format("%s.norm.weight", perceiver), &c->norm, &c->gnorm);
    connector_linears(c, add_linear, m);
    free(perceiver);
}

static void register_pictures(struct model *m) {
    if (m->config.family == FAMILY_MFUYU) {
        add_linear(&m->patch_embed, m);
        return;
    }
    register_vision(m);
    leave_unused_layers(m);
    if (m->config.family == FAMILY_IDEFICS2) {
        register_connector(m);
        return;
    }
    add_linear(&m->project1, m);
    add_linear(&m->project2, m);
}

/* --- the model --------------------------------------------------------------------------------------------------- */

/* Modules that stay in their own type when a checkpoint is quantised while loading: transformers' rule, and for mllava
 * the list that Mantis passes instead. */
static void set_kept(struct quantize_on_load *q, const struct model_config *c) {
    static const char *const head[] = {"lm_head", "score"}, *const tower[] = {"vision_tower", "score"};
    q->keep = c->family == FAMILY_MLLAVA ? tower : head;
    q->keep_count = 2;
}

/* The head that the caller asks for, against the one that the model has. */
static enum status choose_head(struct model *m, const struct load_options *o, struct err *e) {
    struct model_config *c = &m->config;
    bool has = c->problem != PROBLEM_GENERATION;
    if (o->head.problem == PROBLEM_GENERATION) return ST_OK;
    if (has && o->head.num_labels && o->head.num_labels != c->num_labels)
        return err_set(e, ST_FAIL, "%s: the model's head has %lld outputs, wanted %lld", c->path,
                       (long long)c->num_labels, (long long)o->head.num_labels);
    if (!has && o->head.num_labels < 1)
        return err_set(e, ST_FAIL,
                       "%s: the model has no classification head, and how many outputs a new one has is not said; "
                       "set num_labels",
                       c->path);
    if (!has) {
        m->new_head = true, m->head_seed = o->head.seed, m->head_bias = o->head.bias;
        c->num_labels = o->head.num_labels;
        c->text.tied = false;
    }
    if (!has || o->head.problem != PROBLEM_UNSAID) c->problem = o->head.problem;
    return ST_OK;
}

static enum status place(struct model *m, struct err *e) {
    struct arena count = {0}, host_count = {0};
    m->weights.arena = &count, m->weights.host = &host_count;
    load_all(m);
    if (e->code != ST_OK) return e->code;
    m->memory_bytes = count.peak, m->host_bytes = host_count.peak;
    m->memory = backend_alloc(m->be, count.peak);
    if (m->memory && m->host_bytes) m->host_memory = backend_host_alloc(m->be, m->host_bytes);
    if (m->be->err.code != ST_OK) return err_set(e, m->be->err.code, "%s", m->be->err.text);
    struct arena real = arena_over(m->memory, count.peak), host = arena_over(m->host_memory, m->host_bytes);
    m->weights.arena = &real, m->weights.host = &host;
    m->weights.placing = true;
    load_all(m);
    m->weights.arena = m->weights.host = NULL;
    return weights_finish(&m->weights);
}

/* Of the ways to store fewer bits, 4-bit bitsandbytes is read. */
static enum status check_quantised(const struct model_config *c, struct err *e) {
    const cJSON *q = c->quantization_config;
    const char *method;
    if (!q || json_str(q, c->path, "quant_method", "bitsandbytes", &method, e) != ST_OK) return e->code;
    bool eight = cJSON_IsTrue(json_get(q, "load_in_8bit"));
    if (strcmp(method, "bitsandbytes") == 0 && !eight) return ST_OK;
    return err_set(e, ST_FAIL,
                   "%s: the model is quantised by %.80s%s; wanted a model that is not, or one in bitsandbytes' 4 bits",
                   c->path, method, eight ? " in 8 bits" : "");
}

enum status model_load(struct model **out, const char *dir, struct backend *be, const struct load_options *o,
                       struct err *e) {
    struct model *m = *out = mem_alloc(sizeof *m);
    struct quantize_on_load q = o->quantize;
    m->be = be;
    if (model_config_read(&m->config, dir, e) != ST_OK || check_quantised(&m->config, e) != ST_OK) goto failed;
    if (q.type != F32 && m->config.quantization_config) {
        err_set(e, ST_FAIL, "%s: the model is quantised already; leave out `quantization`", dir);
        goto failed;
    }
    if (choose_head(m, o, e) != ST_OK) goto failed;
    set_kept(&q, &m->config);
    m->blocks = mem_alloc((size_t)m->config.text.layers * sizeof *m->blocks);
    if (weights_open(&m->weights, dir, be, &q, e) != ST_OK) goto failed;
    find_prefixes(m);
    if (place(m, e) != ST_OK) goto failed;
    register_text(m);
    if (m->config.family != FAMILY_TEXT) register_pictures(m);
    return ST_OK;
failed:
    model_free(m);
    *out = NULL;
    return e->code;
}

static void free_path(struct linear *l, void *arg) {
    (void)arg;
    free((char *)l->path);
}

void model_free(struct model *m) {
    if (!m) return;
    for (int64_t i = 0; m->blocks && i < m->config.text.layers; i++) block_linears(&m->blocks[i], free_path, NULL);
    for (int64_t i = 0; i < m->param_count; i++) free((char *)m->params[i].name);
    if (m->config.family != FAMILY_TEXT) vit_free(&m->vit);
    connector_free(&m->connector);
    free((char *)m->head.path), free((char *)m->project1.path), free((char *)m->project2.path);
    free((char *)m->patch_embed.path);
    free(m->blocks), free(m->linears), free(m->params);
    weights_close(&m->weights);
    backend_release(m->be, m->memory);
    if (m->host_memory) backend_host_release(m->be, m->host_memory);
    model_config_free(&m->config);
    free(m);
}

int64_t model_param_total(const struct model *m) {
    int64_t n = 0;
    for (int64_t i = 0; i < m->param_count; i++) n += tensor_count(m->params[i].value);
    return n;
}

size_t model_weight_bytes(const struct model *m) {
    size_t n = 0;
    for (int64_t i = 0; i < m->param_count; i++) {
        const struct tensor *t = m->params[i].value;
        n += tensor_bytes(t);
        if (!t->q4) continue;
        int64_t blocks = (tensor_count(t) + t->q4->blocksize - 1) / t->q4->blocksize;
        n += (size_t)blocks * (t->q4->absmax ? 4 : 1);
    }
    return n;
}

uint64_t model_fingerprint(const struct model *m) {
    char *config = json_text(m->config.json, true);
    uint64_t h = weights_fingerprint(hash_text(HASH_START, config), &m->weights.files);
    free(config);
    return h;
}

struct param *model_param(const struct model *m, const char *name) {
    for (int64_t i = 0; i < m->param_count; i++)
        if (strcmp(m->params[i].name, name) == 0) return &m->params[i];
    return NULL;
}

struct linear *model_linear(const struct model *m, const char *path) {
    for (int64_t i = 0; i < m->linear_count; i++)
        if (strcmp(m->linears[i]->path, path) == 0) return m->linears[i];
    return NULL;
}

bool model_is_output(const struct model *m, const struct linear *l) { return l == &m->head; }

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/floats.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "lora/export_parts.h"

struct renaming {
    const char *from, *to;
};

/* Within a layer of the language model. */
static const struct renaming text_names[] = {
    {"input_layernorm.", "attn_norm."},    {"self_attn.q_proj.", "attn_q."},
    {"self_attn.k_proj.", "attn_k."},      {"self_attn.v_proj.", "attn_v."},
    {"self_attn.o_proj.", "attn_output."}, {"post_attention_layernorm.", "ffn_norm."},
    {"mlp.gate_proj.", "ffn_gate."},       {"mlp.up_proj.", "ffn_up."},
    {"mlp.down_proj.", "ffn_down."},       {NULL, NULL},
};

/* Within a block of the vision tower. */
static const struct renaming vision_names[] = {
    {"layer_norm1.", "ln1."},         {"layer_norm2.", "ln2."},         {"self_attn.q_proj.", "attn_q."},
    {"self_attn.k_proj.", "attn_k."}, {"self_attn.v_proj.", "attn_v."}, {"self_attn.out_proj.", "attn_out."},
    {"mlp.fc1.", "ffn_up."},          {"mlp.fc2.", "ffn_down."},        {NULL, NULL},
};

/* Around the blocks. What has no name of its own does nothing for the features that are used. */
static const struct renaming tower_names[] = {
    {"embeddings.class_embedding", "v.class_embd"},
    {"embeddings.patch_embedding.weight", "v.patch_embd.weight"},
    {"embeddings.patch_embedding.bias", "v.patch_embd.bias"},
    {"embeddings.position_embedding.weight", "v.position_embd.weight"},
    {"pre_layrnorm.weight", "v.pre_ln.weight"},
    {"pre_layrnorm.bias", "v.pre_ln.bias"},
    {NULL, NULL},
};

static const struct renaming projector_names[] = {
    {"linear_1.weight", "mm.0.weight"},
    {"linear_1.bias", "mm.0.bias"},
    {"linear_2.weight", "mm.2.weight"},
    {"linear_2.bias", "mm.2.bias"},
    {NULL, NULL},
};

static const char *renamed(const struct renaming *names, const char *name) {
    for (; names->from; names++)
        if (strcmp(names->from, name) == 0) return names->to;
    return NULL;
}

/* What follows PREFIX. in a name, or NULL. */
static const char *below(const char *name, const char *prefix) {
    size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 && name[n] == '.' ? name + n + 1 : NULL;
}

/* "LAYERS.3.rest" as "PRE.blk.3.new"; NULL when it is no tensor of a layer. The caller frees it. */
static char *layer_name(const char *name, const char *layers, const struct renaming *names, const char *pre,
                        int64_t *layer) {
    const char *number = below(name, layers);
    char *end;
    if (!number || *number < '0' || *number > '9') return NULL;
    *layer = strtoll(number, &end, 10);
    for (; *end == '.' && names->from; names++)
        if (text_starts(end + 1, names->from))
            return mem_format("%sblk.%lld.%s%s", pre, (long long)*layer, names->to, end + 1 + strlen(names->from));
    return NULL;
}

/* Its name in llama.cpp; NULL: it is no part of the language model there. */
static char *text_name(const struct model *m, const char *name) {
    int64_t layer;
    const char *rest = below(name, m->text_prefix), *head = below(name, m->head.path);
    if (head && strcmp(head, "weight") == 0) return mem_text("output.weight");
    if (!rest) return NULL;
    if (strcmp(rest, "embed_tokens.weight") == 0) return mem_text("token_embd.weight");
    if (strcmp(rest, "norm.weight") == 0) return mem_text("output_norm.weight");
    return layer_name(rest, "layers", text_names, "", &layer);
}

static char *vision_name(const struct model *m, const char *name) {
    int64_t layer;
    const char *rest = below(name, m->vision_prefix), *project = below(name, m->projector_prefix);
    const char *found = rest ? renamed(tower_names, rest) : project ? renamed(projector_names, project) : NULL;
    if (found) return mem_text(found);
    char *new = rest ? layer_name(rest, "encoder.layers", vision_names, "v.", &layer) : NULL;
    if (!new || layer < m->config.vision.used_layers) return new;
    free(new);
    return NULL;
}

static const char *text_type(const struct model *m) {
    const cJSON *text = json_get(m->config.json, "text_config"), *type = json_get(text, "model_type");
    if (!text) return m->config.model_type;
    if (cJSON_IsString(type)) return type->valuestring;
    return m->config.family == FAMILY_IDEFICS2 ? "mistral" : "llama";
}

const char *export_architecture(const struct model *m, struct err *e) {
    const char *type = text_type(m), *dir = m->weights.dir;
    const struct text_config *c = &m->config.text;
    const char *arch = strcmp(type, "qwen2") == 0                                   ? "qwen2"
                       : strcmp(type, "llama") == 0 || strcmp(type, "mistral") == 0 ? "llama"
                                                                                    : NULL;
    const char *why = NULL;
    if (!arch)
        err_set(e, ST_FAIL, "%s: llama.cpp does not run a language model of type %s; keep the Hugging Face folder", dir,
                type);
    else if (c->act != ACT_SILU)
        why = "has SiLU between its layers, this model another function";
    else if (strcmp(arch, "qwen2") == 0 && c->heads * c->head_dim != c->dim)
        why = "wants heads that together are as wide as the model, and these are not";
    else if (strcmp(arch, "qwen2") == 0 && (c->o_bias || c->mlp_bias))
        why = "has no biases but those of q, k and v";
    if (why) err_set(e, ST_FAIL, "%s: llama.cpp's %s %s; keep the Hugging Face folder", dir, arch, why);
    return e->code == ST_OK ? arch : NULL;
}

/* --- types ------------------------------------------------------------------------------------------------------- */

/* The first that rows of I numbers are whole blocks of. */
static enum ggml_type type_for_rows(enum ggml_type wanted, int64_t I) {
    const enum ggml_type smaller[] = {wanted, GGML_Q8_0, GGML_F16};
    for (int i = 0; i < 2; i++)
        if (ggml_block(wanted) > 1 && I % ggml_block(smaller[i]) == 0) return smaller[i];
    return ggml_block(wanted) > 1 ? GGML_F16 : wanted;
}

/* The output layer decides every token, and a tied embedding is the output layer: 4 bits are too few for it. */
static bool is_output(const struct export_plan *p, const char *name) {
    bool tied = p->m->model->config.text.tied && !p->m->counts.untied;
    return strcmp(name, "output.weight") == 0 || (tied && strcmp(name, "token_embd.weight") == 0);
}

static enum ggml_type type_of(const struct export_plan *p, const char *name, int rank, int64_t I) {
    enum ggml_type wanted = p->o->type;
    bool four_bit = wanted == GGML_Q4_0 || wanted == GGML_Q4_K;
    if (rank == 1 || strcmp(name, "v.position_embd.weight") == 0) return GGML_F32;
    if (strcmp(name, "v.patch_embd.weight") == 0) return wanted == GGML_F16 ? GGML_F16 : GGML_F32;
    return type_for_rows(four_bit && is_output(p, name) ? GGML_Q8_0 : wanted, I);
}

/* --- the parts --------------------------------------------------------------------------------------------------- */

static struct export_item *add_item(struct export_plan *p, char *name, const int64_t *dim, int rank) {
    p->items = mem_resize(p->items, (p->count + 1) * sizeof *p->items);
    struct export_item *item = &p->items[p->count++];
    *item = (struct export_item){.out = {.name = name, .rank = rank}, .factor = 1};
    for (int i = 0; i < GGUF_MAX_RANK; i++) item->out.dim[i] = i < rank ? dim[rank - 1 - i] : 1;
    item->O = rank > 1 ? dim[0] : 1, item->I = 1;
    for (int i = rank > 1; i < rank; i++) item->I *= dim[i];
    item->out.type = type_of(p, name, rank, item->out.dim[0]);
    item->out.bytes = gguf_tensor_bytes(item->out.type, item->out.dim, rank);
    item->is_other = rank > 1 && item->out.type != p->o->type;
    return item;
}

/* Numbers of a head whose halves become pairs. */
static int64_t turn_of(const struct export_plan *p, const char *name) {
    if (strcmp(p->arch, "llama") != 0) return 0;
    return strstr(name, ".attn_q.") || strstr(name, ".attn_k.") ? p->m->model->config.text.head_dim : 0;
}

static enum status add_merged(struct export_plan *p, const struct merge_item *from, char *name, struct err *e) {
    const struct st_entry *t = &from->out;
    if (strlen(name) >= 64 || t->rank < 1 || t->rank > GGUF_MAX_RANK || !entry_is_float(t) || t->bytes == 0) {
        err_set(e, ST_FAIL, "%s: %s cannot be a tensor of a GGUF file", from->from->file, t->name);
        free(name);
        return e->code;
    }
    struct export_item *item = add_item(p, name, t->dim, t->rank);
    item->item = from;
    item->turn = p->o->part == EXPORT_MODEL ? turn_of(p, name) : 0;
    return ST_OK;
}

/* factors (D/2) by which llama.cpp divides the frequencies: Llama 3.1's stretching. */
static void add_frequencies(struct export_plan *p) {
    const struct rope_config *r = &p->m->model->config.text.rope;
    int64_t D = p->m->model->config.text.head_dim, half = D / 2;
    float *table = mem_alloc((size_t)half * sizeof *table);
    const double positions = (double)r->original_positions, pi = 3.14159265358979323846;
    for (int64_t j = 0; j < half; j++) {
        double wave = 2 * pi * pow(r->theta, 2 * (double)j / (double)D);
        double turns = positions / wave, range = r->high_freq_factor - r->low_freq_factor;
        double smooth = (turns - r->low_freq_factor) / range;
        double factor = 1 / ((1 - smooth) / r->factor + smooth);
        table[j] = (float)(turns > r->high_freq_factor ? 1 : turns < r->low_freq_factor ? r->factor : factor);
    }
    struct export_item *item = add_item(p, mem_text("rope_freqs.weight"), &half, 1);
    item->source = FROM_TABLE, item->table = table;
}

enum status export_plan_model(struct export_plan *p, struct err *e) {
    const struct model *m = p->m->model;
    const struct text_config *c = &m->config.text;
    bool tied = c->tied && !p->m->counts.untied;
    for (size_t i = 0; i < p->m->count && e->code == ST_OK; i++) {
        char *name = text_name(m, p->m->items[i].out.name);
        if (name && tied && strcmp(name, "output.weight") == 0) free(name), name = NULL;
        if (name) add_merged(p, &p->m->items[i], name, e);
    }
    if (e->code != ST_OK) return e->code;
    if (c->rope.kind == ROPE_LLAMA3) add_frequencies(p);
    if (c->window && c->window < c->max_positions) {
        char *note =
            mem_format("llama.cpp lets every position of this model see all before it, graft only %lld of them; "
                       "texts beyond that length differ",
                       (long long)c->window);
        export_note(p, note);
        free(note);
    }
    return ST_OK;
}

/* What llama.cpp's LLaVA does in one way only. */
static enum status check_vision(const struct export_plan *p, struct err *e) {
    const struct model *m = p->m->model;
    const struct vision_config *v = &m->config.vision;
    const char *dir = m->weights.dir, *why = NULL;
    if (m->config.family == FAMILY_TEXT)
        return err_set(e, ST_FAIL, "%s: the model takes no pictures, so it has no vision part", dir);
    if (m->config.family == FAMILY_MFUYU)
        return err_set(e, ST_FAIL, "%s: llama.cpp does not run Fuyu; keep the Hugging Face folder", dir);
    if (m->config.family != FAMILY_MLLAVA)
        return err_set(e, ST_FAIL,
                       "%s: llama.cpp has no perceiver, which this model's pictures go through; its language "
                       "model can be exported (--part model), pictures need the Hugging Face folder",
                       dir);
    if (v->class_token && !v->drop_first)
        why = "gives the class token to the language model";
    else if (v->act == ACT_RELU2)
        why = "has another function between its layers";
    else if (v->ffn == v->dim)
        why = "has feed-forward layers as wide as its features, which llama.cpp takes for swapped ones";
    if (why)
        err_set(e, ST_FAIL,
                "%s: its vision tower %s, and llama.cpp's does not; keep the Hugging Face folder for "
                "pictures",
                dir, why);
    return e->code;
}

enum status export_plan_vision(struct export_plan *p, struct err *e) {
    const struct model *m = p->m->model;
    if (check_vision(p, e) != ST_OK) return e->code;
    for (size_t i = 0; i < p->m->count && e->code == ST_OK; i++) {
        char *name = vision_name(m, p->m->items[i].out.name);
        if (name) add_merged(p, &p->m->items[i], name, e);
    }
    if (m->config.vision.drop_first && !m->config.vision.class_token)
        export_note(p, "llama.cpp gives the language model the first patch of each picture too, which this model was "
                       "trained without");
    if (m->config.vision.class_token)
        export_note(p, "llama.cpp may put the class token behind the patches, which moves each patch by one place");
    if (m->config.vision.act == ACT_GELU || m->config.projector_act == ACT_GELU)
        export_note(p, "llama.cpp computes GELU by its tanh formula, graft by the error function; they differ by up to "
                       "0.0005");
    return e->code;
}

/* --- an adapter alone -------------------------------------------------------------------------------------------- */

double export_adapter_alpha(const struct export_plan *p) {
    double alpha = 0;
    struct err quiet = {0};
    const struct merge_source *s = &p->m->sources[0];
    json_num(s->config, s->where, "lora_alpha", 8, &alpha, &quiet);
    return isfinite(alpha) && alpha != 0 ? alpha : 1; // 0 means "no alpha" to the runtime
}

/* PEFT stores the weight of an adapted output layer too; the base's own numbers are no change. */
static bool is_own(const struct merge_item *item, const struct st_entry *t) {
    enum { PIECE = 256 };
    float mine[PIECE], stored[PIECE];
    bool same = !item->four_bit;
    for (int64_t at = 0, n = item->O * item->I; at < n && same; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        floats_read(mine, item->from->data, floats_type(item->from), at, count);
        floats_read(stored, t->data, floats_type(t), at, count);
        for (int64_t i = 0; i < count; i++) same = same && mine[i] == stored[i];
    }
    return same;
}

/* Why a change cannot be in a GGUF adapter; NULL: it can. */
static const char *refusal(const struct export_plan *p, const struct merge_item *item, const struct change *c,
                           const char *name) {
    if (c->m) return "DoRA's magnitudes";
    if (c->bias) return "biases of low-rank layers";
    if (c->whole && !(c->A && is_own(item, c->whole))) return "tensors that were trained whole";
    if (!name) return "layers outside the language model";
    bool tied = p->m->model->config.text.tied;
    if (tied && strcmp(name, "output.weight") == 0) return "an output layer that is also the embedding";
    return item->O == 0 ? "this" : NULL;
}

static enum status add_pair(struct export_plan *p, const struct merge_item *item, const struct change *c,
                            const char *name, struct err *e) {
    const char *why = refusal(p, item, c, name), *dir = p->m->sources[0].dir;
    if (why)
        return err_set(
            e, ST_FAIL,
            "%s: changes %s, and a GGUF adapter has no place for %s; export the merged model instead (--part "
            "model)",
            dir, item->out.name, why);
    int64_t r = c->A->dim[0];
    struct export_item *a = add_item(p, mem_format("%s.lora_a", name), c->A->dim, 2);
    a->source = FROM_ENTRY, a->entry = c->A;
    struct export_item *b = add_item(p, mem_format("%s.lora_b", name), c->B->dim, 2);
    b->source = FROM_ENTRY, b->entry = c->B;
    b->factor = c->scale * (double)r / export_adapter_alpha(p);
    b->turn = turn_of(p, name);
    return ST_OK;
}

enum status export_plan_adapter(struct export_plan *p, struct err *e) {
    const struct merge *m = p->m;
    if (m->o.adapter_count != 1 || m->o.adapters[0].weight != 1)
        return err_set(e, ST_USAGE, "--part adapter takes one --adapter without a weight");
    for (size_t i = 0; i < m->count && e->code == ST_OK; i++) {
        const struct merge_item *item = &m->items[i];
        const struct change *c = &item->changes[0];
        if (!item->changed) continue;
        char *name = text_name(m->model, item->out.name);
        add_pair(p, item, c, name, e);
        free(name);
    }
    return e->code;
}

/* graft inspect: what is in a model folder, an adapter folder or a GGUF file, from the headers of its files. */
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/inspect_adapter.h"
#include "cli/inspect_gguf.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/parts.h"
#include "cli/verbs.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/config.h"

struct view {
    const char *dir;
    struct model_config config;
    struct err refused; // why graft cannot run the model, if it cannot
    struct st_set set;
    struct parts parts;
    int64_t tokens;   // of the tokenizer; 0: there is none
    const char *chat; // how a conversation is written down; NULL: not known
};

static void look_at_tokenizer(struct view *v) {
    struct err quiet = {0};
    struct tokenizer *t = tokenizer_load(v->dir, &quiet);
    if (t) v->tokens = tokenizer_size(t);
    tokenizer_free(t);
    if (v->config.default_template)
        v->chat = v->config.default_template;
    else if (chat_template_exists(v->dir))
        v->chat = "the tokenizer's own";
}

static bool has_weights(const char *dir) {
    char *one = path_join(dir, "model.safetensors"), *many = path_join(dir, "model.safetensors.index.json");
    bool there = file_exists(one) || file_exists(many);
    free(one);
    free(many);
    return there;
}

static enum status look(struct view *v, struct err *e) {
    model_config_read(&v->config, v->dir, &v->refused);
    if (!v->config.json) return err_set(e, v->refused.code, "%s", v->refused.text);
    look_at_tokenizer(v);
    if (!has_weights(v->dir)) return ST_OK;
    if (st_open_dir(&v->set, v->dir, "model", e) != ST_OK) return e->code;
    return parts_count(&v->parts, &v->set, e);
}

/* ---------------------------------------------------------------- as text */

/* "BF16", or "nf4 and BF16" when a part is stored in several types. */
static void type_text(struct text *t, const struct parts *p, int kind) {
    for (int type = PART_TYPES - 1; type >= 0; type--)
        if (p->type_count[kind][type]) text_addf(t, "%s%s", t->len ? " and " : "", part_type_name(type));
}

static void show_parts(const struct parts *p) {
    char parameters[OUT_NUMBER], bytes[OUT_NUMBER];
    out_text("\n  %-14s %8s %12s %10s   type\n", "part", "tensors", "parameters", "bytes");
    for (int k = 0; k < PART_KINDS; k++) {
        const struct part_count *c = &p->part[k];
        if (!c->tensors) continue;
        struct text types = {0};
        type_text(&types, p, k);
        out_text("  %-14s %8lld %12s %10s   %s\n", part_name(k), (long long)c->tensors,
                 out_count_text(parameters, c->parameters), out_bytes_text(bytes, c->bytes), text_str(&types));
        text_free(&types);
    }
    out_text("  %-14s %8lld %12s %10s\n", "all", (long long)p->total.tensors,
             out_count_text(parameters, p->total.parameters), out_bytes_text(bytes, p->total.bytes));
    if (p->quantised)
        out_text("\n  4-bit: %lld weights, blocks of %d%s; %lld tensors are as they were\n", (long long)p->quantised,
                 p->blocksize, p->double_quant ? ", scales in 8 bits too" : "", (long long)p->kept);
}

static void show_text_config(const struct text_config *c) {
    out_text("  language   %lld layers of %lld, feed-forward %lld, %lld heads of %lld (%lld for keys and values)\n",
             (long long)c->layers, (long long)c->dim, (long long)c->ffn, (long long)c->heads, (long long)c->head_dim,
             (long long)c->kv_heads);
    out_text("  context    %lld positions, rope theta %g", (long long)c->max_positions, c->rope.theta);
    if (c->rope.kind == ROPE_LINEAR) out_text(", stretched %g times", c->rope.factor);
    if (c->rope.kind == ROPE_LLAMA3)
        out_text(", llama3 scaling %g times from %lld", c->rope.factor, (long long)c->rope.original_positions);
    if (c->window) out_text(", window of %lld", (long long)c->window);
    out_text("\n  vocabulary %lld%s\n", (long long)c->vocab, c->tied ? ", the head is the embedding" : "");
}

static void show_vision_config(const struct model_config *c) {
    const struct vision_config *v = &c->vision;
    if (c->family == FAMILY_MFUYU) {
        out_text("  vision     patches of %lld by themselves, pictures of any size: a position each\n",
                 (long long)v->patch);
        return;
    }
    if (c->family == FAMILY_IDEFICS2) {
        out_text("  vision     %lld layers of %lld, pictures of any size in patches of %lld: %lld positions each\n",
                 (long long)v->layers, (long long)v->dim, (long long)v->patch, (long long)picture_tokens(c));
        out_text("  perceiver  %lld layers, %lld heads of %lld (%lld for keys and values)\n",
                 (long long)c->perceiver.depth, (long long)c->perceiver.heads, (long long)c->perceiver.head_dim,
                 (long long)c->perceiver.kv_heads);
        return;
    }
    out_text("  vision     %lld layers of %lld (%lld are used), pictures of %lld x %lld in patches of %lld: %lld "
             "positions\n",
             (long long)v->layers, (long long)v->dim, (long long)v->used_layers, (long long)v->image_size,
             (long long)v->image_size, (long long)v->patch, (long long)vision_tokens(v));
}

static void show(const struct view *v) {
    const struct model_config *c = &v->config;
    const cJSON *class = cJSON_GetArrayItem(json_get(c->json, "architectures"), 0);
    out_text("%s: %s%s%s\n", v->dir, c->model_type ? c->model_type : "?", cJSON_IsString(class) ? ", " : "",
             cJSON_IsString(class) ? class->valuestring : "");
    if (v->refused.code == ST_OK) {
        show_text_config(&c->text);
        if (c->family != FAMILY_TEXT) show_vision_config(c);
    } else {
        out_text("  not run by graft: %s\n", v->refused.text);
    }
    if (v->tokens)
        out_text("  tokenizer  %lld tokens, chat template: %s\n", (long long)v->tokens, v->chat ? v->chat : "none");
    if (v->set.count)
        show_parts(&v->parts);
    else
        out_text("  the folder holds no weights\n");
}

/* ---------------------------------------------------------------- as JSON */

static cJSON *part_json(const struct parts *p, const struct part_count *c, int kind) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "tensors", (double)c->tensors);
    cJSON_AddNumberToObject(o, "parameters", (double)c->parameters);
    cJSON_AddNumberToObject(o, "bytes", (double)c->bytes);
    cJSON *types = cJSON_AddObjectToObject(o, "parameters_by_type");
    for (int type = 0; type < PART_TYPES; type++) {
        int64_t n = 0;
        for (int k = 0; k < PART_KINDS; k++) n += kind < 0 || k == kind ? p->type_count[k][type] : 0;
        if (n) cJSON_AddNumberToObject(types, part_type_name(type), (double)n);
    }
    return o;
}

static void show_json(const struct view *v) {
    const struct parts *p = &v->parts;
    cJSON *o = cJSON_CreateObject(), *parts;
    cJSON_AddStringToObject(o, "kind", "model");
    cJSON_AddStringToObject(o, "model_type", v->config.model_type ? v->config.model_type : "");
    cJSON_AddBoolToObject(o, "supported", v->refused.code == ST_OK);
    if (v->refused.code != ST_OK) cJSON_AddStringToObject(o, "reason", v->refused.text);
    if (v->tokens) cJSON_AddNumberToObject(o, "tokens", (double)v->tokens);
    if (v->chat) cJSON_AddStringToObject(o, "chat_template", v->chat);
    if (v->set.count) {
        parts = cJSON_AddObjectToObject(o, "parts");
        for (int k = 0; k < PART_KINDS; k++)
            if (p->part[k].tensors) cJSON_AddItemToObject(parts, part_name(k), part_json(p, &p->part[k], k));
        cJSON_AddItemToObject(o, "all", part_json(p, &p->total, -1));
    }
    if (p->quantised) {
        cJSON *q = cJSON_AddObjectToObject(o, "quantised");
        cJSON_AddNumberToObject(q, "weights", (double)p->quantised);
        cJSON_AddNumberToObject(q, "blocksize", p->blocksize);
        cJSON_AddBoolToObject(q, "double_quant", p->double_quant);
    }
    cJSON_AddItemToObject(o, "config", cJSON_Duplicate(v->config.json, true));
    out_json(o);
    cJSON_Delete(o);
}

/* ---------------------------------------------------------------- the command */

static enum status inspect_model(const struct flags *f, const char *dir, struct err *e) {
    struct view v = {.dir = dir};
    if (look(&v, e) == ST_OK) {
        if (flag_bool(f, "json"))
            show_json(&v);
        else
            show(&v);
    }
    st_close(&v.set);
    model_config_free(&v.config);
    return e->code;
}

static const struct flag inspect_flags[] = {
    {"base", FLAG_TEXT, NULL, NULL, "the model of an adapter: updates are shown relative to its weights"},
};

static int run_inspect(const struct flags *f, struct err *e) {
    if (file_exists(f->words[0])) return inspect_gguf(f, f->words[0], e);
    char *dir = dir_exists(f->words[0]) ? mem_text(f->words[0]) : model_dir(f->words[0], e);
    if (!dir) return e->code;
    char *config = path_join(dir, "adapter_config.json");
    if (file_exists(config))
        inspect_adapter(f, dir, e);
    else
        inspect_model(f, dir, e);
    free(config);
    free(dir);
    return e->code;
}

const struct verb verb_inspect = {
    .name = "inspect",
    .arguments = "MODEL|ADAPTER|FILE.gguf",
    .about = "what is in a model or an adapter: parts, types, what is quantised or touched",
    .flags = inspect_flags,
    .flag_count = sizeof inspect_flags / sizeof *inspect_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_inspect,
};

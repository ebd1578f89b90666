#include "quant/modules.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/regex.h"
#include "base/text.h"

/* Two-dimensional weights that are tables, not linear layers. */
static const char *const embeddings[] = {
    "embed_tokens", "position_embedding",    "position_embeddings", "embed_positions", "word_embeddings", "wte",
    "wpe",          "token_type_embeddings", "token_embedding",     "tok_embeddings",  "embed_in",        "shared",
};

/* The attention pooling of SigLIP holds an output projection that is part of a larger module, not a layer of its
 * own. */
static const char pooling_projection[] = ".head.attention.out_proj";

struct choice {
    const struct st_set *s;
    bool llava, tied;
    char **module; // (s->count) path of a linear layer, or NULL
    bool *kept;    // (s->count) without being asked
    bool *skipped; // (s->count) because the user asked
};

static const char *leaf_of(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* The path of the linear layer that t is the weight of, or NULL; the caller frees it. */
static char *linear_path(const struct st_entry *t) {
    bool number = t->type == ST_F32 || t->type == ST_BF16 || t->type == ST_F16;
    if (t->rank != 2 || !number || t->bytes == 0 || !text_ends(t->name, ".weight")) return NULL;
    char *path = mem_text_n(t->name, strlen(t->name) - strlen(".weight"));
    bool linear = !text_ends(path, pooling_projection);
    for (size_t i = 0; i < sizeof embeddings / sizeof embeddings[0]; i++)
        if (strcmp(leaf_of(path), embeddings[i]) == 0) linear = false;
    if (linear) return path;
    free(path);
    return NULL;
}

static bool is_kept(const struct choice *c, const char *path) {
    const char *leaf = leaf_of(path);
    if (strcmp(leaf, "score") == 0) return true;
    if (c->llava && (text_starts(path, "vision_tower.") || strstr(path, ".vision_tower."))) return true;
    return strcmp(leaf, "lm_head") == 0 && (!c->llava || c->tied);
}

bool modules_match(const struct regex *r, const char *path) {
    char *copy = mem_text(path), *end = copy + strlen(copy);
    bool found = false;
    for (char *first = copy; first && !found; first = strchr(first, '.')) {
        if (*first == '.') first++;
        for (char *last = first; last <= end && !found; last++) {
            char c = *last;
            if (c != '.' && c != 0) continue;
            *last = 0;
            found = last > first && regex_full(r, first);
            *last = c;
        }
    }
    free(copy);
    return found;
}

static enum status mark_skipped(struct choice *c, const char *skip, struct err *e) {
    struct regex *r = regex_new(skip, "--skip", e);
    if (!r) return e->code;
    bool found = false;
    for (size_t i = 0; i < c->s->count; i++) {
        if (!c->module[i] || !modules_match(r, c->module[i])) continue;
        found = true;
        c->skipped[i] = !c->kept[i];
    }
    regex_free(r);
    if (found) return ST_OK;
    return err_set(e, ST_USAGE,
                   "--skip %.200s: matches no linear layer of the model; write it for whole parts of a "
                   "path such as model.layers.0.mlp.down_proj",
                   skip);
}

static void add_name(cJSON *list, const char *name) {
    const cJSON *v;
    cJSON_ArrayForEach(v, list) if (strcmp(v->valuestring, name) == 0) return;
    cJSON_AddItemToArray(list, cJSON_CreateString(name));
}

/* transformers 5 skips a module whose path ends in a listed name, transformers 4 one whose last component is listed. So
 * a last component alone will do where every layer that would match it is skipped; it survives renaming, too. */
static bool leaf_suffices(const struct choice *c, const char *leaf) {
    for (size_t i = 0; i < c->s->count; i++)
        if (c->module[i] && !c->skipped[i] && !c->kept[i] && text_ends(c->module[i], leaf)) return false;
    return true;
}

/* language_model.model.X of older checkpoints is model.language_model.X to newer code. */
static void add_path(cJSON *list, const char *path) {
    static const char older[] = "language_model.model.";
    add_name(list, path);
    if (!text_starts(path, older)) return;
    char *newer = mem_format("language_model.%s", path + strlen(older));
    add_name(list, newer);
    free(newer);
}

static cJSON *list_of(const struct choice *c, bool asked) {
    if (!asked && !c->llava) return cJSON_CreateNull();
    cJSON *list = cJSON_CreateArray();
    if (c->llava) {
        add_name(list, "vision_tower");
        add_name(list, "model.vision_tower"); // its path in newer code, which does not look for it inside a path
    }
    if (!c->llava || c->tied) add_name(list, "lm_head");
    for (size_t i = 0; i < c->s->count; i++)
        if (c->module[i] && strcmp(leaf_of(c->module[i]), "score") == 0) add_name(list, "score");
    for (size_t i = 0; i < c->s->count; i++) {
        if (!c->skipped[i]) continue;
        const char *leaf = leaf_of(c->module[i]);
        if (leaf_suffices(c, leaf))
            add_name(list, leaf);
        else
            add_path(list, c->module[i]);
    }
    return list;
}

enum status modules_choose(bool *quantise, cJSON **skip_modules, const struct st_set *s, const cJSON *config,
                           const char *skip, struct err *e) {
    const cJSON *type = json_get(config, "model_type"), *text = json_get(config, "text_config");
    const cJSON *tied = json_get(config, "tie_word_embeddings");
    if (!tied && cJSON_IsObject(text)) tied = json_get(text, "tie_word_embeddings");
    struct choice c = {.s = s, .tied = cJSON_IsTrue(tied)};
    c.llava =
        cJSON_IsString(type) && (strcmp(type->valuestring, "llava") == 0 || strcmp(type->valuestring, "mllava") == 0);
    c.module = mem_alloc(s->count * sizeof *c.module);
    c.kept = mem_alloc(s->count), c.skipped = mem_alloc(s->count);
    for (size_t i = 0; i < s->count; i++) {
        c.module[i] = linear_path(&s->entries[i]);
        c.kept[i] = c.module[i] && is_kept(&c, c.module[i]);
    }
    *skip_modules = NULL;
    if (!skip || mark_skipped(&c, skip, e) == ST_OK) *skip_modules = list_of(&c, skip != NULL);
    for (size_t i = 0; i < s->count; i++) {
        quantise[i] = c.module[i] && !c.kept[i] && !c.skipped[i];
        free(c.module[i]);
    }
    free(c.module), free(c.kept), free(c.skipped);
    return e->code;
}

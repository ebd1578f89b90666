#include "lora/targets.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/regex.h"

struct expressions {
    struct regex **list; // (count)
    size_t count;
};

/* rank_pattern or alpha_pattern; values are those of the object, in its order. */
struct pattern {
    struct expressions keys;
    const cJSON *object;
};

struct targets {
    const cJSON *modules, *exclude;  // a list or a string
    const cJSON *layers;             // a number or a list; NULL: all
    struct regex *module, *excluded; // where the above are strings
    struct expressions save_taken;   // one for each entry of modules_to_save: it and what lies below
    struct expressions layers_pattern;
    const cJSON *save;
    struct pattern ranks, alphas;
    int64_t rank;
    double alpha;
};

/* --- reading ----------------------------------------------------------------------------------------------------- */

static void add_expression(struct expressions *x, const char *before, const char *middle, const char *after,
                           const char *where, struct err *e) {
    char *pattern = mem_format("%s%s%s", before, middle, after);
    x->list = mem_resize(x->list, (x->count + 1) * sizeof(struct regex *));
    x->list[x->count++] = regex_new(pattern, where, e);
    free(pattern);
}

static void free_expressions(struct expressions *x) {
    for (size_t i = 0; i < x->count; i++) regex_free(x->list[i]);
    free(x->list);
}

/* A list of strings, or where string is true also one string; NULL when absent. */
static const cJSON *get_names(const cJSON *config, const char *where, const char *key, bool string, struct err *e) {
    const cJSON *v = json_get(config, key), *item;
    if (!v || (string && cJSON_IsString(v))) return v;
    bool good = cJSON_IsArray(v);
    if (good) cJSON_ArrayForEach(item, v) good = good && cJSON_IsString(item) && item->valuestring[0];
    if (!good)
        err_set(e, ST_FAIL, "%s: %s is not what was wanted, a list of names%s", where, key,
                string ? " or one regular expression" : "");
    return v;
}

static void read_pattern(struct pattern *p, const cJSON *config, const char *where, const char *key, bool whole,
                         struct err *e) {
    const cJSON *item;
    p->object = json_get(config, key);
    if (!p->object) return;
    if (!cJSON_IsObject(p->object)) {
        err_set(e, ST_FAIL, "%s: %s is not what was wanted, an object of regular expressions and numbers", where, key);
        return;
    }
    char *name = mem_format("%s: %s", where, key);
    cJSON_ArrayForEach(item, p->object) {
        if (whole && !(json_is_integer(item) && item->valuedouble >= 1 && item->valuedouble <= LORA_MAX_RANK))
            err_set(e, ST_FAIL, "%s: \"%s\" has no whole number from 1 to %d", name, item->string, LORA_MAX_RANK);
        else if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
            err_set(e, ST_FAIL, "%s: \"%s\" has no number", name, item->string);
        add_expression(&p->keys, "(.*\\.)?(", item->string, ")$", name, e);
    }
    free(name);
}

static void read_layers(struct targets *t, const cJSON *config, const char *where, struct err *e) {
    const cJSON *v = json_get(config, "layers_to_transform"), *item;
    const cJSON *pattern = get_names(config, where, "layers_pattern", true, e);
    bool good = !v || json_is_integer(v) || cJSON_IsArray(v);
    if (v && cJSON_IsArray(v)) cJSON_ArrayForEach(item, v) good = good && json_is_integer(item);
    if (!good) err_set(e, ST_FAIL, "%s: layers_to_transform is not what was wanted, a number or a list of them", where);
    if (!v || (cJSON_IsArray(v) && !v->child) || e->code != ST_OK) return;
    if (t->module) {
        err_set(e, ST_FAIL,
                "%s: layers_to_transform goes with target_modules as a list; in a regular expression the layers belong "
                "into it",
                where);
        return;
    }
    t->layers = v;
    char *name = mem_format("%s: layers_pattern", where);
    if (pattern && cJSON_IsString(pattern) && pattern->valuestring[0])
        add_expression(&t->layers_pattern, "(?:^|.*?\\.)", pattern->valuestring, "\\.\\d+\\.", name, e);
    if (pattern && cJSON_IsArray(pattern))
        cJSON_ArrayForEach(item, pattern)
            add_expression(&t->layers_pattern, "(?:^|.*?\\.)", item->valuestring, "\\.\\d+\\.", name, e);
    free(name);
}

static void read_modules(struct targets *t, const cJSON *config, const char *where, struct err *e) {
    const cJSON *item;
    char *name = mem_format("%s: target_modules", where), *excluded = mem_format("%s: exclude_modules", where);
    char *save = mem_format("%s: modules_to_save", where);
    t->modules = get_names(config, where, "target_modules", true, e);
    t->exclude = get_names(config, where, "exclude_modules", true, e);
    t->save = get_names(config, where, "modules_to_save", false, e);
    if (e->code == ST_OK && t->modules && cJSON_IsString(t->modules))
        t->module = regex_new(t->modules->valuestring, name, e);
    if (e->code == ST_OK && t->exclude && cJSON_IsString(t->exclude) && t->exclude->valuestring[0])
        t->excluded = regex_new(t->exclude->valuestring, excluded, e);
    if (e->code == ST_OK && t->save)
        cJSON_ArrayForEach(item, t->save)
            add_expression(&t->save_taken, "(^|.*\\.)", item->valuestring, "($|\\..*)", save, e);
    free(name), free(excluded), free(save);
}

enum status targets_new(struct targets **out, const cJSON *config, const char *where, struct err *e) {
    struct targets *t = *out = mem_alloc(sizeof *t);
    if (json_int(config, where, "r", 8, &t->rank, e) == ST_OK && (t->rank < 1 || t->rank > LORA_MAX_RANK))
        err_set(e, ST_FAIL, "%s: r is %lld, wanted 1 to %d", where, (long long)t->rank, LORA_MAX_RANK);
    if (json_num(config, where, "lora_alpha", 8, &t->alpha, e) == ST_OK && !isfinite(t->alpha))
        err_set(e, ST_FAIL, "%s: lora_alpha is not a number", where);
    if (e->code == ST_OK) read_modules(t, config, where, e);
    if (e->code == ST_OK) read_layers(t, config, where, e);
    if (e->code == ST_OK) read_pattern(&t->ranks, config, where, "rank_pattern", true, e);
    if (e->code == ST_OK) read_pattern(&t->alphas, config, where, "alpha_pattern", false, e);
    if (e->code == ST_OK) return ST_OK;
    targets_free(t);
    *out = NULL;
    return e->code;
}

void targets_free(struct targets *t) {
    if (!t) return;
    regex_free(t->module), regex_free(t->excluded);
    free_expressions(&t->save_taken), free_expressions(&t->layers_pattern);
    free_expressions(&t->ranks.keys), free_expressions(&t->alphas.keys);
    free(t);
}

/* --- matching ---------------------------------------------------------------------------------------------------- */

static bool is_suffix(const char *path, const char *entry) {
    size_t n = strlen(path), k = strlen(entry);
    return n > k && path[n - k - 1] == '.' && strcmp(path + n - k, entry) == 0;
}

static bool list_matches(const cJSON *list, const char *path, bool suffixes) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        if (strcmp(item->valuestring, path) == 0) return true;
        if (suffixes && is_suffix(path, item->valuestring)) return true;
    }
    return false;
}

static bool any_prefix(const struct expressions *x, const char *path) {
    for (size_t i = 0; i < x->count; i++)
        if (regex_prefix(x->list[i], path)) return true;
    return false;
}

static bool is_excluded(const struct targets *t, const char *path) {
    if (t->excluded ? regex_full(t->excluded, path)
                    : t->exclude && cJSON_IsArray(t->exclude) && list_matches(t->exclude, path, true))
        return true;
    return any_prefix(&t->save_taken, path);
}

/* Whether the path up to and with a layer's number and its dot is that of a layer. */
static bool names_layer(const struct expressions *x, const char *path, size_t end, int parts_before) {
    if (x->count == 0) return parts_before >= 2;
    char *start = mem_text_n(path, end);
    bool found = false;
    for (size_t i = 0; i < x->count && !found; i++) found = regex_full(x->list[i], start);
    free(start);
    return found;
}

/* The first number in the path that counts a layer; -1: none. */
static int64_t layer_of(const struct targets *t, const char *path) {
    int parts = 0;
    for (const char *part = path, *dot; (dot = strchr(part, '.')); part = dot + 1, parts++) {
        size_t digits = strspn(part, "0123456789");
        if (digits == 0 || digits > 18 || part + digits != dot) continue;
        if (names_layer(&t->layers_pattern, path, (size_t)(dot + 1 - path), parts)) return strtoll(part, NULL, 10);
    }
    return -1;
}

static bool layer_wanted(const struct targets *t, const char *path) {
    const cJSON *item;
    int64_t layer = layer_of(t, path);
    if (layer < 0) return false;
    if (cJSON_IsNumber(t->layers)) return (double)layer == t->layers->valuedouble;
    cJSON_ArrayForEach(item, t->layers) if ((double)layer == item->valuedouble) return true;
    return false;
}

bool targets_match(const struct targets *t, const char *path) {
    if (!t->modules || is_excluded(t, path)) return false;
    if (t->module) return regex_full(t->module, path);
    if (list_matches(t->modules, path, false)) return true;
    return list_matches(t->modules, path, true) && (!t->layers || layer_wanted(t, path));
}

/* The value of the first key that matches, else NULL. */
static const cJSON *pattern_value(const struct pattern *p, const char *path) {
    const cJSON *item = p->object ? p->object->child : NULL;
    for (size_t i = 0; i < p->keys.count; i++, item = item->next)
        if (regex_prefix(p->keys.list[i], path)) return item;
    return NULL;
}

int64_t targets_rank(const struct targets *t, const char *path) {
    const cJSON *v = pattern_value(&t->ranks, path);
    return v ? (int64_t)v->valuedouble : t->rank;
}

double targets_alpha(const struct targets *t, const char *path) {
    const cJSON *v = pattern_value(&t->alphas, path);
    return v ? v->valuedouble : t->alpha;
}

bool targets_entry_saves(const char *entry, const char *param) {
    size_t k = strlen(entry);
    for (const char *dot = strchr(param, '.'); dot; dot = strchr(dot + 1, '.')) { // each module that holds it
        size_t n = (size_t)(dot - param);
        if (n >= k && memcmp(dot - k, entry, k) == 0) return true;
    }
    return false;
}

bool targets_save(const struct targets *t, const char *param) {
    const cJSON *item;
    if (t->save) cJSON_ArrayForEach(item, t->save) if (targets_entry_saves(item->valuestring, param)) return true;
    return false;
}

/* --- names ------------------------------------------------------------------------------------------------------- */

void targets_name(const cJSON *v, struct text *out) {
    const cJSON *item;
    if (cJSON_IsString(v)) text_add(out, v->valuestring);
    if (cJSON_IsArray(v))
        cJSON_ArrayForEach(item, v) text_addf(out, "%s%s", item->prev->next ? ", " : "", item->valuestring);
}

static bool ends_any(const char *suffix, const char *const *paths, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(paths[i], suffix) == 0 || is_suffix(paths[i], suffix)) return true;
    return false;
}

cJSON *targets_suffixes(const char *const *wanted, size_t wanted_count, const char *const *others,
                        size_t others_count) {
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < wanted_count; i++) {
        const char *suffix = wanted[i] + strlen(wanted[i]);
        do {
            if (suffix > wanted[i]) suffix--;
            while (suffix > wanted[i] && suffix[-1] != '.') suffix--;
        } while (suffix > wanted[i] && ends_any(suffix, others, others_count));
        if (!list_matches(list, wanted[i], true)) cJSON_AddItemToArray(list, cJSON_CreateString(suffix));
    }
    return list;
}

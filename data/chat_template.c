#include "data/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "data/jinja.h"

struct chat_template {
    struct jinja *jinja;
    cJSON *tokens; // object: "bos_token" -> its text, and the other special tokens that the tokenizer names
};

/* A JSON file of the folder that may be missing; NULL then, with e untouched. */
static cJSON *read_optional(const char *dir, const char *name, struct err *e) {
    char *path = path_join(dir, name);
    cJSON *tree = file_exists(path) ? json_read(path, e) : NULL;
    free(path);
    return tree;
}

/* The template in a value of "chat_template": a string, or a list of {name, template} with a default. */
static const char *template_of(const cJSON *v) {
    if (cJSON_IsString(v)) return v->valuestring;
    if (!cJSON_IsArray(v)) return NULL;
    for (const cJSON *item = v->child; item; item = item->next) {
        const cJSON *name = json_get(item, "name"), *source = json_get(item, "template");
        if (cJSON_IsString(name) && cJSON_IsString(source) && strcmp(name->valuestring, "default") == 0)
            return source->valuestring;
    }
    return NULL;
}

static char *read_source(const char *path, struct err *e) {
    char *source = NULL;
    size_t size;
    if (file_read(path, &source, &size, e) != ST_OK) return NULL;
    if (strlen(source) == size && utf8_valid_prefix(source, size) == size) return source;
    err_set(e, ST_FAIL, "%s: not text in UTF-8", path);
    free(source);
    return NULL;
}

/* The source of the template and the file that it is from, both the caller's; NULL: none, or an error. */
static char *find_source(const char *dir, char **path, struct err *e) {
    *path = path_join(dir, "chat_template.jinja");
    if (file_exists(*path)) return read_source(*path, e);
    static const char *const files[] = {"chat_template.json", "tokenizer_config.json"};
    for (int i = 0; i < 2 && e->code == ST_OK; i++) {
        cJSON *tree = read_optional(dir, files[i], e);
        const char *found = template_of(json_get(tree, "chat_template"));
        char *source = found ? mem_text(found) : NULL;
        cJSON_Delete(tree);
        if (!source) continue;
        free(*path);
        *path = path_join(dir, files[i]);
        return source;
    }
    return NULL;
}

static void add_tokens(cJSON *tokens, const cJSON *from) {
    for (const cJSON *v = cJSON_IsObject(from) ? from->child : NULL; v; v = v->next) {
        const cJSON *text = cJSON_IsObject(v) ? json_get(v, "content") : v;
        if (!text_ends(v->string, "_token") || !cJSON_IsString(text)) continue;
        if (!json_get(tokens, v->string)) cJSON_AddStringToObject(tokens, v->string, text->valuestring);
    }
}

static cJSON *read_tokens(const char *dir, struct err *e) {
    cJSON *tokens = cJSON_CreateObject();
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json"};
    for (int i = 0; i < 2 && e->code == ST_OK; i++) {
        cJSON *tree = read_optional(dir, files[i], e);
        add_tokens(tokens, tree);
        cJSON_Delete(tree);
    }
    return tokens;
}

struct chat_template *chat_template_load(const char *dir, struct err *e) {
    char *path, *source = find_source(dir, &path, e);
    if (!source)
        err_set(e, ST_FAIL, "%s: its tokenizer has no chat_template; --conv_template takes one of the built-in ones",
                dir);
    struct chat_template *t = mem_alloc(sizeof *t);
    if (e->code == ST_OK) t->jinja = jinja_new(source, path, e);
    if (e->code == ST_OK) t->tokens = read_tokens(dir, e);
    free(source);
    free(path);
    if (e->code == ST_OK) return t;
    chat_template_free(t);
    return NULL;
}

char *chat_template_source(const char *dir) {
    struct err quiet = {0};
    char *path, *source = find_source(dir, &path, &quiet);
    free(path);
    return source;
}

/* additional_chat_templates/NAME.jinja. */
static void add_files(cJSON *named, const char *dir) {
    char **names, *folder = path_join(dir, "additional_chat_templates");
    struct err quiet = {0};
    size_t count;
    if (dir_exists(folder) && dir_list(folder, &names, &count, &quiet) == ST_OK) {
        for (size_t i = 0; i < count; i++) {
            char *path = path_join(folder, names[i]), *dot = strrchr(names[i], '.');
            char *source = text_ends(names[i], ".jinja") ? read_source(path, &quiet) : NULL;
            if (source) *dot = 0, cJSON_AddStringToObject(named, names[i], source);
            free(path), free(source);
        }
        names_free(names, count);
    }
    free(folder);
}

static void add_list(cJSON *named, const cJSON *list) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        const cJSON *name = json_get(item, "name"), *source = json_get(item, "template");
        if (!cJSON_IsString(name) || !cJSON_IsString(source) || strcmp(name->valuestring, "default") == 0) continue;
        if (!json_get(named, name->valuestring)) cJSON_AddStringToObject(named, name->valuestring, source->valuestring);
    }
}

cJSON *chat_template_named(const char *dir) {
    struct err quiet = {0};
    cJSON *named = cJSON_CreateObject();
    char *path, *source = find_source(dir, &path, &quiet);
    if (source && text_ends(path, ".jinja")) {
        add_files(named, dir);
    } else if (source) {
        cJSON *tree = json_read(path, &quiet);
        add_list(named, json_get(tree, "chat_template"));
        cJSON_Delete(tree);
    }
    free(path), free(source);
    return named;
}

bool chat_template_exists(const char *dir) {
    char *source = chat_template_source(dir);
    free(source);
    return source != NULL;
}

void chat_template_free(struct chat_template *t) {
    if (!t) return;
    jinja_free(t->jinja);
    cJSON_Delete(t->tokens);
    free(t);
}

/* The variables that transformers gives a template; tools and documents are always none. */
enum status chat_template_render(const struct chat_template *t, const cJSON *messages, bool add_generation_prompt,
                                 struct text *out, struct err *e) {
    cJSON *vars = cJSON_Duplicate(t->tokens, true);
    cJSON_AddItemToObject(vars, "messages", cJSON_Duplicate(messages, true));
    cJSON_AddNullToObject(vars, "tools");
    cJSON_AddNullToObject(vars, "documents");
    cJSON_AddBoolToObject(vars, "add_generation_prompt", add_generation_prompt);
    jinja_render(t->jinja, vars, out, e);
    cJSON_Delete(vars);
    return e->code;
}

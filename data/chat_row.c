/* One row of a chat set: what Mantis accepts, and a sentence for what it does not. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "data/rows.h"
#include "data/video.h"

static char *name_row(const struct rows *r, int64_t index, const char *id) {
    struct text t = {0};
    text_addf(&t, "%s: row %lld", r->path, (long long)index);
    if (r->lines) text_addf(&t, " (line %lld)", (long long)r->span[index].line);
    if (id) text_addf(&t, " (id %.80s)", id);
    return t.data;
}

/* cJSON ends a string at a zero character without a word. */
static bool has_zero(const char *s, size_t n) {
    for (const char *at = s; (at = memmem(at, (size_t)(s + n - at), "\\u0000", 6)); at++) {
        const char *b = at;
        while (b > s && b[-1] == '\\') b--;
        if ((at - b) % 2 == 0) return true;
    }
    return false;
}

static char *text_of_id(const cJSON *tree, int64_t index) {
    const cJSON *id = json_get(tree, "id");
    if (cJSON_IsString(id)) return mem_text(id->valuestring);
    return id ? json_text(id, true) : mem_format("%lld", (long long)index);
}

enum role { ROLE_USER, ROLE_ASSISTANT, ROLE_SYSTEM };

static enum status read_role(const struct chat_row *c, const cJSON *turn, int number, enum role *role, struct err *e) {
    const cJSON *v = json_get(turn, "from");
    if (!v) v = json_get(turn, "role");
    const char *s = cJSON_IsString(v) ? v->valuestring : NULL;
    if (!s)
        return err_set(e, ST_FAIL, "%s: turn %d has no role; wanted \"role\" (or \"from\") with a string", c->where,
                       number);
    if (strcmp(s, "user") == 0 || strcmp(s, "human") == 0) return *role = ROLE_USER, ST_OK;
    if (strcmp(s, "assistant") == 0 || strcmp(s, "gpt") == 0) return *role = ROLE_ASSISTANT, ST_OK;
    if (strcmp(s, "system") == 0 && number == 0) return *role = ROLE_SYSTEM, ST_OK;
    return err_set(e, ST_FAIL, "%s: turn %d has role \"%.40s\", wanted user, human, assistant or gpt", c->where, number,
                   s);
}

static enum status read_text(const struct chat_row *c, const cJSON *turn, int number, const char **out, struct err *e) {
    static const char *const keys[] = {"content", "text", "value"};
    const cJSON *v = NULL;
    for (int i = 0; i < 3 && !v; i++) v = json_get(turn, keys[i]);
    if (!v)
        return err_set(e, ST_FAIL, "%s: turn %d has no text; wanted \"content\", \"text\" or \"value\"", c->where,
                       number);
    if (!cJSON_IsString(v)) return err_set(e, ST_FAIL, "%s: turn %d: %s is not a string", c->where, number, v->string);
    *out = v->valuestring;
    return ST_OK;
}

static enum status add_turn(struct chat_row *c, const cJSON *turn, int number, struct err *e) {
    enum role role = ROLE_USER;
    const char *text = NULL;
    if (!cJSON_IsObject(turn)) return err_set(e, ST_FAIL, "%s: turn %d is not an object", c->where, number);
    if (read_role(c, turn, number, &role, e) != ST_OK || read_text(c, turn, number, &text, e) != ST_OK) return e->code;
    if (role == ROLE_SYSTEM) return c->system = text, ST_OK;
    if (role == ROLE_ASSISTANT && number == 0) return ST_OK; // a greeting without a question is left out
    bool assistant = role == ROLE_ASSISTANT;
    if (assistant != c->count % 2)
        return err_set(e, ST_FAIL, "%s: turn %d is the %s's, wanted the %s's: user and assistant must alternate",
                       c->where, number, assistant ? "assistant" : "user", assistant ? "user" : "assistant");
    c->turns[c->count++] = (struct turn){assistant, text};
    return ST_OK;
}

enum status chat_row_read_turns(struct chat_row *c, const cJSON *list, struct err *e) {
    c->turns = mem_alloc((size_t)cJSON_GetArraySize(list) * sizeof *c->turns);
    int number = 0;
    for (const cJSON *t = list->child; t; t = t->next)
        if (add_turn(c, t, number++, e) != ST_OK) return e->code;
    return c->count ? ST_OK : err_set(e, ST_FAIL, "%s: the conversation has no turn of the user", c->where);
}

const cJSON *row_turns(const struct chat_row *c) {
    static const char *const names[] = {"conversation", "conversations", "messages"};
    const cJSON *list = NULL;
    for (int i = 0; i < 3 && !list; i++) list = json_get(c->tree, names[i]);
    return list;
}

enum status row_read_turns(struct chat_row *c, struct err *e) {
    const cJSON *list = row_turns(c);
    if (!cJSON_IsArray(list))
        return err_set(e, ST_FAIL,
                       "%s: wanted \"conversation\" (or \"conversations\", or \"messages\") with a list of turns",
                       c->where);
    return chat_row_read_turns(c, list, e);
}

static enum status add_image(struct chat_row *c, const cJSON *v, struct err *e) {
    const cJSON *path = cJSON_IsObject(v) ? json_get(v, "path") : v;
    size_t number = c->image_count;
    if (!cJSON_IsString(path) || !*path->valuestring)
        return err_set(e, ST_FAIL, "%s: picture %zu is not a path (or an object with a \"path\")", c->where, number);
    if (strncmp(path->valuestring, "http://", 7) == 0 || strncmp(path->valuestring, "https://", 8) == 0)
        return err_set(e, ST_FAIL, "%s: picture %zu is an address (%.200s); download it and write its path", c->where,
                       number, path->valuestring);
    c->images[c->image_count++] = path->valuestring;
    return ST_OK;
}

enum status row_read_pictures(struct chat_row *c, struct err *e) {
    const cJSON *one = json_get(c->tree, "image"), *list = json_get(c->tree, "images");
    if (one && !(cJSON_IsString(one) && !*one->valuestring)) {
        c->images = mem_alloc(sizeof *c->images);
        return add_image(c, one, e);
    }
    if (!list) return ST_OK;
    if (!cJSON_IsArray(list)) return err_set(e, ST_FAIL, "%s: images is not a list", c->where);
    c->images = mem_alloc((size_t)cJSON_GetArraySize(list) * sizeof *c->images);
    for (const cJSON *v = list->child; v; v = v->next)
        if (add_image(c, v, e) != ST_OK) return e->code;
    return ST_OK;
}

char *row_keep(struct chat_row *c, char *text) {
    c->kept = mem_resize(c->kept, (c->kept_count + 1) * sizeof *c->kept);
    return c->kept[c->kept_count++] = text;
}

enum status row_open(struct chat_row *c, const struct rows *r, int64_t index, struct err *e) {
    const char *text = r->data + r->span[index].begin;
    size_t n = (size_t)r->span[index].bytes;
    *c = (struct chat_row){.where = name_row(r, index, NULL)};
    struct err inner = {0};
    c->tree = json_parse(text, n, c->where, &inner);
    if (!c->tree) return err_set(e, inner.code, "%s of the row", inner.text);
    if (!cJSON_IsObject(c->tree)) return err_set(e, ST_FAIL, "%s: wanted an object", c->where);
    if (has_zero(text, n)) return err_set(e, ST_FAIL, "%s: a string holds a zero character (\\u0000)", c->where);
    c->id = text_of_id(c->tree, index);
    if (json_get(c->tree, "id")) {
        free(c->where);
        c->where = name_row(r, index, c->id);
    }
    return ST_OK;
}

enum status chat_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e) {
    if (row_open(c, r, index, e) != ST_OK || row_read_turns(c, e) != ST_OK) return e->code;
    return row_read_pictures(c, e);
}

void chat_row_free(struct chat_row *c) {
    cJSON_Delete(c->tree);
    video_free(c->video);
    names_free(c->kept, c->kept_count);
    free(c->where), free(c->id), free(c->turns), free(c->images), free(c->frame);
    *c = (struct chat_row){0};
}

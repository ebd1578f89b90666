#include "lora/merge_config.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

static const char *skip_space(const char *s) { return s + strspn(s, " \t\r\n"); }

static const char *skip_string(const char *s) { // at its first quote
    for (s++; *s && *s != '"'; s++)
        if (*s == '\\' && s[1]) s++;
    return *s ? s + 1 : s;
}

/* Behind the value that begins at s. */
static const char *skip_value(const char *s) {
    int depth = 0;
    do {
        if (*s == '"') {
            s = skip_string(s);
            continue;
        }
        if (*s == '{' || *s == '[') depth++;
        if (*s == '}' || *s == ']') depth--;
        s++;
    } while (*s && (depth > 0 || !strchr(",}] \t\r\n", *s)));
    return s;
}

struct member {
    const char *key, *value, *end; // key at its quote; NULL: not there
    const char *before;            // behind the previous value, or behind the opening brace
    bool first, last;
};

static struct member find_member(const char *object, const char *key) {
    struct member m = {0};
    char *quoted = json_quote(key);
    size_t n = strlen(quoted);
    const char *at = strchr(object, '{') + 1, *before = at;
    for (bool first = true; *(at = skip_space(at)) == '"'; first = false) {
        const char *colon = skip_space(skip_string(at)), *value = skip_space(colon + 1), *end = skip_value(value);
        const char *next = skip_space(end);
        if (strncmp(at, quoted, n) == 0 && skip_string(at) == at + n)
            m = (struct member){at, value, end, before, first, *next != ','};
        before = end;
        at = *next == ',' ? next + 1 : next;
    }
    free(quoted);
    return m;
}

/* Space between the brace and the first key, which a new member repeats. */
static void add_member(struct text *t, const char *object, const char *key, const char *value) {
    const char *open = strchr(object, '{') + 1, *first = skip_space(open), *close = strrchr(object, '}');
    bool empty = *first == '}';
    const char *end = close;
    while (end > open && strchr(" \t\r\n", end[-1])) end--;
    char *quoted = json_quote(key);
    text_add_n(t, object, (size_t)(end - object));
    if (!empty) text_add_char(t, ',');
    text_add_n(t, open, empty ? 0 : (size_t)(first - open));
    text_addf(t, "%s: %s%s", quoted, value, end);
    free(quoted);
}

char *json_text_with(const char *object, const char *key, const char *value) {
    struct text t = {0};
    struct member m = find_member(object, key);
    if (!m.key && !value) return mem_text(object);
    if (!m.key) {
        add_member(&t, object, key, value);
    } else if (value) {
        text_add_n(&t, object, (size_t)(m.value - object));
        text_addf(&t, "%s%s", value, m.end);
    } else {
        text_add_n(&t, object, (size_t)(m.before - object));
        const char *rest = m.first && !m.last ? skip_space(m.end) + 1 : m.end; // with the comma that is left over
        text_add(&t, rest);
    }
    return t.data;
}

static void edit(char **object, const char *key, const char *value) {
    char *changed = json_text_with(*object, key, value);
    free(*object);
    *object = changed;
}

static bool has(const char *object, const char *key) { return find_member(object, key).key != NULL; }

/* The keys of one level. */
static void edit_level(char **object, const struct merge_config *c, bool top) {
    static const char *const names[] = {[F32] = "\"float32\"", [BF16] = "\"bfloat16\"", [F16] = "\"float16\""};
    if (c->plain) edit(object, "quantization_config", NULL);
    if (c->untied && (top || has(*object, "tie_word_embeddings"))) edit(object, "tie_word_embeddings", "false");
    if (!c->set_dtype) return;
    bool old = has(*object, "torch_dtype"), new = has(*object, "dtype");
    if (new) edit(object, "dtype", names[c->dtype]);
    if (old || (top && !new)) edit(object, "torch_dtype", names[c->dtype]);
}

enum status merge_config_write(const struct merge_config *c, const char *from, const char *to, struct err *e) {
    static const char *const parts[] = {"text_config", "vision_config"};
    char *path = path_join(from, "config.json"), *out = path_join(to, "config.json"), *text = NULL;
    size_t size;
    cJSON *tree = NULL;
    if (file_read(path, &text, &size, e) == ST_OK) tree = json_parse(text, size, path, e);
    if (tree && !cJSON_IsObject(tree)) err_set(e, ST_FAIL, "%s: is not an object", path);
    if (e->code == ST_OK) {
        edit_level(&text, c, true);
        for (int i = 0; i < 2; i++) {
            struct member m = find_member(text, parts[i]);
            if (!m.key || *m.value != '{') continue;
            char *part = mem_text_n(m.value, (size_t)(m.end - m.value));
            edit_level(&part, c, false);
            edit(&text, parts[i], part);
            free(part);
        }
        if (c->head) head_config_edit(&text, c->model_type, c->head->problem, c->head->names, c->head->num_labels);
        file_write(out, text, strlen(text), e);
    }
    cJSON_Delete(tree);
    free(path), free(out), free(text);
    return e->code;
}

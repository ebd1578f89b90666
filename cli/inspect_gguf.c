#include "cli/inspect_gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "cli/out.h"
#include "quant/ggml.h"
#include "quant/gguf.h"

/* The first of these that a tensor's name holds, or starts with, decides. */
static const struct {
    const char *word;
    bool start;
    const char *part;
} words[] = {
    {".lora_", false, "adapter"},    {"mm.", true, "projector"},        {"v.", true, "vision"},
    {"a.", true, "audio"},           {"token_embd", true, "embedding"}, {"output_norm", true, "norms"},
    {"output.", true, "head"},       {"_norm", false, "norms"},         {"attn_", false, "attention"},
    {"ffn_", false, "feed-forward"},
};
enum { WORDS = sizeof words / sizeof *words, MOST_PARTS = WORDS + 1, TYPES = 64 };

struct part {
    const char *name;
    int64_t tensors, parameters, bytes, by_type[TYPES];
};

struct view {
    const char *path;
    struct gguf g;
    struct part parts[MOST_PARTS], all;
    int count;
    struct text architecture, name, type, tokenizer, cut, template;
};

static const char *part_of(const char *name) {
    for (int i = 0; i < WORDS; i++) {
        const char *word = words[i].word;
        if (words[i].start ? text_starts(name, word) : strstr(name, word) != NULL) return words[i].part;
    }
    return "other";
}

static void add_tensor(struct part *p, const struct gguf_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dim[i];
    p->tensors++, p->parameters += n, p->bytes += (int64_t)t->bytes;
    if (t->type < TYPES) p->by_type[t->type] += n;
}

static void count_parts(struct view *v) {
    v->all.name = "all";
    for (size_t i = 0; i < v->g.tensor_count; i++) {
        const struct gguf_tensor *t = &v->g.tensors[i];
        const char *name = part_of(t->name);
        int k = 0;
        while (k < v->count && strcmp(v->parts[k].name, name) != 0) k++;
        if (k == v->count) v->parts[v->count++].name = name;
        add_tensor(&v->parts[k], t), add_tensor(&v->all, t);
    }
}

/* "ARCH.key" as a whole number; -1: none. */
static int64_t setting(const struct view *v, const char *key) {
    char *full = mem_format("%s.%s", text_str(&v->architecture), key);
    int64_t value = -1;
    if (!gguf_int(&v->g, full, &value)) value = -1;
    free(full);
    return value;
}

static int64_t vocabulary(const struct view *v) {
    const struct gguf_value *tokens = gguf_find(&v->g, "tokenizer.ggml.tokens");
    return tokens && tokens->kind == GGUF_ARRAY ? (int64_t)tokens->count : 0;
}

/* --- as text ----------------------------------------------------------------------------------------------------- */

static void type_text(struct text *t, const struct part *p) {
    for (uint32_t type = TYPES; type-- > 0;)
        if (p->by_type[type]) text_addf(t, "%s%s", t->len ? " and " : "", ggml_name(type));
}

static void show_part(const struct part *p) {
    char parameters[OUT_NUMBER], bytes[OUT_NUMBER];
    struct text types = {0};
    type_text(&types, p);
    out_text("  %-14s %8lld %12s %10s   %s\n", p->name, (long long)p->tensors,
             out_count_text(parameters, p->parameters), out_bytes_text(bytes, p->bytes), text_str(&types));
    text_free(&types);
}

static void show_language(const struct view *v) {
    out_text("  %lld layers of %lld, %lld heads over %lld, feed-forward %lld, context %lld\n",
             (long long)setting(v, "block_count"), (long long)setting(v, "embedding_length"),
             (long long)setting(v, "attention.head_count"), (long long)setting(v, "attention.head_count_kv"),
             (long long)setting(v, "feed_forward_length"), (long long)setting(v, "context_length"));
    const char *template = text_str(&v->template);
    out_text("  tokenizer  %s%s%s, %lld tokens, chat template: %s\n", text_str(&v->tokenizer), v->cut.len ? ", " : "",
             text_str(&v->cut), (long long)vocabulary(v), *template ? "the file's own" : "none");
}

static void show_vision(const struct view *v) {
    int64_t size = setting(v, "vision.image_size"), patch = setting(v, "vision.patch_size");
    out_text("  vision     %lld layers of %lld, pictures of %lld x %lld in patches of %lld\n",
             (long long)setting(v, "vision.block_count"), (long long)setting(v, "vision.embedding_length"),
             (long long)size, (long long)size, (long long)patch);
}

static void show(const struct view *v) {
    double alpha;
    const char *type = text_str(&v->type);
    out_text("%s: GGUF, %s%s%s%s%s\n", v->path, v->architecture.len ? text_str(&v->architecture) : "no architecture",
             *type ? ", " : "", type, v->name.len ? ", " : "", text_str(&v->name));
    if (gguf_number(gguf_find(&v->g, "adapter.lora.alpha"), &alpha)) out_text("  adapter    lora, alpha %g\n", alpha);
    if (setting(v, "vision.block_count") >= 0)
        show_vision(v);
    else if (setting(v, "block_count") >= 0)
        show_language(v);
    out_text("\n  %-14s %8s %12s %10s   type\n", "part", "tensors", "parameters", "bytes");
    for (int i = 0; i < v->count; i++) show_part(&v->parts[i]);
    show_part(&v->all);
}

/* --- as JSON ----------------------------------------------------------------------------------------------------- */

static void add_value(cJSON *o, const struct gguf_value *v) {
    double number;
    if (v->kind == GGUF_ARRAY) {
        char *what = mem_format("%llu x %s", (unsigned long long)v->count, gguf_kind_name(v->item));
        cJSON_AddStringToObject(o, v->key, what);
        free(what);
    } else if (v->kind == GGUF_STRING) {
        size_t n = v->bytes - 8, valid = utf8_valid_prefix(v->data + 8, n);
        char *text = mem_text_n(v->data + 8, valid);
        cJSON_AddStringToObject(o, v->key, text);
        free(text);
    } else if (v->kind == GGUF_BOOL) {
        cJSON_AddBoolToObject(o, v->key, *v->data != 0);
    } else if (gguf_number(v, &number)) {
        cJSON_AddNumberToObject(o, v->key, number);
    }
}

static cJSON *part_json(const struct part *p) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "tensors", (double)p->tensors);
    cJSON_AddNumberToObject(o, "parameters", (double)p->parameters);
    cJSON_AddNumberToObject(o, "bytes", (double)p->bytes);
    cJSON *types = cJSON_AddObjectToObject(o, "parameters_by_type");
    for (uint32_t type = 0; type < TYPES; type++)
        if (p->by_type[type]) cJSON_AddNumberToObject(types, ggml_name(type), (double)p->by_type[type]);
    return o;
}

static void show_json(const struct view *v) {
    cJSON *o = cJSON_CreateObject(), *parts, *values;
    cJSON_AddStringToObject(o, "kind", "gguf");
    cJSON_AddStringToObject(o, "architecture", text_str(&v->architecture));
    cJSON_AddStringToObject(o, "type", text_str(&v->type));
    if (vocabulary(v)) cJSON_AddNumberToObject(o, "tokens", (double)vocabulary(v));
    parts = cJSON_AddObjectToObject(o, "parts");
    for (int i = 0; i < v->count; i++) cJSON_AddItemToObject(parts, v->parts[i].name, part_json(&v->parts[i]));
    cJSON_AddItemToObject(o, "all", part_json(&v->all));
    values = cJSON_AddObjectToObject(o, "metadata");
    for (size_t i = 0; i < v->g.value_count; i++) add_value(values, &v->g.values[i]);
    out_json(o);
    cJSON_Delete(o);
}

/* --- the command ------------------------------------------------------------------------------------------------- */

/* A string of the file for one line on a terminal: control characters become '?'. */
static void read_line(const struct view *v, const char *key, struct text *out) {
    gguf_text(&v->g, key, out);
    for (size_t i = 0; i < out->len; i++)
        if ((unsigned char)out->data[i] < ' ' || out->data[i] == 127) out->data[i] = '?';
}

enum status inspect_gguf(const struct flags *f, const char *path, struct err *e) {
    struct view v = {.path = path};
    if (gguf_open(&v.g, path, e) != ST_OK) return e->code;
    read_line(&v, "general.architecture", &v.architecture);
    read_line(&v, "general.name", &v.name);
    read_line(&v, "general.type", &v.type);
    read_line(&v, "tokenizer.ggml.model", &v.tokenizer);
    read_line(&v, "tokenizer.ggml.pre", &v.cut);
    gguf_text(&v.g, "tokenizer.chat_template", &v.template);
    count_parts(&v);
    if (flag_bool(f, "json"))
        show_json(&v);
    else
        show(&v);
    text_free(&v.architecture), text_free(&v.name), text_free(&v.type);
    text_free(&v.tokenizer), text_free(&v.cut), text_free(&v.template);
    gguf_close(&v.g);
    return ST_OK;
}

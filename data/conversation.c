/* A template is a row of a table: what stands before and after each part of a conversation, and the rule for its
 * labels.
 *
 * Labels follow separators, as Mantis trains: the text between two separator tokens belongs to one turn, and the turns
 * of the assistant are every second one. A separator inside a user's text therefore shifts the rest; so do the
 * published models' labels. */
#include "data/conversation.h"

#include <stdlib.h>
#include <string.h>

#include "base/batch.h"
#include "base/json.h"

enum rule {
    TRAIN_ODD,    // a system part comes first: what follows separators 1, 3, 5, ...
    TRAIN_EVEN,   // no system part: what follows separators 0, 2, 4, ...
    TRAIN_PAIRS,  // from each separator to the next closing token
    TRAIN_CAPTION // all but pictures
};

struct conversation {
    const char *name;
    enum rule rule;
    const char *system;           // with all that stands before the first turn
    const char *user, *assistant; // before a turn's text
    const char *assistant_open;   // before an answer to come
    const char *after_user, *after_assistant;
    const char *separator, *closing; // tokens that the labels are found by
};

#define POLITE                                                                                                         \
    "A chat between a curious human and an artificial intelligence assistant. "                                        \
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
#define SEEING                                                                                                         \
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "    \
    "provides, and assist the user with a variety of tasks using natural language."
#define LLAMA_HEADER(role)  "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define CHATML_HEADER(role) "<|im_start|>" role "\n"

static const struct conversation templates[] = {
    {.name = "llama_3",
     .rule = TRAIN_ODD,
     .system = LLAMA_HEADER("system") "You are a pirate chatbot who always responds in pirate speak!<|eot_id|>",
     .user = LLAMA_HEADER("user"),
     .assistant = LLAMA_HEADER("assistant"),
     .assistant_open = LLAMA_HEADER("assistant"),
     .after_user = "<|eot_id|>",
     .after_assistant = "<|eot_id|>",
     .separator = "<|eot_id|>"},
    {.name = "mllava_v1",
     .rule = TRAIN_ODD,
     .system = POLITE "</s>",
     .user = "USER: ",
     .assistant = "ASSISTANT: ",
     .assistant_open = "ASSISTANT:",
     .after_user = "</s>",
     .after_assistant = "</s>",
     .separator = "</s>"},
    {.name = "mfuyu_v1",
     .rule = TRAIN_PAIRS,
     .system = SEEING "\n",
     .user = "USER: ",
     .assistant = "ASSISTANT: ",
     .assistant_open = "ASSISTANT:",
     .after_user = "<0x04>",
     .after_assistant = "|ENDOFTEXT|",
     .separator = "<0x04>",
     .closing = "|ENDOFTEXT|"},
    {.name = "idefics_2",
     .rule = TRAIN_EVEN,
     .system = "",
     .user = "User:",
     .assistant = "Assistant:",
     .assistant_open = "Assistant:",
     .after_user = "<end_of_utterance>\n",
     .after_assistant = "<end_of_utterance>\n",
     .separator = "<end_of_utterance>"},
    {.name = "idefics_3",
     .rule = TRAIN_EVEN,
     .system = "<|begin_of_text|>",
     .user = "User:",
     .assistant = "Assistant:",
     .assistant_open = "Assistant:",
     .after_user = "<end_of_utterance>\n",
     .after_assistant = "<end_of_utterance>\n",
     .separator = "<end_of_utterance>"},
    {.name = "qwen2_vl",
     .rule = TRAIN_ODD,
     .system = CHATML_HEADER("system") "You are a helpful assistant.<|im_end|>\n",
     .user = CHATML_HEADER("user"),
     .assistant = CHATML_HEADER("assistant"),
     .assistant_open = CHATML_HEADER("assistant"),
     .after_user = "<|im_end|>\n",
     .after_assistant = "<|im_end|>\n",
     .separator = "<|im_end|>"},
    {.name = "plain", .rule = TRAIN_CAPTION, .after_assistant = "\n"},
};

enum { TEMPLATES = sizeof templates / sizeof *templates };

const struct conversation *conversation_find(const char *name, struct err *e) {
    const char *names[TEMPLATES];
    struct text known = {0};
    for (int i = 0; i < TEMPLATES; i++) {
        if (strcmp(templates[i].name, name) == 0) return text_free(&known), &templates[i];
        names[i] = templates[i].name;
        text_addf(&known, "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = text_nearest(name, names, TEMPLATES);
    err_set(e, ST_FAIL, "conv_template: there is no template \"%s\"%s%s%s; the known ones are %s", name,
            near ? ", did you mean " : "", near ? near : "", near ? "?" : "", text_str(&known));
    text_free(&known);
    return NULL;
}

const char *conversation_name(const struct conversation *c) { return c->name; }

bool conversation_is_caption(const struct conversation *c) { return c->rule == TRAIN_CAPTION; }

void conversation_render(const struct conversation *c, const struct turn *turns, size_t count, bool open,
                         struct text *out) {
    if (conversation_is_caption(c)) {
        if (count < 2) return;
        text_add(out, turns[1].text);
        text_add(out, c->after_assistant);
        return;
    }
    text_add(out, c->system);
    for (size_t i = 0; i < count; i++) {
        text_add(out, turns[i].assistant ? c->assistant : c->user);
        text_add(out, turns[i].text);
        text_add(out, turns[i].assistant ? c->after_assistant : c->after_user);
    }
    if (open) text_add(out, c->assistant_open);
}

/* {{ "text" }} */
static void add_literal(struct text *out, const char *s) {
    char *quoted = json_quote(s ? s : "");
    if (s && *s) text_addf(out, "{{ %s }}", quoted);
    free(quoted);
}

void conversation_jinja(const struct conversation *c, struct text *out) {
    if (conversation_is_caption(c)) return;
    add_literal(out, c->system);
    for (int assistant = 0; assistant < 2; assistant++) {
        text_addf(out, "%s message['role'] == '%s' %%}", assistant ? "{% elif" : "{% for message in messages %}{% if",
                  assistant ? "assistant" : "user");
        add_literal(out, assistant ? c->assistant : c->user);
        text_add(out, "{{ message['content'] }}");
        add_literal(out, assistant ? c->after_assistant : c->after_user);
    }
    text_add(out, "{% endif %}{% endfor %}{% if add_generation_prompt %}");
    add_literal(out, c->assistant_open);
    text_add(out, "{% endif %}");
}

static void train(const int32_t *ids, int32_t *labels, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) labels[i] = ids[i];
}

/* Whatever follows a separator of the wanted parity is trained, to the next separator and with it, or to the end. */
static void train_alternate(const int32_t *ids, size_t n, int32_t separator, size_t parity, int32_t *labels) {
    size_t seen = 0;
    bool on = false;
    for (size_t i = 0; i < n; i++) {
        if (on) labels[i] = ids[i];
        if (ids[i] == separator) on = seen++ % 2 == parity;
    }
}

/* Separator k and closing token k frame an answer; only the last answer may lack its end (it was cut). */
static enum status train_pairs(const struct conversation *c, const int32_t *ids, size_t n, int32_t separator,
                               int32_t closing, int32_t *labels, struct err *e) {
    size_t opened = 0, closed = 0;
    for (size_t i = 0; i < n; i++) {
        opened += ids[i] == separator;
        closed += ids[i] == closing;
    }
    if (opened != closed && opened != closed + 1)
        return err_set(e, ST_FAIL,
                       "template %s: %zu answers begin (%s) but %zu end (%s); a text holds one of these tokens",
                       c->name, opened, c->separator, closed, c->closing);
    size_t end = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] != separator) continue;
        while (end < n && ids[end] != closing) end++;
        train(ids, labels, i + 1, end < n ? end + 1 : n);
        end++;
    }
    return ST_OK;
}

static enum status find_token(const struct conversation *c, const struct tokenizer *t, const char *token, int32_t *id,
                              struct err *e) {
    *id = tokenizer_id(t, token);
    if (*id >= 0) return ST_OK;
    return err_set(e, ST_FAIL,
                   "template %s: the tokenizer has no token \"%s\", by which the trained part is found; choose another "
                   "conv_template",
                   c->name, token);
}

enum status conversation_labels(const struct conversation *c, const struct tokenizer *t, const int32_t *ids, size_t n,
                                int32_t image_token, int32_t *labels, struct err *e) {
    for (size_t i = 0; i < n; i++) labels[i] = IGNORED;
    if (c->rule == TRAIN_CAPTION) {
        for (size_t i = 0; i < n; i++)
            if (ids[i] != image_token) labels[i] = ids[i];
        return ST_OK;
    }
    int32_t separator, closing;
    if (find_token(c, t, c->separator, &separator, e) != ST_OK) return e->code;
    if (c->rule != TRAIN_PAIRS) {
        train_alternate(ids, n, separator, c->rule == TRAIN_ODD, labels);
        return ST_OK;
    }
    if (find_token(c, t, c->closing, &closing, e) != ST_OK) return e->code;
    return train_pairs(c, ids, n, separator, closing, labels, e);
}

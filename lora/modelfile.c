/* Ollama writes prompts with Go templates. The model's own template is asked with words that stand for what a user will
 * say; what it puts around them is the Go template.
 *
 *   one turn             A user B                  open for the answer
 *   with a system text   P system Q user B
 *   with an answer       A user B answer E */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/chat_template.h"
#include "data/conversation.h"
#include "data/prompt.h"
#include "data/tokenizer.h"
#include "lora/export.h"
#include "model/config.h"

static const char SYSTEM[] = "SystemTextHere", USER[] = "UserTextHere", ANSWER[] = "AnswerTextHere";

struct asked {
    const struct conversation *conv; // NULL: own
    struct chat_template *own;
    const char *bos; // which Ollama adds itself
};

/* The text of system (or NULL), user and answer (or NULL: open) by the template; NULL when it refuses. The caller
 * frees it. */
static char *ask(const struct asked *a, bool system, bool answer) {
    const struct turn turns[] = {{false, USER}, {true, ANSWER}};
    struct text t = {0};
    struct err quiet = {0};
    if (a->conv) {
        conversation_render(a->conv, turns, answer ? 2 : 1, !answer, &t);
    } else {
        cJSON *messages = cJSON_CreateArray();
        if (system) messages_add(messages, "system", SYSTEM);
        messages_add(messages, "user", USER);
        if (answer) messages_add(messages, "assistant", ANSWER);
        chat_template_render(a->own, messages, !answer, &t, &quiet);
        cJSON_Delete(messages);
    }
    const char *from = text_str(&t);
    if (a->bos && *a->bos && text_starts(from, a->bos)) from += strlen(a->bos);
    char *out = quiet.code == ST_OK ? mem_text(from) : NULL;
    text_free(&t);
    return out;
}

/* Cuts text at a word, which must come once: what stands before it stays, what follows is returned. */
static char *cut(char *text, const char *word) {
    char *at = text ? strstr(text, word) : NULL;
    if (!at) return NULL;
    *at = 0;
    return strstr(at + strlen(word), word) ? NULL : at + strlen(word);
}

/* What Go or Ollama would read otherwise. */
static bool is_plain(const char *s) { return !strstr(s, "{{") && !strstr(s, "\"\"\""); }

/* The mark behind an answer, without the space around it, or NULL; the caller frees it. */
static char *end_of_answer(const char *E) {
    if (!E) return NULL;
    size_t n = strlen(E += strspn(E, " \n"));
    while (n > 0 && strchr(" \n", E[n - 1])) n--;
    return mem_text_n(E, n);
}

/* Returns the mark behind an answer, or NULL; the caller frees it. */
static char *add_template(const struct asked *a, struct text *out) {
    char *one = ask(a, false, false), *two = a->conv ? NULL : ask(a, true, false), *three = ask(a, false, true);
    char *B = cut(one, USER), *Q = cut(two, SYSTEM), *B2 = cut(Q, USER), *after = cut(three, USER);
    char *E = cut(after, ANSWER);
    bool system = B && B2 && strcmp(B, B2) == 0 && is_plain(two) && is_plain(Q);
    if (B && is_plain(one) && is_plain(B)) {
        text_add(out, "TEMPLATE \"\"\"");
        if (system) text_addf(out, "{{ if .System }}%s{{ .System }}%s{{ .Prompt }}%s{{ else }}", two, Q, B);
        text_addf(out, "%s{{ .Prompt }}%s%s{{ .Response }}", one, B, system ? "{{ end }}" : "");
        if (E && strcmp(one, three) == 0 && strcmp(after, B) == 0 && is_plain(E)) text_add(out, E);
        text_add(out, "\"\"\"\n");
    }
    char *end = end_of_answer(E);
    free(one), free(two), free(three);
    return end;
}

static void add_stop(const struct tokenizer *t, int32_t id, struct text *out) {
    const char *token = id >= 0 ? tokenizer_token(t, id) : NULL;
    if (!token || strchr(token, '"') || strchr(token, '\n')) return;
    char *line = mem_format("PARAMETER stop \"%s\"\n", token);
    if (!strstr(text_str(out), line)) text_add(out, line);
    free(line);
}

static enum status add_prompt(const struct modelfile *m, struct text *out, struct err *e) {
    struct model_config c;
    struct tokenizer *t = NULL;
    struct err quiet = {0};
    struct asked a = {0};
    char *end = NULL;
    if (model_config_read(&c, m->model, e) == ST_OK) t = tokenizer_load(m->model, &quiet);
    if (t) {
        a.bos = tokenizer_bos(t) >= 0 ? tokenizer_token(t, tokenizer_bos(t)) : NULL;
        if (c.default_template) a.conv = conversation_find(c.default_template, &quiet);
        if (!a.conv && chat_template_exists(m->model)) a.own = chat_template_load(m->model, &quiet);
        if (a.conv || a.own) end = add_template(&a, out);
        add_stop(t, tokenizer_eos(t), out);
        if (end && *end) add_stop(t, tokenizer_id(t, end), out);
        for (int i = 0; i < c.eos_count; i++) add_stop(t, c.eos[i], out);
        if (a.conv && strcmp(conversation_name(a.conv), "llama_3") == 0)
            add_stop(t, tokenizer_id(t, "<|eot_id|>"), out);
    }
    free(end);
    chat_template_free(a.own);
    tokenizer_free(t);
    model_config_free(&c);
    return e->code;
}

enum status modelfile_write(const struct modelfile *m, const char *path, struct err *e) {
    struct text t = {0};
    const char *file = path_name(m->gguf);
    if (m->part == EXPORT_MODEL)
        text_addf(&t, "FROM ./%s\n", file);
    else
        text_addf(&t, "# the model, exported with graft export --part model\nFROM ./model.gguf\n%s ./%s\n",
                  m->part == EXPORT_VISION ? "FROM" : "ADAPTER", file);
    if (add_prompt(m, &t, e) == ST_OK) file_write(path, t.data, t.len, e);
    text_free(&t);
    return e->code;
}

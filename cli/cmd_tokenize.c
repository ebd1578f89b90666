/* graft tokenize: text on stdin to ids on stdout, and back. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/text.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/verbs.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"

static const struct flag tokenize_flags[] = {
    {"chat", FLAG_BOOL, "false", NULL, "stdin is a JSON list of messages"},
    {"add_generation_prompt", FLAG_BOOL, "false", NULL, "with --chat: open the answer"},
    {"no_special", FLAG_BOOL, "false", NULL, "without the BOS; --decode: without special tokens"},
    {"decode", FLAG_BOOL, "false", NULL, "ids on stdin to text"},
};

static enum status read_stdin(struct text *in, struct err *e) {
    char part[65536];
    size_t n;
    while ((n = fread(part, 1, sizeof part, stdin)) > 0) text_add_n(in, part, n);
    return ferror(stdin) ? err_set(e, ST_FAIL, "stdin: cannot be read") : ST_OK;
}

/* A list of messages, or an object that holds one, as the template writes it. */
static enum status render_chat(const struct flags *f, const char *dir, const struct text *in, struct text *out,
                               struct err *e) {
    cJSON *tree = json_parse(text_str(in), in->len, "stdin", e);
    const cJSON *messages = cJSON_IsObject(tree) ? json_get(tree, "messages") : tree;
    if (tree && !cJSON_IsArray(messages))
        err_set(e, ST_FAIL, "stdin: wanted a JSON list of messages, each with role and content");
    struct chat_template *t = e->code == ST_OK ? chat_template_load(dir, e) : NULL;
    if (t) chat_template_render(t, messages, flag_bool(f, "add_generation_prompt"), out, e);
    chat_template_free(t);
    cJSON_Delete(tree);
    return e->code;
}

static void print_ids(const struct ids *ids, bool json) {
    const char *between = json ? ", " : " ";
    if (json) out_text("{\"ids\": [");
    for (size_t i = 0; i < ids->len; i++) out_text("%s%d", i ? between : "", ids->data[i]);
    out_text(json ? "]}\n" : "\n");
}

static enum status encode(const struct flags *f, const char *dir, const struct tokenizer *t, const struct text *in,
                          struct err *e) {
    struct text rendered = {0};
    struct ids ids = {0};
    bool chat = flag_bool(f, "chat"); // the template writes the BOS itself
    if (chat) render_chat(f, dir, in, &rendered, e);
    const struct text *from = chat ? &rendered : in;
    if (e->code == ST_OK) tokenizer_encode(t, text_str(from), from->len, !chat && !flag_bool(f, "no_special"), &ids, e);
    if (e->code == ST_OK) print_ids(&ids, flag_bool(f, "json"));
    ids_free(&ids);
    text_free(&rendered);
    return e->code;
}

/* Numbers between anything that cannot be part of one, so that [1, 2] and {"ids": [1, 2]} are read too. */
static enum status read_ids(const struct text *in, struct ids *ids, struct err *e) {
    const char *s = text_str(in), *end = s + in->len;
    if (in->len != strlen(s)) return err_set(e, ST_FAIL, "stdin: wanted token ids, found a zero byte");
    const char *key = strstr(s, "\"ids\"");
    for (s = key ? key + 5 : s; s < end;) {
        if (isspace((unsigned char)*s) || strchr(",[]:{}", *s)) {
            s++;
            continue;
        }
        char *next;
        long long id = strtoll(s, &next, 10);
        if (next == s || id < 0 || id > INT32_MAX)
            return err_set(e, ST_FAIL, "stdin: wanted token ids, found \"%.20s\" at byte %lld", s,
                           (long long)(s - text_str(in)));
        ids_add(ids, (int32_t)id);
        s = next;
    }
    return ST_OK;
}

static void print_json_text(const struct text *text) {
    out_text("{\"text\": ");
    out_json_text(text);
    out_text("}\n");
}

static enum status decode(const struct flags *f, const struct tokenizer *t, const struct text *in, struct err *e) {
    struct ids ids = {0};
    struct text text = {0};
    if (read_ids(in, &ids, e) == ST_OK) {
        tokenizer_decode(t, ids.data, ids.len, flag_bool(f, "no_special"), &text);
        if (flag_bool(f, "json"))
            print_json_text(&text);
        else
            out_bytes(text_str(&text), text.len);
        if (!flag_bool(f, "json") && isatty(STDOUT_FILENO)) out_text("\n");
    }
    text_free(&text);
    ids_free(&ids);
    return e->code;
}

static int run_tokenize(const struct flags *f, struct err *e) {
    if (flag_bool(f, "decode") && flag_bool(f, "chat"))
        return err_set(e, ST_USAGE, "--decode and --chat exclude each other");
    struct text in = {0};
    char *dir = model_dir(f->words[0], e);
    struct tokenizer *t = dir ? tokenizer_load(dir, e) : NULL;
    if (t && read_stdin(&in, e) == ST_OK) {
        if (flag_bool(f, "decode"))
            decode(f, t, &in, e);
        else
            encode(f, dir, t, &in, e);
    }
    tokenizer_free(t);
    text_free(&in);
    free(dir);
    return e->code;
}

const struct verb verb_tokenize = {
    .name = "tokenize",
    .arguments = "MODEL [--chat [--add_generation_prompt]] [--no_special] [--decode] <TEXT",
    .about = "text on stdin to token ids, or ids to text",
    .flags = tokenize_flags,
    .flag_count = sizeof tokenize_flags / sizeof *tokenize_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_tokenize,
};

/* graft chat: a conversation in the terminal, or from a pipe line by line. Each answer sees all that was said; what the
 * cache holds of it is not computed again.
 *
 * SIGINT is blocked in every thread and only looked for while an answer is made, which it ends. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"
#include "cli/generation.h"
#include "cli/out.h"
#include "cli/verbs.h"

enum { CHAT_POSITIONS = 8192, CHAT_PICTURES = 1024 };

static const struct flag chat_flags[] = {
    {"image", FLAG_LIST, NULL, NULL, "picture to begin with"},
    {"adapter", FLAG_TEXT, NULL, NULL, "PEFT folder"},
    {"max_new_tokens", FLAG_INT, "1024", NULL, "longest answer"},
    {"temperature", FLAG_NUMBER, "0", NULL, "of sampling; 0: the most probable token"},
    {"top_p", FLAG_NUMBER, "1", NULL, "sampling: the most probable tokens of that mass"},
    {"conv_template", FLAG_TEXT, NULL, NULL, "a Mantis template; without it: the model's own"},
    {"max_seq_len", FLAG_INT, "0", NULL, "positions of the whole conversation; 0: the model's, at most 8192"},
};

struct chat_session {
    struct generation g;
    cJSON *messages;
    struct batch_image *image; // (images * pieces), pixels owned
    int64_t pieces;            // pictures of the tower that come of one
    int64_t images, pending;   // the last `pending` have no place in the messages yet
    bool terminal;             // a person types
};

/* ---------------------------------------------------------------- pictures */

static enum status add_image(struct chat_session *s, const char *path, struct err *e) {
    int64_t pieces = prompter_pieces(&s->g.prompter);
    if (s->images == CHAT_PICTURES)
        return err_set(e, ST_FAIL, "%s: the conversation has %d pictures already, which is the most", path,
                       CHAT_PICTURES);
    s->image = mem_resize(s->image, (size_t)((s->images + 1) * pieces) * sizeof *s->image);
    struct batch_image *made = s->image + s->images * pieces;
    if (prompt_read_image(made, &s->g.prompter, path, e) == ST_OK &&
        image_set_check(made, pieces, &s->g.prompter.processor, &s->g.family, e) == ST_OK) {
        s->pieces = pieces;
        s->images++, s->pending++;
        return ST_OK;
    }
    for (int64_t i = 0; i < pieces; i++) batch_image_free(&made[i]);
    return e->code;
}

static void drop_images(struct chat_session *s) {
    for (int64_t i = 0; i < s->images * s->pieces; i++) batch_image_free(&s->image[i]);
    free(s->image);
    s->image = NULL;
    s->images = s->pending = 0;
}

/* The user's turn: pictures that came since the last one and have no `<image>` begin it, so that the k-th picture stays
 * the k-th of the conversation. */
static enum status add_turn(struct chat_session *s, const char *line, struct err *e) {
    bool pictures = s->g.family.family != FAMILY_TEXT;
    int64_t placed = pictures ? (int64_t)chat_count_pictures(line) : 0;
    if (placed > s->pending)
        return err_set(e, ST_FAIL, "the text has %lld <image>, but %lld pictures were added since the last turn",
                       (long long)placed, (long long)s->pending);
    struct text t = {0};
    for (int64_t i = placed; i < s->pending; i++) text_add(&t, "<image>");
    text_add(&t, line);
    messages_add(s->messages, "user", text_str(&t));
    text_free(&t);
    return ST_OK;
}

/* ---------------------------------------------------------------- turns */

static enum status encode(struct row *out, struct chat_session *s, struct err *e) {
    const struct prompt p = {
        .messages = s->messages, .where = "the conversation", .images = s->images, .image = s->image};
    if (prompt_encode(out, &s->g.prompter, &p, e) != ST_OK) return e->code;
    for (int64_t i = 0; i < out->images; i++) out->image[i] = s->image[i];
    if (out->positions < s->g.generator->room) return ST_OK;
    return err_set(
        e, ST_FAIL,
        "the conversation takes %lld positions and leaves no room for an answer in %lld (--max_seq_len); /reset "
        "starts a new one",
        (long long)out->positions, (long long)s->g.generator->room);
}

static enum status make_answer(struct chat_session *s, const struct row *prompt, struct answer *a, struct err *e) {
    bool json = flag_bool(s->g.f, "json");
    int64_t most = flag_int(s->g.f, "max_new_tokens"), left = s->g.generator->room - prompt->positions;
    if (generation_answer(a, &s->g, prompt, most < left ? most : left, !json, e) != ST_OK) return e->code;
    if (json) answer_print_json(a, prompt);
    if (!json) out_text("\n");
    fflush(stdout);
    messages_add(s->messages, "assistant", text_str(&a->text));
    s->pending = 0;
    return ST_OK;
}

/* What fails leaves the conversation as it was. */
static enum status take_turn(struct chat_session *s, const char *line, struct err *e) {
    int before = cJSON_GetArraySize(s->messages);
    struct row prompt = {0};
    struct answer a = {0};
    if (add_turn(s, line, e) == ST_OK && encode(&prompt, s, e) == ST_OK) make_answer(s, &prompt, &a, e);
    if (e->code != ST_OK) cJSON_DeleteItemFromArray(s->messages, before);
    for (int64_t i = 0; i < prompt.images; i++) prompt.image[i].pixels = NULL; // the session's
    row_free(&prompt);
    answer_free(&a);
    return e->code;
}

static void reset(struct chat_session *s) {
    cJSON_Delete(s->messages);
    s->messages = cJSON_CreateArray();
    drop_images(s);
    generator_keep(s->g.generator, 0);
}

/* A line of the user; *done: it ends the conversation. */
static enum status take_line(struct chat_session *s, const char *line, bool *done, struct err *e) {
    static const char *const commands[] = {"/image", "/reset", "/exit"};
    size_t word = strcspn(line, " \t");
    if (*line != '/') return take_turn(s, line, e);
    *done = strcmp(line, "/exit") == 0;
    if (*done) return ST_OK;
    if (strcmp(line, "/reset") == 0) return reset(s), ST_OK;
    const char *path = line + word + strspn(line + word, " \t");
    if (word == strlen(commands[0]) && strncmp(line, commands[0], word) == 0)
        return *path ? add_image(s, path, e) : err_set(e, ST_FAIL, "/image wants a path");
    char *name = mem_text_n(line, word);
    const char *near = text_nearest(name, commands, 3);
    err_set(e, ST_FAIL, "%s is no command%s%s%s; wanted /image PATH, /reset or /exit", name,
            near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    free(name);
    return e->code;
}

/* ---------------------------------------------------------------- the conversation */

static void block_interrupts(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Forgets a SIGINT that came between two answers. */
static void forget_interrupts(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    while (sigtimedwait(&set, NULL, &(struct timespec){0}) == SIGINT) continue;
}

/* Without its end; NULL at the end of stdin, or when the line is not text. */
static char *read_line(bool terminal, char **buffer, size_t *room, struct err *e) {
    if (terminal) fputs("> ", stderr), fflush(stderr);
    ssize_t n = getline(buffer, room, stdin);
    if (n < 0) {
        if (ferror(stdin)) err_set(e, ST_FAIL, "stdin: cannot be read");
        if (terminal) fputc('\n', stderr);
        return NULL;
    }
    char *line = *buffer;
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    if (strlen(line) == (size_t)n && utf8_valid_prefix(line, (size_t)n) == (size_t)n) return line;
    err_set(e, ST_FAIL, "a line of stdin is not text in UTF-8");
    return NULL;
}

/* A person is told what went wrong and goes on; from a pipe it is the end. */
static bool goes_on(const struct chat_session *s, struct err *e) {
    if (e->code == ST_OK) return true;
    if (!s->terminal) return false;
    fprintf(stderr, "%s\n", e->text);
    *e = (struct err){0};
    return true;
}

static enum status converse(struct chat_session *s, struct err *e) {
    char *buffer = NULL;
    size_t room = 0;
    if (s->terminal)
        out_note(s->g.f,
                 "/image PATH adds a picture, /reset starts anew, /exit or Ctrl-D ends; Ctrl-C stops an answer");
    for (bool done = false; !done;) {
        const char *line = read_line(s->terminal, &buffer, &room, e);
        if (!line && e->code == ST_OK) break;
        forget_interrupts();
        if (line && *line) take_line(s, line, &done, e);
        if (!goes_on(s, e)) break;
    }
    free(buffer);
    return e->code;
}

static int64_t positions_of(const struct generation *g) {
    int64_t wanted = flag_int(g->f, "max_seq_len"), model = g->config.text.max_positions;
    if (wanted) return wanted;
    return model > 0 && model < CHAT_POSITIONS ? model : CHAT_POSITIONS;
}

static int run_chat(const struct flags *f, struct err *e) {
    struct chat_session s = {.messages = cJSON_CreateArray(), .terminal = isatty(STDIN_FILENO)};
    const cJSON *paths = flag_list(f, "image");
    block_interrupts(); // before there are threads
    generation_open(&s.g, f, false, e);
    for (const cJSON *p = paths && e->code == ST_OK ? paths->child : NULL; p && e->code == ST_OK; p = p->next)
        add_image(&s, p->valuestring, e);
    s.g.interruptible = true;
    if (e->code == ST_OK && generation_load(&s.g, positions_of(&s.g), CHAT_PICTURES, NULL, e) == ST_OK) converse(&s, e);
    drop_images(&s);
    cJSON_Delete(s.messages);
    generation_close(&s.g);
    return e->code;
}

const struct verb verb_chat = {
    .name = "chat",
    .arguments = "MODEL [--adapter A] [--image F]...",
    .about = "a conversation in the terminal, streaming; /image PATH, /reset, /exit",
    .flags = chat_flags,
    .flag_count = sizeof chat_flags / sizeof *chat_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_chat,
};

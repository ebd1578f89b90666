#include "data/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/image.h"
#include "data/rows.h"

static const char PICTURE[] = "<image>";

enum status prompter_open(struct prompter *p, const struct data_family *f, const struct tokenizer *t,
                          const char *conv_template, bool raw, struct err *e) {
    *p = (struct prompter){.family = *f};
    p->chat = (struct chat){.tokenizer = t, .family = &p->family};
    const char *name = conv_template ? conv_template : f->default_template;
    if (name)
        p->chat.conv = conversation_find(name, e);
    else if (!raw || f->family != FAMILY_TEXT)
        p->chat.own = p->own = chat_template_load(f->model_dir, e);
    if (p->chat.conv && conversation_is_caption(p->chat.conv))
        err_set(e, ST_FAIL, "conv_template %s has no place for an answer; choose another", name);
    if (e->code == ST_OK && f->family != FAMILY_TEXT) image_set_open(&p->processor, &p->family, t, e);
    p->chat.pieces = prompter_pieces(p);
    return e->code;
}

void prompter_close(struct prompter *p) {
    chat_template_free(p->own);
    *p = (struct prompter){0};
}

/* ---------------------------------------------------------------- messages */

void messages_add(cJSON *messages, const char *role, const char *text) {
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", role);
    cJSON_AddStringToObject(m, "content", text);
    cJSON_AddItemToArray(messages, m);
}

/* One part of a content list: {"type": "text", "text": ...} or {"type": "image"}, whose file comes from elsewhere. */
static enum status add_part(struct text *t, const cJSON *part, const char *where, struct err *e) {
    const cJSON *type = json_get(part, "type"), *text = json_get(part, "text");
    const char *name = cJSON_IsString(type) ? type->valuestring : "";
    if (strcmp(name, "text") == 0 && cJSON_IsString(text)) return text_add(t, text->valuestring), ST_OK;
    if (strcmp(name, "image") != 0)
        return err_set(e, ST_FAIL, "%s: a part of a message is of type \"%.40s\", wanted text (with \"text\") or image",
                       where, name);
    static const char *const files[] = {"image", "path", "url", "image_url"};
    for (int i = 0; i < 4; i++)
        if (json_get(part, files[i]))
            return err_set(e, ST_FAIL,
                           "%s: a part of type image names its file in \"%s\"; name it with --image instead", where,
                           files[i]);
    text_add(t, PICTURE);
    return ST_OK;
}

/* A copy of the messages in which every content is a string; the caller deletes it. NULL on failure. */
static cJSON *flatten(const cJSON *messages, const char *where, struct err *e) {
    cJSON *copy = cJSON_Duplicate(messages, true);
    for (cJSON *m = copy->child; m && e->code == ST_OK; m = m->next) {
        const cJSON *content = json_get(m, "content");
        if (!cJSON_IsArray(content)) continue;
        struct text t = {0};
        for (const cJSON *part = content->child; part; part = part->next) add_part(&t, part, where, e);
        cJSON_ReplaceItemInObjectCaseSensitive(m, "content", cJSON_CreateString(text_str(&t)));
        text_free(&t);
    }
    if (e->code == ST_OK) return copy;
    cJSON_Delete(copy);
    return NULL;
}

/* ---------------------------------------------------------------- templates */

static enum status render_turns(const struct prompter *p, const struct turn *turns, size_t count, struct text *out,
                                const char *where, struct err *e) {
    if (count % 2 == 0)
        return err_set(e, ST_FAIL, "%s: the last turn is the assistant's, wanted the user's, to be answered", where);
    conversation_render(p->chat.conv, turns, count, true, out);
    return ST_OK;
}

static enum status render_conversation(const struct prompter *p, const cJSON *messages, const char *where,
                                       struct text *out, struct err *e) {
    struct chat_row row = {.where = mem_text(where)};
    if (chat_row_read_turns(&row, messages, e) == ST_OK && row.system)
        err_set(e, ST_FAIL, "%s: a system turn comes first, but template %s has its own; remove the turn", where,
                conversation_name(p->chat.conv));
    if (e->code == ST_OK) render_turns(p, row.turns, row.count, out, where, e);
    chat_row_free(&row);
    return e->code;
}

/* The user of a Mantis template may be "human" too. */
static bool is_user(const cJSON *message) {
    const cJSON *role = json_get(message, "role");
    if (!role) role = json_get(message, "from");
    return cJSON_IsString(role) && (strcmp(role->valuestring, "user") == 0 || strcmp(role->valuestring, "human") == 0);
}

/* `missing` pictures begin the first turn of the user. */
static void lead_with_pictures(cJSON *messages, int64_t missing) {
    for (cJSON *m = messages->child; m; m = m->next) {
        const cJSON *content = json_get(m, "content");
        if (!is_user(m) || !cJSON_IsString(content)) continue;
        struct text t = {0};
        for (; missing > 0; missing--) text_add(&t, PICTURE);
        text_add(&t, content->valuestring);
        cJSON_ReplaceItemInObjectCaseSensitive(m, "content", cJSON_CreateString(text_str(&t)));
        text_free(&t);
        return;
    }
}

static int64_t count_placed(const cJSON *messages) {
    int64_t n = 0;
    for (const cJSON *m = messages->child; m; m = m->next) {
        const cJSON *content = json_get(m, "content");
        if (cJSON_IsString(content)) n += (int64_t)chat_count_pictures(content->valuestring);
    }
    return n;
}

/* A text model's template may want the messages as they are. */
static enum status render_own(const struct prompter *p, cJSON *messages, int64_t images, struct text *out,
                              struct err *e) {
    if (p->family.family != FAMILY_TEXT) lead_with_pictures(messages, images - count_placed(messages));
    for (cJSON *m = p->family.family == FAMILY_IDEFICS2 ? messages->child : NULL; m; m = m->next) {
        const cJSON *content = json_get(m, "content");
        if (!cJSON_IsString(content)) continue;
        cJSON *parts = chat_content(&p->chat, content->valuestring);
        cJSON_ReplaceItemInObjectCaseSensitive(m, "content", parts);
    }
    return chat_template_render(p->own, messages, true, out, e);
}

static enum status render_turned(const struct prompter *p, cJSON *messages, int64_t images, const char *where,
                                 struct text *out, struct err *e) {
    if (p->family.family == FAMILY_IDEFICS2) lead_with_pictures(messages, images - count_placed(messages));
    return render_conversation(p, messages, where, out, e);
}

static enum status render_messages(const struct prompter *p, const struct prompt *prompt, struct text *out,
                                   struct err *e) {
    if (!cJSON_IsArray(prompt->messages) || !prompt->messages->child)
        return err_set(e, ST_FAIL, "%s: wanted a JSON list of messages, each with role and content", prompt->where);
    bool as_they_are = p->own && p->family.family == FAMILY_TEXT;
    cJSON *messages =
        as_they_are ? cJSON_Duplicate(prompt->messages, true) : flatten(prompt->messages, prompt->where, e);
    if (messages && p->own) render_own(p, messages, prompt->images, out, e);
    if (messages && !p->own) render_turned(p, messages, prompt->images, prompt->where, out, e);
    cJSON_Delete(messages);
    return e->code;
}

static enum status render_text(const struct prompter *p, const struct prompt *prompt, struct text *out, struct err *e) {
    if (!p->chat.conv && !p->own) return text_add(out, prompt->text), ST_OK;
    cJSON *messages = cJSON_CreateArray();
    messages_add(messages, "user", prompt->text);
    if (p->own)
        render_own(p, messages, prompt->images, out, e);
    else
        render_turned(p, messages, prompt->images, "the prompt", out, e);
    cJSON_Delete(messages);
    return e->code;
}

/* ---------------------------------------------------------------- pictures */

/* Pictures that the rendered text has no place for. */
static void place_pictures(struct text *text, int64_t images) {
    static const char *const marks[] = {"USER:", "Human:", "HUMAN:"};
    const char *s = text_str(text), *at = NULL;
    int64_t placed = (int64_t)chat_count_pictures(s);
    for (int i = 0; i < 3 && !at; i++) {
        at = strstr(s, marks[i]);
        if (at) at += strlen(marks[i]);
    }
    struct text out = {0};
    text_add_n(&out, s, at ? (size_t)(at - s) : 0);
    for (; placed < images; placed++) text_add(&out, PICTURE);
    text_add(&out, at ? at : s);
    text_free(text);
    *text = out;
}

int64_t prompter_pieces(const struct prompter *p) { return processor_pieces(&p->processor); }

enum status prompt_read_image(struct batch_image *out, const struct prompter *p, const char *path, struct err *e) {
    struct image im = {0};
    for (int64_t k = 0; k < prompter_pieces(p); k++) out[k] = (struct batch_image){0};
    if (p->family.family == FAMILY_TEXT) return err_set(e, ST_FAIL, "%s: the model reads text only, no pictures", path);
    if (image_read(&im, path, e) == ST_OK) image_set_process(out, &p->processor, &im, path, e);
    image_free(&im);
    return e->code;
}

enum status prompt_open_video(struct chat_row *v, const char *path, int64_t most, struct err *e) {
    const struct frame_rule rule = {.most = most};
    *v = (struct chat_row){.where = mem_text("--video"), .media = path};
    return row_choose_frames(v, "", &rule, false, 0, e);
}

enum status prompt_read_frame(struct batch_image *out, const struct prompter *p, const struct chat_row *v, int64_t k,
                              struct err *e) {
    if (!v->video) return prompt_read_image(out, p, v->images[k], e);
    struct image im = {0};
    for (int64_t i = 0; i < prompter_pieces(p); i++) out[i] = (struct batch_image){0};
    if (row_read_frame(&im, v, k, e) == ST_OK) image_set_process(out, &p->processor, &im, v->media, e);
    image_free(&im);
    return e->code;
}

/* ---------------------------------------------------------------- ids */

static enum status fill_row(struct row *out, const struct prompter *p, const struct prompt *prompt, struct err *e) {
    if (prompt->max_seq_len > 0 && out->ids.len > (size_t)prompt->max_seq_len)
        out->ids.len = (size_t)prompt->max_seq_len;
    int64_t images;
    const struct chat_pictures pictures = {(size_t)prompt->images, prompt->image, prompt->max_seq_len};
    if (out->ids.len == 0) return err_set(e, ST_FAIL, "the prompt becomes no token at all");
    if (chat_check_ids(&p->chat, &out->ids, &pictures, &images, e) != ST_OK) return e->code;
    out->images = images;
    out->image = mem_alloc((size_t)images * sizeof *out->image);
    out->labels = mem_alloc(out->ids.len * sizeof *out->labels);
    for (size_t i = 0; i < out->ids.len; i++) out->labels[i] = IGNORED;
    for (int64_t i = 0; i < images; i++)
        out->image[i] = (struct batch_image){.height = p->processor.height, .width = p->processor.width};
    out->positions = (int64_t)out->ids.len + images * family_extra_positions(&p->family);
    if (out->positions <= INT32_MAX) return ST_OK;
    return err_set(e, ST_FAIL, "the prompt takes %lld positions, at most %d are possible", (long long)out->positions,
                   INT32_MAX);
}

/* The tokenizer's own template writes its BOS itself. */
enum status prompt_encode(struct row *out, const struct prompter *p, const struct prompt *prompt, struct err *e) {
    *out = (struct row){0};
    const struct chat_pictures pictures = {(size_t)prompt->images, prompt->image, prompt->max_seq_len};
    bool marked = p->family.family == FAMILY_MLLAVA || p->family.family == FAMILY_MFUYU;
    if (prompt->images && p->family.family == FAMILY_TEXT)
        return err_set(e, ST_FAIL, "the model reads text only, but there are pictures");
    struct text text = {0};
    if (prompt->text)
        render_text(p, prompt, &text, e);
    else
        render_messages(p, prompt, &text, e);
    if (e->code == ST_OK && marked && !p->own) place_pictures(&text, prompt->images);
    if (e->code == ST_OK) chat_encode_text(&p->chat, text_str(&text), !p->own, &pictures, &out->ids, e);
    if (e->code == ST_OK) fill_row(out, p, prompt, e);
    text_free(&text);
    return e->code;
}

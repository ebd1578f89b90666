#include "data/chat.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "base/batch.h"
#include "base/memory.h"
#include "data/fuyu_text.h"

static const char PICTURE[] = "<image>";
enum { PICTURE_LEN = sizeof PICTURE - 1 };

size_t chat_count_pictures(const char *s) {
    size_t n = 0;
    while ((s = strstr(s, PICTURE))) n++, s += PICTURE_LEN;
    return n;
}

/* Whether a `<image>` of the text stands for a picture. A text model has none: there it is text. */
static bool takes_pictures(const struct chat *c) { return c->family->family != FAMILY_TEXT; }

/* The turns with the pictures that no `<image>` stands for put in front; *owned is what the caller frees. */
static struct turn *place_pictures(const struct chat *c, const struct chat_row *row, char **owned) {
    bool caption = c->conv && conversation_is_caption(c->conv);
    size_t first = caption ? 1 : 0, last = caption ? 2 : row->count, placed = 0;
    struct turn *turns = mem_alloc(row->count * sizeof *turns);
    memcpy(turns, row->turns, row->count * sizeof *turns);
    for (size_t i = first; i < last; i++) placed += chat_count_pictures(turns[i].text);
    *owned = NULL;
    if (placed >= row->image_count) return turns;
    struct text t = {0};
    for (; placed < row->image_count; placed++) text_add(&t, caption ? "<image> " : PICTURE);
    text_add(&t, turns[first].text);
    turns[first].text = *owned = t.data;
    return turns;
}

/* Numbers the first `count` pictures of the text and deletes what is left of them. */
static void number_pictures(const char *s, size_t count, struct text *out) {
    size_t k = 0;
    for (const char *at; (at = strstr(s, PICTURE)); s = at + PICTURE_LEN) {
        text_add_n(out, s, (size_t)(at - s));
        if (k < count) text_addf(out, "(image %zu: <Image><image></Image>)", ++k);
    }
    text_add(out, s);
}

static int64_t pieces_of(const struct chat *c) { return c->pieces ? c->pieces : 1; }

/* Of two fake tokens side by side one is left, as Python's replace does it: from the left, each pair once. */
static void merge_fakes(const struct text *s, struct text *out) {
    static const char pair[] = FAKE_TOKEN FAKE_TOKEN;
    const char *from = text_str(s);
    for (const char *at; (at = strstr(from, pair)); from = at + sizeof pair - 1) {
        text_add_n(out, from, (size_t)(at - from));
        text_add(out, FAKE_TOKEN);
    }
    text_add(out, from);
}

/* Each `<image>` as the image_tokens of its pieces, each piece between fake tokens. */
static enum status expand_pictures(const struct chat *c, const char *s, size_t pictures, struct text *out,
                                   struct err *e) {
    size_t placed = chat_count_pictures(s);
    if (placed > pictures)
        return err_set(e, ST_FAIL, "the text holds %zu <image> for %zu pictures; remove what is too many", placed,
                       pictures);
    if ((int64_t)placed > INT32_MAX / (pieces_of(c) * c->family->tokens_per_image))
        return err_set(e, ST_FAIL, "%zu pictures take more than %d positions", placed, INT32_MAX);
    struct text apart = {0};
    for (const char *at; (at = strstr(s, PICTURE)); s = at + PICTURE_LEN) {
        text_add_n(&apart, s, (size_t)(at - s));
        for (int64_t k = 0; k < pieces_of(c); k++) {
            text_add(&apart, FAKE_TOKEN);
            for (int64_t i = 0; i < c->family->tokens_per_image; i++) text_add(&apart, PICTURE);
            text_add(&apart, FAKE_TOKEN);
        }
    }
    text_add(&apart, s);
    merge_fakes(&apart, out);
    text_free(&apart);
    return ST_OK;
}

enum status chat_encode_text(const struct chat *c, const char *text, bool special, const struct chat_pictures *p,
                             struct ids *out, struct err *e) {
    if (!takes_pictures(c)) return tokenizer_encode(c->tokenizer, text, strlen(text), special, out, e);
    if (c->family->family == FAMILY_MFUYU) return fuyu_encode(c->tokenizer, c->family->patch_size, text, p, out, e);
    struct text written = {0};
    enum status st = ST_OK;
    if (c->family->family == FAMILY_IDEFICS2)
        st = expand_pictures(c, text, p->count, &written, e);
    else
        number_pictures(text, p->count, &written);
    if (st == ST_OK) st = tokenizer_encode(c->tokenizer, text_str(&written), written.len, special, out, e);
    text_free(&written);
    return st;
}

/* The parts of a text between its pictures; an empty text is one part. */
static cJSON *parts_of(const char *text) {
    cJSON *list = cJSON_CreateArray();
    for (const char *at = text; at; text = at + PICTURE_LEN) {
        at = strstr(text, PICTURE);
        size_t n = at ? (size_t)(at - text) : strlen(text);
        if (n || (!at && !list->child)) {
            char *part = mem_text_n(text, n);
            cJSON *o = cJSON_CreateObject();
            cJSON_AddStringToObject(o, "type", "text");
            cJSON_AddStringToObject(o, "text", part);
            cJSON_AddItemToArray(list, o);
            free(part);
        }
        if (!at) break;
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "type", "image");
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

cJSON *chat_content(const struct chat *c, const char *text) {
    return c->family->family == FAMILY_IDEFICS2 ? parts_of(text) : cJSON_CreateString(text);
}

static void cut(struct ids *ids, int64_t max_seq_len) {
    if (max_seq_len > 0 && ids->len > (size_t)max_seq_len) ids->len = (size_t)max_seq_len;
}

/* How many ids the first `count` turns take by themselves, at most those of the whole row. */
static enum status measure_prefix(size_t *n, const struct chat_ids *whole, const struct chat *c,
                                  const struct chat_pictures *p, const struct turn *turns, size_t count,
                                  struct err *e) {
    struct text text = {0};
    struct ids ids = {0};
    conversation_render(c->conv, turns, count, false, &text);
    enum status st = chat_encode_text(c, text_str(&text), true, p, &ids, e);
    *n = ids.len < whole->ids.len ? ids.len : whole->ids.len;
    text_free(&text);
    ids_free(&ids);
    return st;
}

/* Mantis' rule for videos: what an answer adds to the conversation before it, its header and its end included. */
static enum status label_by_prefixes(struct chat_ids *out, const struct chat *c, const struct chat_pictures *p,
                                     const struct turn *turns, size_t count, struct err *e) {
    for (size_t i = 0; i < out->ids.len; i++) out->labels[i] = IGNORED;
    for (size_t answer = 1; answer < count; answer += 2) {
        size_t from, to;
        if (measure_prefix(&from, out, c, p, turns, answer, e) != ST_OK ||
            measure_prefix(&to, out, c, p, turns, answer + 1, e) != ST_OK)
            return e->code;
        for (size_t i = from; i < to; i++) out->labels[i] = out->ids.data[i];
    }
    return ST_OK;
}

static enum status encode_by_conversation(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                                          const struct turn *turns, const struct chat_pictures *p, struct err *e) {
    if (row->system)
        return err_set(e, ST_FAIL, "a system turn comes first, but template %s has its own; remove the turn",
                       conversation_name(c->conv));
    struct text text = {0};
    conversation_render(c->conv, turns, row->count, false, &text);
    if (chat_encode_text(c, text_str(&text), true, p, &out->ids, e) == ST_OK) {
        cut(&out->ids, p->most);
        out->labels = mem_alloc(out->ids.len * sizeof *out->labels);
        int32_t image_token = takes_pictures(c) ? c->family->image_token : -1;
        if (row->by_prefix && !conversation_is_caption(c->conv))
            label_by_prefixes(out, c, p, turns, row->count, e);
        else
            conversation_labels(c->conv, c->tokenizer, out->ids.data, out->ids.len, image_token, out->labels, e);
    }
    text_free(&text);
    return e->code;
}

/* A growing conversation as the tokenizer's template writes it, with the ids of what it wrote last. */
struct unrolled {
    const struct chat *c;
    cJSON *messages;
    struct chat_pictures pictures;
    struct text text, before; // the last rendering and the one before it
    struct ids ids;
};

static void add_message(struct unrolled *u, const char *role, const char *text) {
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", role);
    cJSON_AddItemToObject(m, "content", chat_content(u->c, text));
    cJSON_AddItemToArray(u->messages, m);
}

/* Each rendering must begin with the one before: else no part of the text belongs to one turn. */
static enum status unroll(struct unrolled *u, bool open, struct err *e) {
    struct text kept = u->before;
    u->before = u->text, u->text = kept;
    text_clear(&u->text);
    ids_clear(&u->ids);
    if (chat_template_render(u->c->own, u->messages, open, &u->text, e) != ST_OK) return e->code;
    if (!text_starts(text_str(&u->text), text_str(&u->before)))
        return err_set(
            e, ST_FAIL,
            "the tokenizer's chat template writes a turn differently once others follow, so the part to train "
            "is not defined; choose a conv_template");
    return chat_encode_text(u->c, text_str(&u->text), false, &u->pictures, &u->ids, e);
}

static size_t common_prefix(const struct ids *a, const struct ids *b) {
    size_t n = 0;
    while (n < a->len && n < b->len && a->data[n] == b->data[n]) n++;
    return n;
}

static bool is_white(const struct chat *c, int32_t id) {
    struct text t = {0};
    tokenizer_decode(c->tokenizer, &id, 1, false, &t);
    bool white = text_str(&t)[strspn(text_str(&t), " \t\r\n")] == 0;
    text_free(&t);
    return white;
}

/* The end of an answer without the white space that follows its last special token. */
static size_t trim(const struct chat *c, const struct ids *ids, size_t from, size_t to) {
    size_t end = to;
    while (end > from && !tokenizer_is_special(c->tokenizer, ids->data[end - 1]) && is_white(c, ids->data[end - 1]))
        end--;
    return end > from && tokenizer_is_special(c->tokenizer, ids->data[end - 1]) ? end : to;
}

/* Finds each answer as ids that its rendering adds. Offsets hold in the ids of the whole conversation as far as these
 * agree with those of the part; a token that straddles the border of an answer belongs to the answer. */
static enum status find_answers(struct unrolled *u, const struct chat_row *row, const struct turn *turns,
                                struct ids *parts, struct err *e) {
    if (row->system) add_message(u, "system", row->system);
    for (size_t i = 0; i < row->count; i++) {
        if (turns[i].assistant) {
            if (unroll(u, true, e) != ST_OK) return e->code;
            parts[2 * (i / 2)] = u->ids;
            u->ids = (struct ids){0};
        }
        add_message(u, turns[i].assistant ? "assistant" : "user", turns[i].text);
        if (!turns[i].assistant) continue;
        if (unroll(u, false, e) != ST_OK) return e->code;
        parts[2 * (i / 2) + 1] = u->ids;
        u->ids = (struct ids){0};
    }
    return unroll(u, false, e);
}

static enum status encode_by_own(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                                 const struct turn *turns, const struct chat_pictures *p, struct err *e) {
    size_t answers = row->count / 2;
    struct ids *parts = mem_alloc(2 * answers * sizeof *parts); // open, answered; for each answer
    struct unrolled u = {.c = c, .messages = cJSON_CreateArray(), .pictures = *p};
    u.pictures.most = 0; // labels are found in the whole, which is then cut
    if (find_answers(&u, row, turns, parts, e) == ST_OK) {
        out->ids = u.ids;
        u.ids = (struct ids){0};
        out->labels = mem_alloc(out->ids.len * sizeof *out->labels);
        for (size_t i = 0; i < out->ids.len; i++) out->labels[i] = IGNORED;
        for (size_t k = 0; k < answers; k++) {
            size_t from = common_prefix(&out->ids, &parts[2 * k]), to = common_prefix(&out->ids, &parts[2 * k + 1]);
            to = trim(c, &out->ids, from, to);
            for (size_t i = from; i < to; i++) out->labels[i] = out->ids.data[i];
        }
        cut(&out->ids, p->most);
    }
    for (size_t k = 0; k < 2 * answers; k++) ids_free(&parts[k]);
    free(parts);
    ids_free(&u.ids), text_free(&u.text), text_free(&u.before);
    cJSON_Delete(u.messages);
    return e->code;
}

/* From image_tokens to pictures: the tower's features have to find a place each. */
static enum status check_expanded(const struct chat *c, size_t pictures, int64_t *images, struct err *e) {
    int64_t tokens = *images, wanted = (int64_t)pictures * pieces_of(c) * c->family->tokens_per_image;
    *images = (int64_t)pictures * pieces_of(c);
    if (tokens == wanted) return ST_OK;
    return err_set(
        e, ST_FAIL,
        "%lld image tokens are in the text, %zu pictures take %lld; max_seq_len has cut the others (raise it), "
        "or the template does not write them",
        (long long)tokens, pictures, (long long)wanted);
}

/* From patches to the pictures, the first ones of the text, that they are all of. */
static enum status check_patches(const struct chat *c, const struct chat_pictures *p, int64_t *images, struct err *e) {
    int64_t tokens = *images, patches = 0;
    for (*images = 0; *images < (int64_t)p->count && patches < tokens; ++*images)
        patches += fuyu_patches(&p->image[*images], c->family->patch_size);
    if (patches == tokens) return ST_OK;
    return err_set(e, ST_FAIL,
                   "%lld %s are in the text, %lld pictures take %lld; max_seq_len has cut a picture (raise it), or the "
                   "text holds this token",
                   (long long)tokens, PATCH_TOKEN, (long long)*images, (long long)patches);
}

enum status chat_check_ids(const struct chat *c, const struct ids *ids, const struct chat_pictures *p, int64_t *images,
                           struct err *e) {
    const struct data_family *f = c->family;
    *images = 0;
    for (size_t i = 0; i < ids->len; i++) {
        int32_t id = ids->data[i];
        if (takes_pictures(c) && id == f->image_token) {
            ++*images;
        } else if (f->vocab_size > 0 && id >= f->vocab_size) {
            const char *token = tokenizer_token(c->tokenizer, id);
            return err_set(e, ST_FAIL,
                           "token %d (\"%.40s\") is outside the model's vocabulary of %lld (vocab_size); the tokenizer "
                           "is another model's",
                           id, token ? token : "", (long long)f->vocab_size);
        }
    }
    if (f->family == FAMILY_IDEFICS2) return check_expanded(c, p->count, images, e);
    if (f->family == FAMILY_MFUYU) return check_patches(c, p, images, e);
    if (*images > (int64_t)p->count)
        return err_set(e, ST_FAIL, "the text holds %lld picture tokens for %zu pictures", (long long)*images, p->count);
    return ST_OK;
}

/* A picture in an answer is nothing to learn. */
static void ignore_pictures(const struct chat *c, struct chat_ids *ids) {
    for (size_t i = 0; i < ids->ids.len; i++)
        if (c->family->family == FAMILY_IDEFICS2 && ids->ids.data[i] == c->family->image_token)
            ids->labels[i] = IGNORED;
}

static enum status encode_row(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                              const struct chat_pictures *p, struct err *e) {
    if (!takes_pictures(c) && row->image_count)
        return err_set(e, ST_FAIL, "the row has %zu pictures, but the model reads text only", row->image_count);
    if (c->conv && conversation_is_caption(c->conv) && row->count < 2)
        return err_set(e, ST_FAIL, "template plain trains the second turn, but there is only one");
    char *owned;
    struct turn *turns = place_pictures(c, row, &owned);
    if (c->conv)
        encode_by_conversation(out, c, row, turns, p, e);
    else
        encode_by_own(out, c, row, turns, p, e);
    free(owned);
    free(turns);
    if (e->code == ST_OK) ignore_pictures(c, out);
    return e->code == ST_OK ? chat_check_ids(c, &out->ids, p, &out->images, e) : e->code;
}

static enum status encode_prompt(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                                 const struct chat_pictures *p, struct err *e) {
    if (!takes_pictures(c) && row->image_count)
        return err_set(e, ST_FAIL, "the row has %zu pictures, but the model reads text only", row->image_count);
    struct text text = {0};
    text_add(&text, row->prompt);
    for (size_t n = chat_count_pictures(row->prompt); n < row->image_count; n++) text_add(&text, "<image> ");
    enum status st = chat_encode_text(c, text_str(&text), true, p, &out->ids, e);
    text_free(&text);
    if (st != ST_OK) return st;
    cut(&out->ids, p->most);
    out->labels = mem_alloc(out->ids.len * sizeof *out->labels);
    for (size_t i = 0; i < out->ids.len; i++) out->labels[i] = IGNORED;
    return chat_check_ids(c, &out->ids, p, &out->images, e);
}

enum status chat_encode_prompt(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                               const struct batch_image *image, int64_t max_seq_len, struct err *e) {
    const struct chat_pictures p = {row->image_count, image, max_seq_len};
    struct err inner = {0};
    if (encode_prompt(out, c, row, &p, &inner) == ST_OK) return ST_OK;
    return err_set(e, inner.code, "%s: %s", row->where, inner.text);
}

enum status chat_encode(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                        const struct batch_image *image, int64_t max_seq_len, struct err *e) {
    const struct chat_pictures p = {row->image_count, image, max_seq_len};
    struct err inner = {0};
    if (encode_row(out, c, row, &p, &inner) == ST_OK) return ST_OK;
    return err_set(e, inner.code, "%s: %s", row->where, inner.text);
}

void chat_ids_free(struct chat_ids *c) {
    ids_free(&c->ids);
    free(c->labels);
    *c = (struct chat_ids){0};
}

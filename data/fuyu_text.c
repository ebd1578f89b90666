#include "data/fuyu_text.h"

#include <string.h>

static const char MARK[] = "<image>";

int64_t fuyu_patches(const struct batch_image *image, int64_t patch) {
    return image->height / patch * (image->width / patch);
}

/* A text being written. */
struct stream {
    const struct tokenizer *t;
    const struct chat_pictures *p;
    int64_t patch;
    struct ids *out;
    int64_t left; // ids that may still come
    bool full;
};

/* Takes room for n ids, or closes the stream. */
static bool take(struct stream *s, int64_t n) {
    s->full = s->full || n > s->left;
    s->left -= n;
    return !s->full;
}

static void add(struct stream *s, const char *token) { ids_add(s->out, tokenizer_id(s->t, token)); }

/* The text from `from` to `to`, without `<image>`. */
static void add_plain(struct text *out, const char *from, const char *to) {
    for (const char *at; (at = strstr(from, MARK)) && at < to; from = at + sizeof MARK - 1)
        text_add_n(out, from, (size_t)(at - from));
    text_add_n(out, from, (size_t)(to - from));
}

/* Part j of the text; a picture follows, or not. */
static enum status add_part(struct stream *s, const struct text *part, size_t j, bool picture, struct err *e) {
    struct ids ids = {0};
    if (tokenizer_encode(s->t, text_str(part), part->len, false, &ids, e) == ST_OK &&
        take(s, (int64_t)ids.len + (j > 0) + (ids.len > 0) + picture)) {
        if (j > 0) add(s, PICTURE_END_TOKEN);
        if (ids.len > 0) add(s, TEXT_TOKEN);
        for (size_t i = 0; i < ids.len; i++) ids_add(s->out, ids.data[i]);
        if (picture) add(s, PICTURE_TOKEN);
    }
    ids_free(&ids);
    return e->code;
}

static void add_picture(struct stream *s, const struct batch_image *image) {
    int64_t rows = image->height / s->patch, cols = image->width / s->patch;
    if (!take(s, rows * (cols + 1))) return;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t k = 0; k < cols; k++) add(s, PATCH_TOKEN);
        add(s, ROW_END_TOKEN);
    }
}

/* A text without pictures. */
static enum status encode_plain(const struct tokenizer *t, const char *text, struct ids *out, struct err *e) {
    struct text plain = {0};
    add_plain(&plain, text, text + strlen(text));
    enum status st = tokenizer_encode(t, text_str(&plain), plain.len, false, out, e);
    text_free(&plain);
    return st;
}

enum status fuyu_encode(const struct tokenizer *t, int64_t patch, const char *text, const struct chat_pictures *p,
                        struct ids *out, struct err *e) {
    if (p->count == 0) return encode_plain(t, text, out, e);
    struct stream s = {t, p, patch, out, p->most > 0 ? p->most : INT64_MAX, false};
    struct text part = {0};
    for (size_t j = 0; text && !s.full && e->code == ST_OK; j++) {
        const char *mark = j < p->count ? strstr(text, MARK) : NULL;
        text_clear(&part);
        add_plain(&part, text, mark ? mark : text + strlen(text));
        if (mark) text_addf(&part, "image %zu: ", j);
        if (add_part(&s, &part, j, mark != NULL, e) == ST_OK && mark && !s.full) add_picture(&s, &p->image[j]);
        text = mark ? mark + sizeof MARK - 1 : NULL;
    }
    text_free(&part);
    return e->code;
}

#include "data/show.h"

#include <string.h>

#include "data/image_set.h"

/* New lines and tabs stay; other control characters (C1 too, which are C2 80 .. C2 9F) become '?'. */
static void add_safe(struct text *out, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool c1 = c == 0xC2 && i + 1 < n && (unsigned char)s[i + 1] < 0xA0;
        bool control = (c < ' ' && c != '\n' && c != '\t') || c == 0x7F || c1;
        text_add_char(out, control ? '?' : (char)c);
        i += c1;
    }
}

static void add_head(struct text *out, const struct row *r, const struct data_family *f) {
    text_addf(out, "%s: row %lld, id ", r->file, (long long)r->index);
    add_safe(out, r->id, strlen(r->id));
    text_addf(out, "\n%zu tokens, %lld positions, %lld scored", r->ids.len, (long long)r->positions,
              (long long)r->scored);
    if (r->images && f->family == FAMILY_IDEFICS2)
        text_addf(out, ", %lld pictures of %lld patches in all (%lld positions each)", (long long)r->images,
                  (long long)image_set_count(r->image, r->images, f).patches, (long long)f->tokens_per_image);
    else if (r->images && f->family == FAMILY_MFUYU)
        text_addf(out, ", %lld pictures of %lld patches in all", (long long)r->images,
                  (long long)image_set_count(r->image, r->images, f).patches);
    else if (r->images)
        text_addf(out, ", %lld pictures of %lld x %lld (%lld positions each)", (long long)r->images,
                  (long long)r->image[0].width, (long long)r->image[0].height, (long long)f->tokens_per_image);
    for (int64_t i = 0; i < r->value_count; i++) text_addf(out, "%s %g", i ? "," : "\nlabels", (double)r->values[i]);
    text_add(out, "\n\n");
}

/* Where the run of equally trained tokens that starts at `from` ends. */
static size_t run_end(const struct row *r, size_t from) {
    size_t to = from;
    while (to < r->ids.len && (r->labels[to] == IGNORED) == (r->labels[from] == IGNORED)) to++;
    return to;
}

/* A run's text is what the ids up to its end add to the text before it: decoded alone, a run could lose its first
 * blank. */
void show_row(struct text *out, const struct row *r, const struct data_family *f, const struct tokenizer *t,
              bool ansi) {
    add_head(out, r, f);
    struct text all = {0};
    size_t shown = 0;
    for (size_t from = 0, to; from < r->ids.len; from = to) {
        to = run_end(r, from);
        bool trained = r->labels[from] != IGNORED;
        text_clear(&all);
        tokenizer_decode(t, r->ids.data, to, false, &all);
        if (shown > all.len) shown = all.len;
        if (trained) text_add(out, ansi ? "\033[32m" : "⟦");
        add_safe(out, text_str(&all) + shown, all.len - shown);
        if (trained) text_add(out, ansi ? "\033[0m" : "⟧");
        shown = all.len;
    }
    text_add_char(out, '\n');
    text_free(&all);
}

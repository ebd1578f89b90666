/* A chat row to ids and labels. Two ways to write it down: one of Mantis' conversation templates, or the tokenizer's
 * own chat template.
 *
 * Mantis: the rendered text is encoded with what the post-processor adds (BOS), then cut to max_seq_len, then labelled
 * by separators. Own: the template writes its BOS itself. The trained part of an answer is what the template adds
 * between "the conversation up to here, open for an answer" and "the conversation with this answer"; white space after
 * the last special token of it is not trained. A template that rewrites earlier turns has no such part and is refused.
 *
 * Pictures: a missing `<image>` is put before the first user turn. mllava: a surplus one is deleted, the k-th becomes
 * `(image k: <Image><image></Image>)`. Idefics2: a surplus one is an error, each becomes its image_tokens between two
 * fake tokens, of which neighbours share one, for every piece of the picture; a text from which image_tokens were cut
 * is an error. mfuyu: fuyu_text.h. */
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/chat_template.h"
#include "data/conversation.h"
#include "data/family.h"
#include "data/rows.h"
#include "data/tokenizer.h"

struct chat {
    const struct conversation *conv; // NULL: own
    const struct chat_template *own;
    const struct tokenizer *tokenizer;
    const struct data_family *family;
    int64_t pieces; // pictures of the tower that come of one (processor_pieces); 0: as 1
};

struct chat_ids {
    struct ids ids;
    int32_t *labels; // (ids.len)
    int64_t images;  // pictures of the tower whose tokens are in ids; they are the first ones of the row
};

/* image: mfuyu: the sides of the row's pictures. max_seq_len 0: no limit. out starts as {0}; chat_ids_free after any
 * outcome. An error names the row. */
enum status chat_encode(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                        const struct batch_image *image, int64_t max_seq_len, struct err *e);
/* A classification row: its prompt as the tokenizer writes it, without a template; a missing `<image> ` is put at the
 * end. No label. */
enum status chat_encode_prompt(struct chat_ids *out, const struct chat *c, const struct chat_row *row,
                               const struct batch_image *image, int64_t max_seq_len, struct err *e);
void chat_ids_free(struct chat_ids *c);

/* --- parts of it that a text without labels needs too --- */

size_t chat_count_pictures(const char *s); // `<image>` in a text

/* The content of a message as a tokenizer's template of the family wants it: a string, or with Idefics2 a list of texts
 * and pictures. */
cJSON *chat_content(const struct chat *c, const char *text);

/* The pictures that come with a text. */
struct chat_pictures {
    size_t count;
    const struct batch_image *image; // (count) mfuyu: their sides
    int64_t most;                    // mfuyu: ids that a text with pictures may take (fuyu_encode); 0: no limit
};

/* A conversation as its template wrote it to ids. special: with what the post-processor adds, but for mfuyu. mllava and
 * mfuyu: the first `<image>` are numbered, those beyond the pictures deleted; Idefics2: more of them is an error. */
enum status chat_encode_text(const struct chat *c, const char *text, bool special, const struct chat_pictures *p,
                             struct ids *out, struct err *e);

/* *images becomes the number of the tower's pictures whose tokens are in ids; fails when there are more than pictures
 * (Idefics2: not just as many; mfuyu: not those of whole pictures), or when an id is outside the model's vocabulary. */
enum status chat_check_ids(const struct chat *c, const struct ids *ids, const struct chat_pictures *p, int64_t *images,
                           struct err *e);

#endif

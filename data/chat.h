/* A chat row to ids and labels. Two ways to write it down: one of Mantis' conversation templates, or the tokenizer's
 * own chat template.
 *
 * Mantis: the rendered text is encoded with what the post-processor adds (BOS), then cut to max_seq_len, then labelled
 * by separators. Own: the template writes its BOS itself. The trained part of an answer is what the template adds
 * between "the conversation up to here, open for an answer" and "the conversation with this answer"; white space after
 * the last special token of it is not trained. A template that rewrites earlier turns has no such part and is refused.
 *
 * Pictures (mllava): a missing `<image>` is put before the first user turn, a surplus one is deleted, the k-th becomes
 * `(image k: <Image><image></Image>)`. */
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

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
};

struct chat_ids {
    struct ids ids;
    int32_t *labels; // (ids.len)
    int64_t images;  // pictures whose token is in ids; they are the first ones of the row
};

/* max_seq_len 0: no limit. out starts as {0}; chat_ids_free after any outcome. An error names the row. */
enum status chat_encode(struct chat_ids *out, const struct chat *c, const struct chat_row *row, int64_t max_seq_len,
                        struct err *e);
void chat_ids_free(struct chat_ids *c);

#endif

/* What a model is to continue: a raw text, or a conversation that a template writes down and leaves open for an answer.
 *
 *   text family    raw text with its BOS; messages go through the tokenizer's chat template, or through one of Mantis'
 *   mllava         a text is the user's turn of a Mantis template (llama_3 unless another is chosen)
 *   idefics2       the same with idefics_2
 *   mfuyu          the same with mfuyu_v1
 *
 * Pictures of mllava and mfuyu stand where the text has `<image>`, as in Mantis' chat_mllava: those without a place
 * come right after the first "USER:" (or "Human:", "HUMAN:") of the rendered text, else at its very start; a surplus
 * `<image>` is deleted. With Idefics2, and under a tokenizer's own template, those without a place begin the first
 * turn of the user; a surplus `<image>` is an error with Idefics2. */
#ifndef DATA_PROMPT_H
#define DATA_PROMPT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/batch.h"
#include "base/status.h"
#include "data/chat.h"
#include "data/dataset.h"
#include "data/image_set.h"
#include "data/processor.h"
#include "data/rows.h"

struct prompter {
    struct chat chat; // conv and own NULL: texts are raw
    struct data_family family;
    struct chat_template *own;
    struct processor processor;
};

/* conv_template NULL: the family's, or the tokenizer's own. raw: only texts will come, as they are, unless the family
 * or conv_template has a template for them. f and t must outlive p. */
enum status prompter_open(struct prompter *p, const struct data_family *f, const struct tokenizer *t,
                          const char *conv_template, bool raw, struct err *e);
void prompter_close(struct prompter *p);

struct prompt {
    const char *text;                // NULL: messages
    const cJSON *messages;           // a list of {role, content}; the last turn is the user's under a Mantis template
    const char *where;               // names the messages in an error
    int64_t images;                  // pictures that come with it, each of prompter_pieces
    const struct batch_image *image; // (images) mfuyu: their sides
    int64_t max_seq_len;             // tokens that are kept; 0: all
};

/* out holds no pixels yet; row_free after any outcome. */
enum status prompt_encode(struct row *out, const struct prompter *p, const struct prompt *prompt, struct err *e);

/* A picture as the processor makes it: out (prompter_pieces); batch_image_free each after any outcome. */
int64_t prompter_pieces(const struct prompter *p);
enum status prompt_read_image(struct batch_image *out, const struct prompter *p, const char *path, struct err *e);

/* Frames of a video (a file, or a folder of frames) as pictures: v->image_count of them, at most `most` unless that is
 * 0; chat_row_free(v) after any outcome. path has to outlive v. They are read in order, each as prompt_read_image. */
enum status prompt_open_video(struct chat_row *v, const char *path, int64_t most, struct err *e);
enum status prompt_read_frame(struct batch_image *out, const struct prompter *p, const struct chat_row *v, int64_t k,
                              struct err *e);

/* A message of text behind the others; `<image>` in it stands for a picture. */
void messages_add(cJSON *messages, const char *role, const char *text);

#endif

/* Text to token ids and back, id for id as Hugging Face tokenizers does it from tokenizer.json: BPE of the Llama-3 kind
 * (byte level, ignore_merges), the Qwen2 kind (NFC, byte level) and the Llama-2/Mistral kind (byte fallback; the space
 * as a normalizer or as a Metaspace pre-tokenizer), and Unigram of the Fuyu kind. A tokenizer.json that asks for
 * anything else is refused by name.
 *
 * Once loaded it does not change: any number of threads may encode with it, each with its own output. */
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"

struct tokenizer;

/* A growing list of token ids. */
struct ids {
    int32_t *data;
    size_t len, room;
};
void ids_add(struct ids *ids, int32_t id);
void ids_repeat(struct ids *ids, size_t at, size_t n); // adds a copy of its own n ids that start at `at`
void ids_clear(struct ids *ids);
void ids_free(struct ids *ids);

/* Reads DIR/tokenizer.json and, when it is there, DIR/tokenizer_config.json (special token names, chat template). */
struct tokenizer *tokenizer_load(const char *dir, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* Adds the ids of text (n bytes, UTF-8) to out. Special tokens in the text are understood. add_special: with what the
 * post-processor adds (the BOS). Text that is not UTF-8 is an error. */
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool add_special, struct ids *out,
                             struct err *e);

/* Adds the text of ids to out; ids that the tokenizer does not know are dropped. skip_special leaves out the tokens
 * that are flagged special. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special, struct text *out);

int64_t tokenizer_size(const struct tokenizer *t);                  // largest id + 1, added tokens included
int32_t tokenizer_id(const struct tokenizer *t, const char *token); // -1 when there is no such token
const char *tokenizer_token(const struct tokenizer *t, int32_t id); // as in the vocabulary; NULL when unknown
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
int32_t tokenizer_bos(const struct tokenizer *t); // from tokenizer_config.json; -1: none
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_pad(const struct tokenizer *t);

/* How many ids at the front of tokenizer_encode(.., add_special) come from the post-processor. */
size_t tokenizer_prefix(const struct tokenizer *t);

/* A model may want the post-processor "BOS + text" whatever tokenizer.json says (MLlavaProcessor rebuilds it so). */
void tokenizer_force_bos(struct tokenizer *t);

#endif

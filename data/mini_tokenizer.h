/* A small tokenizer of the Llama-3 kind (byte-level BPE), made by code for models that are made by code. Its merges are
 * learned from a page of plain English that lies in the source, so it is the same everywhere. */
#ifndef DATA_MINI_TOKENIZER_H
#define DATA_MINI_TOKENIZER_H

#include "base/batch.h"
#include "base/status.h"

/* Writes DIR/tokenizer.json and DIR/tokenizer_config.json (with a chat template of the Llama-3 kind). The special
 * tokens come last: <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> and those of a
 * family with pictures: <image> <|pad|>, or <fake_token_around_image> <image> <end_of_utterance> <|pad|>. */
enum status mini_tokenizer_write(const char *dir, enum family family, struct err *e);

#endif

/* What a tokenizer is made of; for tokenizer.c, which uses it, and tokenizer_load.c, which reads it. */
#ifndef DATA_TOKENIZER_PARTS_H
#define DATA_TOKENIZER_PARTS_H

#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/detokenize.h"
#include "data/normalize.h"
#include "data/pretokenize.h"
#include "data/rune.h"
#include "data/tokenizer.h"
#include "data/unigram.h"

struct tokenizer {
    struct runes *runes;
    struct bpe *bpe;         // the vocabulary, and its merges
    struct unigram *unigram; // NULL: pieces are found by merges
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct added added;
    struct detokenizer detokenizer;
    struct ids prefix, suffix; // the post-processor's
    int32_t bos, eos, pad;
};

#endif

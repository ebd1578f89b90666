/* A text to ids by the most probable pieces: of all ways to cut it into pieces of the vocabulary, the one whose scores
 * sum to the most (Kudo, "Subword Regularization", 2018). The vocabulary itself lies in a struct bpe without merges.
 *
 * A character at which no piece of just that character begins may also be unknown, at a score below every other one.
 * Neighbouring unknown characters are one piece: its token if there is one, else its <0xHH> tokens, else unk. */
#ifndef DATA_UNIGRAM_H
#define DATA_UNIGRAM_H

#include "data/bpe.h"

struct unigram;

/* scores (bpe_limit(vocab)), finite; unk is one of the vocabulary's ids. vocab must outlive it. */
struct unigram *unigram_new(const struct bpe *vocab, const double *scores, int32_t unk, bool byte_fallback);
void unigram_free(struct unigram *u);

/* Adds the ids of a text (valid UTF-8) to out. */
void unigram_encode(const struct unigram *u, const char *s, size_t n, struct ids *out);

#endif

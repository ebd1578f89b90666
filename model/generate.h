/* Text, one token after the other, in memory that is planned once: a cache of keys and values, and the largest piece of
 * a prompt that goes through the network at a time. A long prompt is fed in pieces; a picture is never split.
 *
 *   generator_feed   ids (and pictures) behind those in the cache -> logits of the last position
 *   sampler_choose   logits -> one token
 *
 * A sampler draws token k of a stream from (seed, stream, k), so the same seed gives the same text. */
#ifndef MODEL_GENERATE_H
#define MODEL_GENERATE_H

#include "model/model.h"

struct generator {
    struct workspace *workspace; // its cache holds keys and values of `ids`
    int64_t piece;               // positions that one pass takes
    int64_t picture;             // positions that a picture takes, at most where they are of any number; 0: no pictures
    int64_t room, length;        // positions, at most and now
    int32_t *ids;                // (room) what is in the cache; -1 where a picture's feature stands
    int32_t *positions;          // (piece)
    int32_t *targets;            // (piece), all IGNORED
    float *logits;               // (V) of the last position that was fed
};

struct generator_options {
    int64_t room;         // positions of prompt and answer together, at least 1
    int64_t pictures;     // the most that can come in one prompt
    int64_t most_patches; // of one of them, where they are of any size; 0: those of the learned grid
    int64_t piece;        // positions of one pass; 0: a default; grows to a picture's when there are any
    enum dtype act;
};

/* To be called with the adapter in place, whose ranks the memory depends on. */
enum status generator_new(struct generator **g, struct model *m, const struct generator_options *o, struct err *e);
void generator_free(struct generator *g);

/* ids (n, at least 1), -1 where a picture's feature stands; images in that order, whole. Fails when they do not fit,
 * when an id is outside the vocabulary, or when the device does; the cache is then as it was. */
enum status generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct batch_image *images,
                           int64_t image_count, struct err *e);

/* How much of the cache a prompt of these ids (n, at least 1) can take over: less than n, never part of a picture
 * whose positions are side by side. Pictures are told by their place only: the caller knows that they are the same
 * ones. */
int64_t generator_common(const struct generator *g, const int32_t *ids, int64_t n);

/* Forgets what lies behind the first `length` positions. */
void generator_keep(struct generator *g, int64_t length);

/* --- choosing ---------------------------------------------------------------------------------------------------- */

struct candidate {
    int32_t id;
    double mass; // its probability, not normalised
};

struct sampler {
    double temperature; // 0: the largest logit, of equal ones the lowest id
    double top_p;       // the smallest set of the most probable tokens whose mass is at least that; 1: all
    uint64_t seed, stream;
    int64_t vocab;
    struct candidate *candidates; // (vocab)
};

struct choice {
    int32_t id;
    double logprob; // log softmax of the logits as they are, whatever temperature and top_p say
};

struct sampler sampler_new(int64_t vocab, double temperature, double top_p, uint64_t seed);
void sampler_free(struct sampler *s);

/* Token number `index` of the text. logits (vocab); fails when one is not a number or none is finite. */
enum status sampler_choose(struct choice *out, const struct sampler *s, const float *logits, uint64_t index,
                           struct err *e);

#endif

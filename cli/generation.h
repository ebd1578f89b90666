/* What graft generate and graft chat share: a model with its adapter and templates, and one answer after the other. */
#ifndef CLI_GENERATION_H
#define CLI_GENERATION_H

#include "cli/family.h"
#include "cli/flags.h"
#include "data/image_set.h"
#include "data/prompt.h"
#include "lora/adapter.h"
#include "model/generate.h"

struct generation {
    const struct flags *f;
    char *dir;
    struct model_config config;
    struct data_family family;
    struct tokenizer *tokenizer;
    struct prompter prompter;

    struct backend *be;
    struct model *model;
    struct adapter *adapter;
    struct generator *generator;
    struct sides largest; // of the last prompt's pictures, within which those of any size are cut
    struct sampler sampler;
    uint64_t drawn; // tokens that were chosen so far
    int32_t *stops; // (stop_count) tokens that end an answer
    int64_t stop_count;
    bool interruptible; // SIGINT, which the caller has blocked, ends an answer
};

/* Checks the flags and opens all that is not the model's weights: adapter, temperature, top_p, conv_template, seed and
 * dtype are read from f. raw: see prompter_open. generation_close after any outcome. */
enum status generation_open(struct generation *g, const struct flags *f, bool raw, struct err *e);

/* Loads the model and plans its memory for `room` positions and prompts of as many pictures: those of one prompt, or
 * where it is NULL as large as the processor makes them. */
enum status generation_load(struct generation *g, int64_t room, int64_t pictures, const struct row *prompt,
                            struct err *e);
void generation_close(struct generation *g);

struct answer {
    struct ids ids;                   // with the token that ended it
    double *logprobs;                 // (ids.len)
    struct text text;                 // without special tokens
    bool stopped;                     // by a token that ends answers
    int64_t prompt_positions, reused; // of them the cache had these
    double prompt_seconds, seconds;
};

/* Answers a prompt with its pixels, which stay the row's. What the cache holds of it is not computed again. stream: the
 * text goes to stdout as it comes, whole characters at a time. */
enum status generation_answer(struct answer *a, struct generation *g, const struct row *prompt, int64_t max_new_tokens,
                              bool stream, struct err *e);
void answer_free(struct answer *a);

/* One JSON document on stdout. */
void answer_print_json(const struct answer *a, const struct row *prompt);

#endif

/* What a model gives: the next token, or numbers by name from a head on one position of the row. */
#ifndef BASE_PROBLEM_H
#define BASE_PROBLEM_H

#include <stdbool.h>

enum problem {
    PROBLEM_GENERATION,   // a language model
    PROBLEM_REGRESSION,   // a number for each label; mean squared error
    PROBLEM_SINGLE_LABEL, // one class of several; cross entropy
    PROBLEM_MULTI_LABEL,  // yes or no for each label; binary cross entropy
    PROBLEM_UNSAID,       // a head, of which config.json does not say what it gives: the labels of the data decide
};

enum { MOST_LABELS = 4096 }; // of a head, and of a row

/* problem_type of transformers, "single_label_classification"; "generation" of the first. */
const char *problem_name(enum problem p);
bool problem_find(enum problem *p, const char *name);

/* Which position of a row the head reads, where a pad token stands in the row. Without one: the last. */
enum pooling {
    POOL_LAST_NOT_PAD,     // transformers since 4.50: the last that is no pad token
    POOL_BEFORE_FIRST_PAD, // earlier, and Mantis: the one before the first pad token; the last if that is the first
};

#endif

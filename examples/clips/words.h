/* The command line of the programs that make data. */
#ifndef EXAMPLES_CLIPS_WORDS_H
#define EXAMPLES_CLIPS_WORDS_H

#include "base/status.h"

/* A whole number of things, from `least` on. */
int word_count(const char *word, int least, struct err *e);

#endif

#include "examples/clips/words.h"

#include <stdlib.h>

int word_count(const char *word, int least, struct err *e) {
    enum { MOST = 100000 };
    char *end;
    long n = strtol(word, &end, 10);
    if (end == word || *end || n < least || n > MOST)
        err_set(e, ST_USAGE, "%.40s: wanted a number from %d to %d", word, least, MOST);
    return (int)n;
}

/* Runs a program up to one of its changes of the file system, which it is about to make: a file opened to be written, a
 * write, a flush, a rename, a removal, a new folder. Of many writes in a row two count: before the first, and in the
 * middle. Stopped there it can be killed, or the world can change around it. */
#ifndef TESTS_TRACED_H
#define TESTS_TRACED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/text.h"

struct traced {
    pid_t child;
    int said;        // a file with all that it printed
    int status;      // exit status, once it has ended by itself; -1 when a signal ended it
    int64_t changes; // before the one that it stands at, or all
    int64_t writes;  // since the last other change
};

/* argv ends with NULL; argv[0] is a path. True: it stands before change number `change`, which counts from 0. False: it
 * has ended before, and traced_text may be called. Skips the test where programs may not be traced. */
bool traced_start(struct traced *t, const char *const *argv, int64_t change);

void traced_kill(struct traced *t);   // as kill -9
void traced_finish(struct traced *t); // lets it go on to its end

/* What it printed; the caller frees it. Once only. */
char *traced_text(struct traced *t);

#endif

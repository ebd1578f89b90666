/* Runs a program as a user would, and keeps what it wrote. */
#ifndef TESTS_RUN_COMMAND_H
#define TESTS_RUN_COMMAND_H

#include <stdbool.h>

#include "base/status.h"
#include "base/text.h"

struct command_result {
    struct text out, err; // all of stdout and stderr
    int status;           // exit status; -1 when a signal ended it
    int signal;           // that ended it, else 0
    bool timed_out;       // it was still running after the limit and was killed
};

/* argv ends with NULL; argv[0] is a path. dir is where it stands (NULL: here), input what it reads from stdin (NULL:
 * nothing). Fails only when the program could not be started. command_free in any case. */
enum status command_run(const char *const *argv, const char *dir, const char *input, double seconds,
                        struct command_result *r, struct err *e);
void command_free(struct command_result *r);

const char *graft_path(void); // $GRAFT, or build/release/graft when it is not set

#endif

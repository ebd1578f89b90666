/* How a call says that the world did not cooperate: a status, and one sentence in a struct err.
 *
 * The sentence says what, where, found, wanted and, if there is one, the remedy. The first failure wins: a later
 * err_set on a struct that already holds a failure leaves it as it is. A status is also the exit status of graft. */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

enum status {
    ST_OK = 0,    // done
    ST_FAIL = 1,  // the work failed: a file, the memory, the device, the numbers
    ST_USAGE = 2, // the user asked for something that graft does not take
};

struct err {
    enum status code;
    char text[1024]; // one sentence, no final newline; empty while code is ST_OK
};

/* Leaves the sentence in e, unless e holds a failure already; returns e's code. Control characters become '?'. */
enum status err_set(struct err *e, enum status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif

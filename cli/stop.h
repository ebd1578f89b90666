/* Ctrl-C and SIGTERM for verbs that write: the work ends in good order. A second one ends the program at once. */
#ifndef CLI_STOP_H
#define CLI_STOP_H

#include <signal.h>

void stop_catch(void);
const volatile sig_atomic_t *stop_asked(void); // the signal that came, or 0

#endif

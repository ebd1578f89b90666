#include "cli/stop.h"

#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t asked; // the one thing that a signal handler may touch

static void ask(int number) {
    if (asked) _exit(128 + number); // asked twice
    asked = number;
}

void stop_catch(void) {
    struct sigaction a = {.sa_handler = ask, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

const volatile sig_atomic_t *stop_asked(void) { return &asked; }

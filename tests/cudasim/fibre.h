/* Stacks, and switching between them. A fibre runs one function for ever; it is suspended by switching to another. */
#ifndef TESTS_CUDASIM_FIBRE_H
#define TESTS_CUDASIM_FIBRE_H

#include <stddef.h>

namespace sim {

struct fibre {
    void *top; // the stack pointer while suspended
    char *stack;
    size_t bytes;
    void *fake_stack; // AddressSanitizer's
    struct fibre *next;
};

/* A suspended fibre that will run body(), which never returns. Never freed: the scheduler keeps idle ones. */
struct fibre *fibre_new(void (*body)());

/* Suspends the running fibre and resumes another. The stack of the host thread is a fibre too: fibre_host(). */
void fibre_switch(struct fibre *to);
struct fibre *fibre_host();
extern struct fibre *fibre_running; // in whose stack we are

} // namespace sim

#endif

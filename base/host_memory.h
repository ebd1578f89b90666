/* The memory of this machine, as the system's files tell it. A control group (a container, a session with a limit) may
 * allow less than the machine has; it kills a program that takes more. */
#ifndef BASE_HOST_MEMORY_H
#define BASE_HOST_MEMORY_H

#include <stdint.h>

struct host_memory {
    int64_t total, available; // bytes; available is no more than the limit leaves. 0: not known
    int64_t limit;            // of the group and those around it; 0: none
};

/* root is "", or a folder that stands for the system's root. */
void host_memory_read(struct host_memory *m, const char *root);

#endif

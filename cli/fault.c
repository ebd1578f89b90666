/* The handler runs in the middle of a read of mapped memory, by any thread: it takes no memory and no lock. */
#include "cli/fault.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"

static atomic_flag said; // several threads may meet the hole; one speaks

/* The path of the file that is mapped at an address, from the lines "FROM-TO rights offset device inode PATH" of the
 * system; NULL: none is. The path lies in line. */
static const char *mapped_at(uintptr_t address, char *line, size_t room) {
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t n = 0;
    char c;
    while (fd >= 0 && read(fd, &c, 1) == 1) {
        if (c != '\n') {
            if (n + 1 < room) line[n++] = c;
            continue;
        }
        char *end;
        line[n] = 0, n = 0;
        uintptr_t from = strtoul(line, &end, 16), to = *end == '-' ? strtoul(end + 1, NULL, 16) : 0;
        if (address < from || address >= to) continue;
        close(fd);
        return strchr(line, '/');
    }
    if (fd >= 0) close(fd);
    return NULL;
}

static void say(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) _exit(ST_FAIL);
}

static void lost_page(int number, siginfo_t *info, void *context) {
    enum { ROOM = 4096 + 128 };
    char line[ROOM];
    (void)number, (void)context;
    while (atomic_flag_test_and_set(&said)) pause();
    const char *path = mapped_at((uintptr_t)info->si_addr, line, sizeof line);
    say("graft: ");
    say(path ? path : "a file");
    say(": has become shorter while it was read, or its disk has failed; stopped\n");
    _exit(ST_FAIL);
}

void fault_watch(void) {
    struct sigaction lost = {.sa_sigaction = lost_page, .sa_flags = SA_SIGINFO}, ignored = {.sa_handler = SIG_IGN};
    sigaction(SIGBUS, &lost, NULL);
    sigaction(SIGXFSZ, &ignored, NULL);
}

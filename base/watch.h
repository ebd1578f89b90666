/* Who looks on while long work is done: hears before each part of it how far it has come, and says whether to go on. */
#ifndef BASE_WATCH_H
#define BASE_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct watch {
    bool (*look)(void *arg, const char *name, int64_t done, int64_t total); // false: stop; NULL: no one looks on
    void *arg;
};

/* name is that of the part to come, NULL at the end; done and total are in the work's own measure. */
static inline enum status watch_tell(const struct watch *w, const char *name, int64_t done, int64_t total,
                                     struct err *e) {
    if (!w->look || w->look(w->arg, name, done, total)) return ST_OK;
    return err_set(e, ST_FAIL, "stopped before it was done; nothing was written");
}

#endif

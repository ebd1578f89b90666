/* Where the time of a backend goes; measured where GRAFT_PROFILE=1 is in the environment when the backend is made. On a
 * device, the time of an op is that of its kernels, which then go to it one by one. */
#ifndef KERNELS_PROFILE_H
#define KERNELS_PROFILE_H

#include "base/text.h"
#include "kernels/backend.h"

struct profile;
struct profile *profile_new(void);    // NULL when nobody asks
void profile_free(struct profile *p); // fine on NULL

/* One call more of `what`, a text that lives as long as the program. */
void profile_add(struct profile *p, const char *what, double seconds);

/* be->table->call(be, ...), unless be has failed; its time is taken if that is wanted. The arguments begin with be. */
#define BACKEND_RUN(table, call, ...)                                                                                  \
    do {                                                                                                               \
        if (be->err.code != ST_OK) break;                                                                              \
        if (be->profile) be->calls->note(be, #call);                                                                   \
        be->table->call(__VA_ARGS__);                                                                                  \
        if (be->profile) be->calls->note(be, NULL);                                                                    \
    } while (0)

/* A line for each kind of call, that which took longest first, and what they took together. Nothing when p is NULL or
 * nothing was measured. */
void profile_text(const struct profile *p, struct text *out);

#endif

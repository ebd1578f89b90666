/* Which frames of a video a row takes, as Mantis does. T frames, at most M of them:
 *
 *   T <= M, or M is 0    all, and fps means nothing
 *   spread evenly        int(k * (T / M)) for k < M, in doubles as numpy counts: a file without fps, a folder, a list
 *   by fps (files only)  every ceil(rate / fps)-th, of these the first M */
#ifndef DATA_FRAMES_H
#define DATA_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct frame_rule {
    int64_t most; // M; 0: no limit
    double fps;   // 0: none
};

/* What a source is chosen from. */
struct frame_source {
    const char *where;
    int64_t total;              // T
    int64_t rate_num, rate_den; // frames a second of a file, rate_num 0: the file does not say
    bool file;                  // of a video, not a folder or list
};

struct frame_choice {
    int64_t count;
    int64_t step; // 0: spread evenly
    double each;  // T / M then
};

enum { FRAMES_MOST = 4096 }; // of one row; more are meant by nobody, and refused

enum status frames_choose(struct frame_choice *c, const struct frame_rule *r, const struct frame_source *s,
                          struct err *e);
int64_t frames_index(const struct frame_choice *c, int64_t k); // k < count; grows with k

#endif

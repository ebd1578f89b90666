#include "data/frames.h"

#include <math.h>

/* ceil(rate / fps), at least 1. A whole fps is divided exactly, as Python's fractions are. */
static int64_t step_of(const struct frame_source *s, double fps) {
    double step = ceil((double)s->rate_num / (double)s->rate_den / fps);
    if (fps == floor(fps) && fps < 0x1p31) {
        int64_t den = s->rate_den * (int64_t)fps;
        step = (double)((s->rate_num + den - 1) / den);
    }
    if (!(step >= 1)) return 1;
    return step < (double)s->total ? (int64_t)step : s->total;
}

enum status frames_choose(struct frame_choice *c, const struct frame_rule *r, const struct frame_source *s,
                          struct err *e) {
    *c = (struct frame_choice){.count = s->total, .step = 1};
    if (r->most > 0 && s->total > r->most && !(s->file && r->fps > 0))
        *c = (struct frame_choice){.count = r->most, .each = (double)s->total / (double)r->most};
    else if (r->most > 0 && s->total > r->most) {
        if (s->rate_num <= 0)
            return err_set(e, ST_FAIL, "%s: the file does not say its frame rate, which fps wants; leave fps out",
                           s->where);
        c->step = step_of(s, r->fps);
        c->count = (s->total + c->step - 1) / c->step;
        if (c->count > r->most) c->count = r->most;
    }
    if (c->count <= FRAMES_MOST) return ST_OK;
    return err_set(e, ST_FAIL, "%s: %lld frames would be taken, at most %d are; set max_num_frames", s->where,
                   (long long)c->count, FRAMES_MOST);
}

int64_t frames_index(const struct frame_choice *c, int64_t k) {
    return c->step ? k * c->step : (int64_t)((double)k * c->each);
}

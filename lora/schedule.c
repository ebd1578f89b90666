#include "lora/schedule.h"

#include <math.h>
#include <string.h>

enum schedule_kind schedule_kind_of(const char *name) {
    static const char *const names[] = {"constant", "constant_with_warmup", "linear", "cosine", "wsd"};
    for (int i = SCHEDULE_CONSTANT; i < SCHEDULE_WSD; i++)
        if (strcmp(name, names[i]) == 0) return (enum schedule_kind)i;
    return SCHEDULE_WSD;
}

static double at_least_1(int64_t n) { return n > 1 ? (double)n : 1.0; }

double schedule_factor(const struct schedule *s, int64_t step) {
    int64_t done = step - 1, left = s->total - done;
    if (s->kind == SCHEDULE_CONSTANT) return 1;
    if (done < s->warmup) return (double)done / at_least_1(s->warmup);
    double span = at_least_1(s->total - s->warmup), progress = (double)(done - s->warmup) / span;
    int64_t decay = (s->total + 9) / 10;
    switch (s->kind) {
    case SCHEDULE_LINEAR:
        return left > 0 ? (double)left / span : 0;
    case SCHEDULE_COSINE:
        return fmax(0, 0.5 * (1 + cos(3.141592653589793 * progress)));
    case SCHEDULE_WSD:
        return left >= decay ? 1 : (double)(left > 0 ? left : 0) / (double)decay;
    default:
        return 1;
    }
}

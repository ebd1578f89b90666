#include "kernels/profile.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { MOST_KINDS = 96 };

struct kind {
    const char *what;
    double seconds;
    int64_t calls;
};

struct profile {
    struct kind kinds[MOST_KINDS];
    int count;
};

struct profile *profile_new(void) {
    const char *wanted = getenv("GRAFT_PROFILE");
    return wanted && strcmp(wanted, "1") == 0 ? mem_alloc(sizeof(struct profile)) : NULL;
}

void profile_free(struct profile *p) { free(p); }

void profile_add(struct profile *p, const char *what, double seconds) {
    int i = 0;
    while (i < p->count && strcmp(p->kinds[i].what, what) != 0) i++;
    if (i == MOST_KINDS) i--;
    if (i == p->count) p->kinds[p->count++].what = what;
    p->kinds[i].seconds += seconds;
    p->kinds[i].calls++;
}

static int longest_first(const void *a, const void *b) {
    double x = ((const struct kind *)a)->seconds, y = ((const struct kind *)b)->seconds;
    return (x < y) - (x > y);
}

static void line(struct text *out, const struct kind *k, double all) {
    text_addf(out, "  %-24s %10.1f ms %6.1f%% %9lld calls\n", k->what, 1e3 * k->seconds,
              all > 0 ? 100 * k->seconds / all : 0, (long long)k->calls);
}

void profile_text(const struct profile *p, struct text *out) {
    if (!p || !p->count) return;
    struct profile sorted = *p;
    struct kind all = {.what = "together"};
    qsort(sorted.kinds, (size_t)sorted.count, sizeof *sorted.kinds, longest_first);
    for (int i = 0; i < p->count; i++) all.seconds += p->kinds[i].seconds, all.calls += p->kinds[i].calls;
    text_add(out, "time by op\n");
    for (int i = 0; i < sorted.count; i++) line(out, &sorted.kinds[i], all.seconds);
    line(out, &all, all.seconds);
}

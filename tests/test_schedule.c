/* The learning rates of transformers' schedulers, written down once more from their definitions: lambdas of the number
 * of finished steps, on the peak rate. wsd is warmup_stable_decay with a linear decay over the last tenth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "lora/schedule.h"

static double warm(int done, int warmup) { return (double)done / fmax(1, warmup); }

static double linear(int done, int warmup, int total) {
    return done < warmup ? warm(done, warmup) : fmax(0, (double)(total - done) / fmax(1, total - warmup));
}

static double cosine(int done, int warmup, int total) {
    if (done < warmup) return warm(done, warmup);
    double progress = (double)(done - warmup) / fmax(1, total - warmup);
    return fmax(0, 0.5 * (1 + cos(acos(-1) * 0.5 * 2 * progress)));
}

static double wsd(int done, int warmup, int total) {
    int decay = (int)ceil(0.1 * total - 1e-9), stable = total - warmup - decay;
    if (done < warmup) return warm(done, warmup);
    if (done < warmup + stable) return 1;
    if (done < warmup + stable + decay) return 1 - (double)(done - warmup - stable) / fmax(1, decay);
    return 0;
}

static double constant(int done, int warmup, int total) {
    (void)done, (void)warmup, (void)total;
    return 1;
}

static double constant_with_warmup(int done, int warmup, int total) {
    (void)total;
    return done < warmup ? warm(done, warmup) : 1;
}

static const struct {
    const char *name;
    double (*factor)(int done, int warmup, int total);
} schedulers[] = {
    {"constant", constant}, {"constant_with_warmup", constant_with_warmup}, {"linear", linear}, {"cosine", cosine},
    {"wsd", wsd},
};

static void test_every_step(void **state) {
    static const int totals[] = {1, 2, 3, 9, 10, 11, 100, 137};
    (void)state;
    for (size_t k = 0; k < sizeof schedulers / sizeof *schedulers; k++)
        for (size_t i = 0; i < sizeof totals / sizeof *totals; i++)
            for (int warmup = 0; warmup <= totals[i] - (totals[i] + 9) / 10; warmup += 1 + totals[i] / 7)
                for (int step = 1; step <= totals[i]; step++) {
                    struct schedule s = {schedule_kind_of(schedulers[k].name), warmup, totals[i]};
                    double got = schedule_factor(&s, step), want = schedulers[k].factor(step - 1, warmup, totals[i]);
                    if (!(fabs(got - want) <= 1e-14))
                        fail_msg("%s, warm-up %d of %d, step %d: %.17g, wanted %.17g", schedulers[k].name, warmup,
                                 totals[i], step, got, want);
                }
}

/* The rate rises from 0, is never negative, and never NaN, also where the warm-up is longer than the run. */
static void test_edges(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof schedulers / sizeof *schedulers; k++)
        for (int warmup = 0; warmup < 8; warmup++)
            for (int total = 1; total < 6; total++)
                for (int step = 1; step < 12; step++) {
                    struct schedule s = {schedule_kind_of(schedulers[k].name), warmup, total};
                    double f = schedule_factor(&s, step);
                    assert_true(f >= 0 && f <= 1);
                    if (k > 0 && warmup > 0 && step == 1) assert_true(f == 0);
                }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_step), cmocka_unit_test(test_edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

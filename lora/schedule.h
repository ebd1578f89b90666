/* The learning rate of each step, as transformers' schedulers give it. */
#ifndef LORA_SCHEDULE_H
#define LORA_SCHEDULE_H

#include <stdint.h>

enum schedule_kind { SCHEDULE_CONSTANT, SCHEDULE_CONSTANT_WARMUP, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD };

struct schedule {
    enum schedule_kind kind;
    int64_t warmup, total; // steps
};

/* The factor on the peak rate of step 1, 2, ...: rises from 0 at step 1 over the warm-up, then falls to 0 after the
 * last step as a line, half a cosine, or (wsd: warm-up, stable, decay) as a line over the last tenth of the steps. */
double schedule_factor(const struct schedule *s, int64_t step);

/* By the name that lr_scheduler_type has; the name must be known. */
enum schedule_kind schedule_kind_of(const char *name);

#endif

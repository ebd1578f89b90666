/* What another program gave for a small model: FOLDER/expected.safetensors, tensors by "NAME:WHAT", and
 * FOLDER/expected.json, by NAME how far its results in float lie from those in double, as a part of their length. Every
 * function fails the running test when something is not there. */
#ifndef TESTS_EXPECTED_H
#define TESTS_EXPECTED_H

#include "base/json.h"
#include "base/safetensors.h"
#include "lora/adapter.h"

struct expected {
    struct st_set set;
    cJSON *noise;
};

void expected_open(struct expected *x, const char *folder);
void expected_close(struct expected *x);

const void *expected_data(const struct expected *x, const char *name);
int64_t expected_count(const struct expected *x, const char *name);

double vector_norm(const float *x, int64_t n);
double vector_distance(const float *a, const float *b, int64_t n);

/* F32 in another order of sums, some hundred terms each: ten times what float is away from double there. */
double expected_tolerance(const struct expected *x, const char *name);

/* n numbers are near those of NAME:what, by the distance of the vectors. */
void expected_like(const struct expected *x, const char *name, const char *what, const float *got, int64_t n);

/* Each gradient of NAME is there, and the other way round; "NAME:loss" is no gradient. */
void expected_gradients(const struct expected *x, const char *name, const struct adapter *a);

#endif

#include "base/problem.h"

#include <string.h>

static const char *const names[] = {
    [PROBLEM_GENERATION] = "generation",
    [PROBLEM_REGRESSION] = "regression",
    [PROBLEM_SINGLE_LABEL] = "single_label_classification",
    [PROBLEM_MULTI_LABEL] = "multi_label_classification",
};

const char *problem_name(enum problem p) { return p == PROBLEM_UNSAID ? "unknown" : names[p]; }

bool problem_find(enum problem *p, const char *name) {
    for (int i = 0; i < PROBLEM_UNSAID; i++)
        if (strcmp(names[i], name) == 0) return *p = (enum problem)i, true;
    return false;
}

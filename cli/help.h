/* What graft says about itself. */
#ifndef CLI_HELP_H
#define CLI_HELP_H

#include <stddef.h>

#include "cli/flags.h"

void help_verbs(const struct verb *const *verbs, size_t count);
void help_verb(const struct verb *v);

#endif

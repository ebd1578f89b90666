/* What an adapter touches and how strongly. */
#ifndef CLI_INSPECT_ADAPTER_H
#define CLI_INSPECT_ADAPTER_H

#include "base/status.h"
#include "cli/flags.h"

enum status inspect_adapter(const struct flags *f, const char *dir, struct err *e);

#endif

/* What is in a GGUF file: a model, a vision part or an adapter. */
#ifndef CLI_INSPECT_GGUF_H
#define CLI_INSPECT_GGUF_H

#include "cli/flags.h"

enum status inspect_gguf(const struct flags *f, const char *path, struct err *e);

#endif

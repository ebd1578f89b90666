/* A number of bytes as people write it. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <stdint.h>

#include "base/status.h"

/* "5GB", "500 MB", "1.5GiB", "1000000"; KB is 1000, KiB 1024. `name` is what an error calls it. */
enum status bytes_parse(const char *name, const char *text, int64_t *bytes, struct err *e);

#endif

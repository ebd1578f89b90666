#include "base/bytes.h"

#include <stdlib.h>
#include <strings.h>

enum status bytes_parse(const char *name, const char *text, int64_t *bytes, struct err *e) {
    static const struct {
        const char *name;
        double size;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"KB", 1e3},
                 {"MB", 1e6},
                 {"GB", 1e9},
                 {"TB", 1e12},
                 {"K", 1e3},
                 {"M", 1e6},
                 {"G", 1e9},
                 {"T", 1e12},
                 {"KiB", 1024},
                 {"MiB", 1024.0 * 1024},
                 {"GiB", 1024.0 * 1024 * 1024},
                 {"TiB", 1024.0 * 1024 * 1024 * 1024}};
    char *end;
    double v = strtod(text, &end);
    while (*end == ' ') end++;
    for (size_t i = 0; end != text && i < sizeof units / sizeof *units; i++) {
        if (strcasecmp(end, units[i].name) != 0) continue;
        v *= units[i].size;
        if (!(v >= 1 && v < 9e18)) break;
        *bytes = (int64_t)v;
        return ST_OK;
    }
    return err_set(e, ST_USAGE, "--%s is \"%s\", wanted bytes such as 5GB or 500MB", name, text);
}

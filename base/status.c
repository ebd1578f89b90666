#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

enum status err_set(struct err *e, enum status code, const char *format, ...) {
    if (e->code != ST_OK) return e->code;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    for (char *p = e->text; *p; p++)
        if ((unsigned char)*p < ' ') *p = '?';
    e->code = code;
    return code;
}

#include "data/ffmpeg.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

/* A call, and where it lies in a struct ffmpeg. */
struct call {
    const char *name;
    size_t at;
};

#define LISTED(call) {#call, offsetof(struct ffmpeg, call)},
static const struct call util[] = {FFMPEG_UTIL(LISTED)}, codec[] = {FFMPEG_CODEC(LISTED)},
                         format[] = {FFMPEG_FORMAT(LISTED)}, scale[] = {FFMPEG_SCALE(LISTED)};

static const struct library {
    const char *file;
    const struct call *calls;
    size_t count;
} libraries[] = {
    {"libavutil.so." AV_STRINGIFY(LIBAVUTIL_VERSION_MAJOR), util, sizeof util / sizeof *util},
    {"libavcodec.so." AV_STRINGIFY(LIBAVCODEC_VERSION_MAJOR), codec, sizeof codec / sizeof *codec},
    {"libavformat.so." AV_STRINGIFY(LIBAVFORMAT_VERSION_MAJOR), format, sizeof format / sizeof *format},
    {"libswscale.so." AV_STRINGIFY(LIBSWSCALE_VERSION_MAJOR), scale, sizeof scale / sizeof *scale},
};

static enum status refuse(const char *file, struct err *e) {
    const char *reason = dlerror();
    return err_set(e, ST_FAIL, "videos are read through FFmpeg, but %s does not open (%s); install that version of it",
                   file, reason ? reason : "no reason given");
}

enum status ffmpeg_open(struct ffmpeg *f, struct err *e) {
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        const struct library *l = &libraries[i];
        void *library = dlopen(l->file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (!library) return refuse(l->file, e);
        for (size_t k = 0; k < l->count; k++) {
            void *call = dlsym(library, l->calls[k].name);
            if (!call) return refuse(l->file, e);
            memcpy((char *)f + l->calls[k].at, &call, sizeof call);
        }
        dlclose(library);
    }
    return ST_OK;
}

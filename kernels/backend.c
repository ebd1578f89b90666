/* Which backend a device name means, and the calls that every kind of backend answers through its table. */
#include "kernels/backend.h"

#include <string.h>

#include "kernels/cpu/cpu.h"

static bool names_cuda(const char *device) { return strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0; }

struct backend *backend_new(const char *device, int threads, struct err *e) {
    if (threads < 0) {
        err_set(e, ST_USAGE, "threads is %d, wanted 0 (all) or more", threads);
        return NULL;
    }
    if (strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0) return cpu_backend_new(threads, e);
    if (names_cuda(device))
        err_set(e, ST_FAIL, "device %s: this build of graft has no CUDA backend; use cpu", device);
    else
        err_set(e, ST_USAGE, "device %s is not known, wanted auto or cpu", device);
    return NULL;
}

void backend_free(struct backend *be) {
    if (be) be->calls->free(be);
}

void *backend_alloc(struct backend *be, size_t bytes) { return be->calls->alloc(be, bytes); }

void backend_release(struct backend *be, void *memory) {
    if (memory) be->calls->release(be, memory);
}

void backend_upload(struct backend *be, const struct tensor *dst, const void *src) {
    if (be->err.code == ST_OK) be->calls->upload(be, dst, src);
}

void backend_download(struct backend *be, void *dst, const struct tensor *src) {
    if (be->err.code == ST_OK) be->calls->download(be, dst, src);
}

enum status backend_sync(struct backend *be, struct err *e) {
    if (be->err.code == ST_OK) be->calls->sync(be);
    if (be->err.code == ST_OK) return ST_OK;
    return err_set(e, be->err.code, "%s", be->err.text);
}

const char *backend_describe(const struct backend *be) { return be->calls->describe(be); }

/* Which backend a device name means, and the calls that every kind of backend answers through its table. */
#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"
#include "kernels/profile.h"

static bool names_cuda(const char *device) { return strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0; }

#ifndef CUDA
struct backend *cuda_backend_new(int device, int threads, struct err *e) {
    (void)device, (void)threads;
    err_set(e, ST_FAIL, "this build of graft has no CUDA backend; use cpu, or build with CUDA=1 where nvcc is");
    return NULL;
}
#endif

/* The number of "cuda:N"; -1 when it is none. */
static int device_number(const char *device) {
    if (device[4] == 0) return 0;
    char *end;
    long n = strtol(device + 5, &end, 10);
    return end == device + 5 || *end || device[5] < '0' || device[5] > '9' || n > 1023 ? -1 : (int)n;
}

static struct backend *open_cuda(const char *device, int threads, struct err *e) {
    struct err why = {0};
    int number = device_number(device);
    if (number < 0) {
        err_set(e, ST_USAGE, "device %s is not known, wanted cuda or cuda:N with the number of a device", device);
        return NULL;
    }
    struct backend *be = cuda_backend_new(number, threads, &why);
    if (!be) err_set(e, why.code, "device %s: %s", device, why.text);
    return be;
}

static struct backend *open_best(int threads, struct err *e) {
    struct err unused = {0};
    struct backend *be = cuda_backend_new(0, threads, &unused);
    return be ? be : cpu_backend_new(threads, e);
}

struct backend *backend_new(const char *device, int threads, struct err *e) {
    if (threads < 0) {
        err_set(e, ST_USAGE, "threads is %d, wanted 0 (all) or more", threads);
        return NULL;
    }
    if (strcmp(device, "auto") == 0) return open_best(threads, e);
    if (strcmp(device, "cpu") == 0) return cpu_backend_new(threads, e);
    if (names_cuda(device)) return open_cuda(device, threads, e);
    err_set(e, ST_USAGE, "device %s is not known, wanted auto, cpu, cuda or cuda:N", device);
    return NULL;
}

void backend_free(struct backend *be) {
    if (be) be->calls->free(be);
}

void *backend_alloc(struct backend *be, size_t bytes) { return be->calls->alloc(be, bytes); }

void backend_release(struct backend *be, void *memory) {
    if (memory) be->calls->release(be, memory);
}

void *backend_host_alloc(struct backend *be, size_t bytes) { return be->calls->host_alloc(be, bytes); }

void backend_host_release(struct backend *be, void *memory) {
    if (memory) be->calls->host_release(be, memory);
}

size_t backend_memory_free(struct backend *be) { return be->calls->memory_free(be); }

void backend_upload(struct backend *be, const struct tensor *dst, const void *src) {
    BACKEND_RUN(calls, upload, be, dst, src);
}

void backend_download(struct backend *be, void *dst, const struct tensor *src) {
    BACKEND_RUN(calls, download, be, dst, src);
}

void backend_store(struct backend *be, void *host, const struct tensor *src) {
    BACKEND_RUN(calls, store, be, host, src);
}

void backend_fetch(struct backend *be, const struct tensor *dst, const void *host) {
    BACKEND_RUN(calls, fetch, be, dst, host);
}

void backend_await(struct backend *be) { BACKEND_RUN(calls, await, be); }

enum status backend_sync(struct backend *be, struct err *e) {
    if (be->err.code == ST_OK) be->calls->sync(be);
    if (be->err.code == ST_OK) return ST_OK;
    return err_set(e, be->err.code, "%s", be->err.text);
}

const char *backend_describe(const struct backend *be) { return be->calls->describe(be); }

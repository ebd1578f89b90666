/* Where tensors live and who computes on them. A model holds a struct backend and never knows the device.
 *
 * Memory comes in few, large pieces (backend_alloc) that arenas lay out; after set-up nothing allocates. Ops return
 * nothing: a failure is remembered in `err`, later ops do nothing, backend_sync reports it. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/tensor.h"
#include "base/threads.h"

struct ops;
struct profile;
struct backend_calls;

struct backend {
    const struct ops *ops;             // kernels/ops_table.h
    const struct backend_calls *calls; // how this kind of backend does what is declared below
    const char *name;                  // "cpu", "cuda:0"
    bool host_memory;        // the host may read and write tensors directly, so mapped weights are used in place
    size_t own_bytes;        // memory of the device that the backend itself holds, from its start to its end
    struct threads *threads; // for work on the host, whatever the device
    struct profile *profile; // kernels/profile.h; NULL: nothing is measured
    struct err err;          // the first failure of an op
};

/* device: "auto" (a GPU where there is one that graft runs on, else the CPU), "cpu", "cuda", "cuda:N". threads 0: all
 * that the machine has for us. NULL with the error set when the device is not to be had; says so in one sentence. */
struct backend *backend_new(const char *device, int threads, struct err *e);
void backend_free(struct backend *be);

/* Zeroed memory of the device, aligned to ARENA_ALIGN; NULL with be->err set when there is not enough. */
void *backend_alloc(struct backend *be, size_t bytes);
void backend_release(struct backend *be, void *memory);

/* Zeroed memory that both the host and ops may read and write; slow for a device. NULL with be->err set. */
void *backend_host_alloc(struct backend *be, size_t bytes);
void backend_host_release(struct backend *be, void *memory);

/* Memory of the device that is free now, if it is not the host's; SIZE_MAX where it is. */
size_t backend_memory_free(struct backend *be);

/* tensor_bytes(dst) bytes; when it returns, src may be used for other things. */
void backend_upload(struct backend *be, const struct tensor *dst, const void *src);
void backend_download(struct backend *be, void *dst, const struct tensor *src); // waits until the bytes are there

/* tensor_bytes bytes to and from memory of backend_host_alloc, beside the ops that follow. Copies run in their order,
 * each after the ops before it. What a copy reads is not to be written, and what it writes not to be touched, before a
 * backend_await: the ops after that run after all copies before it. */
void backend_store(struct backend *be, void *host, const struct tensor *src);
void backend_fetch(struct backend *be, const struct tensor *dst, const void *host);
void backend_await(struct backend *be);

enum status backend_sync(struct backend *be, struct err *e); // the one place where op errors surface

/* What computes, in words for a person: "CPU, AVX-512 and AMX, 2 threads". Lives as long as the backend. */
const char *backend_describe(const struct backend *be);

/* One pointer for each call above, same meaning; each kind of backend has one table. A call that fails sets be->err. */
struct backend_calls {
    void (*free)(struct backend *be);
    void *(*alloc)(struct backend *be, size_t bytes);
    void (*release)(struct backend *be, void *memory);
    void *(*host_alloc)(struct backend *be, size_t bytes);
    void (*host_release)(struct backend *be, void *memory);
    size_t (*memory_free)(struct backend *be);
    void (*upload)(struct backend *be, const struct tensor *dst, const void *src);
    void (*download)(struct backend *be, void *dst, const struct tensor *src);
    void (*store)(struct backend *be, void *host, const struct tensor *src);
    void (*fetch)(struct backend *be, const struct tensor *dst, const void *host);
    void (*await)(struct backend *be);
    void (*sync)(struct backend *be);
    void (*note)(struct backend *be, const char *what); // what is issued from here on is `what`, or nothing: NULL
    const char *(*describe)(const struct backend *be);
};

#endif

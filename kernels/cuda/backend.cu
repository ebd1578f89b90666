/* The CUDA backend: which device, its memory, and transfers. Everything is issued to one stream in the order of the
 * calls, so an upload is there for the op that follows it, and memory is free for an upload once the ops before it are
 * done; but for the copies to the host and back that run beside the ops: they have a stream of their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/graphs.cuh"

extern "C" {
#include "base/memory.h"
#include "kernels/profile.h"
}

extern const struct ops cuda_ops;

/* --- errors ------------------------------------------------------------------------------------------------------ */

static const char *remedy(cudaError_t result) {
    switch (result) {
    case cudaErrorMemoryAllocation:
        return "; lower per_device_train_batch_size or max_seq_len, or close what else uses the device";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
        return "; this graft has no code for the device: build it with CUDA_ARCHS naming its compute capability";
    case cudaErrorUnsupportedPtxVersion:
        return "; install a newer driver, or build graft with CUDA_ARCHS naming the compute capability of the device";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
        return "; this is a fault of graft, or of the device: CUDA_LAUNCH_BLOCKING=1 shows in which op";
    case cudaErrorECCUncorrectable:
        return "; the memory of the device is damaged, nvidia-smi -q shows where";
    default:
        return "";
    }
}

void cuda_check(struct backend *be, cudaError_t result, const char *what) {
    if (result == cudaSuccess) return;
    err_set(&be->err, ST_FAIL, "%s: %s: %s%s", be->name, what, cudaGetErrorString(result), remedy(result));
    cudaGetLastError(); // a failed call is reported once
}

/* --- indices of files -------------------------------------------------------------------------------------------- */

struct index_check cuda_index_check(struct backend *be, const char *op, int64_t low, int64_t limit) {
    struct cuda_backend *c = cuda_of(be);
    int i = 0;
    while (i < c->checks &&
           !(strcmp(c->checked[i].name, op) == 0 && c->checked[i].low == low && c->checked[i].limit == limit))
        i++;
    if (i == INDEX_CHECKS) i--; // the sentence may then name another op
    c->checked[i] = {op, low, limit};
    if (i == c->checks) c->checks++;
    return {c->indices + i, low, limit};
}

static void report_indices(struct cuda_backend *c) {
    unsigned long long first[INDEX_CHECKS];
    graphs_restart(&c->base);
    if (!c->checks) return;
    cuda_check(&c->base,
               cudaMemcpyAsync(first, c->indices, c->checks * sizeof *first, cudaMemcpyDeviceToHost, c->stream),
               "sync");
    cuda_check(&c->base, cudaStreamSynchronize(c->stream), "sync");
    for (int i = 0; i < c->checks && c->base.err.code == ST_OK; i++) {
        const struct checked_op *op = &c->checked[i];
        if (first[i] == ~0ull) continue;
        err_set(&c->base.err, ST_FAIL, "%s: index %d at position %lld, wanted %lld .. %lld", op->name,
                static_cast<int>(first[i]), static_cast<long long>(first[i] >> 32), static_cast<long long>(op->low),
                static_cast<long long>(op->limit) - 1);
    }
    c->checks = 0;
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static size_t cuda_memory_free(struct backend *be) {
    size_t free_bytes = 0, total = 0;
    cuda_check(be, cudaMemGetInfo(&free_bytes, &total), "memory");
    return free_bytes;
}

static void *cuda_alloc(struct backend *be, size_t bytes) {
    void *memory = NULL;
    size_t free_bytes = cuda_memory_free(be);
    cudaError_t result = bytes <= free_bytes ? cudaMalloc(&memory, bytes ? bytes : 1) : cudaErrorMemoryAllocation;
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        err_set(&be->err, ST_FAIL,
                "%zu MiB of the memory of %s wanted, %zu MiB are free; set quantization: nf4, lower max_seq_len or "
                "per_device_train_batch_size, or close what else uses the device",
                bytes >> 20, be->name, free_bytes >> 20);
        return NULL;
    }
    cuda_check(be, result, "memory");
    if (memory) cuda_check(be, cudaMemsetAsync(memory, 0, bytes, cuda_of(be)->stream), "memory");
    return memory;
}

/* Waits for all ops, which may still use the memory. */
static void cuda_release(struct backend *be, void *memory) {
    graphs_flush(be);
    cuda_check(be, cudaFree(memory), "release");
}

static void *cuda_host_alloc(struct backend *be, size_t bytes) {
    void *memory = NULL;
    cuda_check(be, cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocMapped), "memory of the host");
    if (memory) memset(memory, 0, bytes);
    return memory;
}

/* Waits too. */
static void cuda_host_release(struct backend *be, void *memory) {
    graphs_flush(be);
    cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "release of memory of the host");
    cuda_check(be, cudaStreamSynchronize(cuda_of(be)->copies), "release of memory of the host");
    cuda_check(be, cudaFreeHost(memory), "release of memory of the host");
}

/* --- where the time goes ----------------------------------------------------------------------------------------- */

/* Waits for the last mark, which stays. */
static void marks_read(struct backend *be) {
    struct marks *m = cuda_of(be)->marks;
    int last = m->count - 1;
    if (last < 1) return;
    cuda_check(be, cudaEventSynchronize(m->at[last]), "profile");
    for (int i = 0; i < last; i++) {
        float ms = 0;
        if (m->ops[i] && cudaEventElapsedTime(&ms, m->at[i], m->at[i + 1]) == cudaSuccess)
            profile_add(be->profile, m->ops[i], static_cast<double>(ms) * 1e-3);
    }
    cudaEvent_t first = m->at[0];
    m->at[0] = m->at[last], m->at[last] = first;
    m->ops[0] = m->ops[last];
    m->count = 1;
}

void cuda_note(struct backend *be, const char *what) {
    struct marks *m = cuda_of(be)->marks;
    if (!m) return;
    if (m->count == MARKS) marks_read(be);
    graphs_flush(be);
    cuda_check(be, cudaEventRecord(m->at[m->count], cuda_of(be)->stream), "profile");
    m->ops[m->count++] = what;
}

static void marks_new(struct cuda_backend *c) {
    c->base.profile = profile_new();
    if (!c->base.profile) return;
    c->marks = static_cast<struct marks *>(mem_alloc(sizeof *c->marks));
    for (cudaEvent_t &e : c->marks->at)
        if (c->base.err.code == ST_OK) cuda_check(&c->base, cudaEventCreate(&e), "event");
}

static void marks_free(struct marks *m) {
    for (int i = 0; m && i < MARKS; i++)
        if (m->at[i]) cudaEventDestroy(m->at[i]);
    free(m);
}

/* --- transfers --------------------------------------------------------------------------------------------------- */

/* Goes to the next piece and waits until its last copy is done. */
static void staging_advance(struct cuda_backend *c) {
    struct staging *s = &c->staging;
    cuda_check(&c->base, cudaEventRecord(s->sent[s->piece], c->stream), "upload");
    s->piece = (s->piece + 1) % STAGING_PIECES;
    s->used = 0;
    cuda_check(&c->base, cudaEventSynchronize(s->sent[s->piece]), "upload");
}

enum : size_t { COPY_BYTES = 256u << 10 }; // of one task

struct staging_copy {
    char *to;
    const char *from;
    size_t bytes;
};

static void copy_task(void *arg, int64_t task, int) {
    const struct staging_copy *c = static_cast<const struct staging_copy *>(arg);
    size_t at = static_cast<size_t>(task) * COPY_BYTES, rest = c->bytes - at;
    memcpy(c->to + at, c->from + at, rest < COPY_BYTES ? rest : size_t{COPY_BYTES});
}

static void cuda_upload(struct backend *be, const struct tensor *dst, const void *src) {
    struct cuda_backend *c = cuda_of(be);
    struct staging *s = &c->staging;
    size_t bytes = tensor_bytes(dst);
    graphs_restart(be);
    for (size_t at = 0; at < bytes && be->err.code == ST_OK;) {
        if (s->used == STAGING_BYTES) staging_advance(c);
        size_t room = STAGING_BYTES - s->used, n = bytes - at < room ? bytes - at : room;
        char *piece = s->bytes + s->piece * STAGING_BYTES + s->used;
        struct staging_copy copy = {piece, static_cast<const char *>(src) + at, n};
        threads_for(be->threads, static_cast<int64_t>((n + COPY_BYTES - 1) / COPY_BYTES), copy_task, &copy);
        cuda_check(be,
                   cudaMemcpyAsync(static_cast<char *>(dst->data) + at, piece, n, cudaMemcpyHostToDevice, c->stream),
                   "upload");
        s->used = (s->used + n + 63) / 64 * 64;
        at += n;
    }
}

static void cuda_download(struct backend *be, void *dst, const struct tensor *src) {
    cudaStream_t stream = cuda_of(be)->stream;
    size_t bytes = tensor_bytes(src);
    graphs_restart(be);
    if (bytes) cuda_check(be, cudaMemcpyAsync(dst, src->data, bytes, cudaMemcpyDefault, stream), "download");
    cuda_check(be, cudaStreamSynchronize(stream), "download");
}

/* A copy beside the ops, after those that were issued. */
static void copy_beside(struct backend *be, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    struct cuda_backend *c = cuda_of(be);
    graphs_flush(be);
    cuda_check(be, cudaEventRecord(c->issued, c->stream), "copy");
    cuda_check(be, cudaStreamWaitEvent(c->copies, c->issued, 0), "copy");
    if (bytes) cuda_check(be, cudaMemcpyAsync(to, from, bytes, kind, c->copies), "copy");
}

static void cuda_store(struct backend *be, void *host, const struct tensor *src) {
    copy_beside(be, host, src->data, tensor_bytes(src), cudaMemcpyDeviceToHost);
}

static void cuda_fetch(struct backend *be, const struct tensor *dst, const void *host) {
    copy_beside(be, dst->data, host, tensor_bytes(dst), cudaMemcpyHostToDevice);
}

static void cuda_await(struct backend *be) {
    struct cuda_backend *c = cuda_of(be);
    graphs_flush(be);
    cuda_check(be, cudaEventRecord(c->copied, c->copies), "copy");
    cuda_check(be, cudaStreamWaitEvent(c->stream, c->copied, 0), "copy");
}

static void cuda_sync(struct backend *be) {
    report_indices(cuda_of(be));
    cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "sync");
    if (cuda_of(be)->marks) marks_read(be);
}

/* --- the device -------------------------------------------------------------------------------------------------- */

static const char *cuda_describe(const struct backend *be) {
    return reinterpret_cast<const struct cuda_backend *>(be)->about;
}

static void cuda_free(struct backend *be) {
    struct cuda_backend *c = cuda_of(be);
    graphs_flush(be);
    if (c->stream) cudaStreamSynchronize(c->stream);
    if (c->copies) cudaStreamSynchronize(c->copies);
    graphs_free(c->graphs);
    cublaslt_close(c->blas);
    for (int i = 0; i < STAGING_PIECES; i++)
        if (c->staging.sent[i]) cudaEventDestroy(c->staging.sent[i]);
    if (c->staging.bytes) cudaFreeHost(c->staging.bytes);
    if (c->scratch) cudaFree(c->scratch);
    if (c->issued) cudaEventDestroy(c->issued);
    if (c->copied) cudaEventDestroy(c->copied);
    if (c->copies) cudaStreamDestroy(c->copies);
    if (c->stream) cudaStreamDestroy(c->stream);
    threads_free(c->base.threads);
    marks_free(c->marks);
    profile_free(c->base.profile);
    free(c);
}

static const struct backend_calls cuda_calls = {
    .free = cuda_free,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .host_alloc = cuda_host_alloc,
    .host_release = cuda_host_release,
    .memory_free = cuda_memory_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .store = cuda_store,
    .fetch = cuda_fetch,
    .await = cuda_await,
    .sync = cuda_sync,
    .note = cuda_note,
    .describe = cuda_describe,
};

/* Whether the device is there and can run these kernels. */
static enum status look_at_device(int device, int *major, int *minor, struct err *e) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        if (!driver) return err_set(e, ST_FAIL, "no CUDA driver is installed; use cpu");
        return err_set(e, ST_FAIL, "the driver serves CUDA %d.%d and this graft wants %d.%d; install a newer driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0)) {
        cudaGetLastError();
        return err_set(e, ST_FAIL, "the driver shows no device; CUDA_VISIBLE_DEVICES may hide it");
    }
    if (result != cudaSuccess)
        return err_set(e, ST_FAIL, "the driver does not start (%s); nvidia-smi says why", cudaGetErrorString(result));
    if (device >= count)
        return err_set(e, ST_FAIL, "there %s %d device%s, numbered from 0", count == 1 ? "is" : "are", count,
                       count == 1 ? "" : "s");
    cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(minor, cudaDevAttrComputeCapabilityMinor, device);
    if (*major * 10 + *minor < 75)
        return err_set(e, ST_FAIL, "its compute capability is %d.%d, wanted 7.5 or more; use cpu", *major, *minor);
    return ST_OK;
}

/* Launched by nobody; asked for, so that a build without code for the device is refused before a model is read. */
__global__ void any_kernel() {}

static void look_for_code(struct backend *be) {
    struct cudaFuncAttributes found;
    if (be->err.code == ST_OK) cuda_check(be, cudaFuncGetAttributes(&found, any_kernel), "kernels");
}

static void new_stream(struct backend *be, cudaStream_t *s) {
    if (be->err.code == ST_OK) cuda_check(be, cudaStreamCreateWithFlags(s, cudaStreamNonBlocking), "stream");
}

static void new_event(struct backend *be, cudaEvent_t *e) {
    if (be->err.code == ST_OK) cuda_check(be, cudaEventCreateWithFlags(e, cudaEventDisableTiming), "event");
}

/* What ops need beside their tensors. */
static void take_own(struct cuda_backend *c) {
    struct backend *be = &c->base;
    size_t words = INDEX_CHECKS * sizeof *c->indices;
    void *memory = NULL;
    int shared = 0;
    cuda_check(be, cudaSetDevice(c->device), "device");
    cuda_check(be, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device), "device");
    c->block_shared = static_cast<size_t>(shared);
    cuda_check(be, cudaDeviceGetAttribute(&c->processors, cudaDevAttrMultiProcessorCount, c->device), "device");
    look_for_code(be);
    new_stream(be, &c->stream), new_stream(be, &c->copies);
    new_event(be, &c->issued), new_event(be, &c->copied);
    marks_new(c);
    if (be->err.code == ST_OK) c->scratch = static_cast<char *>(cuda_alloc(be, CUDA_SCRATCH + words));
    if (be->err.code == ST_OK) {
        c->indices = reinterpret_cast<unsigned long long *>(c->scratch + CUDA_SCRATCH);
        cuda_check(be, cudaMemsetAsync(c->indices, 0xFF, words, c->stream), "memory");
        be->own_bytes = CUDA_SCRATCH + words;
    }
    for (int i = 0; i < STAGING_PIECES; i++) new_event(be, &c->staging.sent[i]);
    if (be->err.code == ST_OK)
        cuda_check(be, cudaHostAlloc(&memory, STAGING_PIECES * STAGING_BYTES, cudaHostAllocDefault), "staging");
    c->staging.bytes = static_cast<char *>(memory);
}

/* Products go by cuBLAS where it opens; without it graft's own kernels serve, and the description says so. */
static void open_cublaslt(struct cuda_backend *c, char *text, size_t size) {
    struct err why = {};
    c->blas = cublaslt_open(c->device, &why);
    cudaGetLastError(); // a refusal is told in words
    if (c->blas)
        c->base.own_bytes += cublaslt_describe(c->blas, text, size);
    else
        snprintf(text, size, "slow without cuBLAS (%.280s)", why.text);
}

static void describe(struct cuda_backend *c, int major, int minor, const char *products) {
    struct cudaDeviceProp properties = {};
    cuda_check(&c->base, cudaGetDeviceProperties(&properties, c->device), "device");
    int threads = threads_count(c->base.threads);
    const char *slow = major < 8 ? " (no bf16 tensor cores: --dtype f32 is faster)" : "";
    snprintf(c->about, sizeof c->about, "%.60s, compute capability %d.%d%s, %.1f GB, %s, %d thread%s on the host",
             properties.name, major, minor, slow, static_cast<double>(properties.totalGlobalMem) / 1e9, products,
             threads, threads == 1 ? "" : "s");
}

struct backend *cuda_backend_new(int device, int threads, struct err *e) {
    int major = 0, minor = 0;
    char products[320] = "";
    if (look_at_device(device, &major, &minor, e) != ST_OK) return NULL;
    struct cuda_backend *c = static_cast<struct cuda_backend *>(mem_alloc(sizeof *c));
    snprintf(c->name, sizeof c->name, "cuda:%d", device);
    c->base.ops = &cuda_ops;
    c->base.calls = &cuda_calls;
    c->base.name = c->name;
    c->device = device;
    c->graphs = graphs_new();
    c->base.threads = threads_new(threads);
    take_own(c);
    if (c->base.err.code == ST_OK) open_cublaslt(c, products, sizeof products);
    if (c->base.err.code == ST_OK) describe(c, major, minor, products);
    if (c->base.err.code == ST_OK) return &c->base;
    err_set(e, c->base.err.code, "%s", c->base.err.text);
    cuda_free(&c->base);
    return NULL;
}

/* The host's side of CUDA but for streams and events. The device is one of compute capability 8.0, but a block gets no
 * more shared memory than on any later one; or one of 7.5. GRAFT_SIM_MEMORY is its memory in MiB. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudasim/cuda_runtime.h"
#include "tests/cudasim/runtime.h"

namespace sim {

static cudaError_t last = cudaSuccess;

cudaError_t give(cudaError_t e) {
    if (here) fail("a call of the host's side of CUDA in a kernel");
    if (e != cudaSuccess) last = e;
    return e;
}

/* Whether a copy of that kind may read or write there; fills in what cudaMemcpyDefault means. */
static bool on_device(const void *p, size_t bytes) {
    enum memory_kind k = memory_find(p, bytes);
    return k == MEMORY_DEVICE || k == MEMORY_HOST;
}

static bool on_host(const void *p) { return !memory_in_range(p) || memory_find(p, 1) == MEMORY_HOST; }

static bool may_copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        return on_host(to) && on_host(from);
    case cudaMemcpyHostToDevice:
        return on_device(to, bytes) && on_host(from);
    case cudaMemcpyDeviceToHost:
        return on_host(to) && on_device(from, bytes);
    case cudaMemcpyDeviceToDevice:
        return on_device(to, bytes) && on_device(from, bytes);
    default:
        return (on_device(to, bytes) || on_host(to)) && (on_device(from, bytes) || on_host(from));
    }
}

void copy_now(void *to, const void *from, size_t bytes) {
    memmove(to, from, bytes);
    if (on_device(to, bytes)) race_expose(to, bytes, true);
}

void fill_now(void *p, int value, size_t bytes) {
    memset(p, value, bytes);
    race_expose(p, bytes, true);
}

/* Memory of the host that is not page-locked is copied when the call returns. */
static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    if (bytes == 0) return give(cudaSuccess);
    if (!may_copy(to, from, bytes, kind)) return give(cudaErrorInvalidValue);
    if (on_device(to, bytes) && on_device(from, bytes)) {
        stream_copy(s, to, from, bytes);
    } else if (stream_captures(s)) {
        fail("a copy of the host's memory is captured, whose memory the graph would read later");
    } else {
        stream_finish(s);
        copy_now(to, from, bytes);
    }
    return give(cudaSuccess);
}

static cudaError_t fill(void *p, int value, size_t bytes, cudaStream_t s) {
    if (bytes == 0) return give(cudaSuccess);
    if (!on_device(p, bytes)) return give(cudaErrorInvalidValue);
    stream_fill(s, p, value, bytes);
    return give(cudaSuccess);
}

static cudaError_t allocate(void **p, enum memory_kind kind, size_t bytes) {
    *p = bytes ? memory_new(kind, bytes) : nullptr;
    return give(bytes && !*p ? cudaErrorMemoryAllocation : cudaSuccess);
}

static cudaError_t release(void *p, enum memory_kind kind) {
    return give(!p || memory_free(kind, p) ? cudaSuccess : cudaErrorInvalidValue);
}

} // namespace sim

/* --- the device -------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return sim::give(cudaSuccess);
}

cudaError_t cudaSetDevice(int device) { return sim::give(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return sim::give(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device != 0) return sim::give(cudaErrorInvalidDevice);
    sim::memory_open();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "simulator");
    p->totalGlobalMem = sim::memory_limit();
    p->sharedMemPerBlock = sim::SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = sim::shared_most();
    p->sharedMemPerMultiprocessor = sim::before_8 ? 64 * 1024 : 164 * 1024;
    p->major = sim::before_8 ? 7 : 8;
    p->minor = sim::before_8 ? 5 : 0;
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = sim::before_8 ? 1024 : 2048;
    p->regsPerBlock = 65536;
    p->l2CacheSize = 40 << 20;
    p->canMapHostMemory = 1;
    p->unifiedAddressing = 1;
    return sim::give(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device) {
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) return e;
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrIntegrated:
        *value = p.integrated;
        break;
    case cudaDevAttrCanMapHostMemory:
        *value = p.canMapHostMemory;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = static_cast<int>(p.sharedMemPerMultiprocessor);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(p.sharedMemPerBlockOptin);
        break;
    default:
        return sim::give(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned) { return sim::give(cudaSuccess); }

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 12000;
    return sim::give(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 12000;
    return sim::give(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    sim::memory_open();
    *total = sim::memory_limit();
    *free = *total - sim::memory_in_use(sim::MEMORY_DEVICE);
    return sim::give(cudaSuccess);
}

/* --- errors ------------------------------------------------------------------------------------------------------ */

cudaError_t cudaGetLastError() {
    cudaError_t e = sim::last;
    sim::last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError() { return sim::last; }

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

const char *cudaGetErrorString(cudaError_t e) {
    for (const auto &known : errors)
        if (known.code == e) return known.text;
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t e) {
    for (const auto &known : errors)
        if (known.code == e) return known.name;
    return "unrecognized error code";
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

cudaError_t cudaMalloc(void **p, size_t bytes) { return sim::allocate(p, sim::MEMORY_DEVICE, bytes); }
cudaError_t cudaFree(void *p) {
    sim::streams_finish();
    return sim::release(p, sim::MEMORY_DEVICE);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return sim::allocate(p, sim::MEMORY_HOST, bytes); }
cudaError_t cudaMallocHost(void **p, size_t bytes) { return sim::allocate(p, sim::MEMORY_HOST, bytes); }
cudaError_t cudaFreeHost(void *p) { return sim::release(p, sim::MEMORY_HOST); }

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    *device = host;
    return sim::give(sim::memory_find(host, 1) == sim::MEMORY_HOST ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    enum sim::memory_kind k = sim::memory_find(p, 1);
    void *same = const_cast<void *>(p);
    if (k == sim::MEMORY_DEVICE)
        *a = {cudaMemoryTypeDevice, 0, same, nullptr};
    else if (k == sim::MEMORY_HOST)
        *a = {cudaMemoryTypeHost, 0, same, same};
    else
        *a = {cudaMemoryTypeUnregistered, 0, nullptr, same};
    return sim::give(cudaSuccess);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return sim::copy(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    return sim::copy(to, from, bytes, kind, s);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t s) {
    if (width > to_pitch || width > from_pitch) return sim::give(cudaErrorInvalidValue);
    for (size_t y = 0; y < height; y++) {
        cudaError_t e = sim::copy(static_cast<char *>(to) + y * to_pitch,
                                  static_cast<const char *>(from) + y * from_pitch, width, kind, s);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes) { return sim::fill(p, value, bytes, nullptr); }
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) { return sim::fill(p, value, bytes, s); }

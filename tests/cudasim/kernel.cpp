/* Kernels as the host names them: by address. A program gives an array of pointers to the arguments, and their sizes are
 * known from the kernel's type, which device_kernel saw. */
#include <string.h>

#include "tests/cudasim/cuda_runtime.h"
#include "tests/cudasim/runtime.h"

namespace sim {

struct known_kernel {
    const void *kernel;
    void (*run)(const void *kernel, const void *bound);
    const size_t *sizes;
};

enum : size_t { KERNELS = 4096 };

static struct known_kernel known[KERNELS];

/* Where the kernel is, or is to be. */
static struct known_kernel *place_of(const void *kernel) {
    size_t first = reinterpret_cast<uintptr_t>(kernel) / 16 % KERNELS;
    for (size_t i = 0; i < KERNELS; i++) {
        struct known_kernel *k = &known[(first + i) % KERNELS];
        if (!k->kernel || k->kernel == kernel) return k;
    }
    fail("more kernels than %zu", size_t{KERNELS});
}

void kernel_declare(const void *kernel, void (*run)(const void *kernel, const void *bound), const size_t *sizes) {
    *place_of(kernel) = {kernel, run, sizes};
}

static size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

bool launch_bind(struct launch *l, void *const *arguments) {
    const struct known_kernel *k = place_of(l->kernel);
    if (!k->kernel) return false;
    l->run = k->run;
    size_t bytes = 0;
    for (const size_t *size = k->sizes; *size; size++) bytes += aligned(*size);
    if (bytes > BOUND_MOST)
        fail("the arguments of a kernel take %zu bytes, at most %zu may", bytes, size_t{BOUND_MOST});
    char *to = static_cast<char *>(const_cast<void *>(l->bound));
    for (const size_t *size = k->sizes; *size; to += aligned(*size), size++) memcpy(to, *arguments++, *size);
    l->bound_bytes = bytes;
    return true;
}

} // namespace sim

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t s) {
    alignas(16) char bound[sim::BOUND_MOST];
    struct sim::launch l = {kernel, nullptr, bound, 0, grid, block, shared};
    if (!sim::launch_bind(&l, arguments)) return sim::give(cudaErrorInvalidDeviceFunction);
    return sim::give(sim::stream_launch(s, &l) ? cudaSuccess : cudaErrorInvalidConfiguration);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel) {
    *a = {};
    a->maxThreadsPerBlock = 1024;
    return sim::give(kernel ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute a, int value) {
    bool size = a == cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (size && (value < 0 || static_cast<size_t>(value) > sim::shared_most())) return sim::give(cudaErrorInvalidValue);
    if (size) sim::shared_grant(kernel, static_cast<size_t>(value));
    return sim::give(cudaSuccess);
}

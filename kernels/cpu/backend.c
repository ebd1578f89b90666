/* The CPU as a backend: memory, threads, and the choice of the widest table of ops that the machine runs.
 *
 * GRAFT_CPU_ISA in the environment forces a table by name, so that the tests can run all of them on one machine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/profile.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

struct isa {
    const char *name, *words;
    const struct ops *ops;
    bool (*runs)(void);
    bool amx; // its matrix products use AMX where there is any
};

#if defined(__x86_64__)
extern const struct ops cpu_ops_x86_64, cpu_ops_x86_64_v3, cpu_ops_x86_64_v4;

static bool runs_always(void) { return true; }

static bool runs_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

static bool runs_v4(void) {
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static const struct isa isas[] = {
    // the widest first; a name is taken once only by default
    {"x86-64-v4", "AVX-512", &cpu_ops_x86_64_v4, runs_v4, true},
    {"x86-64-v4-noamx", "AVX-512", &cpu_ops_x86_64_v4, runs_v4, false},
    {"x86-64-v3", "AVX2", &cpu_ops_x86_64_v3, runs_v3, false},
    {"x86-64", "SSE2", &cpu_ops_x86_64, runs_always, false},
};

/* Tiles of AMX hold 8 KiB of state, so the kernel gives them to a process only when it asks. */
static bool ask_for_amx(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#else
extern const struct ops cpu_ops_native;

static bool runs_always(void) { return true; }

static const struct isa isas[] = {{"native", "native", &cpu_ops_native, runs_always, false}};

static bool ask_for_amx(void) { return false; }
#endif

static const struct isa *isa_choose(struct err *e) {
    const char *forced = getenv("GRAFT_CPU_ISA");
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (forced && *forced && strcmp(forced, isas[i].name) != 0) continue;
        if (isas[i].runs()) return &isas[i];
        if (!forced || !*forced) continue;
        err_set(e, ST_FAIL, "GRAFT_CPU_ISA is %s, which this machine does not run", forced);
        return NULL;
    }
    err_set(e, ST_USAGE, "GRAFT_CPU_ISA is %s, wanted x86-64, x86-64-v3, x86-64-v4 or x86-64-v4-noamx", forced);
    return NULL;
}

static void *map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE); // a wish: without huge pages all works, slower
    return p;
}

/* A page before the memory keeps its size for the release. */
enum { HEAD = 4096 };

static void *cpu_alloc(struct backend *be, size_t bytes) {
    size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    if (bytes > machine) {
        err_set(&be->err, ST_FAIL, "%zu MiB of memory wanted, this machine has %zu MiB", bytes >> 20, machine >> 20);
        return NULL;
    }
    char *p = map(bytes + HEAD);
    if (!p) {
        err_set(&be->err, ST_FAIL, "%zu MiB of memory wanted, the system gives none (%s)", bytes >> 20,
                strerror(errno));
        return NULL;
    }
    *(size_t *)p = bytes + HEAD;
    return p + HEAD;
}

static void cpu_release(struct backend *be, void *memory) {
    (void)be;
    char *p = (char *)memory - HEAD;
    munmap(p, *(size_t *)p);
}

static void *cpu_host_alloc(struct backend *be, size_t bytes) {
    (void)be;
    return mem_alloc(bytes);
}

static void cpu_host_release(struct backend *be, void *memory) {
    (void)be;
    free(memory);
}

static size_t cpu_memory_free(struct backend *be) {
    (void)be;
    return SIZE_MAX;
}

static void cpu_upload(struct backend *be, const struct tensor *dst, const void *src) {
    (void)be;
    if (tensor_bytes(dst)) memcpy(dst->data, src, tensor_bytes(dst));
}

static void cpu_download(struct backend *be, void *dst, const struct tensor *src) {
    (void)be;
    if (tensor_bytes(src)) memcpy(dst, src->data, tensor_bytes(src));
}

static void cpu_await(struct backend *be) { (void)be; }

static void cpu_sync(struct backend *be) { (void)be; }

static void cpu_note(struct backend *be, const char *what) {
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    double now = clock_now();
    if (cpu->noted) profile_add(be->profile, cpu->noted, now - cpu->since);
    cpu->noted = what;
    cpu->since = now;
}

static const char *cpu_describe(const struct backend *be) { return ((const struct cpu_backend *)be)->about; }

static void cpu_free(struct backend *be) {
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    if (cpu->scratch) munmap(cpu->scratch, (size_t)threads_count(be->threads) * CPU_SCRATCH + CPU_SHARED);
    threads_free(be->threads);
    profile_free(be->profile);
    free(cpu);
}

static const struct backend_calls calls = {
    .free = cpu_free,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .host_alloc = cpu_host_alloc,
    .host_release = cpu_host_release,
    .memory_free = cpu_memory_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .store = cpu_download,
    .fetch = cpu_upload,
    .await = cpu_await,
    .sync = cpu_sync,
    .note = cpu_note,
    .describe = cpu_describe,
};

struct backend *cpu_backend_new(int threads, struct err *e) {
    const struct isa *isa = isa_choose(e);
    if (!isa) return NULL;
    struct cpu_backend *cpu = mem_alloc(sizeof *cpu);
    cpu->base = (struct backend){.ops = isa->ops, .calls = &calls, .name = "cpu", .host_memory = true};
    cpu->base.threads = threads_new(threads);
    cpu->base.profile = profile_new();
    cpu->amx = isa->amx && ask_for_amx();
    int count = threads_count(cpu->base.threads);
    cpu->scratch = map((size_t)count * CPU_SCRATCH + CPU_SHARED);
    if (!cpu->scratch) {
        err_set(e, ST_FAIL, "no memory for the scratch of %d threads (%s)", count, strerror(errno));
        cpu_free(&cpu->base);
        return NULL;
    }
    cpu->shared = cpu->scratch + (size_t)count * CPU_SCRATCH;
    snprintf(cpu->about, sizeof cpu->about, "CPU, %s%s, %d thread%s", isa->words, cpu->amx ? " and AMX" : "", count,
             count == 1 ? "" : "s");
    return &cpu->base;
}

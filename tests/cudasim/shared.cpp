/* Shared memory: the window at the beginning of the device's range. The launch's dynamic bytes lie at one place of it;
 * each SHARED of the program has its own place behind, with hidden bytes around, and holds ones when a block comes to
 * it first. Between blocks all of it is hidden. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device/before_8.cuh"
#include "tests/cudasim/runtime.h"

namespace sim {

enum : size_t { GAP = 64 };

struct grant {
    const void *kernel;
    size_t bytes;
};

static size_t static_used = DYNAMIC_AT + DYNAMIC_MOST + DYNAMIC_AT;
static struct shared_site *sites_of_block;
static size_t dynamic_bytes, static_bytes, room; // of the block; room: for both
static struct grant grants[1024];
static size_t grants_count;

bool before_8;

__attribute__((constructor)) static void capability_from_environment() {
    const char *text = getenv("GRAFT_SIM_CAPABILITY");
    before_8 = text && strcmp(text, "7.5") == 0;
    if (text && !before_8 && strcmp(text, "8.0") != 0) fail("GRAFT_SIM_CAPABILITY is %s, wanted 7.5 or 8.0", text);
}

size_t shared_most() { return before_8 ? SHARED_BEFORE_8 : SHARED_SINCE_8; }

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void *shared_array(struct shared_site *s) {
    if (!here) fail("SHARED outside a kernel (%s:%d)", s->at.file, s->at.line);
    if (s->mark == now.mark) return s->start;
    if (!s->start) {
        if (static_used + s->bytes + 2 * GAP > WINDOW_BYTES) fail("the SHAREDs of all kernels exceed the window");
        s->start = memory_base + static_used;
        static_used += round_up(s->bytes, 16) + GAP;
    }
    s->mark = now.mark;
    s->next_of_block = sites_of_block;
    sites_of_block = s;
    static_bytes += round_up(s->bytes, 16);
    if (static_bytes > SHARED_DEFAULT)
        fail("the SHAREDs of one kernel take more than %zu bytes (%s:%d)", size_t{SHARED_DEFAULT}, s->at.file,
             s->at.line);
    if (static_bytes + dynamic_bytes > room)
        fail("the SHAREDs of one kernel and its %zu dynamic bytes take more than %zu bytes (%s:%d)", dynamic_bytes,
             room, s->at.file, s->at.line);
    memory_expose(s->start, s->bytes, false);
    memset(s->start, 0xFF, s->bytes);
    return s->start;
}

void *shared_dynamic() { return memory_base + DYNAMIC_AT; }

static struct grant *grant_of(const void *kernel) {
    for (struct grant *g = grants; g < grants + grants_count; g++)
        if (g->kernel == kernel) return g;
    return nullptr;
}

void shared_grant(const void *kernel, size_t bytes) {
    struct grant *g = grant_of(kernel);
    if (!g && grants_count == sizeof grants / sizeof *grants) fail("too many kernels ask for shared memory");
    if (!g) g = grants + grants_count++;
    *g = {kernel, bytes};
}

bool shared_fits(const void *kernel, size_t bytes) {
    const struct grant *g = grant_of(kernel);
    return bytes <= (g ? g->bytes : size_t{SHARED_DEFAULT});
}

void shared_begin(const void *kernel, size_t bytes) {
    dynamic_bytes = bytes;
    room = grant_of(kernel) ? shared_most() : size_t{SHARED_DEFAULT};
    static_bytes = 0;
    memory_expose(memory_base + DYNAMIC_AT, bytes, false);
    if (bytes) memset(memory_base + DYNAMIC_AT, 0xFF, bytes);
}

void shared_end() {
    memory_hide(memory_base + DYNAMIC_AT, round_up(dynamic_bytes, 8));
    dynamic_bytes = 0;
    for (; sites_of_block; sites_of_block = sites_of_block->next_of_block)
        memory_hide(sites_of_block->start, round_up(sites_of_block->bytes, 8));
}

uint32_t shared_offset(const void *p, const char *file, int line) {
    size_t offset = static_cast<size_t>(static_cast<const char *>(p) - memory_base);
    if (!here) fail("an address of shared memory outside a kernel (%s:%d)", file, line);
    if (offset >= WINDOW_BYTES) fail("%s: %p is no shared memory (%s:%d)", lane_describe(here).text, p, file, line);
    return static_cast<uint32_t>(offset);
}

static void describe_offset(const char *p, const char *start, size_t size, const char *name, char *text, size_t bytes) {
    if (p < start)
        snprintf(text, bytes, "%zu bytes before %s", static_cast<size_t>(start - p), name);
    else if (p < start + size)
        snprintf(text, bytes, "byte %zu of %s", static_cast<size_t>(p - start), name);
    else
        snprintf(text, bytes, "%zu bytes after the end of %s", static_cast<size_t>(p - start) - size, name);
}

bool shared_describe(const char *p, char *text, size_t bytes) {
    char name[160];
    const char *dynamic = memory_base + DYNAMIC_AT;
    if (p < dynamic + DYNAMIC_MOST + DYNAMIC_AT) {
        snprintf(name, sizeof name, "the %zu bytes of dynamic shared memory", dynamic_bytes);
        return describe_offset(p, dynamic, dynamic_bytes, name, text, bytes), true;
    }
    for (const struct shared_site *s = sites_of_block; s; s = s->next_of_block) {
        if (p < s->start - GAP / 2 || p >= s->start + s->bytes + GAP / 2) continue;
        snprintf(name, sizeof name, "shared `%s` (%s:%d)", s->name, s->at.file, s->at.line);
        return describe_offset(p, s->start, s->bytes, name, text, bytes), true;
    }
    return false;
}

} // namespace sim

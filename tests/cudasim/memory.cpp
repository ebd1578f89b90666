/* The memory of the device: pieces in one reserved range of addresses, none ever used again, each between hidden pages.
 * New memory holds bytes of ones, which are NaN in every float type. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cudasim/runtime.h"

#if SIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace sim {

enum : size_t { PAGE = 4096, PATTERN = size_t{2} << 20 };

struct piece {
    char *start;
    size_t bytes;
    enum memory_kind kind;
    bool live;
};

char *memory_base;
size_t memory_span;
static struct piece *pieces; // by address
static size_t pieces_count, pieces_room, used_span, in_use[4], limit = size_t{16} << 30;
static int pattern = -1; // a file of ones

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static void pattern_open() {
    void *ones = MAP_FAILED;
    pattern = memfd_create("cudasim", MFD_CLOEXEC);
    if (pattern >= 0 && ftruncate(pattern, PATTERN) == 0)
        ones = mmap(nullptr, PATTERN, PROT_READ | PROT_WRITE, MAP_SHARED, pattern, 0);
    if (ones == MAP_FAILED) fail("no memory for the contents of new memory");
    memset(ones, 0xFF, PATTERN);
    munmap(ones, PATTERN);
}

/* Bytes of ones that take memory only when they are written. */
static void map_ones(char *at, size_t bytes) {
    for (size_t done = 0, part; done < bytes; done += part) {
        part = bytes - done < PATTERN ? bytes - done : PATTERN;
        void *got = mmap(at + done, part, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE, pattern, 0);
        if (got == MAP_FAILED) fail("%zu bytes of memory cannot be mapped", bytes);
    }
}

static void open_once() {
    memory_span = size_t{1} << (SIM_RACE ? 38 : 40);
    void *range = mmap(nullptr, memory_span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) fail("no address space for the memory of the device");
    memory_base = static_cast<char *>(range);
    if (const char *megabytes = getenv("GRAFT_SIM_MEMORY")) limit = strtoull(megabytes, nullptr, 10) << 20;
    pattern_open();
    map_ones(memory_base, WINDOW_BYTES);
    used_span = WINDOW_BYTES;
    race_open();
    memory_hide(memory_base, WINDOW_BYTES);
}

void memory_open() {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_once);
}

size_t memory_limit() { return limit; }
size_t memory_in_use(enum memory_kind kind) { return in_use[kind]; }

/* --- what may be touched ----------------------------------------------------------------------------------------- */

void memory_expose(const void *p, size_t bytes, bool written) {
#if SIM_ASAN
    __asan_unpoison_memory_region(p, bytes);
#endif
    race_expose(p, bytes, written);
}

void memory_hide(const void *p, size_t bytes) {
#if SIM_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
    race_hide(p, bytes);
}

bool memory_hidden(const void *p, size_t bytes) {
#if SIM_ASAN
    return __asan_region_is_poisoned(const_cast<void *>(p), bytes) != nullptr;
#else
    return race_hidden(p, bytes);
#endif
}

/* --- pieces ------------------------------------------------------------------------------------------------------ */

/* A hidden page, the piece, and the rest of its last page and another one hidden; then pages that are not there. */
char *memory_new(enum memory_kind kind, size_t bytes) {
    memory_open();
    size_t inner = round_up(bytes ? bytes : 1, PAGE);
    size_t outer = inner + 18 * PAGE;
    if (bytes > limit || (kind == MEMORY_DEVICE && in_use[kind] + bytes > limit)) return nullptr;
    if (used_span + outer > memory_span) return nullptr;
    if (pieces_count == pieces_room) {
        pieces_room = pieces_room ? 2 * pieces_room : 64;
        pieces = static_cast<struct piece *>(realloc(pieces, pieces_room * sizeof *pieces));
        if (!pieces) fail("out of memory");
    }
    char *front = memory_base + used_span, *start = front + PAGE;
    used_span += outer;
    map_ones(front, inner + 2 * PAGE);
    memory_hide(front, PAGE);
    memory_hide(start + round_up(bytes, 8), inner - round_up(bytes, 8) + PAGE);
    memory_expose(start, bytes, kind == MEMORY_HOST);
    pieces[pieces_count++] = {start, bytes, kind, true};
    in_use[kind] += bytes;
    return start;
}

/* The piece that begins last at or before p, alive or not. */
static struct piece *piece_before(const char *p) {
    size_t low = 0, high = pieces_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (pieces[middle].start <= p)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? pieces + low - 1 : nullptr;
}

bool memory_free(enum memory_kind kind, void *start) {
    struct piece *p = piece_before(static_cast<char *>(start));
    if (!p || p->start != start || !p->live || p->kind != kind) return false;
    size_t inner = round_up(p->bytes ? p->bytes : 1, PAGE);
    p->live = false;
    in_use[kind] -= p->bytes;
    memory_hide(p->start, round_up(p->bytes, 8));
    race_forget(p->start, p->bytes);
    void *got = mmap(p->start - PAGE, inner + 2 * PAGE, PROT_NONE,
                     MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) fail("memory cannot be unmapped");
    return true;
}

bool memory_in_range(const void *p) {
    return memory_base && static_cast<size_t>(static_cast<const char *>(p) - memory_base) < memory_span;
}

enum memory_kind memory_find(const void *at, size_t bytes) {
    const char *p = static_cast<const char *>(at);
    if (!memory_in_range(p)) return MEMORY_NONE;
    if (p < memory_base + WINDOW_BYTES) return MEMORY_SHARED;
    const struct piece *found = piece_before(p);
    if (!found || !found->live || bytes > found->bytes || p > found->start + found->bytes - bytes) return MEMORY_NONE;
    return found->kind;
}

/* --- describing -------------------------------------------------------------------------------------------------- */

static void describe_piece(const char *p, char *text, size_t bytes) {
    const struct piece *f = piece_before(p), *next = f ? f + 1 : pieces;
    bool before = next < pieces + pieces_count && p >= next->start - PAGE;
    if (before) f = next;
    if (!f) {
        snprintf(text, bytes, "before all memory of the device");
        return;
    }
    const char *kind = f->kind == MEMORY_HOST ? "page-locked host memory" : "memory of the device";
    const char *freed = f->live ? "" : " that was freed";
    size_t offset = static_cast<size_t>(before ? f->start - p : p - f->start);
    if (before)
        snprintf(text, bytes, "%zu bytes before %zu bytes of %s", offset, f->bytes, kind);
    else if (offset < f->bytes)
        snprintf(text, bytes, "byte %zu of %zu bytes of %s%s", offset, f->bytes, kind, freed);
    else
        snprintf(text, bytes, "%zu bytes after the end of %zu bytes of %s%s", offset - f->bytes, f->bytes, kind, freed);
}

void memory_describe(const void *at, char *text, size_t bytes) {
    const char *p = static_cast<const char *>(at);
    if (!memory_in_range(p))
        snprintf(text, bytes, "%p, memory of the host that the device does not see", at);
    else if (p >= memory_base + WINDOW_BYTES)
        describe_piece(p, text, bytes);
    else if (!shared_describe(p, text, bytes))
        snprintf(text, bytes, "shared memory outside of every array");
}

/* --- by the runtime itself --------------------------------------------------------------------------------------- */

static void touch_check(struct lane *l, const void *p, size_t bytes, const char *does, struct site at) {
    char where[256];
    const struct lane *of;
    if (memory_in_range(p) && !memory_hidden(p, bytes)) return;
    memory_describe(p, where, sizeof where);
    if (const struct pending_copy *c = copy_pending_at(p, &of))
        fail("%s %s %s (%s:%d), where a copy that thread %u began (%s:%d) is under way", lane_describe(l).text, does,
             where, at.file, at.line, of->number, c->at.file, c->at.line);
    fail("out of bounds: %s %s %zu bytes at %s (%s:%d)", lane_describe(l).text, does, bytes, where, at.file, at.line);
}

void touch(struct lane *l, const void *p, size_t bytes, bool write, struct site at) {
    touch_check(l, p, bytes, write ? "writes" : "reads", at);
    race_touch(l, p, bytes, write, at);
}

void touch_atomic(const void *p, size_t bytes, const char *file, int line) {
    struct site at = {file, line};
    if (!here) fail("an atomic operation outside a kernel (%s:%d)", file, line);
    touch_check(here, p, bytes, "changes", at);
    race_touch_atomic(here, p, bytes, at);
}

void fence() {}

} // namespace sim

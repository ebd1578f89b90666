/* The flavour `race`: every access of a kernel to memory, told by the compiler's hooks for ThreadSanitizer, whose
 * runtime is not linked: this file answers them.
 *
 * For each byte of the device's range there is a bit `live` (it may be touched), a bit `written` (it holds a value), and
 * a cell: who wrote it last and who read it last, and when. Time is a number that grows at every barrier and with every
 * block, since blocks run one after another. Two accesses of different threads, one of them a write, are a race
 *   - at the same time, unless both threads are of one warp and a __syncwarp lay between;
 *   - in global memory also when they are of different blocks of one launch, whenever that was.
 * Launches are ordered. Shuffles, votes and mma order nothing. Atomic operations do not race with each other, and order
 * nothing either. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/cudasim/runtime.h"

#if SIM_RACE

extern "C" char __executable_start, _end; // of the program in memory

namespace sim {

enum : uint16_t { LANE = 0x3ff, ATOMIC = 0x8000, SEVERAL = 0x4000, OTHER_WARPS = 0x2000, OTHER_BLOCKS = 0x1000 };

/* One access. place: an offset in the program, or PLACE_SITE and the number of a line that the runtime was told. */
struct access {
    uint32_t time;  // 0: never
    uint16_t lane;  // and flags. Of readers: the last one; whether there were others, of other warps, of other blocks
    uint16_t syncs; // of its warp
    uint32_t place;
};

struct cell {
    struct access write, read;
};

enum : uint32_t { PLACE_SITE = 0x80000000u, TIME_MOST = 0xf0000000u };

struct block_time {
    uint32_t begin;
    uint3 index;
};

static struct cell *cells;
static unsigned char *live, *written;
static uint32_t time_now = 1, launch_begin, block_begin;
static struct block_time *blocks; // of this launch, in the order they ran
static size_t blocks_count, blocks_room;
static struct site *sites;
static size_t sites_count, sites_room;

static void *reserve(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no address space to record races in: %zu bytes", bytes);
    return p;
}

void race_open() {
    cells = static_cast<struct cell *>(reserve(memory_span * sizeof *cells));
    live = static_cast<unsigned char *>(reserve(memory_span / 8 + 8));
    written = static_cast<unsigned char *>(reserve(memory_span / 8 + 8));
}

/* --- bits -------------------------------------------------------------------------------------------------------- */

static size_t offset_of(const void *p) { return static_cast<size_t>(static_cast<const char *>(p) - memory_base); }

static void bits_set(unsigned char *map, size_t at, size_t n, bool value) {
    for (; n && at % 8; at++, n--)
        map[at / 8] = static_cast<unsigned char>((map[at / 8] & ~(1u << at % 8)) | value << at % 8);
    memset(map + at / 8, value ? 0xFF : 0, n / 8);
    for (at += n / 8 * 8, n %= 8; n; at++, n--)
        map[at / 8] = static_cast<unsigned char>((map[at / 8] & ~(1u << at % 8)) | value << at % 8);
}

/* n at most 16. */
static bool bits_all(const unsigned char *map, size_t at, size_t n) {
    uint32_t word;
    memcpy(&word, map + at / 8, sizeof word);
    uint32_t want = (1u << n) - 1;
    return (word >> at % 8 & want) == want;
}

void race_expose(const void *p, size_t bytes, bool is_written) {
    bits_set(live, offset_of(p), bytes, true);
    bits_set(written, offset_of(p), bytes, is_written);
}

void race_hide(const void *p, size_t bytes) { bits_set(live, offset_of(p), bytes, false); }

bool race_hidden(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!bits_all(live, offset_of(p) + i, 1)) return true;
    return false;
}

void race_forget(const void *p, size_t bytes) {
    uintptr_t from = reinterpret_cast<uintptr_t>(cells + offset_of(p)), to = from + bytes * sizeof *cells;
    from = (from + 4095) / 4096 * 4096;
    to = to / 4096 * 4096;
    if (to > from) madvise(reinterpret_cast<void *>(from), to - from, MADV_DONTNEED);
}

/* --- time -------------------------------------------------------------------------------------------------------- */

void race_launch_begin() {
    if (time_now > TIME_MOST) {
        madvise(cells, memory_span * sizeof *cells, MADV_DONTNEED);
        time_now = 1;
    }
    launch_begin = ++time_now;
    blocks_count = 0;
}

void race_launch_end() { time_now++; }

void race_block_begin() {
    block_begin = ++time_now;
    if (blocks_count == blocks_room) {
        blocks_room = blocks_room ? 2 * blocks_room : 256;
        blocks = static_cast<struct block_time *>(realloc(blocks, blocks_room * sizeof *blocks));
        if (!blocks) fail("out of memory");
    }
    blocks[blocks_count++] = {block_begin, now.index};
}

void race_barrier() { time_now++; }

/* --- places in the program --------------------------------------------------------------------------------------- */

static uint32_t place_of_code(const void *address) {
    return static_cast<uint32_t>(static_cast<const char *>(address) - &__executable_start - 1);
}

static uint32_t place_of_site(struct site at) {
    for (size_t i = sites_count; i-- > 0;)
        if (sites[i].file == at.file && sites[i].line == at.line) return PLACE_SITE | static_cast<uint32_t>(i);
    if (sites_count == sites_room) {
        sites_room = sites_room ? 2 * sites_room : 64;
        sites = static_cast<struct site *>(realloc(sites, sites_room * sizeof *sites));
        if (!sites) fail("out of memory");
    }
    sites[sites_count] = at;
    return PLACE_SITE | static_cast<uint32_t>(sites_count++);
}

static struct code_name place_describe(uint32_t place) {
    struct code_name name;
    if (!(place & PLACE_SITE)) return code_describe(&__executable_start + place);
    const struct site *at = sites + (place & ~PLACE_SITE);
    snprintf(name.text, sizeof name.text, "%s:%d", at->file, at->line);
    return name;
}

/* --- failing ----------------------------------------------------------------------------------------------------- */

static void fail_hidden(const struct lane *l, const char *p, size_t bytes, const char *does, uint32_t place) {
    char where[256];
    const struct lane *of;
    while (bytes > 1 && bits_all(live, offset_of(p), 1)) p++, bytes--; // the first byte that is not to be touched
    memory_describe(p, where, sizeof where);
    if (const struct pending_copy *c = copy_pending_at(p, &of))
        fail("a copy is under way: %s %s %s (%s), where thread %u began one (%s:%d) that it has not waited for",
             lane_describe(l).text, does, where, place_describe(place).text, of->number, c->at.file, c->at.line);
    fail("out of bounds: %s %s %s (%s)", lane_describe(l).text, does, where, place_describe(place).text);
}

static void fail_unwritten(const struct lane *l, const char *p, uint32_t place) {
    char where[256];
    while (bits_all(written, offset_of(p), 1)) p++;
    memory_describe(p, where, sizeof where);
    fail("uninitialised: %s reads %s (%s), which nobody has written", lane_describe(l).text, where,
         place_describe(place).text);
}

static void fail_race(const struct lane *l, const char *p, const char *does, uint32_t place, const char *did,
                      const struct access *other) {
    char where[256], whom[160];
    size_t b = blocks_count - 1;
    while (b > 0 && blocks[b].begin > other->time) b--;
    const uint3 i = blocks[b].index;
    memory_describe(p, where, sizeof where);
    snprintf(whom, sizeof whom, "thread %u%s of block (%u,%u,%u)", other->lane & LANE,
             did[0] == 'r' && other->lane & (SEVERAL | OTHER_WARPS | OTHER_BLOCKS) ? " or another" : "", i.x, i.y, i.z);
    fail("race: %s %s %s (%s), which %s %s (%s) with nothing in between that orders them", lane_describe(l).text, does,
         where, place_describe(place).text, whom, did, place_describe(other->place).text);
}

/* --- the rules --------------------------------------------------------------------------------------------------- */

/* What does not change from byte to byte of an access. */
struct by {
    struct lane *l;
    uint16_t lane, syncs; // as in a cell
    uint32_t place;
    bool global;
    bool atomic;
};

static bool same_warp(uint16_t a, uint16_t b) { return (a & LANE) / WARP_LANES == (b & LANE) / WARP_LANES; }

/* Whether the last write is ordered before an access by `by`. */
static inline bool write_ordered(const struct access *w, const struct by *by) {
    if (w->time < launch_begin) return true;
    if (by->atomic && w->lane & ATOMIC) return true;
    if (w->time < block_begin) return !by->global;
    if (w->time < time_now || (w->lane & LANE) == by->lane) return true;
    return same_warp(w->lane, by->lane) && w->syncs < by->syncs;
}

/* Whether all reads are ordered before a write by `by`. */
static bool reads_ordered(const struct access *r, const struct by *by) {
    if (r->time < launch_begin) return true;
    if (by->global && (r->time < block_begin || r->lane & OTHER_BLOCKS)) return false;
    if (r->time < time_now) return true;
    if (r->lane & OTHER_WARPS || !same_warp(r->lane, by->lane)) return false;
    return r->syncs < by->syncs || ((r->lane & LANE) == by->lane && !(r->lane & SEVERAL));
}

/* The flags of the last reader when `by` becomes it. */
static uint16_t reader_flags(const struct access *r, const struct by *by) {
    if (r->time < launch_begin) return 0;
    if (r->time < block_begin) return OTHER_BLOCKS;
    uint16_t flags = r->lane & OTHER_BLOCKS;
    if (r->time < time_now) return flags;
    if (!same_warp(r->lane, by->lane)) return flags | SEVERAL | OTHER_WARPS;
    flags |= r->lane & OTHER_WARPS;
    if (!flags && r->syncs < by->syncs) return 0;
    return flags | (r->lane & SEVERAL) | ((r->lane & LANE) != by->lane ? uint16_t{SEVERAL} : uint16_t{0});
}

static void read_byte(struct cell *c, const char *p, const struct by *by) {
    if (!write_ordered(&c->write, by)) fail_race(by->l, p, "reads", by->place, "wrote", &c->write);
    c->read = {time_now, static_cast<uint16_t>(by->lane | reader_flags(&c->read, by)), by->syncs, by->place};
}

static void write_byte(struct cell *c, const char *p, const struct by *by) {
    if (!write_ordered(&c->write, by)) fail_race(by->l, p, "writes", by->place, "wrote", &c->write);
    if (!reads_ordered(&c->read, by)) fail_race(by->l, p, "writes", by->place, "read", &c->read);
    c->write = {time_now, static_cast<uint16_t>(by->lane | (by->atomic ? uint16_t{ATOMIC} : uint16_t{0})), by->syncs,
                by->place};
}

/* At most 16 bytes in the device's range. */
static void touch_bytes(const char *p, size_t bytes, bool write, const struct by *by) {
    size_t at = offset_of(p);
    if (!bits_all(live, at, bytes)) fail_hidden(by->l, p, bytes, write ? "writes" : "reads", by->place);
    if (!write || by->atomic) {
        if (!bits_all(written, at, bytes)) fail_unwritten(by->l, p, by->place);
    } else
        bits_set(written, at, bytes, true);
    struct cell first = cells[at]; // most bytes of an access share their past with the first, and so its judgement
    for (size_t i = 0; i < bytes; i++) {
        struct cell *c = cells + at + i;
        if (i && memcmp(c, &first, sizeof first) == 0)
            *c = cells[at];
        else if (write)
            write_byte(c, p + i, by);
        else
            read_byte(c, p + i, by);
    }
}

static void touch_range(struct lane *l, const void *start, size_t bytes, bool write, bool atomic, uint32_t place) {
    const char *p = static_cast<const char *>(start);
    struct by by = {l,     static_cast<uint16_t>(l->number), warp_of(l)->syncs,
                    place, offset_of(start) >= WINDOW_BYTES, atomic};
    for (size_t part; bytes; p += part, bytes -= part) {
        part = bytes < 16 ? bytes : 16;
        touch_bytes(p, part, write, &by);
    }
}

void race_touch(struct lane *l, const void *p, size_t bytes, bool write, struct site at) {
    touch_range(l, p, bytes, write, false, place_of_site(at));
}

void race_touch_atomic(struct lane *l, const void *p, size_t bytes, struct site at) {
    touch_range(l, p, bytes, true, true, place_of_site(at));
}

/* --- what the compiler calls ------------------------------------------------------------------------------------- */

static inline bool within(const void *p, const void *start, size_t bytes) {
    return static_cast<size_t>(static_cast<const char *>(p) - static_cast<const char *>(start)) < bytes;
}

/* A thread may also touch its arguments and what the program holds itself. */
static void touch_outside(const void *p, size_t bytes, bool write, const void *code) {
    if (within(p, &__executable_start, static_cast<size_t>(&_end - &__executable_start))) return;
    if (within(p, now_launch->bound, now_launch->bound_bytes) && !write) return;
    fail("not memory of the device: %s %s %zu bytes at %p of the host (%s)", lane_describe(here).text,
         write ? "writes" : "reads", bytes, p, place_describe(place_of_code(code)).text);
}

/* Most accesses are to the thread's own stack, where locals lie that found no register. */
static inline void hook(const void *p, size_t bytes, bool write, const void *code) {
    if (!here || within(p, fibre_running->stack, fibre_running->bytes)) return;
    if (offset_of(p) < memory_span)
        touch_range(here, p, bytes, write, false, place_of_code(code));
    else
        touch_outside(p, bytes, write, code);
}

} // namespace sim

#define CODE __builtin_return_address(0)
#define HOOKS(n)                                                                                                       \
    extern "C" void __tsan_read##n(void *p) { sim::hook(p, n, false, CODE); }                                          \
    extern "C" void __tsan_write##n(void *p) { sim::hook(p, n, true, CODE); }                                          \
    extern "C" void __tsan_unaligned_read##n(void *p) { sim::hook(p, n, false, CODE); }                                \
    extern "C" void __tsan_unaligned_write##n(void *p) { sim::hook(p, n, true, CODE); }                                \
    extern "C" void __tsan_volatile_read##n(void *p) { sim::hook(p, n, false, CODE); }                                 \
    extern "C" void __tsan_volatile_write##n(void *p) { sim::hook(p, n, true, CODE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(void *p, size_t n) { sim::hook(p, n, false, CODE); }
extern "C" void __tsan_write_range(void *p, size_t n) { sim::hook(p, n, true, CODE); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_read(void **) {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char *p, int) { return *p; }

/* The kernels' objects call these instead of the library's functions (Makefile). */
extern "C" void *sim_memcpy(void *to, const void *from, size_t n) {
    sim::hook(from, n, false, CODE);
    sim::hook(to, n, true, CODE);
    return memcpy(to, from, n);
}
extern "C" void *sim_memmove(void *to, const void *from, size_t n) {
    sim::hook(from, n, false, CODE);
    sim::hook(to, n, true, CODE);
    return memmove(to, from, n);
}
extern "C" void *sim_memset(void *to, int value, size_t n) {
    sim::hook(to, n, true, CODE);
    return memset(to, value, n);
}

#endif

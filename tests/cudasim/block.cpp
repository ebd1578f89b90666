/* A launch: block after block, and in a block the fibres that its threads wait on.
 *
 * Fibres are lazy. One fibre runs thread after thread; only when a thread waits does another fibre go on, with a thread
 * that has been released or with the next that has not begun. A kernel without barriers needs one fibre and two
 * switches for each block. Released threads form a stack, so that a warp goes on while its data is in the cache. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudasim/runtime.h"

namespace sim {

struct lane *here;
struct block now;
const struct launch *now_launch;
enum order_kind order;
uint64_t order_seed;

static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
static uint64_t marks, random_state;
static unsigned turn[MAX_LANES], begun; // the order of threads, and how many have begun
static struct lane *ready[MAX_LANES];
static unsigned ready_count;
static struct fibre *idle;

/* --- order ------------------------------------------------------------------------------------------------------- */

bool order_set(const char *text) {
    char *end;
    if (strcmp(text, "forward") == 0) return order = FORWARD, true;
    if (strcmp(text, "reverse") == 0) return order = REVERSE, true;
    if (strncmp(text, "shuffle:", 8) != 0 || text[8] < '0' || text[8] > '9') return false;
    order_seed = strtoull(text + 8, &end, 10);
    order = SHUFFLED;
    return *end == '\0';
}

uint32_t order_random(uint32_t below) {
    random_state += 0x9E3779B97F4A7C15u;
    uint64_t z = (random_state ^ random_state >> 30) * 0xBF58476D1CE4E5B9u;
    return static_cast<uint32_t>(((z ^ z >> 27) >> 32) * below >> 32);
}

static void order_threads(unsigned count) {
    for (unsigned i = 0; i < count; i++) turn[i] = order == REVERSE ? count - 1 - i : i;
    if (order != SHUFFLED) return;
    for (unsigned i = count; i > 1; i--) {
        unsigned j = order_random(i), swapped = turn[i - 1];
        turn[i - 1] = turn[j];
        turn[j] = swapped;
    }
}

/* --- lanes ------------------------------------------------------------------------------------------------------- */

struct lane_name lane_describe(const struct lane *l) {
    struct lane_name name;
    const struct block *b = l->block;
    snprintf(name.text, sizeof name.text, "thread %u (%u,%u,%u) of block (%u,%u,%u)", l->number, l->index.x, l->index.y,
             l->index.z, b->index.x, b->index.y, b->index.z);
    return name;
}

static void lane_begin(struct lane *l, unsigned number, struct block *b) {
    l->number = number;
    l->index = {number % b->size.x, number / b->size.x % b->size.y, number / b->size.x / b->size.y};
    l->state = FRESH;
    l->block = b;
    l->fibre = nullptr;
    l->call = nullptr;
    l->operation = nullptr;
    l->at = {nullptr, 0};
    l->copies.count = 0;
    l->copies.group = 0;
}

static void lane_run(struct lane *l) {
    here = l;
    l->state = RUNNING;
    now_launch->run(now_launch->kernel, now_launch->bound);
    copy_check_exit(l);
    warp_check_exit(l);
    if (now.waiting_at_barrier) {
        for (unsigned i = 0; i < now.lanes_count; i++) {
            const struct lane *w = now.lanes + i;
            if (w->state == AT_BARRIER)
                fail("%s ends while thread %u waits at %s (%s:%d)", lane_describe(l).text, w->number, w->operation,
                     w->at.file, w->at.line);
        }
    }
    l->state = DONE;
    now.done++;
    here = nullptr;
}

/* --- choosing who goes on ---------------------------------------------------------------------------------------- */

static void fibre_body();

static struct fibre *fibre_idle() {
    struct fibre *f = idle;
    if (!f) return fibre_new(fibre_body);
    idle = f->next;
    return f;
}

static struct lane *ready_take() {
    unsigned i = ready_count - 1;
    if (order == SHUFFLED) i = order_random(ready_count);
    struct lane *l = ready[i];
    ready[i] = ready[--ready_count];
    return l;
}

/* A thread that can never go on is found when it or another comes to wait or ends; this is for what escapes that. */
static void fail_deadlock() {
    here = now.lanes;
    fail("deadlock: every thread that has not ended waits");
}

static struct fibre *fibre_next() {
    if (ready_count) return ready_take()->fibre;
    if (begun < now.lanes_count) return fibre_idle();
    if (now.done < now.lanes_count) fail_deadlock();
    return fibre_host();
}

static void fibre_body() {
    for (;;) {
        while (begun < now.lanes_count) lane_run(now.lanes + turn[begun++]);
        struct fibre *self = fibre_running;
        self->next = idle;
        idle = self;
        fibre_switch(fibre_next());
    }
}

void lane_wait() {
    struct lane *self = here;
    self->fibre = fibre_running;
    fibre_switch(fibre_next());
    here = self;
    self->state = RUNNING;
}

void lane_release(struct lane *l) {
    l->state = READY;
    ready[ready_count++] = l;
}

void lanes_release(struct lane *first, unsigned count, const struct lane *except) {
    for (unsigned i = 0; i < count; i++) { // the one released last goes on first
        struct lane *l = first + (order == REVERSE ? i : count - 1 - i);
        if (l != except) lane_release(l);
    }
}

/* --- barriers ---------------------------------------------------------------------------------------------------- */

void barrier(const char *operation, const char *file, int line) { barrier_vote(operation, 0, file, line); }

static void barrier_check(struct lane *l) {
    for (unsigned i = 0; i < now.lanes_count; i++) {
        const struct lane *o = now.lanes + i;
        if (o->state == DONE)
            fail("%s waits at %s (%s:%d), but thread %u has ended", lane_describe(l).text, l->operation, l->at.file,
                 l->at.line, o->number);
        if (o->state != AT_BARRIER) continue;
        if (o->at.line != l->at.line || (o->at.file != l->at.file && strcmp(o->at.file, l->at.file) != 0))
            fail("a barrier that not all threads share: %s waits at %s (%s:%d), thread %u at %s (%s:%d)",
                 lane_describe(l).text, l->operation, l->at.file, l->at.line, o->number, o->operation, o->at.file,
                 o->at.line);
    }
}

/* The first thread that comes to a barrier, and the first that comes from another line, is compared with all. */
int barrier_vote(const char *operation, int vote, const char *file, int line) {
    static struct site place;
    struct lane *l = here;
    if (!l) fail("%s outside a kernel (%s:%d)", operation, file, line);
    l->operation = operation;
    l->at = {file, line};
    warp_check_barrier(l);
    if (now.waiting_at_barrier == 0 || now.done || place.file != file || place.line != line) barrier_check(l);
    place = l->at;
    now.votes += vote;
    if (++now.waiting_at_barrier < now.lanes_count) {
        l->state = AT_BARRIER;
        warp_of(l)->at_barrier |= lane_bit(l);
        lane_wait();
        return now.last_votes;
    }
    now.waiting_at_barrier = 0;
    now.last_votes = now.votes;
    now.votes = 0;
    for (unsigned i = 0; i < MAX_LANES / WARP_LANES; i++) now.warps[i].at_barrier = 0;
    race_barrier();
    lanes_release(now.lanes, now.lanes_count, l);
    return now.last_votes;
}

/* --- describing -------------------------------------------------------------------------------------------------- */

static bool same_place(const struct lane *a, const struct lane *b) {
    return a->state == b->state && a->operation == b->operation && a->at.file == b->at.file && a->at.line == b->at.line;
}

void block_describe(char *text, size_t bytes) {
    static const char *const states[] = {"not begun", "running", "ready to go on", "waiting at", "waiting at", "ended"};
    const unsigned most = 16;
    size_t used = 0;
    text[0] = '\0';
    for (unsigned i = 0, end, runs = 0; i < now.lanes_count && used < bytes; i = end) {
        const struct lane *l = now.lanes + i;
        bool waits = l->state == AT_BARRIER || l->state == AT_WARP;
        for (end = i + 1; end < now.lanes_count && same_place(l, now.lanes + end);) end++;
        if (++runs > most) {
            snprintf(text + used, bytes - used, "    and so on\n");
            return;
        }
        char place[256] = "";
        if (l->operation)
            snprintf(place, sizeof place, "%s %s (%s:%d)", waits ? "" : ", last at", l->operation, l->at.file,
                     l->at.line);
        used += static_cast<size_t>(snprintf(text + used, bytes - used, "    thread%s %u", end > i + 1 ? "s" : "", i));
        if (end > i + 1 && used < bytes)
            used += static_cast<size_t>(snprintf(text + used, bytes - used, "-%u", end - 1));
        if (used < bytes)
            used += static_cast<size_t>(snprintf(text + used, bytes - used, " %s%s\n", states[l->state], place));
    }
}

/* --- launching --------------------------------------------------------------------------------------------------- */

static void block_run(const struct launch *l, uint3 index) {
    now.index = index;
    now.size = l->block;
    now.grid = l->grid;
    now.mark = ++marks;
    now.lanes_count = l->block.x * l->block.y * l->block.z;
    now.waiting_at_barrier = now.done = 0;
    now.votes = 0;
    for (unsigned i = 0; i < now.lanes_count; i++) lane_begin(now.lanes + i, i, &now);
    for (unsigned w = 0; w * WARP_LANES < now.lanes_count; w++) {
        unsigned lanes = now.lanes_count - w * WARP_LANES;
        now.warps[w] = {};
        now.warps[w].present = lanes < WARP_LANES ? (1u << lanes) - 1 : ALL_LANES;
    }
    begun = ready_count = 0;
    order_threads(now.lanes_count);
    race_block_begin();
    shared_begin(l->kernel, l->shared);
    fibre_switch(fibre_idle());
    shared_end();
}

/* Shuffled, blocks run with a stride that shares no factor with their number. */
static uint64_t stride_for(uint64_t count) {
    for (uint64_t stride = 1 + order_random(static_cast<uint32_t>(count));; stride++) {
        uint64_t a = count, b = stride;
        while (b) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) return stride;
    }
}

bool launch_fits(const struct launch *l) {
    uint64_t lanes = static_cast<uint64_t>(l->block.x) * l->block.y * l->block.z;
    return lanes >= 1 && lanes <= MAX_LANES && l->block.x <= 1024 && l->block.y <= 1024 && l->block.z <= 64 &&
           l->grid.x >= 1 && l->grid.x <= 0x7fffffffu && l->grid.y >= 1 && l->grid.y <= 65535 && l->grid.z >= 1 &&
           l->grid.z <= 65535 && shared_fits(l->kernel, l->shared);
}

bool launch_run(const struct launch *l) {
    if (here) fail("a kernel launches a kernel");
    if (!launch_fits(l)) return false;
    pthread_mutex_lock(&one_launch);
    memory_open();
    random_state = order_seed;
    now_launch = l;
    race_launch_begin();
    uint64_t count = static_cast<uint64_t>(l->grid.x) * l->grid.y * l->grid.z;
    uint64_t stride = order == SHUFFLED ? stride_for(count) : 1;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t b = order == REVERSE ? count - 1 - i : i * stride % count;
        block_run(l, {static_cast<unsigned>(b % l->grid.x), static_cast<unsigned>(b / l->grid.x % l->grid.y),
                      static_cast<unsigned>(b / l->grid.x / l->grid.y)});
    }
    race_launch_end();
    now_launch = nullptr;
    pthread_mutex_unlock(&one_launch);
    return true;
}

__attribute__((constructor)) static void order_from_environment() {
    const char *text = getenv("GRAFT_SIM_ORDER");
    if (text && !order_set(text)) fail("GRAFT_SIM_ORDER is %s, wanted forward, reverse or shuffle:SEED", text);
}

} // namespace sim

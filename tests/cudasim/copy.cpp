/* cp.async: copies that are under way until their thread waits for them. Till then nobody may touch where they go or
 * change where they come from. */
#include <stdlib.h>
#include <string.h>

#include "tests/cudasim/runtime.h"

namespace sim {

static struct pending_copy *queue_add(struct copy_queue *q) {
    if (q->count == q->room) {
        q->room = q->room ? 2 * q->room : 16;
        q->copies = static_cast<struct pending_copy *>(realloc(q->copies, q->room * sizeof *q->copies));
        if (!q->copies) fail("out of memory");
    }
    return q->copies + q->count++;
}

static void check_aligned(const void *p, const char *which, struct site at) {
    if (reinterpret_cast<uintptr_t>(p) % 16)
        fail("%s: cp.async (%s:%d) with a %s that is not aligned to 16 bytes: %p", lane_describe(here).text, at.file,
             at.line, which, p);
}

void copy_begin(void *to, const void *from, unsigned bytes, unsigned size, const char *file, int line) {
    struct site at = {file, line};
    if (!here) fail("cp.async outside a kernel (%s:%d)", file, line);
    shared_offset(to, file, line);
    check_aligned(to, "destination", at);
    check_aligned(from, "source", at);
    touch(here, to, size, true, at);
    if (bytes) {
        touch(here, from, bytes, false, at);
        if (memory_find(from, bytes) == MEMORY_SHARED)
            fail("%s: cp.async (%s:%d) from shared memory", lane_describe(here).text, file, line);
    }
    struct pending_copy *c = queue_add(&here->copies);
    c->to = static_cast<char *>(to);
    c->from = static_cast<const char *>(from);
    c->bytes = bytes;
    c->size = size;
    c->group = here->copies.group;
    c->at = at;
    if (bytes) memcpy(c->before, from, bytes);
    memset(to, 0xFF, size);
    memory_hide(to, size);
}

void copy_commit() {
    if (here) here->copies.group++;
}

static void deliver(const struct pending_copy *c, struct site at) {
    if (c->bytes) {
        touch(here, c->from, c->bytes, false, at);
        if (memcmp(c->before, c->from, c->bytes) != 0)
            fail("%s: the source of cp.async (%s:%d) was written before the copy was waited for (%s:%d)",
                 lane_describe(here).text, c->at.file, c->at.line, at.file, at.line);
    }
    memory_expose(c->to, c->size, false);
    touch(here, c->to, c->size, true, at);
    if (c->bytes) memcpy(c->to, c->from, c->bytes);
    memset(c->to + c->bytes, 0, c->size - c->bytes);
}

/* Delivers what was begun in groups before `end`. */
static void deliver_before(uint64_t end, struct site at) {
    struct copy_queue *q = &here->copies;
    unsigned kept = 0;
    for (unsigned i = 0; i < q->count; i++) {
        if (q->copies[i].group < end)
            deliver(q->copies + i, at);
        else
            q->copies[kept++] = q->copies[i];
    }
    q->count = kept;
}

void copy_wait(uint64_t newest, const char *file, int line) {
    if (!here) fail("a wait for cp.async outside a kernel (%s:%d)", file, line);
    here->operation = "cp_async_wait";
    here->at = {file, line};
    if (here->copies.group > newest) deliver_before(here->copies.group - newest, here->at);
}

void copy_wait_all(const char *file, int line) {
    if (!here) fail("a wait for cp.async outside a kernel (%s:%d)", file, line);
    deliver_before(UINT64_MAX, {file, line});
}

void copy_check_exit(struct lane *l) {
    if (l->copies.count)
        fail("%s ends while %u of its copies are under way, the first begun at %s:%d", lane_describe(l).text,
             l->copies.count, l->copies.copies->at.file, l->copies.copies->at.line);
}

const struct pending_copy *copy_pending_at(const void *p, const struct lane **of) {
    if (!now_launch) return nullptr;
    for (unsigned i = 0; i < now.lanes_count; i++) {
        const struct copy_queue *q = &now.lanes[i].copies;
        for (unsigned k = 0; k < q->count; k++) {
            if (p < q->copies[k].to || p >= q->copies[k].to + q->copies[k].size) continue;
            *of = now.lanes + i;
            return q->copies + k;
        }
    }
    return nullptr;
}

} // namespace sim

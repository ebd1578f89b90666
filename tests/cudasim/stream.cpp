/* Streams and events. What is issued to a stream waits there until something needs it: a synchronisation, another
 * stream that waits for an event behind it, a release of memory. Then it is done in order, and nothing of another
 * stream that no event orders before it. So two streams run as far apart as they may, and an event that is missing
 * shows in what comes out. The default stream, and every one where CUDA_LAUNCH_BLOCKING=1 is in the environment, is
 * done with each thing when the call returns. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/cudasim/cuda_runtime.h"
#include "tests/cudasim/runtime.h"

struct sim_stream {
    struct sim_stream *next;
    struct sim::tasks waiting;
    struct sim::tasks captured;
    bool captures; // what is issued is not done, but kept for a graph
    uint64_t issued;
};

struct sim_event {
    struct timespec at;
    struct sim_stream *stream; // NULL: recorded on the default stream, or never
    uint64_t number;           // of the last task before it
};

namespace sim {

static struct sim_stream *streams;

static bool at_once(const struct sim_stream *s) {
    const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
    return !s || (!s->captures && blocking && strcmp(blocking, "1") == 0);
}

static void finish(struct sim_stream *s, uint64_t number) {
    while (s && s->waiting.first && s->waiting.first->number <= number) {
        struct task *t = s->waiting.first;
        s->waiting.first = t->next;
        if (!s->waiting.first) s->waiting.last = nullptr;
        t->run(t);
        free(t);
    }
}

void stream_finish(struct sim_stream *s) { finish(s, UINT64_MAX); }

void streams_finish() {
    for (struct sim_stream *s = streams; s; s = s->next) stream_finish(s);
}

/* --- lists ------------------------------------------------------------------------------------------------------- */

static struct task *task_new(struct tasks *in, void (*run)(const struct task *t), size_t more) {
    struct task *t = static_cast<struct task *>(calloc(1, sizeof *t + more));
    if (!t) fail("out of memory");
    t->run = run;
    if (in->last)
        in->last->next = t;
    else
        in->first = t;
    in->last = t;
    return t;
}

static void run_launch(const struct task *t) { launch_run(&t->launch); }
static void run_copy(const struct task *t) { copy_now(t->to, t->from, t->bytes); }
static void run_fill(const struct task *t) { fill_now(t->to, t->value, t->bytes); }

struct task *task_of_launch(struct tasks *in, const struct launch *l) {
    struct task *t = task_new(in, run_launch, l->bound_bytes);
    t->launch = *l;
    t->launch.bound = memcpy(t + 1, l->bound, l->bound_bytes);
    return t;
}

static struct task *task_copy(struct tasks *in, const struct task *from) {
    if (from->run == run_launch) return task_of_launch(in, &from->launch);
    struct task *t = task_new(in, from->run, 0);
    t->to = from->to, t->from = from->from, t->bytes = from->bytes, t->value = from->value;
    return t;
}

void tasks_copy(struct tasks *in, const struct tasks *from) {
    for (const struct task *t = from->first; t; t = t->next) task_copy(in, t);
}

void tasks_free(struct tasks *t) {
    while (t->first) {
        struct task *next = t->first->next;
        free(t->first);
        t->first = next;
    }
    t->last = nullptr;
}

/* --- issuing ----------------------------------------------------------------------------------------------------- */

/* Where a new task of the stream goes. */
static struct tasks *list_of(struct sim_stream *s) { return s->captures ? &s->captured : &s->waiting; }

static void issued(struct sim_stream *s, struct task *t) {
    if (!s->captures) t->number = ++s->issued;
}

bool stream_captures(const struct sim_stream *s) { return s && s->captures; }

struct tasks *stream_capture(struct sim_stream *s, bool on) {
    s->captures = on;
    return &s->captured;
}

void stream_tasks(struct sim_stream *s, const struct tasks *list) {
    for (const struct task *t = list->first; t; t = t->next) {
        if (at_once(s))
            t->run(t);
        else
            issued(s, task_copy(list_of(s), t));
    }
}

bool stream_launch(struct sim_stream *s, const struct launch *l) {
    if (here || at_once(s)) return launch_run(l);
    if (!launch_fits(l)) return false;
    issued(s, task_of_launch(list_of(s), l));
    return true;
}

void stream_copy(struct sim_stream *s, void *to, const void *from, size_t bytes) {
    if (at_once(s)) {
        copy_now(to, from, bytes);
        return;
    }
    struct task *t = task_new(list_of(s), run_copy, 0);
    t->to = to, t->from = from, t->bytes = bytes;
    issued(s, t);
}

void stream_fill(struct sim_stream *s, void *to, int value, size_t bytes) {
    if (at_once(s)) {
        fill_now(to, value, bytes);
        return;
    }
    struct task *t = task_new(list_of(s), run_fill, 0);
    t->to = to, t->value = value, t->bytes = bytes;
    issued(s, t);
}

} // namespace sim

/* --- the calls --------------------------------------------------------------------------------------------------- */

using sim::give;

cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = static_cast<cudaStream_t>(calloc(1, sizeof **s));
    if (!*s) return give(cudaErrorMemoryAllocation);
    (*s)->next = sim::streams;
    sim::streams = *s;
    return give(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }

cudaError_t cudaStreamDestroy(cudaStream_t s) {
    struct sim_stream **at = &sim::streams;
    while (*at && *at != s) at = &(*at)->next;
    if (!s || !*at) return give(cudaErrorInvalidResourceHandle);
    sim::stream_finish(s);
    *at = s->next;
    free(s);
    return give(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (sim::stream_captures(s)) return give(cudaErrorStreamCaptureUnsupported);
    sim::stream_finish(s);
    return give(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t e, unsigned) { return cudaEventSynchronize(e); }

cudaError_t cudaDeviceSynchronize() {
    sim::streams_finish();
    return give(cudaSuccess);
}

cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = static_cast<cudaEvent_t>(calloc(1, sizeof **e));
    return give(*e ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }

cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return give(e ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    e->stream = s;
    e->number = s ? s->issued : 0;
    return give(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    sim::finish(e->stream, e->number);
    return give(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaEventSynchronize(e); }

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    *ms = static_cast<float>(end->at.tv_sec - begin->at.tv_sec) * 1e3f +
          static_cast<float>(end->at.tv_nsec - begin->at.tv_nsec) * 1e-6f;
    return give(cudaSuccess);
}

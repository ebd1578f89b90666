/* Workers sleep on a condition variable and spin for a moment before, because a training step calls threads_for some
 * hundred times with gaps of microseconds. A job is published by its generation number. Who publishes it works on it
 * too and closes it when no task is left: a worker that was slow to wake finds it closed and holds nobody up. */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/memory.h"

enum { SPINS = 2000, CLOSED = -1 };

struct threads {
    int count;
    pthread_t *workers; // (count - 1)
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint generation; // changes with each job
    atomic_bool quit;
    atomic_int inside; // workers on the job; CLOSED: none may enter, and the job may be changed
    atomic_llong next; // the next task
    int64_t tasks;
    thread_task *task;
    void *arg;
};

struct worker {
    struct threads *team;
    int number;
};

static void work(struct threads *t, int thread) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->tasks) return;
        t->task(t->arg, i, thread);
    }
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

/* Waits until the generation differs from seen; returns it. */
static unsigned wait_for_job(struct threads *t, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned g = atomic_load_explicit(&t->generation, memory_order_acquire);
        if (g != seen) return g;
        pause_briefly();
    }
    pthread_mutex_lock(&t->lock);
    while (atomic_load(&t->generation) == seen) pthread_cond_wait(&t->wake, &t->lock);
    unsigned g = atomic_load(&t->generation);
    pthread_mutex_unlock(&t->lock);
    return g;
}

static bool enter_job(struct threads *t) {
    int inside = atomic_load_explicit(&t->inside, memory_order_relaxed);
    while (inside != CLOSED)
        if (atomic_compare_exchange_weak_explicit(&t->inside, &inside, inside + 1, memory_order_acquire,
                                                  memory_order_relaxed))
            return true;
    return false;
}

static void close_job(struct threads *t) {
    for (int none = 0;
         !atomic_compare_exchange_weak_explicit(&t->inside, &none, CLOSED, memory_order_acquire, memory_order_relaxed);
         none = 0)
        pause_briefly();
}

static void *worker_main(void *arg) {
    struct worker self = *(struct worker *)arg;
    free(arg);
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_job(self.team, seen);
        if (atomic_load(&self.team->quit)) return NULL;
        if (!enter_job(self.team)) continue;
        work(self.team, self.number);
        atomic_fetch_sub_explicit(&self.team->inside, 1, memory_order_release);
    }
}

static int machine_threads(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

struct threads *threads_new(int count) {
    struct threads *t = mem_alloc(sizeof *t);
    t->count = count > 0 ? count : machine_threads();
    t->workers = mem_alloc((size_t)t->count * sizeof *t->workers);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    atomic_store(&t->inside, CLOSED);
    int started = 1;
    for (; started < t->count; started++) {
        struct worker *w = mem_alloc(sizeof *w);
        *w = (struct worker){t, started};
        if (pthread_create(&t->workers[started - 1], NULL, worker_main, w) != 0) {
            free(w);
            break; // the machine refuses more: those that run do the work
        }
    }
    t->count = started;
    return t;
}

static void publish(struct threads *t) {
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->generation, 1);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

void threads_free(struct threads *t) {
    if (!t) return;
    atomic_store(&t->quit, true);
    publish(t);
    for (int i = 1; i < t->count; i++) pthread_join(t->workers[i - 1], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t->workers);
    free(t);
}

int threads_count(const struct threads *t) { return t->count; }

void threads_for(struct threads *t, int64_t n, thread_task *task, void *arg) {
    if (t->count == 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++) task(arg, i, 0);
        return;
    }
    t->task = task, t->arg = arg, t->tasks = n;
    atomic_store(&t->next, 0);
    atomic_store_explicit(&t->inside, 0, memory_order_release);
    publish(t);
    work(t, 0);
    close_job(t);
}

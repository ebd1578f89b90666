/* A fixed set of threads that share out numbered tasks. Which thread runs which task is not determined, so a task must
 * depend on its number only: then results are the same bits for any number of threads. */
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include <stdint.h>

struct threads;

typedef void thread_task(void *arg, int64_t task, int thread); // thread: 0 .. threads_count - 1, for scratch memory

struct threads *threads_new(int count); // 0: as many as the machine has for us
void threads_free(struct threads *t);
int threads_count(const struct threads *t);

/* Runs task(arg, 0..n-1, thread) and returns when all are done. The caller works too. Not to be called from a task. */
void threads_for(struct threads *t, int64_t n, thread_task *task, void *arg);

#endif

/* The CPU backend from within. Everything in this folder except backend.c is compiled once per instruction set (x86-64,
 * x86-64-v3, x86-64-v4; see the Makefile) and linked into one object that shows a single name: its table of ops. So no
 * function here carries an instruction set in its name, loops vectorise as wide as the machine allows, and backend.c
 * takes the widest table that the machine runs.
 *
 * A sum never crosses tasks, and how it is cut follows from shapes only. That keeps the bits the same for any number of
 * threads, which may choose no more than how many whole sums a task takes. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kernels/ops_table.h"

struct cpu_backend {
    struct backend base; // first, so that a struct backend * of this kind may be cast
    bool amx;            // the kernel has granted AMX tiles to this process
    char *scratch;       // (threads, CPU_SCRATCH) bytes, page-aligned
    char *shared;        // CPU_SHARED bytes, page-aligned, behind scratch: what all tasks of one op read
    const char *noted;   // whose time runs since `since`; NULL: nobody's
    double since;
    char about[128];
};

struct backend *cpu_backend_new(int threads, struct err *e);

/* Bytes that a task may use while it runs; nothing in it survives the task. */
enum { CPU_SCRATCH = 4 << 20, CPU_SHARED = 64 << 20 };

static inline char *cpu_scratch(struct backend *be, int thread) {
    return ((struct cpu_backend *)be)->scratch + (size_t)thread * CPU_SCRATCH;
}

/* Whether every index (I32) is in low .. limit - 1; if not, sets be->err. Ids come from files, so this one is checked.
 * */
bool cpu_indices_fit(struct backend *be, const char *op, const struct tensor *index, int64_t low, int64_t limit);

/* Work on rows (N,C) is cut into tasks of so many rows: enough to be worth a task, by shape only. */
static inline int64_t rows_per_task(int64_t C) { return C >= 16384 ? 1 : 16384 / (C + 1) + 1; }

static inline int64_t tasks_of(int64_t n, int64_t per_task) { return (n + per_task - 1) / per_task; }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif

/* The CPU backend from within. Everything in this folder except backend.c is compiled once per instruction set (x86-64,
 * x86-64-v3, x86-64-v4; see the Makefile) and linked into one object that shows a single name: its table of ops. So no
 * function here carries an instruction set in its name, loops vectorise as wide as the machine allows, and backend.c
 * takes the widest table that the machine runs.
 *
 * Work is cut into tasks by shape only, never by the number of threads; a sum never crosses tasks. That keeps the bits
 * the same for any number of threads. */
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
    char about[128];
};

/* Bytes that a task may use while it runs; nothing in it survives the task. */
enum { CPU_SCRATCH = 4 << 20 };

static inline char *cpu_scratch(struct backend *be, int thread) {
    return ((struct cpu_backend *)be)->scratch + (size_t)thread * CPU_SCRATCH;
}

#endif

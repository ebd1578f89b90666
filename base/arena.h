/* Memory that is planned before it is used. One function lays a thing out; called with an arena that has no memory it
 * only counts, called again with memory it places, so sizes cannot drift from pointers:
 *
 *     struct arena plan = {0};
 *     thing_layout(&thing, &plan);              // plan.peak is now what the thing needs
 *     struct arena a = arena_over(memory, plan.peak);
 *     thing_layout(&thing, &a);                 // the same calls, now with pointers
 *
 * The memory may belong to a device: the arena never touches what it hands out. Scratch inside a function is
 * `size_t mark = a->used; ... a->used = mark;`. Running over the end is an error of the program and aborts. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/tensor.h"

enum { ARENA_ALIGN = 64 };

struct arena {
    char *base;  // NULL: counting only, everything handed out is NULL
    size_t size; // bytes at base
    size_t used; // bytes handed out now
    size_t peak; // the most that was ever handed out
};

struct arena arena_over(void *memory, size_t size);
void *arena_bytes(struct arena *a, size_t bytes); // aligned to ARENA_ALIGN, not zeroed

struct tensor arena_tensor1(struct arena *a, enum dtype type, int64_t d0);
struct tensor arena_tensor2(struct arena *a, enum dtype type, int64_t d0, int64_t d1);
struct tensor arena_tensor3(struct arena *a, enum dtype type, int64_t d0, int64_t d1, int64_t d2);

#endif

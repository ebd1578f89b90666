/* The simulator: what its headers for kernels and its runtime share. README.md says how it works.
 *
 * One block runs at a time. Each of its threads is a `lane`; a lane that has to wait keeps its stack (a fibre) and
 * another one runs on, so exactly one lane runs at any moment: `here`. Nothing here is called by two host threads at
 * once; launches take a lock. */
#ifndef TESTS_CUDASIM_SIM_H
#define TESTS_CUDASIM_SIM_H

#include <stddef.h>
#include <stdint.h>

#include "tests/cudasim/vector_types.h"

/* The last two parameters of every function that a kernel calls: the line of the kernel that calls it. */
#define SIM_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct sim_stream;

namespace sim {

enum : unsigned { WARP_LANES = 32, MAX_LANES = 1024, ALL_LANES = 0xffffffffu };

struct site {
    const char *file;
    int line;
};

struct block;
struct fibre;
struct warp_call;

enum lane_state { FRESH, RUNNING, READY, AT_BARRIER, AT_WARP, DONE };

/* One copy that cp.async has begun and not delivered. */
struct pending_copy {
    char *to;
    const char *from;
    unsigned bytes; // read from `from`; the rest of `size` is zeros
    unsigned size;
    uint64_t group;
    struct site at;
    unsigned char before[16]; // the source when the copy was begun
};

struct copy_queue {
    struct pending_copy *copies;
    unsigned count, room;
    uint64_t group; // that the next commit closes
};

struct lane {
    uint3 index;     // threadIdx
    unsigned number; // in the block, x fastest
    enum lane_state state;
    struct block *block;
    struct fibre *fibre;    // while it waits
    struct warp_call *call; // while it waits for its warp
    const char *operation;  // where it waits or waited last; NULL: it never waited
    struct site at;
    struct copy_queue copies;
};

/* Sets of lanes are bits. */
struct warp {
    unsigned present; // lanes that the block has here
    unsigned waiting; // at a warp operation
    unsigned wanted;  // by one that waits: the union of the masks of `waiting`
    unsigned at_barrier;
    unsigned done;
    uint16_t syncs; // __syncwarp's so far
};

struct block {
    uint3 index;   // blockIdx
    dim3 size;     // blockDim
    dim3 grid;     // gridDim
    uint64_t mark; // differs from block to block and from launch to launch
    unsigned lanes_count, waiting_at_barrier, done;
    int votes; // __syncthreads_count and its like: added up by those that arrive, kept for those that leave
    int last_votes;
    struct lane lanes[MAX_LANES];
    struct warp warps[MAX_LANES / WARP_LANES];
};

extern struct lane *here; // the lane that runs; NULL in host code

/* --- launching --------------------------------------------------------------------------------------------------- */

struct launch {
    const void *kernel;
    void (*run)(const void *kernel, const void *bound); // calls it with its arguments
    const void *bound;                                  // the arguments, each aligned to 16
    size_t bound_bytes;
    dim3 grid, block;
    size_t shared; // bytes of dynamic shared memory
};

/* How a kernel is called, and the sizes of its arguments, 0 behind the last. Any number of times. */
void kernel_declare(const void *kernel, void (*run)(const void *kernel, const void *bound), const size_t *sizes);

/* Runs all blocks to the end. False when the shape is one that no device takes. */
bool launch_run(const struct launch *l);

/* The same when its stream comes to it; false at once. */
bool stream_launch(struct sim_stream *s, const struct launch *l);

/* Threads run, and blocks, in "forward", "reverse" or "shuffle:SEED" order; GRAFT_SIM_ORDER says it at the start.
 * False when the text is none of these. */
bool order_set(const char *text);

/* --- waiting ----------------------------------------------------------------------------------------------------- */

void barrier(const char *operation, const char *file, int line);               // __syncthreads
int barrier_vote(const char *operation, int vote, const char *file, int line); // the sum of the votes

/* What one lane brings to an operation of its warp. The last lane to come runs it for all. */
struct warp_call {
    const char *name;
    void (*run)(struct warp_call *const *lanes, unsigned mask); // lanes (32): those of mask
    unsigned mask;
    struct site at;
    struct lane *lane;
    uint64_t value, result; // shuffles, votes and sums of integers
    int from;               // shuffles: the lane to read
    const void *a, *b;      // ldmatrix: the row; mma: fragments
    void *c;
};

void warp_do(struct warp_call *call);

void warp_run_sync(struct warp_call *const *lanes, unsigned mask);
void warp_run_shuffle(struct warp_call *const *lanes, unsigned mask);
void warp_run_ballot(struct warp_call *const *lanes, unsigned mask);
void warp_run_add(struct warp_call *const *lanes, unsigned mask);
void warp_run_min(struct warp_call *const *lanes, unsigned mask);
void warp_run_max(struct warp_call *const *lanes, unsigned mask);
void warp_run_ldmatrix(struct warp_call *const *lanes, unsigned mask);
void warp_run_ldmatrix_trans(struct warp_call *const *lanes, unsigned mask);
void warp_run_mma_bf16(struct warp_call *const *lanes, unsigned mask);

/* --- memory ------------------------------------------------------------------------------------------------------ */

enum memory_kind { MEMORY_NONE, MEMORY_SHARED, MEMORY_DEVICE, MEMORY_HOST };

/* Whether the device is one of compute capability 7.5: less shared memory, no cp.async, no mma of bf16. Else it is one
 * of 8.0. GRAFT_SIM_CAPABILITY says which. */
extern bool before_8;

/* One SHARED in a kernel and one instantiation of it. */
struct shared_site {
    size_t bytes;
    const char *name;
    struct site at;
    char *start;   // NULL: no block has come here yet
    uint64_t mark; // of the block that came here last
    struct shared_site *next_of_block;
};

void *shared_array(struct shared_site *s); // for the block that runs
void *shared_dynamic();
uint32_t shared_offset(const void *p, const char *file, int line);

void copy_begin(void *to, const void *from, unsigned bytes, unsigned size, const char *file, int line);
void copy_commit();
void copy_wait(uint64_t newest, const char *file, int line); // all but the newest groups arrive
void copy_wait_all(const char *file, int line);              // those in no group too

/* Says that the running lane touches memory outside the sight of the compiler's instrumentation. */
void touch(struct lane *l, const void *p, size_t bytes, bool write, struct site at);
void touch_atomic(const void *p, size_t bytes, const char *file, int line);
void fence(); // __threadfence

/* --- failing ----------------------------------------------------------------------------------------------------- */

/* One message that begins with "cudasim: ", then abort. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace sim

#endif

/* Inside the runtime: what its files share and kernels do not see. */
#ifndef TESTS_CUDASIM_RUNTIME_H
#define TESTS_CUDASIM_RUNTIME_H

#include "tests/cudasim/fibre.h"
#include "tests/cudasim/sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifndef SIM_ASAN
#define SIM_ASAN 0
#endif
#ifndef SIM_RACE // the Makefile's flavour race defines it as 1
#define SIM_RACE 0
#endif

namespace sim {

/* --- scheduling (block.cpp) -------------------------------------------------------------------------------------- */

enum order_kind { FORWARD, REVERSE, SHUFFLED };

extern enum order_kind order;
extern uint64_t order_seed;
uint32_t order_random(uint32_t below); // the next of the seed's numbers

extern struct block now;                // the block that runs
extern const struct launch *now_launch; // NULL between launches

/* Suspends the running lane, whose state says why; returns when another has made it READY. */
void lane_wait();
void lane_release(struct lane *l);

/* The same in the order that threads run in. */
void lanes_release(struct lane *first, unsigned count, const struct lane *except);

/* One line for each run of threads that wait or ended at the same place, into text. */
void block_describe(char *text, size_t bytes);

/* "thread 5 (5,0,0) of block (1,0,0)" */
struct lane_name {
    char text[96];
};
struct lane_name lane_describe(const struct lane *l);

struct warp *warp_of(const struct lane *l);
unsigned lane_bit(const struct lane *l);
void warp_check_exit(struct lane *l); // fails where lanes wait for l
void warp_check_barrier(struct lane *l);

/* --- memory (memory.cpp, shared.cpp, copy.cpp) ------------------------------------------------------------------- */

enum : size_t { WINDOW_BYTES = size_t{8} << 20 }; // of shared memory, all SHAREDs of the program

/* All memory that a kernel may touch lies in one range of addresses; the window of shared memory is its beginning. */
extern char *memory_base;
extern size_t memory_span;
void memory_open(); // any number of times
bool memory_in_range(const void *p);

/* Zero bytes are a valid piece. NULL: the device has not that much. */
char *memory_new(enum memory_kind kind, size_t bytes);
bool memory_free(enum memory_kind kind, void *start);      // false: no such piece
enum memory_kind memory_find(const void *p, size_t bytes); // where all of it lies; MEMORY_NONE: not in one live piece
size_t memory_in_use(enum memory_kind kind);
size_t memory_limit();

/* Memory that kernels may touch, or may not; `written`: it holds values, so reading it is no failure. p is a multiple
 * of 8, and hiding takes whole multiples of 8 bytes. */
void memory_expose(const void *p, size_t bytes, bool written);
void memory_hide(const void *p, size_t bytes);
bool memory_hidden(const void *p, size_t bytes); // any of it

/* "8 bytes after `tile` (k.cu:12), shared memory" and the like. */
void memory_describe(const void *p, char *text, size_t bytes);

/* A block's shared memory: unasked, and for a kernel that asked, what every device of compute capability 7.5, or from
 * 8.0 on, has. SHAREDs and dynamic bytes count together. */
enum : size_t { SHARED_DEFAULT = 48 * 1024 };
size_t shared_most();
void shared_grant(const void *kernel, size_t dynamic_bytes); // what the kernel asked for
bool shared_fits(const void *kernel, size_t dynamic_bytes);

void shared_begin(const void *kernel, size_t dynamic_bytes); // a block begins
void shared_end();
bool shared_describe(const char *p, char *text, size_t bytes); // false: in no array of the block
enum : size_t { DYNAMIC_AT = 4096, DYNAMIC_MOST = 1 << 20 };   // where dynamic shared memory lies in the window

void copy_check_exit(struct lane *l);                                              // fails where copies are pending
const struct pending_copy *copy_pending_at(const void *p, const struct lane **of); // of any lane

/* --- streams (stream.cpp), and what runs in them (block.cpp, kernel.cpp, api.cpp) --------------------------------- */

enum : size_t { BOUND_MOST = 4096 }; // bytes of a kernel's arguments

/* l->kernel's arguments, to BOUND_MOST bytes at l->bound, and how it is called; false: no kernel of that address. */
bool launch_bind(struct launch *l, void *const *arguments);
bool launch_fits(const struct launch *l);
void copy_now(void *to, const void *from, size_t bytes);
void fill_now(void *p, int value, size_t bytes);

/* One thing to do, in a list. */
struct alignas(16) task {
    struct task *next;
    uint64_t number; // in its stream, from 1
    void (*run)(const struct task *t);
    struct launch launch; // whose arguments lie behind the task
    void *to;
    const void *from;
    size_t bytes;
    int value;
};

struct tasks {
    struct task *first, *last;
};

struct task *task_of_launch(struct tasks *in, const struct launch *l);
void tasks_copy(struct tasks *in, const struct tasks *from);
void tasks_free(struct tasks *t);
void stream_tasks(struct sim_stream *s, const struct tasks *t); // copies of them, to be done in order

void stream_copy(struct sim_stream *s, void *to, const void *from, size_t bytes);
void stream_fill(struct sim_stream *s, void *to, int value, size_t bytes);
void stream_finish(struct sim_stream *s); // all that waits in it; NULL: the default stream, in which nothing waits
void streams_finish();                    // all that waits in any
struct tasks *stream_capture(struct sim_stream *s, bool on); // on: what is issued goes into a list; off: that list
bool stream_captures(const struct sim_stream *s);

/* --- races (race.cpp; nothing in the other flavours) ------------------------------------------------------------- */

#if SIM_RACE
void race_open(); // after memory_base is set
void race_launch_begin();
void race_launch_end();
void race_block_begin();
void race_barrier();
void race_expose(const void *p, size_t bytes, bool written);
void race_hide(const void *p, size_t bytes);
void race_forget(const void *p, size_t bytes); // gives back the memory of what was recorded
bool race_hidden(const void *p, size_t bytes);
void race_touch(struct lane *l, const void *p, size_t bytes, bool write, struct site at);
void race_touch_atomic(struct lane *l, const void *p, size_t bytes, struct site at);
#else
static inline void race_open() {}
static inline void race_launch_begin() {}
static inline void race_launch_end() {}
static inline void race_block_begin() {}
static inline void race_barrier() {}
static inline void race_expose(const void *, size_t, bool) {}
static inline void race_hide(const void *, size_t) {}
static inline void race_forget(const void *, size_t) {}
static inline bool race_hidden(const void *, size_t) { return false; }
static inline void race_touch(struct lane *, const void *, size_t, bool, struct site) {}
static inline void race_touch_atomic(struct lane *, const void *, size_t, struct site) {}
#endif

/* --- failing (fail.cpp) ------------------------------------------------------------------------------------------ */

/* "k.cu:12 in kernel<float>" of an address of code. */
struct code_name {
    char text[256];
};
struct code_name code_describe(const void *address);

} // namespace sim

#endif

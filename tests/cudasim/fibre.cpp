#include "tests/cudasim/fibre.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cudasim/runtime.h"

#if SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "fibre_jump is written for x86-64 only; on another machine let Boost.Context's jump_fcontext do its work"
#endif

/* Saves what a call must preserve on the stack, the stack pointer in *save, and goes on where `top` was saved. It ends
 * in a jump, not a return, which the processor would predict wrongly. The rounding mode is not saved: kernels leave it. */
extern "C" void fibre_jump(void **save, void *top);
asm(R"(
    .text
    .globl fibre_jump
    .type fibre_jump, @function
    .p2align 4
fibre_jump:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    pop %r8
    jmp *%r8
    .size fibre_jump, .-fibre_jump
)");

namespace sim {

enum : size_t { STACK_BYTES = 256 * 1024, PAGE = 4096 };

static struct fibre host;
struct fibre *fibre_running = &host;
static struct fibre *previous;

struct fibre *fibre_host() {
    return &host;
}

/* The first thing on a stack after a switch: AddressSanitizer learns where it is, we where the previous stack is. */
static void arrive() {
#if SIM_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fibre_running->fake_stack, &stack, &bytes);
    if (previous == &host) {
        host.stack = static_cast<char *>(const_cast<void *>(stack));
        host.bytes = bytes;
    }
#endif
}

void fibre_switch(struct fibre *to) {
    previous = fibre_running;
    fibre_running = to;
#if SIM_ASAN
    __sanitizer_start_switch_fiber(&previous->fake_stack, to->stack, to->bytes);
#endif
    fibre_jump(&previous->top, to->top);
    arrive();
}

static void (*first_body)(); // all fibres run the same

static void enter() {
    arrive();
    first_body();
}

/* Stacks are taken from the system without its promise of memory: an idle one costs a page. Their tops are spread over
 * the sets of the first cache. A return address of 0 ends a debugger's backtrace. */
struct fibre *fibre_new(void (*body)()) {
    static unsigned count;
    size_t bytes = sizeof(struct fibre) + STACK_BYTES + 2 * PAGE;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no address space for the stack of fibre %u", count);
    mprotect(memory, PAGE, PROT_NONE);
    char *stack = static_cast<char *>(memory) + PAGE;
    struct fibre *f = reinterpret_cast<struct fibre *>(stack + STACK_BYTES);
    f->stack = stack;
    f->bytes = STACK_BYTES;
    uintptr_t *top = reinterpret_cast<uintptr_t *>(stack + STACK_BYTES - 128 * (1 + count++ % 32));
    *--top = 0; // the return address of enter()
    *--top = reinterpret_cast<uintptr_t>(enter);
    top -= 6; // registers; zero
    f->top = top;
    first_body = body;
    return f;
}

} // namespace sim

#include "tests/traced.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"

static bool is_write(const struct __ptrace_syscall_info *call) {
    bool known = call->entry.nr == SYS_write || call->entry.nr == SYS_writev || call->entry.nr == SYS_pwrite64;
    return known && call->entry.args[0] > STDERR_FILENO;
}

static bool is_other_change(const struct __ptrace_syscall_info *call) {
    enum { WRITES = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC };
    switch (call->entry.nr) {
    case SYS_openat:
        return call->entry.args[2] & WRITES;
#ifdef SYS_open // calls that newer machines lack
    case SYS_open:
        return call->entry.args[1] & WRITES;
    case SYS_mkdir:
    case SYS_rmdir:
    case SYS_rename:
    case SYS_unlink:
#endif
    case SYS_mkdirat:
    case SYS_renameat:
    case SYS_renameat2:
    case SYS_unlinkat:
    case SYS_ftruncate:
    case SYS_fallocate:
    case SYS_fsync:
    case SYS_fdatasync:
        return true;
    }
    return false;
}

static bool counts(struct traced *t, const struct __ptrace_syscall_info *call) {
    if (call->op != PTRACE_SYSCALL_INFO_ENTRY) return false;
    if (is_write(call)) return t->writes++ < 2;
    if (!is_other_change(call)) return false;
    t->writes = 0;
    return true;
}

/* In the child. Leaks cannot be looked for in a program that is traced. */
static void become(const char *const *argv, int said) {
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    bool ready = dup2(said, 1) == 1 && dup2(said, 2) == 2 && ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0;
    if (ready) execv(argv[0], (char *const *)argv);
    _exit(127);
}

static int wait_for(pid_t child) {
    int state = 0;
    while (waitpid(child, &state, 0) < 0) assert_int_equal(errno, EINTR);
    return state;
}

static void ended(struct traced *t, int state) { t->status = WIFEXITED(state) ? WEXITSTATUS(state) : -1; }

/* Containers may forbid it, and kernels before 5.3 do not say which call it is. */
static void no_tracing(const struct traced *t) {
    kill(t->child, SIGKILL);
    close(t->said);
    print_message("a program cannot be traced here\n");
    skip();
}

bool traced_start(struct traced *t, const char *const *argv, int64_t change) {
    enum { AT_CALL = SIGTRAP | 0x80 }; // as PTRACE_O_TRACESYSGOOD marks it
    *t = (struct traced){.said = memfd_create("said", MFD_CLOEXEC), .status = -1};
    t->child = fork();
    assert_true(t->said >= 0 && t->child >= 0);
    if (t->child == 0) become(argv, t->said);
    int state = wait_for(t->child), signal = 0; // stopped at its execv
    if (!WIFSTOPPED(state)) no_tracing(t);
    ptrace(PTRACE_SETOPTIONS, t->child, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    for (;;) {
        struct __ptrace_syscall_info call;
        assert_int_equal(ptrace(PTRACE_SYSCALL, t->child, NULL, (void *)(intptr_t)signal), 0);
        state = wait_for(t->child), signal = 0;
        if (!WIFSTOPPED(state)) break;
        if (WSTOPSIG(state) != AT_CALL) {
            signal = WSTOPSIG(state);
            continue;
        }
        if (ptrace(PTRACE_GET_SYSCALL_INFO, t->child, (void *)sizeof call, &call) <= 0) no_tracing(t);
        if (counts(t, &call) && t->changes++ == change) return true;
    }
    ended(t, state);
    return false;
}

void traced_kill(struct traced *t) {
    kill(t->child, SIGKILL);
    wait_for(t->child);
    close(t->said);
}

void traced_finish(struct traced *t) {
    ptrace(PTRACE_DETACH, t->child, NULL, NULL);
    ended(t, wait_for(t->child));
}

char *traced_text(struct traced *t) {
    off_t size = lseek(t->said, 0, SEEK_END);
    char *text = mem_alloc((size_t)size + 1);
    assert_int_equal(pread(t->said, text, (size_t)size, 0), size);
    close(t->said);
    return text;
}

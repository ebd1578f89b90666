#include "tests/run_command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

enum { READ, WRITE };

struct pipes {
    int in[2], out[2], err[2], failed[2]; // failed carries errno from the child when it cannot become the program
};

static void close_one(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void close_all(struct pipes *p) {
    int *all[] = {p->in, p->out, p->err, p->failed};
    for (int i = 0; i < 4; i++) close_one(&all[i][READ]), close_one(&all[i][WRITE]);
}

static enum status open_all(struct pipes *p, struct err *e) {
    *p = (struct pipes){{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    int *all[] = {p->in, p->out, p->err, p->failed};
    for (int i = 0; i < 4; i++)
        if (pipe2(all[i], O_CLOEXEC) != 0) return err_set(e, ST_FAIL, "cannot make a pipe (%s)", strerror(errno));
    return ST_OK;
}

/* In the child: a process group of its own, so that whatever it starts can be killed with it. */
static void become(const char *const *argv, const char *dir, struct pipes *p) {
    setpgid(0, 0);
    bool ready = dup2(p->in[READ], 0) >= 0 && dup2(p->out[WRITE], 1) >= 0 && dup2(p->err[WRITE], 2) >= 0;
    if (ready && (!dir || chdir(dir) == 0)) execv(argv[0], (char *const *)argv);
    int why = errno;
    if (write(p->failed[WRITE], &why, sizeof why) < 0) _exit(126);
    _exit(127);
}

/* Takes what is there; closes the pipe at its end. */
static void drain(int *fd, struct text *to) {
    char part[65536];
    ssize_t n = read(*fd, part, sizeof part);
    if (n > 0) text_add_n(to, part, (size_t)n);
    if (n == 0 || (n < 0 && errno != EINTR)) close_one(fd);
}

static void feed(int *fd, const char **input) {
    ssize_t n = write(*fd, *input, strlen(*input));
    if (n > 0) *input += n;
    if (!**input || (n < 0 && errno != EINTR && errno != EAGAIN)) close_one(fd);
}

/* Feeds and drains until both outputs are closed or the time is over; says whether it is over. */
static bool exchange(struct pipes *p, const char *input, double end, struct command_result *r) {
    while (p->out[READ] >= 0 || p->err[READ] >= 0) {
        double left = end - clock_now();
        if (left <= 0) return true;
        struct pollfd fds[] = {{p->out[READ], POLLIN, 0}, {p->err[READ], POLLIN, 0}, {p->in[WRITE], POLLOUT, 0}};
        if (poll(fds, 3, (int)(left * 1000) + 1) <= 0) continue;
        if (fds[0].revents) drain(&p->out[READ], &r->out);
        if (fds[1].revents) drain(&p->err[READ], &r->err);
        if (fds[2].revents) feed(&p->in[WRITE], &input);
    }
    return false;
}

/* Waits for the end, which the closed outputs announce but do not prove. */
static int reap(pid_t child, double end, bool *timed_out) {
    int state = 0;
    const struct timespec pause = {0, 2000000};
    while (!*timed_out && waitpid(child, &state, WNOHANG) == 0) {
        *timed_out = clock_now() > end;
        if (!*timed_out) nanosleep(&pause, NULL);
    }
    if (!*timed_out) return state;
    kill(-child, SIGKILL);
    kill(child, SIGKILL);
    while (waitpid(child, &state, 0) < 0 && errno == EINTR) {}
    return state;
}

enum status command_run(const char *const *argv, const char *dir, const char *input, double seconds,
                        struct command_result *r, struct err *e) {
    *r = (struct command_result){.status = -1};
    struct pipes p;
    if (open_all(&p, e) != ST_OK) goto done;
    pid_t child = fork();
    if (child < 0) {
        err_set(e, ST_FAIL, "%s: cannot fork (%s)", argv[0], strerror(errno));
        goto done;
    }
    if (child == 0) become(argv, dir, &p);
    close_one(&p.in[READ]), close_one(&p.out[WRITE]), close_one(&p.err[WRITE]), close_one(&p.failed[WRITE]);
    if (!input || !*input)
        close_one(&p.in[WRITE]);
    else
        fcntl(p.in[WRITE], F_SETFL, O_NONBLOCK);

    struct sigaction ignore = {.sa_handler = SIG_IGN},
                     before; // a program that does not read its input is no error here
    sigaction(SIGPIPE, &ignore, &before);
    double end = clock_now() + seconds;
    r->timed_out = exchange(&p, input, end, r);
    int state = reap(child, end, &r->timed_out);
    sigaction(SIGPIPE, &before, NULL);

    int why = 0;
    if (read(p.failed[READ], &why, sizeof why) == sizeof why)
        err_set(e, ST_FAIL, "%s: cannot run it (%s)", argv[0], strerror(why));
    if (WIFEXITED(state))
        r->status = WEXITSTATUS(state);
    else
        r->signal = WTERMSIG(state);
done:
    close_all(&p);
    return e->code;
}

void command_free(struct command_result *r) {
    text_free(&r->out);
    text_free(&r->err);
}

const char *graft_path(void) {
    const char *path = getenv("GRAFT");
    return path && *path ? path : "build/release/graft";
}

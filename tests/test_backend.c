/* The backend below the ops: devices that there are not, memory, copies that wait and copies beside the ops, and ops
 * that refuse what does not fit. The CPU is tested, and what "auto" finds. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kernels/profile.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void refused(const char *device, enum status status, const char *words) {
    struct err e = {0};
    assert_null(backend_new(device, 1, &e));
    assert_int_equal(e.code, status);
    assert_non_null(strstr(e.text, words));
}

static void test_backend_says_what_it_has_not(void **state) {
    (void)state;
    refused("cuda:1000", ST_FAIL, "device cuda:1000: ");
    refused("cuda:", ST_USAGE, "cuda:N");
    refused("cuda:-1", ST_USAGE, "cuda:N");
    refused("cuda:1x", ST_USAGE, "cuda:N");
    refused("gpu", ST_USAGE, "wanted auto, cpu, cuda or cuda:N");
    setenv("GRAFT_CPU_ISA", "z80", 1);
    refused("cpu", ST_USAGE, "z80");
    unsetenv("GRAFT_CPU_ISA");
}

enum { LARGE = 20 << 20 }; // bytes: several times through any ring of pieces

/* Uploads of all sizes in a row, from memory that is overwritten at once. */
static void check_transfers(struct backend *be) {
    static const size_t sizes[] = {1, 3, 63, 64, 65, 4096, 100000, 4 << 20, 1};
    unsigned char *host = malloc(LARGE), *memory = backend_alloc(be, LARGE);
    size_t at = 0;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct tensor t = tensor_over1(memory + at, U8, (int64_t)sizes[i]);
        memset(host, (int)i + 1, sizes[i]);
        backend_upload(be, &t, host);
        at += sizes[i];
    }
    struct tensor all = tensor_over1(memory, U8, LARGE);
    backend_download(be, host, &all);
    for (size_t i = 0, from = 0; i < COUNT(sizes); from += sizes[i++])
        for (size_t k = from; k < from + sizes[i]; k++)
            if (host[k] != i + 1) fail_msg("byte %zu of upload %zu is %d", k - from, i, host[k]);
    for (size_t k = at; k < LARGE; k++)
        if (host[k]) fail_msg("byte %zu beyond the uploads is %d, wanted 0", k, host[k]);
    for (size_t k = 0; k < LARGE; k++) host[k] = (unsigned char)(k * 2654435761u >> 24);
    backend_upload(be, &all, host);
    memset(host, 0, LARGE);
    backend_download(be, host, &all);
    for (size_t k = 0; k < LARGE; k++)
        if (host[k] != (unsigned char)(k * 2654435761u >> 24)) fail_msg("byte %zu of the large upload", k);
    backend_release(be, memory);
    free(host);
}

/* To the host and back beside the ops: a copy has what the ops before it gave, and the ops after the wait what it
 * brought. */
static void check_copies(struct backend *be) {
    enum { COUNT_OF = 100000 };
    struct err e = {0};
    float *device = backend_alloc(be, 2 * COUNT_OF * sizeof *device),
          *host = backend_host_alloc(be, COUNT_OF * sizeof *host), *back = malloc(COUNT_OF * sizeof *back);
    struct tensor x = tensor_over1(device, F32, COUNT_OF), y = tensor_over1(device + COUNT_OF, F32, COUNT_OF),
                  none = tensor_over1(device, F32, 0);
    for (int i = 0; i < COUNT_OF; i++) back[i] = (float)i;
    backend_upload(be, &x, back);
    op_add(be, &x, &x, &x);
    backend_store(be, host, &x);
    backend_store(be, host, &none);
    backend_await(be);
    op_zero(be, &x);
    backend_fetch(be, &y, host);
    backend_await(be);
    op_add(be, &y, &y, &y);
    backend_download(be, back, &y);
    assert_int_equal(backend_sync(be, &e), ST_OK);
    for (int i = 0; i < COUNT_OF; i++) assert_true(host[i] == 2 * (float)i && back[i] == 4 * (float)i);
    backend_release(be, device);
    backend_host_release(be, host);
    free(back);
}

static void check_backend(struct backend *be) {
    struct err e = {0};
    assert_non_null(strstr(backend_describe(be), "2 threads"));
    char *p = backend_alloc(be, 4000);
    assert_int_equal((uintptr_t)p % 64, 0);
    float values[1000] = {1, 2, 3}, back[1000];
    struct tensor all = tensor_over1(p, F32, 1000), few = tensor_over1(p, F32, 3), none = tensor_over1(p, F32, 0);
    backend_download(be, back, &all);
    for (int i = 0; i < 1000; i++) assert_true(back[i] == 0);
    backend_upload(be, &few, values);
    backend_upload(be, &none, NULL);
    backend_download(be, back, &all);
    assert_memory_equal(values, back, sizeof back);
    backend_release(be, p);
    check_transfers(be);
    check_copies(be);

    float *shared = backend_host_alloc(be, 3 * sizeof *shared);
    struct tensor t = tensor_over1(shared, F32, 3);
    assert_true(shared[0] == 0 && shared[2] == 0);
    shared[0] = 1, shared[1] = 2, shared[2] = -3;
    op_add(be, &t, &t, &t);
    assert_int_equal(backend_sync(be, &e), ST_OK);
    assert_true(shared[0] == 2 && shared[1] == 4 && shared[2] == -6);
    backend_host_release(be, shared);
    assert_true(backend_memory_free(be) > 0);

    assert_null(backend_alloc(be, SIZE_MAX / 2));
    assert_int_equal(backend_sync(be, &e), ST_FAIL);
    assert_non_null(strstr(e.text, "MiB"));
    backend_free(be);
}

static void test_backend_memory(void **state) {
    (void)state;
    struct err e = {0};
    check_backend(backend_new("cpu", 2, &e));
    check_backend(backend_new("auto", 2, &e));
}

/* Runs fn in a child; true when it aborts and its last words contain `words`. */
static bool aborts(void (*fn)(struct backend *), const char *words) {
    int ends[2];
    char text[512] = {0};
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        struct err e = {0};
        dup2(ends[1], 2);
        signal(SIGABRT, SIG_DFL);
        fn(backend_new("cpu", 1, &e));
        _exit(0);
    }
    close(ends[1]);
    for (size_t used = 0; used < sizeof text - 1;) {
        ssize_t n = read(ends[0], text + used, sizeof text - 1 - used);
        if (n <= 0) break;
        used += (size_t)n;
    }
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(text, words);
}

enum { ADDS = 600 }; // more than a device keeps moments of

/* The number before "calls" in the line of `what`; -1 when there is none. */
static int calls_of(const char *text, const char *what) {
    char name[32];
    int calls = -1;
    snprintf(name, sizeof name, "\n  %s ", what);
    const char *at = strstr(text, name);
    if (at) sscanf(at + strlen(name), "%*f ms %*f%% %d calls", &calls);
    return calls;
}

static void check_profile(const char *device, bool wanted) {
    struct err e = {0};
    struct text text = {0};
    if (wanted) setenv("GRAFT_PROFILE", "1", 1);
    struct backend *be = backend_new(device, 1, &e);
    unsetenv("GRAFT_PROFILE");
    assert_non_null(be);
    float *memory = backend_alloc(be, 4096), host[64] = {0};
    struct tensor x = tensor_over1(memory, F32, 64);
    backend_upload(be, &x, host);
    for (int i = 0; i < ADDS; i++) op_add(be, &x, &x, &x);
    op_zero(be, &x);
    backend_download(be, host, &x);
    assert_int_equal(backend_sync(be, &e), ST_OK);
    profile_text(be->profile, &text);
    assert_int_equal(calls_of(text_str(&text), "add"), wanted ? ADDS : -1);
    assert_int_equal(calls_of(text_str(&text), "zero"), wanted ? 1 : -1);
    assert_int_equal(calls_of(text_str(&text), "upload"), wanted ? 1 : -1);
    assert_int_equal(calls_of(text_str(&text), "together"), wanted ? ADDS + 3 : -1);
    text_free(&text);
    backend_release(be, memory);
    backend_free(be);
}

static void test_where_the_time_goes(void **state) {
    (void)state;
    static const char *const devices[] = {"cpu", "auto"};
    for (int i = 0; i < 2; i++) check_profile(devices[i], true), check_profile(devices[i], false);
}

static void add_of_wrong_shape(struct backend *be) {
    float m[6] = {0};
    struct tensor a = tensor_over2(m, F32, 2, 3), b = tensor_over2(m, F32, 3, 2);
    op_add(be, &a, &a, &b);
}

static void norm_of_wrong_type(struct backend *be) {
    float m[6] = {0};
    struct tensor x = tensor_over2(m, F32, 2, 3), r = tensor_over1(m, F32, 2), w = tensor_over1(m, BF16, 3);
    op_rmsnorm_forward(be, &x, &r, &x, &w, 1e-6f);
}

static void copy_of_nothing(struct backend *be) {
    float m[6] = {0};
    struct tensor x = tensor_over1(NULL, F32, 6), y = tensor_over1(m, F32, 6);
    op_copy(be, &y, &x);
}

static void test_wrong_shapes_abort(void **state) {
    (void)state;
    assert_true(aborts(add_of_wrong_shape, "op_add: b is f32 (3,2), wanted f32 (2,3)"));
    assert_true(aborts(norm_of_wrong_type, "op_rmsnorm_forward: w is bf16 (3), wanted f32 (3)"));
    assert_true(aborts(copy_of_nothing, "op_copy: x is f32 (6) without memory"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backend_says_what_it_has_not),
        cmocka_unit_test(test_backend_memory),
        cmocka_unit_test(test_where_the_time_goes),
        cmocka_unit_test(test_wrong_shapes_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

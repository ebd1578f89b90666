/* What a machine's files say of its memory, with and without a limit of either kind of control group. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/host_memory.h"
#include "base/memory.h"
#include "tests/folder.h"

enum { KB = 1024, MB = 1024 * KB };

static void put(const char *root, const char *name, const char *text) {
    struct err e = {0};
    char *path = path_join(root, name), *dir = path_dir(path);
    if (dir_make(dir, &e) != ST_OK || file_write(path, text, strlen(text), &e) != ST_OK) fail_msg("%s", e.text);
    free(path), free(dir);
}

static void expect(const char *root, int64_t available, int64_t limit) {
    struct host_memory m;
    host_memory_read(&m, root);
    assert_int_equal(m.total, 8000 * (int64_t)KB);
    assert_int_equal(m.available, available);
    assert_int_equal(m.limit, limit);
}

static void put_machine(const char *root) {
    put(root, "proc/meminfo", "MemTotal:        8000 kB\nMemFree:     1 kB\nMemAvailable:    6000 kB\n");
}

static void test_no_limit(void **state) {
    put_machine(*state);
    expect(*state, 6000 * KB, 0);
    put(*state, "sys/fs/cgroup/memory.max", "max\n");
    put(*state, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    expect(*state, 6000 * KB, 0);
}

static void test_container(void **state) {
    put_machine(*state);
    put(*state, "proc/self/cgroup", "0::/\n");
    put(*state, "sys/fs/cgroup/memory.max", "3145728\n");
    expect(*state, 3 * MB, 3 * MB);
    put(*state, "sys/fs/cgroup/memory.stat", "anon 1048576\nfile 99999999\n"); // a page cache can be taken back
    expect(*state, 2 * MB, 3 * MB);
    put(*state, "sys/fs/cgroup/memory.stat", "anon 4194304\nfile 1\n");
    expect(*state, 0, 3 * MB);
}

/* A limit of the group itself, and a lower one of a group around it. */
static void test_nested(void **state) {
    put_machine(*state);
    put(*state, "proc/self/cgroup", "12:cpu:/x\n0::/user/session\n");
    put(*state, "sys/fs/cgroup/user/session/memory.max", "4194304\n");
    expect(*state, 4 * MB, 4 * MB);
    put(*state, "sys/fs/cgroup/user/memory.max", "2097152\n");
    expect(*state, 2 * MB, 2 * MB);
}

static void test_first_kind(void **state) {
    put_machine(*state);
    put(*state, "proc/self/cgroup", "4:memory:/far/away\n0::/\n"); // as the host sees it
    put(*state, "sys/fs/cgroup/memory/memory.limit_in_bytes", "3145728\n");
    put(*state, "sys/fs/cgroup/memory/memory.stat", "rss 7\ntotal_rss 1048576\n");
    expect(*state, 2 * MB, 3 * MB);
}

/* This machine has memory, and no more of it is free than there is. */
static void test_here(void **state) {
    struct host_memory m;
    (void)state;
    host_memory_read(&m, "");
    assert_true(m.total > 0 && m.available > 0 && m.available <= m.total);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(test_no_limit),   FOLDER_TEST(test_container), FOLDER_TEST(test_nested),
        FOLDER_TEST(test_first_kind), cmocka_unit_test(test_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

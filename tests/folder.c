#include "tests/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"

char *folder_new(void) {
    const char *tmp = getenv("TMPDIR");
    char *folder = path_join(tmp && *tmp ? tmp : "/tmp", "graft-test-XXXXXX");
    if (!mkdtemp(folder)) fail_msg("cannot make a folder");
    return folder;
}

void folder_free(char *folder) {
    struct err e = {0};
    if (dir_remove(folder, &e) != ST_OK) fail_msg("%s", e.text);
    free(folder);
}

int folder_start(void **state) {
    *state = folder_new();
    return 0;
}

int folder_end(void **state) {
    folder_free(*state);
    return 0;
}

char *folder_put(const char *folder, const char *name, const char *text) {
    struct err e = {0};
    char *path = path_join(folder, name);
    if (file_write(path, text, strlen(text), &e) != ST_OK) fail_msg("%s", e.text);
    return path;
}

void copy_file(const char *from, const char *to) {
    struct err e = {0};
    char *data;
    size_t size;
    if (file_read(from, &data, &size, &e) != ST_OK || file_write(to, data, size, &e) != ST_OK) fail_msg("%s", e.text);
    free(data);
}

void assert_contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" does not hold \"%s\"", text, part);
}

void assert_says(char *said, const char *part) {
    assert_contains(said, part);
    free(said);
}

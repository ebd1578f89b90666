/* A folder that a test writes to, files, and texts that hold others. What cannot be done fails the running test. */
#ifndef TESTS_FOLDER_H
#define TESTS_FOLDER_H

char *folder_new(void);
void folder_free(char *folder); // and all that is in it

/* For tests that need nothing else: *state is the folder. */
int folder_start(void **state);
int folder_end(void **state);
#define FOLDER_TEST(f) cmocka_unit_test_setup_teardown(f, folder_start, folder_end)

char *folder_put(const char *folder, const char *name, const char *text); // the path, which the caller frees
void copy_file(const char *from, const char *to);

void assert_contains(const char *text, const char *part);
void assert_says(char *said, const char *part); // frees what was said

#endif

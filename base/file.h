/* Files and folders. What is written appears under its final name whole or not at all: it is written beside, flushed to
 * the disk and renamed. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/status.h"

/* A whole file, mapped read-only. size 0 maps to a valid empty string. */
struct file_map {
    const char *data;
    size_t size;
};
enum status file_map_open(struct file_map *m, const char *path, struct err *e);
void file_map_close(struct file_map *m);

/* A whole file as a string with a final zero; the caller frees it. */
enum status file_read(const char *path, char **data, size_t *size, struct err *e);

/* A file being written: bytes go to a neighbour of path; _commit flushes and renames, _abandon removes it.
 * Either ends the writing; _abandon after _commit does nothing, so a `done:` label can always call it. */
struct file_out {
    FILE *stream;
    char *path, *beside;
    size_t waiting;    // bytes since the last that began their way to the disk
    bool folder_flush; // _commit does not flush: the file lies in a folder_out, whose commit does
};
enum status file_out_open(struct file_out *f, const char *path, struct err *e);
enum status file_out_write(struct file_out *f, const void *data, size_t n, struct err *e);
enum status file_out_commit(struct file_out *f, struct err *e);
void file_out_abandon(struct file_out *f);

enum status file_write(const char *path, const void *data, size_t n, struct err *e); // open, write, commit

enum status dir_make(const char *path, struct err *e);   // with its parents; fine when it is there
enum status dir_remove(const char *path, struct err *e); // with all it holds; fine when it is not there
enum status dir_sync(const char *path, struct err *e);   // a rename within it has reached the disk

bool file_exists(const char *path); // a regular file
bool dir_exists(const char *path);

char *path_join(const char *dir, const char *name); // name itself when it is absolute; the caller frees
char *path_dir(const char *path);                   // "." when there is no slash; the caller frees
const char *path_name(const char *path);            // what follows the last slash
char *path_plain(const char *path);                 // without slashes at its end; the caller frees

/* Names in a folder (without . and ..), sorted bytewise; free with names_free. */
enum status dir_list(const char *path, char ***names, size_t *count, struct err *e);
void names_free(char **names, size_t count);

#endif

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static enum status fails(struct err *e, const char *path, const char *what) {
    return err_set(e, ST_FAIL, "%s: cannot %s (%s)", path, what, strerror(errno));
}

/* Opens a regular file for reading; its size goes to *size. Returns -1 with the error set. */
static int open_regular(const char *path, size_t *size, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat s;
    if (fd < 0) return fails(e, path, "open"), -1;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        err_set(e, ST_FAIL, "%s: not a regular file", path);
        close(fd);
        return -1;
    }
    *size = (size_t)s.st_size;
    return fd;
}

enum status file_map_open(struct file_map *m, const char *path, struct err *e) {
    *m = (struct file_map){"", 0};
    size_t size;
    int fd = open_regular(path, &size, e);
    if (fd < 0) return e->code;
    void *p = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : (void *)"";
    int kept = errno;
    close(fd);
    errno = kept;
    if (p == MAP_FAILED) return fails(e, path, "map");
    *m = (struct file_map){p, size};
    return ST_OK;
}

void file_map_close(struct file_map *m) {
    if (m->size) munmap((void *)m->data, m->size);
    *m = (struct file_map){"", 0};
}

enum status file_read(const char *path, char **data, size_t *size, struct err *e) {
    *data = NULL;
    int fd = open_regular(path, size, e);
    if (fd < 0) return e->code;
    char *all = mem_alloc(*size + 1);
    for (size_t at = 0; at < *size;) {
        ssize_t n = read(fd, all + at, *size - at);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) err_set(e, ST_FAIL, "%s: ended after %zu of %zu bytes", path, at, *size);
        fails(e, path, "read");
        break;
    }
    close(fd);
    if (e->code != ST_OK) {
        free(all);
        return e->code;
    }
    *data = all;
    return ST_OK;
}

enum status file_out_open(struct file_out *f, const char *path, struct err *e) {
    *f = (struct file_out){0};
    f->path = mem_text(path);
    f->beside = mem_format("%s.%ld.partial", path, (long)getpid());
    f->stream = fopen(f->beside, "wb");
    if (f->stream) return ST_OK;
    enum status st = fails(e, path, "write");
    free(f->path), free(f->beside);
    *f = (struct file_out){0};
    return st;
}

/* Left alone, the kernel keeps what is written for seconds, and the program waits for all of it when it flushes the
 * file. Here the way to the disk begins while more is computed. Where that fails, the flush will say so. */
static void begin_write_back(struct file_out *f) {
    sync_file_range(fileno(f->stream), 0, 0, SYNC_FILE_RANGE_WRITE); // from 0 to the end; what is clean costs nothing
    f->waiting = 0;
}

enum status file_out_write(struct file_out *f, const void *data, size_t n, struct err *e) {
    enum { MANY_BYTES = 16 << 20 };
    if (n && fwrite(data, 1, n, f->stream) != n) return fails(e, f->path, "write");
    f->waiting += n;
    if (f->waiting >= MANY_BYTES) begin_write_back(f);
    return ST_OK;
}

enum status file_out_commit(struct file_out *f, struct err *e) {
    int bad = fflush(f->stream) != 0;
    if (f->folder_flush)
        begin_write_back(f);
    else
        bad |= fsync(fileno(f->stream)) != 0;
    if (bad) fails(e, f->path, "write");
    bad |= fclose(f->stream) != 0;
    f->stream = NULL;
    if (bad) fails(e, f->path, "write");
    if (!bad && rename(f->beside, f->path) != 0) fails(e, f->path, "write");
    file_out_abandon(f);
    return e->code;
}

void file_out_abandon(struct file_out *f) {
    if (f->stream) fclose(f->stream);
    if (f->beside) unlink(f->beside);
    free(f->path), free(f->beside);
    *f = (struct file_out){0};
}

enum status file_write(const char *path, const void *data, size_t n, struct err *e) {
    struct file_out f;
    if (file_out_open(&f, path, e) != ST_OK) return e->code;
    if (file_out_write(&f, data, n, e) == ST_OK) file_out_commit(&f, e);
    file_out_abandon(&f);
    return e->code;
}

enum status dir_make(const char *path, struct err *e) {
    char *p = mem_text(path);
    for (char *at = p + 1; *p && at[-1]; at++) {
        char here = *at;
        if (here != '/' && here != 0) continue;
        *at = 0;
        int failed = mkdir(p, 0777) == 0 ? 0 : errno;
        if (failed && !dir_exists(p)) {
            err_set(e, ST_FAIL, "%s: cannot make the folder (%s)", p, strerror(failed));
            break;
        }
        *at = here;
        if (here == 0) break;
    }
    free(p);
    return e->code;
}

enum status dir_remove(const char *path, struct err *e) {
    if (!dir_exists(path)) return ST_OK;
    char **names;
    size_t count;
    if (dir_list(path, &names, &count, e) != ST_OK) return e->code;
    for (size_t i = 0; i < count; i++) {
        char *full = path_join(path, names[i]);
        struct stat s;
        if (lstat(full, &s) == 0 && S_ISDIR(s.st_mode))
            dir_remove(full, e);
        else if (unlink(full) != 0 && errno != ENOENT)
            fails(e, full, "remove");
        free(full);
    }
    names_free(names, count);
    if (rmdir(path) != 0 && errno != ENOENT) fails(e, path, "remove");
    return e->code;
}

enum status dir_sync(const char *path, struct err *e) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fails(e, path, "open");
    fsync(fd); // some file systems refuse to flush a folder; they need no flush
    close(fd);
    return ST_OK;
}

bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode);
}

bool dir_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

char *path_join(const char *dir, const char *name) {
    if (name[0] == '/' || dir[0] == 0) return mem_text(name);
    return mem_format(dir[strlen(dir) - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}

char *path_dir(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return mem_text(".");
    return slash == path ? mem_text("/") : mem_text_n(path, (size_t)(slash - path));
}

const char *path_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *path_plain(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return mem_text_n(path, n);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

enum status dir_list(const char *path, char ***names, size_t *count, struct err *e) {
    *names = NULL, *count = 0;
    DIR *d = opendir(path);
    if (!d) return fails(e, path, "list");
    for (struct dirent *entry; (entry = readdir(d));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        *names = mem_resize(*names, (*count + 1) * sizeof **names);
        (*names)[(*count)++] = mem_text(entry->d_name);
    }
    closedir(d);
    if (*count) qsort(*names, *count, sizeof **names, by_name);
    return ST_OK;
}

void names_free(char **names, size_t count) {
    for (size_t i = 0; i < count; i++) free(names[i]);
    free(names);
}

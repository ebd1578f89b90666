#include "base/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

static enum status check_free(const char *path, struct err *e) {
    char **names;
    size_t count;
    if (access(path, F_OK) != 0) return ST_OK;
    if (!dir_exists(path)) return err_set(e, ST_FAIL, "%s: is a file, wanted the name of a new folder", path);
    if (dir_list(path, &names, &count, e) != ST_OK) return e->code;
    names_free(names, count);
    if (count == 0) return ST_OK;
    return err_set(e, ST_FAIL, "%s: the folder is not empty; name a new one, or remove it first", path);
}

enum status folder_empty(const char *path, struct err *e) {
    return dir_remove(path, e) == ST_OK ? dir_make(path, e) : e->code;
}

enum status folder_open(struct folder_out *f, const char *path, struct err *e) {
    *f = (struct folder_out){.path = path_plain(path)};
    if (!*path) return err_set(e, ST_USAGE, "the name of the folder to write is empty");
    if (check_free(f->path, e) != ST_OK) return e->code;
    f->beside = mem_format("%s.%ld.partial", f->path, (long)getpid());
    return folder_empty(f->beside, e);
}

/* Those of a file_out with folder_flush; for others there is nothing left to flush. */
static enum status flush_files(const char *dir, struct err *e) {
    char **names;
    size_t count;
    if (dir_list(dir, &names, &count, e) != ST_OK) return e->code;
    for (size_t i = 0; i < count && e->code == ST_OK; i++) {
        char *path = path_join(dir, names[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) != 0) err_set(e, ST_FAIL, "%s: cannot write (%s)", path, strerror(errno));
        if (fd >= 0) close(fd);
        free(path);
    }
    names_free(names, count);
    return e->code;
}

enum status folder_commit(struct folder_out *f, struct err *e) {
    if (flush_files(f->beside, e) != ST_OK || dir_sync(f->beside, e) != ST_OK) return e->code;
    if (rename(f->beside, f->path) != 0) return err_set(e, ST_FAIL, "%s: cannot write (%s)", f->path, strerror(errno));
    char *parent = path_dir(f->path);
    dir_sync(parent, e);
    free(parent);
    free(f->beside);
    f->beside = NULL;
    return e->code;
}

void folder_abandon(struct folder_out *f) {
    struct err ignored = {0};
    if (f->beside) dir_remove(f->beside, &ignored);
    free(f->beside);
    free(f->path);
    *f = (struct folder_out){0};
}

/* An adapter_config.json would make transformers look for the adapter; the others tell how their own folder came to
 * be. */
static bool is_companion(const char *name) {
    static const char *const others[] = {"config.json", "adapter_config.json", "merge_report.json",
                                         "trainer_state.json", "graft_state.json"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(name, others[i]) == 0) return false;
    if (text_ends(name, ".index.json")) return false;
    return text_ends(name, ".json") || text_ends(name, ".jinja") || text_ends(name, ".model") ||
           text_ends(name, ".txt");
}

static enum status copy_files(const char *from_dir, const char *to_dir, struct err *e) {
    char **names;
    size_t count;
    if (dir_list(from_dir, &names, &count, e) != ST_OK) return e->code;
    for (size_t i = 0; i < count && e->code == ST_OK; i++) {
        char *from = path_join(from_dir, names[i]), *to = path_join(to_dir, names[i]);
        struct file_map m;
        if (is_companion(names[i]) && file_exists(from) && file_map_open(&m, from, e) == ST_OK) {
            file_write(to, m.data, m.size, e);
            file_map_close(&m);
        }
        free(from), free(to);
    }
    names_free(names, count);
    return e->code;
}

enum status folder_copy_companions(const char *from_dir, const char *to_dir, struct err *e) {
    static const char templates[] = "additional_chat_templates"; // transformers' place for named ones
    if (copy_files(from_dir, to_dir, e) != ST_OK) return e->code;
    char *from = path_join(from_dir, templates), *to = path_join(to_dir, templates);
    if (dir_exists(from) && dir_make(to, e) == ST_OK) copy_files(from, to, e);
    free(from), free(to);
    return e->code;
}

#include "base/host_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"

/* The number behind a name and a blank or colon at the start of a line, with an empty name the first one; -1: there is
 * none. The system says that these files are empty, so they are read line by line. */
static int64_t number_in(const char *root, const char *path, const char *name) {
    char *full = mem_format("%s%s", root, path), line[512];
    FILE *f = fopen(full, "r");
    size_t n = strlen(name);
    long long number = -1;
    while (f && number < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, name, n) == 0 && sscanf(line + n + strspn(line + n, ": \t"), "%lld", &number) != 1)
            number = -1;
    if (f) fclose(f);
    free(full);
    return number;
}

/* The two kinds of control groups, and how each names things. */
static const struct group_kind {
    const char *mark, *mount, *limit, *used; // used: of memory.stat, what cannot be taken back
} kinds[] = {
    {"0::", "/sys/fs/cgroup", "memory.max", "anon"},
    {":memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"},
};

/* The group of this process, as a path below the mount; the caller frees it. In a container it may be written as the
 * host sees it, and lies at the mount itself. */
static char *group_path(const char *root, const struct group_kind *kind) {
    char *full = mem_format("%s/proc/self/cgroup", root), line[4096], *path = NULL;
    FILE *f = fopen(full, "r");
    while (f && !path && fgets(line, sizeof line, f)) {
        const char *at = strstr(line, kind->mark);
        if (at) path = mem_text_n(at + strlen(kind->mark), strcspn(at + strlen(kind->mark), "\n"));
    }
    if (f) fclose(f);
    free(full);
    return path ? path : mem_text("");
}

/* Lowers limit and available by a group, if it has a limit. */
static void ask_group(struct host_memory *m, const char *root, const struct group_kind *kind, const char *group) {
    char *limit_path = mem_format("%s%s/%s", kind->mount, group, kind->limit);
    char *stat_path = mem_format("%s%s/memory.stat", kind->mount, group);
    int64_t limit = number_in(root, limit_path, ""), used = number_in(root, stat_path, kind->used);
    if (limit > 0 && limit < m->total) {
        int64_t left = used > 0 ? limit > used ? limit - used : 0 : limit;
        if (m->limit == 0 || limit < m->limit) m->limit = limit;
        if (left < m->available) m->available = left;
    }
    free(limit_path), free(stat_path);
}

void host_memory_read(struct host_memory *m, const char *root) {
    enum { KB = 1024 };
    int64_t total = number_in(root, "/proc/meminfo", "MemTotal");
    int64_t available = number_in(root, "/proc/meminfo", "MemAvailable");
    *m = (struct host_memory){.total = total > 0 ? total * KB : 0};
    m->available = available > 0 ? available * KB : m->total;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        char *group = group_path(root, &kinds[k]);
        for (;;) { // the group itself, then those around it
            while (text_ends(group, "/")) group[strlen(group) - 1] = 0;
            ask_group(m, root, &kinds[k], group);
            char *slash = strrchr(group, '/');
            if (!slash) break;
            *slash = 0;
        }
        free(group);
    }
}

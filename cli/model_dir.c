#include "cli/model_dir.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

char *hub_cache_dir(void) {
    if (variable("HF_HUB_CACHE")) return mem_text(variable("HF_HUB_CACHE"));
    if (variable("HF_HOME")) return path_join(variable("HF_HOME"), "hub");
    if (variable("XDG_CACHE_HOME")) return path_join(variable("XDG_CACHE_HOME"), "huggingface/hub");
    return path_join(variable("HOME") ? variable("HOME") : ".", ".cache/huggingface/hub");
}

static bool is_commit(const char *s) { return strlen(s) == 40 && strspn(s, "0123456789abcdef") == 40; }

/* Names and revisions become parts of paths, so nothing in them may lead elsewhere. */
static bool is_plain(const char *s) {
    return *s && *s != '/' && *s != '.' && !strstr(s, "..") && !strchr(s, '\\') && !text_ends(s, "/");
}

/* CACHE/models--ORG--NAME; the caller frees it. */
static char *repository_dir(const char *cache, const char *name) {
    struct text t = {0};
    text_addf(&t, "%s/models--", cache);
    for (const char *p = name; *p; p++) text_add(&t, *p == '/' ? "--" : (char[2]){*p, 0});
    return t.data;
}

/* The commit that a branch or tag names; the caller frees it. NULL: not in the cache. */
static char *read_ref(const char *repository, const char *revision) {
    if (is_commit(revision)) return mem_text(revision);
    char *path = mem_format("%s/refs/%s", repository, revision), *commit = NULL;
    size_t size;
    struct err quiet = {0};
    if (!file_exists(path) || file_read(path, &commit, &size, &quiet) != ST_OK) commit = NULL;
    if (commit) commit[strcspn(commit, " \r\n")] = 0;
    if (commit && !is_commit(commit)) {
        free(commit);
        commit = NULL;
    }
    free(path);
    return commit;
}

/* The snapshot of a name in the cache; NULL when it is not there. */
static char *find_snapshot(const char *cache, const char *name, const char *revision) {
    if (!is_plain(name) || !is_plain(revision)) return NULL;
    char *repository = repository_dir(cache, name), *commit = read_ref(repository, revision);
    char *dir = commit ? mem_format("%s/snapshots/%s", repository, commit) : NULL;
    free(commit);
    free(repository);
    if (dir && dir_exists(dir)) return dir;
    free(dir);
    return NULL;
}

static bool is_adapter_alone(const char *dir) {
    static const char *const names[] = {"adapter_config.json", "config.json", "tokenizer.json"};
    bool there[3];
    for (int i = 0; i < 3; i++) {
        char *path = path_join(dir, names[i]);
        there[i] = file_exists(path);
        free(path);
    }
    return there[0] && !there[1] && !there[2];
}

char *model_dir(const char *name, struct err *e) {
    if (is_adapter_alone(name)) {
        err_set(e, ST_FAIL, "%s: is an adapter, not a model; name the model that it belongs to, and this by --adapter",
                name);
        return NULL;
    }
    if (dir_exists(name)) return path_plain(name);
    if (file_exists(name)) {
        err_set(e, ST_FAIL, "%s: is a file; wanted the Hugging Face folder of a model", name);
        return NULL;
    }
    const char *at = strrchr(name, '@');
    char *cache = hub_cache_dir(), *repo = mem_text_n(name, at ? (size_t)(at - name) : strlen(name));
    char *found = find_snapshot(cache, repo, at ? at + 1 : "main");
    if (!found)
        err_set(e, ST_FAIL,
                "%s: no such model folder; wanted a Hugging Face folder, or the name of a model in the hub cache %s",
                name, cache);
    free(repo);
    free(cache);
    return found;
}

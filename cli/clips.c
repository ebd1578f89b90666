#include "cli/clips.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

struct clip {
    char *path, *prompt; // prompt NULL: that of all
};

struct clips {
    struct clip *clip; // (count)
    size_t count;
};

static void add(struct clips *c, char *path, char *prompt) {
    c->clip = mem_resize(c->clip, (c->count + 1) * sizeof *c->clip);
    c->clip[c->count++] = (struct clip){path, prompt};
}

static void clips_free(struct clips *c) {
    for (size_t i = 0; i < c->count; i++) free(c->clip[i].path), free(c->clip[i].prompt);
    free(c->clip);
}

/* ---------------------------------------------------------------- folders */

static bool has_suffix(const char *name, const char *const *suffixes) {
    const char *dot = strrchr(name, '.');
    for (; dot && dot > name && *suffixes; suffixes++)
        if (strcasecmp(dot, *suffixes) == 0) return true;
    return false;
}

static bool is_video(const char *name) {
    static const char *const suffixes[] = {".mp4", ".m4v", ".mov",  ".avi", ".webm", ".mkv",
                                           ".mpg", ".ts",  ".mpeg", ".wmv", ".flv",  NULL};
    return has_suffix(name, suffixes);
}

static bool is_frame(const char *name) {
    static const char *const suffixes[] = {".jpg", ".jpeg", ".png", ".bmp", ".webp", NULL};
    return has_suffix(name, suffixes);
}

static bool has_frames(const char *path) {
    char **names;
    size_t count;
    bool found = false;
    struct err quiet = {0};
    if (!dir_exists(path) || dir_list(path, &names, &count, &quiet) != ST_OK) return false;
    for (size_t i = 0; i < count; i++) found = found || is_frame(names[i]);
    names_free(names, count);
    return found;
}

/* Files and folders of frames that lie in a folder. A picture that moves (.gif) is a clip where no frames lie. */
static enum status add_inside(struct clips *c, const char *path, struct err *e) {
    char **names;
    size_t count, before = c->count;
    if (dir_list(path, &names, &count, e) != ST_OK) return e->code;
    for (size_t i = 0; i < count; i++) {
        char *inside = path_join(path, names[i]);
        bool file = is_video(names[i]) || text_ends(names[i], ".gif");
        if (names[i][0] != '.' && (file || has_frames(inside)))
            add(c, inside, NULL);
        else
            free(inside);
    }
    names_free(names, count);
    if (c->count > before) return ST_OK;
    return err_set(e, ST_FAIL, "%s: the folder holds no video, no frames and no folder of frames", path);
}

static enum status add_video(struct clips *c, const char *path, struct err *e) {
    if (dir_exists(path) && !has_frames(path)) return add_inside(c, path, e);
    add(c, mem_text(path), NULL);
    return ST_OK;
}

/* ---------------------------------------------------------------- sheets */

static enum status read_table(struct clips *c, const char *file, struct err *e) {
    struct csv t;
    if (csv_read(&t, file, e) != ST_OK) return e->code;
    size_t video = csv_column(&t, "video"), prompt = csv_column(&t, "prompt");
    if (video == t.columns || prompt == t.columns)
        err_set(e, ST_FAIL, "%s: the first line names no column \"%s\"; wanted the columns video and prompt", file,
                video == t.columns ? "video" : "prompt");
    for (size_t i = 1; i < t.rows && e->code == ST_OK; i++) {
        if (!*csv_cell(&t, i, video)) err_set(e, ST_FAIL, "%s: line %zu names no video", file, t.line[i]);
        add(c, mem_text(csv_cell(&t, i, video)), mem_text(csv_cell(&t, i, prompt)));
    }
    csv_free(&t);
    return e->code;
}

/* A list of {video, prompt}, or an object of prompts by video. */
static enum status read_tree(struct clips *c, const char *file, struct err *e) {
    cJSON *tree = json_read(file, e);
    int64_t number = 0;
    for (const cJSON *v = tree ? tree->child : NULL; v && e->code == ST_OK; v = v->next, number++) {
        bool pair = cJSON_IsArray(tree);
        const cJSON *video = pair ? json_get(v, "video") : NULL, *prompt = pair ? json_get(v, "prompt") : v;
        if (!cJSON_IsString(prompt) || (pair && !cJSON_IsString(video)))
            err_set(e, ST_FAIL, "%s: entry %lld is not what was wanted, {\"video\": PATH, \"prompt\": TEXT}", file,
                    (long long)number);
        else
            add(c, mem_text(pair ? video->valuestring : v->string), mem_text(prompt->valuestring));
    }
    cJSON_Delete(tree);
    return e->code;
}

static enum status read_sheet(struct clips *c, const char *file, struct err *e) {
    enum status st = text_ends(file, ".json") ? read_tree(c, file, e) : read_table(c, file, e);
    return st == ST_OK && c->count == 0 ? err_set(e, ST_FAIL, "%s: names no video", file) : st;
}

static bool is_same_stem(const char *a, const char *b) {
    const char *x = strrchr(a, '.'), *y = strrchr(b, '.');
    size_t n = x ? (size_t)(x - a) : strlen(a), m = y ? (size_t)(y - b) : strlen(b);
    return n == m && strncmp(a, b, n) == 0;
}

/* Does `path` end in the whole path `tail`? */
static bool ends_in(const char *path, const char *tail) {
    size_t n = strlen(path), m = strlen(tail);
    return m <= n && strcmp(path + n - m, tail) == 0 && (m == n || path[n - m - 1] == '/');
}

/* Is `other`, of a sheet in `dir`, the clip at `path`? The nearest way to say so is 0. */
static bool is_meant(int way, const char *path, const char *other, const char *dir) {
    if (way == 0) return strcmp(other, path) == 0;
    if (way == 2) return ends_in(path, other) || ends_in(other, path);
    if (way == 3) return strcmp(path_name(other), path_name(path)) == 0;
    if (way == 4) return is_same_stem(path_name(other), path_name(path));
    char *inside = path_join(dir, other);
    bool same = strcmp(inside, path) == 0;
    free(inside);
    return same;
}

/* The entry of a sheet that is meant by a clip: by path, by path from the sheet's folder, by the end of the path, by
 * name, then by name without suffix. */
static const struct clip *find(const struct clips *sheet, const char *path, const char *file, struct err *e) {
    const struct clip *found = NULL;
    char *dir = path_dir(file);
    for (int way = 0; way < 5 && !found; way++)
        for (size_t i = 0; i < sheet->count; i++) {
            const struct clip *c = &sheet->clip[i];
            if (!is_meant(way, path, c->path, dir)) continue;
            if (found && strcmp(found->prompt, c->prompt) != 0)
                err_set(e, ST_FAIL, "%s: has two prompts for %s, by %s and by %s; say more of the path there", file,
                        path, found->path, c->path);
            if (!found) found = c;
        }
    if (!found) err_set(e, ST_FAIL, "%s: has no prompt for %s; wanted a line with its path or name", file, path);
    free(dir);
    return found;
}

static enum status take_prompts(struct clips *c, const struct clips *sheet, const char *file, struct err *e) {
    for (size_t i = 0; i < c->count && e->code == ST_OK; i++) {
        const struct clip *found = find(sheet, c->clip[i].path, file, e);
        if (e->code == ST_OK) c->clip[i].prompt = mem_text(found->prompt);
    }
    return e->code;
}

/* Paths of a sheet that stands alone are taken from its own folder. */
static enum status read_prompts(struct clips *c, const char *file, struct err *e) {
    struct clips sheet = {0};
    if (read_sheet(&sheet, file, e) == ST_OK && c->count) take_prompts(c, &sheet, file, e);
    char *dir = path_dir(file);
    for (size_t i = 0; i < sheet.count && !c->count && e->code == ST_OK; i++) {
        char *path = strcmp(dir, ".") == 0 ? mem_text(sheet.clip[i].path) : path_join(dir, sheet.clip[i].path);
        free(sheet.clip[i].path);
        sheet.clip[i].path = path;
    }
    if (!c->count && e->code == ST_OK) {
        *c = sheet;
        sheet = (struct clips){0};
    }
    clips_free(&sheet);
    free(dir);
    return e->code;
}

/* ---------------------------------------------------------------- rows */

static const char SLOT[] = "{text_prompt}";

/* frame: NULL, or the text around the prompt. */
static char *fill(const char *frame, const char *prompt) {
    if (!frame) return mem_text(prompt);
    struct text t = {0};
    for (const char *at; (at = strstr(frame, SLOT)); frame = at + sizeof SLOT - 1) {
        text_add_n(&t, frame, (size_t)(at - frame));
        text_add(&t, prompt);
    }
    text_add(&t, frame);
    return t.data ? t.data : mem_text("");
}

static void add_row(struct text *t, const struct clip *clip, const char *frame, const char *prompt) {
    cJSON *o = cJSON_CreateObject();
    char *whole = fill(frame, clip->prompt ? clip->prompt : prompt);
    cJSON_AddStringToObject(o, "id", clip->path);
    cJSON_AddStringToObject(o, "video", clip->path);
    cJSON_AddStringToObject(o, "prompt", whole);
    char *line = json_text(o, true);
    text_addf(t, "%s\n", line);
    free(line), free(whole);
    cJSON_Delete(o);
}

static enum status find_clips(struct clips *c, const struct flags *f, struct err *e) {
    const cJSON *videos = flag_list(f, "video");
    const char *sheet = flag_text(f, "prompts");
    for (const cJSON *v = videos ? videos->child : NULL; v && e->code == ST_OK; v = v->next)
        add_video(c, v->valuestring, e);
    if (e->code == ST_OK && sheet) read_prompts(c, sheet, e);
    for (size_t i = 0; i < c->count && e->code == ST_OK; i++) {
        const char *path = c->clip[i].path;
        if (!file_exists(path) && !dir_exists(path)) err_set(e, ST_FAIL, "%s: there is no such file or folder", path);
    }
    return e->code;
}

char *clips_rows(const struct flags *f, struct err *e) {
    struct clips c = {0};
    struct text rows = {0};
    char *frame = NULL;
    size_t size;
    const char *file = flag_text(f, "prompt_file"), *prompt = flag_text(f, "prompt");
    bool slot = file && file_read(file, &frame, &size, e) == ST_OK && strstr(frame, SLOT);
    if (e->code == ST_OK && !prompt && !flag_text(f, "prompts") && (!file || slot))
        err_set(e, ST_USAGE, "wanted --prompt TEXT for the clips, or --prompts SHEET with one for each");
    if (e->code == ST_OK && file && !slot && (prompt || flag_text(f, "prompts")))
        err_set(e, ST_FAIL, "%s: has no %s, where the prompt would stand", file, SLOT);
    if (e->code == ST_OK && find_clips(&c, f, e) == ST_OK)
        for (size_t i = 0; i < c.count; i++) add_row(&rows, &c.clip[i], frame, prompt ? prompt : "");
    clips_free(&c);
    free(frame);
    if (e->code == ST_OK) return rows.data;
    text_free(&rows);
    return NULL;
}

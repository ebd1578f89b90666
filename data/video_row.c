/* Rows whose pictures are frames: of a video file, of a folder, or of a list. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data/rows.h"
#include "data/video.h"

static const char PICTURE[] = "<image>", VIDEO[] = "<video>";

/* Takes every `<image>` out of s, then new lines and blanks at both ends. */
static void strip_pictures(char *s) {
    char *to = s;
    for (const char *from = s; *from;) {
        if (text_starts(from, PICTURE))
            from += sizeof PICTURE - 1;
        else
            *to++ = *from++;
    }
    while (to > s && (to[-1] == ' ' || to[-1] == '\n')) to--;
    *to = 0;
    size_t lead = strspn(s, " \n");
    memmove(s, s + lead, strlen(s + lead) + 1);
}

static void strip_turns(const cJSON *list) {
    static const char *const keys[] = {"content", "text", "value"};
    for (const cJSON *turn = list ? list->child : NULL; turn; turn = turn->next)
        for (int i = 0; i < 3; i++) {
            const cJSON *text = json_get(turn, keys[i]);
            if (cJSON_IsString(text)) strip_pictures(text->valuestring);
        }
}

/* Mantis draws a coin here; this one falls the same way for a row's index in every run. */
static void place_video(struct chat_row *c, int64_t index) {
    for (size_t i = 0; i < c->count; i++)
        if (strstr(c->turns[i].text, VIDEO)) return;
    bool before = rng_bits(0, rng_stream("video token"), (uint64_t)index) & 1;
    const char *text = c->turns[0].text;
    c->turns[0].text = row_keep(c, before ? mem_format("%s %s", VIDEO, text) : mem_format("%s %s", text, VIDEO));
}

enum status row_read_media(struct chat_row *c, struct err *e) {
    const cJSON *v = json_get(c->tree, "video");
    if (!v) return ST_OK;
    if (!cJSON_IsString(v) || !*v->valuestring)
        return err_set(e, ST_FAIL, "%s: video is not a path of a file or folder", c->where);
    if (strstr(v->valuestring, "://"))
        return err_set(e, ST_FAIL, "%s: video is an address (%.200s); download it and write its path", c->where,
                       v->valuestring);
    c->media = v->valuestring;
    return ST_OK;
}

enum status video_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e) {
    if (row_open(c, r, index, e) != ST_OK || row_read_media(c, e) != ST_OK) return e->code;
    strip_turns(row_turns(c));
    if (row_read_turns(c, e) != ST_OK) return e->code;
    place_video(c, index);
    c->by_prefix = true;
    if (c->media) return ST_OK;
    if (row_read_pictures(c, e) != ST_OK) return e->code;
    return c->image_count ? ST_OK : err_set(e, ST_FAIL, "%s: wanted \"video\" with a path, or \"images\"", c->where);
}

/* ---------------------------------------------------------------- a list */

static enum status choose_of_list(struct chat_row *c, const struct frame_rule *rule, const char *where, struct err *e) {
    struct frame_choice choice;
    const struct frame_source s = {.where = where, .total = (int64_t)c->image_count};
    if (frames_choose(&choice, rule, &s, e) != ST_OK) return e->code;
    for (int64_t k = 0; k < choice.count; k++) c->images[k] = c->images[frames_index(&choice, k)];
    c->image_count = (size_t)choice.count;
    return ST_OK;
}

/* ---------------------------------------------------------------- a folder */

static bool is_picture(const char *name) {
    static const char *const suffixes[] = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"};
    const char *dot = strrchr(name, '.');
    for (int i = 0; i < 6 && dot; i++)
        if (strcasecmp(dot, suffixes[i]) == 0) return true;
    return false;
}

struct numbered {
    char *name;
    int64_t number;
};

/* The integer after the last '_' of the stem. */
static bool read_number(const char *name, int64_t *number) {
    const char *dot = strrchr(name, '.'), *at = dot;
    while (at > name && at[-1] != '_') at--;
    char *end;
    *number = strtoll(at, &end, 10);
    return end == dot && end > at;
}

static int by_number(const void *a, const void *b) {
    const struct numbered *x = a, *y = b;
    if (x->number != y->number) return x->number < y->number ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum status read_folder(struct chat_row *c, const char *path, struct err *e) {
    char **names;
    size_t count, n = 0;
    if (dir_list(path, &names, &count, e) != ST_OK) return e->code;
    struct numbered *list = mem_alloc(count * sizeof *list);
    for (size_t i = 0; i < count && e->code == ST_OK; i++) {
        if (names[i][0] == '.' || !is_picture(names[i])) continue;
        list[n].name = names[i];
        if (!read_number(names[i], &list[n++].number))
            err_set(e, ST_FAIL, "%s: frame %s has no number before its suffix (after the last _), which orders frames",
                    path, names[i]);
    }
    if (e->code == ST_OK && n == 0) err_set(e, ST_FAIL, "%s: the folder holds no picture", path);
    if (e->code == ST_OK) {
        qsort(list, n, sizeof *list, by_number);
        c->images = mem_alloc(n * sizeof *c->images);
        for (size_t i = 0; i < n; i++) c->images[i] = row_keep(c, path_join(path, list[i].name));
        c->image_count = n;
    }
    free(list);
    names_free(names, count);
    return e->code;
}

/* ---------------------------------------------------------------- a file */

static enum status open_video(struct chat_row *c, const char *path, const struct frame_rule *rule, int64_t frames,
                              struct err *e) {
    struct video_info info;
    struct frame_choice choice;
    c->video = video_open(path, e);
    if (!c->video || video_info(c->video, frames, &info, e) != ST_OK) return e->code;
    const struct frame_source s = {
        .where = path, .total = info.frames, .rate_num = info.rate_num, .rate_den = info.rate_den, .file = true};
    if (frames_choose(&choice, rule, &s, e) != ST_OK) return e->code;
    c->frame = mem_alloc((size_t)choice.count * sizeof *c->frame);
    for (int64_t k = 0; k < choice.count; k++) c->frame[k] = frames_index(&choice, k);
    c->image_count = (size_t)choice.count;
    c->video_frames = info.frames, c->video_width = info.width, c->video_height = info.height;
    return ST_OK;
}

static enum status read_media(struct chat_row *c, const char *path, const struct frame_rule *rule, int64_t frames,
                              struct err *e) {
    if (!dir_exists(path)) return open_video(c, path, rule, frames, e);
    return read_folder(c, path, e) == ST_OK ? choose_of_list(c, rule, path, e) : e->code;
}

enum status row_choose_frames(struct chat_row *c, const char *folder, const struct frame_rule *rule, bool lists,
                              int64_t frames, struct err *e) {
    if (!c->media) return lists ? choose_of_list(c, rule, c->where, e) : ST_OK;
    struct err inner = {0};
    char *path = path_join(folder, c->media);
    if (read_media(c, path, rule, frames, &inner) != ST_OK) err_set(e, inner.code, "%s: %s", c->where, inner.text);
    free(path);
    return e->code;
}

/* Memory is planned for frames of the size that the head tells. */
enum status row_read_frame(struct image *im, const struct chat_row *c, int64_t k, struct err *e) {
    if (video_frame(c->video, c->frame[k], im, e) != ST_OK) return e->code;
    if (im->width == c->video_width && im->height == c->video_height) return ST_OK;
    err_set(e, ST_FAIL, "%s: frame %lld is %lld x %lld pixels, the file's head says %lld x %lld", c->media,
            (long long)c->frame[k], (long long)im->width, (long long)im->height, (long long)c->video_width,
            (long long)c->video_height);
    image_free(im);
    return e->code;
}

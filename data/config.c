#include "data/config.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/yaml.h"

/* The one table of formats. A format that is not ready is refused; its fields are known, so that the sentence is
 * right. */
static const struct format {
    const char *name;
    bool ready, video; // video: rows may name one
    enum row_format rows;
} formats[] = {
    {"chat", true, false, ROWS_CHAT},
    {"classification", true, true, ROWS_CLASSIFICATION},
    {"chat_video", true, true, ROWS_CHAT_VIDEO},
    {"qwen2_video_classification", false, false, 0},
    {"siglip_video", false, false, 0},
};

static const char *const fields[] = {
    "path",      "name",           "split",          "format",   "type",        "max_size",
    "shuffle",   "max_num_images", "max_num_frames", "fps",      "vl_only",     "revision",
    "video_dir", "max_image_size", "offline_sha",    "num_proc", "max_seq_len", "packing_same_mm_media"};

#define COUNT(list) (sizeof(list) / sizeof *(list))

/* Fields that mean something only where rows may name a video. */
static const char *const video_fields[] = {"max_num_frames", "fps", "video_dir"};

/* Fields that mean nothing here: a value other than null is refused with the reason. */
static const struct refused {
    const char *field, *why;
} refusals[] = {
    {"revision", "it belongs to data sets of the hub, and this one is read from a file"},
    {"offline_sha", "it belongs to data sets of the hub, and this one is read from a file"},
    {"num_proc", "the flag --threads says how many threads read the data"},
};

/* Adds ", did you mean NEAR?" when there is a near one. */
static enum status unknown(const char *where, const char *what, const char *found, const char *const *known,
                           size_t count, struct err *e) {
    const char *near = text_nearest(found, known, count);
    if (near) return err_set(e, ST_FAIL, "%s: unknown %s \"%s\", did you mean %s?", where, what, found, near);
    struct text all = {0};
    for (size_t i = 0; i < count; i++) text_addf(&all, "%s%s", i ? ", " : "", known[i]);
    err_set(e, ST_FAIL, "%s: unknown %s \"%s\"; the known ones are %s", where, what, found, text_str(&all));
    text_free(&all);
    return e->code;
}

static enum status check_fields(const cJSON *entry, const char *where, struct err *e) {
    for (const cJSON *f = entry->child; f; f = f->next) {
        bool known = false;
        for (size_t i = 0; i < COUNT(fields); i++) known |= strcmp(f->string, fields[i]) == 0;
        if (!known) return unknown(where, "field", f->string, fields, COUNT(fields), e);
    }
    return ST_OK;
}

static enum status wanted_text(const cJSON *entry, const char *where, const char *key, const char **out,
                               struct err *e) {
    if (json_str(entry, where, key, NULL, out, e) != ST_OK) return e->code;
    return *out ? ST_OK : err_set(e, ST_FAIL, "%s: %s is missing", where, key);
}

const char *const data_splits[DATA_SPLITS] = {"train", "val", "test"};

static enum status check_split(const char *split, const char *where, struct err *e) {
    for (int i = 0; i < DATA_SPLITS; i++)
        if (strcmp(split, data_splits[i]) == 0) return ST_OK;
    return unknown(where, "split", split, data_splits, DATA_SPLITS, e);
}

static enum status find_format(const char *format, const char *where, const struct format **found, struct err *e) {
    const char *names[COUNT(formats)];
    for (size_t i = 0; i < COUNT(formats); i++) {
        names[i] = formats[i].name;
        if (strcmp(format, names[i]) != 0) continue;
        *found = &formats[i];
        if (formats[i].ready) return ST_OK;
        return err_set(e, ST_FAIL,
                       "%s: rows of format %s cannot be read yet; wanted format: chat, chat_video or classification",
                       where, format);
    }
    return unknown(where, "format", format, names, COUNT(formats), e);
}

static enum status limit(const cJSON *entry, const char *where, const char *key, int64_t fallback, int64_t *out,
                         struct err *e) {
    if (json_int(entry, where, key, fallback, out, e) != ST_OK) return e->code;
    if (*out >= 0) return ST_OK;
    return err_set(e, ST_FAIL, "%s: %s is %lld, wanted 0 (no limit) or more", where, key, (long long)*out);
}

/* max_num_frames, fps, video_dir: of a format whose rows may name a video. */
static enum status read_video_settings(struct set_config *s, const cJSON *entry, const struct format *format,
                                       const char *dir, const char *where, const struct data_options *o,
                                       struct err *e) {
    const char *video_dir;
    for (size_t i = 0; i < COUNT(video_fields) && !format->video; i++)
        if (json_get(entry, video_fields[i]))
            return err_set(e, ST_FAIL, "%s: %s is not used here (it is for video formats); remove it", where,
                           video_fields[i]);
    if (limit(entry, where, "max_num_frames", o->max_num_frames, &s->frames.most, e) != ST_OK ||
        json_num(entry, where, "fps", 0, &s->frames.fps, e) != ST_OK ||
        json_str(entry, where, "video_dir", NULL, &video_dir, e) != ST_OK)
        return e->code;
    if (!(s->frames.fps >= 0 && s->frames.fps <= 1e6) || (json_get(entry, "fps") && s->frames.fps == 0))
        return err_set(e, ST_FAIL, "%s: fps is %g, wanted frames a second, more than 0", where, s->frames.fps);
    if (s->format == ROWS_CHAT_VIDEO && s->max_image_size)
        return err_set(e, ST_FAIL, "%s: max_image_size is not used here (it is for chat and classification); remove it",
                       where);
    s->video_folder = video_dir ? path_join(dir, video_dir) : mem_text(s->folder);
    if (!dir_exists(s->video_folder))
        return err_set(e, ST_FAIL, "%s: video_dir: there is no folder %s", where, s->video_folder);
    if (s->format != ROWS_CHAT_VIDEO) return ST_OK;
    free(s->folder);
    s->folder = mem_text(s->video_folder);
    return ST_OK;
}

static enum status read_settings(struct set_config *s, const cJSON *entry, const char *where,
                                 const struct data_options *o, struct err *e) {
    for (size_t i = 0; i < COUNT(refusals); i++)
        if (json_get(entry, refusals[i].field))
            return err_set(e, ST_FAIL, "%s: %s is not used here (%s); remove it", where, refusals[i].field,
                           refusals[i].why);
    bool packing;
    if (limit(entry, where, "max_size", 0, &s->max_size, e) != ST_OK ||
        limit(entry, where, "max_num_images", 0, &s->max_num_images, e) != ST_OK ||
        limit(entry, where, "max_image_size", 0, &s->max_image_size, e) != ST_OK ||
        limit(entry, where, "max_seq_len", o->max_seq_len, &s->max_seq_len, e) != ST_OK ||
        json_bool(entry, where, "shuffle", false, &s->shuffle, e) != ST_OK ||
        json_bool(entry, where, "vl_only", false, &s->vl_only, e) != ST_OK ||
        json_bool(entry, where, "packing_same_mm_media", false, &packing, e) != ST_OK)
        return e->code;
    if (packing)
        return err_set(e, ST_FAIL, "%s: packing_same_mm_media: true is not supported; every row stands alone", where);
    return ST_OK;
}

/* A path that exists is local whatever type says, unless it says huggingface. */
static enum status check_source(const struct set_config *s, const cJSON *entry, const char *written, const char *where,
                                struct err *e) {
    const char *type;
    if (json_str(entry, where, "type", "", &type, e) != ST_OK) return e->code;
    if (strcmp(type, "huggingface") == 0 || dir_exists(s->path))
        return err_set(e, ST_FAIL,
                       "%s: path %s is a data set of the Hugging Face hub or a folder of one, which is not read here; "
                       "store its rows as .json or .jsonl with the pictures beside it and write type: json",
                       where, written);
    if (!file_exists(s->path))
        return err_set(e, ST_FAIL, "%s: path %s: there is no file %s%s", where, written, s->path,
                       *type ? "" : " (rows of the Hugging Face hub are not read here; store them as .json or .jsonl)");
    const cJSON *format = json_get(entry, "format");
    bool labelled = cJSON_IsString(format) && strcmp(format->valuestring, "classification") == 0;
    if (text_ends(s->path, ".json") || text_ends(s->path, ".jsonl")) return ST_OK;
    if (text_ends(s->path, ".csv") && labelled) return ST_OK;
    return err_set(e, ST_FAIL,
                   "%s: path %s: wanted a name that ends in .json (one list) or .jsonl (a row a line), or with format "
                   "classification in .csv",
                   where, written);
}

static enum status read_set(struct data_config *c, const cJSON *entry, const char *dir, const char *where,
                            const struct data_options *o, struct err *e) {
    const char *path, *name, *split, *format;
    if (!cJSON_IsObject(entry)) return err_set(e, ST_FAIL, "%s: wanted the fields of a data set", where);
    if (check_fields(entry, where, e) != ST_OK || wanted_text(entry, where, "path", &path, e) != ST_OK ||
        wanted_text(entry, where, "name", &name, e) != ST_OK ||
        wanted_text(entry, where, "split", &split, e) != ST_OK ||
        wanted_text(entry, where, "format", &format, e) != ST_OK || check_split(split, where, e) != ST_OK)
        return e->code;
    if (strcmp(split, o->split) != 0) return ST_OK;
    const struct format *kind = NULL;
    if (find_format(format, where, &kind, e) != ST_OK) return e->code;

    struct set_config *s = &c->sets[c->count++];
    s->format = kind->rows;
    s->name = mem_text(name);
    s->path = path_join(dir, path);
    s->folder = path_dir(s->path);
    if (read_settings(s, entry, where, o, e) != ST_OK || check_source(s, entry, path, where, e) != ST_OK)
        return e->code;
    return read_video_settings(s, entry, kind, dir, where, o, e);
}

static const char wanted_list[] = "wanted a list of data sets under data:, each with path, name, split and format";

/* NULL with the error set. The rows themselves are an easy thing to name instead. */
static cJSON *read_tree(const char *file, struct err *e) {
    static const char *const ends[] = {".jsonl", ".csv", ".tsv"};
    for (size_t i = 0; i < COUNT(ends); i++) {
        if (!text_ends(file, ends[i])) continue;
        err_set(e, ST_FAIL, "%s: holds rows, not data sets; %s, in a .yaml", file, wanted_list);
        return NULL;
    }
    return yaml_read(file, e);
}

static enum status read_list(struct data_config *c, const cJSON *list, const char *dir, const struct data_options *o,
                             struct err *e) {
    if (!cJSON_IsArray(list) || !list->child) return err_set(e, ST_FAIL, "%s: %s", c->where, wanted_list);
    c->sets = mem_alloc((size_t)cJSON_GetArraySize(list) * sizeof *c->sets);
    int i = 0;
    for (const cJSON *entry = list->child; entry && e->code == ST_OK; entry = entry->next) {
        char *where = mem_format("%s: data[%d]", c->where, i++);
        read_set(c, entry, dir, where, o, e);
        free(where);
    }
    if (e->code == ST_OK && c->count == 0)
        err_set(e, ST_FAIL, "%s: no data set has split: %s; the first has %s", c->where, o->split,
                json_get(list->child, "split")->valuestring);
    return e->code;
}

static enum status read_file(struct data_config *c, const struct data_options *o, struct err *e) {
    cJSON *tree = read_tree(o->file, e);
    if (!tree) return e->code;
    static const char *const keys[] = {"data"};
    for (const cJSON *k = cJSON_IsObject(tree) ? tree->child : NULL; k && e->code == ST_OK; k = k->next)
        if (strcmp(k->string, "data") != 0) unknown(c->where, "key", k->string, keys, 1, e);
    char *dir = path_dir(o->file);
    if (e->code == ST_OK) read_list(c, json_get(tree, "data"), dir, o, e);
    free(dir);
    cJSON_Delete(tree);
    return e->code;
}

enum status data_config_splits(bool found[DATA_SPLITS], const char *file, struct err *e) {
    cJSON *tree = read_tree(file, e);
    const cJSON *list = json_get(tree, "data");
    if (tree && !cJSON_IsArray(list)) err_set(e, ST_FAIL, "%s: %s", file, wanted_list);
    for (int i = 0; i < DATA_SPLITS; i++) {
        found[i] = false;
        for (const cJSON *entry = list ? list->child : NULL; entry; entry = entry->next) {
            const cJSON *split = json_get(entry, "split");
            found[i] |= cJSON_IsString(split) && strcmp(split->valuestring, data_splits[i]) == 0;
        }
    }
    cJSON_Delete(tree);
    return e->code;
}

/* The one set of o->rows_text. */
static enum status describe_rows(struct data_config *c, const struct data_options *o) {
    c->sets = mem_alloc(sizeof *c->sets);
    c->count = 1;
    c->sets[0] = (struct set_config){.format = ROWS_CLASSIFICATION,
                                     .path = mem_text("the list"),
                                     .folder = mem_text(o->inline_dir),
                                     .video_folder = mem_text(o->inline_dir),
                                     .name = mem_text("the list"),
                                     .max_seq_len = o->max_seq_len,
                                     .frames = {.most = o->max_num_frames}};
    return ST_OK;
}

enum status data_config_read(struct data_config *c, const struct data_options *o, struct err *e) {
    *c = (struct data_config){.where = mem_text(o->file ? o->file : "the training config")};
    if (o->rows_text) return describe_rows(c, o);
    if (check_split(o->split, "the data options", e) != ST_OK) return e->code;
    return o->file ? read_file(c, o, e) : read_list(c, o->inline_list, o->inline_dir, o, e);
}

void data_config_free(struct data_config *c) {
    for (size_t i = 0; i < c->count; i++)
        free(c->sets[i].path), free(c->sets[i].folder), free(c->sets[i].name), free(c->sets[i].video_folder);
    free(c->sets);
    free(c->where);
    *c = (struct data_config){0};
}

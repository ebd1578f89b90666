/* The rows of a .json list, a .jsonl file or a table: where each one lies in the file's bytes, and one of them parsed.
 * Nothing but the bytes and their ranges is kept, so a large set costs about its file. The bytes are a copy: a file
 * that changes during a run changes nothing. */
#ifndef DATA_ROWS_H
#define DATA_ROWS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/conversation.h"
#include "data/frames.h"
#include "data/image.h"

struct video;

struct row_span {
    int64_t begin, bytes;
    int64_t line; // from 1; only of a .jsonl
};

struct rows {
    const char *path; // the caller's
    bool lines;       // .jsonl
    char *data;
    size_t size;
    struct row_span *span; // (count)
    int64_t count;
};

enum status rows_open(struct rows *r, const char *path, struct err *e);
/* Rows of a classification set from a table (.csv): its columns id, video, image and prompt, and a label for every
 * other one. */
enum status rows_open_sheet(struct rows *r, const char *path, struct err *e);
/* Rows that are not in a file, one a line; `name` stands for the path. */
enum status rows_open_text(struct rows *r, const char *name, const char *text, struct err *e);
void rows_close(struct rows *r);

/* One row of a chat or classification set. Texts live as long as the row. */
struct chat_row {
    cJSON *tree;
    char *where;        // file, index, line, id: what an error about the row begins with
    char *id;           // "id" as text, else the index
    const char *system; // of a leading system turn, or NULL
    struct turn *turns; // (count), from the first user turn on; users and assistants alternate
    size_t count;
    const char **images; // (image_count), paths as written
    size_t image_count;
    const char *prompt;  // classification: instead of turns
    const cJSON *labels; // classification: numbers by name

    const char *media;   // "video" as written: a file or a folder of frames; NULL: the row has pictures
    struct video *video; // (owned) of a file, whose frames are the row's pictures; NULL: images are
    int64_t *frame;      // (image_count) numbers of these frames
    int64_t video_frames, video_width, video_height;
    bool by_prefix; // chat_video: labels are found by growing prefixes
    char **kept;    // (kept_count) texts that the tree does not hold
    size_t kept_count;
};

/* An error names the file and the row. chat_row_free after any outcome. */
enum status chat_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);
void chat_row_free(struct chat_row *c);

/* A row of a classification set: a prompt, labels that are finite numbers (NULL: it has none), and
 * pictures or else a video, if any. */
enum status class_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);

/* A row of a chat_video set: turns without `<image>`, with `<video>` in one of them, pictures as they are named. Where
 * no turn has `<video>`, it is put before or after the first; which of the two is a function of the row's index. */
enum status video_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);

/* Turns a row's media (a file or folder under `folder`) into its pictures, and chooses those that the rule takes; a
 * list of pictures is chosen from as well when the rule is to hold for it. frames: how many an earlier call found in
 * the same row's file, 0: not known. */
enum status row_choose_frames(struct chat_row *c, const char *folder, const struct frame_rule *rule, bool lists,
                              int64_t frames, struct err *e);

/* Picture k of a row with a video, in growing order. */
enum status row_read_frame(struct image *im, const struct chat_row *c, int64_t k, struct err *e);

/* Where, tree, id and pictures: what all kinds of rows have. */
enum status row_open(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);
enum status row_read_pictures(struct chat_row *c, struct err *e);
const cJSON *row_turns(const struct chat_row *c); // as the row has them, under one of their names; NULL: it has none
enum status row_read_turns(struct chat_row *c, struct err *e);
enum status row_read_media(struct chat_row *c, struct err *e); // "video", if it is there
char *row_keep(struct chat_row *c, char *text);                // text, which then lives as long as the row

/* Only system and turns, from a list whose texts outlive c; c->where must be set. */
enum status chat_row_read_turns(struct chat_row *c, const cJSON *list, struct err *e);

#endif

/* The rows of a .json list or a .jsonl file: where each one lies in the file's bytes, and one of them parsed. Nothing
 * but the bytes and their ranges is kept, so a large set costs about its file. The bytes are a copy: a file that
 * changes during a run changes nothing. */
#ifndef DATA_ROWS_H
#define DATA_ROWS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/conversation.h"

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
};

/* An error names the file and the row. chat_row_free after any outcome. */
enum status chat_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);
void chat_row_free(struct chat_row *c);

/* A row of a classification set: a prompt, labels that are finite numbers (NULL: it has none) and pictures if any. */
enum status class_row_read(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);

/* Where, tree, id and pictures: what both kinds of rows have. */
enum status row_open(struct chat_row *c, const struct rows *r, int64_t index, struct err *e);
enum status row_read_pictures(struct chat_row *c, struct err *e);

/* Only system and turns, from a list whose texts outlive c; c->where must be set. */
enum status chat_row_read_turns(struct chat_row *c, const cJSON *list, struct err *e);

#endif

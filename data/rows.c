#include "data/rows.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static size_t skip_blanks(const struct rows *r, size_t at) {
    while (at < r->size && is_blank(r->data[at])) at++;
    return at;
}

static void add_span(struct rows *r, int64_t *room, size_t begin, size_t end, int64_t line) {
    if (r->count == *room) {
        *room = *room ? *room * 2 : 256;
        r->span = mem_resize(r->span, (size_t)*room * sizeof *r->span);
    }
    r->span[r->count++] = (struct row_span){(int64_t)begin, (int64_t)(end - begin), line};
}

/* Lines that hold something. */
static void find_lines(struct rows *r, size_t at) {
    int64_t room = 0;
    for (int64_t line = 1; at < r->size; line++) {
        const char *newline = memchr(r->data + at, '\n', r->size - at);
        size_t end = newline ? (size_t)(newline - r->data) : r->size, begin = skip_blanks(r, at);
        if (begin < end) add_span(r, &room, begin, end, line);
        at = end + 1;
    }
}

/* The first comma or closing bracket outside of the value at `at`; r->size when the text ends before. */
static size_t value_end(const struct rows *r, size_t at) {
    int64_t depth = 0;
    bool quoted = false;
    for (; at < r->size; at++) {
        char c = r->data[at];
        if (quoted) {
            if (c == '\\') at++;
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (depth-- == 0) return at;
        } else if (c == ',' && depth == 0) {
            return at;
        }
    }
    return r->size;
}

static enum status find_items(struct rows *r, size_t at, struct err *e) {
    int64_t room = 0;
    at = skip_blanks(r, at);
    if (at == r->size || r->data[at] != '[') return err_set(e, ST_FAIL, "%s: wanted one JSON list of rows", r->path);
    at = skip_blanks(r, at + 1);
    bool first = true;
    while (at < r->size && !(first && r->data[at] == ']')) {
        size_t end = value_end(r, at);
        if (end == r->size || r->data[end] == '}')
            return err_set(e, ST_FAIL, "%s: row %lld: the list ends in the middle of the row", r->path,
                           (long long)r->count);
        add_span(r, &room, at, end, 0);
        at = end;
        if (r->data[at] == ']') break;
        at = skip_blanks(r, at + 1);
        first = false;
    }
    if (at == r->size)
        return err_set(e, ST_FAIL, "%s: the list has no end after row %lld", r->path, (long long)r->count - 1);
    at = skip_blanks(r, at + 1);
    return at == r->size ? ST_OK : err_set(e, ST_FAIL, "%s: something follows the list of rows", r->path);
}

static enum status find_rows(struct rows *r, struct err *e) {
    size_t start = r->size >= 3 && memcmp(r->data, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    if (r->lines)
        find_lines(r, start);
    else
        find_items(r, start, e);
    if (e->code == ST_OK && r->count == 0) err_set(e, ST_FAIL, "%s: holds no rows", r->path);
    if (e->code != ST_OK) rows_close(r);
    return e->code;
}

enum status rows_open(struct rows *r, const char *path, struct err *e) {
    if (text_ends(path, ".csv")) return rows_open_sheet(r, path, e);
    *r = (struct rows){.path = path, .lines = text_ends(path, ".jsonl")};
    return file_read(path, &r->data, &r->size, e) == ST_OK ? find_rows(r, e) : e->code;
}

enum status rows_open_text(struct rows *r, const char *name, const char *text, struct err *e) {
    *r = (struct rows){.path = name, .lines = true, .data = mem_text(text), .size = strlen(text)};
    return find_rows(r, e);
}

void rows_close(struct rows *r) {
    free(r->data);
    free(r->span);
    *r = (struct rows){0};
}

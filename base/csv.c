#include "base/csv.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"
#include "base/memory.h"

struct reader {
    const char *at, *end, *where;
    char delimiter;
    size_t line;
    struct csv *csv;
    size_t cells, room; // of all rows
};

/* Of the characters that may part cells, the one that comes first outside of quotes in the first line. */
static char find_delimiter(const char *s, const char *end) {
    bool quoted = false;
    for (; s < end && (quoted || *s != '\n'); s++) {
        if (*s == '"') quoted = !quoted;
        if (!quoted && (*s == ',' || *s == ';' || *s == '\t')) return *s;
    }
    return ',';
}

static void add_cell(struct reader *r, const struct text *t) {
    if (r->cells == r->room) {
        r->room = r->room ? 2 * r->room : 64;
        r->csv->cell = mem_resize(r->csv->cell, r->room * sizeof *r->csv->cell);
    }
    r->csv->cell[r->cells++] = mem_text_n(text_str(t), t->len);
}

static bool ends_cell(const struct reader *r) {
    return r->at == r->end || *r->at == r->delimiter || *r->at == '\n' || (*r->at == '\r' && r->at + 1 == r->end) ||
           (*r->at == '\r' && r->at[1] == '\n');
}

static enum status read_quoted(struct reader *r, struct text *t, struct err *e) {
    size_t began = r->line;
    for (r->at++; r->at < r->end; r->at++) {
        if (*r->at == '\n') r->line++;
        if (*r->at == '"') {
            if (r->at + 1 == r->end || r->at[1] != '"') break;
            r->at++;
        }
        text_add_char(t, *r->at);
    }
    if (r->at == r->end) return err_set(e, ST_FAIL, "%s: line %zu: a quote is opened and not closed", r->where, began);
    r->at++;
    if (ends_cell(r)) return ST_OK;
    return err_set(e, ST_FAIL, "%s: line %zu: something follows the closing quote of a cell", r->where, r->line);
}

/* One line's cells; *count is how many. */
static enum status read_row(struct reader *r, size_t *count, struct err *e) {
    struct text t = {0};
    *count = 0;
    for (bool more = true; more && e->code == ST_OK;) {
        text_clear(&t);
        if (r->at < r->end && *r->at == '"') read_quoted(r, &t, e);
        while (e->code == ST_OK && !ends_cell(r)) text_add_char(&t, *r->at++);
        add_cell(r, &t);
        ++*count;
        more = r->at < r->end && *r->at == r->delimiter;
        if (more) r->at++;
    }
    while (r->at < r->end && *r->at == '\r') r->at++;
    if (r->at < r->end && e->code == ST_OK) r->at++, r->line++;
    text_free(&t);
    return e->code;
}

static bool is_empty(char *const *cell, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (*cell[i]) return false;
    return true;
}

static void trim(char *cell) {
    size_t n = strlen(cell), space = strspn(cell, " ");
    while (n > space && cell[n - 1] == ' ') n--;
    memmove(cell, cell + space, n - space);
    cell[n - space] = 0;
}

static enum status keep_row(struct reader *r, size_t count, size_t line, struct err *e) {
    struct csv *c = r->csv;
    char **cell = c->cell + r->cells - count;
    if (is_empty(cell, count)) {
        for (size_t i = 0; i < count; i++) free(c->cell[--r->cells]);
        return ST_OK;
    }
    if (c->rows == 0) c->columns = count;
    for (size_t i = 0; c->rows == 0 && i < count; i++) trim(cell[i]);
    if (count != c->columns)
        return err_set(e, ST_FAIL, "%s: line %zu has %zu cells, the first line has %zu", r->where, line, count,
                       c->columns);
    c->line = mem_resize(c->line, (c->rows + 1) * sizeof *c->line);
    c->line[c->rows++] = line;
    return ST_OK;
}

enum status csv_parse(struct csv *c, const char *text, size_t n, const char *where, struct err *e) {
    *c = (struct csv){0};
    size_t mark = n >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0, good = utf8_valid_prefix(text, n);
    if (good < n || memchr(text, 0, n))
        return err_set(e, ST_FAIL, "%s: not a table in UTF-8 (byte %zu); save it as CSV UTF-8", where, good);
    struct reader r = {.at = text + mark, .end = text + n, .where = where, .line = 1, .csv = c};
    c->delimiter = r.delimiter = find_delimiter(r.at, r.end);
    while (r.at < r.end && e->code == ST_OK) {
        size_t count, line = r.line;
        if (read_row(&r, &count, e) == ST_OK) keep_row(&r, count, line, e);
    }
    if (e->code == ST_OK && c->rows == 0) err_set(e, ST_FAIL, "%s: the table is empty", where);
    if (e->code != ST_OK) { // cells of a row that does not count
        names_free(c->cell, r.cells);
        free(c->line);
        *c = (struct csv){0};
    }
    return e->code;
}

enum status csv_read(struct csv *c, const char *path, struct err *e) {
    struct file_map m;
    *c = (struct csv){0};
    if (file_map_open(&m, path, e) != ST_OK) return e->code;
    csv_parse(c, m.data, m.size, path, e);
    file_map_close(&m);
    return e->code;
}

void csv_free(struct csv *c) {
    names_free(c->cell, c->rows * c->columns);
    free(c->line);
    *c = (struct csv){0};
}

const char *csv_cell(const struct csv *c, size_t row, size_t column) { return c->cell[row * c->columns + column]; }

size_t csv_column(const struct csv *c, const char *name) {
    size_t i = 0;
    while (i < c->columns && strcasecmp(csv_cell(c, 0, i), name) != 0) i++;
    return i;
}

void csv_add(struct text *t, const char *cell, bool first) {
    if (!first) text_add_char(t, ',');
    if (!cell[strcspn(cell, ",;\t\"\r\n")]) {
        text_add(t, cell);
        return;
    }
    text_add_char(t, '"');
    for (; *cell; cell++) {
        if (*cell == '"') text_add_char(t, '"');
        text_add_char(t, *cell);
    }
    text_add_char(t, '"');
}

/* Rows of a classification set from a spreadsheet: a line is a row. The columns id, video, image and prompt are what
 * they are called, every other one is a label by the column's name; an empty cell is a label that the row does not
 * have. Where cells are parted by semicolons a number may have a decimal comma, as spreadsheets then write it. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/csv.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/rows.h"

static bool is_own(const char *name) {
    static const char *const own[] = {"id", "video", "image", "prompt"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcasecmp(name, own[i]) == 0) return true;
    return false;
}

static const char *cell_of(const struct csv *t, size_t line, const char *name) {
    size_t column = csv_column(t, name);
    return column < t->columns && *csv_cell(t, line, column) ? csv_cell(t, line, column) : NULL;
}

/* A number where the cell holds one and nothing else, else the text, which is then refused with the row's name. */
static cJSON *value_of(const char *cell, bool comma) {
    char *copy = mem_text(cell), *point = comma && !strchr(cell, '.') ? strchr(copy, ',') : NULL, *end;
    if (point) *point = '.';
    double number = strtod(copy, &end);
    end += strspn(end, " ");
    bool plain = !*end && !copy[strspn(copy, "0123456789.eE+- ")];
    free(copy);
    return plain ? cJSON_CreateNumber(number) : cJSON_CreateString(cell);
}

static cJSON *row_of(const struct csv *t, size_t line) {
    static const char *const texts[] = {"id", "video", "image"};
    cJSON *row = cJSON_CreateObject(), *labels = cJSON_CreateObject();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (cell_of(t, line, texts[i])) cJSON_AddStringToObject(row, texts[i], cell_of(t, line, texts[i]));
    if (!cell_of(t, line, "image") && csv_column(t, "video") < t->columns && !cell_of(t, line, "video"))
        cJSON_AddStringToObject(row, "video", ""); // refused with the row's name
    cJSON_AddStringToObject(row, "prompt", cell_of(t, line, "prompt") ? cell_of(t, line, "prompt") : "");
    for (size_t i = 0; i < t->columns; i++)
        if (!is_own(csv_cell(t, 0, i)) && *csv_cell(t, line, i))
            cJSON_AddItemToObject(labels, csv_cell(t, 0, i), value_of(csv_cell(t, line, i), t->delimiter == ';'));
    if (labels->child)
        cJSON_AddItemToObject(row, "labels", labels);
    else
        cJSON_Delete(labels);
    return row;
}

static enum status check_names(const struct csv *t, const char *path, struct err *e) {
    if (csv_column(t, "prompt") == t->columns)
        return err_set(e, ST_FAIL, "%s: the first line names no column \"prompt\"; wanted prompt, video and the labels",
                       path);
    for (size_t c = 0; c < t->columns; c++)
        for (size_t i = 1; !*csv_cell(t, 0, c) && i < t->rows; i++)
            if (*csv_cell(t, i, c))
                return err_set(e, ST_FAIL,
                               "%s: line %zu: column %zu holds \"%.80s\" and the first line does not name "
                               "it; name it there, or take it out",
                               path, t->line[i], c + 1, csv_cell(t, i, c));
    return ST_OK;
}

enum status rows_open_sheet(struct rows *r, const char *path, struct err *e) {
    struct csv t;
    struct text all = {0};
    *r = (struct rows){0};
    if (csv_read(&t, path, e) == ST_OK) check_names(&t, path, e);
    for (size_t i = 1; i < t.rows && e->code == ST_OK; i++) {
        cJSON *row = row_of(&t, i);
        char *text = cJSON_PrintUnformatted(row);
        text_addf(&all, "%s\n", text);
        free(text);
        cJSON_Delete(row);
    }
    if (e->code == ST_OK && rows_open_text(r, path, text_str(&all), e) == ST_OK)
        for (int64_t i = 0; i < r->count; i++) r->span[i].line = (int64_t)t.line[i + 1];
    text_free(&all);
    csv_free(&t);
    return e->code;
}

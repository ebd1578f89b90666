/* Tables as spreadsheets write them (RFC 4180): the first line names the columns; cells may stand in quotes, within
 * which a quote is written twice. Comma, semicolon or tab part the cells: whichever the first line has. */
#ifndef BASE_CSV_H
#define BASE_CSV_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/text.h"

struct csv {
    char **cell; // (rows, columns), the names first
    size_t rows, columns;
    char delimiter;
    size_t *line; // (rows) of the file where each begins, from 1
};

/* `where` names the table in an error. Lines whose cells are all empty are left out, and so are spaces
 * around the names; a row with another number of cells than the first is an error. csv_free after any outcome. */
enum status csv_parse(struct csv *c, const char *text, size_t n, const char *where, struct err *e);
enum status csv_read(struct csv *c, const char *path, struct err *e);
void csv_free(struct csv *c);

const char *csv_cell(const struct csv *c, size_t row, size_t column);
/* Which column has the name, in any case of letters; c->columns: none. */
size_t csv_column(const struct csv *c, const char *name);

/* A cell behind those of the line so far; first: it begins the line. */
void csv_add(struct text *t, const char *cell, bool first);

#endif

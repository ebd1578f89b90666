#include "cli/help.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "cli/out.h"

enum { TABLE_LONGEST = 24, COLUMNS = 3, COLUMN = 40, LEFT = 30, LEFT_WIDEST = 50 };

void help_verbs(const struct verb *const *verbs, size_t count) {
    out_text("graft trains low-rank adapters on language and vision-language models.\n\n");
    for (size_t i = 0; i < count; i++) out_text("  graft %-9s %s\n", verbs[i]->name, verbs[i]->about);
    out_text("\ngraft VERB --help shows what a verb takes.\n");
}

static const char *value_name(const struct flag *f) {
    switch (f->type) {
    case FLAG_BOOL:
        return "true|false";
    case FLAG_INT:
        return "N";
    case FLAG_NUMBER:
        return "X";
    default:
        return f->choices ? f->choices : "VALUE";
    }
}

/* A flag a line: name and values, meaning, default. Many values take a line of their own. */
static void show_flags(const struct flag *list, size_t count) {
    for (size_t i = 0; i < count; i++) {
        char *left = mem_format("--%s %s", list[i].name, value_name(&list[i]));
        bool wide = strlen(left) > LEFT_WIDEST;
        out_text("  %-*s%s", LEFT, left, wide ? "\n" : "");
        out_text("%*s%s", wide ? LEFT + 3 : 1, "", list[i].help);
        free(left);
        if (list[i].fallback) out_text(" [%s]", list[i].fallback);
        out_text(list[i].type == FLAG_LIST ? " (may be repeated)\n" : "\n");
    }
}

/* Names and defaults only, read down the columns. */
static void show_columns(const struct flag *list, size_t count) {
    size_t lines = (count + COLUMNS - 1) / COLUMNS;
    for (size_t line = 0; line < lines; line++) {
        struct text row = {0};
        for (size_t i = line; i < count; i += lines) {
            char cell[128];
            snprintf(cell, sizeof cell, "--%s %s", list[i].name, list[i].fallback ? list[i].fallback : "-");
            text_addf(&row, "  %-*s", i + lines < count ? COLUMN - 2 : 0, cell);
        }
        out_text("%s\n", text_str(&row));
        text_free(&row);
    }
}

static bool has_flag(const struct verb *v, const char *name) {
    for (size_t i = 0; i < v->flag_count; i++)
        if (strcmp(v->flags[i].name, name) == 0) return true;
    return false;
}

void help_verb(const struct verb *v) {
    struct flag *common = mem_alloc(common_flag_count * sizeof *common); // those that the verb has not its own of
    size_t count = 0;
    out_text("usage: graft %s%s%s\n%s\n\n", v->name, *v->arguments ? " " : "", v->arguments, v->about);
    if (v->flag_count <= TABLE_LONGEST)
        show_flags(v->flags, v->flag_count);
    else
        show_columns(v->flags, v->flag_count);
    out_text("%s", v->flag_count ? "\n" : "");
    for (size_t i = 0; i < common_flag_count; i++)
        if (!has_flag(v, common_flags[i].name)) common[count++] = common_flags[i];
    if (v->flag_count <= TABLE_LONGEST)
        show_flags(common, count);
    else
        show_columns(common, count);
    free(common);
}

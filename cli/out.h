/* What a user sees: results on stdout, notes and progress on stderr unless --quiet. */
#ifndef CLI_OUT_H
#define CLI_OUT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/text.h"
#include "base/watch.h"
#include "cli/flags.h"
#include "kernels/backend.h"

void out_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
void out_bytes(const char *data, size_t n);
void out_json(const cJSON *v);            // compact, one line
void out_json_text(const struct text *t); // as a JSON string; it may hold zero bytes, which no C string can

void out_note(const struct flags *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
void out_profile(struct backend *be);                            // where its time went, if that was measured
void out_lines(const struct flags *f, const struct text *lines); // notes, each with its line's end; there may be none

/* How far something has come. On a terminal one line that is drawn again; redirected, a plain line for every tenth
 * part. */
struct progress {
    const char *label;
    int64_t done, total;
    bool quiet, terminal;
    double began, drawn; // seconds of a clock
    int parts;           // lines that were written
};
struct progress progress_new(const struct flags *f, const char *label, int64_t total);
void progress_show(struct progress *p, int64_t done, const char *extra); // extra: a few words, or NULL
void progress_end(struct progress *p);                                   // takes the line away
struct watch progress_watch(struct progress *p); // shows what it is told; the work goes on until stop_asked

/* Numbers as a person reads them; the text is the caller's, as large as OUT_NUMBER. */
enum { OUT_NUMBER = 32 };
const char *out_bytes_text(char text[OUT_NUMBER], int64_t bytes); // "1.4 GB"
const char *out_count_text(char text[OUT_NUMBER], int64_t count); // "8.03 B", "494 M"
const char *out_time_text(char text[OUT_NUMBER], double seconds); // "1 h 05 min"

#endif

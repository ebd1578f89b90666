#include "cli/out.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/stop.h"
#include "kernels/profile.h"

/* What a file says may hold control characters, which must not steer the terminal. */
static void write_plain(FILE *to, const char *format, va_list args) {
    char *text = NULL;
    int n = vasprintf(&text, format, args);
    for (int i = 0; i < n; i++)
        if (((unsigned char)text[i] < ' ' && text[i] != '\n' && text[i] != '\t') || text[i] == 0x7F) text[i] = '?';
    if (n > 0) fwrite(text, 1, (size_t)n, to);
    if (n >= 0) free(text);
}

void out_text(const char *format, ...) {
    va_list args;
    va_start(args, format);
    write_plain(stdout, format, args);
    va_end(args);
}

void out_bytes(const char *data, size_t n) { fwrite(data, 1, n, stdout); }

void out_json(const cJSON *v) {
    char *text = json_text(v, true);
    puts(text);
    free(text);
}

void out_json_text(const struct text *t) {
    const char *s = text_str(t), *end = s + t->len;
    out_bytes("\"", 1);
    for (; s <= end; s += strlen(s) + 1) {
        char *quoted = json_quote(s);
        out_bytes(quoted + 1, strlen(quoted) - 2);
        free(quoted);
        if (s + strlen(s) < end) out_text("\\u0000");
    }
    out_bytes("\"", 1);
}

void out_note(const struct flags *f, const char *format, ...) {
    if (flag_bool(f, "quiet")) return;
    va_list args;
    va_start(args, format);
    write_plain(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

void out_lines(const struct flags *f, const struct text *lines) {
    size_t n = lines->len - (lines->len && text_ends(text_str(lines), "\n"));
    if (n) out_note(f, "%.*s", (int)n, text_str(lines));
}

void out_profile(struct backend *be) {
    struct text t = {0};
    if (be) profile_text(be->profile, &t);
    fputs(text_str(&t), stderr);
    text_free(&t);
}

/* ---------------------------------------------------------------- progress */

struct progress progress_new(const struct flags *f, const char *label, int64_t total) {
    struct progress p = {.label = label, .total = total, .quiet = flag_bool(f, "quiet")};
    p.terminal = isatty(STDERR_FILENO);
    p.began = clock_now();
    return p;
}

/* A terminal is drawn ten times a second, a file gets a line for each tenth part that is done. What takes less than a
 * second is not worth a line. */
static bool is_due(struct progress *p, double now) {
    if (p->quiet || p->total <= 0 || now - p->began < 1) return false;
    if (p->terminal) return now - p->drawn >= 0.1;
    int parts = (int)(10.0 * (double)p->done / (double)p->total);
    bool due = parts > p->parts;
    p->parts = parts > p->parts ? parts : p->parts;
    return due;
}

void progress_show(struct progress *p, int64_t done, const char *extra) {
    double now = clock_now();
    p->done = done;
    if (!is_due(p, now)) return;
    double part = (double)done / (double)p->total, spent = now - p->began;
    struct text line = {0};
    text_addf(&line, "%s %3.0f%%", p->label, 100 * part);
    if (part > 0 && part < 1 && spent > 1) {
        char left[OUT_NUMBER];
        text_addf(&line, ", %s left", out_time_text(left, spent * (1 - part) / part));
    }
    if (extra) text_addf(&line, ", %s", extra);
    if (p->terminal)
        fprintf(stderr, "\r%.100s\033[K", text_str(&line));
    else
        fprintf(stderr, "%s\n", text_str(&line));
    fflush(stderr);
    p->drawn = now;
    text_free(&line);
}

void progress_end(struct progress *p) {
    if (p->terminal && p->drawn > 0) fputs("\r\033[K", stderr);
    p->drawn = 0;
}

static bool look(void *arg, const char *name, int64_t done, int64_t total) {
    struct progress *p = arg;
    p->total = total;
    progress_show(p, done, name);
    return !*stop_asked();
}

struct watch progress_watch(struct progress *p) {
    return (struct watch){look, p};
}

/* ---------------------------------------------------------------- numbers */

static const char *scaled(char text[OUT_NUMBER], double v, const char *const *units, int count) {
    int k = 0;
    while (k + 1 < count && v >= 999.5) v /= 1000, k++;
    int digits = k == 0 || v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2;
    snprintf(text, OUT_NUMBER, "%.*f%s%s", digits, v, *units[k] ? " " : "", units[k]);
    return text;
}

const char *out_bytes_text(char text[OUT_NUMBER], int64_t bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    return scaled(text, (double)bytes, units, 5);
}

const char *out_count_text(char text[OUT_NUMBER], int64_t count) {
    static const char *const units[] = {"", "k", "M", "B"};
    return scaled(text, (double)count, units, 4);
}

const char *out_time_text(char text[OUT_NUMBER], double seconds) {
    long long s = seconds > 0 && seconds < 1e12 ? llround(seconds) : 0;
    if (s < 60)
        snprintf(text, OUT_NUMBER, "%lld s", s);
    else if (s < 3600)
        snprintf(text, OUT_NUMBER, "%lld min %02lld s", s / 60, s % 60);
    else
        snprintf(text, OUT_NUMBER, "%lld h %02lld min", s / 3600, s % 3600 / 60);
    return text;
}

/* Curves as SVG. Colours come from the page's style sheet by class, so that light and dark mode need no script. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "lora/report.h"
#include "lora/report_log.h"

enum { WIDTH = 560, HEIGHT = 260, LEFT = 62, RIGHT = 24, TOP = 40, BOTTOM = 28 };
enum { MOST_PIECES = 400, MOST_TICKS = 16 }; // a curve has at most two points in each piece

struct axis {
    double low, high, tick;
};

/* 1.5e-5: three digits, less zeros that say nothing. */
static void add_power(struct text *out, double x) {
    char b[40];
    snprintf(b, sizeof b, "%.2e", x);
    char *e = strchr(b, 'e'), *end = e;
    while (end[-1] == '0') end--;
    if (end[-1] == '.') end--;
    text_add_n(out, b, (size_t)(end - b));
    text_addf(out, "e%d", (int)strtol(e + 1, NULL, 10));
}

void chart_number(struct text *out, double x) {
    double a = fabs(x);
    if (a >= 1e15 || (a > 0 && a < 1e-3)) {
        add_power(out, x);
        return;
    }
    const char *suffix = a >= 1e9 ? "G" : a >= 1e6 ? "M" : a >= 1e4 ? "k" : "";
    double scaled = a >= 1e9 ? x / 1e9 : a >= 1e6 ? x / 1e6 : a >= 1e4 ? x / 1e3 : x;
    text_addf(out, fabs(scaled) >= 1000 ? "%.0f%s" : "%.4g%s", scaled, suffix);
}

/* 1, 2 or 5 times a power of ten, so that about `count` ticks lie over the range. */
static double nice_tick(double range, int count) {
    double raw = range / count, power = pow(10, floor(log10(raw))), part = raw / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

static struct axis axis_over(double low, double high, int count) {
    if (!(high - low > fmax(fabs(high) * 1e-12, 1e-290))) { // flat, as far as doubles can tell
        double around = fabs(low) > 0 ? fabs(low) * 0.1 : 1;
        low -= around, high += around;
    }
    struct axis a = {.tick = nice_tick(high - low, count)};
    a.low = floor(low / a.tick) * a.tick;
    a.high = ceil(high / a.tick) * a.tick;
    return a;
}

static void stretch(const struct series *s, double *low, double *high) {
    for (size_t i = 0; s && i < s->count; i++) {
        *low = fmin(*low, s->points[i].value);
        *high = fmax(*high, s->points[i].value);
    }
}

static double place(double v, double low, double high, double from, double to) {
    return from + (v - low) / (high - low) * (to - from);
}

struct frame {
    double first, last; // steps
    struct axis y;
};

static double x_of(const struct frame *f, double step) { return place(step, f->first, f->last, LEFT, WIDTH - RIGHT); }
static double y_of(const struct frame *f, double v) { return place(v, f->y.low, f->y.high, HEIGHT - BOTTOM, TOP); }

static void add_point(struct text *out, const struct frame *f, const struct point *p) {
    text_addf(out, " %.1f,%.1f", x_of(f, p->step), y_of(f, p->value));
}

/* A curve of at most two points in each piece of the run, its least and its greatest, so that no spike is lost. */
static void draw_curve(struct text *out, const struct frame *f, const struct point *p, size_t n, const char *class) {
    text_addf(out, "<polyline class=\"%s\" points=\"", class);
    size_t pieces = n < 2 * MOST_PIECES ? n : MOST_PIECES;
    for (size_t k = 0; k < pieces; k++) {
        size_t from = n * k / pieces, to = n * (k + 1) / pieces, low = from, high = from;
        for (size_t i = from; i < to; i++) {
            if (p[i].value < p[low].value) low = i;
            if (p[i].value > p[high].value) high = i;
        }
        add_point(out, f, &p[low < high ? low : high]);
        if (low != high) add_point(out, f, &p[low < high ? high : low]);
    }
    text_add(out, "\"/>\n");
}

/* Each value as the mean of itself and as many neighbours on either side, `half` at most: no lag, and no bend at the
 * ends from values that are not there. */
static struct point *smoothed(const struct series *s, size_t half) {
    struct point *p = mem_alloc(s->count * sizeof *p);
    for (size_t i = 0; i < s->count; i++) {
        size_t reach = i < half ? i : half, rest = s->count - 1 - i, from, to;
        if (reach > rest) reach = rest;
        from = i - reach, to = i + reach;
        double sum = 0;
        for (size_t k = from; k <= to; k++) sum += s->points[k].value;
        p[i] = (struct point){s->points[i].step, sum / (double)(to - from + 1)};
    }
    return p;
}

static void draw_axes(struct text *out, const struct frame *f) {
    int ticks = (int)lround((f->y.high - f->y.low) / f->y.tick);
    for (int i = 0; i <= ticks && i < MOST_TICKS; i++) {
        double v = f->y.low + i * f->y.tick, y = y_of(f, v);
        if (fabs(v) < f->y.tick * 1e-9) v = 0;
        text_addf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, WIDTH - RIGHT, y, y);
        text_addf(out, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT - 8, y + 4);
        chart_number(out, v);
        text_add(out, "</text>\n");
    }
    double tick = fmax(1, nice_tick(f->last - f->first, 6)), start = ceil(f->first / tick) * tick;
    for (int i = 0; i < MOST_TICKS && start + i * tick <= f->last; i++) {
        double step = start + i * tick;
        text_addf(out, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", x_of(f, step),
                  HEIGHT - BOTTOM + 18);
        chart_number(out, step);
        text_add(out, "</text>\n");
    }
}

static void draw_legend(struct text *out, const struct chart *c, bool marks) {
    text_addf(out, "<text class=\"title\" x=\"%d\" y=\"18\">%s", LEFT - 48, c->title);
    if (c->unit[0]) text_addf(out, " <tspan class=\"tick\">%s</tspan>", c->unit);
    text_add(out, "</text>\n");
    if (!marks) return;
    text_addf(out,
              "<circle class=\"mark\" cx=\"%d\" cy=\"14\" r=\"4\"/><text class=\"tick\" x=\"%d\" y=\"18\">%s</text>\n",
              WIDTH - RIGHT - 76, WIDTH - RIGHT - 66, c->marks_name);
    text_addf(out,
              "<line class=\"line\" x1=\"%d\" x2=\"%d\" y1=\"14\" y2=\"14\"/><text class=\"tick\" x=\"%d\" "
              "y=\"18\">%s</text>\n",
              WIDTH - RIGHT - 162, WIDTH - RIGHT - 146, WIDTH - RIGHT - 140, c->name);
}

static void draw_values(struct text *out, const struct frame *f, const struct chart *c) {
    const struct series *s = c->values;
    if (s->count == 1) {
        text_addf(out, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", x_of(f, s->points[0].step),
                  y_of(f, s->points[0].value));
        return;
    }
    size_t half = s->count / 100 > 10 ? s->count / 100 : 10;
    bool smooth = c->smooth && s->count > 4 * half;
    draw_curve(out, f, s->points, s->count, smooth ? "faint" : "line");
    if (!smooth) return;
    struct point *mean = smoothed(s, half);
    draw_curve(out, f, mean, s->count, "line");
    free(mean);
}

void chart_draw(struct text *out, const struct chart *c) {
    const struct series *s = c->values;
    bool marks = c->marks && c->marks->count;
    if (s->count == 0) return;
    double low = s->points[0].value, high = low;
    stretch(s, &low, &high);
    stretch(c->marks, &low, &high);
    struct frame f = {s->points[0].step, s->points[s->count - 1].step, axis_over(low, high, 5)};
    if (marks) f.first = fmin(f.first, c->marks->points[0].step);
    if (marks) f.last = fmax(f.last, c->marks->points[c->marks->count - 1].step);
    if (!(f.last > f.first)) f.first -= 1, f.last += 1;
    text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s over steps\">\n", WIDTH, HEIGHT, c->title);
    draw_legend(out, c, marks);
    draw_axes(out, &f);
    draw_values(out, &f, c);
    for (size_t i = 0; marks && i < c->marks->count; i++)
        text_addf(out, "<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", x_of(&f, c->marks->points[i].step),
                  y_of(&f, c->marks->points[i].value));
    text_add(out, "</svg>\n");
}

/* --- two values of one thing -------------------------------------------------------------------------------------- */

static void draw_scatter_axes(struct text *out, const struct frame *f, const struct scatter *s) {
    draw_axes(out, f);
    text_addf(out, "<line class=\"faint\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x_of(f, f->first),
              y_of(f, f->first), x_of(f, f->last), y_of(f, f->last));
    text_addf(out, "<text class=\"title\" x=\"%d\" y=\"18\">", LEFT - 48);
    html_escape(out, s->title);
    text_addf(out, " <tspan class=\"tick\">%s over %s</tspan></text>\n", s->y_name, s->x_name);
}

void chart_scatter(struct text *out, const struct scatter *s) {
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < s->count * s->step; i += s->step) {
        if (!isfinite(s->x[i]) || !isfinite(s->y[i])) continue;
        low = fmin(low, fmin((double)s->x[i], (double)s->y[i]));
        high = fmax(high, fmax((double)s->x[i], (double)s->y[i]));
    }
    if (low > high) return;
    struct frame f = {.y = axis_over(low, high, 5)};
    f.first = f.y.low, f.last = f.y.high;
    text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    html_escape(out, s->title);
    text_addf(out, ", %s over %s\">\n", s->y_name, s->x_name);
    draw_scatter_axes(out, &f, s);
    for (size_t i = 0; i < s->count * s->step; i += s->step)
        if (isfinite(s->x[i]) && isfinite(s->y[i]))
            text_addf(out, "<circle class=\"spot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n", x_of(&f, (double)s->x[i]),
                      y_of(&f, (double)s->y[i]));
    text_add(out, "</svg>\n");
}

#include "lora/report.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/yaml.h"
#include "lora/report_log.h"

static const char style[] =
    ":root{color-scheme:light dark;--page:#f6f5f2;--card:#fff;--ink:#23262b;--soft:#6b7078;--rule:#e4e2dc;"
    "--line:#2f6f4f;--mark:#c2592a}\n"
    "@media(prefers-color-scheme:dark){:root{--page:#16181b;--card:#1f2226;--ink:#e8e6e1;--soft:#9a9ea6;--rule:#33373d;"
    "--line:#6fc096;--mark:#f0915f}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",\"DejaVu "
    "Sans\",sans-serif}\n"
    "main{max-width:1180px;margin:0 auto;padding:36px 24px 64px}\n"
    "h1{font-size:26px;margin:0 0 20px;font-weight:650}\n"
    "h2{font-size:17px;margin:36px 0 12px;font-weight:650}\n"
    ".tiles{display:flex;flex-wrap:wrap;gap:12px;margin-bottom:16px}\n"
    ".tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px}\n"
    ".tile{padding:10px 16px;min-width:118px;flex:1}\n"
    ".tile b{display:block;font-size:20px;font-weight:600;white-space:nowrap;font-variant-numeric:tabular-nums}\n"
    ".tile span,th,figcaption{color:var(--soft);font-size:13px}\n"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:16px}\n"
    ".card{padding:14px}\n"
    "svg{display:block;width:100%;height:auto}\n"
    "svg text{fill:var(--ink);font-family:inherit}\n"
    "svg .title{font-size:15px;font-weight:600}\n"
    "svg .tick{font-size:12px;font-weight:400;fill:var(--soft)}\n"
    "svg .grid{stroke:var(--rule)}\n"
    "svg polyline{fill:none;stroke:var(--line);stroke-linejoin:round}\n"
    "svg .line{stroke:var(--line);stroke-width:2}\n"
    "svg .faint{stroke-width:1;opacity:.35}\n"
    "svg .dot{fill:var(--line)}\n"
    ".note{margin:0 0 0 1rem;font-size:.8rem;opacity:.7}\n"
    "svg .spot{fill:var(--line);opacity:.5}\n"
    "svg line.faint{stroke:currentColor}\n"
    "svg .mark{fill:var(--mark)}\n"
    "table{border-collapse:collapse;width:100%;font-size:14px}\n"
    "th{text-align:left;font-weight:400;white-space:nowrap;width:1%;padding:4px 28px 4px 4px;vertical-align:top}\n"
    "td{padding:4px;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}\n"
    "tr+tr>*{border-top:1px solid var(--rule)}\n"
    ".sample{margin-bottom:12px}\n"
    ".pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:14px;margin-top:10px}\n"
    "pre{margin:2px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,\"DejaVu Sans "
    "Mono\",monospace}\n"
    "figure{margin:0}\n";

/* HTML has no place for these, not even escaped. */
static bool is_barred(unsigned rune) {
    return (rune < 0x20 && rune != '\t' && rune != '\n' && rune != '\r') || (rune >= 0x7F && rune < 0xA0) ||
           (rune & 0xFFFE) == 0xFFFE || (rune >= 0xFDD0 && rune < 0xFDF0);
}

void html_escape(struct text *out, const char *s) {
    for (size_t left = strlen(s); left;) {
        size_t good = utf8_valid_prefix(s, left < 4 ? left : 4); // one character is within four bytes
        int n = 1;
        unsigned rune = good ? utf8_rune(s, &n) : 0;
        if (rune == '&')
            text_add(out, "&amp;");
        else if (rune == '<')
            text_add(out, "&lt;");
        else if (rune == '>')
            text_add(out, "&gt;");
        else if (rune == '"')
            text_add(out, "&quot;");
        else if (rune == '\'')
            text_add(out, "&#39;");
        else
            text_add_rune(out, is_barred(rune) ? 0xFFFD : rune);
        s += n, left -= (size_t)n;
    }
}

static void add_tile(struct text *out, const char *name, double value, const char *unit) {
    text_add(out, "<div class=\"tile\"><b>");
    chart_number(out, value);
    text_addf(out, "%s</b><span>%s</span></div>\n", unit, name);
}

static double last(const struct series *s) { return s->points[s->count - 1].value; }

/* Where a series counts up over the whole run its last value is the total, else the sum of the lines is. */
static double total(const struct series *s) {
    double sum = 0;
    bool rises = s->count > 1;
    for (size_t i = 0; i < s->count; i++) {
        sum += s->points[i].value;
        if (i && s->points[i].value <= s->points[i - 1].value) rises = false;
    }
    return rises ? last(s) : sum;
}

static double mean_of(const struct series *s, size_t from) {
    double sum = 0;
    for (size_t i = from; i < s->count; i++) sum += s->points[i].value;
    return sum / (double)(s->count - from);
}

static void add_tiles(struct text *out, const struct run_log *l) {
    const struct series *loss = &l->column[LOG_LOSS], *eval = &l->column[LOG_EVAL_LOSS];
    const struct series *speed = &l->column[LOG_TOKENS_PER_SECOND], *memory = &l->column[LOG_MEMORY];
    text_add(out, "<div class=\"tiles\">\n");
    if (loss->count) {
        add_tile(out, "steps", loss->points[loss->count - 1].step, "");
        if (l->column[LOG_EPOCH].count) add_tile(out, "epochs", last(&l->column[LOG_EPOCH]), "");
        add_tile(out, "first loss", loss->points[0].value, "");
        // the mean of the last tenth: one step alone is noise
        add_tile(out, "last loss", mean_of(loss, loss->count - (loss->count + 9) / 10), "");
    }
    double best = INFINITY, peak = 0;
    for (size_t i = 0; i < eval->count; i++) best = fmin(best, eval->points[i].value);
    for (size_t i = 0; i < memory->count; i++) peak = fmax(peak, memory->points[i].value);
    if (eval->count) add_tile(out, "best eval loss", best, "");
    if (l->column[LOG_TOKENS].count) add_tile(out, "tokens", total(&l->column[LOG_TOKENS]), "");
    if (speed->count) add_tile(out, "tokens/s", mean_of(speed, 0), "");
    if (memory->count) add_tile(out, "peak memory", round(peak / (1 << 30) * 100) / 100, " GiB");
    text_add(out, "</div>\n");
}

static void add_charts(struct text *out, const struct run_log *l) {
    const struct chart charts[] = {
        {"Loss", "", "training", &l->column[LOG_LOSS], &l->column[LOG_EVAL_LOSS], "evaluation", true},
        {"Gradient norm", "before clipping", "", &l->column[LOG_GRAD_NORM], NULL, "", true},
        {"Learning rate", "", "", &l->column[LOG_LEARNING_RATE], NULL, "", false},
        {"Speed", "tokens per second", "", &l->column[LOG_TOKENS_PER_SECOND], NULL, "", true},
    };
    text_add(out, "<div class=\"charts\">\n");
    for (size_t i = 0; i < sizeof charts / sizeof *charts; i++) {
        if (charts[i].values->count == 0) continue;
        text_add(out, "<div class=\"card\">\n");
        chart_draw(out, &charts[i]);
        text_add(out, "</div>\n");
    }
    text_add(out, "</div>\n");
}

/* What a regression head gave over what was wanted, output by output. */
static void add_outcome(struct text *out, const struct report_input *in) {
    const struct outcome *o = in->outcome;
    if (!o || !o->rows || o->problem != PROBLEM_REGRESSION) return;
    text_add(out, "<h2>Held-out rows</h2>\n<div class=\"charts\">\n");
    for (int64_t i = 0; i < o->outputs; i++) {
        char *plain = mem_format("output %lld", (long long)i);
        struct scatter s = {.title = in->output_names ? in->output_names[i] : plain,
                            .x_name = "given",
                            .y_name = "predicted",
                            .x = o->given + i,
                            .y = o->predicted + i,
                            .count = (size_t)o->rows,
                            .step = (size_t)o->outputs};
        text_add(out, "<div class=\"card\">\n");
        chart_scatter(out, &s);
        text_addf(out, "<p class=\"note\">%s %.4f, mean squared error %.4f</p></div>\n", metric_name(o->problem, 0),
                  metric_value(o, 0, i), metric_value(o, metric_find(o->problem, "mse"), i));
        free(plain);
    }
    text_add(out, "</div>\n");
}

static void add_settings(struct text *out, const cJSON *config) {
    text_add(out, "<h2>Settings</h2>\n<div class=\"card\"><table>\n");
    for (const cJSON *c = config->child; c; c = c->next) {
        char *value = cJSON_IsString(c) ? mem_text(c->valuestring) : json_text(c, true);
        text_add(out, "<tr><th scope=\"row\">");
        html_escape(out, c->string ? c->string : "");
        text_add(out, "</th><td>");
        html_escape(out, value);
        text_add(out, "</td></tr>\n");
        free(value);
    }
    text_add(out, "</table></div>\n");
}

static void add_figure(struct text *out, const char *caption, const char *s) {
    text_addf(out, "<figure><figcaption>%s</figcaption><pre>", caption);
    html_escape(out, s);
    text_add(out, "</pre></figure>\n");
}

static void add_samples(struct text *out, const struct report_input *in) {
    if (in->sample_count == 0) return;
    text_add(out, "<h2>Samples</h2>\n");
    for (size_t i = 0; i < in->sample_count; i++) {
        const struct report_sample *s = &in->samples[i];
        text_add(out, "<div class=\"card sample\">\n");
        add_figure(out, "prompt", s->prompt);
        text_add(out, "<div class=\"pair\">\n");
        if (s->before) add_figure(out, "before training", s->before);
        add_figure(out, "after training", s->after);
        text_add(out, "</div></div>\n");
    }
}

static void add_page(struct text *out, const struct report_input *in, const struct run_log *l, const cJSON *config) {
    const char *title = in->title ? in->title : "Training run";
    text_add(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                  "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>");
    html_escape(out, title);
    text_addf(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n<h1>", style);
    html_escape(out, title);
    text_add(out, "</h1>\n");
    add_tiles(out, l);
    add_charts(out, l);
    add_outcome(out, in);
    add_samples(out, in);
    if (config && config->child) add_settings(out, config);
    text_add(out, "</main>\n</body>\n</html>\n");
}

enum status report_write(const struct report_input *in, const char *path, struct err *e) {
    struct run_log l;
    struct text page = {0};
    cJSON *config = NULL;
    if (run_log_read(&l, in->log_path, e) != ST_OK) return e->code;
    if (in->config_path && !(config = yaml_read(in->config_path, e))) goto done;
    add_page(&page, in, &l, config);
    file_write(path, page.data, page.len, e);
done:
    text_free(&page);
    cJSON_Delete(config);
    run_log_free(&l);
    return e->code;
}

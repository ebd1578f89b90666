/* graft diff: the low-rank adapter that is nearest to what a training made of a model. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/folder.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "cli/verbs.h"
#include "lora/diff.h"

static const struct flag diff_flags[] = {
    {"rank", FLAG_INT, "16", NULL, "rank of the adapter"},
    {"out", FLAG_TEXT, NULL, NULL, "folder to write; must not exist"},
};

static void print_json(const struct diff_report *r, const char *out, int64_t rank, double seconds) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "out", out);
    cJSON_AddNumberToObject(o, "rank", (double)rank);
    cJSON_AddNumberToObject(o, "size", r->size);
    cJSON_AddNumberToObject(o, "share", r->share);
    cJSON_AddNumberToObject(o, "whole_tensors", (double)r->whole);
    cJSON *list = cJSON_AddArrayToObject(o, "modules");
    for (int64_t i = 0; i < r->count; i++) {
        cJSON *m = cJSON_CreateObject();
        cJSON_AddStringToObject(m, "path", r->modules[i].path);
        cJSON_AddNumberToObject(m, "size", r->modules[i].size);
        cJSON_AddNumberToObject(m, "share", r->modules[i].share);
        cJSON_AddItemToArray(list, m);
    }
    cJSON_AddNumberToObject(o, "seconds", seconds);
    out_json(o);
    cJSON_Delete(o);
}

static void print(const struct diff_report *r, const char *out, int64_t rank, double seconds) {
    out_text("%-52s %12s %10s\n", "module", "|difference|", "held");
    for (int64_t i = 0; i < r->count; i++)
        out_text("%-52s %12.5g %9.4f%%\n", r->modules[i].path, r->modules[i].size, 100 * r->modules[i].share);
    out_text("%s: rank %lld holds %.4f%% of the difference's energy in %lld linear layers, in %.1f s\n", out,
             (long long)rank, 100 * r->share, (long long)r->count, seconds);
    if (r->whole) out_text("  %lld other tensors are kept whole (modules_to_save, biases)\n", (long long)r->whole);
}

static enum status diff(const struct flags *f, struct diff_options *o, struct err *e) {
    const char *out = flag_text(f, "out");
    struct folder_out folder = {0};
    struct diff_report r = {0};
    struct progress p = progress_new(f, "decomposing", 0);
    o->watch = progress_watch(&p);
    if (folder_open(&folder, out, e) == ST_OK && diff_write(o, folder.beside, &r, e) == ST_OK)
        folder_commit(&folder, e);
    progress_end(&p);
    if (e->code == ST_OK && flag_bool(f, "json"))
        print_json(&r, out, o->rank, clock_now() - p.began);
    else if (e->code == ST_OK)
        print(&r, out, o->rank, clock_now() - p.began);
    folder_abandon(&folder);
    diff_report_free(&r);
    return e->code;
}

static int run_diff(const struct flags *f, struct err *e) {
    struct diff_options o = {.rank = flag_int(f, "rank"), .base_name = f->words[0]};
    char *base = NULL, *tuned = NULL;
    if (!flag_text(f, "out"))
        return err_set(e, ST_USAGE, "--out is missing; wanted: graft diff BASE TUNED --rank R --out DIR");
    if (o.rank < 1) return err_set(e, ST_USAGE, "--rank is %lld, wanted 1 or more", (long long)o.rank);
    stop_catch();
    base = model_dir(f->words[0], e);
    if (base) tuned = model_dir(f->words[1], e);
    if (tuned) o.be = session_host(f, "the decomposition", e);
    o.base = base, o.tuned = tuned;
    if (o.be) diff(f, &o, e);
    backend_free(o.be);
    free(base), free(tuned);
    return e->code;
}

const struct verb verb_diff = {
    .name = "diff",
    .arguments = "BASE TUNED --rank R --out DIR",
    .about = "the low-rank adapter nearest to the difference of two models",
    .flags = diff_flags,
    .flag_count = sizeof diff_flags / sizeof *diff_flags,
    .min_words = 2,
    .max_words = 2,
    .run = run_diff,
};

/* graft export: a model, its vision part, or an adapter as a GGUF file for llama.cpp and what is built on it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "cli/verbs.h"
#include "lora/export.h"

static const struct flag export_flags[] = {
    {"out", FLAG_TEXT, NULL, NULL, "file to write; must not exist"},
    {"adapter", FLAG_TEXT, NULL, NULL, "PEFT folder: merged in, or with --part adapter written alone"},
    {"part", FLAG_TEXT, "model", "model|vision|adapter", "what is written; vision: tower and projector (mmproj)"},
    {"type", FLAG_TEXT, NULL, "f32|f16|bf16|q8_0|q4_0|q4_k", "of matrices; unset: f16, an adapter f32"},
    {"verify", FLAG_TEXT, "weights", "none|weights", "what is checked before the file gets its name"},
    {"any_base", FLAG_BOOL, "false", NULL, "takes an adapter that was trained on other weights"},
    {"modelfile", FLAG_BOOL, "true", NULL, "writes Ollama's Modelfile beside it"},
};

static enum export_part part_of(const char *name) {
    if (strcmp(name, "vision") == 0) return EXPORT_VISION;
    return strcmp(name, "adapter") == 0 ? EXPORT_ADAPTER : EXPORT_MODEL;
}

/* FILE.gguf as FILE.Modelfile; the caller frees it. */
static char *modelfile_path(const char *gguf) {
    size_t n = strlen(gguf);
    char *stem = mem_text_n(gguf, text_ends(gguf, ".gguf") ? n - 5 : n), *path = mem_format("%s.Modelfile", stem);
    free(stem);
    return path;
}

static void print_json(const struct export_report *r, const char *out, const char *type, double seconds) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "file", out);
    cJSON_AddStringToObject(o, "architecture", r->architecture);
    cJSON_AddStringToObject(o, "type", type);
    cJSON_AddNumberToObject(o, "tensors", (double)r->tensors);
    cJSON_AddNumberToObject(o, "bytes", (double)r->bytes);
    cJSON_AddNumberToObject(o, "matrices_of_other_type", (double)r->other_type);
    if (isfinite(r->error)) cJSON_AddNumberToObject(o, "relative_error", r->error);
    if (*r->note) cJSON_AddStringToObject(o, "note", r->note);
    cJSON_AddNumberToObject(o, "seconds", seconds);
    out_json(o);
    cJSON_Delete(o);
}

static void print(const struct export_report *r, const char *out, const char *type, double seconds) {
    char bytes[OUT_NUMBER];
    out_text("%s: %s, %lld tensors in %s, %s in %.1f s\n", out, r->architecture, (long long)r->tensors, type,
             out_bytes_text(bytes, r->bytes), seconds);
    if (r->other_type)
        out_text("  %lld matrices have another type: their rows are no whole blocks of %s, or they are the output\n",
                 (long long)r->other_type, type);
    if (isfinite(r->error)) out_text("  read again: rounding is %.2g of the numbers' size\n", r->error);
}

static enum status write_modelfile(const struct flags *f, const char *model, const char *out, enum export_part part,
                                   struct err *e) {
    const struct modelfile m = {.model = model, .gguf = out, .part = part};
    char *path = modelfile_path(out);
    if (flag_bool(f, "modelfile")) modelfile_write(&m, path, e);
    free(path);
    return e->code;
}

static enum status export_model(const struct flags *f, struct export_options *o, struct err *e) {
    const char *out = flag_text(f, "out"), *type = ggml_name(o->type);
    struct progress p = progress_new(f, "exporting", 0);
    struct export_report r;
    o->watch = progress_watch(&p);
    export_gguf(o, out, &r, e);
    progress_end(&p);
    if (e->code != ST_OK || write_modelfile(f, o->model, out, o->part, e) != ST_OK) return e->code;
    double seconds = clock_now() - p.began;
    if (*r.note) out_note(f, "note: %s", r.note);
    if (flag_bool(f, "json"))
        print_json(&r, out, type, seconds);
    else
        print(&r, out, type, seconds);
    return ST_OK;
}

static int run_export(const struct flags *f, struct err *e) {
    const char *adapter = flag_text(f, "adapter"), *type = flag_text(f, "type");
    const struct merge_adapter one = {.dir = adapter, .weight = 1};
    struct export_options o = {
        .part = part_of(flag_text(f, "part")), .adapters = &one, .adapter_count = adapter != NULL};
    if (!flag_text(f, "out"))
        return err_set(e, ST_USAGE, "--out is missing; wanted: graft export MODEL --out FILE.gguf");
    if (o.part == EXPORT_ADAPTER && !adapter)
        return err_set(e, ST_USAGE, "--part adapter wants --adapter ADAPTER, and its base as MODEL");
    o.type = o.part == EXPORT_ADAPTER ? GGML_F32 : GGML_F16;
    if (type) ggml_find(&o.type, type);
    o.check = strcmp(flag_text(f, "verify"), "weights") == 0;
    o.any_base = flag_bool(f, "any_base");
    stop_catch();
    char *model = model_dir(f->words[0], e);
    o.model = model;
    if (model) o.be = session_host(f, "exporting", e);
    if (o.be) export_model(f, &o, e);
    backend_free(o.be);
    free(model);
    return e->code;
}

const struct verb verb_export = {
    .name = "export",
    .arguments = "MODEL --out FILE.gguf",
    .about = "a model, its vision part or an adapter as a GGUF file for llama.cpp",
    .flags = export_flags,
    .flag_count = sizeof export_flags / sizeof *export_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_export,
};

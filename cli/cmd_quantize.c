/* graft quantize: a model's linear layers in 4 bits, as a checkpoint that transformers loads. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/stop.h"
#include "cli/verbs.h"
#include "quant/checkpoint.h"

static const struct flag quantize_flags[] = {
    {"out", FLAG_TEXT, NULL, NULL, "folder to write; must not exist"},
    {"quant_type", FLAG_TEXT, "nf4", "nf4|fp4", "the 4-bit code"},
    {"double_quant", FLAG_BOOL, "false", NULL, "scales in 8 bits too"},
    {"blocksize", FLAG_INT, "64", NULL, "weights that share a scale: 32, 64, 128, ... 4096"},
    {"skip", FLAG_TEXT, NULL, NULL, "modules to leave as they are (regular expression)"},
    {"max_shard_size", FLAG_TEXT, "5GB", NULL, "largest file"},
};

static void print_report(const struct flags *f, const struct checkpoint_report *r, double seconds) {
    double speed = seconds > 0 ? (double)r->bytes_in / seconds : 0;
    if (flag_bool(f, "json")) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "tensors", (double)r->tensors);
        cJSON_AddNumberToObject(o, "quantised", (double)r->quantised);
        cJSON_AddNumberToObject(o, "bytes_in", (double)r->bytes_in);
        cJSON_AddNumberToObject(o, "bytes_out", (double)r->bytes_out);
        cJSON_AddNumberToObject(o, "files", (double)r->shards);
        cJSON_AddNumberToObject(o, "seconds", seconds);
        out_json(o);
        cJSON_Delete(o);
        return;
    }
    char before[OUT_NUMBER], after[OUT_NUMBER];
    out_text("%s: %lld of %lld tensors in %s, %s -> %s in %.1f s (%.2f GB/s)\n", flag_text(f, "out"),
             (long long)r->quantised, (long long)r->tensors, flag_text(f, "quant_type"),
             out_bytes_text(before, r->bytes_in), out_bytes_text(after, r->bytes_out), seconds, speed / 1e9);
}

static enum status quantize(const struct flags *f, struct checkpoint_options *o, struct err *e) {
    char *source = model_dir(f->words[0], e);
    struct progress p = progress_new(f, "quantising", 0);
    struct checkpoint_report report = {0};
    struct backend *be = source ? session_host(f, "quantising", e) : NULL;
    o->watch = progress_watch(&p);
    if (be) {
        o->threads = be->threads;
        checkpoint_quantize(source, flag_text(f, "out"), o, &report, e);
    }
    progress_end(&p);
    backend_free(be);
    free(source);
    if (e->code != ST_OK) return e->code;
    if (o->blocksize != 64)
        out_note(f, "note: transformers reads block size %d from the file, but its BitsAndBytesConfig can only make 64",
                 o->blocksize);
    print_report(f, &report, clock_now() - p.began);
    return ST_OK;
}

static int run_quantize(const struct flags *f, struct err *e) {
    int64_t blocksize = flag_int(f, "blocksize");
    struct checkpoint_options o = checkpoint_defaults();
    o.type = strcmp(flag_text(f, "quant_type"), "fp4") == 0 ? FP4 : NF4;
    o.double_quant = flag_bool(f, "double_quant");
    o.skip = flag_text(f, "skip");
    if (!flag_text(f, "out")) return err_set(e, ST_USAGE, "--out is missing; wanted: graft quantize MODEL --out DIR");
    if (blocksize < 32 || blocksize > 4096 || blocksize & (blocksize - 1))
        return err_set(e, ST_USAGE, "--blocksize is %lld, wanted a power of two from 32 to 4096", (long long)blocksize);
    o.blocksize = (int)blocksize;
    if (bytes_parse("max_shard_size", flag_text(f, "max_shard_size"), &o.max_shard_size, e) != ST_OK) return e->code;
    stop_catch();
    return quantize(f, &o, e);
}

const struct verb verb_quantize = {
    .name = "quantize",
    .arguments = "MODEL --out DIR",
    .about = "writes a bitsandbytes 4-bit checkpoint that transformers loads",
    .flags = quantize_flags,
    .flag_count = sizeof quantize_flags / sizeof *quantize_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_quantize,
};

#include "lora/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/host_memory.h"
#include "base/memory.h"
#include "base/text.h"

/* Of the host, now. */
static size_t memory_available(void) {
    struct host_memory m;
    host_memory_read(&m, "");
    return m.total ? (size_t)m.available : SIZE_MAX / 2;
}

static size_t measure(struct memory_plan *p, struct model *m, const struct settings *s, enum dtype act) {
    struct workspace_options o = {.limits = p->limits,
                                  .train = true,
                                  .act = act,
                                  .keep = p->keep,
                                  .neftune_alpha = (float)settings_number(s, "neftune_noise_alpha")};
    p->workspace = workspace_measure(m, &o, &p->host);
    p->total = p->weights + p->adapter + p->workspace + p->evaluation + p->own;
    return p->total;
}

static void keep_lowest(struct memory_plan *p, int64_t layers, int64_t lowest, enum keep less, enum keep more) {
    for (int64_t i = 0; i < layers; i++) p->keep[i] = i < lowest ? less : more;
}

/* The least number of layers, from the lowest up, that have to be kept as `less` says for all to fit, the others as
 * `more`; false: all of them as `less` are too much. */
static bool choose(struct memory_plan *p, struct model *m, const struct settings *s, enum dtype act, enum keep more,
                   enum keep less) {
    int64_t layers = m->config.text.layers, low = 1, high = layers;
    keep_lowest(p, layers, 0, less, more);
    if (measure(p, m, s, act) <= p->limit) return true;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        keep_lowest(p, layers, middle, less, more);
        if (measure(p, m, s, act) <= p->limit)
            high = middle;
        else
            low = middle + 1;
    }
    keep_lowest(p, layers, high, less, more);
    return measure(p, m, s, act) <= p->limit;
}

static enum status too_much(const struct memory_plan *p, const struct model *m, const struct settings *s,
                            struct err *e) {
    bool dense = settings_is(s, "quantization", "none") && !m->config.quantization_config;
    const char *advice = dense && p->weights > p->total / 2 ? "set quantization: nf4"
                         : settings_is(s, "gradient_checkpointing", "auto")
                             ? "lower per_device_train_batch_size or max_seq_len"
                             : "lower per_device_train_batch_size or max_seq_len, or set gradient_checkpointing: auto";
    return err_set(e, ST_FAIL,
                   "the run needs %.2f GB (weights %.2f, adapter %.2f, activations %.2f), the limit is %.2f GB; %s",
                   (double)p->total / 1e9, (double)p->weights / 1e9, (double)p->adapter / 1e9,
                   (double)(p->workspace + p->evaluation) / 1e9, (double)p->limit / 1e9, advice);
}

static enum status too_much_on_host(const struct memory_plan *p, struct err *e) {
    return err_set(e, ST_FAIL,
                   "the inputs of %lld layers take %.2f GB of the host's memory, of which %.2f GB are free; lower "
                   "per_device_train_batch_size or max_seq_len, or raise memory_limit",
                   (long long)p->kept_host, (double)p->host / 1e9, (double)memory_available() / 1e9);
}

enum status memory_plan_make(struct memory_plan *p, struct model *m, const struct adapter *a, const struct settings *s,
                             const struct batch_limits *limits, size_t evaluation, enum dtype act, struct err *e) {
    int64_t layers = m->config.text.layers;
    struct backend *be = m->be;
    *p = (struct memory_plan){.weights = be->host_memory ? model_weight_bytes(m) : m->memory_bytes,
                              .adapter = a->memory_bytes,
                              .table = m->host_bytes,
                              .evaluation = evaluation,
                              .own = be->own_bytes,
                              .device = be->host_memory ? NULL : be->name,
                              .limits = *limits};
    p->keep = mem_alloc((size_t)layers * sizeof *p->keep);
    int64_t limit = be->host_memory ? (int64_t)(memory_available() / 10 * 9)
                                    : (int64_t)(p->weights + p->adapter + p->own + backend_memory_free(be) / 50 * 49);
    const char *asked = settings_text(s, "memory_limit");
    if (asked && bytes_parse("memory_limit", asked, &limit, e) != ST_OK) return e->code;
    p->limit = (size_t)limit;
    const char *kind = settings_text(s, "gradient_checkpointing");
    if (strcmp(kind, "auto") == 0) {
        if (!choose(p, m, s, act, KEEP_SMART, KEEP_INPUT) && !be->host_memory)
            choose(p, m, s, act, KEEP_INPUT, KEEP_HOST);
    } else {
        enum keep all = strcmp(kind, "none") == 0 ? KEEP_ALL : strcmp(kind, "smart") == 0 ? KEEP_SMART : KEEP_INPUT;
        keep_lowest(p, layers, layers, all, all);
        measure(p, m, s, act);
    }
    for (int64_t i = 0; i < layers; i++) {
        p->kept_all += p->keep[i] == KEEP_ALL;
        p->kept_smart += p->keep[i] == KEEP_SMART;
        p->kept_input += p->keep[i] == KEEP_INPUT;
        p->kept_host += p->keep[i] == KEEP_HOST;
    }
    if (p->total > p->limit) return too_much(p, m, s, e);
    return p->host <= memory_available() / 10 * 9 ? ST_OK : too_much_on_host(p, e);
}

void memory_plan_free(struct memory_plan *p) {
    free(p->keep);
    *p = (struct memory_plan){0};
}

static void line(struct text *out, const char *part, size_t bytes) {
    text_addf(out, "  %-34s %10.1f MB\n", part, (double)bytes / 1e6);
}

void memory_plan_text(const struct memory_plan *p, struct text *out) {
    text_addf(out, "memory%s%s\n", p->device ? " of " : "", p->device ? p->device : "");
    line(out, "frozen weights", p->weights);
    line(out, "trained values, gradients, moments", p->adapter);
    line(out, "activations and scratch", p->workspace);
    if (p->evaluation) line(out, "evaluation", p->evaluation);
    if (p->own) line(out, "the backend's own", p->own);
    line(out, "together", p->total);
    if (p->table) line(out, "on the host: the embedding", p->table);
    if (p->host) line(out, "on the host: inputs of layers", p->host);
    if (p->device) text_addf(out, "  beside this the driver holds its context, some hundred MB\n");
    text_addf(out, "  largest micro-batch: %lld rows, %lld positions, %lld scored", (long long)p->limits.rows,
              (long long)p->limits.N, (long long)p->limits.scored);
    if (p->limits.images) text_addf(out, ", %lld pictures", (long long)p->limits.images);
    text_addf(out, "\n  layers that keep everything %lld, all but the cheap %lld, their input only %lld",
              (long long)p->kept_all, (long long)p->kept_smart, (long long)p->kept_input);
    if (p->kept_host) text_addf(out, ", their input on the host %lld", (long long)p->kept_host);
    text_add(out, "\n");
}

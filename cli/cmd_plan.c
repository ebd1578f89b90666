/* graft plan: what a training would hold in memory and how many steps it would take. Runs nothing, writes nothing. */
#include "base/text.h"
#include "cli/out.h"
#include "cli/session.h"
#include "cli/verbs.h"

static void print_json(const struct session *s) {
    const struct trainer *t = s->trainer;
    const struct memory_plan *p = &t->plan;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "weights", (double)p->weights);
    cJSON_AddNumberToObject(o, "adapter", (double)p->adapter);
    cJSON_AddNumberToObject(o, "activations", (double)p->workspace);
    cJSON_AddNumberToObject(o, "evaluation", (double)p->evaluation);
    cJSON_AddNumberToObject(o, "backend", (double)p->own);
    cJSON_AddNumberToObject(o, "total", (double)p->total);
    cJSON_AddNumberToObject(o, "limit", (double)p->limit);
    cJSON_AddNumberToObject(o, "table", (double)p->table);
    cJSON_AddNumberToObject(o, "host", (double)p->host);
    cJSON_AddNumberToObject(o, "layers_kept_all", (double)p->kept_all);
    cJSON_AddNumberToObject(o, "layers_kept_smart", (double)p->kept_smart);
    cJSON_AddNumberToObject(o, "layers_kept_input", (double)p->kept_input);
    cJSON_AddNumberToObject(o, "layers_kept_host", (double)p->kept_host);
    cJSON_AddNumberToObject(o, "trained_parameters", (double)adapter_param_total(s->adapter));
    cJSON_AddNumberToObject(o, "rows", (double)dataset_rows(s->train));
    cJSON_AddNumberToObject(o, "steps", (double)t->steps);
    cJSON_AddNumberToObject(o, "positions_per_step",
                            (double)dataset_tokens(s->train) / (double)dataset_rows(s->train) *
                                (double)(t->rows * t->accum));
    out_json(o);
    cJSON_Delete(o);
}

static void print_text(const struct session *s) {
    const struct trainer *t = s->trainer;
    struct text text = {0};
    char trained[OUT_NUMBER];
    double row = (double)dataset_tokens(s->train) / (double)dataset_rows(s->train);
    memory_plan_text(&t->plan, &text);
    out_text("%s", text_str(&text));
    out_text("trained\n  %s numbers in %lld tensors\n", out_count_text(trained, adapter_param_total(s->adapter)),
             (long long)s->adapter->count);
    out_text("steps\n  %lld, each of %lld rows, about %.0f positions\n", (long long)t->steps,
             (long long)(t->rows * t->accum), row * (double)(t->rows * t->accum));
    text_free(&text);
}

static int run_plan(const struct flags *f, struct err *e) {
    struct session s = {0};
    if (session_open_training(&s, f, NULL, e) == ST_OK) {
        if (flag_bool(f, "json"))
            print_json(&s);
        else
            print_text(&s);
    }
    session_close(&s);
    return e->code;
}

const struct verb verb_plan = {
    .name = "plan",
    .arguments = "CONFIG.yaml [--key value ...]",
    .about = "the memory and the steps that a training would take; runs nothing",
    .flags = training_keys,
    .flag_count = TRAINING_KEYS,
    .min_words = 1,
    .max_words = 1,
    .run = run_plan,
};

#include "cli/merge_report.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "cli/out.h"
#include "lora/model_card.h"

static void add_outputs(cJSON *o, const char *name, const struct outputs_check *c) {
    cJSON *x = cJSON_AddObjectToObject(o, name);
    cJSON_AddNumberToObject(x, "positions", (double)c->positions);
    cJSON_AddNumberToObject(x, "max_difference", c->max);
    cJSON_AddNumberToObject(x, "mean_difference", c->mean);
    cJSON_AddNumberToObject(x, "rms_difference", c->rms);
    cJSON_AddNumberToObject(x, "logit_rms", c->logit_rms);
    cJSON_AddNumberToObject(x, "kl_mean", c->kl_mean);
    cJSON_AddNumberToObject(x, "kl_max", c->kl_max);
    cJSON_AddNumberToObject(x, "top1_agreement", c->top1);
    if (c->allowed > 0) cJSON_AddNumberToObject(x, "rms_allowed", c->allowed);
}

static void add_weights(cJSON *o, const struct weights_check *c) {
    cJSON *x = cJSON_AddObjectToObject(o, "weights");
    cJSON_AddNumberToObject(x, "changed_as_expected", (double)c->changed);
    cJSON_AddNumberToObject(x, "equal_to_base", (double)c->equal);
    cJSON_AddNumberToObject(x, "worst_error_over_allowed", c->worst);
    if (c->worst_name) cJSON_AddStringToObject(x, "worst_tensor", c->worst_name);
}

cJSON *merge_report_json(const struct merge_report *r) {
    cJSON *o = cJSON_CreateObject(), *list;
    cJSON_AddStringToObject(o, "model", r->model);
    if (r->original) cJSON_AddStringToObject(o, "original", r->original);
    list = cJSON_AddArrayToObject(o, "adapters");
    for (int64_t i = 0; i < r->adapter_count; i++) {
        cJSON *a = cJSON_CreateObject();
        cJSON_AddStringToObject(a, "adapter", r->adapters[i].dir);
        cJSON_AddNumberToObject(a, "weight", r->adapters[i].weight);
        cJSON_AddItemToArray(list, a);
    }
    cJSON_AddStringToObject(o, "base", r->base);
    cJSON_AddStringToObject(o, "dtype", r->dtype ? r->dtype : "as stored");
    cJSON_AddNumberToObject(o, "tensors", (double)r->counts.tensors);
    cJSON_AddNumberToObject(o, "changed", (double)r->counts.changed);
    cJSON_AddBoolToObject(o, "untied", r->counts.untied);
    cJSON_AddNumberToObject(o, "bytes_in", (double)r->counts.bytes_in);
    cJSON_AddNumberToObject(o, "bytes_out", (double)(r->quantised ? r->checkpoint.bytes_out : r->counts.bytes_out));
    cJSON_AddNumberToObject(o, "seconds", r->seconds);
    if (r->checked_weights) add_weights(o, &r->weights);
    if (r->checked_outputs) add_outputs(o, "outputs", &r->outputs);
    if (r->quantised) cJSON_AddStringToObject(o, "quant_type", r->quant_type);
    if (r->measured_cost) add_outputs(o, "quantization_cost", &r->cost);
    return o;
}

static void print_outputs(const char *what, const struct outputs_check *c) {
    out_text(
        "%s: logits differ by %.3g at most, %.3g on average (they spread by %.3g); KL %.3g, top-1 agreement %.4g%% of "
        "%lld positions\n",
        what, c->max, c->mean, c->logit_rms, c->kl_mean, 100 * c->top1, (long long)c->positions);
}

void merge_report_print(const struct merge_report *r) {
    char bytes[OUT_NUMBER];
    int64_t size = r->quantised ? r->checkpoint.bytes_out : r->counts.bytes_out;
    out_text("%s: %lld of %lld tensors changed, %s, %.1f s\n", r->out, (long long)r->counts.changed,
             (long long)r->counts.tensors, out_bytes_text(bytes, size), r->seconds);
    if (r->counts.untied) out_text("the output layer is no longer tied to the embedding; both were written\n");
    if (r->checked_weights)
        out_text(
            "weights: %lld changed as expected, %lld equal to the base; the largest error is %.2g of what rounding "
            "may cost\n",
            (long long)r->weights.changed, (long long)r->weights.equal, r->weights.worst);
    if (r->checked_outputs) print_outputs("merged against base + adapter", &r->outputs);
    if (r->measured_cost) print_outputs("cost of the rounding to 4 bits", &r->cost);
}

/* --- the model card ---------------------------------------------------------------------------------------------- */

static enum status write_card(const struct merge_report *r, const char *dir, struct err *e) {
    char max[32], mean[32], kl[32], top1[32];
    snprintf(max, sizeof max, "%.3g", r->outputs.max), snprintf(mean, sizeof mean, "%.3g", r->outputs.mean);
    snprintf(kl, sizeof kl, "%.3g", r->outputs.kl_mean), snprintf(top1, sizeof top1, "%.4g%%", 100 * r->outputs.top1);
    const struct card_row results[] = {{"largest difference of a logit from base + adapter", max},
                                       {"mean difference", mean},
                                       {"KL divergence", kl},
                                       {"top-1 agreement", top1}};
    const char *names = "";
    char *list = mem_text(names), *summary;
    for (int64_t i = 0; i < r->adapter_count; i++) {
        char *more =
            mem_format("%s%s%s (weight %g)", list, i ? ", " : "", path_name(r->adapters[i].dir), r->adapters[i].weight);
        free(list);
        list = more;
    }
    summary = mem_format("These low-rank adapters were merged into the model's weights: %s.", list);
    const struct model_card card = {.name = path_name(r->out),
                                    .base_model = r->original ? r->original : r->model,
                                    .method = "merged adapter",
                                    .pipeline_tag = "text-generation",
                                    .summary = summary,
                                    .whole = true,
                                    .results = results,
                                    .result_count = r->checked_outputs ? 4 : 0};
    char *path = path_join(dir, "README.md");
    model_card_write(&card, path, e);
    free(path), free(list), free(summary);
    return e->code;
}

enum status merge_report_write(const struct merge_report *r, const char *dir, struct err *e) {
    cJSON *o = merge_report_json(r);
    json_write_in(dir, "merge_report.json", o, e);
    cJSON_Delete(o);
    return e->code == ST_OK ? write_card(r, dir, e) : e->code;
}

/* What graft merge tells about its result: on the terminal, in merge_report.json and in the model card. */
#ifndef CLI_MERGE_REPORT_H
#define CLI_MERGE_REPORT_H

#include <cjson/cJSON.h>

#include "cli/flags.h"
#include "lora/merge.h"
#include "quant/checkpoint.h"

struct merge_report {
    const char *model, *original; // original: NULL, or what was merged into in place of the quantised model
    const char *out;
    const struct merge_adapter *adapters;
    int64_t adapter_count;
    struct merge_counts counts;
    const char *dtype; // NULL: as stored
    const char *base;  // "original" or "dequant"
    bool checked_weights, checked_outputs, quantised;
    struct weights_check weights;
    struct outputs_check outputs;
    const char *quant_type;
    struct checkpoint_report checkpoint;
    bool measured_cost;
    struct outputs_check cost; // of the rounding to 4 bits
    double seconds;
};

cJSON *merge_report_json(const struct merge_report *r); // the caller deletes it
void merge_report_print(const struct merge_report *r);
enum status merge_report_write(const struct merge_report *r, const char *dir, struct err *e); // json and README.md

#endif

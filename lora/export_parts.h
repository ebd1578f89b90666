/* What the files of an export share: export.c (plan, writing, checking), export_names.c, export_head.c. */
#ifndef LORA_EXPORT_PARTS_H
#define LORA_EXPORT_PARTS_H

#include "lora/export.h"
#include "lora/merge_parts.h"
#include "quant/gguf.h"

/* Where a tensor's numbers come from. */
enum export_source {
    FROM_MERGE, // a tensor of the model, merged
    FROM_ENTRY, // a tensor of a file, times factor
    FROM_TABLE, // made here
};

struct export_item {
    struct gguf_tensor out; // its name is owned
    enum export_source source;
    const struct merge_item *item;
    const struct st_entry *entry;
    float *table; // owned
    double factor;
    int64_t O, I;  // rows and columns; a vector is one row
    int64_t turn;  // rows (of a vector: numbers) of a head whose halves become pairs; 0: none
    bool is_other; // a matrix that could not have the file's type
};

struct export_plan {
    const struct export_options *o;
    struct merge *m;
    const char *arch;          // "llama", "qwen2", "clip"
    struct export_item *items; // (count)
    size_t count;
    struct export_report *report;
};

/* --- export_names.c --- */

/* llama.cpp's architecture for the language model; NULL with the error set when it has none. */
const char *export_architecture(const struct model *m, struct err *e);

/* Adds what the part consists of. */
enum status export_plan_model(struct export_plan *p, struct err *e);
enum status export_plan_vision(struct export_plan *p, struct err *e);
enum status export_plan_adapter(struct export_plan *p, struct err *e);

/* lora_alpha of the file: the runtime's scale is this over the rank. */
double export_adapter_alpha(const struct export_plan *p);

/* --- export_head.c --- */

enum status export_head(struct export_plan *p, struct gguf_head *h, struct err *e);

void export_note(struct export_plan *p, const char *sentence); // adds to the report's note

#endif

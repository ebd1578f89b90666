/* A model, its vision part, or an adapter as a GGUF file for llama.cpp.
 *
 * What is written are the numbers that graft computes with: adapters merged in F32, 4-bit weights dequantised, each
 * rounded once to the type of the file. Matrices take that type where their rows are whole blocks of it, else one of
 * smaller blocks; vectors stay F32. The file is read again and compared with its source before it gets its name.
 *
 * llama.cpp turns neighbouring pairs of a head (2j, 2j+1) where Llama and Mistral turn its halves (j, j + D/2): rows of
 * q and k are reordered. Its qwen2 turns halves, and its rows stay.
 *
 *   export.c          plan, writing, checking            export_head.c   settings and tokenizer
 *   export_names.c    names, types, order of rows        modelfile.c     Ollama's file beside it */
#ifndef LORA_EXPORT_H
#define LORA_EXPORT_H

#include "base/status.h"
#include "kernels/backend.h"
#include "lora/merge.h"
#include "quant/ggml.h"

enum export_part { EXPORT_MODEL, EXPORT_VISION, EXPORT_ADAPTER };

struct export_options {
    const char *model;
    const struct merge_adapter *adapters; // merged in, or with EXPORT_ADAPTER the one that is written
    int64_t adapter_count;
    enum export_part part;
    enum ggml_type type;
    bool any_base; // as in merge.h
    bool check;    // the written file is read again and compared
    struct backend *be;
    struct watch watch; // told before each tensor, in bytes of the output
};

struct export_report {
    int64_t tensors, bytes;
    int64_t other_type; // matrices whose rows are no whole blocks of the type
    double error;       // of what was read again: |difference| / |wanted| over all numbers; NAN when not asked
    const char *architecture;
    char note[512]; // what llama.cpp will do in another way; or empty
};

/* path must not exist. What llama.cpp has no place for is refused with what to do instead. */
enum status export_gguf(const struct export_options *o, const char *path, struct export_report *r, struct err *e);

/* Compares a file with what would be written; export_gguf has done so unless it was told not to. */
enum status export_check(const struct export_options *o, const char *path, struct export_report *r, struct err *e);

/* Ollama's Modelfile for a file that was exported: where it is, how a prompt is written, where an answer ends. The
 * prompt is found by asking the model's own template; what cannot be written in Ollama's language is left out. */
struct modelfile {
    const char *model; // Hugging Face folder
    const char *gguf;  // path; the Modelfile names it without its folder
    enum export_part part;
};
enum status modelfile_write(const struct modelfile *m, const char *path, struct err *e);

#endif

/* report.html of a run: its curves, its settings and samples, in one file that loads nothing. The pictures are inline
 * SVG; colours follow the reader's light or dark mode. Written whole or not at all, so it can be written again during
 * training. */
#ifndef LORA_REPORT_H
#define LORA_REPORT_H

#include <stddef.h>

#include "base/status.h"
#include "base/text.h"
#include "lora/metrics.h"

struct report_sample {
    const char *prompt, *before, *after; // before may be NULL
};

/* All strings are plain text. log_path: one JSON object a line (step, epoch, loss, grad_norm, learning_rate, tokens,
 * tokens_per_second, memory, eval_loss), any of them missing on any line. Where a step comes again, because a run went
 * on from a checkpoint, what was logged from that step on before is dropped. A last line without newline is still being
 * written and is left out. */
struct report_input {
    const char *title; // NULL: "Training run"
    const char *log_path;
    const char *config_path; // NULL: no table of settings
    const struct report_sample *samples;
    size_t sample_count;
    const struct outcome *outcome;   // of the held-out rows under what was trained; NULL: none
    const char *const *output_names; // (outcome->outputs), or NULL
};

enum status report_write(const struct report_input *in, const char *path, struct err *e);

/* s as text or as the value of an attribute; what is not UTF-8 or not allowed in HTML becomes U+FFFD. */
void html_escape(struct text *out, const char *s);

#endif

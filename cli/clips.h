/* The clips that graft score is to look at, with a prompt each. */
#ifndef CLI_CLIPS_H
#define CLI_CLIPS_H

#include "base/status.h"
#include "cli/flags.h"

/* One JSON object a line ({id, video, prompt}), for data_options.rows_text; the caller frees it. NULL on failure.
 *
 *   --video PATH        (repeated) a file; a folder of files; a folder of frames; a folder of folders of frames
 *   --prompts SHEET     CSV or JSON with the columns video and prompt; with --video it only gives the prompts, by path,
 *                       name or name without suffix
 *   --prompt TEXT       of all clips
 *   --prompt_file FILE  a text in which {text_prompt} stands for the prompt of the clip */
char *clips_rows(const struct flags *f, struct err *e);

#endif

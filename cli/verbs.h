/* The verbs: each is defined in its file cmd_VERB.c and listed in main.c, in the order of a user's work. */
#ifndef CLI_VERBS_H
#define CLI_VERBS_H

#include "cli/flags.h"

extern const struct verb verb_train, verb_eval, verb_score, verb_generate, verb_chat, verb_quantize, verb_merge;
extern const struct verb verb_diff, verb_export;
extern const struct verb verb_data, verb_plan, verb_tokenize, verb_inspect, verb_init, verb_doctor;

#endif

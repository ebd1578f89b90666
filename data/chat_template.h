/* The tokenizer's own chat template: where it is stored, and a list of messages rendered with it. */
#ifndef DATA_CHAT_TEMPLATE_H
#define DATA_CHAT_TEMPLATE_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/status.h"
#include "base/text.h"

struct chat_template;

/* DIR/chat_template.jinja, else DIR/chat_template.json, else "chat_template" of DIR/tokenizer_config.json (a string, or
 * a list of {name, template} whose "default" counts). NULL with the error set when there is none: the sentence names
 * the folder and says that --conv_template takes one of the built-in ones. */
struct chat_template *chat_template_load(const char *dir, struct err *e);
bool chat_template_exists(const char *dir);
char *chat_template_source(const char *dir); // as it is stored, the caller's; NULL: none
cJSON *chat_template_named(const char *dir); // the others, name -> source; an object, the caller's
void chat_template_free(struct chat_template *t);

/* messages: a list of {"role", "content"}; bos_token and eos_token come from tokenizer_config.json. */
enum status chat_template_render(const struct chat_template *t, const cJSON *messages, bool add_generation_prompt,
                                 struct text *out, struct err *e);

#endif

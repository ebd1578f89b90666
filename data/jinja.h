/* The part of Jinja that published chat templates use, as transformers configures it: trim_blocks and lstrip_blocks on,
 * loop controls, raise_exception, strftime_now, tojson without ASCII escapes, undefined values print as nothing. What a
 * template uses beyond it is an error that names the construct and the line. */
#ifndef DATA_JINJA_H
#define DATA_JINJA_H

#include <cjson/cJSON.h>

#include "base/status.h"
#include "base/text.h"

struct jinja;

/* `where` names the template in an error, e.g. "tokenizer_config.json: chat_template". */
struct jinja *jinja_new(const char *source, const char *where, struct err *e);
void jinja_free(struct jinja *j);

/* Adds the rendered template to out. vars is an object: messages, bos_token, eos_token, add_generation_prompt, ... */
enum status jinja_render(const struct jinja *j, const cJSON *vars, struct text *out, struct err *e);

#endif

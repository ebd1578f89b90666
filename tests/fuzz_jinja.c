/* Whatever the bytes: a chat template is refused or rendered within its limits. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "data/jinja.h"
#include "tests/fuzz.h"

static const char vars_text[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \" hi \"},"
    "{\"role\": \"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"x\"}]}], \"bos_token\": \"<s>\","
    "\"eos_token\": \"</s>\", \"add_generation_prompt\": true, \"tools\": null, \"n\": 3.5}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0}, bad = {0};
    struct text out = {0};
    char *source = mem_text_n((const char *)data, size);
    cJSON *vars = json_parse(vars_text, sizeof vars_text - 1, "vars", &e);
    struct jinja *j = jinja_new(source, "fuzz", &bad);
    if (j) jinja_render(j, vars, &out, &bad);
    jinja_free(j);
    cJSON_Delete(vars);
    text_free(&out);
    free(source);
    return 0;
}

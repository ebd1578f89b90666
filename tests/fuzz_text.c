/* Whatever the bytes: JSON and YAML are refused or read, and what was read is written and read again as the same. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/yaml.h"
#include "tests/fuzz.h"

static void read_back(const cJSON *tree, char *text,
                      cJSON *(*parse)(const char *, size_t, const char *, struct err *)) {
    struct err e = {0};
    cJSON *again = parse(text, strlen(text), "written", &e);
    if (!again || !cJSON_Compare(tree, again, true)) abort();
    cJSON_Delete(again);
    free(text);
}

/* cJSON_Compare holds NaN to differ from itself, and a key that is there twice; neither is a fault of ours. */
static int is_plain(const cJSON *v) {
    for (const cJSON *c = v->child; c; c = c->next) {
        if (!is_plain(c)) return 0;
        for (const cJSON *d = c->next; d && c->string; d = d->next)
            if (strcmp(c->string, d->string) == 0) return 0;
    }
    return !cJSON_IsNumber(v) || (v->valuedouble - v->valuedouble == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err json_error = {0}, yaml_error = {0};
    cJSON *json = json_parse((const char *)data, size, "fuzz", &json_error);
    cJSON *yaml = yaml_parse((const char *)data, size, "fuzz", &yaml_error);
    if (json && is_plain(json)) read_back(json, json_text(json, size % 2), json_parse);
    if (yaml && is_plain(yaml)) read_back(yaml, yaml_text(yaml), yaml_parse);
    cJSON_Delete(json);
    cJSON_Delete(yaml);
    return 0;
}

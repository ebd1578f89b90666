#include "lora/base_mark.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/weights.h"

static const char FILE_NAME[] = "base_model.json";

void base_fingerprint(char text[17], const struct st_set *files) {
    snprintf(text, 17, "%016llx", (unsigned long long)weights_fingerprint(HASH_START, files));
}

enum status base_mark_write(const char *dir, const char *model, const struct st_set *files, const char *quantization,
                            struct err *e) {
    char text[17];
    cJSON *o = cJSON_CreateObject();
    base_fingerprint(text, files);
    cJSON_AddStringToObject(o, "model", model);
    cJSON_AddStringToObject(o, "fingerprint", text);
    if (quantization) cJSON_AddStringToObject(o, "quantization", quantization);
    json_write_in(dir, FILE_NAME, o, e);
    cJSON_Delete(o);
    return e->code;
}

enum status base_mark_read(struct base_mark *b, const char *dir, struct err *e) {
    char *path = path_join(dir, FILE_NAME);
    const char *model = "", *fingerprint = "", *quantization = "";
    *b = (struct base_mark){0};
    cJSON *o = file_exists(path) ? json_read(path, e) : NULL;
    if (o && json_str(o, path, "model", "", &model, e) == ST_OK &&
        json_str(o, path, "fingerprint", "", &fingerprint, e) == ST_OK &&
        json_str(o, path, "quantization", "", &quantization, e) == ST_OK) {
        if (strlen(fingerprint) != 16 || strspn(fingerprint, "0123456789abcdef") != 16)
            err_set(e, ST_FAIL, "%s: fingerprint is not 16 hexadecimal digits", path);
        else
            memcpy(b->fingerprint, fingerprint, 17);
        b->model = mem_text(model);
        b->quantization = *quantization ? mem_text(quantization) : NULL;
    }
    cJSON_Delete(o);
    free(path);
    return e->code;
}

void base_mark_free(struct base_mark *b) {
    free(b->model), free(b->quantization);
    *b = (struct base_mark){0};
}

bool base_mark_fits(const struct base_mark *b, const struct st_set *files, bool four_bit) {
    char text[17];
    base_fingerprint(text, files);
    return !b->fingerprint[0] || (b->quantization && four_bit) || strcmp(text, b->fingerprint) == 0;
}

enum status base_mark_check(const char *dir, const char *model, const struct st_set *files, bool four_bit,
                            struct err *e) {
    struct base_mark b;
    char text[17];
    if (base_mark_read(&b, dir, e) == ST_OK && !base_mark_fits(&b, files, four_bit)) {
        base_fingerprint(text, files);
        err_set(e, ST_FAIL,
                "%s: was trained on other weights (%s, fingerprint %s) than those of %s (%s); name that model, or "
                "say --any_base true",
                dir, b.model, b.fingerprint, model, text);
    }
    base_mark_free(&b);
    return e->code;
}

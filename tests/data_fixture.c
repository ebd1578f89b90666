#include "tests/data_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/yaml.h"
#include "tests/folder.h"

int data_fixture_start(void **state, const char *golden) {
    struct data_fixture *x = *state = mem_alloc(sizeof *x);
    struct err e = {0};
    x->golden = golden;
    x->model = path_join(golden, "model");
    x->folder = folder_new();
    x->tokenizer = tokenizer_load(x->model, &e);
    if (!x->tokenizer) fail_msg("%s", e.text);
    x->threads = threads_new(3);
    x->text = (struct data_family){.family = FAMILY_TEXT, .model_dir = x->model};
    x->mllava = (struct data_family){.family = FAMILY_MLLAVA,
                                     .model_dir = x->model,
                                     .default_template = "llama_3",
                                     .image_token = tokenizer_id(x->tokenizer, "<image>"),
                                     .tokens_per_image = TOKENS_PER_IMAGE};
    return 0;
}

int data_fixture_end(void **state) {
    struct data_fixture *x = *state;
    tokenizer_free(x->tokenizer);
    threads_free(x->threads);
    folder_free(x->folder);
    free(x->model), free(x);
    return 0;
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

struct dataset *dataset_try(const struct data_fixture *x, const char *file, const char *fields, struct data_options o,
                            const struct data_family *f, struct text *notes, struct err *e) {
    const char *format = strstr(fields, "format:") ? "" : ", format: chat";
    char *json = mem_format("[{path: %s, name: a, split: train%s%s}]", file, format, fields);
    cJSON *list = yaml_parse(json, strlen(json), "inline", e);
    o.inline_list = list, o.split = "train";
    if (!o.inline_dir) o.inline_dir = x->golden;
    struct dataset *d = list ? dataset_open(&o, f, x->tokenizer, x->threads, notes, e) : NULL;
    cJSON_Delete(list);
    free(json);
    return d;
}

struct dataset *dataset_of(const struct data_fixture *x, const char *file, const char *fields, struct data_options o,
                           const struct data_family *f) {
    struct err e = {0};
    struct dataset *d = dataset_try(x, file, fields, o, f, NULL, &e);
    if (!d) fail_msg("%s", e.text);
    return d;
}

struct row row_of(const struct dataset *d, int64_t index, bool pixels) {
    struct row r;
    struct err e = {0};
    if (dataset_row(d, index, pixels, &r, &e) != ST_OK) fail_msg("row %lld: %s", (long long)index, e.text);
    return r;
}

const struct st_entry *dump_entry(const struct dump *d, const char *name) {
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->entry[i].name, name) == 0) return &d->entry[i];
    fail_msg("the dump has no %s", name);
    return NULL;
}

/* --- what is expected -------------------------------------------------------------------------------------------- */

cJSON *golden_json(const struct data_fixture *x, const char *name) {
    struct err e = {0};
    char *path = path_join(x->golden, name);
    cJSON *tree = json_read(path, &e);
    if (!tree) fail_msg("%s", e.text);
    free(path);
    return tree;
}

int64_t whole_of(const cJSON *o, const char *key) { return (int64_t)json_get(o, key)->valuedouble; }

int list_item(const cJSON *list, int64_t i) { return cJSON_GetArrayItem(list, (int)i)->valueint; }

void check_list(const cJSON *want, const int32_t *got, int64_t n, const char *what) {
    assert_int_equal(n, cJSON_GetArraySize(want));
    const cJSON *v = want->child;
    for (int64_t i = 0; i < n; i++, v = v->next)
        if (got[i] != v->valueint) fail_msg("%s %lld is %d, wanted %d", what, (long long)i, got[i], v->valueint);
}

void check_hash(const void *data, size_t bytes, const cJSON *want, const char *what) {
    char got[20];
    snprintf(got, sizeof got, "%016llx", (unsigned long long)hash_bytes(HASH_START, data, bytes));
    if (strcmp(got, want->valuestring) != 0) fail_msg("%s: hash %s, wanted %s", what, got, want->valuestring);
}

#include "lora/head.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "lora/merge_config.h"

static const char FILE_NAME[] = "label_names.json";

/* Outputs and bias, by the head's tensors. */
static enum status read_tensors(struct head_info *h, const char *dir, struct err *e) {
    struct st_set s = {0};
    if (st_open_dir(&s, dir, "adapter_model", e) != ST_OK) return e->code;
    const struct st_entry *weight = st_find(&s, "base_model.model.score.weight");
    if (weight && weight->rank == 2) {
        h->problem = PROBLEM_UNSAID;
        h->num_labels = weight->dim[0];
        h->bias = st_find(&s, "base_model.model.score.bias") != NULL;
    }
    st_close(&s);
    return e->code;
}

static enum status read_labels(struct head_info *h, const char *path, struct err *e) {
    const char *type;
    h->file = json_read(path, e);
    if (!h->file || json_str(h->file, path, "problem_type", "", &type, e) != ST_OK) return e->code;
    if (!problem_find(&h->problem, type) || h->problem == PROBLEM_GENERATION)
        return err_set(e, ST_FAIL, "%s: problem_type \"%.80s\" is unknown", path, type);
    const cJSON *list = json_get(h->file, "label_names"), *v;
    if (!list) return ST_OK;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != h->num_labels)
        return err_set(e, ST_FAIL, "%s: label_names has not one name for each of the %lld outputs of score.weight",
                       path, (long long)h->num_labels);
    h->names = mem_alloc((size_t)h->num_labels * sizeof *h->names);
    int64_t at = 0;
    cJSON_ArrayForEach(v, list) {
        if (!cJSON_IsString(v)) return err_set(e, ST_FAIL, "%s: label_names holds something that is no text", path);
        h->names[at++] = v->valuestring;
    }
    return ST_OK;
}

enum status head_info_read(struct head_info *h, const char *dir, struct err *e) {
    *h = (struct head_info){0};
    char *path = path_join(dir, FILE_NAME), *config = path_join(dir, "adapter_config.json");
    char *tensors = path_join(dir, "adapter_model.safetensors");
    if (file_exists(config) && file_exists(tensors) && read_tensors(h, dir, e) == ST_OK && h->num_labels &&
        file_exists(path))
        read_labels(h, path, e); // a folder that is no adapter is named by whoever opens it
    free(path), free(config), free(tensors);
    return e->code;
}

void head_info_free(struct head_info *h) {
    free(h->names);
    cJSON_Delete(h->file);
    *h = (struct head_info){0};
}

static void edit(char **object, const char *key, cJSON *value) {
    char *text = json_text(value, true), *changed = json_text_with(*object, key, text);
    free(*object), free(text);
    cJSON_Delete(value);
    *object = changed;
}

static const char *class_name(const char *model_type) {
    static const char *const names[][2] = {{"llama", "LlamaForSequenceClassification"},
                                           {"mistral", "MistralForSequenceClassification"},
                                           {"qwen2", "Qwen2ForSequenceClassification"},
                                           {"llava", "LlavaForSequenceClassification"},
                                           {"idefics2", "Idefics2ForSequenceClassification"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], model_type) == 0) return names[i][1];
    return "ForSequenceClassification";
}

void head_config_edit(char **text, const char *model_type, enum problem p, const char *const *names, int64_t n) {
    cJSON *to = cJSON_CreateObject(), *from = cJSON_CreateObject();
    for (int64_t i = 0; i < n; i++) {
        char *key = mem_format("%lld", (long long)i), *name = names ? mem_text(names[i]) : mem_format("LABEL_%s", key);
        cJSON_AddStringToObject(to, key, name);
        cJSON_AddNumberToObject(from, name, (double)i);
        free(key), free(name);
    }
    const char *class = model_type ? class_name(model_type) : NULL;
    if (class) edit(text, "architectures", cJSON_CreateStringArray(&class, 1));
    if (p != PROBLEM_UNSAID) edit(text, "problem_type", cJSON_CreateString(problem_name(p)));
    edit(text, "id2label", to);
    edit(text, "label2id", from);
}

cJSON *head_labels(enum problem p, const char *const *names, int64_t count) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "problem_type", problem_name(p));
    if (names) cJSON_AddItemToObject(o, "label_names", cJSON_CreateStringArray(names, (int)count));
    return o;
}

enum status head_labels_write(const cJSON *labels, const char *dir, struct err *e) {
    return json_write_in(dir, FILE_NAME, labels, e);
}

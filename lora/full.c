#include "lora/full.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/folder.h"
#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "lora/head.h"

/* What is trained of a tensor of the base, or NULL. A tied head that is stored beside the embedding is the embedding.
 * */
static const struct trained *trained_of(const struct adapter *a, const char *name) {
    const struct model *m = a->model;
    size_t n = m->head.path ? strlen(m->head.path) : 0;
    bool tied = m->config.text.tied && n && strncmp(name, m->head.path, n) == 0 && strcmp(name + n, ".weight") == 0;
    for (int64_t i = 0; i < a->count; i++) {
        const struct trained *t = &a->trained[i];
        if (strcmp(t->key, name) == 0 || (tied && t->slot == &m->embed)) return t;
    }
    return NULL;
}

/* n numbers in place: out may not lie in front of a number that is still to be read, and never does, being narrower. */
static void narrow(void *values, enum st_type type, size_t n) {
    const float *from = values;
    uint16_t *out = values;
    for (size_t i = 0; i < n && type != ST_F32; i++) {
        float x;
        memcpy(&x, from + i, sizeof x);
        uint16_t h = type == ST_BF16 ? bf16_of_float(x) : f16_of_float(x);
        memcpy(out + i, &h, sizeof h);
    }
}

static enum status put_trained(struct st_writer *w, const struct adapter *a, const struct trained *t, struct err *e) {
    const struct st_entry *entry = &w->order[w->next];
    void *host = mem_alloc(tensor_bytes(&t->value));
    backend_download(a->model->be, host, &t->value);
    if (backend_sync(a->model->be, e) == ST_OK) {
        narrow(host, entry->type, (size_t)tensor_count(&t->value));
        st_writer_put(w, host, e);
    }
    free(host);
    return e->code;
}

/* A part of a head that the base does not have, in F32; a part that is not there leaves the count as it is. */
static void add_head(struct st_entry *entries, size_t *count, const char *name, const struct tensor *t) {
    if (!t->data) return;
    struct st_entry *out = &entries[(*count)++];
    *out = (struct st_entry){.name = name, .type = ST_F32, .rank = t->rank, .bytes = tensor_bytes(t)};
    for (int i = 0; i < t->rank; i++) out->dim[i] = t->dim[i];
}

/* The tensors of the base; trained ones as they will be written; a new head instead of the language model's. The caller
 * frees them. */
static struct st_entry *plan_entries(const struct adapter *a, const struct st_set *files, enum precision p,
                                     size_t *count) {
    const struct model *m = a->model;
    struct st_entry *entries = mem_alloc((files->count + 2) * sizeof *entries);
    *count = 0;
    for (size_t i = 0; i < files->count; i++) {
        const char *name = files->entries[i].name;
        if (m->new_head && (text_starts(name, "lm_head.") || text_starts(name, "language_model.lm_head."))) continue;
        struct st_entry *out = &entries[(*count)++];
        *out = files->entries[i];
        const struct trained *t = trained_of(a, name);
        if (t && p != AS_STORED) out->type = ST_F32, out->bytes = tensor_bytes(&t->value);
    }
    if (m->new_head) add_head(entries, count, "score.weight", &m->head.W);
    if (m->new_head) add_head(entries, count, "score.bias", &m->head.b);
    return entries;
}

/* A part of a new head that is frozen. */
static enum status put_frozen(struct st_writer *w, const struct model *m, const char *name, struct err *e) {
    const struct tensor *t = text_ends(name, ".bias") ? &m->head.b : &m->head.W;
    void *host = mem_alloc(tensor_bytes(t));
    backend_download(m->be, host, t);
    if (backend_sync(m->be, e) == ST_OK) st_writer_put(w, host, e);
    free(host);
    return e->code;
}

static enum status write_tensors(const struct adapter *a, const char *path, enum precision p, struct err *e) {
    const struct st_set *files = &a->model->weights.files;
    size_t count;
    struct st_entry *entries = plan_entries(a, files, p, &count);
    struct st_writer w;
    if (st_writer_open(&w, path, entries, count, e) == ST_OK) {
        while (w.next < w.count && e->code == ST_OK) {
            const char *name = w.order[w.next].name;
            const struct trained *t = trained_of(a, name);
            if (t)
                put_trained(&w, a, t, e);
            else if (!st_find(files, name))
                put_frozen(&w, a->model, name, e);
            else
                st_writer_put(&w, st_find(files, name)->data, e);
        }
        if (e->code == ST_OK) st_writer_commit(&w, e);
        st_writer_abandon(&w);
    }
    free(entries);
    return e->code;
}

/* --- config.json ------------------------------------------------------------------------------------------------- */

/* What the head gives, by name. */
static void edit_head(char **text, const struct adapter *a) {
    const struct model_config *c = &a->model->config;
    const cJSON *list = json_get(a->labels, "label_names"), *v;
    const char **names = mem_alloc((size_t)c->num_labels * sizeof *names);
    int64_t i = 0;
    cJSON_ArrayForEach(v, list) if (i < c->num_labels) names[i++] = v->valuestring;
    head_config_edit(text, a->model->new_head ? c->model_type : NULL, c->problem,
                     i == c->num_labels && i > 0 ? names : NULL, c->num_labels);
    free(names);
}

/* The base's text, with what has become of its head. */
static enum status write_config(const struct adapter *a, const char *dir, struct err *e) {
    char *base = path_join(a->model->weights.dir, "config.json"), *path = path_join(dir, "config.json"), *text;
    size_t size;
    if (file_read(base, &text, &size, e) == ST_OK) {
        if (a->labels) edit_head(&text, a);
        file_write(path, text, strlen(text), e);
        free(text);
    }
    free(base), free(path);
    return e->code;
}

enum status full_write(const struct adapter *a, const char *dir, enum precision p, struct err *e) {
    char *tensors = path_join(dir, "model.safetensors");
    if (folder_copy_companions(a->model->weights.dir, dir, e) == ST_OK && write_config(a, dir, e) == ST_OK)
        write_tensors(a, tensors, p, e);
    free(tensors);
    return e->code;
}

enum status full_read(struct adapter *a, const char *dir, struct err *e) {
    struct st_set set = {0};
    if (st_open_dir(&set, dir, "model", e) != ST_OK) return e->code;
    for (int64_t i = 0; i < a->count && e->code == ST_OK; i++) {
        const struct trained *t = &a->trained[i];
        const struct st_entry *entry = st_find(&set, t->key);
        if (!entry || entry->type != ST_F32 || entry->bytes != tensor_bytes(&t->value))
            err_set(e, ST_FAIL, "%s: %s is missing, or is not of the model's shape in F32", dir, t->key);
        else
            backend_upload(a->model->be, &t->value, entry->data);
    }
    if (e->code == ST_OK) backend_sync(a->model->be, e);
    st_close(&set);
    return e->code;
}

#include "lora/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "lora/output.h"
#include "lora/run_log.h"

static const char prefix[] = "checkpoint-";

char *checkpoint_path(const struct trainer *t, int64_t step) {
    char *name = mem_format("%s%lld", prefix, (long long)step);
    char *path = path_join(t->output_dir, name);
    free(name);
    return path;
}

/* The step of a folder name "checkpoint-N"; -1: another name. */
static int64_t step_of(const char *name) {
    if (!text_starts(name, prefix)) return -1;
    const char *digits = name + strlen(prefix);
    if (!*digits || digits[strspn(digits, "0123456789")] != 0 || strlen(digits) > 15) return -1;
    return strtoll(digits, NULL, 10);
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static char *hex(uint64_t n) { return mem_format("%016" PRIx64, n); }

static cJSON *state_json(const struct trainer *t) {
    cJSON *o = cJSON_CreateObject();
    char *data = hex(dataset_fingerprint(t->data)), *model = hex(model_fingerprint(t->model));
    cJSON_AddNumberToObject(o, "step", (double)t->step);
    cJSON_AddNumberToObject(o, "steps", (double)t->steps);
    cJSON_AddNumberToObject(o, "steps_with_pictures", (double)t->pictured);
    cJSON_AddStringToObject(o, "dtype", dtype_name(t->act));
    cJSON_AddStringToObject(o, "data_fingerprint", data);
    cJSON_AddStringToObject(o, "model_fingerprint", model);
    if (t->best_step) cJSON_AddNumberToObject(o, "best_metric", t->best_metric);
    cJSON_AddNumberToObject(o, "best_step", (double)t->best_step);
    cJSON_AddNumberToObject(o, "without_gain", (double)t->without_gain);
    cJSON_AddItemToObject(o, "settings", cJSON_Duplicate(t->settings->values, true));
    free(data), free(model);
    return o;
}

/* Both moments of every trained tensor, by the names that torch gives them. */
static enum status write_optimizer(const struct trainer *t, const char *path, struct err *e) {
    const struct adapter *a = t->adapter;
    struct st_entry *entries = mem_alloc((size_t)(2 * a->count) * sizeof *entries);
    for (int64_t i = 0; i < 2 * a->count; i++) {
        const struct trained *p = &a->trained[i / 2];
        const struct tensor *moment = i % 2 ? &p->v : &p->m;
        void *host = mem_alloc(tensor_bytes(moment));
        backend_download(t->model->be, host, moment);
        entries[i] = (struct st_entry){.name = mem_format("%s.%s", i % 2 ? "exp_avg_sq" : "exp_avg", p->key),
                                       .type = ST_F32,
                                       .rank = moment->rank,
                                       .data = host,
                                       .bytes = tensor_bytes(moment)};
        for (int d = 0; d < moment->rank; d++) entries[i].dim[d] = moment->dim[d];
    }
    if (backend_sync(t->model->be, e) == ST_OK) st_write(path, entries, (size_t)(2 * a->count), e);
    for (int64_t i = 0; i < 2 * a->count; i++) free((char *)entries[i].name), free((void *)entries[i].data);
    free(entries);
    return e->code;
}

static enum status write_all(const struct trainer *t, const char *dir, struct err *e) {
    char *optimizer = path_join(dir, "optimizer.safetensors"), *hf = path_join(dir, "trainer_state.json");
    cJSON *state = state_json(t);
    if (dir_make(dir, e) == ST_OK && trained_write(t->adapter, dir, EXACT, e) == ST_OK &&
        write_optimizer(t, optimizer, e) == ST_OK && run_log_trainer_state(t, hf, e) == ST_OK &&
        json_write_in(dir, "graft_state.json", state, e) == ST_OK)
        dir_sync(dir, e);
    cJSON_Delete(state);
    free(optimizer), free(hf);
    return e->code;
}

/* A folder leaves its name before its files go, so that what a kill leaves of it is no checkpoint any more. */
static enum status take_away(const char *dir, struct err *e) {
    char *aside = mem_format("%s.%ld.old.partial", dir, (long)getpid());
    if (rename(dir, aside) == 0)
        dir_remove(aside, e);
    else if (errno != ENOENT)
        err_set(e, ST_FAIL, "%s: cannot rename (%s)", dir, strerror(errno));
    free(aside);
    return e->code;
}

enum status checkpoint_write(const struct trainer *t, char **path, struct err *e) {
    char *final = checkpoint_path(t, t->step), *beside = mem_format("%s.%ld.partial", final, (long)getpid());
    struct err quiet = {0};
    *path = NULL;
    if (write_all(t, beside, e) == ST_OK && take_away(final, e) == ST_OK) { // of an earlier run that this one replaces
        if (rename(beside, final) != 0) err_set(e, ST_FAIL, "%s: cannot rename (%s)", beside, strerror(errno));
        dir_sync(t->output_dir, e);
    }
    if (e->code != ST_OK) dir_remove(beside, &quiet);
    free(beside);
    if (e->code == ST_OK)
        *path = final;
    else
        free(final);
    return e->code;
}

/* --- finding, removing ------------------------------------------------------------------------------------------- */

/* Steps of the whole checkpoints of a folder, ascending; the caller frees. */
static int64_t *list_steps(const char *dir, size_t *count) {
    char **names;
    size_t n;
    struct err quiet = {0};
    int64_t *steps = NULL;
    *count = 0;
    if (!dir_exists(dir) || dir_list(dir, &names, &n, &quiet) != ST_OK) return NULL;
    for (size_t i = 0; i < n; i++) {
        int64_t step = step_of(names[i]);
        if (step < 0) continue;
        steps = mem_resize(steps, (*count + 1) * sizeof *steps);
        size_t at = (*count)++;
        for (; at > 0 && steps[at - 1] > step; at--) steps[at] = steps[at - 1];
        steps[at] = step;
    }
    names_free(names, n);
    return steps;
}

char *checkpoint_newest(const char *output_dir) {
    size_t count;
    int64_t *steps = list_steps(output_dir, &count);
    char *path = NULL;
    if (count) {
        char *name = mem_format("%s%lld", prefix, (long long)steps[count - 1]);
        path = path_join(output_dir, name);
        free(name);
    }
    free(steps);
    return path;
}

/* NAME.PID.partial, as files and folders that are being written are called. */
static bool is_partial(const char *name) {
    static const char end[] = ".partial";
    if (!text_ends(name, end)) return false;
    char *stem = mem_text_n(name, strlen(name) - strlen(end)), *dot;
    if (text_ends(stem, ".old")) stem[strlen(stem) - strlen(".old")] = 0;
    dot = strrchr(stem, '.');
    bool partial = dot && dot > stem && dot[1] && dot[1 + strspn(dot + 1, "0123456789")] == 0;
    free(stem);
    return partial;
}

enum status checkpoint_sweep(const char *dir, struct err *e) {
    char **names;
    size_t n;
    if (dir_list(dir, &names, &n, e) != ST_OK) return e->code;
    for (size_t i = 0; i < n; i++) {
        if (!is_partial(names[i])) continue;
        char *path = path_join(dir, names[i]);
        if (dir_exists(path))
            dir_remove(path, e);
        else if (unlink(path) != 0 && errno != ENOENT)
            err_set(e, ST_FAIL, "%s: cannot remove (%s)", path, strerror(errno));
        free(path);
    }
    names_free(names, n);
    return e->code;
}

enum status checkpoint_prune(const struct trainer *t, struct err *e) {
    int64_t limit = settings_int(t->settings, "save_total_limit");
    size_t count;
    int64_t *steps = list_steps(t->output_dir, &count), left = (int64_t)count;
    bool keeps_best = settings_bool(t->settings, "load_best_model_at_end");
    for (size_t i = 0; limit > 0 && i + 1 < count && left > limit; i++) {
        if (keeps_best && steps[i] == t->best_step) continue;
        char *path = checkpoint_path(t, steps[i]);
        take_away(path, e);
        free(path);
        left--;
    }
    free(steps);
    return e->code;
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static enum status compare(const struct trainer *t, const cJSON *state, const char *where, struct err *e) {
    char *data = hex(dataset_fingerprint(t->data)), *model = hex(model_fingerprint(t->model));
    const char *was_data = "", *was_model = "", *dtype = "";
    struct text differs = {0};
    json_str(state, where, "data_fingerprint", "", &was_data, e);
    json_str(state, where, "model_fingerprint", "", &was_model, e);
    json_str(state, where, "dtype", "", &dtype, e);
    settings_differences(json_get(state, "settings"), t->settings->values, &differs);
    const char *comma = differs.len ? ", " : "";
    if (strcmp(data, was_data) != 0) text_addf(&differs, "%sthe data", comma), comma = ", ";
    if (strcmp(model, was_model) != 0) text_addf(&differs, "%sthe base model", comma), comma = ", ";
    if (strcmp(dtype, dtype_name(t->act)) != 0)
        text_addf(&differs, "%sdtype (was %s, is %s)", comma, dtype, dtype_name(t->act));
    if (differs.len)
        err_set(e, ST_FAIL,
                "%s: cannot go on from here, the run differs: %s; put it back, or start anew in another output_dir",
                where, text_str(&differs));
    text_free(&differs);
    free(data), free(model);
    return e->code;
}

static enum status read_moment(struct trainer *t, const struct st_set *set, const char *moment, const struct trained *p,
                               const struct tensor *to, const char *where, struct err *e) {
    char *name = mem_format("%s.%s", moment, p->key);
    const struct st_entry *entry = st_find(set, name);
    if (!entry || entry->type != ST_F32 || entry->bytes != tensor_bytes(to))
        err_set(e, ST_FAIL, "%s: %s is missing or has another shape", where, name);
    else
        backend_upload(t->model->be, to, entry->data);
    free(name);
    return e->code;
}

static enum status read_optimizer(struct trainer *t, const char *path, struct err *e) {
    struct st_set set = {0};
    if (st_open_file(&set, path, e) != ST_OK) return e->code;
    for (int64_t i = 0; i < t->adapter->count && e->code == ST_OK; i++) {
        const struct trained *p = &t->adapter->trained[i];
        read_moment(t, &set, "exp_avg", p, &p->m, path, e);
        read_moment(t, &set, "exp_avg_sq", p, &p->v, path, e);
    }
    st_close(&set);
    return e->code;
}

enum status checkpoint_read(struct trainer *t, const char *dir, struct err *e) {
    char *own = path_join(dir, "graft_state.json"), *optimizer = path_join(dir, "optimizer.safetensors");
    cJSON *state = json_read(own, e);
    if (state && compare(t, state, dir, e) == ST_OK && trained_read(t->adapter, dir, e) == ST_OK &&
        read_optimizer(t, optimizer, e) == ST_OK) {
        json_int(state, own, "step", 0, &t->step, e);
        json_int(state, own, "steps_with_pictures", t->step, &t->pictured, e);
        json_int(state, own, "best_step", 0, &t->best_step, e);
        json_int(state, own, "without_gain", 0, &t->without_gain, e);
        json_num(state, own, "best_metric", 0, &t->best_metric, e);
        if (t->step < 0 || t->step > t->steps || t->pictured < 0 || t->pictured > t->step)
            err_set(e, ST_FAIL, "%s: step %lld is outside the run", own, (long long)t->step);
    }
    cJSON_Delete(state);
    free(own), free(optimizer);
    return e->code;
}

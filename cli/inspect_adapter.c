#include "cli/inspect_adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/floats.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/regex.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "lora/base_mark.h"
#include "quant/block.h"
#include "quant/bnb.h"

enum { LARGEST_RANK = 8192 }; // its square is held in memory

/* One adapted module: its path in the base model and the norm of its update. */
struct update {
    char *path;
    const char *target; // last component of the path
    int64_t rank;
    double norm;  // Frobenius, of scale * B A
    double share; // of the norm of the base's weight; NAN: the base was not named
};

struct inspection {
    const char *dir;
    cJSON *config;
    struct st_set set;
    struct update *updates; // (count)
    size_t count;
    int64_t parameters, bytes, others; // others: tensors that no module wants
    struct base_mark mark;
    char *base; // --base
    struct st_set weights;
    char fingerprint[17]; // of --base
};

static const char prefix[] = "base_model.model.", suffix_a[] = ".lora_A.weight", suffix_b[] = ".lora_B.weight";

/* ---------------------------------------------------------------- numbers */

static bool is_float_matrix(const struct st_entry *t) {
    return t->rank == 2 && (t->type == ST_F32 || t->type == ST_BF16 || t->type == ST_F16);
}

/* gram (r,r) = products of the r vectors of n numbers that lie `step` apart, each with numbers `stride` apart. */
static double *gram(const struct st_entry *t, int64_t r, int64_t n, int64_t step, int64_t stride) {
    double *g = mem_alloc((size_t)(r * r) * sizeof *g), *row = mem_alloc((size_t)r * sizeof *row);
    for (int64_t k = 0; k < n; k++) {
        for (int64_t i = 0; i < r; i++) row[i] = floats_at(t->data, floats_type(t), i * step + k * stride);
        for (int64_t i = 0; i < r; i++)
            for (int64_t j = 0; j <= i; j++) g[i * r + j] += row[i] * row[j];
    }
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < i; j++) g[j * r + i] = g[i * r + j];
    free(row);
    return g;
}

/* ||B A||^2 = sum of (B^T B) * (A A^T), element by element: no (O,I) matrix is made. */
static double product_norm(const struct st_entry *a, const struct st_entry *b) {
    int64_t r = a->dim[0];
    double *aa = gram(a, r, a->dim[1], a->dim[1], 1), *bb = gram(b, r, b->dim[0], 1, r), sum = 0;
    for (int64_t i = 0; i < r * r; i++) sum += aa[i] * bb[i];
    free(aa);
    free(bb);
    return sqrt(sum > 0 ? sum : 0);
}

/* alpha of a module: the first entry of alpha_pattern that matches the end of its path, else lora_alpha. */
static enum status alpha_of(const struct inspection *in, const char *path, double *alpha, struct err *e) {
    json_num(in->config, in->dir, "lora_alpha", 8, alpha, e);
    const cJSON *patterns = json_get(in->config, "alpha_pattern");
    for (const cJSON *p = patterns ? patterns->child : NULL; p && e->code == ST_OK; p = p->next) {
        char *source = mem_format("(?:.*\\.)?(?:%s)", p->string);
        struct regex *r = regex_new(source, in->dir, e);
        bool found = r && regex_full(r, path);
        regex_free(r);
        free(source);
        if (!found || !cJSON_IsNumber(p)) continue;
        *alpha = p->valuedouble;
        break;
    }
    return e->code;
}

/* ---------------------------------------------------------------- reading */

static enum status add_update(struct inspection *in, const struct st_entry *a, struct err *e) {
    size_t stem = strlen(a->name) - strlen(suffix_a);
    char *path = mem_text_n(a->name, stem), *name_b = mem_format("%s%s", path, suffix_b);
    const struct st_entry *b = st_find(&in->set, name_b);
    const char *inner = text_starts(path, prefix) ? path + strlen(prefix) : path; // in the base model
    bool fits = b && is_float_matrix(a) && is_float_matrix(b) && a->dim[0] == b->dim[1] && a->dim[0] > 0;
    double alpha = 0;
    bool rslora = false;
    if (!fits)
        err_set(e, ST_FAIL, "%s: %s and %s do not fit together", a->file, a->name, name_b);
    else if (a->dim[0] > LARGEST_RANK)
        err_set(e, ST_FAIL, "%s: %s has rank %lld, at most %d are taken", a->file, a->name, (long long)a->dim[0],
                LARGEST_RANK);
    else if (alpha_of(in, inner, &alpha, e) == ST_OK)
        json_bool(in->config, in->dir, "use_rslora", false, &rslora, e);
    if (e->code == ST_OK) {
        double r = (double)a->dim[0], scale = alpha / (rslora ? sqrt(r) : r);
        struct update *u = &in->updates[in->count++];
        *u = (struct update){
            .path = mem_text(inner), .rank = a->dim[0], .norm = fabs(scale) * product_norm(a, b), .share = NAN};
        const char *dot = strrchr(u->path, '.');
        u->target = dot ? dot + 1 : u->path;
    }
    free(name_b);
    free(path);
    return e->code;
}

/* A, B, or the magnitude that use_dora says there is. */
static bool is_expected(const char *name) {
    return text_ends(name, suffix_a) || text_ends(name, suffix_b) || strstr(name, ".lora_magnitude_vector");
}

static enum status read_adapter(struct inspection *in, struct err *e) {
    char *path = path_join(in->dir, "adapter_config.json");
    in->config = json_read(path, e);
    free(path);
    if (!in->config || st_open_dir(&in->set, in->dir, "adapter_model", e) != ST_OK) return e->code;
    in->updates = mem_alloc(in->set.count * sizeof *in->updates);
    for (size_t i = 0; i < in->set.count && e->code == ST_OK; i++) {
        const struct st_entry *t = &in->set.entries[i];
        in->parameters += (int64_t)(t->bytes / st_type_size(t->type));
        in->bytes += (int64_t)t->bytes;
        if (text_ends(t->name, suffix_a))
            add_update(in, t, e);
        else
            in->others += !is_expected(t->name);
    }
    return e->code;
}

/* --- beside the base --------------------------------------------------------------------------------------------- */

/* Row by row, so that no more than that is in memory. */
static double square_sum(const struct st_entry *t) {
    const int64_t rows = t->dim[0], cols = t->dim[1];
    float *row = mem_alloc((size_t)cols * sizeof *row);
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        floats_read(row, t->data, floats_type(t), r * cols, cols);
        sum += floats_square_sum(row, cols);
    }
    free(row);
    return sum;
}

/* |W| of a base weight, dense or in 4 bits. */
static double weight_norm(const struct inspection *in, const struct st_entry *t, struct err *e) {
    double sum = 0;
    struct q4_weight w = {0};
    if (!bnb_is_4bit(&in->weights, t->name)) {
        sum = is_float_matrix(t) ? square_sum(t) : 0;
    } else if (bnb_read(&w, &in->weights, t->name, e) == ST_OK) {
        float *x = mem_alloc((size_t)tensor_count(&w.t) * sizeof *x);
        struct threads *threads = threads_new(0);
        block_dequantize(x, F32, &w.t, threads);
        sum = floats_square_sum(x, tensor_count(&w.t));
        threads_free(threads);
        free(x);
    }
    bnb_release(&w);
    return sqrt(sum);
}

/* A base that transformers stores under other names has no weight of a module's name: its share stays NAN. */
static enum status read_base(struct inspection *in, const char *name, struct err *e) {
    if (!name) return ST_OK;
    if (!(in->base = model_dir(name, e)) || st_open_dir(&in->weights, in->base, "model", e) != ST_OK) return e->code;
    base_fingerprint(in->fingerprint, &in->weights);
    for (size_t i = 0; i < in->count && e->code == ST_OK; i++) {
        char *weight = mem_format("%s.weight", in->updates[i].path);
        const struct st_entry *t = st_find(&in->weights, weight);
        double norm = t ? weight_norm(in, t, e) : 0;
        if (norm > 0) in->updates[i].share = in->updates[i].norm / norm;
        free(weight);
    }
    return e->code;
}

/* By target, then by norm: the median of a target lies in the middle of its run. */
static int compare_updates(const void *a, const void *b) {
    const struct update *x = a, *y = b;
    int order = strcmp(x->target, y->target);
    return order ? order : (x->norm > y->norm) - (x->norm < y->norm);
}

/* ---------------------------------------------------------------- showing */

static void show_settings(const struct inspection *in) {
    static const char *const keys[] = {"base_model_name_or_path",
                                       "task_type",
                                       "r",
                                       "lora_alpha",
                                       "lora_dropout",
                                       "use_dora",
                                       "use_rslora",
                                       "bias",
                                       "target_modules",
                                       "modules_to_save",
                                       "rank_pattern",
                                       "alpha_pattern"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *v = json_get(in->config, keys[i]);
        if (!v || cJSON_IsFalse(v) || ((cJSON_IsObject(v) || cJSON_IsArray(v)) && !v->child)) continue;
        char *text = cJSON_IsString(v) ? mem_text(v->valuestring) : json_text(v, true);
        out_text("  %-24s %s\n", keys[i], text);
        free(text);
    }
}

static void show_base(const struct inspection *in) {
    const struct base_mark *b = &in->mark;
    if (b->fingerprint[0]) out_text("  %-24s %s, fingerprint %s\n", "trained on", b->model, b->fingerprint);
    if (in->base && b->fingerprint[0])
        out_text("  %-24s %s, %s\n", "--base", in->base,
                 strcmp(b->fingerprint, in->fingerprint) == 0 ? "the same weights" : "other weights");
}

/* The largest share of updates [first, end); NAN: none is known. */
static double largest_share(const struct inspection *in, size_t first, size_t end) {
    double most = NAN;
    for (size_t i = first; i < end; i++)
        if (!(in->updates[i].share <= most) && isfinite(in->updates[i].share)) most = in->updates[i].share;
    return most;
}

static void show_updates(const struct inspection *in) {
    out_text("\n  %-16s %8s %6s   size of the update, scale * |B A|: min, median, max\n", "target", "modules", "rank");
    for (size_t i = 0, end; i < in->count; i = end) {
        const struct update *u = &in->updates[i];
        int64_t least = u->rank, most = u->rank;
        for (end = i; end < in->count && strcmp(in->updates[end].target, u->target) == 0; end++) {
            least = in->updates[end].rank < least ? in->updates[end].rank : least;
            most = in->updates[end].rank > most ? in->updates[end].rank : most;
        }
        char rank[OUT_NUMBER * 2];
        snprintf(rank, sizeof rank, least == most ? "%lld" : "%lld-%lld", (long long)least, (long long)most);
        out_text("  %-16s %8zu %6s   %.4g  %.4g  %.4g", u->target, end - i, rank, u->norm,
                 in->updates[i + (end - i) / 2].norm, in->updates[end - 1].norm);
        double share = largest_share(in, i, end);
        if (isfinite(share)) out_text("   at most %.3g%% of |W|", 100 * share);
        out_text("\n");
    }
}

static void show(const struct inspection *in) {
    char parameters[OUT_NUMBER], bytes[OUT_NUMBER];
    out_text("%s: adapter, %zu modules, %s parameters in %zu tensors, %s\n", in->dir, in->count,
             out_count_text(parameters, in->parameters), in->set.count, out_bytes_text(bytes, in->bytes));
    show_settings(in);
    show_base(in);
    if (in->count) show_updates(in);
    if (!in->others) return;
    out_text("\n  other tensors: %lld\n", (long long)in->others);
    for (size_t i = 0, shown = 0; i < in->set.count && shown < 12; i++) {
        const char *name = in->set.entries[i].name;
        if (is_expected(name)) continue;
        out_text("    %s\n", text_starts(name, prefix) ? name + strlen(prefix) : name);
        if (++shown == 12 && in->others > 12) out_text("    and %lld more\n", (long long)in->others - 12);
    }
}

static void show_json(const struct inspection *in) {
    cJSON *o = cJSON_CreateObject(), *list;
    cJSON_AddStringToObject(o, "kind", "adapter");
    cJSON_AddNumberToObject(o, "parameters", (double)in->parameters);
    cJSON_AddNumberToObject(o, "bytes", (double)in->bytes);
    cJSON_AddNumberToObject(o, "tensors", (double)in->set.count);
    cJSON_AddItemToObject(o, "config", cJSON_Duplicate(in->config, true));
    if (in->mark.fingerprint[0]) {
        cJSON *mark = cJSON_AddObjectToObject(o, "trained_on");
        cJSON_AddStringToObject(mark, "model", in->mark.model);
        cJSON_AddStringToObject(mark, "fingerprint", in->mark.fingerprint);
        if (in->base) cJSON_AddBoolToObject(mark, "is_base", strcmp(in->mark.fingerprint, in->fingerprint) == 0);
    }
    list = cJSON_AddArrayToObject(o, "modules");
    for (size_t i = 0; i < in->count; i++) {
        cJSON *u = cJSON_CreateObject();
        cJSON_AddStringToObject(u, "path", in->updates[i].path);
        cJSON_AddNumberToObject(u, "rank", (double)in->updates[i].rank);
        cJSON_AddNumberToObject(u, "update_norm", in->updates[i].norm);
        if (isfinite(in->updates[i].share)) cJSON_AddNumberToObject(u, "relative_norm", in->updates[i].share);
        cJSON_AddItemToArray(list, u);
    }
    out_json(o);
    cJSON_Delete(o);
}

enum status inspect_adapter(const struct flags *f, const char *dir, struct err *e) {
    struct inspection in = {.dir = dir};
    if (read_adapter(&in, e) == ST_OK && base_mark_read(&in.mark, dir, e) == ST_OK &&
        read_base(&in, flag_text(f, "base"), e) == ST_OK) {
        qsort(in.updates, in.count, sizeof *in.updates, compare_updates);
        if (flag_bool(f, "json"))
            show_json(&in);
        else
            show(&in);
    }
    for (size_t i = 0; i < in.count; i++) free(in.updates[i].path);
    free(in.updates);
    st_close(&in.set), st_close(&in.weights);
    base_mark_free(&in.mark);
    free(in.base);
    cJSON_Delete(in.config);
    return e->code;
}

#include "quant/checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/folder.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "quant/block.h"
#include "quant/bnb.h"
#include "quant/modules.h"

/* The tensors that stand for one weight of the source, in the order of enum part. */
enum part { PACKED, ABSMAX, CODE, STATE, NESTED_ABSMAX, NESTED_CODE, PARTS };

struct item {
    const struct st_entry *from;
    bool quantise;
    int64_t shard;
    int parts; // 1 (as it is), 4, or 6 (double-quantised)
    struct st_entry part[PARTS];
};

struct job {
    const struct checkpoint_options *o;
    const char *source;
    struct st_set set;
    struct item *items; // (set.count)
    cJSON *config;
    char *config_text;
    cJSON *skip_modules;
    struct checkpoint_report *report;
    int64_t done; // bytes of the source that were dealt with
    /* Room for the largest weight. */
    uint8_t *packed, *absmax8;
    float *absmax, *nested_absmax;
    float map8[256];
};

struct checkpoint_options checkpoint_defaults(void) {
    return (struct checkpoint_options){
        .type = NF4, .double_quant = true, .blocksize = 64, .max_shard_size = 5000000000};
}

/* --- what there is, and what becomes of it ----------------------------------------------------------------------- */

static enum dtype source_type(const struct st_entry *t) {
    return t->type == ST_F32 ? F32 : t->type == ST_BF16 ? BF16 : F16;
}

static int64_t element_count(const struct st_entry *t) { return (int64_t)(t->bytes / st_type_size(t->type)); }

static enum status check_options(const struct checkpoint_options *o, struct err *e) {
    if (!blocksize_valid(o->blocksize))
        return err_set(e, ST_USAGE, "blocksize is %d, wanted a power of two from 32 to 4096", o->blocksize);
    if (o->max_shard_size < 1)
        return err_set(e, ST_USAGE, "max_shard_size is %lld, wanted 1 or more", (long long)o->max_shard_size);
    return ST_OK;
}

static enum status read_config(struct job *j, struct err *e) {
    size_t size;
    char *path = path_join(j->source, "config.json");
    if (file_read(path, &j->config_text, &size, e) == ST_OK) j->config = json_parse(j->config_text, size, path, e);
    if (j->config && !cJSON_IsObject(j->config)) err_set(e, ST_FAIL, "%s: is not an object", path);
    const cJSON *text = j->config ? json_get(j->config, "text_config") : NULL;
    if (e->code == ST_OK &&
        (json_get(j->config, "quantization_config") || (cJSON_IsObject(text) && json_get(text, "quantization_config"))))
        err_set(e, ST_FAIL, "%s: the model is quantised already; start from the unquantised one", path);
    free(path);
    return e->code;
}

static enum status check_source(const struct job *j, struct err *e) {
    size_t stem;
    for (size_t i = 0; i < j->set.count; i++) {
        const struct st_entry *t = &j->set.entries[i];
        if (bnb_is_side(t->name, &stem) || text_ends(t->name, ".SCB"))
            return err_set(e, ST_FAIL,
                           "%s: tensor %.200s belongs to a quantised weight; start from the unquantised model", t->file,
                           t->name);
    }
    return ST_OK;
}

static struct st_entry part_entry(const struct st_entry *from, const char *suffix, enum st_type type, int64_t d0) {
    struct st_entry t = {.type = type, .rank = 1, .dim = {d0}, .bytes = (size_t)d0 * st_type_size(type)};
    t.name = *suffix ? mem_format("%s.%s", from->name, suffix) : mem_text(from->name);
    return t;
}

static struct q4 state_of(const struct job *j, const struct st_entry *from, float nested_offset) {
    return (struct q4){.blocksize = j->o->blocksize,
                       .source = source_type(from),
                       .nested_offset = nested_offset,
                       .nested_blocksize = j->o->double_quant ? NESTED_BLOCKSIZE : 0};
}

static char *state_text(const struct job *j, const struct st_entry *from, float nested_offset) {
    struct q4 q = state_of(j, from, nested_offset);
    return bnb_state_text(j->o->type, &q, from->dim[0], from->dim[1]);
}

/* Names and shapes of what becomes of t. */
static void plan_item(const struct job *j, struct item *t) {
    const struct st_entry *from = t->from;
    if (!t->quantise) {
        t->parts = 1;
        t->part[0] = *from;
        t->part[0].name = mem_text(from->name);
        return;
    }
    int64_t n = element_count(from), blocks = block_count(n, j->o->blocksize);
    bool nested = j->o->double_quant;
    char *text = state_text(j, from, 0), *suffix = mem_format("quant_state.%s", bnb_state_suffix(j->o->type));
    t->part[PACKED] = part_entry(from, "", ST_U8, n / 2 + n % 2);
    t->part[PACKED].rank = 2, t->part[PACKED].dim[1] = 1;
    t->part[ABSMAX] = part_entry(from, "absmax", nested ? ST_U8 : ST_F32, blocks);
    t->part[CODE] = part_entry(from, "quant_map", ST_F32, 16);
    t->part[STATE] = part_entry(from, suffix, ST_U8, (int64_t)strlen(text));
    t->parts = 4;
    if (nested) {
        t->part[NESTED_ABSMAX] = part_entry(from, "nested_absmax", ST_F32, block_count(blocks, NESTED_BLOCKSIZE));
        t->part[NESTED_CODE] = part_entry(from, "nested_quant_map", ST_F32, 256);
        t->parts = PARTS;
    }
    free(text), free(suffix);
}

/* Fills the items, deals them out to shards in order of name, and finds room for the largest. */
static enum status plan(struct job *j, struct err *e) {
    bool *quantise = mem_alloc(j->set.count);
    enum status st = modules_choose(quantise, &j->skip_modules, &j->set, j->config, j->o->skip, e);
    int64_t in_shard = 0, largest = 0;
    j->items = mem_alloc(j->set.count * sizeof *j->items);
    for (size_t i = 0; i < j->set.count && st == ST_OK; i++) {
        struct item *t = &j->items[i];
        int64_t bytes = 0;
        *t = (struct item){.from = &j->set.entries[i], .quantise = quantise[i]};
        plan_item(j, t);
        for (int k = 0; k < t->parts; k++) bytes += (int64_t)t->part[k].bytes;
        if (in_shard > 0 && in_shard + bytes > j->o->max_shard_size) j->report->shards++, in_shard = 0;
        in_shard += bytes;
        t->shard = j->report->shards;
        j->report->bytes_in += (int64_t)t->from->bytes;
        j->report->bytes_out += bytes;
        j->report->quantised += t->quantise;
        if (t->quantise && element_count(t->from) > largest) largest = element_count(t->from);
    }
    j->report->shards++;
    j->report->tensors = (int64_t)j->set.count;
    if (st == ST_OK && j->report->quantised == 0)
        st = err_set(e, ST_FAIL, "%s: no weight of the model would become 4-bit", j->source);
    int64_t blocks = block_count(largest, j->o->blocksize);
    j->packed = mem_alloc((size_t)(largest / 2 + 1)), j->absmax = mem_alloc((size_t)blocks * sizeof(float));
    j->absmax8 = mem_alloc((size_t)blocks);
    j->nested_absmax = mem_alloc((size_t)block_count(blocks, NESTED_BLOCKSIZE) * sizeof(float));
    block_map8(j->map8);
    free(quantise);
    return st;
}

/* --- writing the tensors ----------------------------------------------------------------------------------------- */

static enum status put(struct st_writer *w, struct item *t, enum part part, const void *data, struct err *e) {
    t->part[part].data = data;
    return st_writer_put_named(w, &t->part[part], e);
}

/* A tensor that stays as it is, by parts, so that no more of it than that is in memory. */
static enum status copy(struct st_writer *w, const struct item *t, struct err *e) {
    enum { COPY_BYTES = 4 << 20 };
    st_writer_begin(w, &t->part[0], e);
    for (size_t at = 0; at < t->from->bytes && e->code == ST_OK; at += COPY_BYTES) {
        struct st_entry part = st_part(t->from, at, COPY_BYTES);
        st_writer_add(w, part.data, part.bytes, e);
        st_forget(&part);
    }
    return e->code;
}

static enum status write_quantised(struct job *j, struct st_writer *w, struct item *t, struct err *e) {
    const struct checkpoint_options *o = j->o;
    const struct st_entry *from = t->from;
    int64_t n = element_count(from), blocks = block_count(n, o->blocksize);
    block_quantize(j->packed, j->absmax, from->data, source_type(from), n, o->type, o->blocksize, o->threads);
    for (int64_t b = 0; b < blocks; b++)
        if (!isfinite(j->absmax[b]))
            return err_set(e, ST_FAIL,
                           "%s: tensor %.200s holds a NaN or an infinity near element %lld; it cannot be quantised",
                           from->file, from->name, (long long)(b * o->blocksize));
    float offset = 0;
    if (o->double_quant) offset = block_nest(j->absmax8, j->nested_absmax, j->absmax, blocks, j->map8, o->threads);
    char *text = state_text(j, from, offset);
    put(w, t, PACKED, j->packed, e);
    put(w, t, ABSMAX, o->double_quant ? (void *)j->absmax8 : (void *)j->absmax, e);
    put(w, t, CODE, block_code(o->type), e);
    put(w, t, STATE, text, e);
    if (o->double_quant) {
        put(w, t, NESTED_ABSMAX, j->nested_absmax, e);
        put(w, t, NESTED_CODE, j->map8, e);
    }
    free(text);
    return e->code;
}

static char *shard_name(const struct job *j, int64_t shard) {
    if (j->report->shards == 1) return mem_text("model.safetensors");
    return mem_format("model-%05lld-of-%05lld.safetensors", (long long)shard + 1, (long long)j->report->shards);
}

/* The items first .. last-1 are those of the shard. */
static enum status write_shard(struct job *j, const char *dir, size_t first, size_t last, struct err *e) {
    char *name = shard_name(j, j->items[first].shard), *path = path_join(dir, name);
    struct st_entry *entries = mem_alloc((last - first) * PARTS * sizeof *entries);
    struct st_writer w = {0};
    size_t count = 0;
    for (size_t i = first; i < last; i++)
        for (int k = 0; k < j->items[i].parts; k++) entries[count++] = j->items[i].part[k];
    if (st_writer_open(&w, path, entries, count, e) != ST_OK) goto done;
    for (size_t i = first; i < last; i++) {
        struct item *t = &j->items[i];
        if (watch_tell(&j->o->watch, t->from->name, j->done, j->report->bytes_in, e) != ST_OK) goto done;
        if ((t->quantise ? write_quantised(j, &w, t, e) : copy(&w, t, e)) != ST_OK) goto done;
        st_forget(t->from);
        j->done += (int64_t)t->from->bytes;
    }
    st_writer_commit(&w, e);
done:
    st_writer_abandon(&w);
    free(entries), free(path), free(name);
    return e->code;
}

static enum status write_index(const struct job *j, const char *dir, struct err *e) {
    cJSON *tree = cJSON_CreateObject(), *map;
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(tree, "metadata"), "total_size", (double)j->report->bytes_out);
    map = cJSON_AddObjectToObject(tree, "weight_map");
    for (size_t i = 0; i < j->set.count; i++) {
        char *name = shard_name(j, j->items[i].shard);
        for (int k = 0; k < j->items[i].parts; k++) cJSON_AddStringToObject(map, j->items[i].part[k].name, name);
        free(name);
    }
    json_write_in(dir, "model.safetensors.index.json", tree, e);
    cJSON_Delete(tree);
    return e->code;
}

static enum status write_tensors(struct job *j, const char *dir, struct err *e) {
    for (size_t i = 0, end; i < j->set.count && e->code == ST_OK; i = end) {
        for (end = i; end < j->set.count && j->items[end].shard == j->items[i].shard;) end++;
        write_shard(j, dir, i, end, e);
    }
    if (e->code == ST_OK && j->report->shards > 1) write_index(j, dir, e);
    return e->code;
}

/* --- the other files --------------------------------------------------------------------------------------------- */

/* What the products are computed in: the type that the model's other tensors have. */
static const char *compute_dtype(const struct job *j) {
    const cJSON *dtype = json_get(j->config, "dtype");
    if (!dtype) dtype = json_get(j->config, "torch_dtype");
    const char *name = cJSON_IsString(dtype) ? dtype->valuestring : "";
    for (size_t i = 0; !*name && i < j->set.count; i++)
        if (j->items[i].quantise && j->items[i].from->type == ST_F32) name = "float32";
    if (strcmp(name, "float32") == 0) return "float32";
    return strcmp(name, "float16") == 0 ? "float16" : "bfloat16";
}

/* The keys as transformers writes them; it insists on a threshold that is written as a float. */
static void add_quantization_config(struct text *t, const struct job *j) {
    char *skip = json_text(j->skip_modules, true);
    text_addf(t,
              "\n  \"quantization_config\": {\n"
              "    \"_load_in_4bit\": true,\n"
              "    \"_load_in_8bit\": false,\n"
              "    \"bnb_4bit_compute_dtype\": \"%s\",\n"
              "    \"bnb_4bit_quant_storage\": \"uint8\",\n"
              "    \"bnb_4bit_quant_type\": \"%s\",\n"
              "    \"bnb_4bit_use_double_quant\": %s,\n"
              "    \"llm_int8_enable_fp32_cpu_offload\": false,\n"
              "    \"llm_int8_has_fp16_weight\": false,\n"
              "    \"llm_int8_skip_modules\": %s,\n"
              "    \"llm_int8_threshold\": 6.0,\n"
              "    \"load_in_4bit\": true,\n"
              "    \"load_in_8bit\": false,\n"
              "    \"quant_method\": \"bitsandbytes\"\n"
              "  }\n}\n",
              compute_dtype(j), dtype_name(j->o->type), j->o->double_quant ? "true" : "false", skip);
    free(skip);
}

/* The text of the source with one key more, so that every number in it stays written as it was. */
static enum status write_config(const struct job *j, const char *dir, struct err *e) {
    struct text t = {0};
    bool null_there = cJSON_HasObjectItem(j->config, "quantization_config");
    if (null_there) cJSON_DeleteItemFromObjectCaseSensitive(j->config, "quantization_config");
    char *base = null_there ? json_text(j->config, false) : mem_text(j->config_text);
    size_t end = (size_t)(strrchr(base, '}') - base);
    while (end > 0 && strchr(" \t\r\n", base[end - 1])) end--;
    text_add_n(&t, base, end);
    text_add(&t, j->config->child ? "," : "");
    add_quantization_config(&t, j);
    char *path = path_join(dir, "config.json");
    file_write(path, t.data, t.len, e);
    free(path), free(base);
    text_free(&t);
    return e->code;
}

/* --- the whole --------------------------------------------------------------------------------------------------- */

static void job_release(struct job *j) {
    for (size_t i = 0; j->items && i < j->set.count; i++)
        for (int k = 0; k < j->items[i].parts; k++) free((char *)j->items[i].part[k].name);
    free(j->items), free(j->packed), free(j->absmax), free(j->absmax8), free(j->nested_absmax), free(j->config_text);
    cJSON_Delete(j->config), cJSON_Delete(j->skip_modules);
    st_close(&j->set);
}

enum status checkpoint_quantize(const char *source, const char *out, const struct checkpoint_options *o,
                                struct checkpoint_report *report, struct err *e) {
    struct job j = {.o = o, .source = source, .report = report};
    struct folder_out folder = {0};
    *report = (struct checkpoint_report){0};
    if (check_options(o, e) != ST_OK || folder_open(&folder, out, e) != ST_OK || read_config(&j, e) != ST_OK) goto done;
    if (st_open_dir(&j.set, source, "model", e) != ST_OK || check_source(&j, e) != ST_OK || plan(&j, e) != ST_OK)
        goto done;
    if (write_tensors(&j, folder.beside, e) != ST_OK || write_config(&j, folder.beside, e) != ST_OK ||
        folder_copy_companions(source, folder.beside, e) != ST_OK)
        goto done;
    folder_commit(&folder, e);
done:
    folder_abandon(&folder);
    job_release(&j);
    return e->code;
}

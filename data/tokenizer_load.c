/* Reading tokenizer.json and the files beside it. The vocabulary and the merges are large and are scanned in place; the
 * rest is small and is copied out, member by member, to be parsed as a tree. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "data/json_scan.h"
#include "data/tokenizer_parts.h"

struct span {
    size_t from, to; // from == to: absent
};

/* The members of the object at c: those named in large are only located, the others are copied into rest, an object. */
static bool split_object(struct json_scan *c, const char *const *large, size_t count, struct span *spans,
                         struct text *rest) {
    struct text key = {0};
    bool first = true, failed = !json_scan_need(c, '{');
    text_add(rest, "{");
    while (!failed && json_scan_member(c, &first, &key, &failed)) {
        size_t from = c->at, i = 0;
        if (!json_scan_skip(c)) {
            failed = true;
            break;
        }
        while (i < count && strcmp(large[i], key.data) != 0) i++;
        if (i < count) {
            spans[i] = (struct span){from, c->at};
            continue;
        }
        char *quoted = json_quote(key.data);
        if (rest->len > 1) text_add(rest, ",");
        text_add(rest, quoted);
        text_add(rest, ":");
        text_add_n(rest, c->text + from, c->at - from);
        free(quoted);
    }
    text_add(rest, "}");
    text_free(&key);
    return !failed;
}

static bool read_vocab(struct json_scan *c, struct bpe *b) {
    struct text token = {0};
    int64_t id;
    bool first = true, failed = !json_scan_need(c, '{');
    while (!failed && json_scan_member(c, &first, &token, &failed))
        failed = !json_scan_id(c, &id) || bpe_add_token(b, token.data, token.len, id, c->e) != ST_OK;
    text_free(&token);
    return !failed;
}

/* A merge as "left right". */
static bool split_merge(struct json_scan *c, struct text *left, struct text *right) {
    if (!json_scan_string(c, left)) return false;
    char *blank = memchr(left->data, ' ', left->len);
    if (!blank || memchr(blank + 1, ' ', left->len - (size_t)(blank + 1 - left->data)))
        return json_scan_wrong(c, "a merge of two halves with one blank between them");
    text_clear(right);
    text_add_n(right, blank + 1, left->len - (size_t)(blank + 1 - left->data));
    left->len = (size_t)(blank - left->data);
    left->data[left->len] = 0;
    return true;
}

static bool pair_of_strings(struct json_scan *c, struct text *left, struct text *right) {
    return json_scan_string(c, left) && json_scan_need(c, ',') && json_scan_string(c, right) && json_scan_need(c, ']');
}

static bool read_merges(struct json_scan *c, struct bpe *b) {
    struct text left = {0}, right = {0};
    bool first = true, failed = !json_scan_need(c, '[');
    while (!failed && json_scan_item(c, &first, &failed)) {
        if (json_scan_take(c, '[')) {
            failed = !pair_of_strings(c, &left, &right);
        } else {
            size_t before = c->at;
            if (!json_scan_string(c, &left)) break;
            if (text_starts(left.data, "#version")) continue;
            c->at = before;
            failed = !split_merge(c, &left, &right);
        }
        failed = failed || bpe_add_merge(b, &left, &right, c->e) != ST_OK;
    }
    text_free(&left);
    text_free(&right);
    return c->e->code == ST_OK;
}

static enum status refuse_other_members(const cJSON *o, const char *const *known, size_t count, const char *where,
                                        const char *what, struct err *e) {
    const cJSON *item;
    cJSON_ArrayForEach(item, o) {
        size_t i = 0;
        while (i < count && strcmp(known[i], item->string) != 0) i++;
        if (i == count) return err_set(e, ST_FAIL, "%s: %s \"%.60s\" is not supported", where, what, item->string);
    }
    return ST_OK;
}

static enum status read_rules(const cJSON *o, const char *where, bool byte_level, struct bpe_rules *rules,
                              const char **unk, struct err *e) {
    static const char *const known[] = {
        "type",     "dropout",       "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
        "fuse_unk", "byte_fallback", "ignore_merges"};
    const char *prefix, *suffix;
    double dropout;
    if (refuse_other_members(o, known, sizeof known / sizeof known[0], where, "the model setting", e) != ST_OK ||
        json_num(o, where, "dropout", 0, &dropout, e) != ST_OK ||
        json_str(o, where, "continuing_subword_prefix", "", &prefix, e) != ST_OK ||
        json_str(o, where, "end_of_word_suffix", "", &suffix, e) != ST_OK ||
        json_str(o, where, "unk_token", NULL, unk, e) != ST_OK ||
        json_bool(o, where, "fuse_unk", false, &rules->fuse_unk, e) != ST_OK ||
        json_bool(o, where, "byte_fallback", false, &rules->byte_fallback, e) != ST_OK ||
        json_bool(o, where, "ignore_merges", false, &rules->ignore_merges, e) != ST_OK)
        return e->code;
    if (dropout != 0) return err_set(e, ST_FAIL, "%s: dropout %g is not supported, wanted null", where, dropout);
    if (*prefix || *suffix)
        return err_set(e, ST_FAIL, "%s: %s \"%.40s\" is not supported", where,
                       *prefix ? "continuing_subword_prefix" : "end_of_word_suffix", *prefix ? prefix : suffix);
    rules->byte_level = byte_level;
    return ST_OK;
}

static struct json_scan scan_of(const struct json_scan *whole, struct span span) {
    struct json_scan c = *whole;
    c.at = span.from;
    c.n = span.to;
    return c;
}

/* Merges make the pieces. */
static enum status read_bpe(struct tokenizer *t, const cJSON *json, struct json_scan *vocab, struct json_scan *merges,
                            struct err *e) {
    struct bpe_rules rules = {0};
    const char *unk;
    if (read_rules(json, vocab->where, t->pretokenizer.last == LAST_BYTES, &rules, &unk, e) != ST_OK) return e->code;
    if (merges->at == merges->n) return err_set(e, ST_FAIL, "%s: the model has no merges", merges->where);
    if (read_vocab(vocab, t->bpe) && read_merges(merges, t->bpe)) bpe_finish(t->bpe, &rules, unk, e);
    return e->code;
}

/* Pieces with their scores; ids follow the list. */
static bool read_scores(struct json_scan *c, struct bpe *b, double **scores) {
    struct text piece = {0};
    size_t count = 0, room = 0;
    bool first = true, failed = !json_scan_need(c, '[');
    while (!failed && json_scan_item(c, &first, &failed)) {
        if (count == room) *scores = mem_resize(*scores, (room = room ? 2 * room : 4096) * sizeof **scores);
        failed = !json_scan_need(c, '[') || !json_scan_string(c, &piece) || !json_scan_need(c, ',') ||
                 !json_scan_number(c, *scores + count) || !json_scan_need(c, ']');
        if (!failed && bpe_id(b, text_str(&piece), piece.len) >= 0)
            failed = !json_scan_wrong(c, "a piece that is not in the vocabulary yet");
        failed = failed || bpe_add_token(b, text_str(&piece), piece.len, (int64_t)count++, c->e) != ST_OK;
    }
    text_free(&piece);
    return !failed;
}

/* Scores make the pieces. */
static enum status read_unigram(struct tokenizer *t, const cJSON *json, struct json_scan *vocab, struct err *e) {
    static const char *const known[] = {"type", "unk_id", "byte_fallback"};
    const char *where = vocab->where;
    double *scores = NULL;
    int64_t unk;
    bool fallback;
    if (refuse_other_members(json, known, sizeof known / sizeof known[0], where, "the model setting", e) != ST_OK ||
        json_int(json, where, "unk_id", -1, &unk, e) != ST_OK ||
        json_bool(json, where, "byte_fallback", false, &fallback, e) != ST_OK)
        return e->code;
    if (t->pretokenizer.last == LAST_BYTES)
        return err_set(e, ST_FAIL, "%s: a Unigram model behind a byte-level pre-tokenizer is not supported", where);
    const struct bpe_rules rules = {.byte_fallback = fallback};
    if (read_scores(vocab, t->bpe, &scores) && bpe_finish(t->bpe, &rules, NULL, e) == ST_OK) {
        if (unk < 0 || unk >= bpe_limit(t->bpe))
            err_set(e, ST_FAIL, "%s: unk_id is %lld, wanted the id of one of the %d pieces", where, (long long)unk,
                    bpe_limit(t->bpe));
        else
            t->unigram = unigram_new(t->bpe, scores, (int32_t)unk, fallback);
    }
    free(scores);
    return e->code;
}

static enum status read_model(struct tokenizer *t, const struct json_scan *whole, struct span span, struct err *e) {
    static const char *const large[] = {"vocab", "merges"};
    struct span spans[2] = {{0, 0}, {0, 0}};
    struct text rest = {0};
    cJSON *json = NULL;
    const char *type, *where = whole->where;
    struct json_scan c = scan_of(whole, span);
    if (!split_object(&c, large, 2, spans, &rest) || !(json = json_parse(rest.data, rest.len, where, e))) goto done;
    if (json_str(json, where, "type", "BPE", &type, e) != ST_OK) goto done;
    struct json_scan vocab = scan_of(whole, spans[0]), merges = scan_of(whole, spans[1]);
    t->bpe = bpe_new(where);
    if (vocab.at == vocab.n)
        err_set(e, ST_FAIL, "%s: the model has no vocab", where);
    else if (strcmp(type, "BPE") == 0)
        read_bpe(t, json, &vocab, &merges, e);
    else if (strcmp(type, "Unigram") == 0 && merges.at == merges.n)
        read_unigram(t, json, &vocab, e);
    else
        err_set(e, ST_FAIL, "%s: the model \"%.40s\" is not supported, wanted BPE or Unigram", where, type);
done:
    cJSON_Delete(json);
    text_free(&rest);
    return e->code;
}

/* The ids of a special token of a template, into out. */
static enum status template_ids(const cJSON *json, const char *name, const char *where, struct ids *out,
                                struct err *e) {
    const cJSON *token = cJSON_GetObjectItemCaseSensitive(json_get(json, "special_tokens"), name), *id;
    const cJSON *list = json_get(token, "ids");
    if (!cJSON_IsArray(list))
        return err_set(e, ST_FAIL, "%s: TemplateProcessing has no ids for \"%.60s\"", where, name);
    cJSON_ArrayForEach(id, list) {
        if (!json_is_integer(id) || id->valuedouble < 0 || id->valuedouble >= TOKEN_LIMIT)
            return err_set(e, ST_FAIL, "%s: TemplateProcessing has a wrong id for \"%.60s\"", where, name);
        ids_add(out, id->valueint);
    }
    return ST_OK;
}

/* Ids before and after the text. A template within a sequence wraps what those before it made. */
static enum status read_template(struct tokenizer *t, const cJSON *json, const char *where, struct err *e) {
    struct ids before = {0}, after = {0};
    const cJSON *single = json_get(json, "single"), *item;
    int texts = 0;
    if (!cJSON_IsArray(single)) err_set(e, ST_FAIL, "%s: TemplateProcessing has no list \"single\"", where);
    cJSON_ArrayForEach(item, single) {
        const cJSON *special = json_get(item, "SpecialToken"), *sequence = json_get(item, "Sequence");
        const char *id;
        if (json_str(special ? special : sequence, where, "id", "", &id, e) != ST_OK) break;
        if (special && template_ids(json, id, where, texts ? &after : &before, e) != ST_OK) break;
        if (special) continue;
        if (!sequence || strcmp(id, "A") != 0 || ++texts > 1)
            err_set(e, ST_FAIL, "%s: TemplateProcessing: \"single\" does not hold the text A once", where);
    }
    if (e->code == ST_OK && texts == 0)
        err_set(e, ST_FAIL, "%s: TemplateProcessing: \"single\" does not hold the text A", where);
    for (size_t i = 0; i < t->prefix.len; i++) ids_add(&before, t->prefix.data[i]);
    for (size_t i = 0; i < after.len; i++) ids_add(&t->suffix, after.data[i]);
    ids_free(&t->prefix);
    ids_free(&after);
    t->prefix = before;
    return e->code;
}

static enum status read_post_processor(struct tokenizer *t, const cJSON *json, const char *where, int depth,
                                       struct err *e) {
    enum { DEEPEST = 16 };
    const char *type;
    if (!json) return ST_OK;
    if (json_str(json, where, "type", "", &type, e) != ST_OK) return e->code;
    if (strcmp(type, "ByteLevel") == 0) return ST_OK; // about offsets only
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(t, json, where, e);
    const cJSON *list = json_get(json, "processors"), *item;
    if (strcmp(type, "Sequence") != 0 || !cJSON_IsArray(list) || depth == DEEPEST)
        return err_set(e, ST_FAIL, "%s: the post-processor \"%.40s\" is not supported", where, type);
    cJSON_ArrayForEach(item, list) if (read_post_processor(t, item, where, depth + 1, e) != ST_OK) return e->code;
    return ST_OK;
}

/* Settings that would change what encoding one text gives. */
static enum status check_settings(const cJSON *json, const char *where, struct err *e) {
    static const char *const known[] = {"version",    "truncation",    "padding",        "added_tokens",
                                        "normalizer", "pre_tokenizer", "post_processor", "decoder"};
    const char *version;
    if (refuse_other_members(json, known, sizeof known / sizeof known[0], where, "the member", e) != ST_OK ||
        json_str(json, where, "version", "1.0", &version, e) != ST_OK)
        return e->code;
    if (strcmp(version, "1.0") != 0)
        return err_set(e, ST_FAIL, "%s: version \"%.20s\" is not supported, wanted 1.0", where, version);
    if (json_get(json, "truncation"))
        return err_set(e, ST_FAIL, "%s: truncation is not supported, set it to null", where);
    const cJSON *padding = json_get(json, "padding"), *strategy = json_get(padding, "strategy");
    bool for_batches = cJSON_IsString(strategy) && strcmp(strategy->valuestring, "BatchLongest") == 0;
    if (padding && (!for_batches || json_get(padding, "pad_to_multiple_of")))
        return err_set(e, ST_FAIL, "%s: padding is not supported, set it to null", where);
    return ST_OK;
}

static enum status read_tokenizer(struct tokenizer *t, struct json_scan *c, struct err *e) {
    static const char *const large[] = {"model"};
    struct span model = {0, 0};
    struct text rest = {0};
    const char *where = c->where;
    cJSON *json = NULL;
    if (!split_object(c, large, 1, &model, &rest) || !json_scan_end(c)) goto done;
    if (!(json = json_parse(rest.data, rest.len, where, e)) || check_settings(json, where, e) != ST_OK) goto done;
    if (model.from == model.to) {
        err_set(e, ST_FAIL, "%s: there is no model", where);
        goto done;
    }
    if (normalizer_init(&t->normalizer, json_get(json, "normalizer"), where, e) != ST_OK ||
        pretokenizer_init(&t->pretokenizer, json_get(json, "pre_tokenizer"), where, e) != ST_OK ||
        detokenizer_init(&t->detokenizer, json_get(json, "decoder"), where, e) != ST_OK ||
        read_post_processor(t, json_get(json, "post_processor"), where, 0, e) != ST_OK)
        goto done;
    if (normalizer_prepends(&t->normalizer) && t->pretokenizer.prefix == META_FIRST) {
        err_set(e, ST_FAIL, "%s: Prepend together with Metaspace's prepend_scheme \"first\" is not supported", where);
        goto done;
    }
    if (read_model(t, c, model, e) != ST_OK) goto done;
    added_init(&t->added, json_get(json, "added_tokens"), t->bpe, &t->normalizer, t->runes, where, e);
done:
    cJSON_Delete(json);
    text_free(&rest);
    return e->code;
}

static enum status read_file(struct tokenizer *t, const char *path, struct err *e) {
    struct file_map m;
    if (file_map_open(&m, path, e) != ST_OK) return e->code;
    size_t valid = utf8_valid_prefix(m.data, m.size);
    struct json_scan c = {.text = m.data, .n = m.size, .where = path, .e = e};
    if (valid < m.size)
        err_set(e, ST_FAIL, "%s: not UTF-8 at byte %zu", path, valid);
    else
        read_tokenizer(t, &c, e);
    file_map_close(&m);
    return e->code;
}

/* DIR/name as a tree; NULL without an error when there is no such file. */
static cJSON *read_beside(const char *dir, const char *name, struct err *e) {
    char *path = path_join(dir, name);
    cJSON *json = file_exists(path) ? json_read(path, e) : NULL;
    free(path);
    return json;
}

/* The id of a token that the configuration names: a string, or an object that holds it. -1: none. */
static int32_t named_token(const struct tokenizer *t, const cJSON *config, const cJSON *map, const char *key) {
    const cJSON *v = json_get(config, key);
    if (!v) v = json_get(map, key);
    if (cJSON_IsObject(v)) v = json_get(v, "content");
    return cJSON_IsString(v) ? tokenizer_id(t, v->valuestring) : -1;
}

/* Where the configuration says whether to add BOS or EOS, that replaces the post-processor, as transformers does it. */
static enum status read_additions(struct tokenizer *t, const cJSON *config, const char *where, struct err *e) {
    const char *class;
    bool bos, eos;
    if (!json_get(config, "add_bos_token") && !json_get(config, "add_eos_token")) return ST_OK;
    if (json_str(config, where, "tokenizer_class", "", &class, e) != ST_OK) return e->code;
    bool llama = strcmp(class, "LlamaTokenizer") == 0 || strcmp(class, "LlamaTokenizerFast") == 0;
    if (json_bool(config, where, "add_bos_token", llama, &bos, e) != ST_OK ||
        json_bool(config, where, "add_eos_token", false, &eos, e) != ST_OK)
        return e->code;
    ids_clear(&t->prefix);
    ids_clear(&t->suffix);
    if (bos && t->bos >= 0) ids_add(&t->prefix, t->bos);
    if (eos && t->eos >= 0) ids_add(&t->suffix, t->eos);
    return ST_OK;
}

static enum status read_config(struct tokenizer *t, const char *dir, struct err *e) {
    cJSON *config = read_beside(dir, "tokenizer_config.json", e);
    cJSON *map = e->code == ST_OK ? read_beside(dir, "special_tokens_map.json", e) : NULL;
    if (e->code == ST_OK) {
        char *where = path_join(dir, "tokenizer_config.json");
        t->bos = named_token(t, config, map, "bos_token");
        t->eos = named_token(t, config, map, "eos_token");
        t->pad = named_token(t, config, map, "pad_token");
        read_additions(t, config, where, e);
        free(where);
    }
    cJSON_Delete(config);
    cJSON_Delete(map);
    return e->code;
}

struct tokenizer *tokenizer_load(const char *dir, struct err *e) {
    struct tokenizer *t = mem_alloc(sizeof *t);
    char *path = path_join(dir, "tokenizer.json");
    t->runes = runes_new();
    t->bos = t->eos = t->pad = -1;
    if (read_file(t, path, e) == ST_OK) read_config(t, dir, e);
    free(path);
    if (e->code == ST_OK) return t;
    tokenizer_free(t);
    return NULL;
}

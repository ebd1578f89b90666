#include "cli/parts.h"

#include <string.h>

#include "quant/bnb.h"

/* The first word that a name holds decides, so the parts around a language model come before its own. */
static const struct {
    const char *word;
    enum part_kind kind;
} words[] = {
    {"multi_modal_projector", PART_PROJECTOR},
    {"connector.", PART_PROJECTOR},
    {"vision_embed_tokens", PART_PROJECTOR},
    {"vision_tower", PART_VISION},
    {"vision_model", PART_VISION},
    {"visual.", PART_VISION},
    {"embed_tokens", PART_EMBEDDING},
    {"lm_head", PART_HEAD},
    {"score.", PART_HEAD},
    {"classifier", PART_HEAD},
    {"norm", PART_NORM},
    {"attn.", PART_ATTENTION},
    {"mlp.", PART_FFN},
};

static enum part_kind kind_of(const char *name) {
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(name, words[i].word)) return words[i].kind;
    return PART_OTHER;
}

const char *part_name(enum part_kind kind) {
    static const char *const names[] = {"embedding", "attention", "feed-forward", "norms",
                                        "head",      "vision",    "projector",    "other"};
    return names[kind];
}

const char *part_type_name(int type) {
    if (type == TYPE_NF4) return "nf4";
    return type == TYPE_FP4 ? "fp4" : st_type_name((enum st_type)type);
}

static void add(struct parts *p, enum part_kind kind, int64_t tensors, int64_t parameters, int64_t bytes, int type) {
    struct part_count *both[] = {&p->part[kind], &p->total};
    for (int i = 0; i < 2; i++) {
        both[i]->tensors += tensors;
        both[i]->parameters += parameters;
        both[i]->bytes += bytes;
    }
    if (type >= 0) p->type_count[kind][type] += parameters;
}

static enum status add_quantised(struct parts *p, const struct st_set *s, const struct st_entry *t, struct err *e) {
    struct q4_weight w = {0};
    if (bnb_read(&w, s, t->name, e) != ST_OK) return e->code;
    add(p, kind_of(t->name), 1, tensor_count(&w.t), (int64_t)t->bytes, w.t.type == NF4 ? TYPE_NF4 : TYPE_FP4);
    p->quantised++;
    p->blocksize = w.q.blocksize;
    p->double_quant |= w.q.nested_blocksize > 0;
    bnb_release(&w);
    return ST_OK;
}

enum status parts_count(struct parts *p, const struct st_set *s, struct err *e) {
    *p = (struct parts){0};
    for (size_t i = 0; i < s->count && e->code == ST_OK; i++) {
        const struct st_entry *t = &s->entries[i];
        size_t stem;
        if (bnb_is_4bit(s, t->name)) {
            add_quantised(p, s, t, e);
        } else if (bnb_is_side(t->name, &stem)) {
            add(p, kind_of(t->name), 0, 0, (int64_t)t->bytes, -1);
        } else {
            add(p, kind_of(t->name), 1, (int64_t)(t->bytes / st_type_size(t->type)), (int64_t)t->bytes, t->type);
            p->kept++;
        }
    }
    return e->code;
}

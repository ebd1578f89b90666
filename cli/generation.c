#include "cli/generation.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/memory.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/session.h"

/* ---------------------------------------------------------------- opening */

static enum status check_flags(const struct flags *f, struct err *e) {
    double temperature = flag_number(f, "temperature"), top_p = flag_number(f, "top_p");
    if (temperature < 0) return err_set(e, ST_USAGE, "--temperature is %g, wanted 0 (greedy) or more", temperature);
    if (!(top_p > 0 && top_p <= 1)) return err_set(e, ST_USAGE, "--top_p is %g, wanted more than 0, at most 1", top_p);
    if (flag_int(f, "max_new_tokens") < 1)
        return err_set(e, ST_USAGE, "--max_new_tokens is %lld, wanted 1 or more",
                       (long long)flag_int(f, "max_new_tokens"));
    if (flag_int(f, "max_seq_len") < 0)
        return err_set(e, ST_USAGE, "--max_seq_len is %lld, wanted 0 or more", (long long)flag_int(f, "max_seq_len"));
    if (flag_int(f, "seed") < 0)
        return err_set(e, ST_USAGE, "--seed is %lld, wanted 0 or more", (long long)flag_int(f, "seed"));
    return ST_OK;
}

static void add_stop(struct generation *g, int32_t id) {
    if (id >= 0) g->stops[g->stop_count++] = id;
}

/* What the model's files name, the tokenizer's own, and the end of a turn of the template llama_3. */
static void find_stops(struct generation *g) {
    g->stops = mem_alloc((size_t)(g->config.eos_count + 2) * sizeof *g->stops);
    for (int i = 0; i < g->config.eos_count; i++) add_stop(g, g->config.eos[i]);
    add_stop(g, tokenizer_eos(g->tokenizer));
    const struct conversation *conv = g->prompter.chat.conv;
    if (conv && strcmp(conversation_name(conv), "llama_3") == 0) add_stop(g, tokenizer_id(g->tokenizer, "<|eot_id|>"));
}

enum status generation_open(struct generation *g, const struct flags *f, bool raw, struct err *e) {
    *g = (struct generation){.f = f};
    if (check_flags(f, e) != ST_OK) return e->code;
    g->dir = model_dir(f->words[0], e);
    if (!g->dir || family_open(g->dir, &g->config, &g->family, &g->tokenizer, e) != ST_OK) return e->code;
    if (g->config.problem != PROBLEM_GENERATION)
        return err_set(e, ST_FAIL,
                       "%s: the model has a classification head and writes no text; graft score gives its outputs",
                       g->dir);
    if (prompter_open(&g->prompter, &g->family, g->tokenizer, flag_text(f, "conv_template"), raw, e) != ST_OK)
        return e->code;
    find_stops(g);
    return ST_OK;
}

/* Patches of the largest picture; 0: not known, or of one known size. */
static int64_t most_patches(const struct generation *g, const struct row *prompt) {
    const struct processor *p = &g->prompter.processor;
    if (!family_any_size(&g->family)) return 0;
    if (prompt) return image_set_count(prompt->image, prompt->images, &g->family).most;
    if (g->family.family == FAMILY_MFUYU && (p->do_resize || p->do_pad))
        return p->resize_height / p->patch * (p->resize_width / p->patch);
    if (!p->do_resize || !p->longest_edge) return 0;
    int64_t side = p->longest_edge > p->shortest_edge ? p->longest_edge : p->shortest_edge;
    int64_t patches = (side + g->family.patch_size - 1) / g->family.patch_size;
    return patches * patches;
}

enum status generation_load(struct generation *g, int64_t room, int64_t pictures, const struct row *prompt,
                            struct err *e) {
    const struct flags *f = g->f;
    const char *adapter = flag_text(f, "adapter");
    const struct load_options as_it_is = {.quantize.type = F32};
    g->be = backend_new(flag_text(f, "device"), (int)flag_int(f, "threads"), e);
    if (!g->be || model_load(&g->model, g->dir, g->be, &as_it_is, e) != ST_OK) return e->code;
    if (adapter && session_note_base(f, adapter, g->config.quantization_config, g->model, e) != ST_OK) return e->code;
    const struct generator_options o = {.room = room,
                                        .pictures = pictures,
                                        .most_patches = most_patches(g, prompt),
                                        .act = family_dtype(f, &g->config)};
    if (adapter && adapter_open(&g->adapter, g->model, adapter, e) != ST_OK) return e->code;
    if (adapter && o.act == BF16 && adapter_round(g->adapter, e) != ST_OK) return e->code;
    if (generator_new(&g->generator, g->model, &o, e) != ST_OK) return e->code;
    g->sampler = sampler_new(g->config.text.vocab, flag_number(f, "temperature"), flag_number(f, "top_p"),
                             (uint64_t)flag_int(f, "seed"));
    if (room > g->config.text.max_positions && g->config.text.max_positions > 0)
        out_note(
            f, "note: prompt and answer may take %lld positions; the model was made for %lld (max_position_embeddings)",
            (long long)room, (long long)g->config.text.max_positions);
    return ST_OK;
}

void generation_close(struct generation *g) {
    sampler_free(&g->sampler);
    generator_free(g->generator);
    adapter_free(g->adapter);
    model_free(g->model);
    out_profile(g->be);
    backend_free(g->be);
    prompter_close(&g->prompter);
    tokenizer_free(g->tokenizer);
    model_config_free(&g->config);
    free(g->stops);
    free(g->dir);
    *g = (struct generation){0};
}

/* ---------------------------------------------------------------- answering */

static bool is_stop(const struct generation *g, int32_t id) {
    for (int64_t i = 0; i < g->stop_count; i++)
        if (g->stops[i] == id) return true;
    return false;
}

/* Takes a SIGINT that waits. It is blocked, so that it ends nothing by itself. */
static bool was_interrupted(const struct generation *g) {
    if (!g->interruptible) return false;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    return sigtimedwait(&set, NULL, &(struct timespec){0}) == SIGINT;
}

/* Bytes of the text that more tokens will not change: a character whose bytes have not all come is U+FFFD so far. */
static size_t settled(const struct text *t) {
    size_t n = t->len;
    while (n >= 3 && memcmp(t->data + n - 3, "\xEF\xBF\xBD", 3) == 0) n -= 3;
    return n;
}

/* Decodes all of the answer, since a token's text depends on its neighbours, and shows what is new of it. Where bytes
 * that make no character change the text before them, it goes on at the next character. */
static void show(struct answer *a, const struct generation *g, size_t *shown, bool end) {
    text_clear(&a->text);
    tokenizer_decode(g->tokenizer, a->ids.data, a->ids.len, true, &a->text);
    size_t n = end ? a->text.len : settled(&a->text);
    while (*shown < n && ((unsigned char)a->text.data[*shown] & 0xC0) == 0x80) ++*shown;
    if (n > *shown) {
        out_bytes(a->text.data + *shown, n - *shown);
        fflush(stdout);
        *shown = n;
    }
}

/* Whether pictures that are in the cache would come out the same: a larger one beside them changes how they are cut. */
static bool reusable(struct generation *g, const struct row *prompt) {
    struct sides before = g->largest;
    g->largest = image_set_largest(prompt->image, prompt->images);
    bool same = g->largest.cols == before.cols && g->largest.rows == before.rows;
    return g->family.family != FAMILY_IDEFICS2 || same;
}

/* Pictures whose positions all lie in the first *n, which becomes the start of one that lies there in part. */
static int64_t whole_pictures(const struct generation *g, const struct batch *b, int64_t *n) {
    int64_t at = 0, i = 0;
    for (; i < b->images; i++) {
        int64_t left = picture_features(&g->config, &b->image[i]), start;
        while (at < *n && b->ids[at] >= 0) at++;
        for (start = at; at < *n && left > 0; at++) left -= b->ids[at] < 0;
        if (left == 0) continue;
        *n = start;
        break;
    }
    return i;
}

static enum status feed_prompt(struct answer *a, struct generation *g, const struct row *prompt, struct err *e) {
    struct row row = {
        .ids = prompt->ids, .labels = prompt->labels, .images = prompt->images, .positions = prompt->positions};
    struct batch_image *pixels = mem_alloc((size_t)prompt->images * sizeof *pixels);
    for (int64_t i = 0; i < prompt->images; i++) pixels[i] = prompt->image[i];
    row.image = pixels;
    struct batch b;
    batch_build(&b, &row, 1, &g->family);
    int64_t had = reusable(g, prompt) ? generator_common(g->generator, b.ids, b.N) : 0;
    int64_t pictures = whole_pictures(g, &b, &had);
    generator_keep(g->generator, had);
    generator_feed(g->generator, b.ids + had, b.N - had, b.image + pictures, b.images - pictures, e);
    a->prompt_positions = b.N, a->reused = had;
    for (int64_t i = 0; i < b.images; i++)
        if (b.image[i].pixels == prompt->image[i].pixels) b.image[i].pixels = NULL; // the row's
    batch_free(&b);
    free(pixels);
    return e->code;
}

static void add_choice(struct answer *a, const struct choice *c) {
    size_t n = a->ids.len;
    if ((n & (n - 1)) == 0) a->logprobs = mem_resize(a->logprobs, (n ? 2 * n : 1) * sizeof *a->logprobs);
    a->logprobs[n] = c->logprob;
    ids_add(&a->ids, c->id);
}

enum status generation_answer(struct answer *a, struct generation *g, const struct row *prompt, int64_t max_new_tokens,
                              bool stream, struct err *e) {
    *a = (struct answer){0};
    double began = clock_now();
    size_t shown = 0;
    if (feed_prompt(a, g, prompt, e) != ST_OK) return e->code;
    a->prompt_seconds = clock_now() - began;
    while (!was_interrupted(g)) {
        struct choice c;
        if (sampler_choose(&c, &g->sampler, g->generator->logits, g->drawn++, e) != ST_OK) break;
        add_choice(a, &c);
        a->stopped = is_stop(g, c.id);
        if (stream) show(a, g, &shown, false);
        if (a->stopped || (int64_t)a->ids.len == max_new_tokens) break;
        if (generator_feed(g->generator, &c.id, 1, NULL, 0, e) != ST_OK) break;
    }
    if (stream) show(a, g, &shown, true);
    text_clear(&a->text);
    tokenizer_decode(g->tokenizer, a->ids.data, a->ids.len, true, &a->text);
    a->seconds = clock_now() - began;
    return e->code;
}

void answer_free(struct answer *a) {
    ids_free(&a->ids);
    free(a->logprobs);
    text_free(&a->text);
    *a = (struct answer){0};
}

/* ---------------------------------------------------------------- JSON */

static cJSON *id_list(const struct ids *ids) {
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < ids->len; i++) cJSON_AddItemToArray(list, cJSON_CreateNumber(ids->data[i]));
    return list;
}

void answer_print_json(const struct answer *a, const struct row *prompt) {
    double made = a->seconds - a->prompt_seconds;
    cJSON *o = cJSON_CreateObject(), *logprobs = cJSON_CreateArray();
    for (size_t i = 0; i < a->ids.len; i++) cJSON_AddItemToArray(logprobs, cJSON_CreateNumber(a->logprobs[i]));
    cJSON_AddItemToObject(o, "token_ids", id_list(&a->ids));
    cJSON_AddItemToObject(o, "logprobs", logprobs);
    cJSON_AddStringToObject(o, "finish_reason", a->stopped ? "stop" : "length");
    cJSON_AddItemToObject(o, "prompt_ids", id_list(&prompt->ids));
    cJSON_AddNumberToObject(o, "prompt_tokens", (double)a->prompt_positions);
    cJSON_AddNumberToObject(o, "reused_tokens", (double)a->reused);
    cJSON_AddNumberToObject(o, "prompt_seconds", a->prompt_seconds);
    cJSON_AddNumberToObject(o, "seconds", a->seconds);
    cJSON_AddNumberToObject(o, "tokens_per_second", made > 0 ? (double)a->ids.len / made : 0);
    char *rest = json_text(o, true);
    out_text("{\"text\": ");
    out_json_text(&a->text);
    out_text(", %s\n", rest + 1);
    fflush(stdout);
    free(rest);
    cJSON_Delete(o);
}

/* Generation: the cache against recomputing, pieces of a prompt, prompts through templates, the sampler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data/prompt.h"
#include "lora/adapter.h"
#include "model/generate.h"

#define MODELS "tests/golden/models/"

struct fixture {
    struct err err;
    struct backend *be;
    struct model *m;
    struct tokenizer *tokenizer;
    struct data_family family;
};

static void ok(const struct fixture *f) {
    if (f->err.code != ST_OK) fail_msg("%s", f->err.text);
}

static void open_fixture(struct fixture *f, const char *dir) {
    const struct load_options as_it_is = {.quantize.type = F32};
    *f = (struct fixture){0};
    f->be = backend_new("cpu", 2, &f->err);
    ok(f);
    model_load(&f->m, dir, f->be, &as_it_is, &f->err);
    ok(f);
    f->tokenizer = tokenizer_load(dir, &f->err);
    ok(f);
    const struct model_config *c = &f->m->config;
    f->family =
        (struct data_family){.family = c->family, .model_dir = dir, .vocab_size = c->text.vocab, .image_token = -1};
    if (c->family == FAMILY_MLLAVA) {
        f->family.default_template = "llama_3";
        f->family.image_token = c->image_token;
        f->family.tokens_per_image = vision_tokens(&c->vision);
        tokenizer_force_bos(f->tokenizer);
    }
}

static void close_fixture(struct fixture *f) {
    tokenizer_free(f->tokenizer);
    model_free(f->m);
    backend_free(f->be);
}

static struct generator *new_generator(struct fixture *f, int64_t room, int64_t pictures, int64_t piece) {
    struct generator *g;
    const struct generator_options o = {.room = room, .pictures = pictures, .piece = piece, .act = F32};
    generator_new(&g, f->m, &o, &f->err);
    ok(f);
    return g;
}

static void feed(struct fixture *f, struct generator *g, const int32_t *ids, int64_t n) {
    generator_feed(g, ids, n, NULL, 0, &f->err);
    ok(f);
}

/* Two orders of summation: a sum of n products differs by at most n u of its terms' size, and a logit comes out of 7
 * products a layer, the attention's two and the head's, one after the other, whose errors add up to first order. */
static double bound(const struct model *m, const float *logits) {
    const struct text_config *c = &m->config.text;
    double longest = (double)(c->ffn > c->dim ? c->ffn : c->dim), products = (double)(9 * c->layers + 1), size = 1;
    for (int64_t i = 0; i < c->vocab; i++)
        if (fabs((double)logits[i]) > size) size = fabs((double)logits[i]);
    return products * longest * 0x1p-24 * size;
}

static void assert_same_logits(const struct model *m, const float *got, const float *want) {
    double tolerance = bound(m, want);
    for (int64_t i = 0; i < m->config.text.vocab; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= tolerance))
            fail_msg("logit %lld: got %.9g, wanted %.9g within %.3g", (long long)i, (double)got[i], (double)want[i],
                     tolerance);
}

enum { TOKENS = 40 };

static void some_ids(const struct fixture *f, int32_t *ids, int64_t n) {
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(rng_bits(7, 0, (uint64_t)i) % (uint64_t)f->m->config.text.vocab);
}

/* --- the cache --------------------------------------------------------------------------------------------------- */

/* Longer than mistral's window, whose cache sees some keys no more. */
static void check_steps(const char *dir) {
    struct fixture f;
    int32_t ids[TOKENS];
    open_fixture(&f, dir);
    some_ids(&f, ids, TOKENS);
    struct generator *steps = new_generator(&f, TOKENS, 0, 0), *whole = new_generator(&f, TOKENS, 0, 0);
    for (int64_t n = 1; n <= TOKENS; n++) {
        feed(&f, steps, ids + n - 1, 1);
        generator_keep(whole, 0);
        feed(&f, whole, ids, n);
        assert_same_logits(f.m, steps->logits, whole->logits);
    }
    generator_free(steps), generator_free(whole);
    close_fixture(&f);
}

static void test_steps_equal_recomputing(void **state) {
    (void)state;
    check_steps(MODELS "llama/model");
    check_steps(MODELS "mistral/model");
    check_steps(MODELS "qwen2/model");
}

static void test_pieces_equal_whole(void **state) {
    (void)state;
    struct fixture f;
    int32_t ids[TOKENS];
    open_fixture(&f, MODELS "mistral/model");
    some_ids(&f, ids, TOKENS);
    struct generator *whole = new_generator(&f, TOKENS, 0, 0);
    feed(&f, whole, ids, TOKENS);
    const int64_t pieces[] = {1, 7, 39, 40};
    for (int i = 0; i < 4; i++) {
        struct generator *g = new_generator(&f, TOKENS, 0, pieces[i]);
        feed(&f, g, ids, TOKENS);
        assert_int_equal(g->length, TOKENS);
        assert_same_logits(f.m, g->logits, whole->logits);
        generator_free(g);
    }
    generator_free(whole);
    close_fixture(&f);
}

/* A second conversation takes over what it has in common with the first. */
static void test_common_part_is_kept(void **state) {
    (void)state;
    struct fixture f;
    int32_t ids[TOKENS], other[TOKENS];
    open_fixture(&f, MODELS "llama/model");
    some_ids(&f, ids, TOKENS);
    memcpy(other, ids, sizeof ids);
    other[25] = (ids[25] + 1) % (int32_t)f.m->config.text.vocab;
    struct generator *g = new_generator(&f, TOKENS, 0, 0), *whole = new_generator(&f, TOKENS, 0, 0);
    feed(&f, g, ids, TOKENS);
    assert_int_equal(generator_common(g, ids, TOKENS), TOKENS - 1);
    assert_int_equal(generator_common(g, ids, 10), 9);
    assert_int_equal(generator_common(g, other, TOKENS), 25);
    generator_keep(g, 25);
    feed(&f, g, other + 25, TOKENS - 25);
    feed(&f, whole, other, TOKENS);
    assert_same_logits(f.m, g->logits, whole->logits);
    generator_free(g), generator_free(whole);
    close_fixture(&f);
}

static void assert_refused(struct err *e, const char *word) {
    assert_int_equal(e->code, ST_FAIL);
    if (!strstr(e->text, word)) fail_msg("\"%s\" does not say \"%s\"", e->text, word);
    *e = (struct err){0};
}

static void test_refused_prompts(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, MODELS "llama/model");
    struct generator *g = new_generator(&f, 4, 0, 0);
    const int32_t ids[] = {1, 2, 3, 4, 5}, outside[] = {1, (int32_t)f.m->config.text.vocab}, picture[] = {1, -1};
    feed(&f, g, ids, 2);
    assert_int_not_equal(generator_feed(g, ids, 3, NULL, 0, &f.err), ST_OK);
    assert_refused(&f.err, "room");
    assert_int_not_equal(generator_feed(g, outside, 2, NULL, 0, &f.err), ST_OK);
    assert_refused(&f.err, "vocab");
    assert_int_not_equal(generator_feed(g, picture, 2, NULL, 0, &f.err), ST_OK);
    assert_refused(&f.err, "picture");
    assert_int_not_equal(generator_feed(g, ids, 0, NULL, 0, &f.err), ST_OK);
    assert_refused(&f.err, "empty");
    assert_int_equal(g->length, 2);
    feed(&f, g, ids, 2); // to the last place
    generator_free(g);
    struct generator_options o = {.room = 0, .act = F32};
    assert_int_not_equal(generator_new(&g, f.m, &o, &f.err), ST_OK);
    assert_null(g);
    close_fixture(&f);
}

/* --- whole answers ----------------------------------------------------------------------------------------------- */

struct asked {
    char *dir, *adapter;
    const char *text;
    char *image[4];
    int64_t images;
    cJSON *spec;
    const cJSON *want;
};

static char *in_case(const char *name, const char *word) {
    const char *rest = word + strlen("{case}/");
    return text_starts(rest, "../") ? mem_format(MODELS "%s", rest + 3) : mem_format(MODELS "%s/%s", name, rest);
}

static void read_case(struct asked *a, const char *name, struct err *e) {
    char *path = mem_format(MODELS "%s/case.json", name);
    *a = (struct asked){.spec = json_read(path, e)};
    free(path);
    assert_non_null(a->spec);
    const cJSON *line = json_get(a->spec, "run")->child;
    a->want = json_get(json_get(a->spec, "expect"), "token_ids");
    a->dir = in_case(name, line->child->next->valuestring);
    for (const cJSON *w = line->child; w; w = w->next) {
        if (strcmp(w->valuestring, "--prompt") == 0) a->text = w->next->valuestring;
        if (strcmp(w->valuestring, "--adapter") == 0) a->adapter = in_case(name, w->next->valuestring);
        if (strcmp(w->valuestring, "--image") == 0) a->image[a->images++] = in_case(name, w->next->valuestring);
    }
}

static void free_case(struct asked *a) {
    for (int64_t i = 0; i < a->images; i++) free(a->image[i]);
    free(a->dir), free(a->adapter);
    cJSON_Delete(a->spec);
}

static void encode_prompt(struct fixture *f, const struct asked *a, struct batch *b) {
    struct prompter p;
    struct row row;
    const struct prompt prompt = {.text = a->text, .images = a->images};
    prompter_open(&p, &f->family, f->tokenizer, NULL, true, &f->err);
    ok(f);
    prompt_encode(&row, &p, &prompt, &f->err);
    for (int64_t i = 0; i < row.images; i++) prompt_read_image(&row.image[i], &p, a->image[i], &f->err);
    ok(f);
    batch_build(b, &row, 1, &f->family);
    row_free(&row);
    prompter_close(&p);
}

static void check_answer(struct fixture *f, struct generator *g, const cJSON *want) {
    struct sampler s = sampler_new(f->m->config.text.vocab, 0, 1, 0);
    for (const cJSON *w = want->child; w; w = w->next) {
        struct choice c;
        sampler_choose(&c, &s, g->logits, 0, &f->err);
        ok(f);
        assert_int_equal(c.id, w->valueint);
        assert_true(c.logprob < 0);
        feed(f, g, &c.id, 1);
    }
    sampler_free(&s);
}

/* The tokens of the reference, with the prompt in one piece and in small ones. */
static void check_case(const char *name) {
    struct fixture f;
    struct asked a;
    struct adapter *adapter = NULL;
    struct batch b;
    struct err e = {0};
    read_case(&a, name, &e);
    open_fixture(&f, a.dir);
    if (a.adapter) adapter_open(&adapter, f.m, a.adapter, &f.err);
    ok(&f);
    encode_prompt(&f, &a, &b);
    const int64_t pieces[] = {0, 5, 1};
    for (int i = 0; i < 3; i++) {
        struct generator *g = new_generator(&f, b.N + cJSON_GetArraySize(a.want), b.images, pieces[i]);
        generator_feed(g, b.ids, b.N, b.image, b.images, &f.err);
        ok(&f);
        check_answer(&f, g, a.want);
        generator_free(g);
    }
    batch_free(&b);
    adapter_free(adapter);
    close_fixture(&f);
    free_case(&a);
}

static void test_answers_of_the_reference(void **state) {
    (void)state;
    check_case("generate-mistral");
    check_case("generate-lora");
    check_case("generate-mllava");
}

/* Two conversations that part behind a picture share it; those that part within share nothing of it. */
static void test_pictures_are_kept_whole(void **state) {
    (void)state;
    struct fixture f;
    struct asked a;
    struct batch b;
    struct err e = {0};
    read_case(&a, "generate-mllava", &e);
    open_fixture(&f, a.dir);
    encode_prompt(&f, &a, &b);
    int64_t first = 0, T = f.family.tokens_per_image;
    while (b.ids[first] >= 0) first++;
    struct generator *g = new_generator(&f, b.N, b.images, 0), *whole = new_generator(&f, b.N, b.images, 0);
    generator_feed(whole, b.ids, b.N, b.image, b.images, &f.err);
    generator_feed(g, b.ids, b.N, b.image, b.images, &f.err);
    ok(&f);
    assert_int_equal(generator_common(g, b.ids, first + T + 1), first + T);
    assert_int_equal(generator_common(g, b.ids, first + T), first); // the last position is always computed
    generator_keep(g, first + T);
    generator_feed(g, b.ids + first + T, b.N - first - T, b.image + 1, b.images - 1, &f.err);
    ok(&f);
    assert_same_logits(f.m, g->logits, whole->logits);
    generator_free(g), generator_free(whole);
    batch_free(&b);
    close_fixture(&f);
    free_case(&a);
}

/* --- prompts ----------------------------------------------------------------------------------------------------- */

#define SYSTEM                                                                                                         \
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a pirate chatbot who always responds in pirate "            \
    "speak!<|eot_id|>"
#define USER      "<|start_header_id|>user<|end_header_id|>\n\n"
#define ASSISTANT "<|start_header_id|>assistant<|end_header_id|>\n\n"
#define SEEN(k)   "(image " k ": <Image><image></Image>)"

static void assert_prompt(struct fixture *f, const char *conv, const struct prompt *prompt, const char *want) {
    struct prompter p;
    struct row row;
    struct ids ids = {0};
    prompter_open(&p, &f->family, f->tokenizer, conv, true, &f->err);
    ok(f);
    prompt_encode(&row, &p, prompt, &f->err);
    tokenizer_encode(f->tokenizer, want, strlen(want), true, &ids, &f->err);
    ok(f);
    assert_int_equal(row.ids.len, ids.len);
    assert_memory_equal(row.ids.data, ids.data, ids.len * sizeof *ids.data);
    assert_int_equal(row.positions, (int64_t)ids.len + row.images * (f->family.tokens_per_image - 1));
    ids_free(&ids);
    row_free(&row);
    prompter_close(&p);
}

static void test_mllava_prompts(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, MODELS "mllava/model");
    assert_prompt(&f, NULL, &(struct prompt){.text = "Hi"}, SYSTEM USER "Hi<|eot_id|>" ASSISTANT);
    assert_prompt(&f, NULL, &(struct prompt){.text = "a <image> b <image>", .images = 2},
                  SYSTEM USER "a " SEEN("1") " b " SEEN("2") "<|eot_id|>" ASSISTANT);
    assert_prompt(&f, NULL, &(struct prompt){.text = "a <image>", .images = 2}, // no place: the very front
                  SEEN("1") SYSTEM USER "a " SEEN("2") "<|eot_id|>" ASSISTANT);
    assert_prompt(&f, NULL, &(struct prompt){.text = "a <image>b<image>", .images = 1}, // surplus: deleted
                  SYSTEM USER "a " SEEN("1") "b<|eot_id|>" ASSISTANT);
    assert_prompt(
        &f, "mllava_v1", &(struct prompt){.text = "Hi", .images = 1},
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions.</s>USER:" SEEN("1") " Hi</s>ASSISTANT:");
    static const char json[] =
        "[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}, {\"type\": \"text\", \"text\": \"x\"}]},"
        " {\"role\": \"assistant\", \"content\": \"y\"}, {\"role\": \"user\", \"content\": \"z\"}]";
    cJSON *messages = json_parse(json, sizeof json - 1, "here", &f.err);
    ok(&f);
    assert_prompt(&f, NULL, &(struct prompt){.messages = messages, .where = "here", .images = 1},
                  SYSTEM USER SEEN("1") "x<|eot_id|>" ASSISTANT "y<|eot_id|>" USER "z<|eot_id|>" ASSISTANT);
    cJSON_Delete(messages);
    close_fixture(&f);
}

static void refuse(struct fixture *f, const char *conv, const char *json, int64_t images, const char *word) {
    struct prompter p;
    struct row row = {0};
    cJSON *messages = json_parse(json, strlen(json), "here", &f->err);
    const struct prompt prompt = {.messages = messages, .where = "here", .images = images};
    ok(f);
    if (prompter_open(&p, &f->family, f->tokenizer, conv, false, &f->err) == ST_OK)
        prompt_encode(&row, &p, &prompt, &f->err);
    assert_refused(&f->err, word);
    row_free(&row);
    prompter_close(&p);
    cJSON_Delete(messages);
}

static void test_refused_messages(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, MODELS "mllava/model");
    refuse(&f, NULL, "[]", 0, "list of messages");
    refuse(&f, NULL, "{\"role\":\"user\",\"content\":\"x\"}", 0, "list of messages");
    refuse(&f, NULL, "[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"y\"}]", 0,
           "last turn");
    refuse(&f, NULL, "[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"y\"}]", 0, "system");
    refuse(&f, NULL, "[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"path\":\"a.png\"}]}]", 1, "--image");
    refuse(&f, NULL, "[{\"role\":\"user\",\"content\":[{\"type\":\"video\"}]}]", 0, "video");
    refuse(&f, NULL, "[{\"role\":\"user\"}]", 0, "no text");
    refuse(&f, "plain", "[{\"role\":\"user\",\"content\":\"x\"}]", 0, "plain");
    refuse(&f, "no_such", "[{\"role\":\"user\",\"content\":\"x\"}]", 0, "no_such");
    f.family.vocab_size = 50;
    refuse(&f, NULL, "[{\"role\":\"user\",\"content\":\"x\"}]", 0, "vocab");
    close_fixture(&f);
}

static void test_text_prompts(void **state) {
    (void)state;
    struct fixture f;
    struct batch_image image;
    struct prompter p;
    open_fixture(&f, MODELS "llama/model");
    assert_prompt(&f, NULL, &(struct prompt){.text = "a <image>"}, "a <image>");
    assert_prompt(&f, "llama_3", &(struct prompt){.text = "Hi"}, SYSTEM USER "Hi<|eot_id|>" ASSISTANT);
    prompter_open(&p, &f.family, f.tokenizer, NULL, true, &f.err);
    ok(&f);
    assert_int_not_equal(prompt_read_image(&image, &p, MODELS "generate-mllava/images/0.png", &f.err), ST_OK);
    assert_refused(&f.err, "text only");
    prompter_close(&p);
    close_fixture(&f);
}

static void test_unreadable_pictures(void **state) {
    (void)state;
    struct fixture f;
    struct batch_image image;
    struct prompter p;
    open_fixture(&f, MODELS "mllava/model");
    prompter_open(&p, &f.family, f.tokenizer, NULL, true, &f.err);
    ok(&f);
    assert_int_not_equal(prompt_read_image(&image, &p, "no/such.png", &f.err), ST_OK);
    assert_refused(&f.err, "no/such.png");
    assert_null(image.pixels);
    assert_int_not_equal(prompt_read_image(&image, &p, MODELS "mllava/model/config.json", &f.err), ST_OK);
    assert_refused(&f.err, "config.json");
    prompter_close(&p);
    close_fixture(&f);
}

/* --- the sampler ------------------------------------------------------------------------------------------------- */

enum { WORDS = 5, DRAWS = 20000 };

static struct choice choose(const struct sampler *s, const float *logits, uint64_t index) {
    struct choice c;
    struct err e = {0};
    if (sampler_choose(&c, s, logits, index, &e) != ST_OK) fail_msg("%s", e.text);
    return c;
}

static void count(int64_t *seen, const float *logits, double temperature, double top_p) {
    struct sampler s = sampler_new(WORDS, temperature, top_p, 3);
    memset(seen, 0, WORDS * sizeof *seen);
    for (uint64_t i = 0; i < DRAWS; i++) seen[choose(&s, logits, i).id]++;
    sampler_free(&s);
}

/* Five deviations of a binomial count: a right sampler fails one such comparison in two million; the draws are
 * fixed. */
static void assert_counts(const int64_t *seen, const double *probability) {
    for (int i = 0; i < WORDS; i++) {
        double p = probability[i], slack = 5 * sqrt(DRAWS * p * (1 - p));
        if (!(fabs((double)seen[i] - DRAWS * p) <= slack))
            fail_msg("token %d: drawn %lld times, wanted %.1f within %.1f", i, (long long)seen[i], DRAWS * p, slack);
    }
}

static const double WEIGHT[WORDS] = {0.1, 0.4, 0.2, 0.05, 0.25};

static void weighted(float *logits) {
    for (int i = 0; i < WORDS; i++) logits[i] = (float)log(WEIGHT[i]) + 2;
}

static void test_frequencies(void **state) {
    (void)state;
    float logits[WORDS];
    int64_t seen[WORDS];
    weighted(logits);
    count(seen, logits, 1, 1);
    assert_counts(seen, WEIGHT);
    double squares[WORDS], total = 0;
    for (int i = 0; i < WORDS; i++) total += squares[i] = WEIGHT[i] * WEIGHT[i];
    for (int i = 0; i < WORDS; i++) squares[i] /= total;
    count(seen, logits, 0.5, 1); // half the temperature squares the odds
    assert_counts(seen, squares);
}

static void test_nucleus(void **state) {
    (void)state;
    float logits[WORDS];
    int64_t seen[WORDS];
    weighted(logits);
    const struct {
        double top_p, probability[WORDS];
    } cases[] = {
        {1e-9, {0, 1, 0, 0, 0}},
        {0.39, {0, 1, 0, 0, 0}},
        {0.41, {0, 0.4 / 0.65, 0, 0, 0.25 / 0.65}},
        {0.66, {0, 0.4 / 0.85, 0.2 / 0.85, 0, 0.25 / 0.85}},
        {0.96, {0.1, 0.4, 0.2, 0.05, 0.25}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        count(seen, logits, 1, cases[i].top_p);
        assert_counts(seen, cases[i].probability);
    }
    const float equal[WORDS] = {1, 1, 1, 1, 1};
    count(seen, equal, 1, 0.3); // two of five: the lowest ids
    assert_counts(seen, (const double[]){0.5, 0.5, 0, 0, 0});
}

static void test_greedy(void **state) {
    (void)state;
    struct sampler s = sampler_new(WORDS, 0, 1, 0);
    const float tie[WORDS] = {1, 3, 2, 3, -INFINITY};
    assert_int_equal(choose(&s, tie, 0).id, 1);
    double total = exp(-2) + 1 + exp(-1) + 1;
    assert_true(fabs(choose(&s, tie, 0).logprob + log(total)) <= 1e-14);
    sampler_free(&s);
}

/* The log-probability belongs to the model, not to the way of choosing; a token without mass is never drawn. */
static void test_logprobs(void **state) {
    (void)state;
    struct sampler s = sampler_new(WORDS, 5, 0.99, 1);
    const float logits[WORDS] = {0, -INFINITY, 300, -INFINITY, 299};
    for (uint64_t i = 0; i < 200; i++) {
        struct choice c = choose(&s, logits, i);
        assert_true(c.id == 2 || c.id == 4);
        double want = (c.id == 2 ? 0.0 : -1.0) - log1p(exp(-1));
        assert_true(fabs(c.logprob - want) <= 1e-12);
    }
    sampler_free(&s);
}

static void test_seed(void **state) {
    (void)state;
    float logits[WORDS];
    weighted(logits);
    struct sampler a = sampler_new(WORDS, 1, 0.9, 5), same = sampler_new(WORDS, 1, 0.9, 5),
                   other = sampler_new(WORDS, 1, 0.9, 6);
    int differ = 0;
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(choose(&a, logits, i).id, choose(&same, logits, i).id);
        differ += choose(&a, logits, i).id != choose(&other, logits, i).id;
    }
    assert_true(differ > 0);
    sampler_free(&a), sampler_free(&same), sampler_free(&other);
}

static void test_broken_logits(void **state) {
    (void)state;
    struct sampler s = sampler_new(WORDS, 1, 1, 0);
    const float broken[][WORDS] = {{NAN, 1, 2, 3, 4},
                                   {1, 2, NAN, 3, 4},
                                   {1, 2, 3, 4, INFINITY},
                                   {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}};
    for (int i = 0; i < 4; i++) {
        struct err e = {0};
        struct choice c;
        assert_int_not_equal(sampler_choose(&c, &s, broken[i], 0, &e), ST_OK);
        assert_refused(&e, "finite");
    }
    sampler_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_equal_recomputing),
        cmocka_unit_test(test_pieces_equal_whole),
        cmocka_unit_test(test_common_part_is_kept),
        cmocka_unit_test(test_refused_prompts),
        cmocka_unit_test(test_answers_of_the_reference),
        cmocka_unit_test(test_pictures_are_kept_whole),
        cmocka_unit_test(test_mllava_prompts),
        cmocka_unit_test(test_refused_messages),
        cmocka_unit_test(test_text_prompts),
        cmocka_unit_test(test_unreadable_pictures),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_nucleus),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_seed),
        cmocka_unit_test(test_broken_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* graft generate: one answer to a text, a conversation, or a question about pictures. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"
#include "cli/generation.h"
#include "cli/out.h"
#include "cli/verbs.h"

static const struct flag generate_flags[] = {
    {"prompt", FLAG_TEXT, NULL, NULL, "text to continue; with pictures or a conv_template: the user's turn"},
    {"messages", FLAG_TEXT, NULL, NULL, "JSON file of messages, each with role and content"},
    {"image", FLAG_LIST, NULL, NULL, "picture, in the order of <image> in the text"},
    {"video", FLAG_LIST, NULL, NULL, "file or folder of frames, which follow the pictures"},
    {"num_frames", FLAG_INT, "8", NULL, "frames that are taken of a video, evenly spread; 0: all"},
    {"adapter", FLAG_TEXT, NULL, NULL, "PEFT folder"},
    {"max_new_tokens", FLAG_INT, "256", NULL, "longest answer"},
    {"temperature", FLAG_NUMBER, "0", NULL, "of sampling; 0: the most probable token"},
    {"top_p", FLAG_NUMBER, "1", NULL, "sampling: the most probable tokens of that mass"},
    {"conv_template", FLAG_TEXT, NULL, NULL, "a Mantis template; without it: the model's own"},
    {"max_seq_len", FLAG_INT, "0", NULL, "tokens that are kept of the prompt; 0: all"},
};

static enum status check_flags(const struct flags *f, struct err *e) {
    if (flag_given(f, "prompt") == flag_given(f, "messages"))
        return err_set(e, ST_USAGE, "wanted one of --prompt TEXT and --messages FILE.json");
    if (flag_int(f, "num_frames") < 0)
        return err_set(e, ST_USAGE, "--num_frames is %lld, wanted 0 (all) or more",
                       (long long)flag_int(f, "num_frames"));
    return ST_OK;
}

/* What --image and --video bring, in this order. */
struct media {
    const cJSON *paths;
    struct chat_row *video; // (videos)
    int videos;
    int64_t pictures;          // with the frames
    struct batch_image *image; // (count) the pieces of all pictures
    int64_t count;
};

static enum status open_media(struct media *m, const struct flags *f, struct err *e) {
    const cJSON *videos = flag_list(f, "video");
    m->paths = flag_list(f, "image");
    m->pictures = m->paths ? cJSON_GetArraySize(m->paths) : 0;
    m->video = mem_alloc((size_t)(videos ? cJSON_GetArraySize(videos) : 0) * sizeof *m->video);
    for (const cJSON *v = videos ? videos->child : NULL; v && e->code == ST_OK; v = v->next, m->videos++)
        if (prompt_open_video(&m->video[m->videos], v->valuestring, flag_int(f, "num_frames"), e) == ST_OK)
            m->pictures += (int64_t)m->video[m->videos].image_count;
    return e->code;
}

static void close_media(struct media *m) {
    for (int i = 0; i < m->videos; i++) chat_row_free(&m->video[i]);
    for (int64_t i = 0; i < m->count; i++) batch_image_free(&m->image[i]);
    free(m->image);
    free(m->video);
}

/* All pictures, before the text: what Fuyu writes for one depends on its sides. */
static enum status read_pixels(struct media *m, const struct generation *g, struct err *e) {
    const cJSON *path = m->paths ? m->paths->child : NULL;
    int64_t at = 0, pieces = prompter_pieces(&g->prompter);
    m->count = m->pictures * pieces;
    m->image = mem_alloc((size_t)m->count * sizeof *m->image);
    for (; path && e->code == ST_OK; at += pieces, path = path->next)
        prompt_read_image(&m->image[at], &g->prompter, path->valuestring, e);
    for (int i = 0; i < m->videos; i++)
        for (size_t k = 0; k < m->video[i].image_count && e->code == ST_OK; k++, at += pieces)
            prompt_read_frame(&m->image[at], &g->prompter, &m->video[i], (int64_t)k, e);
    return e->code;
}

/* Those whose tokens are in the prompt. */
static void hand_over(struct row *prompt, struct media *m) {
    for (int64_t i = 0; i < prompt->images; i++) {
        prompt->image[i] = m->image[i];
        m->image[i] = (struct batch_image){0};
    }
}

/* The prompt's ids and pixels, before the weights are read: what is wrong with it shows at once. */
static enum status read_prompt(struct row *out, const struct generation *g, struct err *e) {
    const char *file = flag_text(g->f, "messages");
    struct media m = {0};
    cJSON *tree = file ? json_read(file, e) : NULL;
    if (e->code == ST_OK && open_media(&m, g->f, e) == ST_OK) read_pixels(&m, g, e);
    struct prompt p = {
        .text = flag_text(g->f, "prompt"),
        .messages = cJSON_IsObject(tree) ? json_get(tree, "messages") : tree,
        .where = file,
        .images = m.pictures,
        .image = m.image,
        .max_seq_len = flag_int(g->f, "max_seq_len"),
    };
    if (e->code == ST_OK && prompt_encode(out, &g->prompter, &p, e) == ST_OK) {
        hand_over(out, &m);
        image_set_check(out->image, out->images, &g->prompter.processor, &g->family, e);
    }
    cJSON_Delete(tree);
    close_media(&m);
    if (e->code == ST_OK && out->images < p.images)
        out_note(g->f, "note: --max_seq_len leaves %lld of %lld pictures", (long long)out->images, (long long)p.images);
    return e->code;
}

static void report(const struct flags *f, const struct answer *a) {
    double made = a->seconds - a->prompt_seconds;
    out_note(f, "prompt: %lld positions in %.2f s; answer: %zu tokens in %.2f s (%.1f a second)",
             (long long)a->prompt_positions, a->prompt_seconds, a->ids.len, made,
             made > 0 ? (double)a->ids.len / made : 0.0);
}

static enum status answer(struct generation *g, const struct row *prompt, struct err *e) {
    bool json = flag_bool(g->f, "json"), stream = !json && isatty(STDOUT_FILENO);
    struct answer a = {0};
    if (generation_answer(&a, g, prompt, flag_int(g->f, "max_new_tokens"), stream, e) == ST_OK) {
        if (json) answer_print_json(&a, prompt);
        if (!json && !stream) out_bytes(text_str(&a.text), a.text.len);
        if (!json) out_text("\n");
        if (!json) report(g->f, &a);
    }
    answer_free(&a);
    return e->code;
}

static int run_generate(const struct flags *f, struct err *e) {
    struct generation g = {0};
    struct row prompt = {0};
    if (check_flags(f, e) != ST_OK) return e->code;
    if (generation_open(&g, f, flag_given(f, "prompt"), e) == ST_OK && read_prompt(&prompt, &g, e) == ST_OK &&
        generation_load(&g, prompt.positions + flag_int(f, "max_new_tokens"), prompt.images, &prompt, e) == ST_OK)
        answer(&g, &prompt, e);
    row_free(&prompt);
    generation_close(&g);
    return e->code;
}

const struct verb verb_generate = {
    .name = "generate",
    .arguments = "MODEL [--adapter A] (--prompt TEXT | --messages FILE.json) [--image F]... [--video F]...",
    .about = "one answer; greedy unless --temperature is given",
    .flags = generate_flags,
    .flag_count = sizeof generate_flags / sizeof *generate_flags,
    .min_words = 1,
    .max_words = 1,
    .run = run_generate,
};

/* Makes the data of the chat example: pictures of coloured shapes, and rows that ask about two or three of them.
 *
 *   make_chat_data DIR SEED PICTURES QUESTIONS HELD_OUT
 *
 * DIR/train and DIR/val hold pictures; a picture of val is in no row of train. DIR/train.json and DIR/val.json are rows
 * in the chat format of Mantis; DIR/train.tsv and DIR/val.tsv have the same for a shell: pictures, question and answer
 * between tabs. All of it is a function of the seed and the numbers. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"
#include "examples/clips/picture.h"
#include "examples/clips/scene.h"
#include "examples/clips/words.h"

enum { MOST = 3 }; // pictures of a row

/* Pictures 0..n-1 of a split, as PNG. The caller frees them. */
static struct scene *pictures_make(const char *dir, const char *split, int n, struct dice *d, struct err *e) {
    struct scene *all = mem_alloc((size_t)n * sizeof *all);
    char *folder = path_join(dir, split);
    dir_make(folder, e);
    for (int i = 0; i < n && e->code == ST_OK; i++) {
        unsigned char rgb[FRAME_BYTES];
        char *path = mem_format("%s/%04d.png", folder, i);
        scene_new(&all[i], d, true);
        scene_draw_frame(&all[i], 0, rgb);
        picture_write(path, rgb, SIDE, SIDE, e);
        free(path);
    }
    free(folder);
    return all;
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

struct row {
    int count, index[MOST]; // pictures
    struct text ask, answer;
};

struct album {
    const char *split;
    int count;
    const struct scene *pictures; // (count)
};

static const struct scene *nth(const struct album *a, const struct row *r, int i) { return &a->pictures[r->index[i]]; }

static const char *shape(const struct scene *s) { return shape_names[s->shape]; }
static const char *colour(const struct scene *s) { return colour_names[s->colour]; }

/* Two pictures with the same shape in half of the rows; with chance alone it would be a quarter. */
static void ask_same(struct row *r, const struct album *a, struct dice *d) {
    bool same = throw_chance(d, 0.5);
    r->count = 2;
    while (same != (nth(a, r, 0)->shape == nth(a, r, 1)->shape)) r->index[1] = throw_int(d, a->count);
    text_add(&r->ask, "Are the shapes in <image> and <image> the same?");
    text_addf(&r->answer, "Image 1 is a %s, image 2 is a %s: %s.", shape(nth(a, r, 0)), shape(nth(a, r, 1)),
              same ? "yes" : "no");
}

static void row_new(struct row *r, const struct album *a, struct dice *d) {
    *r = (struct row){.count = 2 + throw_int(d, MOST - 1)};
    for (int i = 0; i < r->count; i++) r->index[i] = throw_int(d, a->count);
    int kind = throw_int(d, 4), asked = throw_int(d, r->count);
    if (kind == 3) {
        ask_same(r, a, d);
        return;
    }
    const struct scene *s = nth(a, r, asked);
    for (int i = 0; i < r->count; i++) text_add(&r->ask, "<image> ");
    if (kind == 0) {
        text_addf(&r->ask, "What colour is the shape in image %d?", asked + 1);
        text_addf(&r->answer, "Image %d is %s.", asked + 1, colour(s));
    } else if (kind == 1) {
        text_addf(&r->ask, "What shape is in image %d?", asked + 1);
        text_addf(&r->answer, "Image %d is a %s.", asked + 1, shape(s));
    } else {
        text_addf(&r->ask, "What does image %d show?", asked + 1);
        text_addf(&r->answer, "Image %d is a %s %s.", asked + 1, colour(s), shape(s));
    }
}

static cJSON *turn(const char *role, const struct text *content) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "role", role);
    cJSON_AddStringToObject(o, "content", text_str(content));
    return o;
}

static cJSON *row_json(const struct row *r, const struct album *a, int number) {
    cJSON *o = cJSON_CreateObject();
    char *id = mem_format("%s-%d", a->split, number);
    cJSON_AddStringToObject(o, "id", id);
    free(id);
    cJSON *images = cJSON_AddArrayToObject(o, "images");
    for (int i = 0; i < r->count; i++) {
        char *path = mem_format("%s/%04d.png", a->split, r->index[i]);
        cJSON_AddItemToArray(images, cJSON_CreateString(path));
        free(path);
    }
    cJSON *turns = cJSON_AddArrayToObject(o, "conversation");
    cJSON_AddItemToArray(turns, turn("user", &r->ask));
    cJSON_AddItemToArray(turns, turn("assistant", &r->answer));
    return o;
}

static void add_line(struct text *lines, const struct row *r, const struct album *a) {
    for (int i = 0; i < r->count; i++) text_addf(lines, "%s%s/%04d.png", i ? " " : "", a->split, r->index[i]);
    text_addf(lines, "\t%s\t%s\n", text_str(&r->ask), text_str(&r->answer));
}

static enum status make_split(const char *dir, struct album a, int questions, uint64_t seed, struct err *e) {
    struct dice d = {.seed = seed, .stream = rng_stream(a.split)};
    struct scene *pictures = pictures_make(dir, a.split, a.count, &d, e);
    struct text lines = {0};
    cJSON *rows = cJSON_CreateArray();
    char *json = mem_format("%s/%s.json", dir, a.split), *sheet = mem_format("%s/%s.tsv", dir, a.split);
    a.pictures = pictures;
    for (int i = 0; i < questions && e->code == ST_OK; i++) {
        struct row r;
        row_new(&r, &a, &d);
        cJSON_AddItemToArray(rows, row_json(&r, &a, i));
        add_line(&lines, &r, &a);
        text_free(&r.ask), text_free(&r.answer);
    }
    if (e->code == ST_OK) json_write(json, rows, e);
    if (e->code == ST_OK) file_write(sheet, text_str(&lines), lines.len, e);
    cJSON_Delete(rows);
    text_free(&lines);
    free(json), free(sheet), free(pictures);
    return e->code;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (argc != 6) {
        fprintf(stderr, "usage: make_chat_data DIR SEED PICTURES QUESTIONS HELD_OUT\n");
        return ST_USAGE;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    int pictures = word_count(argv[3], 20, &e), questions = word_count(argv[4], 1, &e);
    int held_out = word_count(argv[5], 20, &e);
    if (e.code == ST_OK) make_split(argv[1], (struct album){"train", pictures, NULL}, questions, seed, &e);
    if (e.code == ST_OK) make_split(argv[1], (struct album){"val", 3 * held_out, NULL}, held_out, seed, &e);
    if (e.code != ST_OK) fprintf(stderr, "make_chat_data: %s\n", e.text);
    return (int)e.code;
}

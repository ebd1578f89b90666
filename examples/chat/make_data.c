/* Makes the data of the chat example: pictures of coloured shapes, rows that describe them, and rows that ask about
 * them.
 *
 *   make_chat_data DIR SEED PICTURES CAPTIONS QUESTIONS HELD_OUT
 *
 * DIR/train and DIR/val hold pictures; a picture of val is in no row of train. Rows are in the chat format of Mantis:
 *   DIR/captions.json, captions_val.json      what the pictures show, image by image; the base model is made with them
 *   DIR/questions.json, questions_val.json    a question about two or three pictures, and its answer
 *   DIR/held_out.tsv                          questions_val.json for a shell: pictures, question and answer between
 * tabs All of it is a function of the seed and the numbers. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/text.h"
#include "examples/clips/picture.h"
#include "examples/clips/words.h"

enum { SIDE = 96, FINE = 4, MOST = 3 }; // pixels of a picture, samples of a pixel each way, pictures of a row

enum shape { CIRCLE, SQUARE, TRIANGLE, CROSS, SHAPES };
static const char *const shape_names[SHAPES] = {"circle", "square", "triangle", "cross"};

enum { COLOURS = 4 };
static const struct {
    const char *name;
    unsigned char rgb[3];
} colours[COLOURS] = {
    {"red", {210, 35, 40}}, {"green", {35, 150, 60}}, {"blue", {40, 70, 205}}, {"yellow", {240, 205, 30}}};

struct picture {
    enum shape shape;
    int colour;
    double x, y, radius; // in pixels
    unsigned char ink[3], paper[3];
};

/* Random numbers in the order in which they are asked for. */
struct dice {
    uint64_t seed, stream, thrown;
};

static int throw_int(struct dice *d, int below) { return (int)(rng_uniform(d->seed, d->stream, d->thrown++) * below); }

static double throw_between(struct dice *d, double low, double high) {
    return low + (high - low) * rng_uniform(d->seed, d->stream, d->thrown++);
}

/* ---------------------------------------------------------------- pictures */

static struct picture picture_new(struct dice *d) {
    struct picture p = {.shape = (enum shape)throw_int(d, SHAPES), .colour = throw_int(d, COLOURS)};
    p.radius = throw_between(d, 0.32, 0.42) * SIDE;
    p.x = throw_between(d, 0.43, 0.57) * SIDE;
    p.y = throw_between(d, 0.43, 0.57) * SIDE;
    for (int c = 0; c < 3; c++) {
        int shade = colours[p.colour].rgb[c] + throw_int(d, 31) - 15;
        p.ink[c] = (unsigned char)(shade < 0 ? 0 : shade > 255 ? 255 : shade);
        p.paper[c] = (unsigned char)(200 + throw_int(d, 56));
    }
    return p;
}

/* Whether the point (x, y), seen from the middle in radii, lies on the shape. */
static bool is_inside(enum shape shape, double x, double y) {
    switch (shape) {
    case CIRCLE:
        return x * x + y * y < 1;
    case SQUARE:
        return fabs(x) < 0.85 && fabs(y) < 0.85;
    case TRIANGLE:
        return y < 0.8 && y > 2 * fabs(x) - 1;
    default:
        return (fabs(x) < 0.3 && fabs(y) < 1) || (fabs(y) < 0.3 && fabs(x) < 1);
    }
}

/* Part of the pixel that the shape covers. */
static double coverage(const struct picture *p, int column, int line) {
    int hits = 0;
    for (int i = 0; i < FINE * FINE; i++) {
        double x = column + (i % FINE + 0.5) / FINE, y = line + (i / FINE + 0.5) / FINE;
        hits += is_inside(p->shape, (x - p->x) / p->radius, (y - p->y) / p->radius);
    }
    return (double)hits / (FINE * FINE);
}

static enum status draw(const struct picture *p, const char *path, struct err *e) {
    unsigned char pixels[3 * SIDE * SIDE], *at = pixels; // (SIDE,SIDE,3)
    for (int i = 0; i < SIDE * SIDE; i++) {
        double part = coverage(p, i % SIDE, i / SIDE);
        for (int c = 0; c < 3; c++) *at++ = (unsigned char)lround(part * p->ink[c] + (1 - part) * p->paper[c]);
    }
    return picture_write(path, pixels, SIDE, SIDE, e);
}

/* Pictures 0..n-1 of a split, as PNG. The caller frees them. */
static struct picture *pictures_make(const char *dir, const char *split, int n, uint64_t seed, struct err *e) {
    struct picture *all = mem_alloc((size_t)n * sizeof *all);
    struct dice dice = {.seed = seed, .stream = rng_stream(split)};
    char *folder = path_join(dir, split);
    dir_make(folder, e);
    for (int i = 0; i < n && e->code == ST_OK; i++) {
        char *path = mem_format("%s/%04d.png", folder, i);
        all[i] = picture_new(&dice);
        draw(&all[i], path, e);
        free(path);
    }
    free(folder);
    return all;
}

/* ---------------------------------------------------------------- rows */

struct row {
    int count, index[MOST]; // pictures
    struct text ask, answer;
};

struct album {
    const struct picture *pictures; // (count)
    int count;
    const char *split;
};

static const struct picture *nth(const struct album *a, const struct row *r, int i) {
    return &a->pictures[r->index[i]];
}

static void pick(struct row *r, const struct album *a, struct dice *d, int least) {
    *r = (struct row){.count = least + throw_int(d, MOST - least + 1)};
    for (int i = 0; i < r->count; i++) r->index[i] = throw_int(d, a->count);
}

/* With the template "plain" the pictures come first and the user's turn is not read. The pictures are described in any
 * order, so that a description has to find its picture by number. */
static void write_caption(struct row *r, const struct album *a, struct dice *d) {
    int64_t order[MOST];
    pick(r, a, d, 1);
    rng_shuffle(d->seed, d->stream + d->thrown++, order, r->count);
    for (int i = 0; i < r->count; i++) {
        const struct picture *p = nth(a, r, (int)order[i]);
        text_add(&r->ask, "<image>");
        text_addf(&r->answer, "%s%d is a %s %s", i ? ", " : "", (int)order[i] + 1, colours[p->colour].name,
                  shape_names[p->shape]);
    }
    text_add(&r->answer, ".");
}

/* Two pictures with the same shape in half of the rows; with chance alone it would be a quarter. */
static void ask_same(struct row *r, const struct album *a, struct dice *d) {
    bool same = throw_int(d, 2) == 0;
    r->count = 2;
    while (same != (nth(a, r, 0)->shape == nth(a, r, 1)->shape)) r->index[1] = throw_int(d, a->count);
    enum shape one = nth(a, r, 0)->shape, other = nth(a, r, 1)->shape;
    text_add(&r->ask, "Are the shapes in <image> and <image> the same?");
    text_addf(&r->answer, "Image 1 is a %s, image 2 is a %s: %s.", shape_names[one], shape_names[other],
              same ? "yes" : "no");
}

static void write_question(struct row *r, const struct album *a, struct dice *d) {
    pick(r, a, d, 2);
    int kind = throw_int(d, 4), asked = throw_int(d, r->count);
    if (kind == 3) {
        ask_same(r, a, d);
        return;
    }
    for (int i = 0; i < r->count; i++) text_add(&r->ask, i ? " <image>" : "<image>");
    text_add(&r->ask, " ");
    if (kind == 0) {
        text_addf(&r->ask, "What colour is the shape in image %d?", asked + 1);
        text_addf(&r->answer, "Image %d is %s.", asked + 1, colours[nth(a, r, asked)->colour].name);
    } else if (kind == 1) {
        text_addf(&r->ask, "What shape is in image %d?", asked + 1);
        text_addf(&r->answer, "Image %d is a %s.", asked + 1, shape_names[nth(a, r, asked)->shape]);
    } else {
        text_addf(&r->ask, "What does image %d show?", asked + 1);
        text_addf(&r->answer, "Image %d is a %s %s.", asked + 1, colours[nth(a, r, asked)->colour].name,
                  shape_names[nth(a, r, asked)->shape]);
    }
}

static cJSON *turn(const char *role, const struct text *content) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "role", role);
    cJSON_AddStringToObject(o, "content", text_str(content));
    return o;
}

static cJSON *row_json(const struct row *r, const struct album *a, const char *kind, int number) {
    cJSON *o = cJSON_CreateObject();
    char *id = mem_format("%s-%s-%d", kind, a->split, number);
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

/* n rows as JSON; lines, unless NULL, gets the same for a shell. */
static enum status write_rows(const struct album *a, const char *dir, const char *name, bool captions, int n,
                              uint64_t seed, struct text *lines, struct err *e) {
    const char *kind = captions ? "caption" : "question";
    struct dice dice = {.seed = seed, .stream = rng_stream(name)};
    cJSON *list = cJSON_CreateArray();
    char *path = path_join(dir, name);
    for (int i = 0; i < n; i++) {
        struct row r;
        if (captions)
            write_caption(&r, a, &dice);
        else
            write_question(&r, a, &dice);
        cJSON_AddItemToArray(list, row_json(&r, a, kind, i));
        if (lines) add_line(lines, &r, a);
        text_free(&r.ask);
        text_free(&r.answer);
    }
    json_write(path, list, e);
    cJSON_Delete(list);
    free(path);
    return e->code;
}

/* ---------------------------------------------------------------- the program */

struct amounts {
    uint64_t seed;
    int pictures, captions, questions, held_out;
};

static enum status write_all(const char *dir, const struct amounts *n, struct err *e) {
    struct album train = {.count = n->pictures, .split = "train"}, val = {.count = 3 * n->held_out, .split = "val"};
    struct picture *train_pictures = pictures_make(dir, train.split, train.count, n->seed, e);
    struct picture *val_pictures = pictures_make(dir, val.split, val.count, n->seed, e);
    struct text lines = {0};
    char *held_out = path_join(dir, "held_out.tsv");
    train.pictures = train_pictures, val.pictures = val_pictures;
    if (e->code == ST_OK) write_rows(&train, dir, "captions.json", true, n->captions, n->seed, NULL, e);
    if (e->code == ST_OK) write_rows(&val, dir, "captions_val.json", true, n->held_out, n->seed, NULL, e);
    if (e->code == ST_OK) write_rows(&train, dir, "questions.json", false, n->questions, n->seed, NULL, e);
    if (e->code == ST_OK) write_rows(&val, dir, "questions_val.json", false, n->held_out, n->seed, &lines, e);
    if (e->code == ST_OK) file_write(held_out, text_str(&lines), lines.len, e);
    text_free(&lines);
    free(held_out);
    free(train_pictures);
    free(val_pictures);
    return e->code;
}

int main(int count, char **words) {
    struct err e = {0};
    if (count != 7) {
        fprintf(stderr, "usage: make_chat_data DIR SEED PICTURES CAPTIONS QUESTIONS HELD_OUT\n");
        return ST_USAGE;
    }
    struct amounts n = {.seed = strtoull(words[2], NULL, 10),
                        .pictures = word_count(words[3], 20, &e),
                        .captions = word_count(words[4], 20, &e),
                        .questions = word_count(words[5], 20, &e),
                        .held_out = word_count(words[6], 20, &e)};
    if (e.code == ST_OK && write_all(words[1], &n, &e) == ST_OK)
        printf("%s: %d pictures; %d captions and %d questions to train on, %d of each held out\n", words[1],
               n.pictures + 3 * n.held_out, n.captions, n.questions, n.held_out);
    if (e.code != ST_OK) fprintf(stderr, "make_chat_data: %s\n", e.text);
    return e.code;
}

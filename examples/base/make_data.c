/* Makes the lessons of the small base model: clips of moving shapes, captions, and questions about colour, shape,
 * motion, the order of frames and how they look.
 *
 *   make_base_data DIR SEED TRAIN VAL
 *
 * DIR/train and DIR/val hold clips; DIR/train.json and DIR/val.json rows in the chat_video format of Mantis. A part of
 * the clips has faults, so that the model learns to see through them and to name them. All of it is a function of the
 * seed and the numbers. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "examples/clips/faults.h"
#include "examples/clips/film.h"
#include "examples/clips/words.h"

enum look { CLEAR, BLURRED, NOISY, BLOCKY, FLICKERING };
static const char *const look_names[] = {"clear", "blurred", "noisy", "blocky", "flickering"};

struct lesson {
    struct scene scene;
    struct clip clip;
    int order[FRAMES]; // which frame of the scene is shown at each place
    bool shuffled;     // and that shows: the shape moves
    enum look look;
    double strength; // of the fault
};

static void spoil(struct lesson *l, struct dice *d) {
    l->look = throw_chance(d, 0.4) ? CLEAR : (enum look)(BLURRED + throw_int(d, 4));
    l->strength = throw_between(d, 0.1, 1);
    if (l->look == BLURRED) fault_blur(&l->clip, l->strength);
    if (l->look == NOISY) fault_noise(&l->clip, l->strength, d);
    if (l->look == BLOCKY) fault_blocks(&l->clip, l->strength);
    if (l->look == FLICKERING) fault_flicker(&l->clip, l->strength, d);
}

static void lesson_new(struct lesson *l, struct dice *d) {
    scene_new(&l->scene, d, throw_chance(d, 0.12));
    if (throw_chance(d, 0.25)) l->scene.changed_from = 2 + throw_int(d, FRAMES - 2);
    int swaps = l->scene.speed > 0 && throw_chance(d, 0.3) ? 1 + throw_int(d, 3) : 0;
    scene_draw(&l->scene, &l->clip);
    fault_shuffle(&l->clip, swaps, l->order, d);
    l->shuffled = false; // two swaps can undo each other
    for (int f = 0; f < FRAMES; f++) l->shuffled |= l->order[f] != f;
    spoil(l, d);
}

/* --- questions --------------------------------------------------------------------------------------------------- */

typedef void question_fn(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer);

static void ask_what(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    const struct scene *s = &l->scene;
    (void)d;
    text_add(ask, "What is shown?");
    text_addf(answer, "a %s %s", colour_names[s->colour], shape_names[s->shape]);
    if (s->changed_from < FRAMES)
        text_addf(answer, ", then a %s %s", colour_names[s->other_colour], shape_names[s->other_shape]);
}

static void ask_motion(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Where does it move?");
    text_add(answer, l->scene.speed > 0 ? direction_names[l->scene.direction] : "nowhere");
}

/* Half pixels a frame. */
static void ask_speed(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "How fast?");
    text_addf(answer, "%d", (int)(2 * l->scene.speed + 0.5));
}

/* The field of a board of six by six, frame by frame. */
static void ask_places(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Where is it?");
    for (int f = 0; f < FRAMES; f++) {
        double x, y;
        scene_place(&l->scene, l->order[f], &x, &y);
        text_addf(answer, "%s%c%d", f ? " " : "", 'a' + (int)(x * 6 / SIDE), 1 + (int)(y * 6 / SIDE));
    }
}

static void ask_colours(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    const struct scene *s = &l->scene;
    (void)d;
    text_add(ask, "Which colours?");
    for (int f = 0; f < FRAMES; f++)
        text_addf(answer, "%s%s", f ? " " : "",
                  colour_names[l->order[f] >= s->changed_from ? s->other_colour : s->colour]);
}

static void ask_order(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Are the frames in order?");
    text_add(answer, l->shuffled ? "no" : "yes");
}

static void ask_look(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "How does it look?");
    if (l->look != CLEAR) text_add(answer, l->strength < 0.4 ? "a little " : l->strength < 0.7 ? "rather " : "very ");
    text_add(answer, look_names[l->look]);
}

/* A caption in which each part may be wrong. */
static void ask_caption(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    struct scene said = l->scene;
    bool colour = throw_chance(d, 0.5), shape = throw_chance(d, 0.5), motion = throw_chance(d, 0.5);
    if (!colour) said.colour = (said.colour + 1 + throw_int(d, COLOURS - 1)) % COLOURS;
    if (!shape) said.shape = (said.shape + 1 + throw_int(d, SHAPES - 1)) % SHAPES;
    if (!motion && said.speed == 0)
        said.speed = 1;
    else if (!motion)
        said.direction = (said.direction + 1 + throw_int(d, DIRECTIONS - 1)) % DIRECTIONS;
    text_add(ask, "Is it true? ");
    scene_caption(&said, ask);
    text_addf(answer, "colour %s, shape %s, motion %s", colour ? "yes" : "no", shape ? "yes" : "no",
              motion ? "yes" : "no");
}

static question_fn *const questions[] = {ask_what,  ask_motion, ask_speed,   ask_places, ask_colours,
                                         ask_order, ask_look,   ask_caption, ask_caption};
enum { QUESTIONS = sizeof questions / sizeof *questions };

static void add_turn(cJSON *turns, const char *role, const char *text) {
    cJSON *turn = cJSON_CreateObject();
    cJSON_AddStringToObject(turn, "role", role);
    cJSON_AddStringToObject(turn, "content", text);
    cJSON_AddItemToArray(turns, turn);
}

/* All questions, in any order. */
static cJSON *talk_about(const struct lesson *l, struct dice *d) {
    cJSON *turns = cJSON_CreateArray();
    int64_t order[QUESTIONS];
    rng_shuffle(d->seed, d->stream + 1 + d->thrown++, order, QUESTIONS);
    for (int i = 0; i < QUESTIONS; i++) {
        struct text ask = {0}, answer = {0};
        questions[order[i]](l, d, &ask, &answer);
        add_turn(turns, "user", text_str(&ask));
        add_turn(turns, "assistant", text_str(&answer));
        text_free(&ask), text_free(&answer);
    }
    return turns;
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

static enum status make_row(cJSON *rows, const char *dir, const char *split, int i, struct dice *d, struct err *e) {
    struct lesson l;
    cJSON *row = cJSON_CreateObject();
    char *name = mem_format("%s/%05d.mkv", split, i), *path = path_join(dir, name);
    lesson_new(&l, d);
    film_write(path, &l.clip, e);
    cJSON_AddStringToObject(row, "id", name);
    cJSON_AddStringToObject(row, "video", name);
    cJSON_AddItemToObject(row, "conversation", talk_about(&l, d));
    cJSON_AddItemToArray(rows, row);
    free(name), free(path);
    return e->code;
}

static enum status make_split(const char *dir, const char *split, int count, uint64_t seed, struct err *e) {
    struct dice d = {.seed = seed, .stream = rng_stream(split)};
    char *folder = path_join(dir, split), *file = mem_format("%s/%s.json", dir, split);
    cJSON *rows = cJSON_CreateArray();
    dir_make(folder, e);
    for (int i = 0; i < count && e->code == ST_OK; i++) make_row(rows, dir, split, i, &d, e);
    if (e->code == ST_OK) json_write(file, rows, e);
    cJSON_Delete(rows);
    free(folder), free(file);
    return e->code;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: make_base_data DIR SEED TRAIN VAL\n");
        return ST_USAGE;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    int train = word_count(argv[3], 1, &e), val = word_count(argv[4], 1, &e);
    if (e.code == ST_OK) make_split(argv[1], "train", train, seed, &e);
    if (e.code == ST_OK) make_split(argv[1], "val", val, seed, &e);
    if (e.code != ST_OK) fprintf(stderr, "make_base_data: %s\n", e.text);
    return (int)e.code;
}

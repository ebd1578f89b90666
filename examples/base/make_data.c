/* Makes the lessons of the small base model: pictures and clips of moving shapes, captions, and questions about colour,
 * shape, place, motion, the order of frames and how they look.
 *
 *   make_base_data DIR SEED PICTURES CLIPS VERDICTS VAL
 *
 * DIR/pictures, DIR/clips, DIR/verdicts and DIR/val hold media; DIR/pictures.json has rows in the chat format of
 * Mantis, the other three in its chat_video format. A picture is one frame of such a clip. Verdicts, and val, ask what
 * takes a look at the whole of a clip. A part of the clips has faults, so that the model learns to see through them and
 * to name them. All of it is a function of the seed and the numbers. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "examples/clips/faults.h"
#include "examples/clips/film.h"
#include "examples/clips/picture.h"
#include "examples/clips/words.h"

enum look { CLEAR, BLURRED, NOISY, BLOCKY, LOOKS };
static const char *const look_names[LOOKS] = {"clear", "blurred", "noisy", "blocky"};

struct lesson {
    struct scene scene;
    struct clip clip;
    int first, frames; // what is shown of the clip
    int order[FRAMES]; // which frame of the scene is shown at each place
    int displaced;     // frames at another's place
    enum look look;
    double strength, flicker; // of the look; 0: none
};

static void spoil(struct lesson *l, struct dice *d) {
    l->look = throw_chance(d, 0.4) ? CLEAR : (enum look)(BLURRED + throw_int(d, LOOKS - 1));
    l->strength = throw_between(d, 0.1, 1);
    l->flicker = throw_chance(d, 0.6) ? 0 : throw_between(d, 0.1, 1);
    if (l->flicker > 0) fault_flicker(&l->clip, l->flicker, d);
    if (l->look == BLURRED) fault_blur(&l->clip, l->strength);
    if (l->look == NOISY) fault_noise(&l->clip, l->strength, d);
    if (l->look == BLOCKY) fault_blocks(&l->clip, l->strength);
}

static void lesson_new(struct lesson *l, struct dice *d) {
    *l = (struct lesson){.frames = FRAMES};
    scene_new(&l->scene, d, throw_chance(d, 0.12));
    if (throw_chance(d, 0.4)) l->scene.changed_from = 2 + throw_int(d, FRAMES - 2);
    int swaps = l->scene.speed > 0 && throw_chance(d, 0.4) ? 1 + throw_int(d, 3) : 0;
    scene_draw(&l->scene, &l->clip);
    fault_shuffle(&l->clip, swaps, l->order, d);
    for (int f = 0; f < FRAMES; f++) l->displaced += l->order[f] != f; // two swaps can undo each other
    spoil(l, d);
}

/* --- questions --------------------------------------------------------------------------------------------------- */

typedef void question_fn(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer);

/* What is seen, in the order of the scene. */
static void ask_what(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    const struct scene *s = &l->scene;
    bool before = false, after = false;
    (void)d;
    for (int f = l->first; f < l->first + l->frames; f++) *(l->order[f] < s->changed_from ? &before : &after) = true;
    text_add(ask, "What is shown?");
    if (before) text_addf(answer, "a %s %s", colour_names[s->colour], shape_names[s->shape]);
    if (before && after) text_add(answer, ", then ");
    if (after) text_addf(answer, "a %s %s", colour_names[s->other_colour], shape_names[s->other_shape]);
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

/* The field of a board of six by six. */
static void add_place(const struct lesson *l, int frame, struct text *answer) {
    double x, y;
    scene_place(&l->scene, l->order[frame], &x, &y);
    text_addf(answer, "%c%d", 'a' + (int)(x * 6 / SIDE), 1 + (int)(y * 6 / SIDE));
}

static void ask_path(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "From where to where?");
    add_place(l, l->first, answer);
    text_add(answer, " to ");
    add_place(l, l->first + l->frames - 1, answer);
}

static void ask_places(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Where is it?");
    for (int f = l->first; f < l->first + l->frames; f++) {
        if (f > l->first) text_add(answer, " ");
        add_place(l, f, answer);
    }
}

static void ask_colours(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    const struct scene *s = &l->scene;
    (void)d;
    text_add(ask, "Which colours?");
    for (int f = l->first; f < l->first + l->frames; f++)
        text_addf(answer, "%s%s", f > l->first ? " " : "",
                  colour_names[l->order[f] >= s->changed_from ? s->other_colour : s->colour]);
}

static void ask_order(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Are the frames in order?");
    if (l->displaced)
        text_addf(answer, "no, %d are not", l->displaced);
    else
        text_add(answer, "yes");
}

static const char *degree(double strength) { return strength < 0.4 ? "a little" : strength < 0.7 ? "rather" : "very"; }

static void ask_look(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "How does it look?");
    if (l->look != CLEAR) text_addf(answer, "%s ", degree(l->strength));
    text_add(answer, look_names[l->look]);
}

static void ask_flicker(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    (void)d;
    text_add(ask, "Does it flicker?");
    text_add(answer, l->flicker > 0 ? degree(l->flicker) : "no");
}

struct truth {
    bool colour, shape, motion;
};

/* A caption in which each part may be wrong. */
static struct truth caption(const struct lesson *l, struct dice *d, struct text *out) {
    struct scene said = l->scene;
    struct truth t = {.colour = throw_chance(d, 0.5), .shape = throw_chance(d, 0.5), .motion = throw_chance(d, 0.5)};
    if (!t.colour) said.colour = (said.colour + 1 + throw_int(d, COLOURS - 1)) % COLOURS;
    if (!t.shape) said.shape = (said.shape + 1 + throw_int(d, SHAPES - 1)) % SHAPES;
    if (!t.motion && said.speed == 0)
        said.speed = 1;
    else if (!t.motion)
        said.direction = (said.direction + 1 + throw_int(d, DIRECTIONS - 1)) % DIRECTIONS;
    scene_caption(&said, out);
    return t;
}

static void ask_caption(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    text_add(ask, "Is it true? ");
    struct truth t = caption(l, d, ask);
    text_addf(answer, "colour %s, shape %s, motion %s", t.colour ? "yes" : "no", t.shape ? "yes" : "no",
              t.motion ? "yes" : "no");
}

static void ask_how_true(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    text_add(ask, "How true is it? ");
    struct truth t = caption(l, d, ask);
    text_addf(answer, "%d of 3", t.colour + t.shape + t.motion);
}

static void ask_same(const struct lesson *l, struct dice *d, struct text *ask, struct text *answer) {
    int changed = FRAMES - l->scene.changed_from;
    (void)d;
    text_add(ask, "Does it stay the same?");
    if (changed)
        text_addf(answer, "no, in %d it is another", changed);
    else
        text_add(answer, "yes");
}

/* What the answer to one question gives away about another is asked last: the rest is to be seen, not read. */
static question_fn *const of_clip[] = {ask_order, ask_motion, ask_speed, ask_look, ask_flicker, ask_caption};
static question_fn *const of_frames[] = {ask_what, ask_path, ask_places, ask_colours};
static question_fn *const of_whole[] = {ask_order,   ask_motion,   ask_speed, ask_look,
                                        ask_flicker, ask_how_true, ask_same};
static question_fn *const of_picture[] = {ask_what, ask_places, ask_look};
#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

static void add_turn(cJSON *turns, const char *role, const char *text) {
    cJSON *turn = cJSON_CreateObject();
    cJSON_AddStringToObject(turn, "role", role);
    cJSON_AddStringToObject(turn, "content", text);
    cJSON_AddItemToArray(turns, turn);
}

/* All of the questions, in any order. */
static void talk(cJSON *turns, question_fn *const *questions, int count, const struct lesson *l, struct dice *d) {
    int64_t order[16];
    rng_shuffle(d->seed, d->stream + 1 + d->thrown++, order, count);
    for (int i = 0; i < count; i++) {
        struct text ask = {0}, answer = {0};
        if (cJSON_GetArraySize(turns) == 0 && l->frames == 1) text_add(&ask, "<image>");
        questions[order[i]](l, d, &ask, &answer);
        add_turn(turns, "user", text_str(&ask));
        add_turn(turns, "assistant", text_str(&answer));
        text_free(&ask), text_free(&answer);
    }
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

static enum status make_picture(cJSON *row, const char *name, const char *path, struct dice *d, struct err *e) {
    struct lesson l;
    lesson_new(&l, d);
    l.first = throw_int(d, FRAMES), l.frames = 1;
    cJSON_AddItemToArray(cJSON_AddArrayToObject(row, "images"), cJSON_CreateString(name));
    talk(cJSON_AddArrayToObject(row, "conversation"), of_picture, COUNT(of_picture), &l, d);
    return picture_write(path, l.clip.rgb[l.first], SIDE, SIDE, e);
}

/* What a row about a clip has beside its conversation. */
static cJSON *add_clip(cJSON *row, const char *name) {
    cJSON_AddStringToObject(row, "video", name);
    return cJSON_AddArrayToObject(row, "conversation");
}

static enum status make_clip(cJSON *row, const char *name, const char *path, struct dice *d, struct err *e) {
    struct lesson l;
    lesson_new(&l, d);
    cJSON *turns = add_clip(row, name);
    bool frames_first = throw_chance(d, 0.2);
    if (frames_first) talk(turns, of_frames, COUNT(of_frames), &l, d);
    talk(turns, of_clip, COUNT(of_clip), &l, d);
    if (!frames_first) talk(turns, of_frames, COUNT(of_frames), &l, d);
    return film_write(path, &l.clip, e);
}

static enum status make_verdict(cJSON *row, const char *name, const char *path, struct dice *d, struct err *e) {
    struct lesson l;
    lesson_new(&l, d);
    talk(add_clip(row, name), of_whole, COUNT(of_whole), &l, d);
    return film_write(path, &l.clip, e);
}

struct set {
    const char *name, *ending; // of the files
    /* Fills a row about a new picture or clip and writes that. */
    enum status (*make)(cJSON *row, const char *name, const char *path, struct dice *d, struct err *e);
    int count;
};

static enum status make_set(const char *dir, const struct set *set, uint64_t seed, struct err *e) {
    struct dice d = {.seed = seed, .stream = rng_stream(set->name)};
    char *folder = path_join(dir, set->name), *file = mem_format("%s/%s.json", dir, set->name);
    cJSON *rows = cJSON_CreateArray();
    dir_make(folder, e);
    for (int i = 0; i < set->count && e->code == ST_OK; i++) {
        char *name = mem_format("%s/%05d.%s", set->name, i, set->ending), *path = path_join(dir, name);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "id", name);
        cJSON_AddItemToArray(rows, row);
        set->make(row, name, path, &d, e);
        free(name), free(path);
    }
    if (e->code == ST_OK) json_write(file, rows, e);
    cJSON_Delete(rows);
    free(folder), free(file);
    return e->code;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (argc != 7) {
        fprintf(stderr, "usage: make_base_data DIR SEED PICTURES CLIPS VERDICTS VAL\n");
        return ST_USAGE;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    struct set sets[] = {{"pictures", "png", make_picture, 0},
                         {"clips", "mkv", make_clip, 0},
                         {"verdicts", "mkv", make_verdict, 0},
                         {"val", "mkv", make_verdict, 0}};
    for (int i = 0; i < COUNT(sets); i++) sets[i].count = word_count(argv[3 + i], 1, &e);
    for (int i = 0; i < COUNT(sets) && e.code == ST_OK; i++) make_set(argv[1], &sets[i], seed, &e);
    if (e.code != ST_OK) fprintf(stderr, "make_base_data: %s\n", e.text);
    return (int)e.code;
}

/* Makes clips with known faults, and the scores that a careful viewer would give them.
 *
 *   make_video_data DIR SEED TRAIN VAL
 *
 * DIR/train and DIR/val hold clips, no scene of val is in train; DIR/train.json and DIR/val.json are rows of the
 * classification format of Mantis with a video, a prompt that quotes the clip's text, and five scores from 1 to 4:
 *   visual quality          blur, noise or blocks
 *   temporal consistency    flicker, frames that have changed places, or frames that were lost
 *   dynamic degree          pixels that the shape moves in a frame
 *   text-to-video alignment how many of colour, shape and motion the text has wrong
 *   factual consistency     for how long the shape is another one than at first
 * DIR/val.csv has clips and texts for a spreadsheet. All of it is a function of the seed and the numbers. */
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

enum { VISUAL, TEMPORAL, DYNAMIC, TEXT, FACTUAL, SCORES };
static const char *const score_names[SCORES] = {"visual quality", "temporal consistency", "dynamic degree",
                                                "text-to-video alignment", "factual consistency"};

struct sample {
    struct clip clip;
    struct text said; // about the clip, right or wrong
    double score[SCORES];
};

static double score_of(double fault) { return 4 - 3 * fault; }

static double spoil_frames(struct clip *c, struct dice *d) {
    double strength = throw_chance(d, 0.15) ? 0 : throw_between(d, 0, 1);
    int kind = throw_int(d, 3);
    if (kind == 0) fault_blur(c, strength);
    if (kind == 1) fault_noise(c, strength, d);
    if (kind == 2) fault_blocks(c, strength);
    return score_of(strength);
}

/* Where nothing moves, neither a change of places nor a frame that is lost can be seen. */
static double spoil_time(struct clip *c, bool moves, struct dice *d) {
    enum { MOST_SWAPS = 3, MOST_DROPS = 4 };
    int order[FRAMES], kind = moves ? throw_int(d, 3) : 0;
    double strength = throw_chance(d, 0.15) ? 0 : throw_between(d, 0, 1);
    if (kind == 1) {
        int moved = 0;
        fault_shuffle(c, (int)(strength * (MOST_SWAPS + 1)), order, d);
        for (int f = 0; f < FRAMES; f++) moved += order[f] != f;
        return score_of(moved / (2.0 * MOST_SWAPS));
    }
    if (kind == 2) {
        int lost = (int)(strength * (MOST_DROPS + 1));
        fault_drop(c, lost, d);
        return score_of((double)lost / MOST_DROPS);
    }
    fault_flicker(c, strength, d);
    return score_of(strength);
}

static double change_shape(struct scene *s, struct dice *d) {
    if (throw_chance(d, 0.3)) return score_of(0);
    s->changed_from = 2 + throw_int(d, FRAMES - 2);
    return score_of((double)(FRAMES - s->changed_from) / (FRAMES - 2));
}

/* What is said about the scene, with none, one, two or three things wrong. */
static double tell(const struct scene *s, struct text *said, struct dice *d) {
    struct scene told = *s;
    int wrong = throw_int(d, 4);
    int64_t parts[3];
    rng_shuffle(d->seed, d->stream + 1 + d->thrown++, parts, 3);
    for (int i = 0; i < wrong; i++) {
        if (parts[i] == 0) told.colour = (told.colour + 1 + throw_int(d, COLOURS - 1)) % COLOURS;
        if (parts[i] == 1) told.shape = (told.shape + 1 + throw_int(d, SHAPES - 1)) % SHAPES;
        if (parts[i] == 2) told.direction = (told.direction + 1 + throw_int(d, DIRECTIONS - 1)) % DIRECTIONS;
        if (parts[i] == 2 && told.speed == 0) told.speed = 1;
    }
    scene_caption(&told, said);
    return score_of(wrong / 3.0);
}

static void sample_new(struct sample *s, struct dice *d) {
    struct scene scene;
    *s = (struct sample){0};
    scene_new(&scene, d, throw_chance(d, 0.15));
    s->score[DYNAMIC] = 1 + 3 * scene.speed / MOST_SPEED;
    s->score[TEXT] = tell(&scene, &s->said, d);
    s->score[FACTUAL] = change_shape(&scene, d);
    scene_draw(&scene, &s->clip);
    s->score[TEMPORAL] = spoil_time(&s->clip, scene.speed > 0, d);
    s->score[VISUAL] = spoil_frames(&s->clip, d);
}

/* --- rows -------------------------------------------------------------------------------------------------------- */

static cJSON *row_json(const struct sample *s, const char *name) {
    cJSON *row = cJSON_CreateObject(), *labels = cJSON_CreateObject();
    struct text prompt = {0};
    text_add(&prompt, "User:");
    for (int f = 0; f < FRAMES; f++) text_add(&prompt, "<image>");
    text_addf(&prompt, "How true is it? %s<end_of_utterance>\nAssistant:", text_str(&s->said));
    for (int i = 0; i < SCORES; i++) cJSON_AddNumberToObject(labels, score_names[i], s->score[i]);
    cJSON_AddStringToObject(row, "id", name);
    cJSON_AddStringToObject(row, "video", name);
    cJSON_AddStringToObject(row, "prompt", text_str(&prompt));
    cJSON_AddItemToObject(row, "labels", labels);
    text_free(&prompt);
    return row;
}

struct split {
    const char *dir, *name;
    cJSON *rows;
    struct text sheet;
};

static enum status make_row(struct split *s, int i, struct dice *d, struct err *e) {
    struct sample sample;
    char *name = mem_format("%s/%04d.mkv", s->name, i), *path = path_join(s->dir, name);
    sample_new(&sample, d);
    film_write(path, &sample.clip, e);
    cJSON_AddItemToArray(s->rows, row_json(&sample, name));
    text_addf(&s->sheet, "%s,%s\n", name, text_str(&sample.said));
    text_free(&sample.said);
    free(name), free(path);
    return e->code;
}

static enum status make_split(const char *dir, const char *name, int count, uint64_t seed, struct err *e) {
    struct dice d = {.seed = seed, .stream = rng_stream(name)};
    struct split s = {.dir = dir, .name = name, .rows = cJSON_CreateArray()};
    char *folder = path_join(dir, name), *rows = mem_format("%s/%s.json", dir, name);
    char *sheet = mem_format("%s/%s.csv", dir, name);
    text_add(&s.sheet, "video,prompt\n");
    dir_make(folder, e);
    for (int i = 0; i < count && e->code == ST_OK; i++) make_row(&s, i, &d, e);
    if (e->code == ST_OK) json_write(rows, s.rows, e);
    if (e->code == ST_OK) file_write(sheet, text_str(&s.sheet), s.sheet.len, e);
    cJSON_Delete(s.rows);
    text_free(&s.sheet);
    free(folder), free(rows), free(sheet);
    return e->code;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: make_video_data DIR SEED TRAIN VAL\n");
        return ST_USAGE;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    int train = word_count(argv[3], 1, &e), val = word_count(argv[4], 1, &e);
    if (e.code == ST_OK) make_split(argv[1], "train", train, seed, &e);
    if (e.code == ST_OK) make_split(argv[1], "val", val, seed, &e);
    if (e.code != ST_OK) fprintf(stderr, "make_video_data: %s\n", e.text);
    return (int)e.code;
}

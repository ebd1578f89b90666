/* Makes clips with one fault or none, frame by frame, and the fault as a class.
 *
 *   make_classification_data DIR SEED TRAIN VAL
 *
 * DIR/train and DIR/val hold a folder for each clip with its frames as PNG, 0.png first; the folder's name ends with
 * the fault, for the reader alone. No scene of val is in train. DIR/train.json and DIR/val.json are rows of the
 * classification format of Mantis with a list of images, a prompt, and one label, the index of the class:
 *   0 none, 1 blur, 2 noise, 3 blocks, 4 flicker
 * All of it is a function of the seed and the numbers. */
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/rng.h"
#include "examples/clips/faults.h"
#include "examples/clips/picture.h"
#include "examples/clips/words.h"

enum fault { NONE, BLUR, NOISE, BLOCKS, FLICKER, FAULTS };
static const char *const fault_names[FAULTS] = {"none", "blur", "noise", "blocks", "flicker"};

static enum fault clip_new(struct clip *c, struct dice *d) {
    enum fault fault = (enum fault)throw_int(d, FAULTS);
    double strength = throw_between(d, 0.3, 1);
    struct scene scene;
    scene_new(&scene, d, throw_chance(d, 0.15));
    scene_draw(&scene, c);
    if (fault == BLUR) fault_blur(c, strength);
    if (fault == NOISE) fault_noise(c, strength, d);
    if (fault == BLOCKS) fault_blocks(c, strength);
    if (fault == FLICKER) fault_flicker(c, strength, d);
    return fault;
}

/* The frames become files in DIR/name. */
static enum status write_frames(const char *dir, const char *name, const struct clip *c, struct err *e) {
    char *folder = path_join(dir, name);
    dir_make(folder, e);
    for (int f = 0; f < FRAMES && e->code == ST_OK; f++) {
        char *path = mem_format("%s/%d.png", folder, f);
        picture_write(path, c->rgb[f], SIDE, SIDE, e);
        free(path);
    }
    free(folder);
    return e->code;
}

static cJSON *row_json(const char *name, enum fault fault) {
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "id", name);
    cJSON_AddStringToObject(row, "prompt", "How does it look?");
    cJSON *images = cJSON_AddArrayToObject(row, "images");
    for (int f = 0; f < FRAMES; f++) {
        char *path = mem_format("%s/%d.png", name, f);
        cJSON_AddItemToArray(images, cJSON_CreateString(path));
        free(path);
    }
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(row, "labels"), "fault", fault);
    return row;
}

static enum status make_split(const char *dir, const char *split, int count, uint64_t seed, struct err *e) {
    struct dice d = {.seed = seed, .stream = rng_stream(split)};
    cJSON *rows = cJSON_CreateArray();
    char *path = mem_format("%s/%s.json", dir, split);
    for (int i = 0; i < count && e->code == ST_OK; i++) {
        struct clip clip;
        enum fault fault = clip_new(&clip, &d);
        char *name = mem_format("%s/%04d-%s", split, i, fault_names[fault]);
        write_frames(dir, name, &clip, e);
        cJSON_AddItemToArray(rows, row_json(name, fault));
        free(name);
    }
    if (e->code == ST_OK) json_write(path, rows, e);
    cJSON_Delete(rows);
    free(path);
    return e->code;
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: make_classification_data DIR SEED TRAIN VAL\n");
        return ST_USAGE;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    int train = word_count(argv[3], 1, &e), val = word_count(argv[4], 1, &e);
    if (e.code == ST_OK) make_split(argv[1], "train", train, seed, &e);
    if (e.code == ST_OK) make_split(argv[1], "val", val, seed, &e);
    if (e.code != ST_OK) fprintf(stderr, "make_classification_data: %s\n", e.text);
    return (int)e.code;
}

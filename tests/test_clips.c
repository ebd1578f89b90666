/* From clips with scores to a scorer and back: a random Idefics2 learns from a data set of videos, then graft score
 * looks at clips, folders and sheets; and graft generate at a clip. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "tests/clip.h"
#include "tests/folder.h"
#include "tests/run_command.h"

static const double SECONDS = 240;
enum { WORDS = 40 };

/* Runs graft with the words of a line, @ being the folder; wants the status. Returns stdout, which the caller frees;
 * *said (if wanted) becomes stderr. */
static char *run(const char *folder, int status, const char *line, char **said) {
    const char *argv[WORDS] = {graft_path()};
    struct text t = {0};
    for (const char *s = line; *s; s++) *s == '@' ? text_add(&t, folder) : text_add_char(&t, *s);
    int n = 1;
    char *rest = t.data;
    for (char *word; (word = strsep(&rest, " "));) {
        assert_true(n < WORDS - 1);
        argv[n++] = word;
    }
    struct command_result r = {0};
    struct err e = {0};
    if (command_run(argv, NULL, "", SECONDS, &r, &e) != ST_OK) fail_msg("%s", e.text);
    if (r.status != status)
        fail_msg("graft %s: exit status %d, wanted %d: %s", line, r.status, status, text_str(&r.err));
    char *out = mem_text(text_str(&r.out));
    if (said) *said = mem_text(text_str(&r.err));
    command_free(&r);
    text_free(&t);
    return out;
}

static void put_clip(const char *folder, const char *name, int frames) {
    const struct clip_options o = {"mpeg4", "yuv420p", 48, 32, frames, 10, NULL, NULL};
    char *path = path_join(folder, name);
    assert_true(clip_make(path, &o));
    free(path);
}

static const char rows[] =
    "[{\"id\":\"a\",\"video\":\"clips/a.mp4\",\"prompt\":\"one\",\"labels\":{\"sharp\":1,\"steady\":3}},\n"
    "{\"id\":\"b\",\"video\":\"clips/b.avi\",\"prompt\":\"two\",\"labels\":{\"sharp\":4,\"steady\":2}}]";
static const char data[] = "data:\n"
                           "  - {path: rows.json, name: a, split: train, format: classification, max_num_frames: 3}\n"
                           "  - {path: rows.json, name: b, split: val, format: classification, max_num_frames: 3}\n";
static const char config[] = "model_name_or_path: model\ndata_config_file: data.yaml\noutput_dir: out\n"
                             "problem_type: regression\nmax_steps: 2\nlora_r: 2\n";

static int set_up(void **state) {
    const char *folder = *state = folder_new();
    struct err e = {0};
    char *clips = path_join(folder, "clips");
    dir_make(clips, &e);
    free(clips);
    put_clip(folder, "clips/a.mp4", 9), put_clip(folder, "clips/b.avi", 5);
    free(folder_put(folder, "rows.json", rows)), free(folder_put(folder, "data.yaml", data)),
        free(folder_put(folder, "config.yaml", config));
    free(run(folder, 0, "init idefics2-tiny --out @/model --seed 3", NULL));
    return 0;
}

#define SCORE "score @/model --adapter @/out --dtype f32 --json --num_frames 3 "

/* The numbers of two answers, whatever their ids. */
static void assert_same_outputs(const char *a, const char *b) {
    const char *x = strstr(a, "\"outputs\""), *y = strstr(b, "\"outputs\"");
    assert_non_null(x);
    assert_non_null(y);
    assert_string_equal(x, y);
}

static void test_scorer(void **state) {
    const char *folder = *state;
    char *said, *first, *second;
    free(run(folder, 0, "train @/config.yaml --dtype f32 --quiet", NULL));
    char *by_data = run(folder, 0, SCORE "--data @/data.yaml --split val --csv @/data.csv", NULL);
    char *one = run(folder, 0, SCORE "--video @/clips/a.mp4 --prompt one", NULL);
    assert_contains(by_data, "{\"id\": \"a\"");
    char *end = strchr(by_data, '\n');
    *end = 0; // the first row
    first = mem_format("%s\n", by_data);
    assert_same_outputs(first, one);

    free(folder_put(folder, "clips/sheet.csv", "prompt,video\r\none,a.mp4\r\ntwo,b.avi\r\n"));
    char *sheet = run(folder, 0, SCORE "--prompts @/clips/sheet.csv --csv @/out.csv", NULL);
    char *whole = run(folder, 0, SCORE "--video @/clips --prompts @/clips/sheet.csv", NULL);
    assert_string_equal(sheet, whole);
    second = strchr(sheet, '\n') + 1;
    assert_same_outputs(end + 1, second);

    free(folder_put(folder, "all.csv",
                    "prompt,video\none,clips/a.mp4\nother,old/b.avi\ntwo,clips/b.avi\n")); // whole paths go first
    char *mixed = run(folder, 0, SCORE "--video @/clips --prompts @/all.csv", NULL);
    assert_string_equal(sheet, mixed);
    free(mixed);
    free(folder_put(folder, "all.csv", "prompt,video\none,a.mp4\nother,old/b.avi\ntwo,new/b.avi\n"));
    free(run(folder, 1, SCORE "--video @/clips --prompts @/all.csv", &said));
    assert_contains(said, "all.csv: has two prompts for");
    free(said);

    // an adapter that was trained beside another form of the weights
    free(run(folder, 0, "train @/config.yaml --dtype f32 --quiet --quantization nf4 --output_dir @/four", NULL));
    free(run(folder, 0, "score @/model --adapter @/four --num_frames 3 --video @/clips/a.mp4 --prompt one", &said));
    assert_contains(said, "trained beside their nf4 form");
    free(said);
    free(run(folder, 0, "init idefics2-tiny --out @/other --seed 5", NULL));
    free(run(folder, 0, "score @/other --adapter @/four --num_frames 3 --video @/clips/a.mp4 --prompt one", &said));
    assert_contains(said, "trained on other weights");
    free(said);
    free(run(folder, 0, "quantize @/model --out @/model4 --double_quant true", NULL));
    free(run(folder, 0, "merge @/model4 --adapter @/four --out @/merged4 --verify none", NULL));
    free(run(folder, 0, "score @/model4 --adapter @/four --num_frames 3 --video @/clips/a.mp4 --prompt one", &said));
    assert_true(!strstr(said, "beside") && !strstr(said, "other weights"));
    free(said);

    free(folder_put(folder, "query.txt", "o{text_prompt}e"));
    char *query = run(folder, 0, SCORE "--video @/clips/a.mp4 --prompt n --prompt_file @/query.txt", NULL);
    assert_same_outputs(query, one);

    struct csv t;
    struct err e = {0};
    char *path = path_join(folder, "out.csv");
    assert_int_equal(csv_read(&t, path, &e), ST_OK);
    assert_int_equal(t.rows, 3);
    assert_string_equal(csv_cell(&t, 0, 0), "video");
    assert_string_equal(csv_cell(&t, 0, 1), "sharp");
    assert_contains(csv_cell(&t, 2, 0), "b.avi");
    cJSON *json = json_parse(second, strlen(second), "stdout", &e);
    assert_true((float)json_get(json_get(json, "outputs"), "steady")->valuedouble == strtof(csv_cell(&t, 2, 2), NULL));
    cJSON_Delete(json);
    csv_free(&t);

    char *named = run(folder, 0, SCORE "--video @/clips/a.mp4 --prompt one --labels x,y", NULL);
    assert_contains(named, "{\"x\": ");
    free(folder_put(folder, "clips/c.mp4", "no clip"));
    free(run(folder, 1, SCORE "--video @/clips --prompt one", &said));
    assert_contains(said, "c.mp4: not a video that can be read");
    free(said);
    char *skipped = run(folder, 0, SCORE "--video @/clips --prompt one --on_bad_row skip", &said);
    assert_contains(said, "c.mp4: not a video that can be read");
    assert_contains(said, "1 bad rows left out");
    assert_contains(skipped, "b.avi");
    free(said);
    free(run(folder, 1, SCORE "--video @/clips --prompts @/clips/sheet.csv", &said));
    assert_contains(said, "sheet.csv: has no prompt for");
    free(said);
    free(run(folder, 1, SCORE "--video @/clips/none.mp4 --prompt one", &said));
    assert_contains(said, "none.mp4: there is no such file or folder");
    free(said);
    free(run(folder, 1, SCORE "--video @/clips/a.mp4 --prompt one --labels videoscore", &said));
    assert_contains(said, "--labels has 5 names, the model has 2 outputs");
    free(said);
    free(run(folder, 1, "score @/model --adapter @/none --video @/clips/a.mp4 --prompt one", &said));
    assert_contains(said, "none/adapter_config.json: there is no such file");
    free(said);
    free(run(folder, 1, "score @/out --video @/clips/a.mp4 --prompt one", &said));
    assert_contains(said, "out: is an adapter, not a model");
    free(said);
    free(run(folder, 2, SCORE "--video @/clips", &said));
    assert_contains(said, "--prompt TEXT");
    free(said);
    free(by_data), free(one), free(first), free(sheet), free(whole), free(query), free(path), free(named),
        free(skipped);
}

/* A folder of frames and the clip are different pixels of the same places; three of either are three pictures. */
static void test_generate(void **state) {
    const char *folder = *state;
    char *said;
    char *out = run(folder, 0,
                    "generate @/model --video @/clips/a.mp4 --num_frames 3 --prompt Hi --max_new_tokens 2 --json "
                    "--dtype f32",
                    NULL);
    char *five = run(folder, 0,
                     "generate @/model --video @/clips/a.mp4 --video @/clips/b.avi --num_frames 3 --prompt Hi "
                     "--max_new_tokens 2 --json --dtype f32",
                     NULL);
    struct err e = {0};
    cJSON *a = json_parse(out, strlen(out), "stdout", &e), *b = json_parse(five, strlen(five), "stdout", &e);
    int64_t alone = (int64_t)json_get(a, "prompt_tokens")->valuedouble;
    int64_t both = (int64_t)json_get(b, "prompt_tokens")->valuedouble;
    assert_true(both > alone + 3);
    assert_int_equal((both - alone) % 3, 0);
    free(run(folder, 1, "generate @/model --video @/rows.json --prompt Hi", &said));
    assert_contains(said, "rows.json: not a video that can be read");
    free(said), free(out), free(five);
    cJSON_Delete(a), cJSON_Delete(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_scorer, set_up, folder_end),
        cmocka_unit_test_setup_teardown(test_generate, set_up, folder_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The verbs that write a model, where the world fails them: a kill before each of their changes of the file system, a
 * full disk, a folder that cannot be written, a file of the model that is missing or becomes shorter. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "tests/adapter_fixture.h"
#include "tests/run_command.h"
#include "tests/traced.h"

enum { MAX_WORDS = 16, SECONDS = 60 };

/* A verb with all that comes before --out. */
static const struct verb_case {
    const char *words[MAX_WORDS]; // the second is the model
    const char *out;              // "a.gguf" for a file
} VERBS[] = {
    {{"merge", MODELS "llama/model", "--adapter", MODELS "lora/adapter"}, "merged"},
    {{"merge", MODELS "llama/model", "--adapter", MODELS "lora/adapter", "--quantize", "nf4"}, "small"},
    {{"quantize", MODELS "llama/model"}, "nf4"},
    {{"export", MODELS "llama/model", "--type", "f16"}, "a.gguf"},
};
enum { VERB_COUNT = sizeof VERBS / sizeof *VERBS };

/* The words of a run with one thread; model NULL: the case's own. */
static void put_words(const char **argv, const struct verb_case *v, const char *model, const char *out) {
    static const char *const end[] = {"--threads", "1", "--quiet", "--out"};
    int n = 0;
    argv[n++] = graft_path();
    for (int i = 0; v->words[i]; i++) argv[n++] = i == 1 && model ? model : v->words[i];
    for (int i = 0; i < 4; i++) argv[n++] = end[i];
    argv[n++] = out, argv[n] = NULL;
}

/* One sentence, which has the parts. */
static void check_sentence(const char *said, const char *part, const char *other) {
    const char *end = strchr(said, '\n');
    if (!end || end[1] != 0 || !strstr(said, part) || !strstr(said, other))
        fail_msg("\"%s\" is not one sentence with \"%s\" and \"%s\"", said, part, other);
}

/* Runs a verb to its failure. */
static void expect_failure(const struct verb_case *v, const char *model, const char *out, const char *part,
                           const char *other) {
    const char *argv[MAX_WORDS + 8];
    struct command_result r;
    struct err e = {0};
    put_words(argv, v, model, out);
    command_run(argv, NULL, NULL, SECONDS, &r, &e);
    expect_good(&e);
    if (r.status != 1) fail_msg("%s: exit status %d, wanted 1: %s", v->words[0], r.status, text_str(&r.err));
    assert_int_equal(r.out.len, 0);
    check_sentence(text_str(&r.err), part, other);
    command_free(&r);
}

/* --- what lies in a folder --------------------------------------------------------------------------------------- */

static size_t list(struct fixture *f, const char *dir, char ***names) {
    size_t count;
    dir_list(dir, names, &count, &f->e);
    expect_good(&f->e);
    return count;
}

static void expect_empty(struct fixture *f, const char *dir) {
    char **names;
    size_t count = list(f, dir, &names);
    if (count) fail_msg("%s was left", names[0]);
    names_free(names, count);
}

static void make_empty(struct fixture *f, const char *dir) {
    dir_remove(dir, &f->e), dir_make(dir, &f->e);
    expect_good(&f->e);
}

/* These two say how long it took. */
static bool has_seconds(const char *name) {
    return strcmp(name, "merge_report.json") == 0 || strcmp(name, "README.md") == 0;
}

static void same_file(struct fixture *f, const char *got, const char *want) {
    struct file_map a, b;
    assert_int_equal(file_map_open(&a, got, &f->e), ST_OK);
    assert_int_equal(file_map_open(&b, want, &f->e), ST_OK);
    if (!has_seconds(path_name(got)))
        if (a.size != b.size || memcmp(a.data, b.data, a.size) != 0) fail_msg("%s differs from %s", got, want);
    assert_true(a.size > 0);
    file_map_close(&a), file_map_close(&b);
}

/* A file, or a folder of files. */
static void same_output(struct fixture *f, const char *got, const char *want) {
    char **names, **others;
    if (!dir_exists(want)) {
        same_file(f, got, want);
        return;
    }
    size_t count = list(f, got, &names);
    assert_int_equal(list(f, want, &others), count);
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(names[i], others[i]);
        char *a = path_join(got, names[i]), *b = path_join(want, names[i]);
        same_file(f, a, b);
        free(a), free(b);
    }
    names_free(names, count), names_free(others, count);
}

/* --- killed ------------------------------------------------------------------------------------------------------ */

/* What a kill left: the output whole or not at all, and beside it what says that it is not finished. */
static bool check_left(struct fixture *f, const char *dir, const struct verb_case *v, const char *calm) {
    char **names, *out = path_join(dir, v->out);
    size_t count = list(f, dir, &names);
    bool there = file_exists(out) || dir_exists(out);
    if (there) same_output(f, out, calm);
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], v->out) != 0 && !strstr(names[i], ".partial") &&
            !(there && text_ends(names[i], ".Modelfile")))
            fail_msg("%s: a kill left %s", v->words[0], names[i]);
    names_free(names, count);
    free(out);
    return there;
}

/* Runs to the end; how many changes there were. */
static int64_t run_calm(const char *const *argv) {
    struct traced t;
    if (traced_start(&t, argv, INT64_MAX)) fail_msg("more changes than can be");
    char *said = traced_text(&t);
    if (t.status != 0) fail_msg("%s", said);
    free(said);
    return t.changes;
}

/* Before the first of its changes, before the second, and so on to the last; what a kill left is in no one's way. */
static void test_killed(void **state) {
    struct fixture *f = *state;
    char *quiet = path_join(f->tmp, "calm"), *dir = path_join(f->tmp, "killed");
    for (int k = 0; k < VERB_COUNT; k++) {
        const struct verb_case *v = &VERBS[k];
        const char *argv[MAX_WORDS + 8];
        char *calm = path_join(quiet, v->out), *out = path_join(dir, v->out);
        struct traced t;
        int64_t change = 0, whole = 0;
        make_empty(f, quiet), make_empty(f, dir);
        put_words(argv, v, NULL, calm);
        run_calm(argv);
        put_words(argv, v, NULL, out);
        for (; traced_start(&t, argv, change); change++) {
            traced_kill(&t);
            if (check_left(f, dir, v, calm)) whole++;
            if (whole) make_empty(f, dir);
        }
        char *said = traced_text(&t);
        if (t.status != 0) fail_msg("%s after %lld kills: %s", v->words[0], (long long)change, said);
        same_output(f, out, calm);
        print_message("%s: killed before each of %lld changes\n", v->words[0], (long long)change);
        assert_true(change - whole >= 5); // a folder, a file, a write, a flush, a rename
        free(calm), free(out), free(said);
    }
    free(quiet), free(dir);
}

/* A killed process leaves a folder with its number in the name, and a later one may have that number. */
static void test_number_comes_again(void **state) {
    struct fixture *f = *state;
    static const char line[] = "for out; do :; done; for left in \"$out.$$.partial\" \"$out.$$.partial.plain\"; do "
                               "mkdir \"$left\" && echo x >\"$left/old.json\" || exit 9; done; exec \"$@\"";
    for (int k = 0; k < VERB_COUNT; k++) {
        if (text_ends(VERBS[k].out, ".gguf")) continue; // a file is written anew
        const char *argv[MAX_WORDS + 16] = {"/bin/sh", "-c", line, "sh"};
        char *out = path_join(f->tmp, VERBS[k].out), *old = path_join(out, "old.json");
        struct command_result r;
        put_words(argv + 4, &VERBS[k], NULL, out);
        command_run(argv, NULL, NULL, SECONDS, &r, &f->e);
        expect_good(&f->e);
        if (r.status != 0) fail_msg("%s: %s", VERBS[k].words[0], text_str(&r.err));
        assert_true(dir_exists(out));
        assert_false(file_exists(old));
        command_free(&r);
        free(out), free(old);
    }
}

/* Asked to stop before some of its changes: it is done, or leaves nothing and says so. */
static void test_asked_to_stop(void **state) {
    enum { POINTS = 11 };
    struct fixture *f = *state;
    char *quiet = path_join(f->tmp, "calm"), *dir = path_join(f->tmp, "stopped");
    for (int k = 0; k < VERB_COUNT; k++) {
        const char *argv[MAX_WORDS + 8];
        char *calm = path_join(quiet, VERBS[k].out), *out = path_join(dir, VERBS[k].out);
        struct traced t;
        int64_t stopped = 0;
        make_empty(f, quiet);
        put_words(argv, &VERBS[k], NULL, calm);
        int64_t changes = run_calm(argv);
        put_words(argv, &VERBS[k], NULL, out);
        for (int64_t change = 0; change < changes; change += 1 + changes / POINTS) {
            make_empty(f, dir);
            assert_true(traced_start(&t, argv, change));
            tgkill(t.child, t.child, SIGTERM); // the thread that works, before it does anything else
            traced_finish(&t);
            char *said = traced_text(&t);
            if (t.status == 128 + SIGTERM) {
                check_sentence(said, VERBS[k].words[0], "nothing was written");
                expect_empty(f, dir);
                stopped++;
            } else {
                assert_int_equal(t.status, 0);
                same_output(f, out, calm);
            }
            free(said);
        }
        assert_true(stopped > 0); // asked before the first change it always stops; later the last part may be begun
        free(calm), free(out);
    }
    free(quiet), free(dir);
}

/* --- a disk and folders ------------------------------------------------------------------------------------------ */

/* At whatever byte of whatever file the disk is full. */
static void test_full_disk(void **state) {
    struct fixture *f = *state;
    static const rlim_t limits[] = {0, 1, 300, 5000, 30000};
    struct rlimit before, less;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (int k = 0; k < VERB_COUNT; k++)
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            char *out = path_join(f->tmp, VERBS[k].out);
            less = (struct rlimit){limits[i], before.rlim_max};
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &less), 0);
            expect_failure(&VERBS[k], NULL, out, "cannot write", out);
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
            expect_empty(f, f->tmp);
            free(out);
        }
}

/* No one may write into /sys, whoever runs the tests. */
static void test_no_right_to_write(void **state) {
    struct err e = {0};
    (void)state;
    for (int k = 0; k < VERB_COUNT; k++) expect_failure(&VERBS[k], NULL, "/sys/x", "/sys/x", "cannot");
    assert_int_equal(dir_make("/sys/x", &e), ST_FAIL);
    if (strstr(e.text, strerror(ENOENT))) fail_msg("\"%s\" names the wrong reason", e.text);
}

/* --- files of the model ------------------------------------------------------------------------------------------ */

/* The llama of the fixtures in several files, by merging an adapter into it; the caller frees the folder's name. */
static char *make_shards(struct fixture *f) {
    char *dir = path_join(f->tmp, "shards");
    struct command_result r;
    const char *argv[] = {graft_path(), "merge", MODELS "llama/model", "--adapter", MODELS "lora/adapter",
                          "--out",      dir,     "--max_shard_size",   "60KB",      "--verify",
                          "none",       NULL};
    command_run(argv, NULL, NULL, SECONDS, &r, &f->e);
    expect_good(&f->e);
    if (r.status != 0) fail_msg("%s", text_str(&r.err));
    command_free(&r);
    return dir;
}

/* The name of the second file of weights. */
static char *second_shard(struct fixture *f, const char *dir) {
    char **names, *found = NULL;
    size_t count = list(f, dir, &names);
    for (size_t i = 0; i < count; i++)
        if (text_starts(names[i], "model-00002-of-")) found = mem_text(names[i]);
    names_free(names, count);
    assert_non_null(found);
    return found;
}

static void test_shard_missing(void **state) {
    struct fixture *f = *state;
    char *dir = make_shards(f), *shard = second_shard(f, dir), *path = path_join(dir, shard);
    char *work = path_join(f->tmp, "work");
    assert_int_equal(unlink(path), 0);
    for (int k = 0; k < VERB_COUNT; k++) {
        char *out = path_join(work, VERBS[k].out);
        make_empty(f, work);
        expect_failure(&VERBS[k], dir, out, shard, "cannot");
        expect_empty(f, work);
        free(out);
    }
    free(dir), free(shard), free(path), free(work);
}

/* At one of a run's changes the shard goes, or its bytes. The run ends well with the whole output, for what is open
 * stays readable, or with a sentence that names the shard; says whether it is that the bytes went. */
static bool lose_shard(struct fixture *f, const char *const *argv, const char *calm, int64_t change, const char *shard,
                       bool bytes) {
    const char *out = argv[0];
    char *aside = path_join(f->tmp, "aside"), *data;
    struct traced t;
    size_t size;
    file_read(shard, &data, &size, &f->e);
    expect_good(&f->e);
    for (int i = 0; argv[i]; i++) out = argv[i];
    assert_true(traced_start(&t, argv, change));
    assert_int_equal(bytes ? truncate(shard, 0) : rename(shard, aside), 0);
    traced_finish(&t);
    char *said = traced_text(&t);
    bool shorter = strstr(said, "has become shorter");
    assert_true(t.status == 0 || t.status == 1);
    if (t.status)
        check_sentence(said, path_name(shard), "");
    else
        same_output(f, out, calm);
    assert_int_equal(t.status == 0, file_exists(out) || dir_exists(out));
    file_write(shard, data, size, &f->e);
    expect_good(&f->e);
    free(aside), free(data), free(said);
    return shorter;
}

static void test_shard_lost_midway(void **state) {
    enum { POINTS = 6 }; // of the first half, in which the model is read
    struct fixture *f = *state;
    char *dir = make_shards(f), *shard = second_shard(f, dir), *path = path_join(dir, shard);
    char *work = path_join(f->tmp, "work"), *quiet = path_join(f->tmp, "calm");
    for (int k = 0; k < VERB_COUNT; k++) {
        const char *argv[MAX_WORDS + 8];
        char *out = path_join(work, VERBS[k].out), *calm = path_join(quiet, VERBS[k].out);
        int shorter = 0, good = 0;
        make_empty(f, work), make_empty(f, quiet);
        put_words(argv, &VERBS[k], dir, calm);
        int64_t changes = run_calm(argv);
        put_words(argv, &VERBS[k], dir, out);
        for (int i = 0; i < POINTS; i++) {
            make_empty(f, work);
            shorter += lose_shard(f, argv, calm, i * changes / (2 * POINTS), path, true);
            make_empty(f, work);
            lose_shard(f, argv, calm, i * changes / (2 * POINTS), path, false);
            good += file_exists(out) || dir_exists(out);
        }
        if (!shorter || !good) fail_msg("%s: %d runs found it shorter, %d ended well", *VERBS[k].words, shorter, good);
        free(out), free(calm);
    }
    free(dir), free(shard), free(path), free(work), free(quiet);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(test_killed),        FIXTURE_TEST(test_number_comes_again),
        FIXTURE_TEST(test_full_disk),     FIXTURE_TEST(test_no_right_to_write),
        FIXTURE_TEST(test_shard_missing), FIXTURE_TEST(test_shard_lost_midway),
        FIXTURE_TEST(test_asked_to_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

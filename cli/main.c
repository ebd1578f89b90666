/* graft VERB ...: finds the verb, checks its flags, runs it, and turns what went wrong into one sentence on stderr and
 * an exit status: 0 done, 1 the work failed, 2 wrong usage. */
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "cli/fault.h"
#include "cli/help.h"
#include "cli/out.h"
#include "cli/stop.h"
#include "cli/verbs.h"

static const char version[] = "graft 0.1";

static const struct verb *const verbs[] = {
    &verb_train,  &verb_eval, &verb_score, &verb_generate, &verb_chat,    &verb_quantize, &verb_merge,  &verb_diff,
    &verb_export, &verb_data, &verb_plan,  &verb_tokenize, &verb_inspect, &verb_init,     &verb_doctor,
};
enum { VERBS = sizeof verbs / sizeof *verbs };

static const struct verb *find_verb(const char *name) {
    for (int i = 0; i < VERBS; i++)
        if (strcmp(verbs[i]->name, name) == 0) return verbs[i];
    return NULL;
}

static int unknown_verb(const char *name) {
    const char *names[VERBS];
    for (int i = 0; i < VERBS; i++) names[i] = verbs[i]->name;
    const char *near = text_nearest(name, names, VERBS);
    if (near)
        fprintf(stderr, "graft: unknown verb %s; did you mean graft %s?\n", name, near);
    else
        fprintf(stderr, "graft: unknown verb %s; graft alone lists the verbs\n", name);
    return ST_USAGE;
}

static bool asks_help(int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) return true;
    return false;
}

static int run_verb(const struct verb *v, int argc, char **argv) {
    if (asks_help(argc, argv)) {
        help_verb(v);
        return ST_OK;
    }
    struct flags f;
    struct err e = {0};
    int status = flags_parse(&f, v, argc, argv, &e);
    if (status == ST_OK) status = v->run(&f, &e);
    if (e.code != ST_OK) {
        fflush(stdout);
        fprintf(stderr, "graft %s: %s\n", v->name, e.text);
        if (status == ST_OK) status = e.code;
        if (*stop_asked()) status = 128 + *stop_asked();
    }
    flags_free(&f);
    return status;
}

static int run(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        help_verbs(verbs, VERBS);
        return ST_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        out_text("%s\n", version);
        return ST_OK;
    }
    const struct verb *v = find_verb(argv[1]);
    return v ? run_verb(v, argc - 2, argv + 2) : unknown_verb(argv[1]);
}

/* A result that did not reach its file is a failure, e.g. on a full disk. */
int main(int argc, char **argv) {
    fault_watch();
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); // whoever reads along in a pipe sees each line
    int status = run(argc, argv);
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    perror("graft: cannot write to stdout");
    return status ? status : ST_FAIL;
}

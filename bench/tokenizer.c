/* How fast one thread tokenizes a text file: bench/tokenizer DIR FILE. Prints one line. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/file.h"
#include "data/tokenizer.h"

int main(int argc, char **argv) {
    enum { RUNS = 5 };
    struct err e = {0};
    char *text = NULL;
    size_t n = 0;
    struct ids ids = {0};
    struct tokenizer *t = NULL;
    if (argc != 3) return fprintf(stderr, "usage: tokenizer DIR FILE\n"), ST_USAGE;
    double start = clock_now(), best = 1e30;
    if (!(t = tokenizer_load(argv[1], &e))) goto done;
    double load = clock_now() - start;
    if (file_read(argv[2], &text, &n, &e) != ST_OK) goto done;
    for (int run = 0; run < RUNS; run++) {
        ids_clear(&ids);
        start = clock_now();
        if (tokenizer_encode(t, text, n, false, &ids, &e) != ST_OK) goto done;
        double took = clock_now() - start;
        if (took < best) best = took;
    }
    printf("tokenizer %s: load %.0f ms, %.1f MB/s, %.2f M tokens/s (%zu tokens, best of %d, one thread)\n", argv[1],
           load * 1e3, (double)n / best / 1e6, (double)ids.len / best / 1e6, ids.len, RUNS);
done:
    if (e.code != ST_OK) fprintf(stderr, "%s\n", e.text);
    ids_free(&ids);
    free(text);
    tokenizer_free(t);
    return (int)e.code;
}

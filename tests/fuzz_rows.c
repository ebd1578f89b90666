/* Whatever the bytes: a file of chat or classification rows, as a .json list and as .jsonl, is refused or read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "data/dataset_parts.h"
#include "tests/fuzz.h"

static void read_labels(const struct rows *rows, int64_t i) {
    const struct data_family any = {.problem = PROBLEM_REGRESSION};
    struct chat_row row;
    struct label_names names = {0};
    struct err bad = {0};
    if (class_row_read(&row, rows, i, &bad) == ST_OK && row.labels &&
        label_names_init(&names, &row, &any, &bad) == ST_OK) {
        float *values = mem_alloc((size_t)names.count * sizeof *values);
        label_values(values, &names, &row, PROBLEM_MULTI_LABEL, 0, &bad);
        free(values);
    }
    label_names_free(&names);
    chat_row_free(&row);
}

static void read_all(const char *path) {
    struct rows rows;
    struct err e = {0};
    if (rows_open(&rows, path, &e) != ST_OK) return;
    for (int64_t i = 0; i < rows.count; i++) {
        struct chat_row row;
        struct err bad = {0};
        chat_row_read(&row, &rows, i, &bad);
        chat_row_free(&row);
        bad = (struct err){0};
        video_row_read(&row, &rows, i, &bad);
        chat_row_free(&row);
        read_labels(&rows, i);
    }
    rows_close(&rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const endings[] = {"json", "jsonl"};
    for (int i = 0; i < 2; i++) {
        char path[64];
        struct err e = {0};
        snprintf(path, sizeof path, "/tmp/fuzz_rows_%ld.%s", (long)getpid(), endings[i]);
        if (file_write(path, data, size, &e) == ST_OK) read_all(path);
        unlink(path);
    }
    return 0;
}

/* The Mantis data YAML: one key, `data:`, a list of data sets. Every field is honoured or refused by
 * name; formats that are known but not read yet are refused by name too. */
#ifndef DATA_CONFIG_H
#define DATA_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/dataset.h"
#include "data/frames.h"

enum row_format { ROWS_CHAT, ROWS_CHAT_VIDEO, ROWS_CLASSIFICATION };

struct set_config {
    enum row_format format;
    char *path;         // of the rows, resolved
    char *folder;       // pictures are relative to it: that of the rows, for chat_video video_dir
    char *video_folder; // videos are relative to it: video_dir, or that of the rows
    char *name;
    int64_t max_size, max_num_images, max_image_size, max_seq_len; // 0: no limit
    bool shuffle, vl_only;
    struct frame_rule frames;
};

struct data_config {
    char *where;             // the file, or what the list was part of
    struct set_config *sets; // (count), those of the wanted split, in file order
    size_t count;
};

enum { DATA_SPLITS = 3 };
extern const char *const data_splits[DATA_SPLITS]; // "train", "val", "test"

/* Which of them have a data set in a data YAML. */
enum status data_config_splits(bool found[DATA_SPLITS], const char *file, struct err *e);

enum status data_config_read(struct data_config *c, const struct data_options *o, struct err *e);
void data_config_free(struct data_config *c);

#endif

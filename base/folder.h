/* A folder that appears whole under its name or not at all: it is filled beside, as NAME.PID.partial, its files are
 * flushed to the disk, and it is renamed. */
#ifndef BASE_FOLDER_H
#define BASE_FOLDER_H

#include "base/status.h"

struct folder_out {
    char *path, *beside; // files go to beside
};

/* path must not be there yet, or be an empty folder. */
enum status folder_open(struct folder_out *f, const char *path, struct err *e);
enum status folder_commit(struct folder_out *f, struct err *e);
void folder_abandon(struct folder_out *f); // removes what was written; fine after commit and on zeros

/* An empty folder, whatever lies under its name: process numbers come again, so a killed process may have left one. */
enum status folder_empty(const char *path, struct err *e);

/* The files that stand beside the weights of a model and do not depend on them: tokenizer, processor, chat template,
 * generation settings. Not config.json and no index of weights. */
enum status folder_copy_companions(const char *from, const char *to, struct err *e);

#endif

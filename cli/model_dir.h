/* What a user may write where a model is wanted: a folder, or the name of a model that lies in the local hub cache. */
#ifndef CLI_MODEL_DIR_H
#define CLI_MODEL_DIR_H

#include "base/status.h"

/* The folder; the caller frees it. A name is ORG/NAME, with @REV after it when another revision than main is meant. */
char *model_dir(const char *name, struct err *e);

char *hub_cache_dir(void); // $HF_HUB_CACHE, else $HF_HOME/hub, else in the user's cache; the caller frees it

#endif

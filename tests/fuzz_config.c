/* Whatever the bytes: config.json of a model, preprocessor_config.json and a training config are refused or read. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "data/processor.h"
#include "lora/settings.h"
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char dir[] = "/tmp/fuzz_config_XXXXXX";
    struct err e = {0};
    if (!mkdtemp(dir)) return 0;
    char *config = path_join(dir, "config.json"), *processor = path_join(dir, "preprocessor_config.json");
    if (file_write(config, data, size, &e) == ST_OK && file_write(processor, data, size, &e) == ST_OK) {
        struct err one = {0}, two = {0}, three = {0};
        struct model_config model;
        struct processor p;
        struct settings s;
        model_config_read(&model, dir, &one);
        model_config_free(&model);
        processor_load(&p, dir, &two);
        settings_read(&s, config, NULL, &three);
        settings_free(&s);
    }
    dir_remove(dir, &e);
    free(config), free(processor);
    return 0;
}

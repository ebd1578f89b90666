/* Whatever the bytes: config.json of a model, preprocessor_config.json and a training config are refused or read. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "data/image_set.h"
#include "lora/settings.h"
#include "model/config.h"
#include "tests/fuzz.h"

/* The sizes that pictures of some shapes become are refused or possible. */
static void measure(const struct processor *p, size_t size) {
    static const int64_t sides[] = {1, 2, 17, 900, 178000000};
    for (int i = 0; i < 25; i++) {
        struct batch_image image[5];
        struct err e = {0};
        int64_t width = sides[i % 5], height = i / 5 ? sides[i / 5] : (int64_t)size + 1;
        if (image_set_measure(image, p, width, height, "a picture", &e) != ST_OK) continue;
        for (int64_t k = 0; k < processor_pieces(p); k++)
            if (image[k].width < 1 || image[k].height < 1) abort();
    }
}

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
        if (processor_load(&p, dir, &two) == ST_OK) measure(&p, size);
        settings_read(&s, config, NULL, &three);
        settings_free(&s);
    }
    dir_remove(dir, &e);
    free(config), free(processor);
    return 0;
}

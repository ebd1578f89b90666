#include "examples/clips/picture.h"

#include <png.h>

enum status picture_write(const char *path, const unsigned char *rgb, int width, int height, struct err *e) {
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)width,
                       .height = (png_uint_32)height,
                       .format = PNG_FORMAT_RGB};
    if (!png_image_write_to_file(&image, path, 0, rgb, 0, NULL))
        err_set(e, ST_FAIL, "%s: cannot write (%s)", path, image.message);
    return e->code;
}

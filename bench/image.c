/* Pictures a second on one core: JPEG to the 384 x 384 pixel values that SigLIP takes (decode, bicubic resize,
 * normalise), and each part by itself. Without files it makes its own, where bench/image_peer.py finds them:
 *     build/release/bench/image && python bench/image_peer.py build/bench-*.jpg */
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data/image.h"
#include "data/processor.h"

/* A picture with slopes, edges and some noise, so that the decoder has a photograph's work. */
static void fill_row(uint8_t *rgb, int64_t width, int64_t y) {
    for (int64_t x = 0; x < width; x++)
        for (int64_t c = 0; c < 3; c++) {
            int64_t slope = (x * (2 + c) + y * 3) / 8, edge = (x / 37 + y / 53) % 2 * 60;
            rgb[3 * x + c] = (uint8_t)((slope + edge + rng_bits(1, (uint64_t)c, (uint64_t)(y * width + x)) % 24) % 256);
        }
}

static void write_jpeg(const char *path, int64_t width, int64_t height) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    FILE *f = fopen(path, "wb");
    if (!f) return;
    uint8_t *rgb = mem_alloc((size_t)width * 3);
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_stdio_dest(&jpeg, f);
    jpeg.image_width = (JDIMENSION)width;
    jpeg.image_height = (JDIMENSION)height;
    jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, 85, TRUE);
    jpeg_start_compress(&jpeg, TRUE);
    for (int64_t y = 0; y < height; y++) {
        fill_row(rgb, width, y);
        jpeg_write_scanlines(&jpeg, &rgb, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    free(rgb);
    fclose(f);
}

struct parts {
    double decode, resize, normalise; // seconds
};

static enum status run_once(const char *path, const struct processor *p, float *pixels, struct parts *t,
                            struct err *e) {
    struct image im, small;
    double start = clock_now();
    if (image_read(&im, path, e) != ST_OK) return e->code;
    double decoded = clock_now();
    image_resize(&small, &im, p->width, p->height, p->resample);
    double resized = clock_now();
    enum status st = processor_run(p, &small, path, pixels, e); // the resize in it is a copy now
    double done = clock_now();
    t->decode += decoded - start;
    t->resize += resized - decoded;
    t->normalise += done - resized;
    image_free(&im);
    image_free(&small);
    return st;
}

static int bench(const char *path, const struct processor *p, float *pixels) {
    struct parts t = {0};
    struct err e = {0};
    int64_t width, height;
    int n = 0;
    if (image_size(path, &width, &height, &e) != ST_OK || run_once(path, p, pixels, &t, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    t = (struct parts){0};
    for (double start = clock_now(); clock_now() - start < 2.0; n++) run_once(path, p, pixels, &t, &e);
    double ms = 1e3 / n, all = t.decode + t.resize + t.normalise;
    printf("image %5lld x %-5lld %8.1f images/s   decode %6.2f ms   resize %6.2f ms   normalise %6.2f ms\n",
           (long long)width, (long long)height, n / all, t.decode * ms, t.resize * ms, t.normalise * ms);
    return 0;
}

int main(int argc, char **argv) {
    struct processor p = {.kind = PROCESSOR_SIGLIP,
                          .do_resize = true,
                          .do_rescale = true,
                          .do_normalize = true,
                          .height = 384,
                          .width = 384,
                          .resize_height = 384,
                          .resize_width = 384,
                          .resample = RESAMPLE_BICUBIC,
                          .rescale_factor = 1 / 255.0,
                          .mean = {0.5f, 0.5f, 0.5f},
                          .std = {0.5f, 0.5f, 0.5f}};
    char *own[] = {"build/bench-640x480.jpg", "build/bench-1600x1200.jpg", "build/bench-224x224.jpg"};
    float *pixels = mem_alloc((size_t)(3 * p.height * p.width) * sizeof *pixels);
    int failed = 0;
    if (argc < 2) {
        write_jpeg(own[0], 640, 480);
        write_jpeg(own[1], 1600, 1200);
        write_jpeg(own[2], 224, 224);
    }
    for (int i = 1; i < argc; i++) failed |= bench(argv[i], &p, pixels);
    for (int i = 0; i < 3 && argc < 2; i++) failed |= bench(own[i], &p, pixels);
    free(pixels);
    return failed;
}

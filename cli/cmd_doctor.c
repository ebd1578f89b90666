/* graft doctor: what this machine has, what will be used, and what is wrong with a remedy for it. */
#include <cjson/cJSON.h>
#include <dlfcn.h>
#include <png.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>
#include <webp/decode.h>
#include <yaml.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <jpeglib.h>

#include "base/file.h"
#include "base/host_memory.h"
#include "base/memory.h"
#include "base/text.h"
#include "cli/model_dir.h"
#include "cli/out.h"
#include "cli/verbs.h"
#include "data/ffmpeg.h"
#include "kernels/backend.h"

/* Lines of a section and a list of problems; the same tree is shown as text or as JSON. */
struct findings {
    cJSON *tree;     // section -> name -> text
    cJSON *problems; // texts
};

static void found(struct findings *f, const char *section, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void found(struct findings *f, const char *section, const char *name, const char *format, ...) {
    char text[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cJSON *o = cJSON_GetObjectItemCaseSensitive(f->tree, section);
    if (!o) o = cJSON_AddObjectToObject(f->tree, section);
    cJSON_AddStringToObject(o, name, text);
}

static void problem(struct findings *f, const char *text) {
    cJSON_AddItemToArray(f->problems, cJSON_CreateString(text));
}

/* ---------------------------------------------------------------- processor and memory */

/* The value of the first "NAME : value" line of a file of /proc; the caller frees it. NULL: no such line. */
static char *proc_value(const char *path, const char *name) {
    FILE *f = fopen(path, "r");
    char *line = NULL, *value = NULL;
    size_t room = 0;
    while (f && !value && getline(&line, &room, f) > 0) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, name, strlen(name)) != 0 || !strchr(" \t:", line[strlen(name)])) continue;
        colon += 1 + strspn(colon + 1, " \t");
        value = mem_text_n(colon, strcspn(colon, "\n"));
    }
    free(line);
    if (f) fclose(f);
    return value;
}

static bool has_word(const char *words, const char *word) {
    size_t n = strlen(word);
    for (const char *at = words; (at = strstr(at, word)); at += n)
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || at[n] == 0)) return true;
    return false;
}

static void look_at_processor(struct findings *f) {
    static const struct {
        const char *flag, *name;
    } features[] = {{"avx2", "AVX2"},       {"fma", "FMA"},
                    {"avx512f", "AVX-512"}, {"avx512_bf16", "AVX-512 BF16"},
                    {"amx_tile", "AMX"},    {"amx_bf16", "AMX BF16"}};
    char *model = proc_value("/proc/cpuinfo", "model name"), *flags = proc_value("/proc/cpuinfo", "flags");
    struct text has = {0}, lacks = {0};
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        struct text *to = flags && has_word(flags, features[i].flag) ? &has : &lacks;
        text_addf(to, "%s%s", to->len ? ", " : "", features[i].name);
    }
    found(f, "processor", "model", "%s", model ? model : "unknown");
    found(f, "processor", "processors", "%ld", sysconf(_SC_NPROCESSORS_ONLN));
    found(f, "processor", "has", "%s", has.len ? has.data : "none of the vector extensions that graft uses");
    if (lacks.len) found(f, "processor", "lacks", "%s", lacks.data);
    text_free(&has);
    text_free(&lacks);
    free(model);
    free(flags);
}

static void look_at_memory(struct findings *f) {
    char text[OUT_NUMBER];
    struct host_memory m;
    host_memory_read(&m, "");
    found(f, "memory", "total", "%s", out_bytes_text(text, m.total));
    found(f, "memory", "available", "%s", out_bytes_text(text, m.available));
    if (m.limit) {
        found(f, "memory", "limit", "%s", out_bytes_text(text, m.limit));
        problem(f, "the control group of this session allows less memory than the machine has; a larger limit lets "
                   "larger models in");
    }
    if (m.available > 0 && m.available < 2000000000)
        problem(f, "less than 2 GB of memory are available; end other programs, or use a smaller or 4-bit model");
}

/* ---------------------------------------------------------------- GPU */

typedef int cuda_init(unsigned flags);
typedef int cuda_int(int *value);
typedef int cuda_name(char *name, int size, int device);
typedef int cuda_bytes(size_t *bytes, int device);

/* The driver's functions, by name from its library. */
struct driver {
    cuda_init *init;
    cuda_int *version, *count;
    cuda_name *name;
    cuda_bytes *memory;
};

/* A pointer to data to a pointer to a function, which C has no cast for. */
static bool load_symbol(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool driver_load(struct driver *d, void *library) {
    return load_symbol(library, "cuInit", &d->init) && load_symbol(library, "cuDriverGetVersion", &d->version) &&
           load_symbol(library, "cuDeviceGetCount", &d->count) && load_symbol(library, "cuDeviceGetName", &d->name) &&
           load_symbol(library, "cuDeviceTotalMem_v2", &d->memory);
}

static void look_at_devices(struct findings *f, const struct driver *d) {
    int version = 0, count = 0, failed = d->init(0);
    if (failed) {
        found(f, "gpu", "driver", "there, but cuInit fails with error %d", failed);
        problem(f, "the CUDA driver does not start; nvidia-smi says why");
        return;
    }
    d->version(&version);
    d->count(&count);
    found(f, "gpu", "driver", "CUDA %d.%d", version / 1000, version % 1000 / 10);
    found(f, "gpu", "devices", "%d", count);
    for (int i = 0; i < count; i++) {
        char name[128] = "", label[32], text[OUT_NUMBER];
        size_t bytes = 0;
        d->name(name, sizeof name - 1, i);
        d->memory(&bytes, i);
        snprintf(label, sizeof label, "device %d", i);
        found(f, "gpu", label, "%s, %s", name, out_bytes_text(text, (int64_t)bytes));
    }
}

/* Whether this build can compute on a GPU is what the backend says when it is asked for one. */
static void look_at_cuda(struct findings *f, bool driver) {
    char text[OUT_NUMBER];
    struct err refused = {0};
    struct backend *be = backend_new("cuda", 1, &refused);
    found(f, "gpu", "backend", "%s", be ? backend_describe(be) : refused.text);
    if (!be && driver) problem(f, refused.text);
    if (!be) return;
    found(f, "gpu", "memory free", "%s", out_bytes_text(text, (int64_t)backend_memory_free(be)));
    if (strstr(backend_describe(be), "without cuBLAS"))
        problem(f, "matrix products on the GPU are slow, for cuBLAS does not open; install it (libcublas of CUDA 12 or "
                   "13, or pip install nvidia-cublas and its lib folder in LD_LIBRARY_PATH)");
    backend_free(be);
}

static void look_at_gpu(struct findings *f) {
    struct driver d;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        found(f, "gpu", "driver", "none (there is no libcuda.so.1)");
    } else if (!driver_load(&d, library)) {
        found(f, "gpu", "driver", "libcuda.so.1 is there, but lacks functions of CUDA 11 or newer");
        problem(f, "the CUDA driver is too old; install a newer one");
    } else {
        look_at_devices(f, &d);
    }
    if (library) dlclose(library);
    look_at_cuda(f, library != NULL);
}

/* ---------------------------------------------------------------- libraries and folders */

static void look_at_ffmpeg(struct findings *f) {
    struct ffmpeg av;
    struct err e = {0};
    if (ffmpeg_open(&av, &e) != ST_OK) {
        found(f, "libraries", "FFmpeg", "not there");
        problem(f, e.text);
        return;
    }
    unsigned codec = av.avcodec_version(), scale = av.swscale_version();
    found(f, "libraries", "FFmpeg", "%s (libavcodec %u.%u, libswscale %u.%u)", av.av_version_info(), codec >> 16,
          codec >> 8 & 255, scale >> 16, scale >> 8 & 255);
}

static void look_at_libraries(struct findings *f) {
    char pcre2[64] = "";
    int webp = WebPGetDecoderVersion();
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    found(f, "libraries", "cJSON", "%s", cJSON_Version());
    found(f, "libraries", "libyaml", "%s", yaml_get_version_string());
    found(f, "libraries", "PCRE2", "%s", pcre2);
    found(f, "libraries", "utf8proc", "%s", utf8proc_version());
#ifdef LIBJPEG_TURBO_VERSION_NUMBER
    int jpeg = LIBJPEG_TURBO_VERSION_NUMBER;
    found(f, "libraries", "libjpeg-turbo", "%d.%d.%d", jpeg / 1000000, jpeg / 1000 % 1000, jpeg % 1000);
#else
    found(f, "libraries", "libjpeg", "version %d of the interface", JPEG_LIB_VERSION);
    problem(f, "the JPEG library is not libjpeg-turbo; pictures may differ from Pillow's in the last bit");
#endif
    look_at_ffmpeg(f);
    found(f, "libraries", "libpng", "%s", png_get_libpng_ver(NULL));
    found(f, "libraries", "libwebp", "%d.%d.%d", webp >> 16, webp >> 8 & 255, webp & 255);
}

static void look_at_folders(struct findings *f) {
    char *cache = hub_cache_dir(), **names = NULL;
    size_t count = 0, models = 0;
    struct err quiet = {0};
    if (dir_exists(cache) && dir_list(cache, &names, &count, &quiet) == ST_OK)
        for (size_t i = 0; i < count; i++) models += text_starts(names[i], "models--");
    if (dir_exists(cache))
        found(f, "folders", "hub cache", "%s, %zu models", cache, models);
    else
        found(f, "folders", "hub cache", "%s (not there yet)", cache);
    names_free(names, count);
    free(cache);
}

static void look_at_backend(struct findings *f, const struct flags *flags) {
    struct err e = {0};
    struct backend *be = backend_new(flag_text(flags, "device"), (int)flag_int(flags, "threads"), &e);
    found(f, "will be used", flag_text(flags, "device"), "%s", be ? backend_describe(be) : e.text);
    if (!be) problem(f, e.text);
    backend_free(be);
}

/* ---------------------------------------------------------------- the command */

static void show(const struct findings *f) {
    for (const cJSON *section = f->tree->child; section; section = section->next) {
        out_text("%s\n", section->string);
        for (const cJSON *line = section->child; line; line = line->next)
            out_text("  %-14s %s\n", line->string, line->valuestring);
    }
    out_text(f->problems->child ? "problems\n" : "no problems\n");
    for (const cJSON *line = f->problems->child; line; line = line->next) out_text("  %s\n", line->valuestring);
}

static int run_doctor(const struct flags *flags, struct err *e) {
    struct findings f = {cJSON_CreateObject(), cJSON_CreateArray()};
    (void)e;
    look_at_processor(&f);
    look_at_memory(&f);
    look_at_gpu(&f);
    look_at_libraries(&f);
    look_at_folders(&f);
    look_at_backend(&f, flags);
    if (flag_bool(flags, "json")) {
        cJSON *o = cJSON_Duplicate(f.tree, true);
        cJSON_AddItemToObject(o, "problems", cJSON_Duplicate(f.problems, true));
        out_json(o);
        cJSON_Delete(o);
    } else {
        show(&f);
    }
    cJSON_Delete(f.tree);
    cJSON_Delete(f.problems);
    return ST_OK;
}

const struct verb verb_doctor = {
    .name = "doctor",
    .arguments = "",
    .about = "what this machine has, what will be used, and what is wrong",
    .run = run_doctor,
};

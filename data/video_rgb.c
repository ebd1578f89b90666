/* swscale's bilinear scaler without a change of size, with the stream's matrix (BT.601 where it names none) and its
 * range (limited where it names none). Versions of swscale agree to the bit on what they take from one line of chroma;
 * what this version only approximates is done in two steps:
 *
 *   chroma of half the height   is interpolated to full height in 16 bits first, unless the even-sized fast path of
 *                               yuv420p takes it, which repeats lines in every version
 *   interlaced frames           are two pictures of half the height */
#include "data/video_rgb.h"

#include <stdbool.h>
#include <string.h>

#include "data/image_format.h"

/* One part of a frame: all of it, or every second line. */
struct field {
    int number, count, height;
};

static struct field field_of(const AVFrame *f, int number) {
    if (!f->interlaced_frame) return (struct field){0, 1, f->height};
    return (struct field){number, 2, (f->height + 1 - number) / 2};
}

static void lines_of(uint8_t *data[4], int stride[4], const AVFrame *f, struct field part) {
    for (int i = 0; i < 4; i++) {
        data[i] = f->data[i] ? f->data[i] + part.number * f->linesize[i] : NULL;
        stride[i] = f->linesize[i] * part.count;
    }
    if (f->format == AV_PIX_FMT_PAL8) data[1] = f->data[1]; // the palette has no lines
}

/* Where a chroma sample stands, in 256ths of a luma sample; -513: as centred. In the lower field, chroma stands a line
 * of luma away from where it would. */
static void find_chroma(const struct ffmpeg *av, const AVFrame *f, struct field part, int *across, int *down) {
    const AVPixFmtDescriptor *d = av->av_pix_fmt_desc_get(f->format);
    static const int places[][2] = {
        [AVCHROMA_LOC_UNSPECIFIED] = {128, 128}, [AVCHROMA_LOC_LEFT] = {0, 128}, [AVCHROMA_LOC_CENTER] = {128, 128},
        [AVCHROMA_LOC_TOPLEFT] = {0, 0},         [AVCHROMA_LOC_TOP] = {128, 0},  [AVCHROMA_LOC_BOTTOMLEFT] = {0, 256},
        [AVCHROMA_LOC_BOTTOM] = {128, 256}};
    unsigned location = f->chroma_location;
    const int *place = places[location < sizeof places / sizeof *places ? location : AVCHROMA_LOC_UNSPECIFIED];
    *across = d->log2_chroma_w ? place[0] * ((1 << d->log2_chroma_w) - 1) : -513;
    *down = d->log2_chroma_h ? place[1] * ((1 << d->log2_chroma_h) - 1) : -513;
    if (!d->log2_chroma_h || part.count == 1) return;
    if (part.number == 1) *down += (256 << d->log2_chroma_h) - 256;
    *down >>= 1;
}

/* A format with chroma of full height, or the format itself. swscale takes two pixels of an even line to share their
 * chroma, unless the chroma is whole in both directions. */
static int full_height_format(const struct ffmpeg *av, int format, int width, int height) {
    const AVPixFmtDescriptor *d = av->av_pix_fmt_desc_get(format);
    bool fast = format == AV_PIX_FMT_YUV420P || format == AV_PIX_FMT_YUVJ420P || format == AV_PIX_FMT_YUVA420P;
    if (d->log2_chroma_h != 1 || d->log2_chroma_w > 1 || d->nb_components < 3 || (fast && height % 2 == 0))
        return format;
    return d->log2_chroma_w || width % 2 == 0 ? AV_PIX_FMT_YUV422P16 : AV_PIX_FMT_YUV444P16;
}

/* Grey has no limited range, whatever the stream says. */
static bool is_full_range(const struct ffmpeg *av, const AVFrame *f) {
    const AVPixFmtDescriptor *d = av->av_pix_fmt_desc_get(f->format);
    bool grey = d->nb_components <= 2 && !(d->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL));
    return grey || f->color_range == AVCOL_RANGE_JPEG || strncmp(d->name, "yuvj", 4) == 0;
}

struct step {
    int from, to; // pixel formats
    int width, height;
    int across, down; // chroma of the source
};

static struct SwsContext *make_step(const struct ffmpeg *av, const struct step *s, const AVFrame *f) {
    struct SwsContext *c = av->sws_alloc_context();
    if (!c) return NULL;
    av->av_opt_set_int(c, "srcw", s->width, 0), av->av_opt_set_int(c, "dstw", s->width, 0);
    av->av_opt_set_int(c, "srch", s->height, 0), av->av_opt_set_int(c, "dsth", s->height, 0);
    av->av_opt_set_int(c, "src_format", s->from, 0), av->av_opt_set_int(c, "dst_format", s->to, 0);
    av->av_opt_set_int(c, "sws_flags", SWS_BILINEAR, 0);
    av->av_opt_set_int(c, "src_h_chr_pos", s->across, 0), av->av_opt_set_int(c, "src_v_chr_pos", s->down, 0);
    int full = is_full_range(av, f);
    av->av_opt_set_int(c, "src_range", full, 0),
        av->av_opt_set_int(c, "dst_range", s->to == AV_PIX_FMT_RGB24 ? 0 : full, 0);
    if (av->sws_init_context(c, NULL, NULL) < 0) {
        av->sws_freeContext(c);
        return NULL;
    }
    const int *matrix = av->sws_getCoefficients(f->colorspace);
    av->sws_setColorspaceDetails(c, matrix, full, matrix, s->to == AV_PIX_FMT_RGB24 ? 0 : full, 0, 1 << 16, 1 << 16);
    return c;
}

static int make_frame(const struct ffmpeg *av, AVFrame **out, int format, int width, int height) {
    *out = av->av_frame_alloc();
    if (!*out) return AVERROR(ENOMEM);
    (*out)->format = format, (*out)->width = width, (*out)->height = height;
    return av->av_frame_get_buffer(*out, 0);
}

static bool is_same(const struct video_rgb *r, const AVFrame *f) {
    return r->rgb && r->width == f->width && r->height == f->height && r->format == f->format &&
           r->interlaced == f->interlaced_frame && r->location == (int)f->chroma_location &&
           r->matrix == (int)f->colorspace && r->range == (int)f->color_range;
}

static enum status make_all(struct video_rgb *r, const AVFrame *f, const char *where, struct err *e) {
    if (is_same(r, f)) return ST_OK;
    video_rgb_free(r);
    bool made = true;
    for (int i = 0; i < field_of(f, 0).count && made; i++) {
        struct field part = field_of(f, i);
        struct step s = {f->format, AV_PIX_FMT_RGB24, f->width, part.height, -513, -513};
        int full = full_height_format(r->av, f->format, f->width, part.height), down = -513;
        find_chroma(r->av, f, part, &s.across, &s.down);
        if (full != f->format) {
            struct step first = {f->format, full, f->width, part.height, -513, s.down};
            r->chroma[i] = make_step(r->av, &first, f);
            made = r->chroma[i] && (r->between || make_frame(r->av, &r->between, full, f->width, f->height) >= 0);
            s.from = full, s.down = down;
        }
        r->colour[i] = make_step(r->av, &s, f);
        made = made && r->colour[i];
    }
    const char *name = r->av->av_get_pix_fmt_name(f->format);
    if (!made || make_frame(r->av, &r->rgb, AV_PIX_FMT_RGB24, f->width, f->height) < 0) {
        video_rgb_free(r);
        return err_set(e, ST_FAIL, "%s: frames of pixel format %s, %d x %d, cannot be converted to RGB", where,
                       name ? name : "?", f->width, f->height);
    }
    r->width = f->width, r->height = f->height, r->format = f->format;
    r->interlaced = f->interlaced_frame, r->location = (int)f->chroma_location;
    r->matrix = (int)f->colorspace, r->range = (int)f->color_range;
    return ST_OK;
}

static void run_step(const struct ffmpeg *av, struct SwsContext *c, AVFrame *to, const AVFrame *from,
                     struct field part) {
    uint8_t *source[4], *target[4];
    int source_stride[4], target_stride[4];
    lines_of(source, source_stride, from, part);
    lines_of(target, target_stride, to, part);
    av->sws_scale(c, (const uint8_t *const *)source, source_stride, 0, part.height, target, target_stride);
}

enum status video_rgb_convert(struct video_rgb *r, struct image *out, const AVFrame *f, const char *where,
                              struct err *e) {
    struct image im = {0};
    if (image_check_size(f->width, f->height, where, e) != ST_OK || make_all(r, f, where, e) != ST_OK) return e->code;
    for (int i = 0; i < field_of(f, 0).count; i++) {
        struct field part = field_of(f, i);
        if (r->chroma[i]) run_step(r->av, r->chroma[i], r->between, f, part);
        run_step(r->av, r->colour[i], r->rgb, r->chroma[i] ? r->between : f, part);
    }
    if (image_new(&im, f->width, f->height, where, e) != ST_OK) return e->code;
    for (int64_t y = 0; y < im.height; y++) // swscale may write behind the end of a line, hence r->rgb
        memcpy(im.rgb + y * im.width * 3, r->rgb->data[0] + y * r->rgb->linesize[0], (size_t)(im.width * 3));
    *out = im;
    return ST_OK;
}

void video_rgb_free(struct video_rgb *r) {
    if (!r->av) return;
    for (int i = 0; i < 2; i++) r->av->sws_freeContext(r->chroma[i]), r->av->sws_freeContext(r->colour[i]);
    r->av->av_frame_free(&r->between), r->av->av_frame_free(&r->rgb);
    *r = (struct video_rgb){.av = r->av};
}

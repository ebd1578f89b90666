#include "data/video.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "data/ffmpeg.h"
#include "data/image_format.h"
#include "data/video_rgb.h"

enum { IO_BYTES = 1 << 16 };

/* Containers only: what reads other files or addresses, draws text or runs a script is not among them. */
static const char containers[] = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif,apng,mpegts,mpeg,mpegvideo,m4v,h264,"
                                 "hevc,mjpeg,ivf,obu,flv,ogg,asf,nut,yuv4mpegpipe,dv,mxf,rm";

struct video {
    struct ffmpeg av;
    const char *where;
    char *path; // owned `where`, or NULL
    struct file_map map;
    const uint8_t *data;
    int64_t size, at; // of the reader
    AVIOContext *io;
    AVFormatContext *file;
    AVStream *stream;
    AVCodecContext *codec;
    AVPacket *packet;
    AVFrame *frame; // as decoded
    struct video_rgb rgb;
    int64_t next;    // number of the frame that the decoder gives next
    int64_t counted; // frames, 0: not counted
    bool flushing;   // no packet is left
};

/* ---------------------------------------------------------------- bytes */

static int read_bytes(void *of, uint8_t *to, int n) {
    struct video *v = of;
    int64_t left = v->size - v->at;
    if (left <= 0) return AVERROR_EOF;
    if (n > left) n = (int)left;
    memcpy(to, v->data + v->at, (size_t)n);
    v->at += n;
    return n;
}

static int64_t seek_bytes(void *of, int64_t offset, int whence) {
    struct video *v = of;
    if (whence & AVSEEK_SIZE) return v->size;
    whence &= ~AVSEEK_FORCE;
    int64_t base = whence == SEEK_CUR ? v->at : whence == SEEK_END ? v->size : 0;
    if (offset < -base || offset > v->size - base) return AVERROR(EINVAL);
    return v->at = base + offset;
}

static int refuse_open(AVFormatContext *file, AVIOContext **io, const char *url, int flags, AVDictionary **options) {
    (void)file, (void)url, (void)flags, (void)options;
    *io = NULL;
    return AVERROR(EPERM);
}

/* ---------------------------------------------------------------- opening */

static enum status fails(const struct video *v, int code, const char *what, struct err *e) {
    char reason[AV_ERROR_MAX_STRING_SIZE] = "";
    v->av.av_strerror(code, reason, sizeof reason);
    return err_set(e, ST_FAIL, "%s: %s (FFmpeg: %s)", v->where, what, reason);
}

static enum status open_container(struct video *v, struct err *e) {
    v->at = 0;
    uint8_t *buffer = v->av.av_malloc(IO_BYTES);
    v->io = buffer ? v->av.avio_alloc_context(buffer, IO_BYTES, 0, v, read_bytes, NULL, seek_bytes) : NULL;
    v->file = v->av.avformat_alloc_context();
    AVDictionary *options = NULL;
    if (!v->io || !v->file || v->av.av_dict_set(&options, "format_whitelist", containers, 0) < 0)
        return err_set(e, ST_FAIL, "%s: out of memory", v->where);
    v->file->pb = v->io;
    v->file->io_open = refuse_open;
    int code = v->av.avformat_open_input(&v->file, v->where, NULL, &options); // frees v->file on failure
    v->av.av_dict_free(&options);
    if (code < 0) return fails(v, code, "not a video that can be read, wanted mp4, mov, avi, webm, mkv or gif", e);
    code = v->av.avformat_find_stream_info(v->file, NULL);
    return code < 0 ? fails(v, code, "the video's streams cannot be read", e) : ST_OK;
}

/* A number of EBML at *at, moved behind it: its first byte's leading zeros say how long it is. marked: with the bit
 * that ends them. -1 where there is none, or it means "unknown". */
static int64_t read_vint(const struct video *v, int64_t *at, bool marked) {
    if (*at >= v->size || v->data[*at] == 0) return -1;
    int length = 1;
    while (!(v->data[*at] & (0x80 >> (length - 1)))) length++;
    if (length > v->size - *at) return -1;
    uint64_t x = v->data[*at], unknown = (UINT64_C(1) << 7 * length) - 1;
    for (int i = 1; i < length; i++) x = x << 8 | v->data[*at + i];
    *at += length;
    if (marked) return (int64_t)x;
    return (x & unknown) == unknown ? -1 : (int64_t)(x & unknown);
}

/* webm and mkv do not say how many frames they hold, so one that is cut short would pass as a shorter one: but its
 * outermost part says how long it is, unless it was written as a stream. */
static enum status check_matroska(const struct video *v, struct err *e) {
    enum { SEGMENT = 0x18538067 };
    int64_t at = 0, size = 0;
    if (!text_starts(v->file->iformat->name, "matroska")) return ST_OK;
    while (read_vint(v, &at, true) != SEGMENT) {
        size = read_vint(v, &at, false);
        if (size < 0 || size > v->size - at) return ST_OK; // FFmpeg made something of it nevertheless
        at += size;
    }
    size = read_vint(v, &at, false);
    if (size <= v->size - at) return ST_OK;
    return err_set(e, ST_FAIL, "%s: is cut short: %lld of %lld bytes", v->where, (long long)v->size,
                   (long long)(size < INT64_MAX - at ? at + size : size));
}

static enum status find_stream(struct video *v, struct err *e) {
    for (unsigned i = 0; i < v->file->nb_streams; i++) {
        AVStream *s = v->file->streams[i];
        bool cover = s->disposition & AV_DISPOSITION_ATTACHED_PIC; // the picture of a piece of music
        if (s->codecpar->codec_type == AVMEDIA_TYPE_VIDEO && !cover && !v->stream)
            v->stream = s;
        else
            s->discard = AVDISCARD_ALL;
    }
    if (v->stream) return ST_OK;
    return err_set(e, ST_FAIL, "%s: holds no video stream (%u streams of other kinds)", v->where, v->file->nb_streams);
}

static enum status open_codec(struct video *v, struct err *e) {
    const AVCodecParameters *p = v->stream->codecpar;
    const AVCodec *decoder = v->av.avcodec_find_decoder(p->codec_id);
    if ((p->width || p->height) && image_check_size(p->width, p->height, v->where, e) != ST_OK) return e->code;
    if (!decoder)
        return err_set(e, ST_FAIL, "%s: FFmpeg has no decoder for its video (%s)", v->where,
                       v->av.avcodec_get_name(p->codec_id));
    v->codec = v->av.avcodec_alloc_context3(decoder);
    v->packet = v->av.av_packet_alloc(), v->frame = v->av.av_frame_alloc();
    if (!v->codec || !v->packet || !v->frame) return err_set(e, ST_FAIL, "%s: out of memory", v->where);
    int code = v->av.avcodec_parameters_to_context(v->codec, p);
    v->codec->thread_count = 1; // the loader's workers are the threads
    v->codec->max_pixels = IMAGE_MOST_PIXELS;
    v->codec->pkt_timebase = v->stream->time_base;
    if (code >= 0) code = v->av.avcodec_open2(v->codec, decoder, NULL);
    return code < 0 ? fails(v, code, "its video cannot be decoded", e) : ST_OK;
}

static void close_file(struct video *v) {
    video_rgb_free(&v->rgb);
    v->av.av_frame_free(&v->frame), v->av.av_packet_free(&v->packet);
    v->av.avcodec_free_context(&v->codec);
    v->av.avformat_close_input(&v->file);
    if (v->io) v->av.av_freep(&v->io->buffer);
    v->av.avio_context_free(&v->io);
    v->stream = NULL;
    v->next = 0, v->flushing = false;
}

static enum status open_file(struct video *v, struct err *e) {
    if (open_container(v, e) == ST_OK && check_matroska(v, e) == ST_OK && find_stream(v, e) == ST_OK) open_codec(v, e);
    return e->code;
}

static void bytes_free(struct video *v) {
    file_map_close(&v->map);
    free(v->path);
    free(v);
}

static struct video *finish_open(struct video *v, struct err *e) {
    if (v->size == 0) err_set(e, ST_FAIL, "%s: the file is empty, wanted a video", v->where);
    if (e->code != ST_OK || ffmpeg_open(&v->av, e) != ST_OK) {
        bytes_free(v);
        return NULL;
    }
    v->rgb.av = &v->av;
    v->av.av_log_set_level(AV_LOG_QUIET); // what is wrong is said by our own sentences
    if (open_file(v, e) == ST_OK) return v;
    video_free(v);
    return NULL;
}

struct video *video_open_bytes(const void *data, size_t n, const char *where, struct err *e) {
    struct video *v = mem_alloc(sizeof *v);
    v->where = where, v->data = data, v->size = (int64_t)n;
    return finish_open(v, e);
}

struct video *video_open(const char *path, struct err *e) {
    struct video *v = mem_alloc(sizeof *v);
    v->where = v->path = mem_text(path);
    if (file_map_open(&v->map, path, e) != ST_OK) return bytes_free(v), NULL;
    v->data = (const uint8_t *)v->map.data, v->size = (int64_t)v->map.size;
    return finish_open(v, e);
}

void video_free(struct video *v) {
    if (!v) return;
    close_file(v);
    bytes_free(v);
}

/* ---------------------------------------------------------------- decoding */

/* One packet of the stream into the decoder, or the end. */
static enum status feed(struct video *v, struct err *e) {
    int code = v->av.av_read_frame(v->file, v->packet);
    if (code == AVERROR_EOF) {
        v->flushing = true;
        code = v->av.avcodec_send_packet(v->codec, NULL);
    } else if (code >= 0) {
        if (v->packet->stream_index == v->stream->index) code = v->av.avcodec_send_packet(v->codec, v->packet);
        v->av.av_packet_unref(v->packet);
    }
    if (code >= 0) return ST_OK;
    char *what = mem_format("the file is damaged at frame %lld", (long long)v->next);
    fails(v, code, what, e);
    free(what);
    return e->code;
}

/* The next frame into v->frame; *got false: there is none. */
static enum status decode_next(struct video *v, bool *got, struct err *e) {
    *got = false;
    for (;;) {
        int code = v->av.avcodec_receive_frame(v->codec, v->frame);
        if (code >= 0) {
            v->next++;
            *got = true;
            return ST_OK;
        }
        if (code == AVERROR_EOF) return ST_OK;
        if (code != AVERROR(EAGAIN) || v->flushing) {
            char *what = mem_format("frame %lld cannot be decoded", (long long)v->next);
            fails(v, code, what, e);
            free(what);
            return e->code;
        }
        if (feed(v, e) != ST_OK) return e->code;
    }
}

enum status video_frame(struct video *v, int64_t index, struct image *out, struct err *e) {
    *out = (struct image){0};
    bool got = true;
    if (index < v->next)
        return err_set(e, ST_FAIL, "%s: frame %lld was asked for after frame %lld", v->where, (long long)index,
                       (long long)v->next - 1);
    while (v->next <= index && got)
        if (decode_next(v, &got, e) != ST_OK) return e->code;
    if (!got)
        return err_set(
            e, ST_FAIL,
            "%s: ends after %lld frames, but frame %lld is wanted (the file says that it has %lld); it is cut "
            "short or its head is wrong",
            v->where, (long long)v->next, (long long)index, (long long)v->stream->nb_frames);
    if (v->frame->decode_error_flags & (FF_DECODE_ERROR_INVALID_BITSTREAM | FF_DECODE_ERROR_CONCEALMENT_ACTIVE))
        return err_set(e, ST_FAIL, "%s: frame %lld is damaged", v->where, (long long)index);
    return video_rgb_convert(&v->rgb, out, v->frame, v->where, e);
}

static enum status count_frames(struct video *v, struct err *e) {
    bool got = true;
    while (got && decode_next(v, &got, e) == ST_OK) {}
    v->counted = v->next;
    close_file(v);
    if (e->code == ST_OK && v->counted == 0) err_set(e, ST_FAIL, "%s: the video has no frame", v->where);
    return e->code == ST_OK ? open_file(v, e) : e->code;
}

enum status video_info(struct video *v, int64_t counted, struct video_info *out, struct err *e) {
    *out = (struct video_info){0};
    if (counted > 0) v->counted = counted;
    if (v->stream->nb_frames <= 0 && v->counted == 0 && count_frames(v, e) != ST_OK) return e->code;
    AVRational rate = v->stream->avg_frame_rate;
    *out = (struct video_info){.frames = v->stream->nb_frames > 0 ? v->stream->nb_frames : v->counted,
                               .rate_num = rate.num > 0 && rate.den > 0 ? rate.num : 0,
                               .rate_den = rate.den > 0 ? rate.den : 1,
                               .width = v->stream->codecpar->width,
                               .height = v->stream->codecpar->height};
    return ST_OK;
}

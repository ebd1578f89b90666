#include "tests/clip.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>

uint8_t clip_pixel(int frame, int x, int y, int channel) {
    return (uint8_t)(frame * 37 + x * (3 + channel) + y * (5 - channel) + channel * 80);
}

static void paint(AVFrame *rgb, int frame) {
    for (int y = 0; y < rgb->height; y++)
        for (int x = 0; x < rgb->width; x++)
            for (int c = 0; c < 3; c++) rgb->data[0][y * rgb->linesize[0] + 3 * x + c] = clip_pixel(frame, x, y, c);
}

static AVFrame *frame_of(int format, int width, int height) {
    AVFrame *f = av_frame_alloc();
    f->format = format, f->width = width, f->height = height;
    assert_true(av_frame_get_buffer(f, 0) >= 0);
    return f;
}

struct writer {
    AVFormatContext *file;
    AVStream *stream;
    AVCodecContext *codec;
};

static void open_writer(struct writer *w, const char *path, const AVCodec *encoder) {
    assert_true(avformat_alloc_output_context2(&w->file, NULL, NULL, path) >= 0);
    w->stream = avformat_new_stream(w->file, NULL);
    w->codec = avcodec_alloc_context3(encoder);
    w->codec->flags |= AV_CODEC_FLAG_BITEXACT;
    w->file->flags |= AVFMT_FLAG_BITEXACT;
    if (w->file->oformat->flags & AVFMT_GLOBALHEADER) w->codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
}

static void start_writer(struct writer *w, const char *path, const AVCodec *encoder) {
    assert_true(avcodec_open2(w->codec, encoder, NULL) >= 0);
    avcodec_parameters_from_context(w->stream->codecpar, w->codec);
    w->stream->time_base = w->codec->time_base;
    assert_true(avio_open(&w->file->pb, path, AVIO_FLAG_WRITE) >= 0);
    assert_true(avformat_write_header(w->file, NULL) >= 0);
}

static void encode(struct writer *w, const AVFrame *f) {
    AVPacket *p = av_packet_alloc();
    assert_true(avcodec_send_frame(w->codec, f) >= 0);
    while (avcodec_receive_packet(w->codec, p) >= 0) {
        av_packet_rescale_ts(p, w->codec->time_base, w->stream->time_base);
        if (p->duration == 0) p->duration = av_rescale_q(1, w->codec->time_base, w->stream->time_base);
        p->stream_index = w->stream->index;
        assert_true(av_interleaved_write_frame(w->file, p) >= 0);
    }
    av_packet_free(&p);
}

static void close_writer(struct writer *w) {
    encode(w, NULL);
    assert_true(av_write_trailer(w->file) >= 0);
    avio_closep(&w->file->pb);
    avcodec_free_context(&w->codec);
    avformat_free_context(w->file);
}

int clip_make(const char *path, const struct clip_options *o) {
    struct writer w = {0};
    const AVCodec *encoder = avcodec_find_encoder_by_name(o->codec);
    enum AVPixelFormat format = av_get_pix_fmt(o->format);
    av_log_set_level(AV_LOG_QUIET);
    if (!encoder || format == AV_PIX_FMT_NONE) return 0;
    open_writer(&w, path, encoder);
    w.codec->width = o->width, w.codec->height = o->height, w.codec->pix_fmt = format;
    w.codec->time_base = (AVRational){1, o->rate}, w.codec->framerate = (AVRational){o->rate, 1};
    w.stream->avg_frame_rate = w.codec->framerate;
    w.codec->strict_std_compliance = FF_COMPLIANCE_UNOFFICIAL;
    if (o->option) assert_true(av_opt_set(w.codec, o->option, o->value, AV_OPT_SEARCH_CHILDREN) >= 0);
    start_writer(&w, path, encoder);
    AVFrame *rgb = frame_of(AV_PIX_FMT_RGB24, o->width, o->height), *f = frame_of(format, o->width, o->height);
    struct SwsContext *sws = sws_getContext(o->width, o->height, AV_PIX_FMT_RGB24, o->width, o->height, format,
                                            SWS_POINT | SWS_ACCURATE_RND, NULL, NULL, NULL);
    for (int k = 0; k < o->frames; k++) {
        paint(rgb, k);
        assert_true(av_frame_make_writable(f) >= 0);
        sws_scale(sws, (const uint8_t *const *)rgb->data, rgb->linesize, 0, o->height, f->data, f->linesize);
        f->pts = k;
        encode(&w, f);
    }
    close_writer(&w);
    sws_freeContext(sws);
    av_frame_free(&rgb), av_frame_free(&f);
    return 1;
}

void clip_make_sound(const char *path) {
    struct writer w = {0};
    const AVCodec *encoder = avcodec_find_encoder(AV_CODEC_ID_PCM_S16LE);
    AVChannelLayout mono = AV_CHANNEL_LAYOUT_MONO;
    open_writer(&w, path, encoder);
    w.codec->sample_rate = 8000, w.codec->sample_fmt = AV_SAMPLE_FMT_S16, w.codec->time_base = (AVRational){1, 8000};
    av_channel_layout_copy(&w.codec->ch_layout, &mono);
    start_writer(&w, path, encoder);
    AVFrame *f = av_frame_alloc();
    f->format = AV_SAMPLE_FMT_S16, f->nb_samples = 8000, f->sample_rate = 8000;
    av_channel_layout_copy(&f->ch_layout, &mono);
    assert_true(av_frame_get_buffer(f, 0) >= 0);
    memset(f->data[0], 0, 16000);
    encode(&w, f);
    close_writer(&w);
    av_frame_free(&f);
}

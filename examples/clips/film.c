#include "examples/clips/film.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>

struct film {
    AVFormatContext *file;
    AVCodecContext *codec;
    AVStream *stream;
    AVFrame *frame;
    AVPacket *packet;
};

static int film_open(struct film *f, const char *path) {
    const AVCodec *ffv1 = avcodec_find_encoder(AV_CODEC_ID_FFV1);
    int failed = ffv1 ? avformat_alloc_output_context2(&f->file, NULL, "matroska", path) : AVERROR_ENCODER_NOT_FOUND;
    if (failed < 0) return failed;
    f->file->flags |= AVFMT_FLAG_BITEXACT; // no random identifiers: same clip, same bytes
    f->codec = avcodec_alloc_context3(ffv1);
    f->stream = avformat_new_stream(f->file, NULL);
    f->frame = av_frame_alloc();
    f->packet = av_packet_alloc();
    if (!f->codec || !f->stream || !f->frame || !f->packet) return AVERROR(ENOMEM);
    f->codec->width = f->codec->height = SIDE;
    f->codec->pix_fmt = AV_PIX_FMT_0RGB32;
    f->codec->time_base = (AVRational){1, FRAMES};
    f->codec->framerate = (AVRational){FRAMES, 1};
    f->codec->flags |= AV_CODEC_FLAG_BITEXACT;
    f->codec->thread_count = 1;
    f->stream->time_base = f->codec->time_base;
    f->stream->avg_frame_rate = f->codec->framerate;
    if ((failed = avcodec_open2(f->codec, ffv1, NULL)) < 0) return failed;
    if ((failed = avcodec_parameters_from_context(f->stream->codecpar, f->codec)) < 0) return failed;
    if ((failed = avio_open(&f->file->pb, path, AVIO_FLAG_WRITE)) < 0) return failed;
    f->frame->width = f->frame->height = SIDE;
    f->frame->format = f->codec->pix_fmt;
    if ((failed = av_frame_get_buffer(f->frame, 0)) < 0) return failed;
    return avformat_write_header(f->file, NULL);
}

/* Packets that are ready go to the file. */
static int film_flush(struct film *f) {
    int failed;
    while ((failed = avcodec_receive_packet(f->codec, f->packet)) >= 0) {
        av_packet_rescale_ts(f->packet, f->codec->time_base, f->stream->time_base);
        f->packet->stream_index = 0;
        if ((failed = av_interleaved_write_frame(f->file, f->packet)) < 0) return failed;
    }
    return failed == AVERROR(EAGAIN) || failed == AVERROR_EOF ? 0 : failed;
}

static int film_add(struct film *f, const unsigned char *rgb, int number) {
    int failed = av_frame_make_writable(f->frame);
    if (failed < 0) return failed;
    for (int y = 0; y < SIDE; y++) {
        uint32_t *to = (uint32_t *)(void *)(f->frame->data[0] + y * f->frame->linesize[0]);
        for (int x = 0; x < SIDE; x++, rgb += 3) to[x] = (uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2];
    }
    f->frame->pts = number;
    failed = avcodec_send_frame(f->codec, f->frame);
    return failed < 0 ? failed : film_flush(f);
}

static int film_close(struct film *f) {
    int failed = avcodec_send_frame(f->codec, NULL);
    if (failed >= 0) failed = film_flush(f);
    return failed < 0 ? failed : av_write_trailer(f->file);
}

enum status film_write(const char *path, const struct clip *c, struct err *e) {
    struct film f = {0};
    int failed = film_open(&f, path);
    for (int i = 0; i < FRAMES && failed >= 0; i++) failed = film_add(&f, c->rgb[i], i);
    if (failed >= 0) failed = film_close(&f);
    if (failed < 0) err_set(e, ST_FAIL, "%s: cannot write (%s)", path, av_err2str(failed));
    av_packet_free(&f.packet);
    av_frame_free(&f.frame);
    avcodec_free_context(&f.codec);
    if (f.file) avio_closep(&f.file->pb);
    avformat_free_context(f.file);
    return e->code;
}

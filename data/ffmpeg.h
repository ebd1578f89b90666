/* FFmpeg, opened when the first video is: it brings a hundred libraries that nothing else here wants, and a machine
 * without it can do all but read videos. Calls have their names and types in FFmpeg's headers, and are those of the
 * major versions that graft was built with. */
#ifndef DATA_FFMPEG_H
#define DATA_FFMPEG_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>

#include "base/status.h"

// clang-format off
#define FFMPEG_UTIL(X) \
    X(av_malloc) X(av_freep) X(av_dict_set) X(av_dict_free) X(av_strerror) X(av_log_set_level) X(av_frame_alloc) \
    X(av_frame_free) X(av_frame_get_buffer) X(av_opt_set_int) X(av_pix_fmt_desc_get) X(av_get_pix_fmt_name) \
    X(av_version_info)
#define FFMPEG_CODEC(X) \
    X(avcodec_find_decoder) X(avcodec_get_name) X(avcodec_alloc_context3) X(avcodec_parameters_to_context) \
    X(avcodec_open2) X(avcodec_free_context) X(avcodec_send_packet) X(avcodec_receive_frame) X(av_packet_alloc) \
    X(av_packet_free) X(av_packet_unref) X(avcodec_version)
#define FFMPEG_FORMAT(X) \
    X(avformat_alloc_context) X(avformat_open_input) X(avformat_find_stream_info) X(avformat_close_input) \
    X(av_read_frame) X(avio_alloc_context) X(avio_context_free)
#define FFMPEG_SCALE(X) \
    X(sws_alloc_context) X(sws_init_context) X(sws_freeContext) X(sws_getCoefficients) \
    X(sws_setColorspaceDetails) X(sws_scale) X(swscale_version)
// clang-format on

#define FFMPEG_CALL(name) __typeof__(&name) name;
struct ffmpeg {
    FFMPEG_UTIL(FFMPEG_CALL)
    FFMPEG_CODEC(FFMPEG_CALL)
    FFMPEG_FORMAT(FFMPEG_CALL)
    FFMPEG_SCALE(FFMPEG_CALL)
};
#undef FFMPEG_CALL

/* Fills in every call; the libraries stay open as long as the process runs. Any number of times, by any thread. */
enum status ffmpeg_open(struct ffmpeg *f, struct err *e);

#endif

"""Small clips of many codecs and pixel formats, and two frames of each as PyAV's frame.to_image() gives them.

    python3 tests/golden/make_video.py

clips.csv: name, frames (those that decode), and the numbers of the two frames whose RGB bytes stand in NAME.rgb."""
import csv
import os

import av
import numpy as np

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "video")
WIDTH, HEIGHT = 32, 24


def picture(k, width, height):
    """Slow waves, another phase in each frame: what a lossy codec keeps and what shows wrong chroma."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [128 + 90 * np.sin(x / 5 + k / 2 + c * 2) * np.cos(y / 4 - k / 3 + c) for c in range(3)]
    return np.stack(channels, -1).round().clip(0, 255).astype(np.uint8)


def write(name, codec, fmt, frames=8, width=WIDTH, height=HEIGHT, rate=10, options=None, container=None, space=None,
          span=None):
    with av.open(os.path.join(OUT, name), "w", options={"fflags": "+bitexact", **(container or {})}) as c:
        s = c.add_stream(codec, rate=rate, options=options or {})
        s.width, s.height, s.pix_fmt = width, height, fmt
        if space is not None:
            s.codec_context.colorspace = space
        if span is not None:
            s.codec_context.color_range = span
        for k in range(frames):
            f = av.VideoFrame.from_ndarray(picture(k, width, height), format="rgb24").reformat(format=fmt)
            if space is not None:
                f.colorspace = space
            if span is not None:
                f.color_range = span
            c.mux(s.encode(f))
        c.mux(s.encode())


def main():
    os.makedirs(OUT, exist_ok=True)
    x264 = {"crf": "20"}
    field = {"crf": "20", "x264-params": "interlaced=1:tff=1"}
    write("h264.mp4", "libx264", "yuv420p", 9, options=x264)
    write("faststart.mp4", "libx264", "yuv420p", 40, options=x264, container={"movflags": "faststart"})
    write("h264_709.mp4", "libx264", "yuv420p", 4, options=x264, space=1, span=1)
    write("h264_full.mp4", "libx264", "yuvj420p", 4, options=x264)
    write("h264_10bit.mp4", "libx264", "yuv420p10le", 4, options=x264)
    write("h264_422.mp4", "libx264", "yuv422p", 4, options=x264)
    write("h264_444.mkv", "libx264", "yuv444p", 4, width=33, height=23, options=x264)
    write("h264_fields.mp4", "libx264", "yuv420p", 4, height=48, options=field)
    write("h264_fields_10bit.mp4", "libx264", "yuv420p10le", 4, height=48, options=field)
    write("h265.mp4", "libx265", "yuv420p", 4, width=64, height=64, options={"x265-params": "log-level=none"})
    write("vp8.webm", "libvpx", "yuv420p", 9)
    write("vp9.webm", "libvpx-vp9", "yuv420p", 9)
    write("av1.mp4", "libsvtav1", "yuv420p", 4, width=64, height=64)
    write("mpeg4.avi", "mpeg4", "yuv420p", 9)
    write("mjpeg.mov", "mjpeg", "yuvj422p", 4)
    write("pal.gif", "gif", "rgb8", 6)
    write("odd.mkv", "ffv1", "yuv420p", 3, width=33, height=23)
    write("tall.mkv", "ffv1", "yuv440p", 3)
    write("grey16.mkv", "ffv1", "gray16le", 3)
    write("bt2020.mkv", "ffv1", "yuv420p10le", 3, space=9, span=1)
    write("full.mkv", "ffv1", "yuv420p", 3, span=2)
    write("alpha.mkv", "ffv1", "yuva444p", 3)

    # A display rotation, which to_image leaves alone: the matrix of the track header says 90 degrees.
    turned = bytearray(open(os.path.join(OUT, "h264.mp4"), "rb").read())
    at = turned.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    turned[at:at + 36] = bytes(4) + one + bytes(4) + (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big") + bytes(16) + \
        (1 << 30).to_bytes(4, "big")
    open(os.path.join(OUT, "turned.mp4"), "wb").write(turned)

    rows = []
    for name in sorted(os.listdir(OUT)):
        if name.endswith((".rgb", ".csv")):
            continue
        with av.open(os.path.join(OUT, name)) as c:
            frames = [f.to_image() for f in c.decode(video=0)]
        pair = (1, len(frames) - 1)
        with open(os.path.join(OUT, name + ".rgb"), "wb") as f:
            for k in pair:
                f.write(frames[k].tobytes())
        rows.append((name, len(frames), *pair))
    with open(os.path.join(OUT, "clips.csv"), "w", newline="") as f:
        csv.writer(f).writerows([("name", "frames", "first", "second"), *rows])


main()

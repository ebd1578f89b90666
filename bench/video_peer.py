"""bench/video in turns with the same work by PyAV and Pillow, one thread each:

    python bench/video_peer.py build/release CLIP.mp4 ...

Without clips it makes one of 480 frames, 640 x 360, H.264."""
import os
import subprocess
import sys
import time

import av
import numpy as np
from PIL import Image


def length_of(path):
    """Frames; a container that does not say it, such as Matroska, is decoded."""
    with av.open(path) as c:
        return c.streams.video[0].frames or sum(1 for _ in c.decode(video=0))


def run_once(path, total):
    start = time.perf_counter()
    with av.open(path) as c:
        stream = c.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = set(range(total)) if total <= 16 else set(np.arange(0, total, total / 16).astype(int)[:16].tolist())
        frames = []
        for i, f in enumerate(c.decode(video=0)):
            if i in wanted:
                frames.append(f.to_image())
            if i == max(wanted):
                break
    decoded = time.perf_counter()
    for im in frames:
        im.resize((384, 384), Image.Resampling.BICUBIC)
    return decoded - start, time.perf_counter() - decoded, max(wanted) + 1


def bench(path):
    total = length_of(path)
    run_once(path, total)
    n, decode, resize, frames, start = 0, 0.0, 0.0, 0, time.perf_counter()
    while time.perf_counter() - start < 2:
        d, r, k = run_once(path, total)
        n, decode, resize, frames = n + 1, decode + d, resize + r, frames + k
    print(f"peer  {n / (decode + resize):8.2f} clips/s   {frames / decode:8.1f} decoded frames/s   "
          f"decode {decode / n * 1e3:8.2f} ms   resize {resize / n * 1e3:7.2f} ms   {path}", flush=True)


def make_clip(path):
    y, x = np.mgrid[0:360, 0:640]
    noise = np.random.default_rng(1)
    with av.open(path, "w") as c:
        s = c.add_stream("libx264", rate=24, options={"crf": "23"})
        s.width, s.height, s.pix_fmt = 640, 360, "yuv420p"
        for k in range(480):
            waves = [128 + 90 * np.sin((x + 4 * k) / 29 + i) * np.cos((y - 2 * k) / 17 + i) for i in range(3)]
            a = np.stack(waves, -1) + noise.normal(0, 4, (360, 640, 1))
            c.mux(s.encode(av.VideoFrame.from_ndarray(a.clip(0, 255).astype(np.uint8), format="rgb24")))
        c.mux(s.encode())
    return path


clips = sys.argv[2:] or [make_clip(os.path.join("build", "bench-640x360.mp4"))]
for clip in clips:
    for turn in range(2):
        print(subprocess.run([f"{sys.argv[1]}/bench/video", clip], check=True, capture_output=True, text=True).stdout,
              end="", flush=True)
        bench(clip)

"""The work of bench/image.c with Pillow and numpy, as transformers' slow SigLIP processor does it, on one core.

    python bench/image_peer.py FILE.jpg ...
"""
import sys
import time

import numpy as np
from PIL import Image


def run_once(path, parts):
    start = time.perf_counter()
    im = Image.open(path).convert("RGB")
    decoded = time.perf_counter()
    small = im.resize((384, 384), Image.Resampling.BICUBIC)
    resized = time.perf_counter()
    x = np.moveaxis(np.array(small), -1, 0)
    x = (x.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    mean = np.array([0.5] * 3, dtype=x.dtype)
    x = np.ascontiguousarray(((x.T - mean) / mean).T)
    done = time.perf_counter()
    parts += np.array([decoded - start, resized - decoded, done - resized])
    return im.size


for path in sys.argv[1:]:
    parts = np.zeros(3)
    size = run_once(path, parts)
    parts[:] = 0
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < 2:
        run_once(path, parts)
        n += 1
    decode, resize, normalise = parts / n * 1e3
    print(f"peer  {size[0]:5d} x {size[1]:<5d} {n / parts.sum():8.1f} images/s   decode {decode:6.2f} ms   "
          f"resize {resize:6.2f} ms   normalise {normalise:6.2f} ms")

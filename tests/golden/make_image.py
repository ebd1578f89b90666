"""Makes tests/golden/image: small pictures of every kind, what Pillow reads from them (NAME.ppm beside NAME), files that it
refuses, and hashes of resized pictures and of what transformers' slow image processors give.

    python tests/golden/make_image.py        (Pillow, numpy, transformers)
"""
import io
import json
import os
import shutil
import struct
import zlib

import numpy as np
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from data_files import fnv

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "image")
RNG = np.random.RandomState(7)


def picture(w, h):
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([127 + 120 * np.sin(x / 7 + y / 11), 127 + 120 * np.cos(x / 5 - y / 9), (x * 3 + y * 5) % 256], -1)
    return Image.fromarray(np.clip(a + RNG.randn(h, w, 3) * 12, 0, 255).astype(np.uint8))


def encode(im, form, **options):
    out = io.BytesIO()
    im.save(out, form, **options)
    return out.getvalue()


def write(name, data):
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


def good(name, data):
    write(name, data)
    Image.open(io.BytesIO(data)).convert("RGB").save(os.path.join(HERE, name + ".ppm"))


def refused(name, data):
    try:
        Image.open(io.BytesIO(data)).convert("RGB")
    except Exception:
        write("refused/" + name, data)
        return
    raise SystemExit(f"Pillow reads {name}")


def jpegs(im):
    for chroma in (0, 1, 2, "4:1:1"):
        for progressive in (False, True):
            name = f"chroma{str(chroma).replace(':', '')}{'_progressive' if progressive else ''}.jpg"
            good(name, encode(im, "JPEG", subsampling=chroma, progressive=progressive, quality=80))
    good("grey.jpg", encode(im.convert("L"), "JPEG"))
    good("grey_progressive.jpg", encode(im.convert("L"), "JPEG", progressive=True))
    ink = Image.fromarray(np.concatenate([np.asarray(im), np.asarray(im.rotate(180))[:, :, :1]], 2), "CMYK")
    good("cmyk.jpg", encode(ink, "JPEG"))
    ycck = bytearray(encode(ink, "JPEG"))
    ycck[ycck.index(b"Adobe") + 11] = 2  # the transform of the Adobe marker: the four components are YCCK
    good("ycck.jpg", bytes(ycck))
    good("rgb.jpg", encode(im, "JPEG", keep_rgb=True))
    good("restart.jpg", encode(im, "JPEG", restart_marker_blocks=1))
    good("trailing.jpg", encode(im, "JPEG") + b"more")
    turned = Image.Exif()
    turned[0x112] = 6
    good("orientation.jpg", encode(im, "JPEG", exif=turned))
    good("thin.jpg", encode(picture(1, 19), "JPEG"))
    refused("no_end.jpg", encode(im, "JPEG")[:-2])
    whole = encode(im, "JPEG", progressive=True)
    refused("half_progressive.jpg", whole[:len(whole) // 2])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(w, h, depth, color, interlaced, extra=b""):
    """Random samples, every row filter."""
    parts = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x0, y0, dx, dy in passes:
        pw, ph = (w - x0 + dx - 1) // dx, (h - y0 + dy - 1) // dy
        for y in range(ph if pw > 0 else 0):
            raw += bytes([y % 5]) + RNG.randint(0, 256, (pw * parts * depth + 7) // 8).astype(np.uint8).tobytes()
    if color == 3:
        extra += chunk(b"PLTE", RNG.randint(0, 256, 3 << depth).astype(np.uint8).tobytes())
        extra += chunk(b"tRNS", RNG.randint(0, 256, 1 << depth).astype(np.uint8).tobytes())
    head = struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"gAMA", struct.pack(">I", 22222)) + extra
            + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def pngs(im):
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for color, list_ in depths.items():
        for depth in list_:
            for interlaced in (0, 1):
                good(f"color{color}_{depth}{'_interlaced' if interlaced else ''}.png", raw_png(13, 11, depth, color, interlaced))
    dark = Image.fromarray((RNG.rand(7, 9) * 700).astype(np.uint16))
    good("dark16.png", encode(dark, "PNG"))
    good("rgb_transparent.png", encode(im, "PNG", transparency=(1, 2, 3)))
    short = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    beyond = struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0)
    good("beyond_palette.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", beyond) + short
         + chunk(b"IDAT", zlib.compress(bytes([0, 0, 1, 5, 200]))) + chunk(b"IEND", b""))
    whole = encode(im, "PNG")
    refused("half.png", whole[:len(whole) // 2])
    refused("huge.png", raw_png(1, 1, 8, 2, 0).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", 13378, 13378, 8, 2, 0, 0, 0))))


def lzw_of_clears(values, bits):
    """GIF codes that clear before every value."""
    out, count, done = 0, 0, bytearray()
    for code in [c for v in values for c in (1 << bits, v)] + [(1 << bits) + 1]:
        out |= code << count
        count += bits + 1
    while count > 0:
        done.append(out & 255)
        out, count = out >> 8, count - 8
    return bytes([bits, len(done)]) + bytes(done) + b"\0"


def raw_gif(screen, palette, frame, values, before=b""):
    flags = 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
    return (b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + palette + before + b","
            + struct.pack("<HHHHB", *frame, 0) + lzw_of_clears(values, 8) + b";")


def gifs(im):
    paletted = im.convert("P", palette=Image.Palette.ADAPTIVE, colors=100)
    good("plain.gif", encode(paletted, "GIF", interlace=0))
    good("interlaced.gif", encode(paletted, "GIF", interlace=1))
    good("transparent.gif", encode(paletted, "GIF", transparency=5))
    good("grey.gif", encode(im.convert("L"), "GIF"))
    good("two.gif", encode(im.convert("1"), "GIF"))
    good("long.gif", encode(picture(150, 90).convert("P"), "GIF"))  # more codes than the table holds
    good("animated.gif", encode(paletted, "GIF", save_all=True, append_images=[im.rotate(90).convert("P")]))
    two = bytes([10, 20, 30, 40, 50, 60])
    good("beyond_palette.gif", raw_gif((4, 1), two, (0, 0, 4, 1), [0, 1, 5, 200]))
    good("no_palette.gif", raw_gif((4, 1), b"", (0, 0, 4, 1), [0, 1, 5, 200]))
    good("ramp.gif", raw_gif((4, 1), bytes([0, 0, 0, 1, 1, 1]), (0, 0, 4, 1), [0, 1, 5, 200]))
    good("within.gif", raw_gif((4, 3), two, (1, 1, 2, 1), [1, 1]))
    good("within_transparent.gif", raw_gif((4, 3), two, (1, 1, 2, 1), [0, 0], b"!\xf9\x04\x01\0\0\x01\0"))
    good("outside.gif", raw_gif((1, 1), two, (2, 1, 2, 1), [1, 1]))
    good("comment.gif", raw_gif((1, 1), two, (0, 0, 1, 1), [1], b"!\xfe\x03abc\x02de\0"))
    refused("missing_pixels.gif", raw_gif((4, 1), two, (0, 0, 4, 1), [1, 1]))
    refused("no_frame.gif", b"GIF89a" + struct.pack("<HHBBB", 4, 1, 0, 0, 0) + b";")


def raw_bmp(w, h, bits, body, compression=0, palette=b"", header=40, masks=b"", down=False, colors=0):
    head = struct.pack("<IiiHHIIiiII", 40, w, -h if down else h, 1, bits, compression, len(body), 0, 0, colors, 0)
    if header == 12:
        head = struct.pack("<IHHHH", 12, w, h, 1, bits)
    if header > 40:
        head, masks = struct.pack("<I", header) + head[4:] + (masks + bytes(200))[:header - 40], b""
    start = 14 + len(head) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + masks + palette + body


def noise(n):
    return RNG.randint(0, 256, n).astype(np.uint8).tobytes()


def bmps(im):
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        good(f"mode_{mode}.bmp", encode(im.convert(mode), "BMP"))
    w, h = 7, 5
    for bits in (1, 4, 8, 16, 24, 32):
        body = noise((w * bits + 31) // 32 * 4 * h)
        few = bits <= 8
        good(f"bits{bits}.bmp", raw_bmp(w, h, bits, body, palette=noise(4 << bits) if few else b""))
        good(f"bits{bits}_down.bmp", raw_bmp(w, h, bits, body, palette=noise(4 << bits) if few else b"", down=True))
        good(f"bits{bits}_os2.bmp", raw_bmp(w, h, bits, body, palette=noise(3 << bits) if few else b"", header=12))
    body = noise(w * 4 * h)
    for i, mask in enumerate(((0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF000000, 0xFF00, 0xFF, 0),
                              (0, 0, 0, 0))):
        good(f"mask{i}.bmp", raw_bmp(w, h, 32, body, 3, masks=struct.pack("<4I", *mask)[:12]))
    good("mask_v5.bmp", raw_bmp(w, h, 32, body, 3, masks=struct.pack("<4I", 255, 65280, 0xFF0000, 0xFF000000), header=124))
    for name, mask in (("565", (0xF800, 0x7E0, 0x1F)), ("555", (0x7C00, 0x3E0, 0x1F))):
        good(f"mask{name}.bmp", raw_bmp(w, h, 16, noise(16 * h), 3, masks=struct.pack("<3I", *mask)))
    ramp = bytes(v for i in range(100) for v in (i, i, i, 0))
    good("ramp.bmp", raw_bmp(w, h, 8, noise(8 * h), palette=ramp, colors=100))
    good("few_colors.bmp", raw_bmp(w, h, 4, noise(4 * h), palette=noise(20), colors=5))
    runs = b"\x03\x12\x00\x04\x01\x23\x45\x67\x00\x00" b"\x00\x03\x01\x02\x03\x00\x04\x11\x00\x00" b"\x07\x22\x00\x02\x02\x01" \
           b"\x05\x33\x00\x00\x09\x44\x00\x01"
    good("rle8.bmp", raw_bmp(w, h, 8, runs, 1, palette=noise(1024)))
    nibbles = b"\x03\x12\x00\x04\x01\x23\x00\x00" b"\x00\x03\x45\x60\x04\x11\x00\x00" b"\x07\x22\x00\x02\x02\x01" \
              b"\x05\x33\x00\x00\x09\x45\x00\x01"
    good("rle4.bmp", raw_bmp(w, h, 4, nibbles, 2, palette=noise(64)))
    refused("short.bmp", raw_bmp(w, h, 24, noise(24 * h - 4)))
    refused("early_end.bmp", raw_bmp(w, h, 8, b"\x03\x12\x00\x01", 1, palette=noise(1024)))
    refused("bits2.bmp", raw_bmp(w, h, 2, noise(4 * h)))
    refused("masks.bmp", raw_bmp(w, h, 16, noise(16 * h), 3, masks=struct.pack("<3I", 0xF000, 0xF00, 0xF0)))


def webps(im):
    clear = im.convert("RGBA")
    clear.putalpha(im.convert("L").point(lambda v: 0 if v < 100 else v))
    good("lossy.webp", encode(im, "WEBP", quality=60))
    good("lossy_alpha.webp", encode(clear, "WEBP", quality=60))
    good("lossless.webp", encode(im, "WEBP", lossless=True))
    good("lossless_alpha.webp", encode(clear, "WEBP", lossless=True, exact=True))
    good("animated.webp", encode(clear, "WEBP", save_all=True, append_images=[im.convert("RGBA").rotate(90)]))
    whole = encode(im, "WEBP")
    refused("half.webp", whole[:len(whole) // 2])
    refused("empty", b"")
    refused("text", b"this is not a picture at all")


def resizes(sources):
    lines = []
    sizes = ((1, 1), (1, 40), (40, 1), (56, 56), (33, 47), (47, 33), (130, 91), (91, 130), (61, 100), (20, 41), (7, 3), (300, 20),
             (51, 18), (56, 33), (60, 40), (18, 70))  # these tell the rule for the order of passes from its neighbours
    for name in sources:
        im = Image.open(os.path.join(HERE, name)).convert("RGB")
        for method in range(6):
            for w, h in sizes:
                lines.append(f"{name} {method} {w} {h} {fnv(im.resize((w, h), method).tobytes())}")
    write("resize.txt", ("\n".join(lines) + "\n").encode())


def mantis_size(im, most):
    if most and max(im.size) > most:
        scale = most / max(im.size)
        im = im.resize((int(im.size[0] * scale), int(im.size[1] * scale)))
    if min(im.size) < 16:
        scale = max(16 / im.size[0], 16 / im.size[1])
        im = im.resize((int(im.size[0] * scale), int(im.size[1] * scale)))
    return im


def mantis_sizes(sources):
    lines = []
    for name in sources:
        im = Image.open(os.path.join(HERE, name)).convert("RGB")
        for most in (0, 15, 29, 60, 1000):
            out = mantis_size(im, most)
            lines.append(f"{name} {most} {out.size[0]} {out.size[1]} {fnv(out.tobytes())}")
    write("mantis.txt", ("\n".join(lines) + "\n").encode())


def processors(sources):
    siglip = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 20}, "resample": 3,
              "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098,
              "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "processor_class": "MLlavaProcessor"}
    clip = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 21}, "crop_size": {"height": 21, "width": 21}}
    fast = {"image_processor_type": "CLIPImageProcessorFast", "size": 18, "crop_size": 15, "size_divisor": None, "do_pad": None,
            "data_format": "channels_first", "do_convert_rgb": None, "resample": 2}
    configs = {
        "siglip": siglip,
        "siglip_raw": {**siglip, "do_normalize": False, "resample": 1},
        "siglip_bytes": {**siglip, "do_rescale": False, "image_mean": [100, 120.5, 3], "image_std": [60, 50, 0.3]},
        "clip": clip,
        "clip_fast": fast,
        "clip_pad": {**clip, "crop_size": {"height": 64, "width": 25}},
        "clip_no_resize": {**clip, "do_resize": False, "crop_size": {"height": 30, "width": 33}},
        "clip_exact": {**clip, "size": {"height": 19, "width": 31}, "do_center_crop": False, "image_std": 0.25},
    }
    lines = []
    for name, config in configs.items():
        write(f"processor/{name}/preprocessor_config.json", (json.dumps(config, indent=1) + "\n").encode())
        known = {k: v for k, v in config.items() if k != "image_processor_type" and v is not None}
        make = SiglipImageProcessorPil if name.startswith("siglip") else CLIPImageProcessorPil
        for source in sources:
            im = Image.open(os.path.join(HERE, source)).convert("RGB")
            out = np.asarray(make(**known)(im, return_tensors="np")["pixel_values"][0]).astype(np.float32)
            lines.append(f"{name} {source} {out.shape[1]} {out.shape[2]} {fnv(out.tobytes())}")
    write("processor.txt", ("\n".join(lines) + "\n").encode())


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    im = picture(23, 17)
    for make in (jpegs, pngs, gifs, bmps, webps):
        make(im)
    good("wide.png", encode(picture(61, 43), "PNG"))
    good("tall.png", encode(picture(20, 77), "PNG"))
    good("hard.png", encode(Image.fromarray(RNG.randint(0, 2, (41, 35, 3)).astype(np.uint8) * 255), "PNG"))
    good("dot.png", encode(picture(1, 1), "PNG"))
    good("line.png", encode(picture(5, 1), "PNG"))
    resizes(("wide.png", "tall.png", "hard.png", "dot.png", "line.png"))
    mantis_sizes(("wide.png", "tall.png", "dot.png", "line.png", "chroma0.jpg"))
    processors(("wide.png", "tall.png", "hard.png", "chroma0.jpg"))


if __name__ == "__main__":
    main()

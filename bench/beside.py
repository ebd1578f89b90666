#!/usr/bin/env python3
"""Runs the programs of bench/ in turns with what they are measured beside; prints a row for each figure.

    python3 bench/beside.py tokenizer|quant|image build/release [--python PYTHON] [--rounds N] [--threads N] [--text FILE] [DIR ...]

PYTHON is one that has bench/requirements.txt; without it only graft's figures are shown. DIR are folders that hold a
tokenizer.json. Shown are medians of the rounds, and least to most. Without --text the tokenizers read the sources of
this repository and of Python's library, 4 MB.
"""
import argparse
import glob
import os
import re
import statistics
import subprocess
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT_BYTES = 4 << 20
IMAGES = [f"build/bench-{size}.jpg" for size in ("640x480", "1600x1200", "224x224")]


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=("tokenizer", "quant", "image"))
    p.add_argument("build")
    p.add_argument("folders", nargs="*")
    p.add_argument("--python", default="")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--text", default="")
    return p.parse_intermixed_args()


def make_text(path):
    library = sysconfig.get_path("stdlib")
    files = [f"{library}/pydoc_data/topics.py"] + sorted(glob.glob("*/*.[ch]")) + sorted(glob.glob(f"{library}/*.py"))
    with open(path, "w") as out:
        for name in files:
            with open(name, encoding="utf-8", errors="ignore") as f:
                out.write(f.read())
            if out.tell() > TEXT_BYTES:
                break
    return path


def lines_of(command):
    p = subprocess.run(command, capture_output=True, text=True)
    if p.returncode:
        print(f"failed: {' '.join(command)}\n{p.stderr}", file=sys.stderr)
    return p.stdout.splitlines()


def tokenizer_rows(a, who):
    rows = []
    for folder in a.folders:
        command = [f"{a.build}/bench/tokenizer"] if who == "graft" else [a.python, f"{HERE}/tokenizer_peer.py"]
        for line in lines_of(command + [folder, a.text]):
            load, rate = re.search(r"load (\d+) ms, ([\d.]+) MB/s", line).groups()
            name = os.path.basename(folder.rstrip("/"))
            rows += [(f"{name} encode, MB/s", float(rate), 1), (f"{name} load, ms", float(load), -1)]
    return rows


def quant_rows(a, who):
    command = [f"{a.build}/bench/quant"] if who == "graft" else [a.python, f"{HERE}/quant_peer.py"]
    rows, above, elements = [], "", 0
    for line in lines_of(command + [str(a.threads)]):
        size = re.match(r"(\d+) x (\d+)", line)
        elements = int(size.group(1)) * int(size.group(2)) if size else elements
        found = re.match(r"(quantise|dequantise)(.*?)\s+(\S+)\s+([\d.]+) ms", line)
        if not found:
            continue
        above = found.group(2).strip() or above
        kind = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(found.group(3), found.group(3)).upper()
        bytes_each = 4 if kind == "F32" else 2
        gigabytes = elements * bytes_each / 1e6 / float(found.group(4))
        rows.append((f"{found.group(1)} {above} {kind}, GB/s", gigabytes, 1))
    return rows


def image_rows(a, who):
    command = [f"{a.build}/bench/image"] if who == "graft" else [a.python, f"{HERE}/image_peer.py", *IMAGES]
    rows = []
    for line in lines_of(command):
        size = re.search(r"(\d+) x (\d+)", line).groups()
        rows.append((f"{'x'.join(size)}, images/s", float(re.search(r"([\d.]+) images/s", line).group(1)), 1))
        rows += [(f"{'x'.join(size)} {part}, ms", float(ms), -1)
                 for part, ms in re.findall(r"(decode|resize|normalise)\s+([\d.]+) ms", line)]
    return rows


def spread(values):
    digits = 0 if min(values) >= 100 else 2 if min(values) >= 1 else 3
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main():
    a = arguments()
    if a.what == "tokenizer" and not a.text:
        os.makedirs("build", exist_ok=True)
        a.text = make_text("build/bench-text.txt")
    sides = ["graft", "peer"] if a.python else ["graft"]
    found = {}  # (side, name): values
    better = {}
    for _ in range(a.rounds):
        for who in sides:
            for name, value, sign in globals()[f"{a.what}_rows"](a, who):
                found.setdefault((who, name), []).append(value)
                better[name] = sign
    print("| " + a.what + " | graft | peer | times |\n|---|---|---|---|")
    for name, sign in better.items():
        mine, other = found.get(("graft", name)), found.get(("peer", name))
        times = ""
        if mine and other and min(mine + other) > 0:
            times = f"{(statistics.median(mine) / statistics.median(other)) ** sign:.1f}"
        print(f"| {name} | {spread(mine) if mine else ''} | {spread(other) if other else ''} | {times} |", flush=True)


main()

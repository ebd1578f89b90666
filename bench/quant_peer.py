#!/usr/bin/env python3
"""bitsandbytes on the CPU at what bench/quant.c measures: quant_peer.py [threads]"""

import sys
import time

import bitsandbytes.functional as bnb
import torch

ROWS, COLUMNS, RUNS = 4096, 14336, 3


def best(work) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def row(what: str, dtype: torch.dtype, seconds: float) -> None:
    n = ROWS * COLUMNS
    name = str(dtype).removeprefix("torch.")
    print(f"{what:28} {name:9} {1e3 * seconds:8.2f} ms {n / seconds / 1e9:7.2f} Gelem/s {n * dtype.itemsize / seconds / 1e9:7.2f} GB/s")


torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
print(f"{ROWS} x {COLUMNS}, block 64, {torch.get_num_threads()} threads")
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    x = ((torch.rand(ROWS, COLUMNS) - 0.5) * 0.04).to(dtype)
    for kind, double in (("nf4", False), ("nf4", True), ("fp4", False)):
        row(f"quantise {kind}{' double' * double}", dtype, best(lambda: bnb.quantize_4bit(x, quant_type=kind, compress_statistics=double)))
        if not double:
            packed, state = bnb.quantize_4bit(x, quant_type=kind)
            row("dequantise", dtype, best(lambda: bnb.dequantize_4bit(packed, state)))

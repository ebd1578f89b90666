#!/usr/bin/env python3
"""Merging: graft beside PEFT's merge_and_unload and save, on the same folders, in one run.

    python3 bench/merge_peer.py MODEL ADAPTER SCRATCH

Each runs as a process of its own; its time without imports and its peak of memory are printed, and how many numbers of
the results differ. graft runs without and with its checks.
"""

import shutil
import sys
from pathlib import Path

from measured import FINISH, GRAFT, run, size_of, tensors

PEFT = FINISH + """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
began = time.time()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
finish(began, sys.argv[3])
"""


def main(model, adapter, scratch):
    size = size_of(Path(model))
    scratch = Path(scratch)
    print("| merge | seconds | GB/s | peak GB |\n|---|---|---|---|")
    for name, verify in (("graft, no checks", "none"), ("graft, weights checked", "weights"),
                         ("graft, outputs checked", "outputs"), ("PEFT", None)):
        out = scratch / ("graft" if verify else "peft")
        shutil.rmtree(out, ignore_errors=True)
        words = ["merge", model, "--adapter", adapter, "--out", out, "--verify", verify]
        seconds, peak = run(GRAFT, *words) if verify else run(PEFT, model, adapter, out)
        print(f"| {name} | {seconds:.2f} | {size / seconds:.2f} | {peak:.2f} |", flush=True)
    ours, theirs = tensors(scratch / "graft"), tensors(scratch / "peft")
    differ = sum((ours[k] != v).sum().item() for k, v in theirs.items())
    print(f"\n{differ} of {sum(v.numel() for v in theirs.values())} numbers differ")
    shutil.rmtree(scratch)


main(*sys.argv[1:])

#!/usr/bin/env python3
"""Quantising a whole model: graft quantize beside transformers and bitsandbytes on the CPU, in one run.

    python3 bench/quantize_peer.py MODEL SCRATCH

Both write a checkpoint in NF4, without and with double quantisation. Each runs as a process of its own; its time
without imports and its peak of memory are printed, and how the tensors of the two checkpoints differ.
"""

import shutil
import sys
from pathlib import Path

from measured import FINISH, GRAFT, run, size_of, tensors

PEER = FINISH + """
import sys
import bitsandbytes, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
model, out, double = sys.argv[1:]
began = time.time()
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double == "true")
model = AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map="cpu", quantization_config=config)
model.save_pretrained(out)
finish(began, out)
"""


def difference(ours, theirs):
    """In words: tensors that only one checkpoint has, or in another type or shape, and numbers of the others that differ."""
    a, b = tensors(ours), tensors(theirs)
    same = [n for n in a if n in b and a[n].dtype == b[n].dtype and a[n].shape == b[n].shape]
    other = len(a.keys() | b.keys()) - len(same)
    differ, size = sum((a[n] != b[n]).sum().item() for n in same), sum(a[n].numel() for n in same)
    return f"{len(same)} tensors, {differ} of {size} numbers differ; {other} tensors have no match"


def main(model, scratch):
    size, ours, theirs, differences = size_of(Path(model)), Path(scratch) / "graft", Path(scratch) / "peer", []
    print("| quantise | seconds | GB/s | peak GB |\n|---|---|---|---|")
    for double in ("false", "true"):
        shutil.rmtree(scratch, ignore_errors=True)
        title = "NF4, double" if double == "true" else "NF4"
        for name, seconds, peak in (
                ("graft", *run(GRAFT, "quantize", model, "--out", ours, "--double_quant", double)),
                ("bitsandbytes", *run(PEER, model, theirs, double))):
            print(f"| {title}, {name} | {seconds:.2f} | {size / seconds:.2f} | {peak:.2f} |", flush=True)
        differences.append(f"{title}: {difference(ours, theirs)}")
    print("\n" + "\n".join(differences))
    shutil.rmtree(scratch)


main(*sys.argv[1:])

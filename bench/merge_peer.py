#!/usr/bin/env python3
"""Merging: graft beside PEFT's merge_and_unload and save, on the same folders, in one run.

    python3 bench/merge_peer.py MODEL ADAPTER SCRATCH

Each runs as a process of its own; its time without imports and its peak of memory are printed, and how many numbers of
the results differ. graft runs without and with its checks.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

PEFT = """
import json, resource, sys, time
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
began = time.time()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("RESULT", json.dumps([time.time() - began, peak / 1e6]))
"""
GRAFT = """
import json, resource, subprocess, sys, time
began = time.time()
subprocess.run(["build/release/graft", "merge", sys.argv[1], "--adapter", sys.argv[2], "--out", sys.argv[3], "--quiet",
                "--verify", sys.argv[4]], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("RESULT", json.dumps([time.time() - began, peak / 1e6]))
"""


def run(code, *words):
    out = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True)
    line = next(x for x in out.stdout.splitlines() if x.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT "))


def tensors(folder):
    from safetensors.torch import load_file

    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def main(model, adapter, scratch):
    size = sum(f.stat().st_size for f in Path(model).glob("*.safetensors")) / 1e9
    scratch = Path(scratch)
    print("| merge | seconds | GB/s | peak GB |\n|---|---|---|---|")
    for name, code, extra in (("graft, no checks", GRAFT, ["none"]), ("graft, weights checked", GRAFT, ["weights"]),
                              ("graft, outputs checked", GRAFT, ["outputs"]), ("PEFT", PEFT, [])):
        out = scratch / ("peft" if code is PEFT else "graft")
        shutil.rmtree(out, ignore_errors=True)
        seconds, peak = run(code, model, adapter, out, *extra)
        print(f"| {name} | {seconds:.2f} | {size / seconds:.2f} | {peak:.2f} |", flush=True)
    ours, theirs = tensors(scratch / "graft"), tensors(scratch / "peft")
    differ = sum((ours[k] != v).sum().item() for k, v in theirs.items())
    print(f"\n{differ} of {sum(v.numel() for v in theirs.values())} numbers differ")
    shutil.rmtree(scratch)


main(*sys.argv[1:])

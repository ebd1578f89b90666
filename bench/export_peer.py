#!/usr/bin/env python3
"""GGUF: graft export beside llama.cpp's convert_hf_to_gguf.py, on the same folder, in one run.

    python3 bench/export_peer.py MODEL LLAMA_CPP SCRATCH [TYPE ...]

LLAMA_CPP is a checkout of llama.cpp; its converter wants torch, transformers, sentencepiece and a tokenizer that it
knows (graft init --tokenizer DIR). Each runs as a process of its own; its time without imports and its peak of memory
are printed, and how the tensors of the two files differ. graft runs without and with its check. GB are of MODEL.
"""

import sys
from pathlib import Path

from measured import FINISH, GRAFT, run, size_of

TYPES = ["f16", "bf16", "q8_0"]
CONVERTER = FINISH + """
import runpy, sys
sys.dont_write_bytecode = True
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import torch, transformers, gguf, conversion
from transformers import AutoConfig, AutoTokenizer
script, model, out, kind = sys.argv[1] + "/convert_hf_to_gguf.py", *sys.argv[2:]
sys.argv = [script, model, "--outfile", out, "--outtype", kind]
began = time.time()
runpy.run_path(script, run_name="__main__")
finish(began, out)
"""


def difference(llama_cpp, ours, theirs):
    """In words: tensors that only one file has, or in another type or shape, and bytes of the others that differ."""
    sys.path.insert(0, f"{llama_cpp}/gguf-py")
    from gguf import GGUFReader

    a, b = ({t.name: t for t in GGUFReader(f).tensors} for f in (ours, theirs))
    same = [n for n in a if n in b and a[n].tensor_type == b[n].tensor_type and list(a[n].shape) == list(b[n].shape)]
    other = len(a.keys() | b.keys()) - len(same)
    pairs = [(a[n].data.view("uint8"), b[n].data.view("uint8")) for n in same]
    differ, size = sum(int((x != y).sum()) for x, y in pairs), sum(x.size for x, _ in pairs)
    return f"{len(same)} tensors, {differ} of {size} bytes differ; {other} tensors have no match"


def main(model, llama_cpp, scratch, *types):
    size, scratch, differences = size_of(Path(model)), Path(scratch), []
    scratch.mkdir(parents=True)
    ours, theirs = scratch / "graft.gguf", scratch / "peer.gguf"
    print("| export | seconds | GB/s | peak GB |\n|---|---|---|---|")
    for kind in types or TYPES:
        for name, verify in (("graft, no check", "none"), ("graft, checked", "weights"), ("llama.cpp", None)):
            (ours if verify else theirs).unlink(missing_ok=True)
            words = ["export", model, "--out", ours, "--type", kind, "--modelfile", "false", "--verify", verify]
            seconds, peak = run(GRAFT, *words) if verify else run(CONVERTER, llama_cpp, model, theirs, kind)
            print(f"| {kind}, {name} | {seconds:.2f} | {size / seconds:.2f} | {peak:.2f} |", flush=True)
        differences.append(f"{kind}: {difference(llama_cpp, ours, theirs)}")
    print("\n" + "\n".join(differences))
    for path in (ours, theirs, scratch):
        path.rmdir() if path.is_dir() else path.unlink()


main(*sys.argv[1:])

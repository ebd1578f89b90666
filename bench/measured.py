"""What benchmarks of whole commands share: each runs as a process of its own that says how long its work took, without
imports, and how much memory it had at most. graft returns when what it wrote is on the disk; so do the others here.
The environment's GRAFT is the program, else build/release/graft."""

import json
import os
import subprocess
import sys

GRAFT = """
import json, os, resource, subprocess, sys, time
graft = os.environ.get("GRAFT", "build/release/graft")
began = time.time()
subprocess.run([graft, *sys.argv[1:], "--quiet"], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("RESULT", json.dumps([time.time() - began, peak / 1e6]))
"""

# Of a process that does the work itself: finish(began, file or folder that it wrote).
FINISH = """
import json, os, pathlib, resource, time

def finish(began, written):
    written = pathlib.Path(written)
    for path in written.iterdir() if written.is_dir() else [written]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("RESULT", json.dumps([time.time() - began, peak / 1e6]))

"""


def run(code, *words):
    """Runs Python code that prints RESULT [seconds, peak GB], on a disk with nothing left to write; both."""
    os.sync()
    out = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    line = next((x for x in out.stdout.splitlines() if x.startswith("RESULT")), None)
    if out.returncode or not line:
        sys.exit(f"failed: {' '.join(map(str, words))}\n{out.stderr}")
    return json.loads(line.removeprefix("RESULT "))


def size_of(model):
    """GB of a model folder's weights, a pathlib.Path."""
    return sum(f.stat().st_size for f in model.glob("*.safetensors")) / 1e9


def tensors(folder):
    """All tensors of a model folder, a pathlib.Path, by name."""
    from safetensors.torch import load_file

    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}

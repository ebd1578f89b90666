"""What benchmarks of whole commands share: each runs as a process of its own that says how long its work took, without
imports, and how much memory it had at most."""

import json
import subprocess
import sys

GRAFT = """
import json, resource, subprocess, sys, time
began = time.time()
subprocess.run(["build/release/graft", *sys.argv[1:], "--quiet"], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("RESULT", json.dumps([time.time() - began, peak / 1e6]))
"""


def run(code, *words):
    """Runs Python code that prints RESULT [seconds, peak GB]; both."""
    out = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    line = next((x for x in out.stdout.splitlines() if x.startswith("RESULT")), None)
    if out.returncode or not line:
        sys.exit(f"failed: {' '.join(map(str, words))}\n{out.stderr}")
    return json.loads(line.removeprefix("RESULT "))


def size_of(model):
    """GB of a model folder's weights, a pathlib.Path."""
    return sum(f.stat().st_size for f in model.glob("*.safetensors")) / 1e9

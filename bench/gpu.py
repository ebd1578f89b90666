#!/usr/bin/env python3
"""QLoRA training on a GPU: graft beside transformers + PEFT + bitsandbytes, on models of published shapes.

    python3 bench/gpu.py build/release [WORK] [--python PYTHON] [--shapes A,B] [--batches 1x2048,8x2048] [--steps N]

PYTHON is one that has bench/requirements.txt and sees the GPU; without it graft runs alone. `graft init` writes a model
of random bf16 numbers (16 GB for 8B) into WORK, by default a file system in memory where it has the room, else
build/bench; both sides quantise it while they load, to NF4 with double quantisation, and train LoRA r 16 on all linear
layers in bf16, the peer with gradient checkpointing. A model is removed when it was measured. Both sides run as
processes of their own, one after the other. Tokens/s are those of the median step without the first two; "of the
product" is the rate of the operations that a step needs over that of the product of 8192 x 8192 matrices that bench/gpu
measures. Memory: what a side counts itself, and the most that the driver says beyond what was in use before. Below
graft's row: where the time of its kernels goes, from three more steps.
--device cpu --shapes llama-tiny --batches 1x64 tries all of it without a GPU.
"""
import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

import train

WORDS = "river quiet walk beside small winter light cat water stone bread fall bright slow morning garden house".split()
RANK, WARM, STEP = 16, 2, re.compile(r"^step\s+\d+/\d+\s+loss\s+(\S+)")
CONFIG = """data_config_file: %s.yaml
conv_template: llama_3
max_seq_len: %d
per_device_train_batch_size: %d
gradient_accumulation_steps: 1
quantization: nf4
lora_r: %d
lora_alpha: 32
target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
learning_rate: 1e-4
shuffle: false
save_steps: 100000
resume_from_checkpoint: false
"""


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("work", nargs="?", default="")
    p.add_argument("--python", default="")
    p.add_argument("--shapes", default="llama-3-8b,mistral-7b")
    p.add_argument("--batches", default="1x2048,8x2048,1x8192,1x32768", help="rows x tokens of a step")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--device", default="cuda")
    p.add_argument("--max_seconds", type=float, default=180, help="a run that takes longer is cut off")
    return p.parse_args()


def choose_work(room=20e9):
    for folder, top in (("/dev/shm/graft-bench", "/dev/shm"), ("build/bench", ".")):
        if os.path.isdir(top) and shutil.disk_usage(top).free > room:
            return folder
    sys.exit(f"gpu.py: neither /dev/shm nor build/bench has {room / 1e9:.0f} GB free; name another WORK")


def make_rows(a, name, rows, tokens):
    """Rows of more tokens than wanted, which training cuts: a word is a token or more."""
    rng = random.Random(1)
    with open(f"{a.work}/{name}.jsonl", "w") as f:
        for i in range(rows):
            answer = " ".join(rng.choice(WORDS) for _ in range(tokens))
            f.write(json.dumps({"id": f"row{i}", "conversation": [{"role": "user", "content": "What did you see?"},
                                                                  {"role": "assistant", "content": answer}]}) + "\n")
    with open(f"{a.work}/{name}.yaml", "w") as f:
        f.write(f"data:\n- {{path: {name}.jsonl, name: rows, split: train, format: chat, type: json}}\n")


class DriverMemory(threading.Thread):
    """The most memory in use on the first device while it runs, beyond that at its start; GB, or None."""

    def __init__(self):
        super().__init__(daemon=True)
        self.begin = self.most = self.used()
        self.over = threading.Event()

    def used(self):
        try:
            said = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                                  capture_output=True, text=True).stdout.split()
            return int(said[0]) * 1.048576e-3
        except (OSError, IndexError, ValueError):
            return None

    def run(self):
        while self.begin is not None and not self.over.wait(0.3):
            self.most = max(self.most, self.used() or 0)

    def end(self):
        self.over.set()
        self.join()
        return None if self.begin is None else self.most - self.begin


def run(command, tokens, cut):
    """Runs one training; returns its figures, or None when it failed."""
    memory = DriverMemory()
    memory.start()
    begin, times, losses, text = time.monotonic(), [], [], []
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=dict(os.environ, TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false"))
    timer = threading.Timer(cut, p.terminate)
    timer.start()
    for line in p.stdout:
        text.append(line)
        match = STEP.match(line)
        if match:
            times.append(time.monotonic() - begin)
            losses.append(float(match.group(1)))
    p.wait()
    timer.cancel()
    driver = memory.end()
    if len(times) <= WARM:
        print(f"failed: {' '.join(command)}\n{''.join(text[-3:])}", file=sys.stderr)
        return None
    steps = [b - a for a, b in zip(times, times[1:])][WARM - 1:]
    text = "".join(text)
    own = re.search(r"^\s+together\s+(.*?)\s*$|^memory (.* GB)$", text, re.M)
    scored = re.search(r"(\d+) positions, (\d+) scored", text)
    return {"rate": tokens / statistics.median(steps), "least": tokens / max(steps), "most": tokens / min(steps),
            "own": own and (own.group(1) or own.group(2)), "driver": driver, "first": times[0], "loss": losses[0],
            "scored": scored and int(scored.group(2)) / int(scored.group(1))}


def print_split(a, shape, name):
    """Where the time of three steps goes."""
    command = graft_command(a, shape, name)
    command[command.index("--max_steps") + 1] = "3"
    p = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=a.max_seconds,
                       env=dict(os.environ, GRAFT_PROFILE="1"))
    print(p.stderr[p.stderr.rfind("time by op"):], flush=True)


def graft_command(a, shape, name):
    return [f"{a.build}/graft", "train", f"{a.work}/{name}-train.yaml", "--model_name_or_path", f"{a.work}/{shape}",
            "--output_dir", f"{a.work}/out", "--device", a.device, "--dtype", "bf16",
            "--max_steps", str(a.steps)]


def peer_command(a, shape, name, batch, length):
    files = []
    for i in range(batch * a.steps):
        files.append(f"{a.work}/{name}-row{i}.safetensors")
        p = subprocess.run([f"{a.build}/graft", "data", f"{a.work}/{name}.yaml", "--model", f"{a.work}/{shape}",
                            "--conv_template", "llama_3", "--split", "train", "--max_seq_len", str(length), "--row",
                            str(i), "--dump", files[-1], "--quiet"], capture_output=True, text=True)
        if p.returncode:
            sys.exit(p.stderr)
    here = os.path.dirname(os.path.abspath(__file__))
    return [a.python, f"{here}/train_peer.py", f"{a.work}/{shape}", *files, "--dtype", "bf16", "--nf4",
            "--checkpointing", "--device", a.device, "--steps", str(a.steps), "--batch", str(batch)]


def product_rate(a):
    """Operations in a second."""
    p = subprocess.run([f"{a.build}/bench/gpu", "--device", a.device, "no other row"], capture_output=True, text=True)
    found = re.search(r"^product.*x \d+ +[\d.]+ +([\d.]+)", p.stdout, re.M)
    print(p.stdout or p.stderr, flush=True)
    return float(found.group(1)) * 1e12 if found else 0.0


def print_row(shape, batch, length, who, got, flops, product):
    if not got:
        return print(f"| {shape} | {batch}x{length} | {who} | failed | | | | | |", flush=True)
    share = f"{flops * got['rate'] / (batch * length) / product:.0%}" if product and flops else ""
    driver = "" if got["driver"] is None else f"{got['driver']:.2f} GB"
    print(f"| {shape} | {batch}x{length} | {who} | {got['rate']:.0f} ({got['least']:.0f}-{got['most']:.0f}) | {share} | "
          f"{got['own'] or ''} | {driver} | {got['first']:.1f} | {got['loss']:.4f} |", flush=True)


def run_batch(a, shape, batch, length, product):
    name = f"rows{batch}x{length}"
    make_rows(a, name, batch * a.steps, length)
    with open(f"{a.work}/{name}-train.yaml", "w") as f:
        f.write(CONFIG % (name, length, batch, RANK))
    got = run(graft_command(a, shape, name), batch * length, a.max_seconds)
    flops = 0
    if got and got["scored"]:
        parts = train.flops_needed(f"{a.work}/{shape}", got["scored"] * length, length)
        flops = batch * sum(parts.values())
    print_row(shape, batch, length, "graft", got, flops, product)
    if got:
        print_split(a, shape, name)
    if a.python:
        other = run(peer_command(a, shape, name, batch, length), batch * length, a.max_seconds)
        print_row(shape, batch, length, "peer", other, flops, product)


def main():
    a = arguments()
    a.work = a.work or choose_work()
    os.makedirs(a.work, exist_ok=True)
    product = product_rate(a)
    print("| model | rows x tokens | | tokens/s | of the product | memory, own count | of the driver | first step, s | "
          "loss of step 1 |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for shape in a.shapes.split(","):
        folder = f"{a.work}/{shape}"
        if not os.path.isdir(folder):
            subprocess.run([f"{a.build}/graft", "init", shape, "--out", folder, "--quiet"], check=True,
                           stdout=subprocess.DEVNULL)
        try:
            for batch in a.batches.split(","):
                run_batch(a, shape, *(int(n) for n in batch.split("x")), product)
        finally:
            shutil.rmtree(folder)


main()

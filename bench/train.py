#!/usr/bin/env python3
"""LoRA training on the CPU: graft beside transformers + PEFT (+ bitsandbytes), on the same model, rows and threads.

    python3 bench/train.py build/release build/bench [--python PYTHON] [--shapes A,B] [--modes A,B] [--rounds N] [--steps N]

build/bench is what bench/train_setup.py made. PYTHON is one that has bench/requirements.txt; without it graft runs alone.
Both sides run as processes of their own, in turns, and print a line a step; this program takes the times at which the
lines come. A run's tokens/s are those of its median step without the first two; its memory is the kernel's peak of the
process; its first step is counted from the start of the process. Shown are medians of the rounds, and least to most.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

TOKENS, RANK, WARM, LINE = 512, 16, 2, re.compile(r"^step\s+(\d+)/\d+\s+loss\s+(\S+)")

# name: files, graft's flags, the peer's flags, type that the products are made in
MODES = {
    "f32": ("f32", ["--dtype", "f32"], ["--dtype", "f32"], "f32"),
    "bf16": ("bf16", ["--dtype", "bf16"], ["--dtype", "bf16"], "bf16"),
    "nf4-bf16": ("bf16", ["--dtype", "bf16", "--quantization", "nf4"], ["--dtype", "bf16", "--nf4"], "bf16"),
    "nf4-bf16-upcast": ("bf16", None, ["--dtype", "bf16", "--nf4", "--upcast"], "bf16"),
    "nf4-f32": ("f32", ["--dtype", "f32", "--quantization", "nf4"], ["--dtype", "f32", "--nf4"], "f32"),
}
GRAFT = """data_config_file: data.yaml
conv_template: llama_3
max_seq_len: %d
lora_r: %d
lora_alpha: 32
target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
per_device_train_batch_size: 1
learning_rate: 1e-4
shuffle: false
save_steps: 100000
resume_from_checkpoint: false
""" % (TOKENS, RANK)


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("work")
    p.add_argument("--python", default="")
    p.add_argument("--shapes", default="smollm2-135m,qwen2.5-0.5b")
    p.add_argument("--modes", default=",".join(MODES))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=7)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--max_seconds", type=float, default=300, help="a run that takes longer is cut off")
    return p.parse_args()


def run(command, cut):
    """Runs one training; returns its figures, or None when it failed."""
    start, times, losses, last = time.monotonic(), [], [], ""
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=dict(os.environ, TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false"))
    for line in p.stdout:
        last = line.strip() or last
        match = LINE.match(line)
        if not match:
            continue
        times.append(time.monotonic() - start)
        losses.append(float(match.group(2)))
        if times[-1] > cut and len(times) > WARM + 1:
            p.terminate()
            break
    p.stdout.close()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = status
    if len(times) <= WARM + 1:
        print(f"failed: {' '.join(command)}\n  {last}", file=sys.stderr)
        return None
    steps = [b - a for a, b in zip(times, times[1:])][WARM - 1:]
    return {"rate": TOKENS / statistics.median(steps), "memory": usage.ru_maxrss / 1e6 * 1.024, "first": times[0],
            "loss": losses[0], "steps": steps}


def graft_command(a, shape, mode):
    files, flags, _, _ = MODES[mode]
    return [f"{a.build}/graft", "train", f"{a.work}/train.yaml", "--model_name_or_path", f"{a.work}/{shape}-{files}",
            "--output_dir", f"{a.work}/out", "--threads", str(a.threads), "--max_steps", str(a.steps)] + flags


def peer_command(a, shape, mode, rows):
    files, _, flags, _ = MODES[mode]
    here = os.path.dirname(os.path.abspath(__file__))
    return [a.python, f"{here}/train_peer.py", f"{a.work}/{shape}-{files}", *rows, "--threads", str(a.threads),
            "--steps", str(a.steps)] + flags


def dump_rows(a, shape):
    """The rows as graft sees them, for the peer: the same ids and labels. Returns the files and the scored positions."""
    rows, scored = [], []
    for i in range(a.steps):
        rows.append(f"{a.work}/row{i}.safetensors")
        p = subprocess.run([f"{a.build}/graft", "data", f"{a.work}/data.yaml", "--model", f"{a.work}/{shape}-bf16",
                            "--conv_template", "llama_3", "--split", "train", "--max_seq_len", str(TOKENS),
                            "--row", str(i), "--dump", rows[-1], "--quiet", "true"], capture_output=True, text=True)
        if p.returncode:
            sys.exit(p.stderr)
        ids, labels = (read_tensor(rows[-1], name) for name in ("input_ids", "labels"))
        if len(ids) != TOKENS:
            sys.exit(f"{rows[-1]}: {len(ids)} tokens, wanted {TOKENS}")
        scored.append(sum(label >= 0 for label in labels[1:]))
    return rows, statistics.mean(scored)


def read_tensor(path, name):
    with open(path, "rb") as f:
        head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()[slice(*head[name]["data_offsets"])]
    size = int(head[name]["dtype"][1:]) // 8
    return [int.from_bytes(data[i:i + size], "little", signed=True) for i in range(0, len(data), size)]


def flops_needed(folder, scored, tokens=TOKENS):
    """Of one step: each frozen weight forward and for dx, LoRA forward and backward, the pairs that attention sees, the
    head where it is scored. The first layer's q, k and v need no dx: what lies below them is not trained."""
    c = json.load(open(f"{folder}/config.json"))
    C, F, L, H, K = (c[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                    "num_key_value_heads"))
    D = c.get("head_dim") or C // H
    first = [(C, H * D), (C, K * D), (C, K * D)]
    shapes = first + [(H * D, C), (C, F), (C, F), (F, C)]
    frozen = tokens * (4 * L * sum(i * o for i, o in shapes) - 2 * sum(i * o for i, o in first))
    lora = 6 * tokens * RANK * L * sum(i + o for i, o in shapes)
    window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
    attention = 12 * D * H * L * sum(min(i + 1, window or tokens) for i in range(tokens))
    head = 4 * scored * C * c["vocab_size"]
    return {"frozen": frozen, "lora": lora, "attention": attention, "head": head}


def product_rate(a, kind):
    """GFLOP/s of graft's own product of large matrices."""
    names = {"f32": "f32 f32", "bf16": "bf16 bf16"}
    p = subprocess.run([f"{a.build}/bench/gemm", str(a.threads), f"forward 512x4096x4096 {names[kind]}"],
                       capture_output=True, text=True)
    found = re.search(r"([\d.]+) GFLOP/s", p.stdout)
    return float(found.group(1)) if found else 0.0


def peer_rate(a, kind):
    here = os.path.dirname(os.path.abspath(__file__))
    p = subprocess.run([a.python, f"{here}/train_peer.py", "--rate", kind, "--threads", str(a.threads)],
                       capture_output=True, text=True)
    found = re.search(r"([\d.]+) GFLOP/s", p.stdout)
    return float(found.group(1)) if found else 0.0


def measure_products(a, rates):
    """The best of all rounds: what the machine can, were it left alone."""
    sides = [("graft", product_rate)] + ([("peer", peer_rate)] if a.python else [])
    for who, rate in sides:
        for kind in ("f32", "bf16"):
            rates[who, kind] = max(rates.get((who, kind), 0.0), rate(a, kind))


def spread(runs, key, digits):
    values = [r[key] for r in runs]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def print_row(shape, mode, who, runs, flops, rate):
    if not runs:
        return print(f"| {shape} | {mode} | {who} | failed | | | | |", flush=True)
    share = flops * statistics.median(r["rate"] for r in runs) / TOKENS / 1e9 / rate if rate else 0
    print(f"| {shape} | {mode} | {who} | {spread(runs, 'rate', 0)} | {share:.0%} | {spread(runs, 'memory', 2)} | "
          f"{spread(runs, 'first', 1)} | {runs[0]['loss']:.4f} |", flush=True)


def run_shape(a, shape, rates):
    rows, scored = dump_rows(a, shape)
    parts = flops_needed(f"{a.work}/{shape}-bf16", scored)
    flops = sum(parts.values())
    print(f"\n{shape}: {scored:.0f} of {TOKENS} positions scored, {flops / 1e9:.1f} GFLOP a step: " +
          ", ".join(f"{k} {v / 1e9:.1f}" for k, v in parts.items()), flush=True)
    modes = [m for m in a.modes.split(",") if m]
    runs = {(m, who): [] for m in modes for who in ("graft", "peer")}
    for _ in range(a.rounds):
        measure_products(a, rates)
        for mode in modes:
            for who, command in (("graft", MODES[mode][1] and graft_command(a, shape, mode)),
                                 ("peer", a.python and peer_command(a, shape, mode, rows))):
                got = run(command, a.max_seconds) if command else None
                if got:
                    runs[mode, who].append(got)
    print("products of 512x4096x4096 in GFLOP/s, the best so far: " +
          ", ".join(f"{who} {kind} {rate:.0f}" for (who, kind), rate in rates.items()))
    print("\n| model | mode | | tokens/s | of the products | memory, GB | first step, s | loss of step 1 |\n"
          "|---|---|---|---|---|---|---|---|")
    for (mode, who), got in runs.items():
        if (who == "peer" and a.python) or (who == "graft" and MODES[mode][1]):
            print_row(shape, mode, who, got, flops, rates[who, MODES[mode][3]])
    return {f"{shape} {mode} {who}": got for (mode, who), got in runs.items() if got}


def main():
    a = arguments()
    with open(f"{a.work}/train.yaml", "w") as f:
        f.write(GRAFT)
    rates = {}  # (side, type): GFLOP/s
    print(f"{a.threads} threads, load {os.getloadavg()[0]:.2f} at the start", flush=True)
    every = {}
    for shape in a.shapes.split(","):
        every.update(run_shape(a, shape, rates))
    with open(f"{a.work}/train.json", "w") as f:
        json.dump({"rates": {" ".join(k): v for k, v in rates.items()}, "runs": every}, f, indent=1)
    print(f"\nload {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""LoRA training with transformers + PEFT (+ bitsandbytes), as bench/train.py and bench/gpu.py run it beside graft.

    python bench/train_peer.py MODEL ROWS... [--dtype f32|bf16] [--nf4] [--upcast] [--checkpointing] [--steps N]
        [--threads N] [--device cuda] [--batch N]
    python bench/train_peer.py --rate f32|bf16        torch's own matrix product in GFLOP/s

ROWS are files that `graft data --dump` wrote: ids and labels are the same for both.
"""
import argparse
import sys
import time

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("model", nargs="?")
    p.add_argument("rows", nargs="*")
    p.add_argument("--dtype", choices=DTYPES, default="f32")
    p.add_argument("--nf4", action="store_true")
    p.add_argument("--upcast", action="store_true", help="prepare_model_for_kbit_training: what is not quantised in f32")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--device", default="cpu")
    p.add_argument("--batch", type=int, default=1, help="rows of a step; all have one length")
    p.add_argument("--rate", choices=DTYPES)
    return p.parse_args()


def print_rate(dtype):
    M, N, K = 512, 4096, 4096
    x, w = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
    best, stop = 1e9, time.perf_counter() + 2
    while time.perf_counter() < stop:
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    print(f"{2 * M * N * K / best / 1e9:.1f} GFLOP/s")


def load(a):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    dtype = DTYPES[a.dtype]
    more = {}
    if a.nf4:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
        more["device_map"] = {"": a.device}
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa", **more)
    if not a.nf4:
        model.to(a.device)
    if a.upcast:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if a.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"))


def train(a):
    from safetensors.torch import load_file
    torch.manual_seed(0)
    model = load(a).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for step in range(a.steps):
        rows = [load_file(a.rows[(step * a.batch + i) % len(a.rows)]) for i in range(a.batch)]
        ids, labels = (torch.stack([row[name].long() for row in rows]).to(a.device) for name in ("input_ids", "labels"))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{a.steps}  loss {loss.item():.4f}", flush=True)
    if a.device != "cpu":
        print(f"memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB", flush=True)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    if a.rate:
        return print_rate(DTYPES[a.rate])
    if not a.model or not a.rows:
        sys.exit("train_peer.py: wanted MODEL and ROWS")
    train(a)


main()

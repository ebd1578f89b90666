#!/usr/bin/env python3
"""Writes the whole-model fixtures under tests/golden/models: what transformers, PEFT and bitsandbytes give.

    python3 tests/golden/reference.py [CASE...]

Read from the bottom: `main` lists the cases. BASES (tiny_models.py) are frozen models, ADAPTERS are trainings on top of
one of them, PROMPTS are greedy answers; chat_text.py turns conversations into tokens. A case folder holds what graft
is run on, and what must come out:

    case.json                     the commands, the comparison, the tolerance, and `noise`: how far the same computation
                                  in double precision lies from the float one; this script stops at a tolerance below
                                  five times the noise
    model/                        a Hugging Face folder (bases only; the others point to one)
    adapter/                      a PEFT folder, the state before training
    config.yaml data.yaml rows.jsonl images/       what `graft train` and `graft eval` read
    expected_rows.jsonl           tokens, scored, loss_sum of each chat row
    expected_log.jsonl            loss, grad_norm before clipping, learning_rate of each step
    expected_adapter.safetensors  after the last step, names as PEFT saves them
    expected.safetensors          rows given as plain arrays, for tests below the command line: ids (N), -1 where a
                                  picture's feature stands; offsets (rows + 1); targets (N), already shifted, -100 where
                                  not scored; pixels (images, 3, H, W); logits (scored, V); loss (rows), the sum over
                                  the scored positions of a row
    expected_grads.safetensors    of the mean loss over those scored positions, names as PEFT saves them

Nothing here is padded: a row is run by itself. All is float32 on the CPU, seeded, and the same on every run.
"""

import copy
import json
import math
import os
import random
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import numpy as np
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import get_scheduler

from chat_text import IGNORED, labels_of, place_pictures, render, sentence
from tiny_models import BASES, OUT, PICTURE, Mllava, is_clip, load_base, per_picture, picture_scale, seed_of, write_json
from tiny_models import write_model

MADE_WITH = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")}
TOLERANCE = {
    "eval": {"rel": 1e-6},
    "train": {"rel": 2e-6, "grad_norm_rel": 3e-5, "update_rel": 5e-4},
    "generate": {},
}

# ---------------------------------------------------------------- rows


def picture_file(rng, path):
    """A small picture with edges and gradients, of any shape; some are under 16 pixels, where Mantis enlarges first."""
    w, h = rng.randint(9, 46), rng.randint(9, 46)
    y, x = np.mgrid[0:h, 0:w]
    wave = [np.sin(x / rng.uniform(2, 9) + c) * 90 + (y * rng.uniform(1, 4)) % 120 for c in range(3)]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.clip(np.stack(wave, -1) + 70, 0, 255).astype(np.uint8)).save(path, optimize=True)


def pixels_of(path, vision):
    """(3, size, size): a side of at least 16; resized on bytes, bicubic, to a square (SigLIP), or the shortest side and cut
    out of the middle (CLIP); x / 255; (x - mean) / std."""
    size, (mean, std) = vision.image_size, picture_scale(vision)
    image = Image.open(path).convert("RGB")
    if min(image.size) < 16:
        scale = max(16 / side for side in image.size)
        image = image.resize([int(side * scale) for side in image.size], Image.BICUBIC)
    wide, high = size, size
    if is_clip(vision):
        wide, high = (int(size * side / min(image.size)) for side in image.size)
    small = image.resize((wide, high), Image.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    small = small.crop((left, top, left + size, top + size))
    x = (np.asarray(small).astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((x - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)


def write_rows(name, folder, count, split, pictures):
    """Chat rows of one to three exchanges, in the two spellings that Mantis takes."""
    rng, rows = random.Random(seed_of(name)), []
    for i in range(count):
        turns = [sentence(rng, 9) for _ in range(2 * rng.choice([1, 1, 2]))]
        row = {"id": f"{name}-{i}"}
        if pictures and i != 1:
            row["images"] = [f"images/{i}_{k}.png" for k in range(rng.randint(1, 2))]
            for path in row["images"]:
                picture_file(rng, folder / path)
            if i % 2 == 0:
                turns[0] = turns[0].replace(" ", " <image> ", 1)
        keys = ("conversation", "role", "content", "user", "assistant")
        if i % 3 == 1:
            keys = ("conversations", "from", "value", "human", "gpt")
        row[keys[0]] = [{keys[1]: keys[3 + k % 2], keys[2]: text} for k, text in enumerate(turns)]
        rows.append(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    entry = {"path": "rows.jsonl", "name": "rows", "split": split, "format": "chat", "type": "json"}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": [entry]}, sort_keys=False))


def turns_of(row):
    turns = row.get("conversation") or row["conversations"]
    return [("assistant" if k % 2 else "user", t.get("content") or t["value"]) for k, t in enumerate(turns)]


def features_of(base):
    """Positions that a picture takes in a base."""
    return per_picture(BASES[base]["vision"](), BASES[base].get("strategy", "default")) if "vision" in BASES[base] else 0


def expand(ids, labels, image_token, features):
    """Each picture's token becomes so many positions; labels move one to the left."""
    out, moved = [], []
    for token, label in zip(ids, labels):
        n = features if token == image_token else 1
        out += [PICTURE] * n if token == image_token else [token]
        moved += [IGNORED if token == image_token else label] * n
    return out, moved[1:] + [IGNORED]


def chat_rows(base, folder):
    """rows.jsonl as a model sees it: ids, targets, pixels."""
    tokenizer = Tokenizer.from_file(str(OUT / base / "model" / "tokenizer.json"))
    vision = BASES[base]["vision"]() if "vision" in BASES[base] else None
    features = features_of(base)
    rows = []
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        images = row.get("images", [])
        ids = tokenizer.encode(render(place_pictures(turns_of(row), len(images)))).ids
        labels = labels_of(ids, tokenizer.token_to_id("<|eot_id|>"))
        ids, targets = expand(ids, labels, tokenizer.token_to_id("<image>"), features)
        pixels = [pixels_of(folder / path, vision) for path in images]
        rows.append({"id": row["id"], "ids": ids, "targets": targets, "pixels": torch.stack(pixels) if pixels else []})
    return rows


def plain_rows(base, name):
    """Three short rows of random tokens, about half of the positions scored, one row with one token."""
    g = torch.Generator().manual_seed(seed_of(name) + 7)
    vision = BASES[base]["vision"]() if "vision" in BASES[base] else None
    rows = []
    for length, pictures in ((9, [4]), (1, []), (14, [0, 11])):
        ids = torch.randint(0, 294, (length,), generator=g).tolist()
        keep = (torch.rand(length, generator=g) < 0.5).tolist()
        labels = [token if k else IGNORED for token, k in zip(ids, keep)]
        pixels = []
        if vision:
            for at in pictures:
                ids[at] = 299
                pixels.append(torch.randn(3, vision.image_size, vision.image_size, generator=g) * 0.5)
            ids, targets = expand(ids, labels, 299, features_of(base))
        else:
            targets = labels[1:] + [IGNORED]
        rows.append({"ids": ids, "targets": targets, "pixels": torch.stack(pixels) if pixels else []})
    return rows


# ---------------------------------------------------------------- what a model gives


def logits_of(model, row):
    """(T, V) of one row: {"ids", "pixels"}."""
    ids = torch.tensor([row["ids"]])
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(inner, Mllava):
        return model(ids, row["pixels"])[0]
    return model(input_ids=ids, use_cache=False).logits[0]


def row_loss(model, row):
    """Sum of the cross entropies of a row's scored positions."""
    return nn.functional.cross_entropy(
        logits_of(model, row), torch.tensor(row["targets"]), ignore_index=IGNORED, reduction="sum"
    )


def scored(row):
    return sum(t != IGNORED for t in row["targets"])


def saved_names(model, tensors):
    """Tensors by parameter name -> by the name under which PEFT saves them."""
    named = get_peft_model_state_dict(model, state_dict=dict(tensors), save_embedding_layers=False)
    for name, value in tensors.items():  # lora_only: PEFT trains and loads the wrapped layers' biases, but saves none
        if not any(value is v for v in named.values()):
            assert name.endswith(".base_layer.bias"), name
            named[name] = value
    return {k: v.detach().float().clone().contiguous() for k, v in named.items()}


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradient(p):
    """Zero for what the loss does not depend on: the last block of the tower."""
    return torch.zeros_like(p) if p.grad is None else p.grad


def write_plain(folder, base, name, model):
    """expected.safetensors, and expected_grads.safetensors where something is trained."""
    rows = plain_rows(base, name)
    total = sum(scored(r) for r in rows)
    model.zero_grad()
    logits, losses = [], []
    for row in rows:
        z = logits_of(model, row)
        keep = torch.tensor(row["targets"]) != IGNORED
        loss = nn.functional.cross_entropy(z[keep], torch.tensor(row["targets"])[keep], reduction="sum")
        if trained(model) and isinstance(model, PeftModel):
            (loss / total).backward()
        logits.append(z[keep].detach())
        losses.append(loss.detach())
    offsets = np.cumsum([0] + [len(r["ids"]) for r in rows])
    tensors = {
        "ids": torch.tensor(sum((r["ids"] for r in rows), []), dtype=torch.int32),
        "targets": torch.tensor(sum((r["targets"] for r in rows), []), dtype=torch.int32),
        "offsets": torch.tensor(offsets, dtype=torch.int64),
        "logits": torch.cat(logits),
        "loss": torch.stack(losses),
    }
    pixels = [r["pixels"] for r in rows if len(r["pixels"])]
    if pixels:
        tensors["pixels"] = torch.cat(pixels)
    save_file(tensors, folder / "expected.safetensors", metadata={"format": "pt"})
    if isinstance(model, PeftModel):
        grads = saved_names(model, {k: gradient(p) for k, p in trained(model).items()})
        save_file(grads, folder / "expected_grads.safetensors", metadata={"format": "pt"})


def train(model, rows, s):
    """The training loop in the open. Returns the log; the model is left as it ends."""
    model.eval()  # no dropout is configured; this only says so
    params = list(trained(model).values())
    opt = torch.optim.AdamW(
        params,
        lr=s["learning_rate"],
        betas=(s["adam_beta1"], s["adam_beta2"]),
        eps=s["adam_epsilon"],
        weight_decay=s["weight_decay"],
    )
    steps = s["max_steps"]
    warmup = s["warmup_steps"] if "warmup_steps" in s else math.ceil(s.get("warmup_ratio", 0) * steps)
    kind, more = s["lr_scheduler_type"], None
    if kind == "wsd":  # warm-up, plateau, and a linear decay over the last tenth
        kind, more = "warmup_stable_decay", {"num_decay_steps": math.ceil(0.1 * steps), "decay_type": "linear"}
    schedule = get_scheduler(kind, opt, warmup, steps, scheduler_specific_kwargs=more)
    size, accum = s["per_device_train_batch_size"], s["gradient_accumulation_steps"]
    log, at = [], 0
    for step in range(steps):
        micro = []
        for _ in range(accum):
            micro.append([rows[(at + i) % len(rows)] for i in range(size)])
            at += size
        total = sum(scored(r) for rs in micro for r in rs)
        opt.zero_grad()
        loss = 0.0
        for rs in micro:
            divisor = total if s["loss_normalization"] == "tokens" else accum * sum(scored(r) for r in rs)
            for row in rs:
                part = row_loss(model, row) / divisor
                part.backward()
                loss += part.item()
        norm = nn.utils.clip_grad_norm_(params, s["max_grad_norm"] or math.inf)
        rate = opt.param_groups[0]["lr"]
        log.append({"step": step + 1, "loss": loss, "grad_norm": norm.item(), "learning_rate": rate})
        opt.step()
        schedule.step()
    return log


def in_double(model):
    """A twin in double precision, the angles of the rotary embedding included. Norms and softmax stay float there."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        if hasattr(module, "inv_freq"):
            module.forward = lambda x, position_ids, m=module: rotary_double(m, position_ids)
    return twin


def rotary_double(module, position_ids):
    angle = position_ids[0].double()[:, None] * module.inv_freq.double()[None]
    angle = torch.cat([angle, angle], -1)[None]
    return angle.cos() * module.attention_scaling, angle.sin() * module.attention_scaling


def largest(values):
    return float(f"{max(values):.1e}")


def noise_of_training(log, log64, init, got, got64):
    """How far double precision moves what is compared, in the units of the tolerances."""
    moved = {k: (got[k] - init[k]).norm().item() for k in got}
    return {
        "rel": largest(abs(a["loss"] / b["loss"] - 1) for a, b in zip(log, log64)),
        "grad_norm_rel": largest(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(log, log64)),
        "update_rel": largest((got[k] - got64[k]).norm().item() / max(moved[k], 1e-12) for k in got),
    }


def write_case(folder, kind, about, run, expect, noise):
    tolerance = TOLERANCE[kind]
    for key, value in noise.items():
        if key in tolerance:
            assert 5 * value <= tolerance[key], f"{folder.name}: {key} {tolerance[key]} under five times {value}"
    case = {"kind": kind, "about": about, "made_with": MADE_WITH, "run": run, "expect": expect}
    write_json(folder / "case.json", {**case, "tolerance": tolerance, "noise": noise})


def common_flags(device="{device}"):
    return ["--device", device, "--dtype", "f32"]


def make_base(name):
    folder = OUT / name
    write_model(name, folder / "model")
    write_rows(name, folder, 4, "val", "vision" in BASES[name])
    model = load_base(name)
    rows = chat_rows(name, folder)
    with torch.no_grad():
        loss = [row_loss(model, r).item() for r in rows]
        if "quantise" in BASES[name]:  # the decoded weights mean what bitsandbytes computes
            real = load_base(name, quantised=True).train()  # in evaluation some processors would compute in bf16
            theirs = [row_loss(real, r).item() for r in rows]
            assert np.allclose(loss, theirs, rtol=1e-4), (name, loss, theirs)
        write_plain(folder, name, name, model)
        double = in_double(model)
        loss64 = [row_loss(double, r).item() for r in rows]
    lines = [
        {"id": r["id"], "tokens": len(r["ids"]), "scored": scored(r), "loss_sum": value} for r, value in zip(rows, loss)
    ]
    (folder / "expected_rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    noise = {"rel": largest(abs(a / b - 1) for a, b in zip(loss, loss64))}
    run = ["eval", "{case}/model", "--data", "{case}/data.yaml", "--split", "val", "--conv_template", "llama_3"]
    run += ["--per_row", "{tmp}/rows.jsonl"] + common_flags()
    write_case(folder, "eval", BASES[name]["about"], [run], {}, noise)
    return f"loss per token {sum(loss) / sum(scored(r) for r in rows):.2f}, noise {noise}"


# ---------------------------------------------------------------- adapters

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

ADAPTERS = {
    "lora": dict(
        about="LoRA on every linear layer: warm-up, cosine, decay, clipping, ragged rows; packed and unpacked alike",
        base="llama",
        lora=dict(r=4, lora_alpha=10, target_modules=ALL_LINEAR),
        train=dict(lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.1, max_grad_norm=0.5),
        twice=True,
    ),
    "rslora": dict(
        about="rank-stabilised LoRA, the mean of micro-batch means, warm-up by ratio, linear decay to zero",
        base="llama",
        lora=dict(r=6, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
        train=dict(lr_scheduler_type="linear", warmup_ratio=0.2, loss_normalization="micro_batch"),
    ),
    "dora": dict(
        about="DoRA, constant rate, other betas and epsilon",
        base="llama",
        lora=dict(r=3, lora_alpha=5, use_dora=True, target_modules=ALL_LINEAR),
        train=dict(lr_scheduler_type="constant", adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-4, weight_decay=0.05),
    ),
    "dora-bias": dict(
        about="DoRA where the frozen layers have biases, which are not scaled",
        base="llama-bias",
        lora=dict(r=2, lora_alpha=3, use_dora=True, target_modules=["q_proj", "o_proj", "up_proj"]),
        train=dict(lr_scheduler_type="cosine", warmup_steps=1),
    ),
    "nf4-lora": dict(
        about="LoRA on NF4",
        base="nf4",
        lora=dict(r=4, lora_alpha=8, target_modules=ALL_LINEAR),
        train=dict(lr_scheduler_type="constant_with_warmup", warmup_steps=3, max_grad_norm=0.3),
    ),
    "nf4-dora": dict(
        about="DoRA on NF4 with double quantisation",
        base="nf4-double",
        lora=dict(r=3, lora_alpha=4, use_dora=True, use_rslora=True, target_modules=ALL_LINEAR),
        train=dict(lr_scheduler_type="cosine", warmup_steps=1, weight_decay=0.02),
    ),
    "fp4-lora": dict(
        about="LoRA on FP4 under a tied head",
        base="fp4",
        lora=dict(r=3, lora_alpha=6, target_modules=["k_proj", "o_proj", "gate_proj"]),
        train=dict(lr_scheduler_type="linear", warmup_steps=1),
    ),
    "patterns": dict(
        about="ranks and alphas by pattern, one layer left out; warm-up, plateau, decay",
        base="qwen2-heads",
        lora=dict(
            r=4,
            lora_alpha=6,
            target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
            exclude_modules=["layers.1.self_attn.v_proj"],
            rank_pattern={"down_proj": 2, "layers.0.self_attn.q_proj": 7},
            alpha_pattern={"down_proj": 9, "layers.1.self_attn.q_proj": 1},
        ),
        train=dict(lr_scheduler_type="wsd", warmup_steps=2),
    ),
    "saved-modules": dict(
        about="LoRA with embedding and head trained whole",
        base="mistral",
        lora=dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
        train=dict(lr_scheduler_type="constant_with_warmup", warmup_steps=2, weight_decay=0.1, learning_rate=0.001),
    ),
    "lora-bias": dict(
        about="a bias beside B (lora_bias)",
        base="llama-bias",
        lora=dict(r=3, lora_alpha=5, lora_bias=True, target_modules=["q_proj", "v_proj", "down_proj"]),
        train=dict(lr_scheduler_type="linear", warmup_steps=2),
    ),
    "bias-all": dict(
        about="LoRA with every bias of the model trained",
        base="llama-bias",
        lora=dict(r=3, lora_alpha=7, bias="all", target_modules=["q_proj", "gate_proj"]),
        train=dict(lr_scheduler_type="cosine", warmup_steps=1, weight_decay=0.1),
    ),
    "bias-lora-only": dict(
        about="LoRA with the biases of its own layers trained, under a tied head",
        base="qwen2",
        lora=dict(r=3, lora_alpha=7, bias="lora_only", target_modules=["q_proj", "v_proj", "o_proj"]),
        train=dict(lr_scheduler_type="constant", adam_beta2=0.98, max_grad_norm=0.0),
    ),
    "mllava-lora": dict(
        about="mllava, LoRA on the language model behind the frozen tower and projector; two rows a micro-batch",
        base="mllava",
        lora=dict(r=3, lora_alpha=6, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj|down_proj)"),
        train=dict(lr_scheduler_type="cosine", warmup_steps=1),
    ),
    "mllava-suffix": dict(
        about="mllava, suffixes that also match the tower: gradients through the projector, no change in the last block",
        base="mllava",
        lora=dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "v_proj"]),
        train=dict(
            lr_scheduler_type="constant",
            per_device_train_batch_size=1,
            loss_normalization="micro_batch",
            weight_decay=0.1,  # what has no gradient does not decay either
        ),
    ),
    "mllava-clip-suffix": dict(
        about="mllava with CLIP, suffixes that match the whole tower and some of the text; a step without pictures",
        base="mllava-clip",
        lora=dict(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
        train=dict(
            lr_scheduler_type="cosine",
            warmup_steps=1,
            weight_decay=0.1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
        ),
    ),
}

SETTINGS = dict(
    max_steps=6,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=0.003,
    lr_scheduler_type="cosine",
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
    max_grad_norm=1.0,
    loss_normalization="tokens",
)


def lora_config(base, lora):
    return LoraConfig(task_type=None if "vision" in BASES[base] else "CAUSAL_LM", lora_dropout=0.0, **lora)


def write_adapter(name, a, folder):
    """A PEFT folder whose tensors have all been moved away from their start, so that each of them matters."""
    model = get_peft_model(load_base(a["base"]), lora_config(a["base"], a["lora"]))
    g = torch.Generator().manual_seed(seed_of(name) + 3)
    with torch.no_grad():
        for key, p in sorted(trained(model).items()):
            noise = torch.randn(p.shape, generator=g)
            if "lora_A" in key:
                p.copy_(noise * 0.9 / math.sqrt(p.shape[1]))
            elif "magnitude" in key:
                p.mul_(1 + 0.1 * noise)
            elif "lora_B" in key:
                p.copy_(noise * 0.15)
            else:
                p.add_(0.05 * noise)
    folder.mkdir()
    save_file(saved_names(model, trained(model)), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items() if k != "runtime_config"}
    config |= {"inference_mode": True, "auto_mapping": None, "base_model_name_or_path": f"../{a['base']}/model"}
    write_json(folder / "adapter_config.json", {k: getattr(v, "value", v) for k, v in config.items()})


def load_adapter(a, folder):
    """As PEFT loads it, ready for training."""
    model = PeftModel.from_pretrained(load_base(a["base"]), folder, is_trainable=True)
    saved, have = load_file(folder / "adapter_model.safetensors"), saved_names(model, trained(model))
    assert saved.keys() == have.keys()
    for key, value in saved.items():
        assert torch.equal(value, have[key]), f"{folder}: PEFT loads another {key}"
    return model


def train_yaml(a, settings):
    lora = a["lora"]
    config = {
        "model_name_or_path": f"../{a['base']}/model",
        "data_config_file": "data.yaml",
        "conv_template": "llama_3",
        "problem_type": "generation",
        "max_seq_len": 2048,
        "finetuning_type": "lora",
        "init_adapter": "adapter",
        "lora_r": lora["r"],
        "lora_alpha": lora["lora_alpha"],
        "lora_dropout": 0.0,
        "use_dora": lora.get("use_dora", False),
        "use_rslora": lora.get("use_rslora", False),
    }
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if key in lora:
            config[key] = lora[key]
    if "bias" in lora or "lora_bias" in lora:
        config["lora_bias"] = lora.get("bias", True)
    fixed = {"shuffle": False, "dataset_balancing": False, "logging_steps": 1, "save_steps": 1000, "report_to": "jsonl"}
    return {**config, **settings, **fixed, "seed": 42}


def make_adapter(name):
    a, folder = ADAPTERS[name], OUT / name
    folder.mkdir(parents=True)
    settings = {**SETTINGS, **a["train"]}
    write_rows(name, folder, 7, "train", "vision" in BASES[a["base"]])
    write_adapter(name, a, folder / "adapter")
    (folder / "config.yaml").write_text(yaml.safe_dump(train_yaml(a, settings), sort_keys=False))
    rows = chat_rows(a["base"], folder)

    model = load_adapter(a, folder / "adapter")
    write_plain(folder, a["base"], name, model)
    double = in_double(model)
    init = saved_names(model, trained(model))
    log, log64 = train(model, rows, settings), train(double, rows, settings)
    final = saved_names(model, trained(model))
    save_file(final, folder / "expected_adapter.safetensors", metadata={"format": "pt"})
    (folder / "expected_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    noise = noise_of_training(log, log64, init, final, saved_names(double, trained(double)))

    run = ["train", "{case}/config.yaml", "--output_dir", "{tmp}/out"] + common_flags()
    runs = [run]
    if a.get("twice"):
        runs.append([w.replace("/out", "/unpacked") for w in run] + ["--packing", "false"])
    lora = a["lora"]
    expect = {"peft_type": "LORA", "r": lora["r"], "lora_alpha": lora["lora_alpha"]}
    expect |= {k: lora[k] for k in ("rank_pattern", "alpha_pattern", "bias", "modules_to_save") if k in lora}
    expect |= {k: lora.get(k, False) for k in ("use_dora", "use_rslora")}
    if lora.get("lora_bias"):  # absent means false, and an old PEFT does not know it
        expect["lora_bias"] = True
    write_case(folder, "train", a["about"], runs, {"adapter_config": expect}, noise)
    norms = " ".join(f"{line['grad_norm']:.2g}" for line in log)
    return f"loss {log[0]['loss']:.3f} -> {log[-1]['loss']:.3f}, gradient norms {norms}, noise {noise}"


# ---------------------------------------------------------------- greedy answers

PROMPTS = {
    "generate-lora": dict(about="greedy text under an adapter", base="llama", adapter="lora"),
    "generate-mistral": dict(about="greedy text beyond the sliding window", base="mistral"),
    "generate-mllava": dict(about="a greedy answer about two pictures, through the llama_3 template", base="mllava"),
}
NEW_TOKENS = 16
WANT_GAP = 0.02  # between the two best logits of every step


def greedy(model, row):
    """New tokens, and the smallest gap on the way. Recomputes everything for each token."""
    row, tokens, gap = dict(row, ids=list(row["ids"])), [], math.inf
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            best = logits_of(model, row)[-1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
        row["ids"].append(tokens[-1])
    return tokens, gap


def make_prompt(name):
    p, folder = PROMPTS[name], OUT / name
    folder.mkdir(parents=True)
    tokenizer = Tokenizer.from_file(str(OUT / p["base"] / "model" / "tokenizer.json"))
    model = load_base(p["base"])
    run = ["generate", f"{{case}}/../{p['base']}/model"]
    if "adapter" in p:
        model = load_adapter(ADAPTERS[p["adapter"]], OUT / p["adapter"] / "adapter").eval()
        run += ["--adapter", f"{{case}}/../{p['adapter']}/adapter"]
    pixels = []
    vision = BASES[p["base"]]["vision"]() if "vision" in BASES[p["base"]] else None
    if vision:
        for k in range(2):
            picture_file(random.Random(k), folder / f"images/{k}.png")
            pixels.append(pixels_of(folder / f"images/{k}.png", vision))
    rng = random.Random(seed_of(name))
    for _ in range(50):
        prompt = sentence(rng, 8)
        if vision:
            prompt = f"What joins <image> and <image>? {prompt}"
            ids = tokenizer.encode(render(place_pictures([("user", prompt)], 2), open_turn=True)).ids
            ids, _ = expand(ids, ids, 299, features_of(p["base"]))
        else:
            ids = tokenizer.encode(prompt).ids
        tokens, gap = greedy(model, {"ids": ids, "pixels": torch.stack(pixels) if pixels else []})
        if gap >= WANT_GAP and not set(tokens) & {294, 295, 298, 299, 300}:
            break
    else:
        raise SystemExit(f"{name}: no prompt has a clear answer")
    run += ["--prompt", prompt]
    for k in range(len(pixels)):
        run += ["--image", f"{{case}}/images/{k}.png"]
    if vision:
        run += ["--conv_template", "llama_3"]
    run += ["--max_new_tokens", str(NEW_TOKENS), "--json"] + common_flags()
    write_case(folder, "generate", p["about"], [run], {"token_ids": tokens}, {"gap": round(gap, 4)})
    return f"{len(set(tokens))} different tokens, smallest gap {gap:.3f}"


def main():
    torch.set_num_threads(1)  # one order of summation on every machine
    torch.use_deterministic_algorithms(True)
    for make, cases in ((make_base, BASES), (make_adapter, ADAPTERS), (make_prompt, PROMPTS)):
        for name in cases:
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            shutil.rmtree(OUT / name, ignore_errors=True)
            print(f"{name:18}", make(name), flush=True)


if __name__ == "__main__":
    main()

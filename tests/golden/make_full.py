"""Full fine-tuning in PyTorch: three steps of AdamW on all parameters of tiny models: tied, untied, one with a tower.

    python tests/golden/make_full.py      writes tests/golden/full/BASE.safetensors and BASE.json

The rows are those of the models' own fixtures, in file order. `distance` is how far float32 is from double precision,
relative to the distance that training went; the tolerance of the test is derived from it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from reference import chat_rows, in_double, train
from tiny_models import OUT, load_base

FULL = Path(__file__).resolve().parent / "full"
SETTINGS = {
    "max_steps": 3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.002,
    "weight_decay": 0.05,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-4,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "loss_normalization": "tokens",
}


def trained_weights(model, rows):
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    log = train(model.requires_grad_(True), rows, SETTINGS)
    return log, before, {k: p.detach() for k, p in model.named_parameters()}


def make(name):
    model = load_base(name)
    rows = chat_rows(name, OUT / name)
    twin = in_double(model)
    log, before, after = trained_weights(model, rows)
    log64, _, after64 = trained_weights(twin, rows)
    distance = max(
        ((after[k].double() - after64[k]).norm() / (after64[k] - before[k].double()).norm()).item()
        for k in after
        if not torch.equal(after[k], before[k])
    )
    loss = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(log, log64))
    save_file({k: v.contiguous() for k, v in after.items()}, FULL / f"{name}.safetensors", metadata={"format": "pt"})
    values = {"settings": SETTINGS, "log": log, "distance": distance, "loss_distance": loss}
    (FULL / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    FULL.mkdir(exist_ok=True)
    torch.manual_seed(0)
    for name in ("qwen2", "llama", "mllava-clip"):
        make(name)

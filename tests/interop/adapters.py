#!/usr/bin/env python3
"""Adapters that graft trains, in the PEFT of this interpreter. `make interop` asks the newest and, where
OLD_PEFT_PYTHON names an interpreter that has it (peft 0.12.0, transformers 4.45.2), the oldest that is supported: the
logits of base and adapter in PEFT against those of the model that graft merges from them, all in float32."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/golden/models"
GRAFT = os.environ.get("GRAFT", str(ROOT / "build/release/graft"))
ADAPTERS = {"lora": "llama", "rslora": "llama", "dora": "llama", "bias-all": "llama-bias", "saved-modules": "mistral"}
ALLOWED = 1e-4  # of the deviation: float32 in another order, and one rounding of the merged weights


def graft(*words):
    subprocess.run([GRAFT, *map(str, words), "--device", "cpu", "--dtype", "f32", "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)


def logits(model):
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)


def difference(name, base, scratch):
    """Of the logits, as a part of their deviation; and how far the adapter is from doing nothing."""
    graft("train", MODELS / name / "config.yaml", "--output_dir", scratch / name, "--max_steps", 4)
    graft("merge", MODELS / base / "model", "--adapter", scratch / name, "--out", scratch / f"{name}-merged")
    plain = load(MODELS / base / "model")
    before = logits(plain)
    got = logits(peft.PeftModel.from_pretrained(plain, scratch / name))
    want = logits(load(scratch / f"{name}-merged"))
    return ((got - want).abs().max() / want.std()).item(), ((before - want).abs().max() / want.std()).item()


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, base in ADAPTERS.items():
            off, effect = difference(name, base, Path(scratch))
            good = off <= ALLOWED < effect
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'} PEFT {peft.__version__}, {name}: {off:.2g} of the deviation, "
                  f"{ALLOWED} allowed; the adapter does {effect:.2g}", flush=True)
    sys.exit(failed > 0)


main()

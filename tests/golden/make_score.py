#!/usr/bin/env python3
"""Writes tests/golden/score: a classification head as transformers and PEFT compute it on the llama base.

adapter/               a PEFT folder (SEQ_CLS) with a score head that the base does not have
expected.safetensors   ids, offsets of rows given as plain numbers, some with the pad id inside or at the end;
                       outputs (rows, 3); for each problem its labels, the loss of every row and, as PROBLEM:KEY,
                       the gradient of the mean loss
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForSequenceClassification

HERE = Path(__file__).parent
BASE, OUT = HERE / "models/llama/model", HERE / "score"
PAD, LABELS = 7, 3
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
NOTES = ("base_model.model.score.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
         "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight")


def make_rows(vocab):
    rows = [torch.randint(8, vocab, (n,)) for n in (1, 5, 9, 12, 6)]
    rows[2][3] = PAD  # inside
    rows[3][-2:] = PAD  # at the end
    rows[4][0] = rows[4][-1] = PAD
    return rows


def make_model():
    settings = {"num_labels": LABELS, "pad_token_id": PAD, "dtype": torch.float32}
    model = LlamaForSequenceClassification.from_pretrained(BASE, **settings)
    config = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(model, config).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name or ("score" in name and p.requires_grad):
            torch.nn.init.normal_(p, std=0.3)
    return model


def labels_of(problem, rows):
    if problem == "regression":
        return 1 + 3 * torch.rand(rows, LABELS)
    return torch.randint(0, LABELS, (rows,)) if problem[0] == "s" else torch.randint(0, 2, (rows, LABELS)).float()


def losses_of(model, problem, rows, labels):
    model.config.problem_type = model.base_model.model.config.problem_type = problem
    return [model(input_ids=ids[None], labels=label[None]).loss for ids, label in zip(rows, labels)]


def main():
    torch.manual_seed(5)
    model = make_model()
    rows = make_rows(model.config.vocab_size)
    OUT.mkdir(exist_ok=True)
    model.save_pretrained(OUT / "adapter")
    (OUT / "adapter/README.md").unlink(missing_ok=True)
    config = OUT / "adapter/adapter_config.json"
    config.write_text(config.read_text().replace(str(BASE), "../../models/llama/model"))
    out = {
        "ids": torch.cat(rows).int(),
        "offsets": torch.tensor([0] + [len(r) for r in rows]).cumsum(0).long(),
        "outputs": torch.cat([model(input_ids=r[None]).logits for r in rows]).detach(),
    }
    for problem in PROBLEMS:
        labels = labels_of(problem, len(rows))
        losses = losses_of(model, problem, rows, labels)
        model.zero_grad()
        torch.stack(losses).mean().backward()
        grads = {n.replace(".default", "").replace(".modules_to_save", ""): p.grad for n, p in model.named_parameters()}
        out[f"{problem}:labels"] = labels.float().reshape(len(rows), -1)
        out[f"{problem}:loss"] = torch.stack(losses).detach()
        out |= {f"{problem}:{key}": grads[key].clone() for key in NOTES}
    save_file(out, OUT / "expected.safetensors")


main()

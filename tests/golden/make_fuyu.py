#!/usr/bin/env python3
"""Writes tests/golden/fuyu: a tiny Fuyu and its gradients as transformers, PEFT and autograd give them.

model/                 config.json in the layout of transformers 4.45, weights under its names
five/                  the same configuration as transformers 5 writes it
flat/                  the same without text_config, as the first published one has it
NAME/                  PEFT folders: lora, dora (the layers that Mantis adapts; PEFT stores the head's weight with them),
                       patches (what pictures go through)
expected.safetensors   two rows end to end: ids (-1 where a patch stands), offsets, targets; sides (n,2) of the pictures
                       in patches, patches end to end; loss (scored), and as NAME:KEY the gradient of the mean loss,
                       full:KEY of every parameter; logits of the last position of the first row
expected.json          by NAME the largest distance of a gradient from that in double precision, relative to its norm
                       and a thousandth of the largest norm

Norms of heads are random and what is rotated is no half of a head, so that what takes one for the other shows."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import torch
from safetensors.torch import save_file
from transformers import FuyuConfig, FuyuForCausalLM

from family import STANDS, losses_of, make_row, start, text_of, write_expected
from tiny_models import randomise, write_json

OUT = Path(__file__).parent / "fuyu"
PATCH, VOCAB = 2, 50
MANTIS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "lm_head"]
ADAPTERS = {
    "lora": dict(r=2, lora_alpha=3, target_modules=MANTIS),
    "dora": dict(r=2, lora_alpha=5, target_modules=MANTIS, use_dora=True),
    "patches": dict(r=2, lora_alpha=4, target_modules=["vision_embed_tokens"]),
}
TEXT = dict(vocab_size=VOCAB, hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3,
            hidden_act="relu2", layer_norm_eps=3e-4, max_position_embeddings=64, qk_layernorm=True)
SIDES = [(2, 3), (1, 1), (3, 2)]


def make_config():
    rope = {"rope_type": "default", "rope_theta": 40.0, "partial_rotary_factor": 0.6}
    return FuyuConfig(text_config={**TEXT, "model_type": "persimmon", "rope_parameters": rope}, patch_size=PATCH,
                      num_channels=3)


def write_configs(config):
    """As transformers 4.45 wrote it, and the flat layout before it."""
    text = {**TEXT, "rope_theta": 40.0, "partial_rotary_factor": 0.6, "tie_word_embeddings": False}
    top = {"model_type": "fuyu", "patch_size": PATCH, "num_channels": 3, "torch_dtype": "float32",
           "tie_word_embeddings": False, "architectures": ["MFuyuForCausalLM"]}
    write_json(OUT / "model/config.json", top | text | {"text_config": {**text, "model_type": "persimmon"}})
    (OUT / "flat").mkdir()
    write_json(OUT / "flat/config.json", top | text)
    config.architectures = ["FuyuForCausalLM"]
    config.save_pretrained(OUT / "five")


def older(key):
    """The name that transformers 4.45 has for a parameter."""
    key = key.replace("model.language_model.", "language_model.model.")
    key = key.replace("model.vision_embed_tokens", "vision_embed_tokens")
    return "language_model." + key if key.startswith("lm_head") else key


def make_rows():
    """Rows of pictures and text, every row of patches with an id behind it."""
    pictures = [torch.randn(high * wide, 3 * PATCH * PATCH) for high, wide in SIDES]
    rows = []
    for pattern in ((4, 0, 3, 1, 5), (2, 2, 6)):
        ids = []
        for k, n in enumerate(pattern):
            if k % 2 == 0:
                ids += torch.randint(1, VOCAB - 1, (n,)).tolist()
                continue
            high, wide = SIDES[n]
            ids += ([STANDS] * wide + [VOCAB - 1]) * high
        rows.append(make_row(ids, [pictures[n] for n in pattern[1::2]]))
    return rows, pictures


def hidden_of(model, row):
    ids, _, pictures = row
    x = model.model.language_model.embed_tokens(ids.clamp(min=0))
    patches = torch.cat(pictures).to(model.model.vision_embed_tokens.weight.dtype)
    x = x.masked_scatter((ids == STANDS)[:, None], model.model.vision_embed_tokens(patches))
    return model.model.language_model(inputs_embeds=x[None]).last_hidden_state[0]


def main():
    start(OUT)
    config = make_config()
    model = FuyuForCausalLM._from_config(config, attn_implementation="eager").eval()
    randomise(model, 71)
    rows, pictures = make_rows()
    write_configs(config)
    weights = {older(k): v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, OUT / "model/model.safetensors", metadata={"format": "pt"})
    out = text_of(rows) | {"sides": torch.tensor(SIDES), "patches": torch.cat([p.flatten() for p in pictures])}
    with torch.no_grad():
        out["logits"] = model.lm_head(hidden_of(model, rows[0])[-1])
    results_of = lambda model, name: losses_of(model, rows, hidden_of)
    write_expected(OUT, out, model, ADAPTERS, results_of, lambda losses, name: losses.mean(), older)


main()

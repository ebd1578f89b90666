#!/usr/bin/env python3
"""Writes tests/golden/idefics2: a tiny Idefics2 and its gradients as transformers, PEFT and autograd give them.

model/                 config.json in the layout of transformers 4.45, weights
five/                  the same configuration as transformers 5 writes it
NAME/                  PEFT folders: lora, dora (text and connector, as Mantis trains), vision (the tower), score (with
                       a head that the base does not have)
expected.safetensors   two rows end to end: ids (-1 where a picture's feature stands), offsets, targets; pictures of
                       three sizes: sides (n,2), pixels and positions end to end; loss (scored), outputs and labels of
                       the head, and as NAME:KEY the gradient of the mean loss, full:KEY of every parameter
expected.json          by NAME the largest distance of a gradient from that in double precision, relative to its norm
                       and a thousandth of the largest norm

Positions of patches are given, not computed: the rule for them belongs to the data. Each picture goes through the tower
alone, so what leaks from one to another shows. Latents and patch embeddings are small, so a wrong epsilon shows."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Idefics2Config, Idefics2ForConditionalGeneration

from family import STANDS, losses_of, make_row, start, text_of, write_expected
from tiny_models import randomise, without_layout5, write_json

OUT = Path(__file__).parent / "idefics2"
LATENTS, PATCH, GRID, VOCAB, LABELS = 3, 3, 4, 50, 5
MANTIS = r".*(text_model|modality_projection|perceiver_resampler).*(down|gate|up|k|q|v|o)_proj.*$"
ADAPTERS = {
    "lora": dict(r=2, lora_alpha=3, target_modules=MANTIS),
    "dora": dict(r=2, lora_alpha=5, target_modules=MANTIS, use_dora=True),
    "vision": dict(r=2, lora_alpha=4, target_modules=r".*vision_model.*\.1\..*(q_proj|out_proj|fc1)"),
    "score": dict(r=2, lora_alpha=3, target_modules=r".*\.(q_proj|down_proj)", modules_to_save=["score"]),
}
SIDES = [(2, 3), (4, 4), (1, 5)]  # in patches; the last is wider than the learned grid


def make_config():
    text = dict(
        model_type="mistral",
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        sliding_window=9,
        rms_norm_eps=3e-4,
        max_position_embeddings=64,
    )
    vision = dict(
        hidden_size=18,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=PATCH * GRID,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    perceiver = dict(
        resampler_n_latents=LATENTS,
        resampler_depth=2,
        resampler_n_heads=4,
        resampler_head_dim=5,
        num_key_value_heads=2,
        hidden_size=24,
        rms_norm_eps=3e-4,
    )
    return Idefics2Config(text_config=text, vision_config=vision, perceiver_config=perceiver, image_token_id=VOCAB - 1)


def write_config(config):
    """As transformers 4.45 wrote it: the perceiver's width and epsilon are not there."""
    tree = config.to_dict()
    keep = {k: tree[k] for k in ("image_token_id", "model_type", "tie_word_embeddings")}
    text = without_layout5({**tree["text_config"], "dtype": "float32"})
    perceiver = {k: v for k, v in tree["perceiver_config"].items() if k.startswith("resampler") or "heads" in k}
    vision = {k: v for k, v in tree["vision_config"].items() if k not in ("model_type", "dtype")}
    parts = {"text_config": text, "perceiver_config": perceiver, "vision_config": vision}
    more = {"architectures": ["Idefics2ForConditionalGeneration"], "torch_dtype": "float32", "pad_token_id": 0}
    write_json(OUT / "model/config.json", keep | parts | more)


def make_model():
    config = make_config()
    config._attn_implementation = "eager"
    model = Idefics2ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    randomise(model, 71)
    with torch.no_grad():
        model.model.connector.perceiver_resampler.latents.normal_(0, 0.02, generator=torch.Generator().manual_seed(3))
    model.score = nn.Linear(24, LABELS)
    nn.init.normal_(model.score.weight, std=0.2)
    nn.init.normal_(model.score.bias, std=0.2)
    return model


def make_rows():
    """Rows of pictures and text."""
    pictures = []
    for high, wide in SIDES:
        grid = [(i * GRID // high) * GRID + j * GRID // wide for i in range(high) for j in range(wide)]
        pictures.append((torch.randn(3, high * PATCH, wide * PATCH), torch.tensor(grid)))
    rows = []
    for pattern, its in (((4, 0, 5, 1, 8), pictures[:2]), ((2, 0, 6), pictures[2:])):
        ids = []
        for k, n in enumerate(pattern):
            ids += [STANDS] * LATENTS if k % 2 else torch.randint(1, VOCAB - 1, (n,)).tolist()
        rows.append(make_row(ids, its))
    return rows


def features_of(model, pixels, positions):
    vision, one = model.model.vision_model, pixels[None].to(model.lm_head.weight.dtype)
    x = vision.embeddings.patch_embedding(one).flatten(2).transpose(1, 2)
    x = x + vision.embeddings.position_embedding(positions)[None]
    x = vision.post_layernorm(vision.encoder(inputs_embeds=x).last_hidden_state)
    return model.model.connector(x, attention_mask=torch.ones(1, x.shape[1], dtype=torch.bool))[0]


def hidden_of(model, row):
    ids, _, pictures = row
    x = model.model.text_model.embed_tokens(ids.clamp(min=0))
    features = torch.cat([features_of(model, *picture) for picture in pictures])
    x = x.masked_scatter((ids == STANDS)[:, None], features)
    return model.model.text_model(inputs_embeds=x[None]).last_hidden_state[0]


def outputs_of(model, rows):
    return torch.stack([model.score(hidden_of(model, row)[-1]) for row in rows])


def main():
    start(OUT)
    model, rows = make_model(), make_rows()
    write_config(model.config)
    model.config.architectures = ["Idefics2ForConditionalGeneration"]
    model.config.save_pretrained(OUT / "five")
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("score")}
    save_file(weights, OUT / "model/model.safetensors", metadata={"format": "pt"})
    pictures, labels = [p for row in rows for p in row[2]], 1 + 3 * torch.rand(len(rows), LABELS)
    out = text_of(rows) | {
        "sides": torch.tensor([p.shape[1:] for p, _ in pictures]),
        "pixels": torch.cat([p.flatten() for p, _ in pictures]),
        "positions": torch.cat([at for _, at in pictures]).int(),
        "labels": labels,
    }
    results_of = lambda model, name: outputs_of(model, rows) if name == "score" else losses_of(model, rows, hidden_of)
    loss_of = lambda results, name: ((results - labels) ** 2).mean() if name == "score" else results.mean()
    write_expected(OUT, out, model, ADAPTERS, results_of, loss_of)


main()

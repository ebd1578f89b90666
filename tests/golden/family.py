"""What the scripts of a family's tiny model share: adapters with values, losses and gradients of rows, and how far those
in float are from those in double precision.

A row holds ids (-1 where a picture stands), targets, moved already, and its pictures."""

import copy
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from tiny_models import write_json

STANDS, IGNORED = -1, -100  # a picture in ids; a target that is not scored


def start(out):
    torch.manual_seed(9)
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    (out / "model").mkdir(parents=True)


def make_row(ids, pictures):
    targets = [IGNORED if i % 3 == 0 or t == STANDS else t for i, t in enumerate(ids)][1:] + [IGNORED]
    return torch.tensor(ids), torch.tensor(targets), pictures


def text_of(rows):
    """The rows without their pictures, end to end."""
    return {
        "ids": torch.cat([row[0] for row in rows]).int(),
        "targets": torch.cat([row[1] for row in rows]).int(),
        "offsets": torch.tensor([0] + [len(row[0]) for row in rows]).cumsum(0),
    }


def losses_of(model, rows, hidden_of):
    """Of every scored position."""
    losses = []
    for row in rows:
        scored = row[1] != IGNORED
        logits = model.lm_head(hidden_of(model, row)[scored])
        losses.append(nn.functional.cross_entropy(logits, row[1][scored], reduction="none"))
    return torch.cat(losses)


def adapted(model, settings, folder):
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(**settings)).eval()
    g = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for key, p in sorted(peft.named_parameters()):
            if "lora_B" in key:
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
            elif "magnitude" in key:
                p.mul_(1 + 0.1 * torch.randn(p.shape, generator=g))
    peft.peft_config["default"].base_model_name_or_path = "../model"
    peft.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return peft


def distance(got, exact):
    """Some gradients are zero but for rounding (a bias of keys moves all scores of a row alike), hence the floor."""
    floor = 1e-3 * max(g.norm() for g in exact.values())
    return max(((g.double() - exact[k]).norm() / (exact[k].norm() + floor)).item() for k, g in got.items())


def step(kind, name, results_of, loss_of, older):
    """The results, and gradients of what is trained by the names that PEFT saves with."""
    wrapped = isinstance(kind, PeftModel)
    begin = "base_model.model." if wrapped else ""
    results = results_of(kind.base_model.model if wrapped else kind, name)
    loss_of(results, name).backward()
    short = lambda n: n.replace(".default", "").replace(".modules_to_save", "").replace("vector.weight", "vector")
    grads = {n: p.grad for n, p in kind.named_parameters() if p.grad is not None and p.requires_grad}
    return results.detach(), {begin + older(short(n)[len(begin):]): g.contiguous() for n, g in grads.items()}


def write_expected(folder, out, model, adapters, results_of, loss_of, older=lambda key: key):
    """Adds to out, by name, results_of(model, name) and the gradients of loss_of(results, name). older gives a parameter
    the name that it has in the model's files."""
    noise = {}
    kinds = {"full": model} | {name: adapted(model, settings, folder / name) for name, settings in adapters.items()}
    for name, kind in kinds.items():
        double = copy.deepcopy(kind).double()
        out[f"{name}:loss"], got = step(kind, name, results_of, loss_of, older)
        noise[name] = distance(got, step(double, name, results_of, loss_of, older)[1])
        out |= {f"{name}:{k}": g for k, g in got.items()}
    save_file(out, folder / "expected.safetensors")
    write_json(folder / "expected.json", noise)
    print(noise, len(out))

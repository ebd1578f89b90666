#!/usr/bin/env python3
"""Makes tests/golden/merge: what PEFT's merge_and_unload gives for the adapters of tests/golden/models, and for some on a
model whose output layer is tied to its embedding (their folders lie here).

NAME.safetensors holds the tensors that differ from the base, in float32; a 4-bit base is dequantised first.
pair.safetensors is lora and rslora together, with weights 0.75 and -0.5.
"""

import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from tiny_models import OUT, load_base

HERE = Path(__file__).parent / "merge"
ADAPTERS = {
    "lora": "llama", "rslora": "llama", "dora": "llama", "dora-bias": "llama-bias", "lora-bias": "llama-bias",
    "bias-all": "llama-bias", "bias-lora-only": "qwen2", "saved-modules": "mistral", "patterns": "qwen2-heads",
    "nf4-lora": "nf4", "nf4-dora": "nf4-double", "fp4-lora": "fp4", "mllava-lora": "mllava", "mllava-suffix": "mllava",
}
TIED = {  # on qwen2
    "tied-saved": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tied-embed": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "tied-target": dict(target_modules=["lm_head", "v_proj"]),
}


def state(model):
    return {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}


def save(name, base, merged):
    before, after = state(load_base(base)), state(merged)
    changed = {k: v for k, v in after.items() if k not in before or not torch.equal(v, before[k])}
    save_file(changed, HERE / f"{name}.safetensors")


def make_tied(name, settings):
    """An adapter with numbers in all of its tensors, and what it is after merging."""
    torch.manual_seed(len(name))
    model = get_peft_model(load_base("qwen2"), LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = HERE / name
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    base = load_base("qwen2")  # merging in place would change the embedding along with the head
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    save(name, "qwen2", PeftModel.from_pretrained(base, folder).merge_and_unload())


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    for name, base in ADAPTERS.items():
        save(name, base, PeftModel.from_pretrained(load_base(base), OUT / name / "adapter").merge_and_unload())
    pair = PeftModel.from_pretrained(load_base("llama"), OUT / "lora" / "adapter", adapter_name="lora")
    pair.load_adapter(OUT / "rslora" / "adapter", adapter_name="rslora")
    for name, weight in (("lora", 0.75), ("rslora", -0.5)):
        for module in pair.modules():
            if isinstance(getattr(module, "scaling", None), dict) and name in module.scaling:
                module.scaling[name] *= weight
    save("pair", "llama", pair.merge_and_unload(adapter_names=["lora", "rslora"]))
    for name, settings in TIED.items():
        make_tied(name, settings)


main()

"""The tiny frozen models of the fixtures as Hugging Face folders: BASES, write_model, load_base."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from chat_text import IGNORED, PICTURE_TOKENS, SPECIALS, make_tokenizer

OUT = Path(__file__).resolve().parent / "models"
PICTURE = -1  # in ids: a position that holds a picture's feature


def is_clip(vision):
    return isinstance(vision, CLIPVisionConfig)


def per_picture(vision, strategy="default"):
    """Features of a picture: of CLIP a class token and the patches; "default" leaves the first out, whatever it is."""
    return (vision.image_size // vision.patch_size) ** 2 + is_clip(vision) - (strategy == "default")


def picture_scale(vision):
    """Mean and standard deviation of the three colours."""
    if is_clip(vision):
        return [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return [0.5] * 3, [0.5] * 3


class Tower(nn.Module):
    def __init__(self, config, strategy):
        super().__init__()
        self.vision_model = CLIPVisionModel(config) if is_clip(config) else SiglipVisionModel(config)
        self.first = 1 if strategy == "default" else 0

    def forward(self, pixels):
        """The second last block's output: what Mantis takes from a tower."""
        return self.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, self.first :]


class Projector(nn.Module):
    def __init__(self, wide, out):
        super().__init__()
        self.linear_1 = nn.Linear(wide, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x):
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))  # erf


class Mllava(nn.Module):
    """Mantis' LLaVA from transformers' parts; the names of its parameters are those of the published checkpoints."""

    def __init__(self, vision, text, strategy="default"):
        super().__init__()
        self.vision_tower = Tower(vision, strategy)
        self.multi_modal_projector = Projector(vision.hidden_size, text.hidden_size)
        self.language_model = LlamaForCausalLM(text)

    def forward(self, ids, pixels):
        x = self.language_model.get_input_embeddings()(ids.clamp(min=0))
        if len(pixels):
            features = self.multi_modal_projector(self.vision_tower(pixels.to(x.dtype)))
            x = x.masked_scatter((ids == PICTURE).unsqueeze(-1), features)
        return self.language_model(inputs_embeds=x).logits


def make_mllava(base):
    return Mllava(base["vision"](), base["config"](), base.get("strategy", "default"))


def randomise(model, seed):
    """Weights large enough that heads, positions and biases matter, small enough that the loss is not saturated."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.15 * noise)
            elif "patch_embedding" in name or "position_embedding" in name:
                p.copy_(0.01 * noise)  # small: a wrong epsilon of the tower's first norm shows
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embed" in name or "lm_head" in name:
                p.copy_(0.35 * noise)
            else:
                p.copy_(noise * 1.1 / math.sqrt(p[0].numel()))


def without_layout5(config):
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    return config


COMMON = dict(num_hidden_layers=2, max_position_embeddings=2048, bos_token_id=294, eos_token_id=298, pad_token_id=None)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def text_config(kind, **more):
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    tied = more.pop("tied", False)
    return classes[kind](**{"vocab_size": 299, "tie_word_embeddings": tied, **COMMON, **more})


def make_llama(**more):
    sizes = dict(hidden_size=32, intermediate_size=60, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5)
    return text_config("llama", **{**sizes, **more})


def make_clip(**more):
    return CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, projection_dim=16, **more
    )


BASES = {
    "llama": dict(
        about="Llama: grouped heads, llama3 rope scaling; config.json of transformers 4",
        config=lambda: make_llama(rope_parameters=dict(LLAMA3_ROPE)),
        layout=4,
    ),
    "llama-bias": dict(
        about="Llama with all biases, linear rope scaling, a vocabulary with spare rows; config.json of transformers 5",
        config=lambda: make_llama(
            hidden_size=36,
            intermediate_size=52,
            num_attention_heads=3,
            num_key_value_heads=3,
            attention_bias=True,
            mlp_bias=True,
            vocab_size=307,
            rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.5),
        ),
        layout=5,
    ),
    "mistral": dict(
        about="Mistral: one key head, rows longer than the sliding window",
        config=lambda: text_config(
            "mistral",
            hidden_size=40,
            intermediate_size=64,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=21,
            rms_norm_eps=1e-5,
        ),
        layout=4,
    ),
    "qwen2": dict(
        about="Qwen2: biases on q, k, v; the embedding is also the head",
        config=lambda: text_config(
            "qwen2", hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, tied=True
        ),
        layout=4,
    ),
    "qwen2-heads": dict(
        about="Qwen2 whose heads are wider than hidden size / heads; config.json of transformers 5",
        config=lambda: text_config(
            "qwen2",
            hidden_size=32,
            intermediate_size=56,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=14,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        layout=5,
    ),
    "nf4": dict(
        about="NF4 checkpoint of bitsandbytes, Llama",
        config=lambda: make_llama(
            hidden_size=40, intermediate_size=84, num_attention_heads=5, num_key_value_heads=1
        ),
        layout=5,
        quantise=dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False),
    ),
    "nf4-double": dict(
        about="NF4 checkpoint with double quantisation, Mistral",
        config=lambda: text_config(
            "mistral",
            hidden_size=40,
            intermediate_size=100,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=None,
            rms_norm_eps=1e-5,
        ),
        layout=5,
        quantise=dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    ),
    "fp4": dict(
        about="FP4 checkpoint with double quantisation, Qwen2 with tied embeddings",
        config=lambda: text_config(
            "qwen2", hidden_size=40, intermediate_size=84, num_attention_heads=5, num_key_value_heads=1, tied=True
        ),
        layout=5,
        quantise=dict(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    ),
    "mllava": dict(
        about="mllava: SigLIP tower, layer -2 without its first patch, erf projector, Llama; pictures placed or not",
        config=lambda: make_llama(vocab_size=301),
        vision=lambda: SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=21,
            patch_size=7,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
        ),
        layout=4,
    ),
    "mllava-clip": dict(
        about="mllava: CLIP tower with a class token, which is left out; patches that do not fill the picture",
        config=lambda: make_llama(vocab_size=301),
        vision=lambda: make_clip(image_size=23, patch_size=7),
        layout=4,
    ),
    "mllava-clip-full": dict(
        about="mllava: CLIP tower whose class token is a feature too; gelu",
        config=lambda: make_llama(vocab_size=301),
        vision=lambda: make_clip(image_size=16, patch_size=8, hidden_act="gelu", layer_norm_eps=3e-5),
        strategy="full",
        layout=4,
    ),
}


def seed_of(name):
    """A number that depends on the name alone."""
    return sum((i + 1) * b for i, b in enumerate(name.encode())) % 99991


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_model(name, folder):
    """The Hugging Face folder of a base."""
    base = BASES[name]
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    if "vision" in base:
        model = make_mllava(base)
    else:
        model = AutoModelForCausalLM.from_config(base["config"](), dtype=torch.float32)
    randomise(model, seed_of(name))
    if "vision" in base:
        write_mllava(base, model, folder)
    elif "quantise" in base:
        write_quantised(base, model, folder)
    else:
        model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if base["layout"] == 4 and "vision" not in base:
        write_json(folder / "config.json", without_layout5(json.loads((folder / "config.json").read_text())))
    write_tokenizer(folder, PICTURE_TOKENS if "vision" in base else [])


def write_tokenizer(folder, extra):
    make_tokenizer(extra).save(str(folder / "tokenizer.json"), pretty=False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[4],
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_mllava(base, model, folder):
    text, vision = base["config"]().to_dict(), base["vision"]()
    text = without_layout5({**text, "dtype": "float32", "architectures": ["LlamaForCausalLM"]})
    keys = "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size hidden_act"
    shape = {k: getattr(vision, k) for k in ["layer_norm_eps", *keys.split()]}
    if is_clip(vision):  # published ones leave out what is the default of the class
        shape = {k: v for k, v in shape.items() if v != getattr(CLIPVisionConfig(), k)}
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "ignore_index": IGNORED,
            "image_token_index": 299,
            "pad_token_id": 300,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": base.get("strategy", "default"),
            "text_config": text,
            "vision_config": {"model_type": vision.model_type} | shape,
            "torch_dtype": "float32",
            "transformers_version": "4.45.2",
        },
    )
    size = {"height": vision.image_size, "width": vision.image_size}
    kind = {"image_processor_type": "SiglipImageProcessor", "size": size}
    if is_clip(vision):
        kind = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": vision.image_size},
            "do_center_crop": True,
            "crop_size": size,
        }
    mean, std = picture_scale(vision)
    write_json(
        folder / "preprocessor_config.json",
        {
            "processor_class": "MLlavaProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "image_mean": mean,
            "image_std": std,
        }
        | kind,
    )
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def write_quantised(base, model, folder):
    """Through transformers and bitsandbytes, as a user makes such a checkpoint."""
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **base["quantise"])
        loaded = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=how, dtype=torch.float32, device_map="cpu"
        )
        loaded.save_pretrained(folder)


def dequantise(tensors):
    """Plain weights of a bitsandbytes checkpoint, by definition: code[nibble] * absmax, blocks over the flat weight."""
    plain = {}
    for name, value in tensors.items():
        state = next((k for k in tensors if k.startswith(name + ".quant_state.")), None)
        if any(f".weight.{k}" in name for k in ("absmax", "quant_map", "nested_", "quant_state")):
            continue
        if state is None:
            plain[name] = value.float()
            continue
        info = json.loads(bytes(tensors[state].tolist()))
        absmax = tensors[name + ".absmax"]
        if "nested_offset" in info:
            scale = tensors[name + ".nested_absmax"].repeat_interleave(info["nested_blocksize"])[: len(absmax)]
            offset = np.float32(info["nested_offset"]).item()
            absmax = tensors[name + ".nested_quant_map"][absmax.long()] * scale + offset
        packed = value.flatten().long()
        codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: math.prod(info["shape"])]
        values = tensors[name + ".quant_map"][codes] * absmax.repeat_interleave(info["blocksize"])[: len(codes)]
        plain[name] = values.reshape(info["shape"])
    return plain


def load_base(name, quantised=False):
    """The frozen model of a folder, in float32; 4-bit weights are decoded first, or left to bitsandbytes."""
    base, folder = BASES[name], OUT / name / "model"
    if "vision" in base:
        model = make_mllava(base)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    elif "quantise" in base and not quantised:
        model = AutoModelForCausalLM.from_config(base["config"](), dtype=torch.float32)
        found = model.load_state_dict(dequantise(load_file(folder / "model.safetensors")), strict=False)
        assert not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight"}, found
        model.tie_weights()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()

#!/usr/bin/env python3
"""Makes what bench/train.py trains: models with random weights in published shapes, F32 and BF16, a tokenizer, chat rows;
and for bench/merge_peer.py an adapter beside each model, as if it had been trained.

    python bench/train_setup.py DIR [shape ...]

Needs what bench/requirements.txt lists. A model that is there already is left alone.
"""
import json
import os
import random
import sys

import tokenizers
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

ROWS = 16
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS = (
    "river quiet walk beside small winter light cat water stone bread fall bright slow morning garden house hill "
    "keep under past every somebody between letter window answer carry yellow paper follow summer silver"
).split()


def smollm2_135m():
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048, rope_theta=1e5, rms_norm_eps=1e-5))


def qwen25_05b():
    return Qwen2ForCausalLM(Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6))


SHAPES = {"smollm2-135m": smollm2_135m, "qwen2.5-0.5b": qwen25_05b}


def make_rows():
    """Rows of more than 512 tokens, of which about five sixths are the answer; training cuts them at 512."""
    rng = random.Random(1)
    text = lambda n: " ".join(rng.choice(WORDS) for _ in range(n))
    return [{"id": f"row{i}", "conversation": [{"role": "user", "content": text(60)},
                                               {"role": "assistant", "content": text(600)}]} for i in range(ROWS)]


def make_tokenizer(rows):
    """Byte level, with the special tokens of Llama 3; a few hundred entries, the model's other ids are never met."""
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=512, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator((turn["content"] for row in rows for turn in row["conversation"]), trainer)
    t.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return t


def save_model(shape, where, tokenizer):
    if os.path.exists(f"{where}/{shape}-bf16/tokenizer_config.json"):
        return
    torch.manual_seed(0)
    model = SHAPES[shape]()
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        folder = f"{where}/{shape}-{name}"
        model.to(dtype).save_pretrained(folder)
        tokenizer.save(f"{folder}/tokenizer.json")
        with open(f"{folder}/tokenizer_config.json", "w") as f:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[4]}, f)


def save_adapter(shape, where):
    if os.path.exists(f"{where}/{shape}-adapter"):
        return
    torch.manual_seed(1)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(f"{where}/{shape}-f32"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    model.save_pretrained(f"{where}/{shape}-adapter")


def main():
    where, shapes = sys.argv[1], sys.argv[2:] or list(SHAPES)
    os.makedirs(where, exist_ok=True)
    rows = make_rows()
    with open(f"{where}/rows.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    with open(f"{where}/data.yaml", "w") as f:
        f.write("data:\n- {path: rows.jsonl, name: rows, split: train, format: chat, type: json}\n")
    tokenizer = make_tokenizer(rows)
    for shape in shapes:
        save_model(shape, where, tokenizer)
        save_adapter(shape, where)


main()

#!/usr/bin/env python3
"""What graft writes, loaded by those it is written for: `make interop`.

  GGUF models     llama.cpp's logits against transformers'
  GGUF adapters   merged by graft, and hung into the model by llama.cpp, against PEFT
  GGUF blocks     the bytes of each matrix against ggml's own quantiser
  vision          llama.cpp's features of a picture against transformers'
  tokenizers      llama.cpp's token ids against transformers'
  checkpoints     graft merge and graft quantize, loaded by transformers, against graft's own answer

llama.cpp is that of llama-cpp-python, or of the folder that LLAMA_CPP_LIB_PATH names. With --record the digests of the
files that passed are written to tests/golden/gguf/digests.json, which tests/test_export.c compares with."""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp as L
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/golden/models"
GRAFT = os.environ.get("GRAFT", str(ROOT / "build/release/graft"))
TEXT_MODELS = "llama llama-bias mistral qwen2 mllava mllava-clip nf4 nf4-double fp4".split()
ADAPTERS = {"lora": "llama", "rslora": "llama", "mllava-lora": "mllava"}
MERGED_ONLY = {"mllava-suffix": "mllava", "dora": "llama", "bias-all": "llama-bias", "saved-modules": "mistral",
               "nf4-lora": "nf4"}
TOKENIZERS = ["llama3", "qwen2", "smollm", "mistral"]
TYPES = {"f16": 2.0**-7, "bf16": 2.0**-4, "q8_0": 2.0**-2, "q4_0": 2.0, "q4_k": 2.0}  # activations are rounded too
TEXTS = [
    "Hello, World! It's 12345 tests:\n\n  \tdon't  stop",
    "éà日本語 \u00a0 a1b2 'RE x'll  \n \n\nend   ",
    "  two  blanks, 3.14159 and 1,000,000;\t\ttabs ... !!!",
    "The quick brown fox (jumps) over [the] lazy_dog; naïve façade €5 — “quoted”.",
]

quiet = L.llama_log_callback(lambda *a: None)
failures = []


def report(name, good, text):
    print(f"{'ok  ' if good else 'FAIL'} {name}: {text}", flush=True)
    if not good:
        failures.append(name)


def graft(*words, text=None):
    return subprocess.run([GRAFT, *map(str, words)], input=text, capture_output=True, check=True).stdout


class Llama:
    """A GGUF file in llama.cpp, with all of its arithmetic and its cache in fp32."""

    def __init__(self, path, lora=None):
        params = L.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = L.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        params = L.llama_context_default_params()
        params.n_ctx = params.n_batch = 256
        params.n_threads = 1
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        self.context = L.llama_init_from_model(self.model, params)
        self.vocab = L.llama_model_get_vocab(self.model)
        if lora:
            adapter = L.llama_adapter_lora_init(self.model, str(lora).encode())
            assert adapter, f"llama.cpp does not load {lora}"
            self.hang(adapter)

    def hang(self, adapter):
        if hasattr(L, "llama_set_adapters_lora"):
            pointers = (type(adapter) * 1)(adapter) if not isinstance(adapter, int) else (ctypes.c_void_p * 1)(adapter)
            L.llama_set_adapters_lora(self.context, pointers, 1, (ctypes.c_float * 1)(1.0))
        else:
            L.llama_set_adapter_lora(self.context, adapter, 1.0)

    def logits(self, ids):
        batch = L.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert L.llama_decode(self.context, batch) == 0
        size = L.llama_vocab_n_tokens(self.vocab)
        rows = [np.ctypeslib.as_array(L.llama_get_logits_ith(self.context, i), (size,)).copy() for i in range(len(ids))]
        L.llama_batch_free(batch)
        return np.array(rows)

    def tokens(self, text):
        data, room = text.encode(), 4096
        ids = (ctypes.c_int32 * room)()
        return list(ids[: L.llama_tokenize(self.vocab, data, len(data), ids, room, True, True)])

    def close(self):
        L.llama_free(self.context)
        L.llama_model_free(self.model)


def llama_logits(path, ids, lora=None):
    model = Llama(path, lora)
    out = model.logits(ids)
    model.close()
    return out


def reference(folder):
    """The model in transformers in fp32; 4-bit weights as graft dequantises them, since bitsandbytes on the CPU reads
    some block sizes wrongly."""
    config = json.loads((folder / "config.json").read_text())
    pictures = config["model_type"] in ("llava", "idefics2")
    cls = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def test_ids(folder):
    config = json.loads((folder / "config.json").read_text())
    vocab = config.get("vocab_size") or config["text_config"]["vocab_size"]
    picture = config.get("image_token_index", config.get("image_token_id", -1))  # no text has it alone
    length = min(48, config.get("sliding_window") or 48)  # llama.cpp's Mistral has no window
    ids = np.random.default_rng(3).integers(0, vocab, length)
    return [int(i) for i in ids if i != picture]


def compare(name, got, want, tolerance):
    """Largest difference over the spread of the logits."""
    worst = float(np.abs(got - want).max() / want.std())
    report(name, worst <= tolerance, f"largest difference {worst:.2g} of the deviation, {tolerance:.2g} allowed")


EXACT = 1e-4  # both in fp32, sums in another order


def check_idefics2(tmp):
    folder, path = tmp / "idefics2", tmp / "idefics2.gguf"
    graft("init", "idefics2-tiny", "--out", folder)
    graft("export", folder, "--out", path, "--type", "f32")
    ids = test_ids(folder)
    compare("model idefics2", llama_logits(path, ids), torch_logits(reference(folder), ids), EXACT)


def check_models(tmp, digests):
    check_idefics2(tmp)
    for name in TEXT_MODELS:
        folder, path, ids = MODELS / name / "model", tmp / f"{name}.gguf", test_ids(MODELS / name / "model")
        graft("export", folder, "--out", path, "--type", "f32")
        if (folder / "config.json").read_text().find("quantization_config") >= 0:
            plain = tmp / f"{name}-plain"
            zeros(folder, tmp / f"{name}-zeros", name)
            graft("merge", folder, "--adapter", tmp / f"{name}-zeros", "--out", plain, "--dtype", "f32")
            folder = plain
        compare(f"model {name}", llama_logits(path, ids), torch_logits(reference(folder), ids), EXACT)
        digests[name] = digest(path)


def zeros(folder, out, name):
    """An adapter that changes nothing."""
    from safetensors.numpy import save_file

    out.mkdir()
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["o_proj"], "task_type": "CAUSAL_LM",
              "layers_to_transform": [0]}
    (out / "adapter_config.json").write_text(json.dumps(config))
    stem = "base_model.model.model.layers.0.self_attn.o_proj.lora_"
    heads = json.loads((folder / "config.json").read_text())
    width = heads["num_attention_heads"] * (heads.get("head_dim") or hidden // heads["num_attention_heads"])
    tensors = {stem + "A.weight": np.zeros((1, width), np.float32)}
    tensors[stem + "B.weight"] = np.zeros((hidden, 1), np.float32)
    save_file(tensors, out / "adapter_model.safetensors")


def check_adapters(tmp, digests):
    for name, base in {**ADAPTERS, **MERGED_ONLY}.items():
        folder, adapter = MODELS / base / "model", MODELS / name / "adapter"
        path, ids = tmp / f"{name}-merged.gguf", test_ids(MODELS / base / "model")
        graft("export", folder, "--adapter", adapter, "--out", path, "--type", "f32")
        if base == "nf4":
            plain = tmp / "nf4-lora-plain"
            graft("merge", folder, "--adapter", adapter, "--out", plain, "--dtype", "f32")
            want = torch_logits(reference(plain), ids)
        else:
            want = torch_logits(PeftModel.from_pretrained(reference(folder), adapter).eval(), ids)
        compare(f"merged {name}", llama_logits(path, ids), want, EXACT)
        if name in ADAPTERS:
            alone, plain = tmp / f"{name}-alone.gguf", tmp / f"{base}.gguf"
            graft("export", folder, "--adapter", adapter, "--part", "adapter", "--out", alone)
            if not plain.exists():
                graft("export", folder, "--out", plain, "--type", "f32")
            compare(f"adapter {name}", llama_logits(plain, ids, alone), want, EXACT)
            digests[f"{name}-alone"] = digest(alone)


def base_library():
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(L.__file__).parent / "lib")
    return ctypes.CDLL(str(folder / "libggml-base.so"))


def check_types(tmp, digests):
    ggml = base_library()
    folder, plain = tmp / "wide", tmp / "wide.gguf"
    make_blocks(folder)
    graft("export", folder, "--out", plain, "--type", "f32")
    ids = test_ids(folder)
    want = torch_logits(reference(folder), ids)
    full = {t.name: t.data for t in gguf.GGUFReader(plain).tensors}
    for kind, tolerance in TYPES.items():
        path = tmp / f"wide-{kind}.gguf"
        graft("export", folder, "--out", path, "--type", kind)
        compare(f"type {kind}", llama_logits(path, ids), want, tolerance)
        other = []
        for tensor in gguf.GGUFReader(path).tensors:
            x = np.ascontiguousarray(full[tensor.name], np.float32)
            if tensor.tensor_type.name == "Q4_K":
                bytes_of = np.zeros(tensor.data.nbytes, np.uint8)
                to, of = bytes_of.ctypes.data_as(ctypes.c_void_p), x.ctypes.data_as(ctypes.c_void_p)
                ggml.quantize_row_q4_K_ref(of, to, ctypes.c_int64(x.size))
            else:
                bytes_of = gguf.quants.quantize(x, tensor.tensor_type).view(np.uint8).ravel()
            if not np.array_equal(bytes_of, tensor.data.view(np.uint8).ravel()):
                other.append(tensor.name)
        report(f"bytes {kind}", not other, f"tensors that differ from ggml's: {other or 'none'}")


def llama_features(model_path, vision_path, picture, width):
    """(places, width) of one picture (height, width, 3) of the tower's size."""
    import llama_cpp.mtmd_cpp as M

    model = L.llama_model_load_from_file(str(model_path).encode(), L.llama_model_default_params())
    params = M.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.warmup = False, False, False
    context = M.mtmd_init_from_file(str(vision_path).encode(), model, params)
    assert context, f"llama.cpp does not load {vision_path}"
    pixels = (ctypes.c_uint8 * picture.size).from_buffer_copy(picture.tobytes())
    bitmap = M.mtmd_bitmap_init(picture.shape[1], picture.shape[0], pixels)
    text = M.mtmd_input_text()
    text.text = M.mtmd_get_marker(context)
    text.text_len = len(text.text)
    chunks = M.mtmd_input_chunks_init()
    assert M.mtmd_tokenize(context, chunks, ctypes.byref(text), (M.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
    for i in range(M.mtmd_input_chunks_size(chunks)):
        chunk = M.mtmd_input_chunks_get(chunks, i)
        if M.mtmd_input_chunk_get_type(chunk) != 1:
            continue
        assert M.mtmd_encode_chunk(context, chunk) == 0
        shape = (M.mtmd_input_chunk_get_n_tokens(chunk), width)
        out = np.ctypeslib.as_array(M.mtmd_get_output_embd(context), shape).copy()
    M.mtmd_free(context)
    L.llama_model_free(model)
    return out


def torch_features(folder, picture):
    """The same by transformers' modules, each patch in the place that llama.cpp gives it: it looks at all patches, and
    puts CLIP's class token behind them before it leaves out the first row."""
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (np.array(settings.get(key, [0.5] * 3)) for key in ("image_mean", "image_std"))
    pixels = torch.tensor(((picture / 255.0 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    model = reference(folder).model
    tower = getattr(model.vision_tower, "vision_model", model.vision_tower)
    layer = config["vision_feature_layer"]
    with torch.no_grad():
        x = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        clip = hasattr(tower.embeddings, "class_embedding")
        if clip:
            x = torch.cat([x, tower.embeddings.class_embedding[None, None]], 1)
        x = x + tower.embeddings.position_embedding.weight[None]
        x = tower.pre_layrnorm(x) if clip else x
        for block in tower.encoder.layers[: len(tower.encoder.layers) + layer + 1 if layer < 0 else layer]:
            x = block(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
        return model.multi_modal_projector(x[:, 1:] if clip else x)[0].numpy()


def check_vision(tmp, digests):
    for name in ("mllava", "mllava-clip"):
        folder, plain, vision = MODELS / name / "model", tmp / f"{name}-text.gguf", tmp / f"{name}-vision.gguf"
        config = json.loads((folder / "config.json").read_text())
        graft("export", folder, "--out", plain, "--type", "f32")
        graft("export", folder, "--part", "vision", "--out", vision, "--type", "f32")
        size = config["vision_config"]["image_size"]
        picture = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
        got = llama_features(plain, vision, picture, config["text_config"]["hidden_size"])
        compare(f"vision {name}", got, torch_features(folder, picture), 2.0**-7)  # two formulas of GELU
        digests[f"{name}-vision"] = digest(vision)


def check_tokenizers(tmp, digests):
    for name in TOKENIZERS:
        folder = tmp / f"tokenizer-{name}"
        source = ROOT / "tests/golden/tokenizer" / name
        preset = {"qwen2": "qwen2-tiny", "mistral": "mistral-tiny"}.get(name, "llama-tiny")
        graft("init", preset, "--out", folder, "--tokenizer", source)
        path = tmp / f"tokenizer-{name}.gguf"
        graft("export", folder, "--out", path, "--type", "f16")
        model, wrong = Llama(path), 0
        for text in TEXTS:
            ours = json.loads("[" + ",".join(graft("tokenize", folder, text=text.encode()).decode().split()) + "]")
            wrong += model.tokens(text) != ours
        model.close()
        report(f"tokenizer {name}", wrong == 0, f"{wrong} of {len(TEXTS)} texts are cut otherwise")


def make_blocks(out):
    """A small model whose rows are whole blocks of 256: Q4_K has such, and bitsandbytes on the CPU wants 64."""
    graft("init", "llama-tiny", "--out", out, "--seed", 9)
    config = AutoConfig.from_pretrained(out)
    config.hidden_size, config.intermediate_size = 256, 512
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 32
    torch.manual_seed(9)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(out)


def check_checkpoints(tmp, digests):
    folder, adapter = MODELS / "llama/model", MODELS / "lora/adapter"
    merged, plain, four = tmp / "merged", tmp / "plain", tmp / "nf4"
    graft("merge", folder, "--adapter", adapter, "--out", merged)
    make_blocks(plain)
    graft("quantize", plain, "--out", four)
    ids = test_ids(folder)
    want = torch_logits(PeftModel.from_pretrained(reference(folder), adapter).eval(), ids)
    compare("transformers merged", torch_logits(reference(merged), ids), want, EXACT)
    for name, path in (("merged", merged), ("nf4", four)):
        prompt = AutoTokenizer.from_pretrained(path)("The capital of France is", return_tensors="pt")
        model = reference(path)
        theirs = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1]:].tolist()
        said = graft("generate", path, "--prompt", "The capital of France is", "--max_new_tokens", 8, "--json",
                     "--dtype", "f32")
        ours = json.loads(said)["token_ids"]
        report(f"greedy {name}", ours == theirs[: len(ours)], f"graft {ours}, transformers {theirs}")


def digest(path):
    """FNV-1a of all bytes, 64 bits."""
    h = 0xCBF29CE484222325
    for byte in path.read_bytes():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write tests/golden/gguf/digests.json")
    parser.add_argument("only", nargs="*", help="models, adapters, types, vision, tokenizers, checkpoints")
    args = parser.parse_args()
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    torch.set_num_threads(1)
    digests = {}
    checks = {"models": check_models, "adapters": check_adapters, "types": check_types,
              "vision": check_vision, "tokenizers": check_tokenizers,
              "checkpoints": check_checkpoints}
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks.items():
            if not args.only or name in args.only:
                check(Path(folder), digests)
    if args.record and not failures:
        (ROOT / "tests/golden/gguf/digests.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    print(f"{len(failures)} failures", *failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

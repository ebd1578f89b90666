"""What the scripts that make tokenizers, pictures and rows share."""

import json

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def picture(w, h, k):
    rng = np.random.RandomState(k)
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([127 + 120 * np.sin(x / 7 + y / 11 + k), (x * 5 + y * 3 + 40 * k) % 256, 255 * (x // 4 + y // 5) % 256], -1)
    return Image.fromarray(np.clip(a + rng.randn(h, w, 3) * 6, 0, 255).astype(np.uint8))


def byte_pieces():
    return [f"<0x{i:02X}>" for i in range(256)]


def sentencepiece_normalizer():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def sentencepiece_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def sentencepiece_bpe(corpus, size):
    """A tokenizer with the pieces of bytes before what the corpus teaches."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + byte_pieces() + [w for w, _ in sorted(model["vocab"].items(), key=lambda x: x[1])]
    return Tokenizer(models.BPE({w: i for i, w in enumerate(tokens)}, [tuple(m) for m in model["merges"]],
                                unk_token="<unk>", fuse_unk=True, byte_fallback=True))

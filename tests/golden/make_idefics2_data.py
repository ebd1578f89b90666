"""Makes tests/golden/idefics2_data: a tokenizer of Mistral's legacy kind, processor files, pictures, rows, and what they
become: transformers' slow processor, tokenizers, jinja2, and torch as the vision embeddings of Idefics2 use it.

    python tests/golden/make_idefics2_data.py        (from the repository root; Pillow, numpy, torch, tokenizers, jinja2,
                                                      transformers)

Patch positions are those of torch with vectors of 8 floats (AVX2), which is what it uses for arange on x86.
"""
import json
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment
from PIL import Image
from tokenizers import AddedToken, processors
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from data_files import fnv, picture, sentencepiece_bpe, sentencepiece_decoder, sentencepiece_normalizer, write

OUT = Path("tests/golden/idefics2_data")
FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
LATENTS, PATCH, SIDE = 3, 7, 9
WORDS = "User : Assistant : what do they show ? two boats and a dog , it's the first one . Why not here".split()
TEMPLATE = ("{% for message in messages %}{{message['role'].capitalize()}}{% if message['content'][0]['type'] == 'image' %}"
            "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
            "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
            "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
BASE = {"image_processor_type": "Idefics2ImageProcessor", "do_convert_rgb": True, "do_image_splitting": False,
        "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 1 / 255, "size": {"shortest_edge": 20, "longest_edge": 64}}
KINDS = {
    "plain": {},
    "split": {"do_image_splitting": True},
    "tight": {"size": {"shortest_edge": 29, "longest_edge": 36}, "resample": 3, "image_mean": [0.4, 0.5, 0.6],
              "image_std": [0.2, 0.25, 0.3]},
    "square": {"size": {"height": 33, "width": 50}},
    "as_it_is": {"do_resize": False},
    "split_as_it_is": {"do_resize": False, "do_image_splitting": True},
}
# Wide and tall beyond the longest edge, below the shortest one, thinner than 16, one pixel over a patch, whole patches.
SIZES = [(61, 47), (300, 17), (19, 400), (15, 9), (22, 29), (28, 21), (64, 64), (65, 20), (43, 58)]


# ---------------------------------------------------------------- text


def tokenizer():
    t = sentencepiece_bpe([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], 90)
    t.normalizer, t.decoder = sentencepiece_normalizer(), sentencepiece_decoder()
    t.add_special_tokens([AddedToken(s, normalized=False) for s in ("<unk>", "<s>", "</s>", FAKE, IMAGE, END)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


def expand(text, pieces):
    text = text.replace(IMAGE, (FAKE + IMAGE * LATENTS + FAKE) * pieces)
    return text.replace(FAKE + FAKE, FAKE)


def idefics_2(turns, missing):
    turns = [("User" if i % 2 == 0 else "Assistant", said) for i, said in enumerate(turns)]
    turns[0] = ("User", IMAGE * missing + turns[0][1])
    return "".join(f"{who}:{said}{END}\n" for who, said in turns)


def own(turns, missing, open_=False):
    turns = [IMAGE * missing + turns[0]] + turns[1:]
    messages = []
    for i, said in enumerate(turns):
        parts = []
        for k, part in enumerate(said.split(IMAGE)):
            if k:
                parts.append({"type": "image"})
            if part:
                parts.append({"type": "text", "text": part})
        messages.append({"role": "user" if i % 2 == 0 else "assistant", "content": parts})
    return Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE).render(
        messages=messages, add_generation_prompt=open_)


def by_separators(ids, end, image):
    """What follows the separators 0, 2, 4, ... up to the next one; pictures are not learned."""
    at = [i for i, x in enumerate(ids) if x == end]
    out = [-100] * len(ids)
    for k in range(0, len(at), 2):
        stop = at[k + 1] + 1 if k + 1 < len(at) else len(ids)
        out[at[k] + 1:stop] = ids[at[k] + 1:stop]
    return [-100 if x == image else x for x in out]


# ---------------------------------------------------------------- pictures


def mantis(im, most):
    w, h = im.size
    if most and max(w, h) > most:
        scale = most / max(w, h)
        im = im.resize((int(w * scale), int(h * scale)))
    w, h = im.size
    if w < 16 or h < 16:
        scale = max(16 / w, 16 / h)
        im = im.resize((int(w * scale), int(h * scale)))
    return im


def buckets(n, side):
    borders = torch.arange(1 / side, 1.0, 1 / side)
    return torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / torch.tensor(n)), borders, right=True)


def look(kind, images, most=0):
    """What a row's pictures become, padded to its largest, and what the tower sees of each."""
    images = [mantis(im, most) for im in images]
    out = Idefics2ImageProcessorPil(**{k: v for k, v in (BASE | KINDS[kind]).items() if k != "image_processor_type"})(
        images, return_tensors="np")
    pixels, mask = out["pixel_values"][0].astype(np.float32), out["pixel_attention_mask"][0].astype(np.int32)
    n, _, H, W = pixels.shape
    whole = torch.from_numpy(mask).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).sum((-1, -2)) > 0
    positions, sizes, towers = np.zeros((n, (H // PATCH) * (W // PATCH)), np.int32), [], []
    for i in range(n):
        rows, cols = int(whole[i][:, 0].sum()), int(whole[i][0].sum())
        at = buckets(rows, SIDE)[:, None] * SIDE + buckets(cols, SIDE)
        positions[i][whole[i].flatten().numpy()] = at.flatten().numpy()
        sizes.append([int(mask[i][:, 0].sum()), int(mask[i][0].sum())])
        seen = np.ascontiguousarray(pixels[i][:, :rows * PATCH, :cols * PATCH])
        towers.append([rows * PATCH, cols * PATCH, fnv(seen.tobytes())])
    return {"shape": list(pixels.shape), "sizes": sizes, "pixels": fnv(np.ascontiguousarray(pixels).tobytes()),
            "mask": fnv(mask.tobytes()), "positions": fnv(positions.tobytes()), "tower": towers}


def main():
    t = tokenizer()
    (OUT / "model").mkdir(parents=True, exist_ok=True)
    t.save(str(OUT / "model/tokenizer.json"))
    write(OUT / "model/tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    write(OUT / "model/chat_template.json", {"chat_template": TEMPLATE})
    for kind, settings in KINDS.items():
        write(OUT / f"{kind}/preprocessor_config.json", BASE | settings)
        write(OUT / f"{kind}/processor_config.json", {"image_seq_len": LATENTS})
        write(OUT / f"{kind}/chat_template.json", {"chat_template": TEMPLATE})
    pictures = []
    for k, (w, h) in enumerate(SIZES):
        pictures.append(picture(w, h, k))
        pictures[-1].save(OUT / f"{k}.png")
    end, image = t.token_to_id(END), t.token_to_id(IMAGE)

    chats = [  # pictures, turns
        ([0, 1], ["<image> or <image>: which one?", "The first.", "Why?", "It's here.\nYes."]),
        ([2, 3, 4], ["What do they show?", "Two boats and 12 dogs — ü."]),
        ([5], ["Look <image> here", "A dog."]),
        ([6, 7, 8, 0], ["<image><image> <image>", "Dogs."]),
        ([5, 5], ["One <image>", "and <image>."]),
        ([], ["Hello <fake_token_around_image><fake_token_around_image><fake_token_around_image>", "None"]),
    ]
    rows = [{"id": f"c{i}", "images": [f"{k}.png" for k in which],
             "conversations": [{"from": "human" if j % 2 == 0 else "gpt", "value": s} for j, s in enumerate(turns)]}
            for i, (which, turns) in enumerate(chats)]
    write(OUT / "chat.json", rows)
    prompts = [([1, 2, 3], "\nGive scores: two boats\n"), ([4, 0], "Rate it.\n<image> then the rest: "),
               ([8, 7, 6, 5, 4, 3, 2, 1, 0], "\n")]
    write(OUT / "scores.json", [{"id": f"s{i}", "images": [f"{k}.png" for k in which], "prompt": s, "labels": {"a": 1, "b": i}}
                          for i, (which, s) in enumerate(prompts)])

    expected = []
    for kind in KINDS:
        pieces = 5 if "split" in kind else 1
        for most in (0, 40):
            for i, (which, turns) in enumerate(chats):
                missing = len(which) - "".join(turns).count(IMAGE)
                ids = t.encode(expand(idefics_2(turns, missing), pieces)).ids
                e = {"kind": kind, "file": "chat.json", "row": i, "max_image_size": most, "ids": ids,
                     "labels": by_separators(ids, end, image)}
                expected.append(e | (look(kind, [pictures[k] for k in which], most) if which else {}))
            for i, (which, prompt) in enumerate(prompts):
                text = prompt + (IMAGE + " ") * (len(which) - prompt.count(IMAGE))
                ids = t.encode(expand(text, pieces)).ids
                expected.append({"kind": kind, "file": "scores.json", "row": i, "max_image_size": most, "ids": ids,
                                 "labels": [1, i]} | look(kind, [pictures[k] for k in which], most))
    (OUT / "expected.json").write_text("[\n" + ",\n".join(json.dumps(e, separators=(",", ":")) for e in expected) + "\n]\n")

    conversations = []
    for pieces in (1, 5):
        for which, turns in chats:
            missing = len(which) - "".join(turns).count(IMAGE)
            ids = t.encode(expand(own(turns, missing), pieces), add_special_tokens=False).ids
            labels, cut = [-100] * len(ids), 0
            for k in range(1, len(turns), 2):
                start = len(t.encode(expand(own(turns[:k], missing, True), pieces), add_special_tokens=False).ids)
                stop = max(i for i, x in enumerate(t.encode(expand(own(turns[:k + 1], missing), pieces),
                                                            add_special_tokens=False).ids) if x == end) + 1
                labels[start:stop] = ids[start:stop]
            conversations.append({"pieces": pieces, "ids": ids, "labels": [-100 if x == image else x for x in labels]})
    write(OUT / "own.json", conversations)

    asked = []
    for pieces in (1, 5):
        for images, text in ((2, "<image><image>What do they show?"), (1, "Why <image> not"), (2, "Why not"), (0, "Why?"),
                             (3, "one <image> here")):
            missing = images - text.count(IMAGE)
            open_ = f"User:{IMAGE * missing}{text}{END}\nAssistant:"
            asked.append({"pieces": pieces, "images": images, "text": text,
                          "ids": t.encode(expand(open_, pieces)).ids,
                          "own": t.encode(expand(own([text], missing, True), pieces), add_special_tokens=False).ids})
    write(OUT / "prompts.json", asked)

    table = []
    for side in (1, 2, 3, 7, 9, 11, 16, 24, 27, 32, 70, 100):
        every = np.concatenate([buckets(n, side).numpy().astype(np.int32) for n in range(1, 130)])
        table.append({"side": side, "hash": fnv(every.tobytes())})
    odd = [n for n in range(1, 71) if buckets(n, 70).tolist() != [i * 70 // n for i in range(n)]]
    write(OUT / "buckets.json", {"most": 129, "sides": table, "odd": [{"n": n, "buckets": buckets(n, 70).tolist()} for n in odd]})


main()

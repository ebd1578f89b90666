"""Makes tests/golden/fuyu_data: a Unigram tokenizer, processor files, pictures, rows, and what they become: the picture
side by transformers (resize, patches) and numpy, a picture at a time; text and patches in one stream by Mantis' rules.

    python tests/golden/make_fuyu_data.py       (from the repository root; Pillow, numpy, tokenizers, transformers)
"""
import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, models
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

from data_files import byte_pieces, fnv, picture, sentencepiece_decoder, sentencepiece_normalizer, write

OUT = Path("tests/golden/fuyu_data")
PATCH, NEWLINE, BEGIN, END, ANSWER, CLOSE = "|SPEAKER|", "|NEWLINE|", "|IMAGE|", "|ENDOFIMAGE|", "<0x04>", "|ENDOFTEXT|"
SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user "
          "provides, and assist the user with a variety of tasks using natural language.\n")
BASE = {"image_processor_type": "FuyuImageProcessor", "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": 0.5, "image_std": 0.5, "padding_mode": "constant", "padding_value": 1.0,
        "patch_size": {"height": 8, "width": 8}, "resample": 2, "rescale_factor": 1 / 255,
        "size": {"height": 40, "width": 56}}
KINDS = {
    "plain": {},
    "tight": {"size": {"height": 16, "width": 72}, "padding_value": 200.9, "image_mean": [0.4, 0.5, 0.6],
              "image_std": [0.2, 0.25, 0.3]},
    "whole": {"do_resize": False, "size": {"height": 80, "width": 96}},
}
# Fits as it is, too wide, too high, one row of patches, a multiple of the patch, one pixel more.
SIZES = [(43, 35), (90, 30), (31, 77), (50, 16), (56, 40), (57, 41)]


def tokenizer():
    words = "You are a helpful vision assistant image 0 1 2 3 USER : ASSISTANT the user what is it dog boat . ? , and".split()
    letters = sorted({c for c in SYSTEM if c.isalpha()})
    vocab = [(t, 0.0) for t in ("<unk>", "<s>", "</s>")] + [(p, 0.0) for p in byte_pieces()]
    vocab += [(t, 0.0) for t in (PATCH, NEWLINE, CLOSE)] + [("▁", -3.0)]
    seen = {p for p, _ in vocab}
    for i, piece in enumerate(dict.fromkeys(words + ["▁" + w for w in words] + letters)):
        if piece not in seen:
            vocab.append((piece, -5.0 - i * 0.0625))
    t = Tokenizer(models.Unigram(vocab, 0, True))
    t.normalizer, t.decoder = sentencepiece_normalizer(), sentencepiece_decoder()
    t.add_special_tokens([AddedToken(s, normalized=False) for s in ("<unk>", "<s>", "</s>", CLOSE, BEGIN, END)])
    return t


def patches_of(kind, im):
    """(patches, 192) and the shape of the grid."""
    settings = {k: v for k, v in (BASE | KINDS[kind]).items() if k != "image_processor_type"}
    mean, std = np.float32(settings["image_mean"]), np.float32(settings["image_std"])
    p = FuyuImageProcessorPil(**settings)
    a = np.array(im)
    if settings["do_resize"]:
        a = np.moveaxis(p.resize(np.moveaxis(a, -1, 0), size=p.size, resample=p.resample), 0, -1)
    high, wide = (min(m, -(-n // 8) * 8) for m, n in zip((p.size.height, p.size.width), a.shape))
    room = np.full((p.size.height, p.size.width, 3), settings["padding_value"]).astype(np.uint8)
    room[: a.shape[0], : a.shape[1]] = a
    x = (room.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    x = ((x - mean) / std)[:high, :wide]
    rows = p.patchify_image(np.ascontiguousarray(np.moveaxis(x, -1, 0))[None])
    return rows.astype(np.float32), (high // 8, wide // 8)


def stream(t, text, grids, most):
    """Ids, and how many pictures are whole in them."""
    enc, one = lambda s: t.encode(s, add_special_tokens=False).ids, t.token_to_id
    if not grids:
        ids = enc(text.replace("<image>", ""))
        return (ids[:most] if most else ids), 0
    parts = text.split("<image>")
    parts = parts[: len(grids)] + ["".join(parts[len(grids):])]
    out = []
    for j, part in enumerate(parts):
        last = j == len(parts) - 1
        ids = enc(part if last else f"{part}image {j}: ")
        ids = ([one(END)] if j else []) + ([one("<s>")] if ids else []) + ids + ([] if last else [one(BEGIN)])
        if most and len(out) + len(ids) > most:
            return out, j
        out += ids
        if last:
            break
        ids = ([one(PATCH)] * grids[j][1] + [one(NEWLINE)]) * grids[j][0]
        if most and len(out) + len(ids) > most:
            return out, j
        out += ids
    return out, len(grids)


def labels(t, ids):
    """From behind each separator through the closing token, or to the end."""
    out, on = [-100] * len(ids), False
    for i, x in enumerate(ids):
        if on:
            out[i] = x
        on = x == t.token_to_id(ANSWER) or (on and x != t.token_to_id(CLOSE))
    return out


def main():
    t = tokenizer()
    (OUT / "model").mkdir(parents=True, exist_ok=True)
    t.save(str(OUT / "model/tokenizer.json"))
    write(OUT / "model/tokenizer_config.json", {"bos_token": CLOSE, "eos_token": CLOSE, "unk_token": "<unk>"})
    for kind, settings in KINDS.items():
        write(OUT / f"{kind}/preprocessor_config.json", BASE | settings)
    pictures = [picture(w, h, k) for k, (w, h) in enumerate(SIZES)]
    for k, im in enumerate(pictures):
        im.save(OUT / f"{k}.png")
    chats = [  # pictures, turns
        ([0, 1], ["<image> and <image>: what is it?", "It is a dog.", "Why?", "a boat, ü"]),
        ([2], ["what is it?", "a dog<image>"]),  # a picture in an answer, and nothing missing
        ([3, 4], ["<image>", "a boat", "and the last", "<image>"]),
        ([5, 0], ["what is it?", "dogs"]),
        ([], ["what is <image>it?", "a dog"]),
    ]
    for i, (which, turns) in enumerate(chats):
        write(OUT / f"chat_{i}.json", [{"id": f"c{i}", "images": [f"{k}.png" for k in which], "conversations": [
            {"from": "human" if j % 2 == 0 else "gpt", "value": s} for j, s in enumerate(turns)]}])
    expected = []
    for kind in KINDS:
        for i, (which, turns) in enumerate(chats):
            missing = len(which) - sum(s.count("<image>") for s in turns)
            turns = ["<image>" * missing + turns[0]] + turns[1:]
            text = SYSTEM + "".join(f"USER: {s}{ANSWER}" if j % 2 == 0 else f"ASSISTANT: {s}{CLOSE}" for j, s in enumerate(turns))
            made = [patches_of(kind, pictures[k]) for k in which]
            whole, _ = stream(t, text, [g for _, g in made], 0)
            for most in (0, len(whole) - 2, len(whole) - 40, 70):
                ids, placed = stream(t, text, [g for _, g in made], most)
                e = {"kind": kind, "row": i, "max_seq_len": most, "ids": ids, "labels": labels(t, ids), "pictures": placed}
                if which:
                    every = np.concatenate([p for p, _ in made])
                    e |= {"patches": len(every), "values": fnv(every.tobytes()), "sides": [list(g) for _, g in made]}
                if ids:  # a budget below the first part leaves nothing, which is an error
                    expected.append(e)
    (OUT / "expected.json").write_text("[\n" + ",\n".join(json.dumps(e, separators=(",", ":")) for e in expected) + "\n]\n")
    asked = []
    for images, text in ((2, "<image><image>what is it?"), (1, "what <image> is it"), (2, "what is it"), (0, "what is it?"),
                         (1, "one <image> and <image> here")):
        open_ = SYSTEM + f"USER: {text}{ANSWER}ASSISTANT:"
        missing = images - text.count("<image>")
        if missing > 0:
            open_ = open_.replace("USER:", "USER:" + "<image>" * missing, 1)
        grids = [patches_of("plain", pictures[k])[1] for k in range(images)]
        asked.append({"images": images, "text": text, "ids": stream(t, open_, grids, 0)[0]})
    write(OUT / "prompts.json", asked)


main()

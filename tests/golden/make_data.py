"""Makes tests/golden/data: a byte-level tokenizer of the Llama-3 kind without merges, a processor file, three pictures, rows,
and what tokenizers gives for them. Run from the repository root; needs tokenizers and pillow."""
import json
import random
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from data_files import write

OUT = Path("tests/golden/data")
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>",
           "<end_of_utterance>", "</s>", "<0x04>", "|ENDOFTEXT|", "<image>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

OPEN = 'Open [end], {x} "] "}'


def tokenizer():
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    bos = SPECIAL[0]
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", bos + ":1", "$B:1"],
                                      special_tokens=[(bos, t.token_to_id(bos))])])
    return t


def llama_3(turns):
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"
    text = header("system") + "You are a pirate chatbot who always responds in pirate speak!<|eot_id|>"
    return text + "".join(header(role) + said + "<|eot_id|>" for role, said in turns)


def pictures(text, count):
    parts = text.split("<image>")
    out = parts[0]
    for k, part in enumerate(parts[1:], 1):
        out += (f"(image {k}: <Image><image></Image>)" if k <= count else "") + part
    return out


def labels(ids, eot):
    """What follows the separators 1, 3, 5, ... up to the next one."""
    at = [i for i, x in enumerate(ids) if x == eot]
    out = [-100] * len(ids)
    for k in range(1, len(at), 2):
        end = at[k + 1] + 1 if k + 1 < len(at) else len(ids)
        out[at[k] + 1:end] = ids[at[k] + 1:end]
    return out


def main():
    (OUT / "model").mkdir(parents=True, exist_ok=True)
    (OUT / "images").mkdir(exist_ok=True)
    t = tokenizer()
    t.save(str(OUT / "model/tokenizer.json"))
    write(OUT / "model/tokenizer_config.json", {"bos_token": SPECIAL[0], "eos_token": "<|im_end|>", "chat_template": CHATML})
    write(OUT / "model/preprocessor_config.json", {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": 28, "width": 28}})
    for k in range(3):
        Image.new("RGB", (20 + k, 16), (40 * k, 255 - 60 * k, 90)).save(OUT / f"images/{k}.png")

    rows = [
        {"id": "two", "images": ["images/0.png", "images/1.png"], "conversation": [
            {"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "Both."}]},
        {"id": 7, "images": ["images/0.png", {"path": "images/2.png"}], "conversations": [
            {"from": "gpt", "value": "Hi."}, {"from": "human", "value": "See <image>."},
            {"from": "gpt", "value": "Grün, \"ja\"."}, {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "It's \\ so.\n"}]},
        {"id": "surplus", "image": "images/1.png", "conversation": [
            {"role": "user", "text": "<image><image> one"}, {"role": "assistant", "text": "See <image>."}]},
        {"conversation": [{"role": "user", "content": "None"}, {"role": "assistant", "content": "No."},
                          {"role": "user", "content": OPEN}]},
    ]
    write(OUT / "rows.json", rows)
    (OUT / "rows.jsonl").write_text("\n" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
    text = [{"id": f"t{i}", "conversation": [{"role": "user", "content": "q" * (i + 1)},
                                            {"role": "assistant", "content": "a" * (2 * i + 1)}]} for i in range(7)]
    write(OUT / "text.json", text)

    texts = [
        pictures(llama_3([("user", "<image> or <image>?"), ("assistant", "Both.")]), 2),
        pictures(llama_3([("user", "<image>See <image>."), ("assistant", 'Grün, "ja".'), ("user", "Why?"),
                          ("assistant", "It's \\ so.\n")]), 2),
        pictures(llama_3([("user", "<image><image> one"), ("assistant", "See <image>.")]), 1),
        pictures(llama_3([("user", "None"), ("assistant", "No."), ("user", OPEN)]), 0),
    ]
    eot = t.token_to_id("<|eot_id|>")
    expected = []
    for s in texts:
        ids = t.encode(s).ids
        expected.append({"text": s, "ids": ids, "labels": labels(ids, eot)})
    write(OUT / "expected.json", expected)

    shuffled = {}
    for n in (1, 2, 10, 1000):
        order = list(range(n))
        random.seed(42)
        random.shuffle(order)
        shuffled[n] = order
    write(OUT / "shuffled.json", shuffled)


main()

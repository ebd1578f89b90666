"""Makes tests/golden/tokenizer/: small tokenizers of each kind, trained on text written here, and what Hugging Face
tokenizers makes of some texts with them. Run from the repository root."""
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_files import byte_pieces, sentencepiece_bpe, sentencepiece_decoder, sentencepiece_normalizer

OUT = "tests/golden/tokenizer"
WORDS = "the cat sat on a mat and it was not there but they were here's what we'll do don't I've 123 4567 naïve café 日本語 テスト привет мир"
CORPUS = [" ".join(WORDS.split()[i:] + WORDS.split()[:i]) + ".\n\n  " for i in range(len(WORDS.split()))]
TEXTS = ["", " ", "   ", "Hello, the cat sat.", "  leading and trailing  ", "a\nb\r\n\r\n c\t\td", "don't DON'T we'LL it'ſ 'S", "12345 6 1/2 ½ ٣٤",
         "cafe\u0301 café q\u0307\u0323 \u212b 각", "日本語 テスト。", "👨‍👩‍👧 🙂\ufe0f", "\u00a0\u3000 \u2028x", "<s>hi</s> there<s>", "x <mask>  y <mask>", "word words sword word.",
         "<tool>a <tool>  b", "\u0000\u0001\u007f", "▁▁ ▁a", "Ġ Ċ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the " * 30,
         "<0x41>|ROW| a|ROW|<0x4", "éé a éß aaaaa aaaaaaaa", "\U0001E5D0\U000105C0 \U00010D40", "a\u0301\u08ca\u0323\u1ace", "!!!\n\n???", "tab\tx  \n \n  y"]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(pre, ignore_merges=False, normalizer=None, bos=True):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    finish(t, bos)
    return t


def sentencepiece(normalizer=None, pre=None, decoder=None):
    t = sentencepiece_bpe(CORPUS, 140)
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoder or sentencepiece_decoder()
    finish(t, True)
    return t


def unigram(byte_fallback):
    """Scores are rounded, so that some cuts are equally good; without byte_fallback unknown characters become unk. The
    literal <0x41> is a piece, and so is what no normal text holds."""
    words = sorted({w for w in WORDS.split()} | {w[:k] for w in WORDS.split() for k in (1, 2, 3)})
    pieces = sorted({c for w in words for c in w if c.isascii()} | {"▁" + w for w in words} | set(words) | {"▁", "▁▁", "aaaa", "aa"})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab += [(p, 0.0) for p in byte_pieces()] if byte_fallback else [("<0x41>", 0.0)]
    vocab += [(p, -round(4 + 11 / len(p) + i % 3, 1)) for i, p in enumerate(pieces)] + [("", -3.0), ("|ROW|", 0.0)]
    t = Tokenizer(models.Unigram(vocab, 0, byte_fallback))
    if byte_fallback:
        t.normalizer = sentencepiece_normalizer()
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    t.decoder = sentencepiece_decoder()
    finish(t, True)
    return t


def finish(t, bos):
    t.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False), AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    t.add_tokens([AddedToken("word", single_word=True, normalized=False), AddedToken("<tool>", normalized=True)])
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])


bl = lambda **k: pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **k})
KINDS = {
    "llama3": lambda: byte_level(pre_tokenizers.Sequence([split(LLAMA3), bl()]), ignore_merges=True),
    "qwen2": lambda: byte_level(pre_tokenizers.Sequence([split(LLAMA3.replace("{1,3}", "")), bl()]), normalizer=normalizers.NFC(), bos=False),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), bl(use_regex=True)]), bos=False),
    "other": lambda: byte_level(pre_tokenizers.Sequence([split(O200K), bl(add_prefix_space=True)])),
    "mistral": lambda: sentencepiece(sentencepiece_normalizer()),
    "meta_first": lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "meta_always": lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="always", split=True), decoder=decoders.Metaspace()),
    "unigram": lambda: unigram(True),
    "unigram_unk": lambda: unigram(False),
    "meta_never": lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="never", split=True), decoder=decoders.Metaspace(prepend_scheme="never")),
}
for name, make in KINDS.items():
    os.makedirs(f"{OUT}/{name}", exist_ok=True)
    data = json.loads(make().to_str())
    if name in ("smollm", "mistral"):
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    with open(f"{OUT}/{name}/tokenizer.json", "w") as f:
        f.write(json.dumps(data, ensure_ascii=name == "qwen2") + "\n")
    with open(f"{OUT}/{name}/tokenizer_config.json", "w") as f:
        f.write(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}) + "\n")
    t = Tokenizer.from_str(json.dumps(data))
    rows = []
    for text in TEXTS:
        if name == "other" and "\U0001E5D0" in text:
            continue  # letters that PCRE2 is too old to know
        ids = t.encode(text).ids
        rows.append({"text": text.encode().hex(), "ids": ids, "plain": t.encode(text, add_special_tokens=False).ids,
                     "decoded": t.decode(ids, skip_special_tokens=False).encode().hex(), "skipped": t.decode(ids).encode().hex()})
    broken = [i * 7 % t.get_vocab_size() for i in range(60)]
    rows.append({"ids": broken, "decoded": t.decode(broken, skip_special_tokens=False).encode().hex(), "skipped": t.decode(broken).encode().hex()})
    with open(f"{OUT}/{name}/expected.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")

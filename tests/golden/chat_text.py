"""The text side of the fixtures: a tiny Llama-3-like tokenizer, Mantis' llama_3 template, the trained tokens."""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

IGNORED = -100

WORDS = """harbour lantern violet copper meadow thunder basket pepper marble willow orchard rocket velvet saddle
anchor pebble feather kettle ribbon tunnel don't 3,141.5 naïve über 東京 ☂ x[i]+=1""".split()
PIRATE = "You are a pirate chatbot who always responds in pirate speak!"
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PICTURE_TOKENS = ["<image>", "<|pad|>"]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentence(rng, longest):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, longest))).capitalize() + rng.choice(".!?")


def make_tokenizer(extra):
    """Byte-level BPE of 256 bytes and 38 merges, then the special tokens, as Llama 3 orders and writes them."""
    rng = random.Random(1)
    corpus = [PIRATE, "system", "user", "assistant"] * 20 + [sentence(rng, 12) for _ in range(200)]
    t = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=294, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    )
    t.add_special_tokens(SPECIALS + extra)
    bos = (SPECIALS[0], t.token_to_id(SPECIALS[0]))
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
            ),
        ]
    )
    return t


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def render(turns, open_turn=False):
    """Mantis' llama_3 template, without the begin token, which the tokenizer adds."""
    text = header("system") + PIRATE + "<|eot_id|>"
    for role, content in turns:
        text += header(role) + content + "<|eot_id|>"
    return text + (header("assistant") if open_turn else "")


def place_pictures(turns, pictures):
    """Missing placeholders go before the first user text; the k-th becomes (image k: <Image><image></Image>)."""
    missing = pictures - sum(content.count("<image>") for _, content in turns)
    assert missing >= 0
    turns = [("user", "<image>" * missing + turns[0][1])] + turns[1:]
    placed, count = [], 0
    for role, content in turns:
        parts = content.split("<image>")
        text = parts[0]
        for part in parts[1:]:
            count += 1
            text += f"(image {count}: <Image><image></Image>)" + part
        placed.append((role, text))
    return placed


def labels_of(ids, separator):
    """Trained: after every odd separator (system 0, user 1, assistant 2, user 3, ...) through the next one."""
    at = [i for i, token in enumerate(ids) if token == separator]
    labels = [IGNORED] * len(ids)
    for i in range(1, len(at), 2):
        end = at[i + 1] if i + 1 < len(at) else len(ids) - 1
        labels[at[i] + 1 : end + 1] = ids[at[i] + 1 : end + 1]
    return labels

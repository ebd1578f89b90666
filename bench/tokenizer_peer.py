"""What bench/tokenizer measures, for Hugging Face tokenizers on one thread: tokenizer_peer.py DIR FILE. Prints one line."""
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers

folder, path = sys.argv[1:3]
start = time.perf_counter()
tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
load = time.perf_counter() - start
data = open(path, "rb").read()
text = data.decode()
best, count = 1e30, 0
for _ in range(3):
    start = time.perf_counter()
    count = len(tokenizer.encode(text, add_special_tokens=False))
    best = min(best, time.perf_counter() - start)
print(
    f"tokenizers {tokenizers.__version__} {folder}: load {load * 1e3:.0f} ms, {len(data) / best / 1e6:.2f} MB/s, "
    f"{count / best / 1e6:.2f} M tokens/s ({count} tokens, best of 3, one thread)"
)

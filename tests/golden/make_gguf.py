"""For tests/test_gguf.c: a file of gguf-py, and blocks as ggml quantises them, Q8_0 and Q4_0 by gguf-py, Q4_K by
libggml's reference quantiser (of llama-cpp-python, or of the folder that LLAMA_CPP_LIB_PATH names).
digests.json is written by tests/interop/interop.py --record. Needs tests/interop/requirements.txt."""

import ctypes
import os
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent / "gguf"


def libggml():
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    if not folder:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
    return ctypes.CDLL(str(Path(folder) / "libggml-base.so"))


def q4_k(x):
    out = np.zeros((x.shape[0], x.shape[1] // 256 * 144), np.uint8)
    rows = np.ascontiguousarray(x)
    libggml().quantize_row_q4_K_ref(
        rows.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(rows.size))
    return out


def rows():
    rng = np.random.default_rng(7)
    n = 512
    x = [rng.standard_normal(n) * s for s in (1, 0.02, 1e-3, 30, 1e4)]
    x += [np.abs(rng.standard_normal(n)), -np.abs(rng.standard_normal(n)), rng.standard_cauchy(n)]
    x += [np.zeros(n), np.full(n, 0.75), np.full(n, -0.75), rng.integers(-8, 8, n) * 0.125]
    x += [rng.standard_normal(n) * (np.arange(n) % 32 == 5), rng.standard_normal(n) * 1e-7]
    x += [np.round(rng.standard_normal(n), 1)]
    x += [np.concatenate([rng.standard_normal(32) * 10.0 ** -(k % 6) for k in range(n // 32)])]
    return np.array(x, np.float32)


def sample():
    """A small file with values of every kind, as gguf-py writes it."""
    w = gguf.GGUFWriter(HERE / "sample.gguf", "llama")
    w.add_uint8("u8", 200), w.add_int8("i8", -3), w.add_uint16("u16", 60000), w.add_int16("i16", -300)
    w.add_uint32("u32", 4000000000), w.add_int32("i32", -70000), w.add_uint64("u64", 1 << 40)
    w.add_int64("i64", -(1 << 40)), w.add_float32("f32", 0.1), w.add_float64("f64", 0.1)
    w.add_bool("yes", True), w.add_string("text", "h\u00e9")
    w.add_array("list", [1, 2, 3]), w.add_array("words", ["a", ""])
    w.add_tensor("one", np.arange(5, dtype=np.float32))
    w.add_tensor("two", np.arange(12, dtype=np.float16).reshape(3, 4))
    q = gguf.quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("three", q, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file()
    w.close()


def main():
    HERE.mkdir(exist_ok=True)
    sample()
    x = rows()
    tensors = {"x": x, "q4_k": q4_k(x)}
    for name, kind in (("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)):
        tensors[name] = gguf.quants.quantize(x, kind)
        tensors["x_" + name] = gguf.quants.dequantize(tensors[name], kind)
    tensors["x_q4_k"] = gguf.quants.dequantize(tensors["q4_k"], gguf.GGMLQuantizationType.Q4_K)
    save_file(tensors, HERE / "blocks.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()

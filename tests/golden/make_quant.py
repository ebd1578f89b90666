#!/usr/bin/env python3
"""Makes tests/golden/quant/weights.safetensors: weights, what bitsandbytes makes of them on the CPU, and what that means.

For every case CASE.source is the weight; CASE.weight and CASE.weight.* are as bitsandbytes saves them; CASE.values is
code * absmax, rounded once to the type of the source. Random weights are drawn again until none of them lies where the
CPU code of bitsandbytes departs from its GPU code (8-bit codes of absmax; FP4 near zero and near a cut).
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

CASES = {  # name: (dtype, type, block size, double quantisation, rows, columns)
    "nf4": (torch.float32, "nf4", 64, False, 33, 129),
    "nf4_bf16_double": (torch.bfloat16, "nf4", 64, True, 20, 1000),
    "nf4_f16_odd": (torch.float16, "nf4", 128, False, 7, 37),
    "nf4_4096": (torch.float32, "nf4", 4096, False, 65, 67),
    "nf4_32_double": (torch.float32, "nf4", 32, True, 3, 31),
    "fp4_bf16": (torch.bfloat16, "fp4", 32, False, 9, 77),
    "fp4_f16_double": (torch.float16, "fp4", 64, True, 12, 100),
}


def outliers() -> torch.Tensor:
    """Blocks of 64: zeros, a huge value, denormal numbers, tiny ones, one value only, and a last short block of zeros."""
    w = torch.zeros(7, 64)
    w[1] = torch.linspace(-1, 1, 64)
    w[1, 5] = 3e38
    w[2] = torch.linspace(-1, 1, 64) * 1e-40
    w[3] = torch.linspace(-1, 1, 64) * 1e-37
    w[4] = 0.25
    w[5, ::2] = -1.0
    return w[:, :63].contiguous()


def exact_scales(weight, packed, state) -> torch.Tensor:
    """absmax of each block in fp32, by hand."""
    if not state.nested:
        return state.absmax
    nested = state.state2.absmax.repeat_interleave(256)[: state.absmax.numel()]
    return state.state2.code[state.absmax.long()] * nested + state.offset


def codes_of(packed: torch.Tensor, n: int) -> torch.Tensor:
    flat = packed.flatten().long()
    return torch.stack([flat >> 4, flat & 15], 1).flatten()[:n]


def gpu_would_agree(weight, packed, state, kind) -> bool:
    n = weight.numel()
    absmax = torch.stack([b.abs().max() for b in weight.float().flatten().split(state.blocksize)])
    if state.nested:
        v = absmax - state.offset
        scaled = v / state.state2.absmax.repeat_interleave(256)[: v.numel()]
        gaps = (scaled[:, None] - state.state2.code[None]).abs()
        two = gaps.topk(2, largest=False)
        if not torch.equal(two.indices[:, 0], state.absmax.long()) or (two.values[:, 1] - two.values[:, 0]).min() < 1e-6:
            return False
    if kind == "fp4":
        x = (weight.float().flatten() / absmax.repeat_interleave(state.blocksize)[:n]).abs()
        cuts = torch.tensor([0.0026, 0.0859375, 5 / 24, 7 / 24, 5 / 12, 7 / 12, 5 / 6])
        return bool(((x[:, None] - cuts[None]).abs() > 1e-4).all() and (x > 0.003).all())
    return True


def main() -> None:
    tensors = {}
    weights = {name: None for name in CASES} | {"outliers": outliers()}
    for name, weight in weights.items():
        dtype, kind, blocksize, double, rows, columns = CASES.get(name, (torch.float32, "nf4", 64, False, 7, 63))
        for seed in range(10000):
            if name in CASES:
                weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05
                if kind == "fp4":
                    weight = weight + 0.004 * weight.sign()
                weight = weight.to(dtype)
            packed, state = bnb.quantize_4bit(weight, blocksize=blocksize, compress_statistics=double, quant_type=kind)
            if gpu_would_agree(weight, packed, state, kind) or name not in CASES:
                break
        else:
            raise SystemExit(f"{name}: no seed will do")
        scales = exact_scales(weight, packed, state).repeat_interleave(blocksize)[: weight.numel()]
        values = state.code[codes_of(packed, weight.numel())] * scales
        tensors[name + ".source"] = weight
        tensors[name + ".values"] = values.to(dtype).reshape(weight.shape)
        tensors[name + ".weight"] = packed
        for key, value in state.as_dict(packed=True).items():
            tensors[f"{name}.weight.{key}"] = value
    out = Path(__file__).with_name("quant") / "weights.safetensors"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out, metadata={"format": "pt"})
    print(out, out.stat().st_size)


main()

"""What few bits save and cost when a model is served: generated tokens a second, prompts read, bytes in memory.

    OMP_NUM_THREADS=1 taskset -c 1 python bench/quantize.py [--rounds 3] [--width 960] [--layers 8] [--json]
    OMP_NUM_THREADS=1 taskset -c 1 python bench/quantize.py --kernels    # products by matrices of 5,120 x 960 alone

Random weights of a Llama shape with a vocabulary of 8,192, tied. Each side is an engine on the same checkpoint: fp32,
bf16, int8, int4 in groups of 64 and NF4 (activations in bf16), and transformers in bf16. One request of 32 + 32 tokens,
eight of them together, and the first token of 256, interleaved, CPU seconds of this process. `bytes` are those of the
model's parameters and buffers; engines keep packed copies of dense weights beside them, and none of quantised ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from nachim.infer.engine import Engine
from nachim.infer.folder import opened
from nachim.infer.invariant import Reordered
from nachim.infer.quantize.rounding import chosen, rounded
from nachim.model.decoder import tensors
from nachim.model.kernels import DenseKernel
from nachim.model.quantized import store
from nachim.model.quantized.grid import nearest
from nachim.model.quantized.linear import Int4Kernel, LowBitLinear
from nachim.spec import NF4, Int4, Int8
from nachim.spec.quantize import Scheme

VOCABULARY, CONTEXT = 8192, 512
SCHEMES: dict[str, Scheme] = {"int8": Int8(), "int4": Int4(group=64), "nf4": NF4()}
CASES = {"one request": (1, 32, 32), "eight together": (8, 32, 32), "first token of 256": (1, 256, 1)}
"""Requests, tokens of a prompt, tokens to generate."""

Side = Callable[[list[list[int]], int], Any]


def sides_of(width: int, layers: int, folder: Path) -> tuple[dict[str, Side], dict[str, int]]:
    """What answers prompts, by name, and the bytes of its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 192),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder / "dense")
    theirs = theirs.bfloat16()
    loaded = {"fp32": opened(folder / "dense"), "bf16": opened(folder / "dense", "bfloat16")}
    for name, scheme in SCHEMES.items():
        loaded[name] = opened(quantized(folder / "dense", folder / name, scheme), "bfloat16")
    found: dict[str, Side] = {name: served(Engine(one, prefixes=False)) for name, one in loaded.items()}
    held = {name: sum(one.nbytes for one in state(each.model)) for name, each in loaded.items()}
    return {**found, "transformers bf16": generated(theirs)}, {**held, "transformers bf16": held["bf16"]}


def state(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def quantized(dense: Path, out: Path, scheme: Scheme) -> Path:
    """A checkpoint rounded to nearest, in `out`."""
    out.mkdir()
    model = opened(dense).model
    coded = rounded(model, chosen(model, scheme), scheme)
    kept = {name: tensor.detach() for name, tensor in tensors(model).items() if name not in coded}
    model.spec.save(out / "run.json")
    store.write(out, scheme, "rtn", "drawn for a bench", coded, kept)
    return out


def served(engine: Engine) -> Side:
    """Requests that all came at once."""
    return lambda prompts, count: engine.generate(prompts, max_tokens=count, temperature=0.0)


def generated(model: LlamaForCausalLM) -> Side:
    """transformers' `generate`, greedy."""

    def side(prompts: list[list[int]], count: int) -> Any:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)

    return side


def measured(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """Median CPU seconds of each side in each case, one after the other in every round."""
    draw, found = random.Random(1), {}
    for case, (requests, length, count) in CASES.items():
        prompts = [[draw.randrange(VOCABULARY) for _ in range(length)] for _ in range(requests)]
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name, side in sides.items():
                begin = time.process_time()
                side(prompts, count)
                if turn:  # the first warms caches and kernels
                    times[name].append(time.process_time() - begin)
        found[case] = {name: statistics.median(each) for name, each in times.items()}
    return found


def products(weight: torch.Tensor) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Ways to multiply by a matrix; all but the first are of bf16."""
    half, coded = weight.bfloat16(), {name: nearest(weight, scheme) for name, scheme in SCHEMES.items()}
    found: dict[str, Callable[[torch.Tensor], Any]] = {
        "fp32, packed by oneDNN": Reordered(weight),
        "torch's": lambda x: F.linear(x, half),
        "packed by oneDNN": Reordered(half),
        **{name: LowBitLinear(one, None, torch.bfloat16) for name, one in coded.items()},
        "int4, torch's": Int4Kernel(coded["int4"]),
    }
    return found | ({"ours": DenseKernel(half, 512)} if DenseKernel.takes(half) else {})


def kernels(copies: int = 6, rounds: int = 5) -> dict[str, dict[int, float]]:
    """Median CPU milliseconds of a product by a matrix [5120, 960] for 1, 8 and 64 rows, interleaved, each of several
    copies in turn, so that none is found in a near cache."""
    matrices = [products(torch.randn(5120, 960)) for _ in range(copies)]
    found: dict[str, dict[int, float]] = {name: {} for name in matrices[0]}
    for rows in (1, 8, 64):
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds + 1):
            for name, taken in times.items():
                x = torch.randn(rows, 960).to(torch.float32 if "fp32" in name else torch.bfloat16)
                begin = time.process_time()
                for each in matrices:
                    each[name](x)
                taken.append(1e3 * (time.process_time() - begin) / copies)
        for name, taken in times.items():
            found[name][rows] = round(statistics.median(taken[1:]), 3)
    return found


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rounds": 3, "width": 960, "layers": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    args = parser.parse_args()
    if args.kernels:
        with torch.inference_mode():
            print(json.dumps(kernels(), indent=2))
        return
    with tempfile.TemporaryDirectory() as folder:
        sides, held = sides_of(args.width, args.layers, Path(folder))
        times = measured(sides, args.rounds)
    told = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "bytes": held, "seconds": times}
    if args.json:
        print(json.dumps(told))
        return
    table = Table("", *CASES, "bytes of weights", title="generated tokens a CPU second; CPU seconds to the first token")
    for name in sides:
        rates = [
            f"{times[case][name]:.2f} s" if count == 1 else f"{requests * count / times[case][name]:,.1f}"
            for case, (requests, _, count) in CASES.items()
        ]
        table.add_row(name, *rates, f"{held[name]:,}")
    Console().print(table)
    Console().print(f"{told['threads']} threads; load of the machine {told['load']:.1f}")


if __name__ == "__main__":
    main()

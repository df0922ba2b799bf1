"""The engine beside transformers' `generate`: same weights and prompts, fp32, interleaved, CPU seconds.

    OMP_NUM_THREADS=1 taskset -c 1 python bench/engine.py [--rounds 3] [--width 256] [--layers 4] [--json]

Random weights of a Llama shape with a vocabulary of 8,192. Cases: one request, eight together, 64 of mixed lengths
(transformers: one padded batch, run to the longest), each for the engine with invariant kernels and with torch's own;
then the first token with and without a prefix that was read before, and what pages waste. Tokens of engine and
transformers are compared; where two logits tie to rounding they may part.
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
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from nachim.infer.engine import Engine
from nachim.infer.folder import opened
from nachim.infer.request import Sampling

VOCABULARY, CONTEXT = 8192, 2048


class Bench:
    """Both engines and transformers on one checkpoint."""

    def __init__(self, width: int, layers: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=8 * width // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=max(1, width // 128),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=None,
        )
        self.theirs = LlamaForCausalLM(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            self.theirs.save_pretrained(folder)
            self.loaded = opened(folder)
        self.exact = Engine(self.loaded, prefixes=False)
        self.fast = Engine(self.loaded, prefixes=False, invariant=False)
        self.params = sum(weight.numel() for weight in self.theirs.parameters())

    def transformers(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """One padded batch, run to the longest output."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            found = self.theirs.generate(
                ids, attention_mask=mask, max_new_tokens=max(outputs), do_sample=False, pad_token_id=0
            )
        return [row[longest : longest + count] for row, count in zip(found.tolist(), outputs, strict=True)]


def served(engine: Engine, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
    """The tokens of requests that all came at once."""
    numbers = [
        engine.add(prompt, Sampling(max_tokens=count, temperature=0.0))
        for prompt, count in zip(prompts, outputs, strict=True)
    ]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while not engine.idle:
        for chunk in engine.step():
            found[chunk.request] += chunk.tokens
    return [found[number] for number in numbers]


def seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def medians(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each side, one after the other in every round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            found[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in found.items()}


def drawn(lengths: list[int], seed: int) -> list[list[int]]:
    """Prompts of these lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def throughput(bench: Bench, rounds: int) -> dict[str, dict[str, float]]:
    """Generated tokens a CPU second in each case, and how many of the engine's tokens are transformers'."""
    draw = random.Random(1)
    mixed = [min(96, 8 + int(draw.expovariate(1 / 20))) for _ in range(64)]
    cases = {
        "batch 1": (drawn([128], 1), [32]),
        "batch 8": (drawn([128] * 8, 2), [32] * 8),
        "64 mixed": (drawn([draw.randrange(8, 96) for _ in mixed], 3), mixed),
    }
    rows = {}
    for name, (prompts, outputs) in cases.items():
        told = [served(bench.exact, prompts, outputs), served(bench.fast, prompts, outputs)]
        theirs = bench.transformers(prompts, outputs)
        same = sum(a == b for one, other in zip(told[0], theirs, strict=True) for a, b in zip(one, other, strict=True))
        sides = {
            "invariant": lambda p=prompts, o=outputs: served(bench.exact, p, o),
            "fast": lambda p=prompts, o=outputs: served(bench.fast, p, o),
            "transformers": lambda p=prompts, o=outputs: bench.transformers(p, o),
        }
        taken = medians(sides, rounds)
        rows[name] = {side: sum(outputs) / value for side, value in taken.items()}
        rows[name] |= {"tokens": sum(outputs), "equal": same / sum(outputs)}
    return rows


def first_token(bench: Bench, rounds: int) -> dict[str, float]:
    """CPU seconds to the first token of a prompt of 640 tokens of which nine tenths were read before."""
    shared, tails = drawn([576], 4)[0], drawn([64] * (2 * rounds + 1), 5)
    warm = Engine(bench.loaded)
    served(warm, [shared + tails.pop()], [1])
    sides = {
        "cold": lambda: served(bench.exact, [shared + tails.pop()], [1]),
        "prefix": lambda: served(warm, [shared + tails.pop()], [1]),
    }
    return medians(sides, rounds)


def cache(bench: Bench) -> dict[str, float]:
    """The largest share of slots without a token while 64 samples of heavy-tailed lengths are served."""
    draw = random.Random(6)
    engine = Engine(bench.loaded, prefixes=False)
    for prompt in drawn([min(1500, int(40 * draw.paretovariate(1.2))) for _ in range(64)], 7):
        engine.add(prompt, Sampling(max_tokens=2, temperature=0.0))
    seen = []
    while not engine.idle:
        engine.step()
        seen.append(engine.facts()["waste"])
    return {"waste_mean": statistics.fmean(seen[:-1]), "waste_when_all_run": seen[-2]}


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.width, options.layers)
    told = {
        "params": bench.params,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "throughput": throughput(bench, options.rounds),
        "first_token": first_token(bench, options.rounds),
        "cache": cache(bench),
    }
    if options.json:
        print(json.dumps(told))
        return
    table = Table("case", "invariant, tok/s", "fast, tok/s", "transformers, tok/s", "equal tokens")
    for name, row in told["throughput"].items():
        table.add_row(
            name, f"{row['invariant']:.0f}", f"{row['fast']:.0f}", f"{row['transformers']:.0f}", f"{row['equal']:.1%}"
        )
    console = Console()
    console.print(f"{bench.params / 1e6:.1f}M parameters, {told['threads']} thread, load {told['load']:.1f}")
    console.print(table)
    first = told["first_token"]
    console.print(f"first token: {first['cold']:.3f} s cold, {first['prefix']:.3f} s with a prefix read before")
    console.print(f"slots without a token: {told['cache']['waste_mean']:.1%} on average")


if __name__ == "__main__":
    main()

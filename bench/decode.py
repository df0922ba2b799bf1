"""Reading and writing at 360M parameters: the engine beside transformers and llama.cpp, CPU milliseconds in turns.

    OMP_NUM_THREADS=1 python bench/decode.py [--weights bfloat16] [--turns 5] [--steps 4] [--fast] [--json]
    OMP_NUM_THREADS=1 python bench/decode.py --weights int4 --llama    # needs pip install xllamacpp

Random weights of the Llama shape of SmolLM2-360M (32 layers of 960, 15 heads of which 5 have keys, 49,152 tokens); or
`--layers 4 --vocabulary 8192`, 47M. The engine has them in `--weights` bits; transformers has the same in bf16 (in fp32
beside fp32), llama.cpp a file of its own in q4_0, its table in q8_0. Printed: the median time to read a prompt of 256
tokens, and of a step that writes one token for one request and for eight after as many. transformers is called as
`model(ids, past_key_values=...)`, without what `generate` adds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded, opened
from nachim.infer.quantize.rounding import chosen, rounded
from nachim.infer.request import Sampling
from nachim.model.quantized.linear import put
from nachim.spec import NF4, Int4, Int8
from nachim.spec.quantize import Scheme

LENGTH, MOST = 256, 512
SHAPE = {"width": 960, "heads": 15, "keys": 5, "inner": 2560}
SCHEMES: dict[str, Scheme] = {"int8": Int8(), "int4": Int4(group=64), "nf4": NF4()}
Times = dict[str, list[float]]


def checkpoint(layers: int, vocabulary: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers' model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=SHAPE["width"],
        intermediate_size=SHAPE["inner"],
        num_hidden_layers=layers,
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["keys"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        dtype=dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).to(dtype).eval()
    finally:
        torch.set_default_dtype(before)


def lowered(loaded: Loaded, scheme: Scheme) -> Loaded:
    """The same model with its matrices rounded to nearest."""
    model = loaded.model
    return replace(loaded, model=put(model, rounded(model, chosen(model, scheme), scheme)))


def spent(work: Callable[[], Any]) -> float:
    """CPU milliseconds of this process."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


class Bench:
    """The sides, which take turns."""

    def __init__(self, engine: Engine, theirs: LlamaForCausalLM, llama: Any, turns: int, steps: int) -> None:
        self.engine, self.theirs, self.llama = engine, theirs, llama
        self.turns, self.steps = turns, steps

    def ids(self, batch: int, seed: int) -> torch.Tensor:
        """Prompts [batch, LENGTH]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, self.theirs.config.vocab_size, (batch, LENGTH), generator=generator)

    def taken(self, sides: Callable[[int], dict[str, Callable[[], Any]]]) -> Times:
        """Times of the sides of each turn; the first turn is to warm up."""
        found: Times = {}
        for turn in range(self.turns + 1):
            for name, work in sides(turn).items():
                found.setdefault(name, []).append(spent(work))
        return {name: times[1:] for name, times in found.items()}

    def reading(self) -> Times:
        """Times to read a prompt, up to its first token."""

        def sides(turn: int) -> dict[str, Callable[[], Any]]:
            ids = self.ids(1, 100 + turn)
            ours = lambda: self.engine.generate(ids.tolist(), max_tokens=1, temperature=0.0)  # noqa: E731
            found = {"engine": ours, "transformers": lambda: self.theirs(ids, logits_to_keep=1)}
            return found | ({"llama.cpp": lambda: self.llama.answers(ids.tolist(), 1, False)} if self.llama else {})

        return self.taken(sides)

    def writing(self, batch: int) -> Times:
        """Times of a step, the mean of as many as a turn has."""
        ids, cache = self.ids(batch, batch), DynamicCache()
        count = self.steps * (self.turns + 2)
        numbers = [self.engine.add(row, Sampling(max_tokens=count, temperature=0.0)) for row in ids.tolist()]
        while self.engine.scheduler.waiting or any(held.prefilling for held in self.engine.scheduler.running):
            self.engine.step()
        last = self.theirs(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)

        def ours() -> None:
            for _ in range(self.steps):
                self.engine.step()

        def step() -> None:
            nonlocal last
            for _ in range(self.steps):
                last = self.theirs(last, past_key_values=cache).logits[:, -1:].argmax(-1)

        sides: dict[str, Callable[[], Any]] = {"engine": ours, "transformers": step}
        if self.llama:
            self.llama.answers(ids.tolist(), 1)
            sides["llama.cpp"] = lambda: self.llama.answers(ids.tolist(), self.steps)
        found = self.taken(lambda turn: sides)
        for number in numbers:
            self.engine.abort(number)
        return {name: [value / self.steps for value in times] for name, times in found.items()}


def asked() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="bfloat16", choices=("bfloat16", "float32", *SCHEMES))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--fast", action="store_true", help="the engine without invariance")
    parser.add_argument("--llama", action="store_true", help="llama.cpp's q4_0 beside them")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepared(options: argparse.Namespace, folder: Path) -> Bench:
    """Everything that is measured, opened."""
    dtype = "float32" if options.weights == "float32" else "bfloat16"
    theirs = checkpoint(options.layers, options.vocabulary, getattr(torch, dtype))
    theirs.save_pretrained(folder)
    loaded, llama = opened(folder, dtype), None
    if options.weights in SCHEMES:
        loaded = lowered(loaded, SCHEMES[options.weights])
    if options.llama:
        from bench._llama import Llama, written

        shape = {**SHAPE, "layers": options.layers, "vocabulary": options.vocabulary}
        llama = Llama(written(folder / "q4_0.gguf", **shape), 8, MOST)
    engine = Engine(loaded, cache_tokens=8 * MOST, prefixes=False, invariant=not options.fast)
    return Bench(engine, theirs, llama, options.turns, options.steps)


def main() -> None:
    """Measure, and print a table or one JSON object."""
    options = asked()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepared(options, Path(folder))
        with torch.inference_mode():
            cases = {f"reads {LENGTH} tokens": bench.reading()}
            cases |= {f"step of {batch}": bench.writing(batch) for batch in (1, 8)}
    told = {name: {side: statistics.median(times) for side, times in case.items()} for name, case in cases.items()}
    if options.json:
        print(json.dumps({"weights": options.weights, "load": os.getloadavg()[0], "milliseconds": told}))
        return
    names = list(next(iter(told.values())))
    table = Table("case", *(f"{name}, ms" for name in names), *(f"times {name}'s speed" for name in names[1:]))
    for case, row in told.items():
        ratios = (f"{row[name] / row['engine']:.2f}" for name in names[1:])
        table.add_row(case, *(f"{row[name]:.1f}" for name in names), *ratios)
    Console().print(table)
    Console().print(
        f"{options.weights}, {torch.get_num_threads()} thread, load of the machine {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
